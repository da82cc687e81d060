"""One partition of a follower: the checkpoints it follows, and what is known of its log; its rows are in a shared view.

Changed by the follower's thread only; everything read elsewhere is replaced by one assignment. `problem` says
why the partition does not follow its log, and goes away by itself when it does again. Its age is by our own clock,
from when the brokers were asked (`tidemark/caught_up.py`).
"""

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.freshness import Freshness
from api.status import PartitionStatus
from api.tail_memory import RESUME_SHARE, TailMemory
from api.unbuilt import Unbuilt
from tidemark.caught_up import CaughtUp, now_ms
from tidemark.checkpoint import Checkpoints, Loaded
from tidemark.log import Log, Start
from tidemark.log_check import check_age, check_identity, check_position, remedy
from tidemark.manifest import Manifest, TopicIdentity
from tidemark.partition_state import PartitionState
from tidemark.segment import Segment
from tidemark.topic_watch import TopicFacts, TopicWatch
from tidemark.view import View

logger = logging.getLogger(__name__)

RETRY_S, RETRY_S_MAX = 0.5, 10.0
PUT_OFF_S = 1.0


class WouldGrow(Exception):
    """A checkpoint has more rows than are held, and nothing more is to be taken."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A checkpoint that was opened, and its segments with the dead rows of its manifest or later ones."""

    loaded: Loaded
    segments: list[Segment]


@dataclass(frozen=True, slots=True)
class Announced:
    """An opened checkpoint whose segments other processes were told of, and when (monotonic seconds)."""

    at: float
    opened: Opened
    coming: list[Segment]


class Followed:
    """`reading`: assigned in the log. `held`: stopped at `rows_max` rows and deletes in memory, or for `memory`.

    `applied` is what the view has of the partition: written by the view only.

    `replacement` names the generation that is about to take this one's place, so advice to make one is not repeated.
    """

    def __init__(
        self, view: View, root: Path, generation: str, number: int, watch: TopicWatch, rows_max: int, memory: TailMemory
    ) -> None:
        self.number = number
        self.partition = (view.collection.topic, number)
        self.view = view
        self.applied = PartitionState(number)
        self.checkpoints = Checkpoints(root, view.collection, generation, number)
        self.manifest: Manifest | None = None
        self.version = 0
        self.topic: TopicIdentity | None = None
        self.opened = self.reading = self.held = self.at_end = False
        self.opening: Future[Opened | None] | None = None
        self.announced: Announced | None = None
        self.problem: str | None = None
        self.not_taken: str | None = None
        self.replacement: str | None = None
        self.end: int | None = None
        self.caught_up = CaughtUp()
        self.last_record_at = time.monotonic()
        self.behind_since: float | None = None
        self.bad_records = 0
        self.freshness = Freshness()
        self.retry_at = self.open_retry_at = 0.0
        self._retry_s = self._open_retry_s = RETRY_S
        self._stopped_at = 0.0
        self._facts_from = 0.0  # the log may have been shorter than our position when it was asked about before
        self._problem_since_ms: int | None = None
        self._opened_empty_ms = 0
        self._told_end = self._told_ms = 0
        self._passed_over: list[Segment] = []
        self._tombstones_kept_ms: int | None = None
        self._watch = watch
        self._rows_max = rows_max
        self._memory = memory

    @property
    def checkpointed(self) -> int | None:
        return None if self.manifest is None else self.manifest.position

    @property
    def start(self) -> Start:
        return Start(self.partition, self.position, self.applied.leader_epoch)

    @property
    def position(self) -> int:
        """The next offset to apply."""
        return self.applied.position

    @property
    def name(self) -> str:
        return f"{self.partition[0]}[{self.number}]"

    @property
    def offset_lag(self) -> int | None:
        """Offsets not applied yet; None when the end of the log is not known now, or is not that of our log."""
        if self.end is None or self.problem or not self.opened or self._watch.facts is None:
            return None
        return max(0, self.end - self.position)

    @property
    def trouble(self) -> str | None:
        """All that is worth saying: why it does not follow its log, what it waits for, what it could not take over."""
        return self.problem or self.waiting or self.not_taken

    def note_since_when(self) -> None:
        """Remember since when there has been trouble, whatever it is by now."""
        if self.trouble is None:
            self._problem_since_ms = None
        elif self._problem_since_ms is None:
            self._problem_since_ms = now_ms()

    def status(self, unbuilt: Unbuilt) -> PartitionStatus:
        """What is told of it, as of now."""
        applied, (unbuilt_rows, built_position) = self.applied, unbuilt.of(self.number)
        return PartitionStatus(
            partition=self.number,
            opened=self.opened,
            refused=self.problem is not None,
            state=self._state(),
            problem=self.trouble,
            problem_since_ms=self._problem_since_ms,
            end=self.end,
            position=applied.position,
            digest=applied.digest,
            lag_known=self.offset_lag is not None,
            open_transaction_offsets=self._open_transaction_offsets,
            caught_up_ms=self.caught_up.as_of_ms,
            checkpointed=self.checkpointed,
            manifest=self.version or None,
            bad_records=self.bad_records,
            tail_bytes=self._memory.taken(self.number),
            segments=len(applied.segments),
            live_rows=applied.live_rows,
            dead_rows=applied.dead_rows,
            unbuilt_rows=unbuilt_rows,
            built_position=applied.position if built_position is None else built_position,
            visible=self.freshness.visible,
            fetched=self.freshness.fetched,
        )

    @property
    def _open_transaction_offsets(self) -> int | None:
        """Offsets that wait behind an open transaction; None when that is not known now."""
        facts = self._watch.facts
        if facts is None or facts.identity != self.topic:
            return None
        return facts.open_transaction_offsets(self.number)

    def _state(self) -> str:
        if not self.opened:
            return "opening"
        if self.problem:
            return "stopped"
        if self.held:
            return "waiting"
        return "following" if self.reading else "starting"

    # -- checkpoints ---------------------------------------------------------------------------------------

    @property
    def verified(self) -> Iterable[Segment]:
        """Segments whose files need not be verified again: those searched, and those passed over."""
        return [*self._passed_over, *self.applied.segments]

    def load(self, may_grow: bool = True) -> Opened | None:
        """Open the newest checkpoint, None when there is none; on a side thread, while nothing is taken over.

        Raises what `Checkpoints.load` does, and WouldGrow when it has more rows than are held and `may_grow` is False.
        """
        if not may_grow and self.opened and (versions := self.checkpoints.versions()):
            entries = self.checkpoints.read(versions[-1]).segments
            if sum(entry.live_rows for entry in entries) > self.applied.live_rows:
                raise WouldGrow
        loaded = self.checkpoints.load(self.verified)
        return None if loaded is None else Opened(loaded, self._as_of(loaded))

    def coming(self, opened: Opened) -> list[Segment]:
        """Segments of a checkpoint that would be searched newly if it was taken over now."""
        if not self._is_wanted(opened.loaded):
            return []
        limits = self._memory.kept_rows_max, self._memory.kept_bytes_max
        return self.view.coming(self.number, opened.segments, opened.loaded.manifest.position, *limits)

    def take(self, opened: Opened) -> bool:
        """Take over a checkpoint, keeping what we applied beyond it; True when that moved us forward."""
        loaded = opened.loaded
        for damage in loaded.damaged:
            logger.error("damaged checkpoint passed over: %s", damage)
        self.not_taken = f"damaged checkpoint passed over: {loaded.damaged[0]}" if loaded.damaged else None
        self.version = loaded.newest_version
        self._open_retry_s = RETRY_S
        if not self._is_wanted(loaded):
            return False
        manifest = self.manifest = loaded.manifest
        ahead = not self.opened or self.position < manifest.position
        self._follow(opened)
        self._note_opened()
        if self.position >= manifest.position:
            self.caught_up.as_of_ms = max(self.caught_up.as_of_ms, manifest.caught_up_ms)
        if ahead:
            self.retry_at = 0.0  # what was removed of the log before it does not matter any more
            self._facts_from = time.monotonic()
            self._watch.ask_now()
        self.topic = self.topic or TopicIdentity(manifest.cluster_id, manifest.topic_id)
        return ahead

    def _follow(self, opened: Opened) -> None:
        manifest = opened.loaded.manifest
        searched_before = set(self.applied.segments)
        self.view.follow(
            self.number,
            opened.segments,
            manifest.position,
            manifest.leader_epoch,
            manifest.digest,
            self._memory.kept_rows_max,
            self._memory.kept_bytes_max,
        )
        self.applied = self.view.partitions[self.number]
        searched = searched_before.union(self.applied.segments)
        self._passed_over = [segment for segment in opened.segments if segment not in searched]
        self.view.forget(self._passed_over)

    def _is_wanted(self, loaded: Loaded) -> bool:
        return self.manifest is None or self._is_newer(loaded, self.manifest)

    def _is_newer(self, loaded: Loaded, ours: Manifest) -> bool:
        """By its version; where versions begin again, as in a directory that was restored, by its position."""
        if loaded.newest_version < ours.version:
            return loaded.manifest.position >= ours.position
        return loaded.manifest.version > ours.version

    def _as_of(self, loaded: Loaded) -> list[Segment]:
        """The segments with the dead rows of the manifest, or later ones that we know of.

        One that is searched knows what died up to our own position: when that is behind, it is opened again. One that
        was passed over knows what its manifest said.
        """
        behind = self.position < loaded.manifest.position
        searched = set(self.applied.segments)
        pairs = zip(loaded.segments, loaded.manifest.segments, strict=True)
        return [
            segment.reopened(entry) if (behind if segment in searched else segment.entry != entry) else segment
            for segment, entry in pairs
        ]

    def open_empty(self, facts: TopicFacts) -> None:
        """There is no checkpoint yet: follow the log from its start."""
        if self.number in facts.starts:
            self.applied = self.view.open(self.number, (), facts.starts[self.number], -1, 0)
            self._opened_empty_ms = facts.asked_ms
            self._note_opened()

    def _note_opened(self) -> None:
        if not self.opened:
            self.opened, self.problem = True, None
            self.retry_at = 0.0

    def not_opened(self, error: Exception, newest_version: int, final: bool) -> None:
        """A checkpoint could not be opened: what is served stays. `final`: it will not do so by waiting."""
        self.open_retry_at = time.monotonic() + self._open_retry_s
        self._open_retry_s = min(RETRY_S_MAX, 2 * self._open_retry_s)
        if not self.opened:
            self.refuse(str(error))
            return
        if final:
            self.version = newest_version
        self.not_taken = f"newer checkpoint not taken over: {error}"
        logger.error("%s: %s", self.name, self.not_taken)

    def put_off(self) -> None:
        """A checkpoint is not taken over for now: look again later."""
        self.open_retry_at = time.monotonic() + PUT_OFF_S

    # -- the log -------------------------------------------------------------------------------------------

    def may_start(self, now: float) -> bool:
        return self.opened and not self.reading and not self.held and now >= self.retry_at

    @property
    def _remedy(self) -> str:
        if self.replacement:
            return f"generation {self.replacement} takes its place when it has caught up"
        return remedy(self.view.collection.name)

    def start_reading(self, log: Log, facts: TopicFacts) -> None:
        """Read on from our position; raises TopicReplaced or LogGap when that would skip something."""
        bounds = facts.bounds(self.number)
        if bounds is None or facts.asked_at <= self._facts_from:
            return
        if facts.identity_at <= self._stopped_at:  # why it stopped may be that the topic is another one
            self._watch.ask_identity_now()
            return
        check_identity(self.name, self.topic or facts.identity, facts.identity, self._remedy)
        check_position(self.name, self.position, self._deletes_known_ms, bounds, self._remedy)
        self.topic = self.topic or facts.identity
        self._tombstones_kept_ms = facts.tombstones_kept_ms
        log.restart(self.start)
        self.reading, self.at_end, self.problem = True, False, None
        self.last_record_at = time.monotonic()
        self._retry_s = RETRY_S

    def check_log(self, facts: TopicFacts) -> None:
        """Raise TopicReplaced or LogGap when the log is not ours any more, or we are behind for too long."""
        bounds = facts.bounds(self.number)
        if self.topic is None or self.problem or bounds is None:
            return
        check_identity(self.name, self.topic, facts.identity, self._remedy)
        self._tombstones_kept_ms = facts.tombstones_kept_ms
        if bounds.end > self.position:
            self.check_age()

    def check_age(self) -> None:
        """Raise LogGap when reading on may miss deletes; asked before anything is applied.

        A process that was suspended meets records before it meets what the brokers say of them.
        """
        if self._tombstones_kept_ms is None:
            return
        check_age(self.name, self.position, self._deletes_known_ms, self._tombstones_kept_ms, self._remedy)

    def not_applied(self, messages: Sequence[Any]) -> Sequence[Any]:
        """Those of a fetch, at least one, from our position on; raises LogGap when deletes may be missing before."""
        self.check_age()
        self.at_end = False
        self.last_record_at = time.monotonic()
        if messages[0].offset() >= self.position:
            return messages
        return [message for message in messages if message.offset() >= self.position]

    def advance(self, end: int) -> None:
        """Move to the end of the log, over what no reader sees; raises LogGap."""
        if end > self.position:
            self.check_age()
            self.view.advance(self.number, end)
        self.at_end = self.position == end

    @property
    def _deletes_known_ms(self) -> int:
        """Every delete written before is applied; one written later cannot be gone for `delete.retention.ms`."""
        return max(self.caught_up.as_of_ms, self._opened_empty_ms)

    def stop_reading(self, log: Log) -> None:
        if self.reading:
            self.end = max(self.end or 0, log.end_offset(self.partition) or 0)  # the brokers told us less lately
            log.stop(self.partition)
        self.reading, self._facts_from = False, time.monotonic()
        self._stopped_at = self._facts_from

    def refuse(self, problem: str) -> None:
        """Say why the partition does not follow its log, and when it is tried again."""
        if problem != self.problem:
            logger.error("%s", problem)
        self.problem = problem
        self.retry_at = time.monotonic() + self._retry_s
        self._retry_s = min(RETRY_S_MAX, 2 * self._retry_s)

    def try_again_now(self) -> None:
        """Something has changed that may have been the reason."""
        self.retry_at = self.open_retry_at = 0.0
        self._retry_s = self._open_retry_s = RETRY_S

    def hold_back(self, log: Log) -> None:
        """Stop reading at the caps, until newer manifests have taken rows and deletes over."""
        number, applied = self.number, self.applied
        kept = applied.tail_rows + applied.kept_deletes
        self._memory.note(number, applied.tail_bytes, applied.tail_rows)
        if self.reading and (self._memory.is_short(number) or kept > self._rows_max):
            self.stop_reading(log)
            self.held = True
            logger.warning("%s: %s", self.name, self.waiting)
        elif self.held and kept <= RESUME_SHARE * self._rows_max and self._memory.has_room(number):
            self.held = False

    @property
    def waiting(self) -> str | None:
        """What a held partition waits for, None when it is not held."""
        if not self.held:
            return None
        if self._memory.full is not None:
            return self._memory.full
        rows, deletes, taken = self.applied.tail_rows, self.applied.kept_deletes, self._memory.taken(self.number)
        return (
            f"waiting for the consumer's checkpoint: {rows} rows and {deletes} deletes in memory (api.tail_rows_max is "
            f"{self._rows_max}), {taken} bytes (api.tail_bytes_max is {self._memory.bytes_max}, for all partitions)"
        )

    def note_end(self, log: Log, facts: TopicFacts | None) -> None:
        """Where the log ends. After an end-of-partition the high watermark may count what is not committed yet."""
        position = self.position
        seen = log.end_offset(self.partition) if self.reading and not self.at_end else None
        told = facts.ends.get(self.number) if facts else None
        before = self.end if not self.at_end else None
        known = [end for end in (seen, told, before) if end is not None]
        if known:
            self.end = max(position, *known)
        if self.opened and not self.problem:
            if facts is not None and told is not None and facts.identity == self.topic:
                self._note_told(told, facts.asked_ms)
                self.view.note_leader_epoch(self.number, told, facts.epochs[self.number])
            self.caught_up.reach(position)

    def _note_told(self, end: int, asked_ms: int) -> None:
        """An end that the brokers told, once; when it went back, first ask whether this is the same topic still."""
        if asked_ms <= self._told_ms:
            return
        if end < self._told_end:
            self._watch.ask_identity_now()
        else:
            self.caught_up.note_end(end, asked_ms)
        self._told_end, self._told_ms = end, asked_ms
