"""Random documents and random filters over them, and a plain reading of what a filter means.

`fits` reads the filter as JSON and the document as JSON: it shares nothing with the code it is compared with.
Both are made of few keys and few values, so that most conditions hold for some rows and not for others.
"""

import json
import re
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

# How a path is written, and its steps; None is each element of an array.
PATHS: dict[str, tuple[Any, ...]] = {
    "a": ("a",),
    "b": ("b",),
    "tags": ("tags",),
    "a.b": ("a", "b"),
    '"a.b"': ("a.b",),
    "a[]": ("a", None),
    "a[].b": ("a", None, "b"),
    "a[1]": ("a", 1),
    "a[0].b": ("a", 0, "b"),
    "b[].a[].b": ("b", None, "a", None, "b"),
    "tags[]": ("tags", None),
    "never": ("never",),
}
TIMES = ["2024-05-01T12:00:00Z", "2024-05-01T14:00:00+02:00", "2024-05-01 12:00:00.25", "2023-12-31", "2024-02-30"]
STRINGS = ["", "red", "Red wine", "the red, red house", "réd", *TIMES]
INTEGERS = [-3, 0, 1, 2**40]
FLOATS = [-0.5, 1.0, 1e300]
LARGE = [2**53, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**70, -(2**64), 10**30]

_scalars = st.sampled_from([None, True, False, *INTEGERS, *FLOATS, *STRINGS])
_keys = st.sampled_from(["a", "b", "tags", "a.b", "c"])


def _nested(scalars: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3), max_leaves=8
    )


def documents(more: list[Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Metadata; `more`: further scalars in it."""
    scalars = _scalars | st.sampled_from(more) if more else _scalars
    inner = st.fixed_dictionaries({}, optional={"b": scalars, "a": st.lists(scalars, max_size=2), "c": scalars})
    array = st.lists(inner | scalars, max_size=3)
    usual = {"a": scalars | array | inner, "b": scalars | array, "tags": st.lists(scalars, max_size=3)}
    return st.fixed_dictionaries({}, optional=usual | {"a.b": scalars}) | st.dictionaries(_keys, _nested(scalars))


_paths = st.sampled_from(sorted(PATHS))
_counts = st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte"]), st.integers(0, 3), min_size=1, max_size=2)


def _ranges(numbers: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(["gt", "gte", "lt", "lte"])
    times = [one for one in TIMES if one != "2024-02-30"]
    return st.dictionaries(names, st.sampled_from(numbers), max_size=2) | st.dictionaries(
        names, st.sampled_from(times), min_size=1, max_size=2
    )


_words = st.sampled_from(["red", "RED wine", "red house", "house the", "réd", "", "12", "blue red"])
_parts = st.sampled_from(["", "r", "re", "red", "Red", "ed", " ", "é"])
_matches = st.one_of(
    st.fixed_dictionaries({"value": st.sampled_from([*STRINGS, *INTEGERS, True, False])}),
    *(
        st.fixed_dictionaries({name: st.lists(st.sampled_from(some), max_size=4)})
        for name in ("any", "except")
        for some in (STRINGS, INTEGERS)
    ),
    *(st.fixed_dictionaries({name: _words}) for name in ("text", "text_any", "phrase")),
    *(st.fixed_dictionaries({name: _parts}) for name in ("prefix", "substring")),
)


def _leaves(numbers: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    on_path = [
        st.fixed_dictionaries({"key": _paths, "match": _matches}),
        st.fixed_dictionaries({"key": _paths, "range": _ranges(numbers)}),
        st.fixed_dictionaries({"key": _paths, "values_count": _counts}),
        st.fixed_dictionaries({"key": _paths, "is_empty": st.booleans()}),
        st.fixed_dictionaries({"key": _paths, "is_null": st.booleans()}),
    ]
    alone = [st.fixed_dictionaries({name: st.fixed_dictionaries({"key": _paths})}) for name in ("is_empty", "is_null")]
    return st.one_of(*on_path, *alone)


def _clauses(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    some = st.lists(inner, max_size=3)
    least = st.fixed_dictionaries({"conditions": some, "min_count": st.integers(1, 3)})
    clauses = {"must": some | inner, "should": some, "must_not": some | inner, "min_should": least}
    one = st.one_of(*(st.fixed_dictionaries({name: asked}) for name, asked in clauses.items()))
    return one | st.fixed_dictionaries({}, optional=clauses)


def filters(ids: list[Any], numbers: list[Any] | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """Filters as JSON, in the grammar shared with Qdrant; `numbers`: what ranges compare with too."""
    leaf = _leaves([*INTEGERS, *FLOATS, 0.75, *(numbers or [])])
    leaf |= st.fixed_dictionaries({"has_id": st.lists(st.sampled_from(ids), max_size=3)})

    def deeper(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        nested = st.fixed_dictionaries({"key": _paths, "filter": _clauses(inner)})
        return _clauses(inner) | st.fixed_dictionaries({"nested": nested})

    return st.fixed_dictionaries({"must": leaf}) | _clauses(leaf) | _clauses(st.recursive(leaf, deeper, max_leaves=4))


def fits(asked: dict[str, Any], document: Any, id_: Any) -> bool:
    """Whether a row matches a filter, both as JSON."""

    def some(name: str) -> list[bool]:
        listed = asked.get(name, [])
        return [_fits(one, document, id_) for one in (listed if isinstance(listed, list) else [listed])]

    least = asked.get("min_should")
    if least and sum(_fits(one, document, id_) for one in least["conditions"]) < least["min_count"]:
        return False
    return all(some("must")) and not any(some("must_not")) and (any(some("should")) or not some("should"))


def holds(asked: dict[str, Any], steps: tuple[Any, ...], document: Any) -> bool:
    """Whether a condition without its key holds at a path of a document."""
    ((name, wanted),) = asked.items()
    return _on_path(name, wanted, _at(steps, [document]))


def _at(steps: tuple[Any, ...], values: list[Any]) -> list[Any]:
    for step in steps:
        if step is None:
            values = [one for value in values if isinstance(value, list) for one in value]
        elif isinstance(step, int):
            values = [value[step] for value in values if isinstance(value, list) and len(value) > step]
        else:
            values = [value[step] for value in values if isinstance(value, dict) and step in value]
    return values


def _fits(asked: dict[str, Any], document: Any, id_: Any) -> bool:
    if "has_id" in asked:
        return id_ in asked["has_id"]
    if "nested" in asked:
        steps = PATHS[asked["nested"]["key"]]
        arrays = _at(steps[:-1] if steps[-1] is None else steps, [document])
        objects = [one for value in arrays if isinstance(value, list) for one in value if isinstance(one, dict)]
        return any(fits(asked["nested"]["filter"], one, None) for one in objects)
    for name in ("is_empty", "is_null"):
        if name in asked and "key" not in asked:
            return _on_path(name, True, _at(PATHS[asked[name]["key"]], [document]))
    if "key" not in asked:
        return fits(asked, document, id_)
    ((name, wanted),) = ((name, value) for name, value in asked.items() if name != "key")
    return _on_path(name, wanted, _at(PATHS[asked["key"]], [document]))


def _on_path(name: str, wanted: Any, values: list[Any]) -> bool:
    if name == "is_empty":
        return (not [one for one in values if one is not None and one != []]) is wanted
    if name == "is_null":
        nulls = [one for one in values if one is None or (isinstance(one, list) and any(e is None for e in one))]
        return bool(nulls) is wanted
    if name == "values_count":
        counts = [0 if one is None else len(one) if isinstance(one, list) else 1 for one in values]
        return any(_within(one, wanted) for one in counts or [0])
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    if name == "range":
        return any(_in_range(one, wanted) for one in flat)
    ((kind, text),) = wanted.items()
    return any(_matches_value(kind, text, one) for one in flat)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


def _matches_value(kind: str, asked: Any, value: Any) -> bool:
    if kind in ("value", "any"):
        return any(_same(value, one) for one in (asked if kind == "any" else [asked]))
    if kind == "except":
        return value is not None and not any(_same(value, one) for one in asked)
    if not isinstance(value, str):
        return False
    if kind == "prefix":
        return value[: len(asked)] == asked
    if kind == "substring":
        return asked in value
    had, wanted = ([one.lower() for one in re.split(r"[\W_]+", text) if one] for text in (value, asked))
    if kind == "text_any":
        return any(one in had for one in wanted)
    if kind == "text":
        return wanted != [] and all(one in had for one in wanted)
    return wanted != [] and any(had[at:][: len(wanted)] == wanted for at in range(len(had)))


def _in_range(value: Any, bounds: dict[str, Any]) -> bool:
    if any(isinstance(one, str) for one in bounds.values()):
        times = {name: _time(one) for name, one in bounds.items()}
        found = _time(value) if isinstance(value, str) else None
        return found is not None and _within(found, times)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(str(value))
    return _within(value, bounds)


def _within(value: Any, bounds: dict[str, Any]) -> bool:
    compare = {
        "gt": lambda bound: value > bound,
        "gte": lambda bound: value >= bound,
        "lt": lambda bound: value < bound,
        "lte": lambda bound: value <= bound,
    }
    return all(compare[name](bound) for name, bound in bounds.items())


def _time(text: str) -> datetime | None:
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def encoded(document: Any) -> bytes | None:
    return None if document is None else json.dumps(document, ensure_ascii=False).encode()


def table(scalars: list[Any]) -> list[Any]:
    """A document for each way in which each scalar can stand at the paths."""
    found: list[Any] = [{}, {"a": {}}, {"a": [{}]}, {"a": []}, {"a": [[]]}, {"a": [None, 1]}, {"tags": [[None]]}]
    for one, other in zip(scalars, [*scalars[7:], *scalars[:7]], strict=True):
        found += [
            {"a": one, "b": other},
            {"a": [one, other], "tags": [other, other, one]},
            {"a": {"b": one}, "b": [one], "a.b": other},
            {"a": [{"b": one}, {"b": other}]},
            {"a": [other, {"b": [one, other]}, {"c": other}]},
            {"b": [{"a": [{"b": one}, other]}, {"a": {"b": other}}], "a": [[one], other]},
        ]
    return found


def conditions(strings: list[str], numbers: list[Any]) -> list[dict[str, Any]]:
    """Every kind of condition with every value, at every path."""
    integers = [one for one in numbers if type(one) is int and -(2**63) <= one < 2**63]
    times = [one for one in strings if re.match("2", one) and one != "2024-02-30"]
    asked: list[dict[str, Any]] = [{"match": {"value": one}} for one in [*strings, *integers, True, False]]
    asked += [{"match": {name: some}} for name in ("any", "except") for some in (strings[1:4], integers[:3], [])]
    words = ["red", "RED wine", "red house", "house the", "réd", "", "wine red"]
    asked += [{"match": {name: text}} for name in ("text", "text_any", "phrase") for text in words]
    asked += [{"match": {name: text}} for name in ("prefix", "substring") for text in ["", "re", "Red", "ed", " "]]
    asked += [{"range": {name: one}} for name in ("gt", "gte", "lt", "lte") for one in [*numbers, *times]]
    asked += [{"range": {"gte": 0, "lt": 2}}, {"range": {"gt": times[3], "lte": times[0]}}, {"range": {}}]
    asked += [{name: wanted} for name in ("is_empty", "is_null") for wanted in (True, False)]
    asked += [{"values_count": {name: one}} for name in ("gt", "gte", "lt", "lte") for one in range(4)]
    return [{"key": path} | one for path in PATHS for one in asked]
