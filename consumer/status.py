"""What the owning thread publishes for metrics and health: immutable, replaced by one assignment per turn."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from consumer.partition import OwnedPartition
    from consumer.quantizing import Known
    from consumer.take_over import Waiting


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """One owned partition: positions are next offsets, ages are seconds."""

    collection: str
    topic: str
    partition: int
    generation: str
    end: int
    applied: int
    checkpointed: int
    committed: int | None
    checkpoint_version: int
    checkpoint_age_s: float
    writer_epoch: int
    live_rows: int
    dead_rows: int
    tail_rows: int
    unbuilt_rows: int
    segments: int
    quantizer: int
    quantizer_recall: float | None
    uncoded_rows: int
    recalls: tuple[float, ...]
    recall_target: float
    records: int
    bad: dict[str, int]
    held: bool
    problem: str | None
    since_ms: int | None

    @classmethod
    def of(cls, owned: OwnedPartition, now: float, known: Known | None) -> PartitionStatus:
        state, version = owned.state, known.version if known else 0
        entries = [segment.entry for segment in state.segments]
        return cls(
            collection=owned.collection.name,
            topic=owned.partition[0],
            partition=owned.partition[1],
            generation=owned.generation.name,
            end=owned.end,
            applied=state.position,
            checkpointed=owned.checkpointed,
            committed=owned.committed,
            checkpoint_version=owned.checkpoint_version,
            checkpoint_age_s=now - owned.checkpoint_at,
            writer_epoch=owned.checkpoints.epoch,
            live_rows=state.live_rows,
            dead_rows=state.dead_rows,
            tail_rows=state.tail_rows,
            unbuilt_rows=owned.unbuilt_rows,
            segments=len(entries),
            quantizer=version,
            quantizer_recall=known.recall if known and version else None,
            uncoded_rows=sum(e.rows for e in entries if known and not known.has_coded(e)),
            recalls=tuple(entry.recall for entry in entries if entry.kind == "hnsw"),
            recall_target=owned.index.recall_target,
            records=owned.records,
            bad=dict(owned.bad),
            held=owned.held is not None,
            problem=owned.problem,
            since_ms=owned.problem_since_ms,
        )


@dataclass(frozen=True, slots=True)
class WaitingStatus:
    """One partition that is assigned and not owned: being taken over, or refused for a `problem` since `since_ms`."""

    collection: str
    topic: str
    partition: int
    problem: str | None
    since_ms: int

    @classmethod
    def of(cls, waiting: Waiting) -> WaitingStatus:
        topic, number = waiting.partition
        return cls(waiting.collection.name, topic, number, waiting.problem, waiting.since_ms)


@dataclass(frozen=True, slots=True)
class Status:
    """All partitions as of one turn of the loop, in monotonic seconds; `topics`: why the brokers say nothing of one."""

    turned_at: float = field(default_factory=time.monotonic)
    partitions: tuple[PartitionStatus, ...] = ()
    waiting: tuple[WaitingStatus, ...] = ()
    topics: dict[str, str] = field(default_factory=dict)
    building_rows: int = 0
    builder_pid: int | None = None
