"""What the replica's process publishes of its followers, and its HTTP workers read: values in shared documents.

One document for the replica, one per follower, JSON by msgspec. The rows themselves are read as `tidemark.snapshot`
says; what a search needs at once, its positions, is there too.
"""

import msgspec

from api.freshness import Waits
from tidemark.collection import IndexParameters
from tidemark.log import Committed
from tidemark.snapshot import ViewPlace

# Published many times a second: older than this, nobody knows whether it still holds.
KNOWN_FOR_S = 5.0


class PartitionStatus(msgspec.Struct, frozen=True):
    """One followed partition; position and digest belong together. Times are ms of the wall clock.

    `unbuilt_rows` are in no index, and the first of them has the offset `built_position`. `caught_up_ms`: everything
    written before is applied; 0 when that is not known. `refused`: `problem` keeps it from following its log or from
    being opened, and is no wait. `problem_since_ms` is null when there is no problem.
    """

    partition: int
    opened: bool
    refused: bool
    state: str
    problem: str | None
    problem_since_ms: int | None
    end: int | None
    position: int
    digest: int
    lag_known: bool
    open_transaction_offsets: int | None
    caught_up_ms: int
    checkpointed: int | None
    manifest: int | None
    bad_records: int
    tail_bytes: int
    segments: int
    live_rows: int
    dead_rows: int
    unbuilt_rows: int
    built_position: int
    visible: Waits
    fetched: Waits


class IndexStatus(msgspec.Struct, frozen=True):
    """The lists of a collection, and how they are searched.

    `version` is that of the consumers' quantizer, 0 for one of the replica's own. `recall` is recall@10 as calibrated.
    """

    version: int
    entries: int
    dead: int
    bytes: int
    recall: float
    lists: int
    probed: int
    k_factor: int


class FollowerStatus(msgspec.Struct, frozen=True):
    """`served`: every known partition is open or has said why not. `turned_at` is monotonic seconds.

    `view` is where the rows of all partitions are. `parameters`: how they are indexed, which is as the generation says,
    whatever is in the settings by now.
    """

    generation: str = ""
    served: bool = False
    caught_up_once: bool = False
    error: str | None = None
    problem: str | None = "starting"
    turned_at: float = 0.0
    ids_in_two_partitions: int = 0
    view: ViewPlace | None = None
    parameters: IndexParameters | None = None
    index: IndexStatus | None = None
    partitions: list[PartitionStatus] = []

    @property
    def not_ready(self) -> str | None:
        """Why it is not ready, None when it is: caught up once, and still able to follow its log."""
        if self.caught_up_once:
            return self.error
        return self.problem or "catching up with the log for the first time"


class CollectionStatus(msgspec.Struct, frozen=True):
    """Which follower's document counts now, and what the consumer group has committed per partition."""

    follower: str
    next_generation: str | None
    committed: dict[int, Committed]


class ReplicaStatus(msgspec.Struct, frozen=True):
    """All collections by name; `turned_at` is monotonic seconds."""

    turned_at: float = 0.0
    collections: dict[str, CollectionStatus] = {}
