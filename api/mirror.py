"""A replica's followers as an HTTP worker sees them: their views, mapped, and their published status.

The replica's process (`__main__.py`) writes, this one reads. A side thread reads what was published, and opens new
segments before a search needs them; a search looks at what the side thread left, and at the positions in shared
memory. Nothing here waits for the log, a broker or a lock of the other process.
"""

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from api.problems import Incomplete, NotFound, NotReady
from api.status import KNOWN_FOR_S, CollectionStatus, FollowerStatus, PartitionStatus, ReplicaStatus
from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import StoreUnavailable
from tidemark.mirror import Problem, ViewMirror
from tidemark.settings import Settings
from tidemark.shared_memory import Document, Region

logger = logging.getLogger(__name__)

REFRESH_EVERY_S, FAILED_S = 0.01, 1.0
# The brokers are asked every second, and answer within one.
AT_END_FOR_MS = 2_500
# Partitions that an error names.
NAMED_MAX = 5
T = TypeVar("T")
_decode_replica = msgspec.json.Decoder(ReplicaStatus).decode
_decode_follower = msgspec.json.Decoder(FollowerStatus).decode


@dataclass(frozen=True, slots=True)
class PartitionMirror:
    """One partition: what was published of it last, and why it cannot be opened here, if so."""

    status: PartitionStatus
    broken: Problem | None = None

    @property
    def number(self) -> int:
        return self.status.partition

    @property
    def problem(self) -> str | None:
        return self.status.problem or (self.broken.why if self.broken else None)

    @property
    def problem_since_ms(self) -> int | None:
        return self.status.problem_since_ms or (self.broken.since_ms if self.broken else None)

    @property
    def offset_lag(self) -> int | None:
        """Offsets not applied yet; None when the end of the log is not known now, or is not that of our log."""
        end = self.status.end if self.status.lag_known else None
        return None if end is None else max(0, end - self.status.position)

    @property
    def time_lag_ms(self) -> int | None:
        """Age of the oldest unapplied record, at most, by our own clock; 0 when the end was asked for just now and is
        reached; null when nothing is known."""
        if not self.status.caught_up_ms:
            return None
        age_ms = max(1, now_ms() - self.status.caught_up_ms)
        return 0 if self.offset_lag == 0 and age_ms <= AT_END_FOR_MS else age_ms


class Missing(NamedTuple):
    """A partition that an answer does not hold, and why."""

    partition: int
    why: str


class _Told:
    """One status of a follower, and what every search needs of it, made once."""

    def __init__(self, status: FollowerStatus) -> None:
        self.status = status
        partitions = status.partitions
        self.unopened = [
            Missing(each.partition, each.problem or "its newest checkpoint is being opened")
            for each in partitions
            if status.served and not each.opened
        ]
        self.numbers: NDArray[np.int64] = np.array([each.partition for each in partitions], np.int64)
        self._caught_up_ms = np.array([each.caught_up_ms for each in partitions], np.int64)
        unknown = np.iinfo(np.int64).max  # an end that no position reaches
        ends = [each.end if each.lag_known and each.end is not None else unknown for each in partitions]
        self._ends = np.array(ends, np.int64)

    def staleness_ms(self, positions: NDArray[np.int64]) -> int | None:
        """The largest time lag of the partitions, None when one is not known; `positions` are those of `numbers`."""
        if not len(self.numbers) or not self._caught_up_ms.all():
            return None
        ages = np.maximum(1, now_ms() - self._caught_up_ms)
        known = time.monotonic() - self.status.turned_at <= KNOWN_FOR_S
        at_end = (positions >= self._ends) & (ages <= AT_END_FOR_MS) & known
        return int(np.where(at_end, 0, ages).max())


class FollowerMirror:
    """One follower, as of the last `refresh`; its view keeps its last state when the follower is replaced.

    `collection` is as configured, but for the parameters of the index: those are of the generation that is followed.
    """

    def __init__(self, collection: Collection, document: Document) -> None:
        self.collection = collection
        self._document = document
        self._version = 0
        self._told = _Told(FollowerStatus())
        self._view: ViewMirror | None = None
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read what was published, open what is announced, and try again what could not be opened.

        On a side thread, and before the first search. Raises StoreUnavailable when the follower is gone.
        """
        with self._lock:
            if self._version != self._document.version:
                self._version, content = self._document.read()
                told = _Told(_decode_follower(content))
                self._note_parameters(told.status)
                self._view = self._view or self._open(told.status)
                self._told = told
        if self._view is not None:
            said = self._view.problems
            self._view.refresh()
            for number, problem in self._view.problems.items():
                if number not in said or said[number].why != problem.why:
                    logger.error("%s", problem.why)

    def _note_parameters(self, status: FollowerStatus) -> None:
        found = status.parameters
        if found is not None and found != self.collection.index:
            self.collection = dataclasses.replace(self.collection, index=found)
            if self._view is not None:
                self._view.collection = self.collection

    def _open(self, status: FollowerStatus) -> ViewMirror | None:
        try:
            return ViewMirror(self.collection, status.view) if status.view else None
        except FileNotFoundError:  # this follower was replaced, and its process has let go of it
            raise StoreUnavailable(f"{self.collection.name}: another generation is served by now: ask again") from None

    @property
    def status(self) -> FollowerStatus:
        return self._told.status

    @property
    def generation(self) -> str:
        return self.status.generation

    @property
    def problem(self) -> str | None:
        return self.status.problem

    @property
    def view(self) -> ViewMirror | None:
        """The view; None before all partitions that are known can be served or have said why not."""
        return self._view if self.status.served else None

    @property
    def missing(self) -> list[Missing]:
        """Partitions known that cannot be served now; none before the first opening, when nothing can."""
        broken = self._broken
        if not broken:
            return self._told.unopened
        return self._told.unopened + [Missing(number, problem.why) for number, problem in broken.items()]

    @property
    def _broken(self) -> Mapping[int, Problem]:
        """Partitions that this process cannot open whole."""
        return self._view.problems if self._view is not None else {}

    def read(self, allow_partial: bool, work: Callable[[ViewMirror], T]) -> tuple[T, list[Missing]]:
        """What `work` finds in the view, and the partitions that it may not hold whole, when that is allowed.

        Raises NotReady before the first opening, and Incomplete when partitions are missing and have to be there, or
        all are.
        """
        while True:
            view = self.view
            if view is None:
                raise NotReady(f"{self.collection.name}: {self.problem or 'not opened yet'}")
            failures, missing = view.failures, self.missing
            if missing and not allow_partial:
                raise Incomplete(f"{self._incomplete(missing)}: ask later, or for the others alone with allow_partial")
            if missing and len(missing) >= len(self.status.partitions):
                raise Incomplete(self._incomplete(missing))
            found = work(view)
            if view.failures == failures:  # else it may have looked at less than `missing` says
                return found, missing

    def _incomplete(self, missing: list[Missing]) -> str:
        named = "; ".join(f"partition {number}: {why}" for number, why in missing[:NAMED_MAX])
        more = f"; and {len(missing) - NAMED_MAX} more" if len(missing) > NAMED_MAX else ""
        known = len(self.status.partitions)
        return f"{self.collection.name}: {len(missing)} of {known} partitions cannot be served now ({named}{more})"

    def not_ready(self) -> str | None:
        """Why it is not ready, None when it is."""
        missing = self.missing
        return self._incomplete(missing) if missing else self.status.not_ready

    @property
    def partitions(self) -> list[PartitionMirror]:
        """All partitions; when nothing was published lately, their lags are not known."""
        status, broken = self.status, self._broken
        silent = time.monotonic() - status.turned_at > KNOWN_FOR_S
        found = [replace(p, lag_known=False) for p in status.partitions] if silent else status.partitions
        return [PartitionMirror(p, broken.get(p.partition)) for p in found]

    @property
    def positions(self) -> dict[int, int]:
        """The next offset to apply of each partition that is opened, now; none before the first opening."""
        return {} if self.view is None else self.view.positions

    @property
    def staleness_ms(self) -> int | None:
        """The largest time lag of the partitions, null when one is not known."""
        told, view = self._told, self._view
        return None if view is None else told.staleness_ms(view.positions_of(told.numbers))


class Served:
    """One collection as the replica serves it now."""

    def __init__(self, collection: Collection, replica: "Replica") -> None:
        self.collection = collection
        self._replica = replica
        self._follower: tuple[str, FollowerMirror] | None = None

    @property
    def recall_target(self) -> float:
        """The recall@10 that the indexes of the generation served were to reach.

        What is configured while the generation's file cannot be read; they differ after a change and before a replay.
        """
        return self.follower().collection.index.recall_target

    @property
    def status(self) -> CollectionStatus | None:
        """None before the replica's process has published anything."""
        return self._replica.status.collections.get(self.collection.name)

    @property
    def is_open(self) -> bool:
        """Whether there is a follower."""
        return self._follower is not None

    def follower(self) -> FollowerMirror:
        """The follower that serves it; raises StoreUnavailable while there is none."""
        if self._follower is None:
            raise StoreUnavailable(f"{self.collection.name}: the replica has not opened it yet")
        return self._follower[1]

    def refresh(self) -> None:
        """Follow what the replica serves; raises StoreUnavailable when that has just been replaced."""
        status, held = self.status, self._follower
        if status is None:
            return
        if held is None or held[0] != status.follower:
            try:
                document = Document(Region.open(status.follower))
            except FileNotFoundError:  # the next status names another one
                raise StoreUnavailable(f"{self.collection.name}: another generation is served by now") from None
            found = FollowerMirror(self.collection, document)
            found.refresh()
            if held is None or found.view is not None:  # else it has not published yet that it serves
                held = self._follower = status.follower, found
        held[1].refresh()

    def not_ready(self) -> str | None:
        """Why the collection is not ready, None when it is."""
        return "starting" if self._follower is None else self._follower[1].not_ready()


class Replica:
    """All collections; `start` looks at them, and starts the side thread that goes on looking."""

    def __init__(self, settings: Settings, document: Document) -> None:
        self.settings = settings
        self.collections = {c.name: Served(c, self) for c in settings.all_collections()}
        self._document = document
        self._seen = (0, ReplicaStatus())
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="open-segments", daemon=True)

    def served(self, name: str) -> Served:
        """A collection by its name; raises NotFound."""
        found = self.collections.get(name)
        if found is None:
            known = ", ".join(sorted(self.collections))
            raise NotFound(f"there is no collection {name[:80]!r}; there are: {known}")
        return found

    @property
    def status(self) -> ReplicaStatus:
        """As of the last look."""
        return self._seen[1]

    def start(self) -> None:
        self._look()
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    def _refresh(self) -> None:
        while not self._closing.wait(REFRESH_EVERY_S):
            if not self._look():
                self._closing.wait(FAILED_S)

    def _look(self) -> bool:
        """False when something failed: whoever is concerned is told the same by a search."""
        if self._seen[0] != self._document.version:
            version, content = self._document.read()
            self._seen = (version, _decode_replica(content))
        well = True
        for served in self.collections.values():
            try:
                served.refresh()
            except Exception as error:
                logger.warning("%s: %s", served.collection.name, error)
                well = False
        return well
