"""Filters over metadata: a grammar, typed columns cut from JSON, and which rows of a part a filter matches.

A pure library: it knows neither vectors, nor files other than its own, nor HTTP. `parsing.py` reads a filter,
`grammar.py` is what it becomes, `shredding.py` cuts metadata into `columns.py`, `evaluate.py` answers for all
rows of a part at once and `plain.py` for one document. docs/filters.md is the contract.
"""
