"""Reading a filter: Qdrant's grammar as decoded JSON, or the short form, into `grammar.Filter`.

Invariants: what is not understood is refused with the JSON path at which it stands and what was expected there;
nothing is ignored. Depth, conditions and values are bounded, so that no filter is costlier to read than its bytes.
Knows nothing of documents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from tidemark.errors import BadQuery
from tidemark.filters.grammar import (
    Bounds,
    Condition,
    Filter,
    HasId,
    IsEmpty,
    IsNull,
    Match,
    Nested,
    Number,
    Path,
    Range,
    Text,
    ValuesCount,
)
from tidemark.filters.paths import parse_path
from tidemark.filters.times import parse_time

DEPTH_MAX, CONDITIONS_MAX, VALUES_MAX = 16, 1_024, 10_000

_CLAUSES = ("must", "should", "must_not", "min_should")
_ON_PATH = ("match", "range", "is_empty", "is_null", "values_count")
_ALONE = ("is_empty", "is_null", "has_id", "nested")
_BOUNDS = ("gt", "gte", "lt", "lte")
_TEXTS = {"text": "all", "text_any": "any", "phrase": "phrase", "prefix": "prefix", "substring": "substring"}
_MATCHES = ("value", "any", "except", *_TEXTS)
_NOT_SUPPORTED = ("geo_bounding_box", "geo_radius", "geo_polygon", "has_vector", "slice")
# Fields with such names are asked for in the long form: so that no slip of the pen in it is read as the short form.
RESERVED = frozenset((*_CLAUSES, *_ON_PATH, *_ALONE, *_NOT_SUPPORTED, "key", "filter"))


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def parse(document: Any, id_of: Callable[[str], bytes] = _utf8) -> Filter:
    """A filter as decoded JSON says it; null is the filter that all rows match. Raises BadQuery.

    `id_of` reads an id from its text, and raises BadQuery when it is none.
    """
    return Filter() if document is None else _Reader(id_of).whole(document, "filter")


@dataclass
class _Reader:
    """Reads one filter, and counts what it holds."""

    id_of: Callable[[str], bytes]
    conditions: int = 0
    values: int = 0

    def whole(self, document: Any, at: str) -> Filter:
        given = _object(document, at, "a filter")
        if not given or any(name in _CLAUSES for name in given):
            return self.filter(given, at, 1)
        if any(name in RESERVED for name in given):
            return Filter(must=(self.condition(given, at, 1),))
        return Filter(must=tuple(self.short(path, asked, f"{at}.{path}") for path, asked in given.items()))

    def filter(self, document: Any, at: str, depth: int) -> Filter:
        given = _object(document, at, "a filter")
        _only(given, _CLAUSES, at)
        if depth > DEPTH_MAX:
            _refuse(at, f"filters nested at most {DEPTH_MAX} deep", "a deeper one")
        least: tuple[Condition, ...] = ()
        count = 0
        if given.get("min_should") is not None:
            least, count = self.min_should(given["min_should"], f"{at}.min_should", depth)
        must, should, must_not = (
            self.clause(given.get(name), f"{at}.{name}", depth) for name in ("must", "should", "must_not")
        )
        return Filter(must, should, must_not, least, count)

    def min_should(self, document: Any, at: str, depth: int) -> tuple[tuple[Condition, ...], int]:
        given = _object(document, at, "an object with conditions and min_count")
        _only(given, ("conditions", "min_count"), at)
        count = given.get("min_count")
        if type(count) is not int or count < 1:
            _refuse(f"{at}.min_count", "an integer of 1 or more", count)
        return self.clause(given.get("conditions", []), f"{at}.conditions", depth), count

    def clause(self, document: Any, at: str, depth: int) -> tuple[Condition, ...]:
        if document is None:
            return ()
        if not isinstance(document, list):
            return (self.condition(document, at, depth),)
        return tuple(self.condition(one, f"{at}[{index}]", depth) for index, one in enumerate(document))

    def condition(self, document: Any, at: str, depth: int) -> Condition:
        given = _object(document, at, "a condition")
        self.count(at)
        for name in _NOT_SUPPORTED:
            if name in given:
                raise BadQuery(f"{at}.{name}: is not supported; there are {_listed((*_ON_PATH, 'has_id', 'nested'))}")
        if "key" in given:
            return self.on_path(given, at)
        if not given or any(name in _CLAUSES for name in given):
            return self.filter(given, at, depth + 1)
        name = _one(given, _ALONE, at, "an object with key, must, should, must_not, min_should or one of ")
        if name == "has_id":
            return HasId(self.ids(given[name], f"{at}.has_id"))
        inner = _object(given[name], f"{at}.{name}", "an object with key")
        if name == "nested":
            return self.nested(inner, f"{at}.nested", depth)
        _only(inner, ("key",), f"{at}.{name}")
        path = _path(inner.get("key"), f"{at}.{name}.key")
        return IsEmpty(path) if name == "is_empty" else IsNull(path)

    def nested(self, given: Mapping[str, Any], at: str, depth: int) -> Nested:
        _only(given, ("key", "filter"), at)
        path = _path(given.get("key"), f"{at}.key")
        return Nested(path, self.filter(given.get("filter"), f"{at}.filter", depth + 1))

    def on_path(self, given: Mapping[str, Any], at: str) -> Condition:
        path = _path(given["key"], f"{at}.key")
        asked = {name: value for name, value in given.items() if name != "key" and value is not None}
        name = _one(asked, _ON_PATH, at, "beside key one of ")
        value, at = asked[name], f"{at}.{name}"
        if name == "match":
            return self.match(path, value, at)
        if name == "range":
            return _range(path, value, at)
        if name == "values_count":
            return ValuesCount(path, _bounds(value, at, _count, "an integer of 0 or more"))
        if not isinstance(value, bool):
            _refuse(at, "true or false", value)
        return IsEmpty(path, value) if name == "is_empty" else IsNull(path, value)

    def match(self, path: Path, document: Any, at: str) -> Condition:
        given = _object(document, at, f"an object with one of {_listed(_MATCHES)}")
        name = _one(given, _MATCHES, at, "one of ")
        value, at = given[name], f"{at}.{name}"
        if name in _TEXTS:
            if not isinstance(value, str):
                _refuse(at, "a string", value)
            return Text(path, _TEXTS[name], value)  # type: ignore[arg-type]
        return self.equal(path, [value] if name == "value" else _list(value, at), at, name == "except", name != "value")

    def equal(self, path: Path, values: list[Any], at: str, negated: bool, several: bool) -> Match:
        self.count(at, values=len(values))
        for index, value in enumerate(values):
            place = f"{at}[{index}]" if several else at
            if isinstance(value, float):
                _refuse(place, "a string, an integer or a boolean (compare floats by range)", value)
            if not isinstance(value, str | int):
                _refuse(place, "a string, an integer or a boolean", value)
            if not -(2**63) <= (0 if isinstance(value, str) else value) < 2**63:
                _refuse(place, "an integer of 64 bits", value)
        kinds = [_distinct(value for value in values if type(value) is kind) for kind in (str, int, bool)]
        return Match(path, kinds[0], kinds[1], kinds[2], negated)

    def ids(self, document: Any, at: str) -> tuple[bytes, ...]:
        ids = _list(document, at)
        self.count(at, values=len(ids))
        return _distinct(self.id(one, f"{at}[{index}]") for index, one in enumerate(ids))

    def id(self, text: Any, at: str) -> bytes:
        if not isinstance(text, str):
            _refuse(at, "an id, which is a string", text)
        try:
            return self.id_of(text)
        except BadQuery as error:
            raise BadQuery(f"{at}: {error}") from None

    def short(self, path: str, asked: Any, at: str) -> Condition:
        """One field of the short form: a value, a list of values, bounds, or what `match` takes."""
        self.count(at)
        steps = _path(path, at)
        if isinstance(asked, list):
            return self.equal(steps, asked, at, negated=False, several=True)
        if not isinstance(asked, dict):
            return self.equal(steps, [asked], at, negated=False, several=False)
        if asked and all(name in _BOUNDS for name in asked):
            return _range(steps, asked, at)
        return self.match(steps, asked, at)

    def count(self, at: str, values: int | None = None) -> None:
        if values is None:
            self.conditions += 1
        self.values += values or 0
        if self.conditions > CONDITIONS_MAX:
            _refuse(at, f"at most {CONDITIONS_MAX} conditions", "more")
        if self.values > VALUES_MAX:
            _refuse(at, f"at most {VALUES_MAX} values in all", "more")


def _range(path: Path, document: Any, at: str) -> Range:
    given = _object(document, at, f"an object with bounds: {_listed(_BOUNDS)}")
    if any(isinstance(value, str) for value in given.values()):
        return Range(path, _bounds(given, at, _time, "a time such as 2024-05-01T12:00:00Z"), times=True)
    return Range(path, _bounds(given, at, _number, "a number or a time"))


def _bounds(document: Any, at: str, read: Callable[[Any], Number | None], expected: str) -> Bounds:
    given = _object(document, at, f"an object with bounds: {_listed(_BOUNDS)}")
    _only(given, _BOUNDS, at)
    found: dict[str, Number] = {}
    for name, value in given.items():
        if value is None:
            continue
        bound = read(value)
        if bound is None:
            _refuse(f"{at}.{name}", expected, value)
        found[name] = bound
    return Bounds(**found)


def _number(value: Any) -> Number | None:
    number = value if type(value) in (int, float) else None
    return None if number is None or abs(number) > 1.7976931348623157e308 else number


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _time(value: Any) -> int | None:
    return parse_time(value) if isinstance(value, str) else None


def _path(value: Any, at: str) -> Path:
    if not isinstance(value, str):
        _refuse(at, "a path, which is a string", value)
    try:
        return parse_path(value)
    except ValueError as error:
        raise BadQuery(f"{at}: {error}") from None


def _object(value: Any, at: str, expected: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(at, expected, value)
    return value


def _list(value: Any, at: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(at, "an array", value)
    return value


def _only(given: Mapping[str, Any], known: tuple[str, ...], at: str) -> None:
    for name in given:
        if name not in known:
            raise BadQuery(f"{at}.{_short(name)}: is not known; expected {_listed(known)}")


def _one(given: Mapping[str, Any], known: tuple[str, ...], at: str, expected: str) -> str:
    _only(given, known, at)
    if len(given) != 1:
        raise BadQuery(f"{at}: expected {expected}{_listed(known)}, found {_listed(tuple(given)) or 'nothing'}")
    return next(iter(given))


def _distinct(values: Any) -> tuple[Any, ...]:
    return tuple(sorted(set(values)))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(map(_short, names))


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _refuse(at: str, expected: str, found: Any) -> NoReturn:
    kinds = {dict: "an object", list: "an array", type(None): "null"}
    said = kinds.get(type(found)) or (found if found in ("more", "a deeper one") else _short(repr(found)))
    raise BadQuery(f"{at}: expected {expected}, found {said}")
