"""Which job the builder gets next, and what becomes of its result: first training, then codes, then merges.

Codes come before merges, because rows without them cost every search; merges are for dead rows and the number of files.
Used by the owning thread only. `builder.py` is the child's other end, `partition.py` what is built for.
"""

import logging
import time
from collections.abc import Collection, Iterable, Sequence

from consumer.builder import Build, Builder, Coding, Merging, Training
from consumer.jobs import Coded, Merged, Result, Trained
from consumer.partition import OwnedPartition
from consumer.quantizing import Known, KnownQuantizers
from tidemark import collection
from tidemark.crash_point import reach
from tidemark.errors import TidemarkError
from tidemark.segment import Segment
from tidemark.settings import ConsumerSettings

logger = logging.getLogger(__name__)

# To look through 48 partitions of ten segments takes some milliseconds.
LOOK_S = 0.1


class Builds:
    """Gives the builder its jobs, for all partitions of this process."""

    def __init__(self, builder: Builder, quantizers: KnownQuantizers, settings: ConsumerSettings) -> None:
        self._builder, self._quantizers, self._settings = builder, quantizers, settings
        self._look_at = 0.0

    def advance(self, partitions: Collection[OwnedPartition], tidy_up: bool = False) -> None:
        """Use what has ended, if something has, and give out the next job, if one is wanted.

        `tidy_up`: build what is left although records go on arriving. While nothing ends it costs microseconds, but for
        a look now and then.
        """
        finished = self._builder.finished()
        if finished is None and time.monotonic() < self._look_at:
            return
        self._look_at = time.monotonic() + LOOK_S
        owned = sorted(partitions, key=lambda each: -each.unbuilt_rows)
        known = {id(found): found for each in owned if (found := self.known(each))}
        self._quantizers.turn(list(known.values()))
        if finished is not None:
            self._use(*finished, owned)
        if self._builder.idle:
            self._start_next(owned, list(known.values()), tidy_up)

    def known(self, owned: OwnedPartition) -> Known | None:
        """The quantizer of a partition's generation, as far as it is known."""
        return self._quantizers.of(owned.collection, owned.generation)

    def settled(self, partitions: Sequence[OwnedPartition], behind: Sequence[OwnedPartition]) -> bool:
        """Whether nothing is under way, and nothing wanted for those `behind`, of all partitions that there are."""
        if self._builder.build is not None:
            return False
        known = {id(found): found for each in behind if (found := self.known(each))}
        if any(each.expected or each.has_grown(self._rows(each, partitions)) for each in known.values()):
            return False
        return not any(self._to_code(each) or self._to_merge(each, True) for each in behind)

    # -- give out ------------------------------------------------------------------------------------------

    def _start_next(self, owned: Sequence[OwnedPartition], known: Sequence[Known], tidy_up: bool) -> None:
        for each in known:
            rows = self._rows(each, owned)
            if each.train_wanted(rows):
                self._builder.train(each, rows)
                return
        for partition in owned:
            found = self.known(partition)
            if found is not None and (segments := self._to_code(partition)):
                self._builder.code(partition.checkpoints, found, segments)
                return
        for partition in owned:
            if inputs := self._to_merge(partition, tidy_up or partition.quiet):
                self._builder.merge(partition.checkpoints, partition.index, self.known(partition), inputs)
                return

    def _rows(self, known: Known, partitions: Iterable[OwnedPartition]) -> int:
        """Rows of a generation that live in segments of this process, as of the last checkpoints."""
        segments = (segment for each in partitions if self.known(each) is known for segment in each.state.segments)
        return sum(segment.entry.live_rows for segment in segments)

    def _to_code(self, partition: OwnedPartition) -> list[Segment]:
        known = self.known(partition)
        return partition.wanted_codes(known) if known is not None else []

    def _to_merge(self, partition: OwnedPartition, quiet: bool) -> list[Segment]:
        known, most = self.known(partition), segment_rows_max(self._settings, partition.collection)
        if known is not None and known.expected:  # its rows are about to be coded
            return []
        return partition.wanted_merge(most, quiet, known)

    # -- use -----------------------------------------------------------------------------------------------

    def _use(self, build: Build, result: Result, partitions: Iterable[OwnedPartition]) -> None:
        if isinstance(build, Training):
            assert isinstance(result, Trained)
            build.known.trained(result, build.rows, build.drifted)
            if result.made:
                self._builder.used()
                logger.info(
                    "%s: trained quantizer %d for %d rows in %.1f s",
                    *(build.known.place.collection.name, result.version, result.live_rows),
                    time.monotonic() - build.started,
                )
            return
        for owned in partitions:
            if owned.checkpoints is build.checkpoints:
                try:
                    self._install(owned, build, result)
                    self._builder.used()
                except TidemarkError as error:
                    self._builder.not_used(build, f"what was built cannot be used: {error}")

    def _install(self, owned: OwnedPartition, build: Coding | Merging, result: Result) -> None:
        if isinstance(build, Coding):
            assert isinstance(result, Coded)
            owned.take_codes(result.codes, build.known)
        else:
            assert isinstance(result, Merged)
            owned.install(build, result.entry)
        reach("installed")
        logger.info("%s: %s in %.1f s", owned.name, _what(build, result), time.monotonic() - build.started)


def _what(build: Coding | Merging, result: Result) -> str:
    if isinstance(build, Coding):
        return f"coded {build.rows} rows of {len(build.names)} segments by quantizer {build.known.version}"
    entry = result.entry if isinstance(result, Merged) else None
    built = f"built {entry.kind} (recall {entry.recall:.3f})" if entry and entry.kind != "flat" else "merged"
    return f"{built} {build.rows} rows of {len(build.inputs)} segments"


def segment_rows_max(settings: ConsumerSettings, of: collection.Collection) -> int:
    """The most rows of a merged segment: a build has all of them in memory."""
    return min(settings.segment_rows_max, max(1, settings.segment_bytes_max // of.row_bytes))
