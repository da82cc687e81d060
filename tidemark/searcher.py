"""Searching a collection: k nearest rows, and rows by id; `selection.py` has pages of rows.

Never waits for a writer. The order makes it right. A search of the lists looks at rows by their numbers; then come the
newest rows, which the lists do not have yet. A kill follows the row that replaces it, so a row found dead in the lists
has its newer version among the newest rows by the time these are looked at. When rows have got other numbers meanwhile
(`moves`) the lists are searched again. All that is found is ranked by its vectors, at once: they lie in one range of
addresses. The positions reported were read first: everything before them is reflected, something after them may be.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.exact import exact_search, exact_search_among, public_distance, rank
from tidemark.collection import Collection
from tidemark.errors import BadQuery
from tidemark.live_rows import LiveRows
from tidemark.mirror import Snapshot, ViewMirror
from tidemark.part import Part
from tidemark.record import SQUARED_NORM_MAX, hash_ids
from tidemark.segment import Segment

K_MAX = 1_000
# So many rows of a segment without an index are ranked one by one; more are scanned as a block.
RANKED_MAX = 1_024
# To ask an exact scan for so many more costs a fifth of it; to copy the rows that live takes as long again.
DEAD_PASSED_OVER = 1_000


class Hit(NamedTuple):
    """A row found: where it is, and its distance (public sense: smaller is nearer)."""

    id: bytes
    distance: float
    part: Part
    row: int
    partition: int

    @property
    def metadata(self) -> bytes | None:
        return self.part.metadata_of(self.row)

    @property
    def vector(self) -> NDArray[np.float32]:
        return self.part.vector_of(self.row)

    @property
    def offset(self) -> int:
        return self.part.offset_of(self.row)

    @property
    def timestamp(self) -> int:
        return self.part.timestamp_of(self.row)


class Plan(NamedTuple):
    """How a search was made: by the `index` or `exact`; among so many rows that match, None without a filter."""

    kind: Literal["index", "exact"]
    matches: int | None = None


class Answer(NamedTuple):
    """Hits per query, nearest first, and the positions they reflect per partition."""

    hits: list[list[Hit]]
    positions: dict[int, int]
    plan: Plan


class Found(NamedTuple):
    """Row numbers (nq, w), -1 where there is none, and their FAISS distances, in no order."""

    distances: NDArray[np.float32]
    numbers: NDArray[np.int64]


class Looked(NamedTuple):
    """What a search found, in which parts, and how it looked."""

    snapshot: Snapshot
    found: Sequence[Found]
    plan: Plan


def prepare_queries(vectors: NDArray[np.float32], collection: Collection) -> NDArray[np.float32]:
    """Check float32 queries (nq, dimension), and normalise them for cosine; raises BadQuery."""
    if vectors.ndim != 2 or vectors.shape[1] != collection.dimension:
        has = vectors.shape[-1] if vectors.ndim else 0
        raise BadQuery(
            f"the query has {has} numbers, collection {collection.name!r} has dimension {collection.dimension}"
        )
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    longest = squares.max(initial=0.0)  # NaN when one is
    if not longest <= SQUARED_NORM_MAX and not np.isfinite(vectors).all():
        raise BadQuery("the query holds NaN, an infinity or a number beyond float32")
    if collection.metric != "cosine":
        if longest > SQUARED_NORM_MAX:
            raise BadQuery(f"the query's squared length is beyond {SQUARED_NORM_MAX:g}: distances would be infinite")
        return np.ascontiguousarray(vectors)
    norms = np.sqrt(squares)
    if not norms.all():
        raise BadQuery("a zero vector has no direction under cosine")
    return np.ascontiguousarray(vectors / norms[:, None], dtype=np.float32)


def search(view: ViewMirror, queries: NDArray[np.float32], k: int, effort: float = 1.0, exact: bool = False) -> Answer:
    """The k nearest live rows of each prepared query (nq, dimension), over all partitions of the view."""
    if exact or view.collection.index.kind == "flat":
        return answer(view, len(queries), k, lambda asked: scan_all(view, queries, asked))
    return answer(view, len(queries), k, lambda asked: _search(view, queries, asked, effort))


def answer(view: ViewMirror, query_count: int, k: int, look: Callable[[int], Looked]) -> Answer:
    """The k nearest of what `look` finds when asked for so many of each part; asked for more when some are missing."""
    asked = k
    while True:
        moves, positions = view.moves, view.positions
        looked = look(asked)
        if view.moves != moves:
            continue
        hits = [_nearest(looked, line, k, view.collection) for line in range(query_count)]
        if not any(len(some) < k and _has_more(looked.found, line, asked) for line, some in enumerate(hits)):
            return Answer(hits, positions, looked.plan)
        asked *= 2


def _has_more(found: Sequence[Found], line: int, asked: int) -> bool:
    """Whether rows were left out although hits are missing: two versions of an id met in one scan."""
    return any(part.numbers.shape[1] >= asked and (part.numbers[line] >= 0).sum() >= asked for part in found)


def _search(view: ViewMirror, queries: NDArray[np.float32], k: int, effort: float) -> Looked:
    """What the lists, the graphs and the rows that are in neither have to offer."""
    before = view.snapshot()
    coded, numbers = 0, np.empty((len(queries), 0), np.int64)
    if before.index is not None:
        coded = before.index.coded
        numbers = before.index.candidates(queries, k, view.alive, effort)
    found, few = unlisted(view, before, queries, k, effort, attrgetter("live"))
    snapshot, new = newest(view, coded)
    return Looked(snapshot, [*found, ranked(view, queries, numbers, [*few, new])], Plan("index"))


def unlisted(
    view: ViewMirror,
    snapshot: Snapshot,
    queries: NDArray[np.float32],
    k: int,
    effort: float,
    living: Callable[[Segment], LiveRows],
) -> tuple[list[Found], list[NDArray[np.int64]]]:
    """Of the living rows of segments that are in no lists: the nearest, and the numbers of those left to be ranked."""
    found = []
    for segment in snapshot.graphs:
        distances, rows = segment.graph.search(segment.vectors, queries, k, living(segment), effort)
        found.append(Found(distances, np.where(rows < 0, -1, rows + segment.base)))
    many = [segment for segment in snapshot.unindexed if segment.row_count > RANKED_MAX]
    found += [scan_part(segment, living(segment).numbers(), queries, k, view) for segment in many]
    few = [segment for segment in snapshot.unindexed if segment.row_count <= RANKED_MAX]
    return found, [segment.base + living(segment).numbers() for segment in few]


def ranked(
    view: ViewMirror,
    queries: NDArray[np.float32],
    numbers: NDArray[np.int64],
    others: Sequence[NDArray[np.int64]],
) -> Found:
    """Rows by their distances: of each query's own candidates (nq, w), and of others for all queries."""
    beside = np.concatenate(others) if len(others) > 1 else others[0]
    if len(beside):
        wide = beside[None, :] if len(queries) == 1 else np.broadcast_to(beside, (len(queries), len(beside)))
        numbers = np.concatenate([numbers, wide], axis=1)
    return Found(rank(view.vectors, queries, numbers, view.collection.metric), numbers)


def newest(view: ViewMirror, coded: int) -> tuple[Snapshot, NDArray[np.int64]]:
    """The numbers of the living rows of the tails that are in no lists yet, and the snapshot with those tails."""
    while True:
        kills, snapshot = view.kills, view.snapshot()
        rows = []
        for tail in reversed(snapshot.tails):  # each begins where the one before it ends
            stop = tail.row_count
            if tail.start + stop <= coded:
                break
            rows.append(np.arange(tail.base + max(0, coded - tail.start), tail.base + stop))
        numbers = np.concatenate(rows) if rows else np.empty(0, np.int64)
        numbers = numbers[view.live.are_live(numbers)]
        if view.kills == kills:
            return snapshot, numbers


def scan_all(view: ViewMirror, queries: NDArray[np.float32], k: int) -> Looked:
    """The k nearest of each part to each query, of the rows that lived at one moment, and the parts."""
    snapshot, living = view.living()
    parts = [(part, rows) for part, live in living if len(rows := live.numbers())]
    return Looked(snapshot, [scan_part(part, rows, queries, k, view) for part, rows in parts], Plan("exact"))


def scan_part(part: Part, live: NDArray[np.int64], queries: NDArray[np.float32], k: int, view: ViewMirror) -> Found:
    """The k nearest of the rows of a part that live, whose ascending numbers are given."""
    stop = int(live[-1]) + 1 if len(live) else 0
    vectors = view.vectors[part.base : part.base + stop]
    dead, metric = stop - len(live), view.collection.metric
    if not dead or dead > DEAD_PASSED_OVER:
        distances, rows = exact_search_among(vectors, live, queries, k, metric)
    else:
        distances, rows = exact_search(vectors, queries, k + dead, metric)
        is_live = np.zeros(stop + 1, np.bool_)
        is_live[live] = True
        rows = np.where(is_live[rows], rows, -1)  # the last place, for -1, is not live
    return Found(distances, np.where(rows < 0, -1, rows + part.base))


def _nearest(looked: Looked, line: int, k: int, collection: Collection) -> list[Hit]:
    """Merge what was found for one query: nearest first, each id once, in its newest version."""
    found = looked.found
    if not found:
        return []
    if len(found) == 1:
        numbers, distances = found[0].numbers[line], found[0].distances[line]
    else:
        numbers = np.concatenate([part.numbers[line] for part in found])
        distances = np.concatenate([part.distances[line] for part in found])
    distances = public_distance(distances, collection.metric)
    order = distances.argsort(kind="stable")
    hits: dict[tuple[int, bytes], Hit] = {}
    for first in range(0, len(order), k):
        some = order[first : first + k]  # as a rule no more are needed
        for number, distance in zip(numbers[some].tolist(), distances[some].tolist(), strict=True):
            place = looked.snapshot.part_of(number)
            if place is None:  # there is none, or its part was replaced meanwhile
                continue
            _take(hits, *place, distance)
            if len(hits) >= k:
                return list(hits.values())
    return list(hits.values())


def _take(hits: dict[tuple[int, bytes], Hit], part: Part, row: int, distance: float) -> None:
    """Add a row to hits that are nearer, but for older versions of its id."""
    partition, id_ = part.partition_of(row), part.id_of(row)
    hit = Hit(id_, distance, part, row, partition)
    other = hits.setdefault((partition, id_), hit)
    if other is not hit and other.offset < hit.offset:
        del hits[partition, id_]  # the nearer one was the older version; the newer takes its own place
        hits[partition, id_] = hit


def get(view: ViewMirror, id_: bytes) -> Hit | None:
    """The live row of an id, None when there is none."""
    hash_ = hash_ids([id_])
    while True:
        kills, moves, snapshot = view.kills, view.moves, view.snapshot()
        for segment in snapshot.segments:
            if len(rows := segment.find(hash_, [id_])):
                return Hit(id_, 0.0, segment, int(rows[0]), segment.partition)
        for tail in reversed(snapshot.tails):
            if found := tail.find(hash_[0], id_):
                return Hit(id_, 0.0, tail, found[-1], tail.partition_of(found[-1]))
        if (view.kills, view.moves) == (kills, moves):
            return None
