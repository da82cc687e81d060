"""Tidemark beside other stores: `make bench-peers`; `__main__.py` says how."""
