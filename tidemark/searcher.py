"""Searching the views of a collection's partitions: k nearest rows, rows by id, pages of rows.

Takes no lock and never waits for a writer. The order makes it right: the segments of one snapshot first, the
tails last and up to their newest row. A kill follows the row that replaces it, so a row found dead in a
segment has its newer version in a tail by the time the tails are read; while kills happen during the scan of
the tails, the rows added since are scanned too. The positions reported are the snapshot's: everything
before them is reflected, something after them may be.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemark.ann.exact import public_distance
from tidemark.collection import Collection, Metric
from tidemark.errors import BadQuery
from tidemark.record import SQUARED_NORM_MAX, hash_ids
from tidemark.rows import ReadableRows
from tidemark.segment import Segment
from tidemark.snapshot import PartitionSearcher, SearchedView
from tidemark.tail import Tail

K_MAX = 1_000


class Hit(NamedTuple):
    """A row found: where it is, and its distance (public sense: smaller is nearer)."""

    id: bytes
    distance: float
    rows: ReadableRows
    row: int
    partition: int

    @property
    def metadata(self) -> bytes | None:
        return self.rows.metadata_of(self.row)

    @property
    def vector(self) -> NDArray[np.float32]:
        return self.rows.vector_of(self.row)

    @property
    def offset(self) -> int:
        return self.rows.offset_of(self.row)

    @property
    def timestamp(self) -> int:
        return self.rows.timestamp_of(self.row)


class Answer(NamedTuple):
    """Hits per query, nearest first, and the positions they reflect per partition."""

    hits: list[list[Hit]]
    positions: dict[int, int]


class _Candidates(NamedTuple):
    rows: ReadableRows
    partition: int
    distances: NDArray[np.float32]
    labels: NDArray[np.int64]


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


def search(
    views: Sequence[SearchedView], queries: NDArray[np.float32], k: int, effort: float = 1.0, exact: bool = False
) -> Answer:
    """The k nearest live rows of each prepared query, over all partitions of one collection."""
    metric = views[0].collection.metric
    asked = k
    while True:
        found: list[_Candidates] = []
        positions: dict[int, int] = {}
        for view in views:
            positions[view.partition], candidates = _search_partition(view, queries, asked, effort, exact)
            found += candidates
        hits = [_nearest(found, line, k, metric) for line in range(len(queries))]
        if not any(len(some) < k and _has_more(found, line, asked) for line, some in enumerate(hits)):
            return Answer(hits, positions)
        asked *= 2


def _has_more(found: Sequence[_Candidates], line: int, asked: int) -> bool:
    """Whether rows were left out although hits are missing: two versions of an id met in one scan."""
    return any(part.labels.shape[1] >= asked and part.labels[line, asked - 1] >= 0 for part in found)


def _search_partition(
    view: SearchedView, queries: NDArray[np.float32], k: int, effort: float, exact: bool
) -> tuple[int, list[_Candidates]]:
    while True:
        snapshot = view.searcher
        found = [
            _Candidates(segment, view.partition, *segment.search(queries, k, effort, exact))
            for segment in snapshot.segments
        ]
        if _search_tails(view, snapshot, queries, k, effort, exact, found):
            return snapshot.position, found


def _search_tails(
    view: SearchedView,
    snapshot: PartitionSearcher,
    queries: NDArray[np.float32],
    k: int,
    effort: float,
    exact: bool,
    found: list[_Candidates],
) -> bool:
    """Scan the tails up to their newest rows; False when rows went from them to a segment not searched."""
    metric = view.collection.metric
    scanned: dict[int, int] = {}
    while True:
        kills = view.kills
        newest = view.searcher
        last = snapshot.tails[-1]
        if newest.tails[0].start > last.base + last.rows:
            return False
        for tail in dict.fromkeys((*snapshot.tails, *newest.tails)):
            start, stop = scanned.get(tail.base, tail.first), tail.rows
            if stop > start:
                scanned[tail.base] = stop
                parts = tail.search(queries, k, metric, start, stop, effort, exact)
                found += [_Candidates(tail, view.partition, *part) for part in parts]
        if view.kills == kills:
            return True


def _nearest(found: Sequence[_Candidates], line: int, k: int, metric: Metric) -> list[Hit]:
    """Merge the candidates of one query: nearest first, each id once, in its newest version."""
    if not found:
        return []
    distances = public_distance(np.concatenate([part.distances[line] for part in found]), metric)
    rows = np.concatenate([part.labels[line] for part in found]).tolist()
    bounds = list(accumulate(part.labels.shape[1] for part in found))
    hits: dict[bytes, Hit] = {}
    for position in distances.argsort(kind="stable").tolist():
        row = rows[position]
        if row < 0:
            continue
        part = found[bisect_right(bounds, position)]
        hit = Hit(part.rows.id_of(row), float(distances[position]), part.rows, row, part.partition)
        other = hits.setdefault(hit.id, hit)
        if other is not hit and other.partition == hit.partition and other.offset < hit.offset:
            del hits[hit.id]  # the nearer one was the older version; the newer takes its own place
            hits[hit.id] = hit
        if len(hits) >= k:
            break
    return list(hits.values())


def get(views: Sequence[SearchedView], id_: bytes) -> Hit | None:
    """The live row of an id, None when there is none."""
    for view in views:
        hit = _get_from(view, id_)
        if hit is not None:
            return hit
    return None


def _get_from(view: SearchedView, id_: bytes) -> Hit | None:
    hashes = hash_ids([id_])
    while True:
        kills, snapshot = view.kills, view.searcher
        for segment in snapshot.segments:
            rows = segment.find(hashes, [id_])
            if len(rows):
                return Hit(id_, 0.0, segment, int(rows[0]), view.partition)
        found = view.recent_row(id_)
        if found is not None:
            return Hit(id_, 0.0, found[0], found[1], view.partition)
        if view.kills == kills and view.searcher.segments is snapshot.segments:
            return None


def scan(views: Sequence[SearchedView], after: tuple[int, int] | None, limit: int) -> Iterator[Hit]:
    """Up to `limit` live rows in the order of (partition, offset), after the given one."""
    for view in sorted(views, key=lambda view: view.partition):
        if after is not None and view.partition < after[0]:
            continue
        start = after[1] + 1 if after is not None and view.partition == after[0] else 0
        page = _scan_partition(view, start, limit)
        limit -= len(page)
        yield from page


def _scan_partition(view: SearchedView, start: int, limit: int) -> list[Hit]:
    snapshot = view.searcher
    found: list[tuple[int, ReadableRows, int]] = []
    sources: tuple[Segment | Tail, ...] = (*snapshot.segments, *snapshot.tails)
    for rows in sources:
        dead = rows.dead_mask()
        at = np.flatnonzero((rows.offsets[: len(dead)] >= start) & ~dead)
        at = at[np.argsort(rows.offsets[at], kind="stable")[:limit]]
        found += [(int(rows.offsets[row]), rows, int(row)) for row in at]
    found.sort(key=lambda entry: entry[0])
    return [Hit(rows.id_of(row), 0.0, rows, row, view.partition) for _, rows, row in found[:limit]]
