"""Keeps the lists of a view: codes rows as they come, and makes the lists anew when that is due.

    code:    rows of tails, some thousand at a time, and segments (their codes are read from their files)
    fill:    new lists from the codes of all parts; for a newer quantizer, when too many entries are of dead rows, or
             when a list is full. One announcement puts them in the place of the old ones
    train:   a quantizer of our own, while the consumers have made none
    measure: whether searches still find what an exact scan finds: with each new quantizer, when there are twice as many
             rows as then, and when most have been replaced

Invariants: `turn` is called by the view's thread, the work is done by one side thread, which alone appends to lists.
Rows that are in no lists are ranked exactly by every search, so nothing here decides what is found, only what it costs.
Knows nothing of files' names, manifests or Kafka.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tidemark.ann import calibration
from tidemark.ann.lists import Lists
from tidemark.ann.open_lists import OpenLists
from tidemark.ann.quantizer import OUTLIER, ROWS_LEAST, Quantizer
from tidemark.collection import IndexParameters
from tidemark.held_out import held_out, ranked
from tidemark.mirror import ViewMirror
from tidemark.part import Part
from tidemark.part_codes import (
    CODED_ROWS_MAX,
    Appended,
    Coded,
    Used,
    append,
    bytes_of,
    coded_up_to,
    codes_of,
    completed,
    is_like,
    room_for,
)
from tidemark.segment import Segment
from tidemark.shared_memory import Region
from tidemark.snapshot import IndexPlace
from tidemark.tail import Tail
from tidemark.view import View

logger = logging.getLogger(__name__)

# Rows of tails that get codes at a time: with fewer a row costs more, because a list is touched for a row or two;
# more make every search rank more rows exactly. 2,048 rows of 128-d are ranked in 40 us.
CODED_NUMBERS, CODED_ROWS_MIN = 2_048 * 128, 256
# Lists are made anew when so many entries are of dead rows, of those that live: a search looks at all entries. A
# collection at rest is tidied up to the smaller share; while partitions' segments are taken over it is not at rest.
DEAD_SHARE_MAX, DEAD_SHARE_AT_REST, DEAD_MIN = 0.25, 0.03, 4_096
REST_S = 5.0
# How long rows wait for a quantizer that a consumer makes before one is trained here, for this process alone.
OWN_QUANTIZER_AFTER_S = 5.0
SAMPLE_ROWS = 131_072
# Of rows unlike those that the quantizer was trained on, so many are ranked exactly before one is trained here.
DRIFTED_ROWS_MAX = 32_768
LOOKED_EVERY_S = 0.25
# The 10 nearest of so many rows tell the recall to about +-0.6 %; a scan for them takes 1.5 s with 1M rows of 128-d.
MEASURED_QUERIES = 200
# Searches are measured again when so many times the living rows have died.
REPLACED_TIMES = 4
# Each search ranks all outliers: with more it is not measured.
MEASURED_OUTLIERS_MAX = 100_000

Finish = Callable[[], None]


class CollectionIndex:
    """The lists of one view. `problem` says what keeps rows out of them, None when nothing does.

    `coded_rows_min`: so many rows of tails are coded at a time, at least. `dead_min`: with fewer dead entries lists are
    not made anew. `bytes_max`: memory of the lists, beyond which no rows are added.
    """

    def __init__(
        self,
        view: View,
        recall_target: float,
        ann_rows_min: int,
        bytes_max: int = 2**62,
        coded_rows_min: int | None = None,
        dead_min: int = DEAD_MIN,
        rest_s: float = REST_S,
        own_quantizer_after_s: float = OWN_QUANTIZER_AFTER_S,
        drifted_rows_max: int = DRIFTED_ROWS_MAX,
    ) -> None:
        self._view, self._recall_target, self._ann_rows_min = view, recall_target, max(ann_rows_min, ROWS_LEAST)
        self._bytes_max, self._dead_min, self._rest_s = bytes_max, dead_min, rest_s
        self._own_quantizer_after_s, self._drifted_rows_max = own_quantizer_after_s, drifted_rows_max
        self._coded_rows_min = coded_rows_min or max(CODED_ROWS_MIN, CODED_NUMBERS // view.collection.dimension)
        self.problem: str | None = None
        self._offered: Used | None = None  # and not used yet
        self._taken: Used | None = None  # the last one that was offered and used
        self._used: Used | None = None
        self._written: Region | None = None  # the bytes of the quantizer used
        self._written_bytes = 0
        self._lists: Lists | None = None
        self._coded: dict[int, Coded] = {}
        self._coming: list[Segment] = []
        self._measured_rows = self._died_since = 0
        self._full = False
        self._drifted = False
        self._wanting_since: float | None = None
        self._changed_at = 0.0
        self._looked_at = 0.0
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._job: Future[Finish] | None = None
        view.when_killed = self._note_dead

    def close(self) -> None:
        """Nothing is coded any more; the view may be let go of."""
        self._view.when_killed = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- asked and told by the view's thread ---------------------------------------------------------------

    @property
    def version(self) -> int | None:
        """The version of the quantizer in use: 0 for one of our own, None when there is none."""
        return None if self._used is None else 0 if self._used.own else self._used.version

    @property
    def lists(self) -> Lists | None:
        return self._lists

    def offer(self, version: int, quantizer: Quantizer) -> None:
        """The newest quantizer that consumers have made; used from the next turn on, unless it was offered before.

        Another one may have a number that was used already: the checkpoints were restored or begun again.
        """
        last = self._offered or self._taken
        if last is None or version > last.version or quantizer.identity != last.quantizer.identity:
            self._offered = Used(quantizer, version)

    def use(self, parameters: IndexParameters) -> None:
        """The parameters of the generation, in the place of those given at first; its kind is looked up in the view."""
        self._recall_target, self._ann_rows_min = parameters.recall_target, max(parameters.ann_rows_min, ROWS_LEAST)

    def want(self, segments: Sequence[Segment]) -> None:
        """Have segments coded that are to be searched soon; they have row numbers."""
        self._coming = [segment for segment in segments if not segment.has_graph]

    def has(self, segments: Iterable[Segment]) -> bool:
        """Whether nothing is to be done for the segments: their rows are in the lists, or will be in none."""
        if self._used is None or self.problem or self._drifted:
            return True
        return all(self.is_coded(segment) for segment in segments)

    @property
    def settled(self) -> bool:
        """Whether all segments are in the lists, or nothing is there to put them in."""
        return self._offered is None and self.has(self._view.segments)

    @property
    def idle(self) -> bool:
        """Whether the side thread has nothing to do."""
        return self._job is None

    def uncoded_of(self, tail: Tail) -> int:
        """How many of a tail's rows are in no lists."""
        return tail.row_count - self._count_of(tail)

    def is_coded(self, segment: Segment) -> bool:
        return segment.has_graph or self._coded_of(segment.base, segment) is not None

    def turn(self, may_train: bool = True) -> None:
        """End what the side thread has done, and give it what is to be done next; returns at once.

        `may_train`: no quantizer is to be expected from the consumers any sooner than one can be trained here.
        """
        if self._job is not None:
            if not self._job.done():
                return
            job, self._job = self._job, None
            job.result()()
        work = self._next(may_train) if self._view.collection.index.kind == "ivfpq" else None
        if work is None and (upkeep := self._view.upkeep()) is not None:
            work = partial(_done, upkeep)
        if work is not None:
            self._job = self._pool.submit(work)

    def _next(self, may_train: bool) -> Callable[[], Finish] | None:
        if self._offered is not None:
            return partial(self._fill, self._offered, self._parts(), time.monotonic())
        if self._used is None or self._lists is None:
            return (
                partial(self._train, self._parts(), time.monotonic()) if may_train and self._waits_too_long() else None
            )
        if self._full or self._is_worn(self._lists):
            return partial(self._fill, self._used, self._parts(), time.monotonic())
        new = [segment for segment in (*self._view.segments, *self._coming) if not self.is_coded(segment)]
        if self._is_at_its_bound(self._lists, new[0].live_count if new else 0):
            return None
        uncoded = sum(self.uncoded_of(tail) for tail in self._view.tails)
        if self._drifted:
            unlike = uncoded + sum(segment.live_count for segment in new)
            return partial(self._train, self._parts(), time.monotonic()) if unlike >= self._drifted_rows_max else None
        if new:
            return partial(self._code_segment, self._used, self._lists, new[0].base, new[0])
        if uncoded >= self._coded_rows_min:
            return partial(self._code_tails, self._used, self._lists, list(self._view.tails))
        living = self._lists.entries - self._lists.dead
        if living >= 2 * self._measured_rows or self._died_since >= REPLACED_TIMES * max(living, DEAD_MIN):
            return partial(self._measure, self._used, self._lists)
        return None

    def _parts(self) -> dict[int, Part]:
        """What has codes, or is to have some, by the numbers of their first rows; the tails last, in their order."""
        segments = (*self._view.segments, *self._coming)
        found: dict[int, Part] = {s.base: s for s in segments if not s.has_graph and s.base >= 0}
        return found | {tail.base: tail for tail in self._view.tails}

    def _waits_too_long(self) -> bool:
        rows = sum(part.live.live_count for part in self._parts().values())
        if rows < self._ann_rows_min:
            self._wanting_since = None
            return False
        self._wanting_since = self._wanting_since or time.monotonic()
        return time.monotonic() - self._wanting_since > self._own_quantizer_after_s

    def _is_worn(self, lists: Lists) -> bool:
        now = time.monotonic()
        if now - self._looked_at < LOOKED_EVERY_S:
            return False
        self._looked_at = now
        self._drop_gone()
        entries, dead = lists.entries, lists.dead
        at_rest = now - self._changed_at > self._rest_s
        share = DEAD_SHARE_AT_REST if at_rest else DEAD_SHARE_MAX
        return dead > max(self._dead_min / (4 if at_rest else 1), share * (entries - dead))

    def _is_at_its_bound(self, lists: Lists, row_count: int) -> bool:
        """Whether the lists may take no more rows, or not so many as are to come."""
        taken = lists.memory_bytes
        self.problem = None
        if taken + bytes_of(row_count, lists) >= self._bytes_max:
            self.problem = (
                f"the index takes {taken} bytes (api.index_bytes_max is {self._bytes_max}): rows beyond it are "
                "compared one by one by every search; raise it, or spread the collection over replicas"
            )
        return self.problem is not None

    def _count_of(self, part: Part) -> int:
        coded = self._coded_of(part.base, part)
        return coded.count if coded else 0

    def _coded_of(self, base: int, part: Part) -> Coded | None:
        """Row numbers are used again: what is known of a number may be of a part that is gone."""
        coded = self._coded.get(base)
        return coded if coded is not None and coded.part is part else None

    def _note_dead(self, killed: list[tuple[int, NDArray[np.int64]]]) -> None:
        """Rows of parts were killed: entries of the lists are of no use any more."""
        self._changed_at = time.monotonic()
        self._died_since += sum(len(rows) for _, rows in killed)
        known = ((self._coded.get(base), rows) for base, rows in killed)
        lists = [coded.lists[rows[rows < coded.count]] for coded, rows in known if coded is not None]
        if lists and self._lists is not None:
            self._lists.note_dead(np.concatenate(lists))

    # -- done by the side thread ---------------------------------------------------------------------------

    def _code_segment(self, used: Used, lists: Lists, base: int, segment: Segment) -> Finish:
        coded, is_like = codes_of(segment, used)
        if not is_like:
            return self._note_drift
        appended = append(lists, base, coded, 0, segment.row_count)
        return self._note_full if appended is None else partial(self._segment_coded, appended)

    def _segment_coded(self, appended: Appended) -> None:
        self._note_appended(appended)
        self._drop_gone()
        self._show()

    def _note_appended(self, appended: Appended) -> None:
        """Rows are in the lists, of which some have died since."""
        assert self._lists is not None
        coded = self._coded[appended.base] = appended.coded
        coded.count = appended.stop
        self._lists.note_dead(coded.lists[appended.died_since])

    def _note_full(self) -> None:
        self._full = True

    def _note_drift(self) -> None:
        self._drifted = True

    def _code_tails(self, used: Used, lists: Lists, tails: Sequence[Tail]) -> Finish:
        """Code the next rows of tails, which follow each other."""
        left, done = CODED_ROWS_MAX, list[Appended]()
        for tail in tails:
            first = self._count_of(tail)
            stop = min(tail.row_count, first + left)
            if stop > first:
                coded = self._coded_of(tail.base, tail) or room_for(tail, used.quantizer)
                found = used.quantizer.encode(tail.vectors[first:stop])
                if not is_like(used.quantizer, found.error, found.lists):
                    return partial(self._tails_coded, done, self._note_drift)
                coded.lists[first:stop], coded.codes[first:stop] = found.lists, found.codes
                appended = append(lists, tail.base, coded, first, stop)
                if appended is None:
                    return partial(self._tails_coded, done, self._note_full)
                done.append(appended)
                lists.set_coded(tail.start + stop)
            left -= stop - first
            if stop < tail.row_count or not left:
                break
        return partial(self._tails_coded, done, self._drop_gone)

    def _tails_coded(self, done: Sequence[Appended], then: Finish) -> None:
        for appended in done:
            self._note_appended(appended)
        then()

    def _fill(self, used: Used, parts: dict[int, Part], asked_at: float) -> Finish:
        """New lists of all parts' living rows, by codes that are known or made now, up to the bound of their memory.

        `asked_at` is when the parts were looked up: row numbers given up before are not in these lists.
        """
        started = time.monotonic()
        known = {base: self._coded_of(base, part) if used is self._used else None for base, part in parts.items()}
        coded = {base: known[base] or codes_of(part, used)[0] for base, part in parts.items()}
        stops = {base: completed(made, used.quantizer) for base, made in coded.items()}
        expected = np.zeros(used.quantizer.lists, np.int64)
        for base, made in coded.items():
            inside = made.lists[: stops[base]]
            expected += np.bincount(inside[inside != OUTLIER], minlength=len(expected))
        outliers = sum(stops.values()) - int(expected.sum())
        lists, done = Lists(used.quantizer, expected, shared=True, outliers=outliers), list[Appended]()
        for base, made in coded.items():
            if lists.memory_bytes + bytes_of(made.part.live.live_count, lists) >= self._bytes_max:
                if isinstance(made.part, Tail):
                    break
                continue
            appended = append(lists, base, made, 0, stops[base])
            if appended is None:
                raise MemoryError(f"new lists of {len(expected)} centroids have no room for the rows they are made for")
            done.append(appended)
        lists.set_coded(coded_up_to(parts.values(), done))
        if used is self._used and self._lists is not None:
            lists.set_parameters(self._lists.parameters)
        seconds = time.monotonic() - started
        name = self._view.collection.name
        logger.info("%s: lists of %d rows made by quantizer %d in %.2f s", name, lists.entries, used.version, seconds)
        return partial(self._filled, used, lists, done, asked_at)

    def _filled(self, used: Used, lists: Lists, done: Sequence[Appended], asked_at: float) -> None:
        self._view.listed_since = asked_at
        if used is not self._used:
            self._measured_rows = 0  # what it was calibrated on is a sample, perhaps with rows that are dead
            written = used.quantizer.to_bytes()
            self._written = Region(len(written), shared=True)
            self._written.take(np.uint8, len(written))[:] = np.frombuffer(written, np.uint8)
            self._written_bytes = len(written)
        if used is self._offered:
            self._taken, self._offered = used, None
        self._used, self._lists, self._coded = used, lists, {}
        self._full = self._drifted = False
        for appended in done:
            self._note_appended(appended)
        self._drop_gone()
        self._show()

    def _measure(self, used: Used, lists: Lists) -> Finish:
        """Find the search parameters anew; where that fails they stay as they are."""
        living = lists.entries - lists.dead
        try:
            if lists.outliers <= MEASURED_OUTLIERS_MAX:
                self._measured(used, lists)
        except Exception:  # rows may all die meanwhile, or addresses be short: nothing that is searched depends on it
            logger.exception("%s: searches were not measured", self._view.collection.name)
        return partial(self._note_measured, living)

    def _measured(self, used: Used, lists: Lists) -> None:
        """By searches for some of the rows, whose nearest others a scan tells."""
        collection = self._view.collection
        mirror = ViewMirror(collection, self._view.place)
        drawn = held_out(mirror, MEASURED_QUERIES, lists.coded)
        if drawn is None:
            return
        queries, alive = drawn
        opened = OpenLists(used.quantizer, lists)
        rank_rows, start = partial(ranked, mirror, collection.metric), lists.parameters
        found = calibration.calibrated(opened, alive, rank_rows, queries, self._recall_target, start)
        lists.set_parameters(found)
        logger.info("%s: searches find %.3f of the 10 nearest, with %s", collection.name, found.recall, found)

    def _note_measured(self, living: int) -> None:
        self._measured_rows, self._died_since = max(1, living), 0

    def _show(self) -> None:
        """Tell the readers which lists there are, and which segments are in them."""
        assert self._lists is not None and self._used is not None and self._written is not None
        name = self._written.name
        assert name is not None
        self._view.index = IndexPlace(self._lists.place, name, self._written_bytes, self.version or 0)
        self._view.indexed = frozenset(self._coded)
        self._view.announce()

    def _drop_gone(self) -> None:
        there = self._parts()
        for base, coded in list(self._coded.items()):
            if there.get(base) is not coded.part:
                del self._coded[base]
                if self._lists is not None and coded.part.base != base:  # it was prepared, and not taken
                    self._lists.note_dead(coded.lists[coded.part.live.numbers()])

    def _train(self, parts: dict[int, Part], asked_at: float) -> Finish:
        """A quantizer from our own rows, and lists by it."""
        living = [(part, part.live.numbers()) for part in parts.values()]
        row_count = sum(len(rows) for _, rows in living)
        if row_count < ROWS_LEAST:  # they have died meanwhile
            return self._drop_gone
        every = -(-row_count // SAMPLE_ROWS)
        sample = np.concatenate([part.vectors[rows[::every]] for part, rows in living])
        metric = self._view.collection.metric
        quantizer = Quantizer.train(sample, metric, row_count, self._recall_target, seed=row_count)
        version = self._used.version if self._used is not None else 0
        return self._fill(Used(quantizer, version, own=True), parts, asked_at)


def _done(work: Callable[[], None]) -> Finish:
    work()
    return lambda: None
