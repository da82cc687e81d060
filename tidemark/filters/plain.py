"""Whether one document matches a filter: plain Python, for few rows and for the second opinion on `evaluate.py`."""

from collections.abc import Iterator
from typing import Any

from tidemark.filters.documents import Document, bounded
from tidemark.filters.grammar import (
    ELEMENTS,
    Condition,
    Filter,
    HasId,
    IsEmpty,
    IsNull,
    Match,
    Nested,
    OnPath,
    Path,
    Range,
    Text,
    array_of,
)
from tidemark.filters.times import parse_time
from tidemark.filters.words import contains, words


def matches(filter_: Filter, document: Document | None, id_: bytes | None) -> bool:
    """Whether a row matches; `id_` is None where no id is: in an object of an array."""
    document = document or {}
    return (
        all(_holds(one, document, id_) for one in filter_.must)
        and (not filter_.should or any(_holds(one, document, id_) for one in filter_.should))
        and not any(_holds(one, document, id_) for one in filter_.must_not)
        and sum(_holds(one, document, id_) for one in filter_.min_should) >= filter_.min_count
    )


def values_at(path: Path, value: Any) -> Iterator[Any]:
    """What stands at a path, as often as the path occurs."""
    if not path:
        yield value
        return
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        if isinstance(value, dict) and step in value:
            yield from values_at(rest, value[step])
    elif isinstance(value, list):
        for element in value if step == ELEMENTS else value[step : step + 1]:
            yield from values_at(rest, element)


def flat_values_at(path: Path, value: Any) -> Iterator[Any]:
    """The same, and in place of an array its elements."""
    for found in values_at(path, value):
        if isinstance(found, list):
            yield from found
        else:
            yield found


def _holds(condition: Condition, document: Document, id_: bytes | None) -> bool:
    if isinstance(condition, Filter):
        return matches(condition, document, id_)
    if isinstance(condition, HasId):
        return id_ in condition.ids
    if isinstance(condition, Nested):
        elements = values_at(array_of(condition.path), document)
        return any(matches(condition.filter, one, None) for one in elements if isinstance(one, dict))
    return _holds_on_path(condition, document)


def _holds_on_path(condition: OnPath, document: Document) -> bool:
    if isinstance(condition, Match | Text | Range):
        return any(_fits(condition, value) for value in flat_values_at(condition.path, document))
    values = list(values_at(condition.path, document))
    if isinstance(condition, IsEmpty):
        return all(value is None or value == [] for value in values) == condition.wanted
    if isinstance(condition, IsNull):
        return any(value is None or (isinstance(value, list) and None in value) for value in values) == condition.wanted
    return any(condition.bounds.hold(_count(value)) for value in values or [None])


def _count(value: Any) -> int:
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else 1


def _fits(condition: Match | Text | Range, value: Any) -> bool:
    if isinstance(condition, Match):
        return value is not None and _equals(condition, value) != condition.negated
    if isinstance(condition, Range):
        return _is_within(condition, value)
    if not isinstance(value, str):
        return False
    if condition.mode == "prefix":
        return value.startswith(condition.text)
    if condition.mode == "substring":
        return condition.text in value
    return contains(value, words(condition.text), condition.mode)


def _equals(condition: Match, value: Any) -> bool:
    if isinstance(value, bool):
        return value in condition.booleans
    if isinstance(value, int):
        return value in condition.integers
    return isinstance(value, str) and value in condition.strings


def _is_within(condition: Range, value: Any) -> bool:
    if condition.times:
        time = parse_time(value) if isinstance(value, str) else None
        return time is not None and condition.bounds.hold(time)
    number = bounded(value)
    return type(number) in (int, float) and condition.bounds.hold(number)
