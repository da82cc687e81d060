"""A replica's followers as an HTTP worker sees them: their views, mapped, and their published status.

The replica's process (`__main__.py`) writes, this one reads; a side thread opens new segments before a search
needs them. Nothing here waits for the log, a broker or a lock of the other process.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import msgspec
from msgspec.structs import replace

from api.problems import Incomplete, NotFound, NotReady
from api.status import KNOWN_FOR_S, CollectionStatus, FollowerStatus, PartitionStatus, ReplicaStatus
from tidemark import generation
from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import StoreUnavailable, TidemarkError
from tidemark.mirror import ViewMirror
from tidemark.settings import Settings
from tidemark.shared_memory import Document, Region
from tidemark.snapshot import ViewPlace

logger = logging.getLogger(__name__)

REFRESH_EVERY_S = 0.01
OPEN_S_MAX = 5.0
# The brokers are asked every second, and answer within one.
AT_END_FOR_MS = 2_500
# Partitions that an error names.
NAMED_MAX = 5
T = TypeVar("T")
_decode_replica = msgspec.json.Decoder(ReplicaStatus).decode
_decode_follower = msgspec.json.Decoder(FollowerStatus).decode


@dataclass(frozen=True, slots=True)
class PartitionMirror:
    """One partition: what was published of it last, and its view, None while it is not served.

    `broken` is a view that this process cannot open.
    """

    status: PartitionStatus
    view: ViewMirror | None
    broken: ViewMirror | None = None

    @property
    def problem(self) -> str | None:
        return self.status.problem or (self.broken.problem if self.broken else None)

    @property
    def problem_since_ms(self) -> int | None:
        return self.status.problem_since_ms or (self.broken.problem_since_ms if self.broken else None)

    @property
    def position(self) -> int:
        """The view may be ahead of the status, never behind what was searched."""
        return max(self.status.position, self.view.position if self.view else 0)

    @property
    def offset_lag(self) -> int | None:
        """Offsets not applied yet; None when the end of the log is not known now, or is not that of our log."""
        end = self.status.end if self.status.lag_known else None
        return None if end is None else max(0, end - self.position)

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


class _Shown(NamedTuple):
    status: FollowerStatus
    views: tuple[ViewMirror, ...]
    unopened: list[Missing]

    @property
    def missing(self) -> list[Missing]:
        return self.unopened + [Missing(view.partition, view.problem) for view in self.views if view.problem]


class FollowerMirror:
    """One follower; its views keep their last state when it is replaced."""

    def __init__(self, collection: Collection, document: Document) -> None:
        self.collection = collection
        self._document = document
        self._seen = (0, FollowerStatus())
        self._shown = _Shown(FollowerStatus(), (), [])

    @property
    def status(self) -> FollowerStatus:
        if self._seen[0] != self._document.version:
            version, content = self._document.read()
            self._seen = (version, _decode_follower(content))
        return self._seen[1]

    @property
    def generation(self) -> str:
        return self.status.generation

    @property
    def problem(self) -> str | None:
        return self.status.problem

    @property
    def views(self) -> tuple[ViewMirror, ...]:
        """The views of the opened partitions; none before all that are known can be served or have said why not."""
        return self._show().views

    def _show(self) -> "_Shown":
        """Views and what is missing, of one status; replaced by one assignment, for many threads ask."""
        status, shown = self.status, self._shown
        if status is not shown.status:
            partitions = status.partitions if status.served else []
            known = {view.place: view for view in shown.views}
            places = [partition.view for partition in partitions if partition.opened]
            views = tuple(known.get(place) or self._view(place) for place in places)
            unopened = [
                Missing(partition.view.partition, partition.problem or "its newest checkpoint is being opened")
                for partition in partitions
                if not partition.opened
            ]
            self._shown = shown = _Shown(status, views, unopened)
        return shown

    def _view(self, place: ViewPlace) -> ViewMirror:
        try:
            return ViewMirror(self.collection, place)
        except FileNotFoundError:  # this follower was replaced, and its process has let go of it
            raise StoreUnavailable(f"{self.collection.name}: another generation is served by now: ask again") from None

    @property
    def missing(self) -> list[Missing]:
        """Partitions known that cannot be served now; none before the first opening, when nothing can."""
        return self._show().missing

    def read(self, allow_partial: bool, work: Callable[[Sequence[ViewMirror]], T]) -> tuple[T, list[Missing]]:
        """What `work` finds in the views of all partitions, or of those that can be served when that is allowed.

        Raises NotReady before the first opening, and Incomplete when partitions are missing and have to be there.
        """
        unavailable: StoreUnavailable | None = None
        for _ in range(len(self.views) + 2):  # each turn finds another view that cannot be opened
            shown = self._show()
            views, missing = shown.views, shown.missing
            if missing and not allow_partial:
                raise Incomplete(f"{self._incomplete(missing)}: ask later, or for the others alone with allow_partial")
            if missing:
                views = tuple(view for view in views if view.problem is None)
            if not views:
                raise Incomplete(self._incomplete(missing)) if missing else NotReady(self._not_served)
            try:
                return work(views), missing
            except StoreUnavailable as error:  # the view's own problem says so from now on
                unavailable = error
        raise unavailable or NotReady(self._not_served)

    @property
    def _not_served(self) -> str:
        return f"{self.collection.name}: {self.problem or 'not opened yet'}"

    def _incomplete(self, missing: list[Missing]) -> str:
        named = "; ".join(f"partition {number}: {why}" for number, why in missing[:NAMED_MAX])
        more = f"; and {len(missing) - NAMED_MAX} more" if len(missing) > NAMED_MAX else ""
        known = len(self.status.partitions)
        return f"{self.collection.name}: {len(missing)} of {known} partitions cannot be served now ({named}{more})"

    def not_ready(self) -> str | None:
        """Why it is not ready, None when it is."""
        missing = self.missing
        return self._incomplete(missing) if missing else self.status.not_ready

    def open_coming(self) -> None:
        """Open what is announced, and try again what could not be opened: on a side thread, and before all is shown."""
        for view in self.views:
            said = view.problem
            try:
                view.refresh()
            except StoreUnavailable as error:
                if view.problem != said:
                    logger.error("%s", error)

    @property
    def partitions(self) -> list[PartitionMirror]:
        """All partitions; when nothing was published lately, their lags are not known."""
        views = {view.place: view for view in self.views if view.problem is None}
        broken = {view.place: view for view in self.views if view.problem is not None}
        status = self.status
        silent = time.monotonic() - status.turned_at > KNOWN_FOR_S
        found = [replace(p, lag_known=False) for p in status.partitions] if silent else status.partitions
        return [PartitionMirror(p, views.get(p.view), broken.get(p.view)) for p in found]

    @property
    def served_views(self) -> list[ViewMirror]:
        """The views that can be searched here, as far as is known."""
        return [view for view in self.views if view.problem is None]

    @property
    def positions(self) -> dict[int, int]:
        return {view.partition: view.position for view in self.views}

    @property
    def staleness_ms(self) -> int | None:
        """The largest time lag of the partitions, null when one is not known."""
        lags = [partition.time_lag_ms for partition in self.partitions]
        known = [lag for lag in lags if lag is not None]
        return max(known) if known and len(known) == len(lags) else None


class Served:
    """One collection as the replica serves it now."""

    def __init__(self, collection: Collection, replica: "Replica") -> None:
        self.collection = collection
        self._replica = replica
        self._follower: tuple[str, FollowerMirror] | None = None
        self._recall_target: tuple[str, float] | None = None

    @property
    def recall_target(self) -> float:
        """The recall@10 that the segments of the generation served were to reach.

        What is configured while the generation's file cannot be read; they differ after a change and before a replay.
        """
        name = self.follower.generation
        if self._recall_target is None or self._recall_target[0] != name:
            try:
                root = self._replica.settings.checkpoint_root
                found = generation.read(root, self.collection.name, name).index.recall_target
            except (TidemarkError, OSError):
                return self.collection.index.recall_target
            self._recall_target = (name, found)
        return self._recall_target[1]

    @property
    def status(self) -> CollectionStatus | None:
        """None before the replica's process has published anything."""
        return self._replica.status.collections.get(self.collection.name)

    @property
    def follower(self) -> FollowerMirror:
        """The follower that serves it now; raises StoreUnavailable while there is none."""
        deadline = time.monotonic() + OPEN_S_MAX
        while time.monotonic() < deadline:
            status, held = self.status, self._follower
            if status is not None and held is not None and held[0] == status.follower:
                return held[1]
            try:
                if status is not None:
                    document = Document(Region.open(status.follower))
                    self._follower = (status.follower, FollowerMirror(self.collection, document))
                    continue
            except FileNotFoundError:  # replaced meanwhile: the next status names another one
                pass
            time.sleep(REFRESH_EVERY_S)
        raise StoreUnavailable(f"{self.collection.name}: the replica has not opened it yet")

    def not_ready(self) -> str | None:
        """Why the collection is not ready, None when it is."""
        return "starting" if self.status is None else self.follower.not_ready()


class Replica:
    """All collections; `start` starts the side thread that opens what is coming."""

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
        if self._seen[0] != self._document.version:
            version, content = self._document.read()
            self._seen = (version, _decode_replica(content))
        return self._seen[1]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()

    def _refresh(self) -> None:
        while not self._closing.wait(REFRESH_EVERY_S):
            for served in self.collections.values():
                try:
                    if served.status is not None:
                        served.follower.open_coming()
                except Exception as error:  # a search says the same to whom it concerns
                    logger.warning("%s: %s", served.collection.name, error)
                    self._closing.wait(1.0)
