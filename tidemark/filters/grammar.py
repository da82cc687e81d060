"""What a filter is, once read: conditions on paths, joined by four clauses.

Invariants: every value is immutable and hashable, so that a filter is the key of a cache. Two filters are equal
only when they match the same rows: strings, integers and booleans are kept apart, because Python holds True and 1
to be equal. Knows nothing of how a filter is written (`parsing.py`) or evaluated.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

# A step of a path: the key of an object, an index of an array, or ELEMENTS: each element of an array.
Path: TypeAlias = tuple[str | int, ...]
ELEMENTS = -1

# Numbers compare exactly, integers with floats too. Times are microseconds since 1970, UTC.
Number: TypeAlias = int | float


@dataclass(frozen=True, slots=True)
class Match:
    """Some value at the path is one of those given or, `negated`, is none of them.

    A value of another type is none of them; null is neither. An integer never equals a float.
    """

    path: Path
    strings: tuple[str, ...] = ()
    integers: tuple[int, ...] = ()
    booleans: tuple[bool, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Some string at the path contains words or characters.

    `all`, `any` and `phrase` compare words (`words.py`); `prefix` and `substring` compare characters as they are.
    """

    path: Path
    mode: Literal["all", "any", "phrase", "prefix", "substring"]
    text: str


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a number must satisfy; None sets no bound."""

    gt: Number | None = None
    gte: Number | None = None
    lt: Number | None = None
    lte: Number | None = None

    def hold(self, number: Number) -> bool:
        return (
            (self.gt is None or number > self.gt)
            and (self.gte is None or number >= self.gte)
            and (self.lt is None or number < self.lt)
            and (self.lte is None or number <= self.lte)
        )


@dataclass(frozen=True, slots=True)
class Range:
    """Some number at the path is within the bounds; with `times`, some string that is a time."""

    path: Path
    bounds: Bounds
    times: bool = False


@dataclass(frozen=True, slots=True)
class IsEmpty:
    """No value at the path, or each is null or an empty array. `wanted`: False asks for the contrary."""

    path: Path
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class IsNull:
    """Some value at the path is null or an array that holds null. `wanted`: False asks for the contrary."""

    path: Path
    wanted: bool = True


@dataclass(frozen=True, slots=True)
class ValuesCount:
    """Some value at the path has so many elements: an array as many as it has, null none, any other one.

    Where there is no value at the path, the count is 0.
    """

    path: Path
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class HasId:
    """The row's id is one of those given, in UTF-8."""

    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Nested:
    """Some object in the array at the path matches a filter whose paths begin in that object."""

    path: Path
    filter: "Filter"


@dataclass(frozen=True, slots=True)
class Filter:
    """All of `must`, one of `should` (if any), none of `must_not`, and `min_count` of `min_should`."""

    must: "tuple[Condition, ...]" = ()
    should: "tuple[Condition, ...]" = ()
    must_not: "tuple[Condition, ...]" = ()
    min_should: "tuple[Condition, ...]" = ()
    min_count: int = 0

    @property
    def conditions(self) -> "tuple[Condition, ...]":
        return self.must + self.should + self.must_not + self.min_should


OnPath: TypeAlias = Match | Text | Range | IsEmpty | IsNull | ValuesCount
Condition: TypeAlias = OnPath | HasId | Nested | Filter


def array_of(path: Path) -> Path:
    """The path of the elements that a nested condition looks at: `a` and `a[]` both mean those of `a`."""
    return path if path[-1] == ELEMENTS else (*path, ELEMENTS)


def paths(condition: Condition, base: Path = ()) -> Iterator[Path]:
    """Every path that a condition looks at, from the root of the document."""
    if isinstance(condition, Filter):
        for inner in condition.conditions:
            yield from paths(inner, base)
    elif isinstance(condition, Nested):
        elements = base + array_of(condition.path)
        yield elements
        yield from paths(condition.filter, elements)
    elif not isinstance(condition, HasId):
        yield base + condition.path


def leaves(condition: Condition) -> Iterator[OnPath | HasId]:
    """Every condition that holds no other, in the order in which they stand."""
    if isinstance(condition, Filter):
        for inner in condition.conditions:
            yield from leaves(inner)
    elif isinstance(condition, Nested):
        yield from leaves(condition.filter)
    else:
        yield condition
