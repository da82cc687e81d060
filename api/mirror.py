"""A replica's followers as an HTTP worker sees them: their views, mapped, and their published status.

The replica's process (`__main__.py`) writes, this one reads; a side thread opens new segments before a search
needs them. Nothing here waits for the log, a broker or a lock of the other process.
"""

import logging
import threading
import time
from dataclasses import dataclass

import msgspec
from msgspec.structs import replace

from api.problems import NotFound
from api.status import KNOWN_FOR_S, CollectionStatus, FollowerStatus, PartitionStatus, ReplicaStatus
from tidemark import generation
from tidemark.caught_up import now_ms
from tidemark.collection import Collection
from tidemark.errors import StoreUnavailable, TidemarkError
from tidemark.mirror import ViewMirror
from tidemark.settings import Settings
from tidemark.shared_memory import Document, Region

logger = logging.getLogger(__name__)

REFRESH_EVERY_S = 0.01
OPEN_S_MAX = 5.0
# The brokers are asked every second, and answer within one.
AT_END_FOR_MS = 2_500
_decode_replica = msgspec.json.Decoder(ReplicaStatus).decode
_decode_follower = msgspec.json.Decoder(FollowerStatus).decode


@dataclass(frozen=True, slots=True)
class PartitionMirror:
    """One partition: what was published of it last, and its view, None while it is not served."""

    status: PartitionStatus
    view: ViewMirror | None

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


class FollowerMirror:
    """One follower; its views keep their last state when it is replaced."""

    def __init__(self, collection: Collection, document: Document) -> None:
        self.collection = collection
        self._document = document
        self._seen = (0, FollowerStatus())
        self._views: tuple[ViewMirror, ...] = ()

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
        """The views of the opened partitions; none before all that are known can be served."""
        status = self.status
        places = [partition.view for partition in status.partitions if partition.opened] if status.served else []
        if [view.place for view in self._views] != places:
            known = {view.place: view for view in self._views}
            self._views = tuple(known.get(place) or ViewMirror(self.collection, place) for place in places)
        return self._views

    @property
    def partitions(self) -> list[PartitionMirror]:
        """All partitions; when nothing was published lately, their lags are not known."""
        views = {view.place: view for view in self.views}
        status = self.status
        silent = time.monotonic() - status.turned_at > KNOWN_FOR_S
        found = [replace(p, lag_known=False) for p in status.partitions] if silent else status.partitions
        return [PartitionMirror(partition, views.get(partition.view)) for partition in found]

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
        return "starting" if self.status is None else self.follower.status.not_ready


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
                        for view in served.follower.views:
                            view.refresh()
                except Exception as error:  # a search says the same to whom it concerns
                    logger.warning("%s: %s", served.collection.name, error)
                    self._closing.wait(1.0)
