"""Checkpoints of one partition of one generation: claim, publish, load, fall back.

The order of `publish`, top-down: segment files durable -> dead rows durable -> manifest durable under the next
version (created, never overwritten) -> still the owner. Only then may offsets be committed.
Fencing: a new owner makes a mark with the next epoch (`fence.py`), looks again whether what it loaded is still the
newest, and publishes that again as its claim. Whoever publishes looks for a higher mark before it writes anything and
after the manifest. Segments and dead rows' files carry the epoch in their names and are created, so two writers
never share one. Nothing is removed because it looks wrong; `obsolete.py` says what may go.
Knows nothing of Kafka's client; `view.py` holds the rows.
"""

import contextlib
import logging
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidemark import files, layout, obsolete
from tidemark.caught_up import now_ms
from tidemark.collection import Collection, IndexParameters
from tidemark.crash_point import reach
from tidemark.errors import CheckpointMismatch, CorruptCheckpoint, StaleOwner, StoreFull, StoreUnavailable
from tidemark.fence import Fence, highest_mark
from tidemark.manifest import Manifest, SegmentEntry, TopicIdentity, encode, parse
from tidemark.quantizers import Versioned
from tidemark.segment import Segment
from tidemark.segment_files import remove_segment_files, verify_file, write_segment
from tidemark.view import View

logger = logging.getLogger(__name__)

# A checkpoint writes its rows as they are, and codes of few; the builder does the rest later.
_FLAT = IndexParameters(kind="flat")
# Numbers of rows that get codes as they are written: 16,384 of 128-d are encoded in 50 ms, in which nothing is applied.
CODED_AT_ONCE = 16_384 * 128
# What a reader needs, and more, to open the files of a manifest that it has just read.
GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint whose every file was verified, and the newer manifests that could not be used."""

    manifest: Manifest
    segments: list[Segment]
    damaged: list[str]
    newest_version: int


class Checkpoints:
    """The checkpoints of one partition, read by anyone, written by the claim's holder.

    `grace_s`: how long an obsolete manifest and its files stay for readers.
    """

    def __init__(
        self,
        root: Path,
        collection: Collection,
        generation: str,
        partition: int,
        grace_s: float = GRACE_S,
    ) -> None:
        self.root = root
        self.collection = collection
        self._grace_s = grace_s
        self.generation = generation
        self.partition = partition
        self.directory = root / layout.partition_directory(collection.name, generation, partition)
        self._fence = Fence(self.directory)
        self._nonce = secrets.token_hex(8)
        self._newest: Manifest | None = None
        self._next_segment = 1
        self._next_dead_rows = 1
        self._next_codes = 1
        self._unpublished: set[str] = set()

    # -- read ----------------------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Versions of the manifests present, oldest first."""
        return _versions(files.names(self.directory))

    def read(self, version: int) -> Manifest:
        path = self.directory / layout.manifest_name(version)
        manifest = parse(files.read(path), str(path))
        self._check_identity(manifest, path)
        return manifest

    def newest_manifest(self) -> Manifest | None:
        """The newest manifest that can be read; its files are not looked at, which takes long."""
        for version in reversed(self.versions()):
            with contextlib.suppress(CorruptCheckpoint, FileNotFoundError):
                return self.read(version)
        return None

    def _check_identity(self, manifest: Manifest, path: Path) -> None:
        ours = self.collection.identity()
        if manifest.identity == ours:
            return
        differ = [
            f"{key} was {manifest.identity.get(key)!r}, is {value!r}"
            for key, value in ours.items()
            if manifest.identity.get(key) != value
        ]
        raise CheckpointMismatch(
            f"{path}: collection {self.collection.name!r} was checkpointed under another configuration "
            f"({'; '.join(differ)}): restore the old setting, use another collection name, or build a new "
            f"generation with `tidemark replay {self.collection.name} --from earliest`"
        )

    def load(self, opened: Iterable[Segment] = ()) -> Loaded | None:
        """The newest checkpoint whose files all verify; None when there is no manifest at all.

        Segments already open are used again. A damaged checkpoint falls back to the one before; when none
        is whole, CorruptCheckpoint is raised: what is there is not touched. A checkpoint that cannot be read
        (StoreUnavailable) or is of a newer format (NewerFormat) may be whole: it is never passed over.
        """
        ready = {segment.name: segment for segment in opened}
        while True:
            versions = self.versions()
            loaded, damaged = self._newest_whole(versions, ready)
            if loaded is not None or not versions:
                return loaded
            if self.versions() == versions:  # else they were obsolete, and removed meanwhile
                break
        raise CorruptCheckpoint(
            f"{self.directory}: no checkpoint is whole, nothing was changed ({damaged[0]}): set the "
            f"directory aside and restart, or run `tidemark replay {self.collection.name} --from earliest`"
        )

    def _newest_whole(self, versions: list[int], ready: dict[str, Segment]) -> tuple[Loaded | None, list[str]]:
        """What to load, and what is wrong with those above it; nothing as soon as the manifests are others."""
        damaged: list[str] = []
        for version in reversed(versions):
            try:
                manifest = self.read(version)
                return Loaded(manifest, self._open_segments(manifest, ready), damaged, versions[-1]), damaged
            except (CorruptCheckpoint, FileNotFoundError) as error:
                damaged.append(str(error))
                if self.versions() != versions:
                    break
        return None, damaged

    def _open_segments(self, manifest: Manifest, ready: dict[str, Segment]) -> list[Segment]:
        """Those ready that are of the same bytes: in a directory that was restored or begun again, names are too."""
        found = []
        for entry in manifest.segments:
            segment = ready.get(entry.name)
            if segment is None or not segment.is_of(entry):
                segment = self._open(entry)
            self._take_codes(segment, entry)
            found.append(segment)
        return found

    def _take_codes(self, segment: Segment, entry: SegmentEntry) -> None:
        """Give an open segment the codes that a newer manifest names; raises CorruptCheckpoint."""
        if entry.codes is not None and entry.codes != segment.entry.codes:
            verify_file(segment.directory / entry.codes.name, entry.codes.file)
            segment.entry = segment.entry.with_codes(entry.codes)

    def _open(self, entry: SegmentEntry, verified: Iterable[str] = ()) -> Segment:
        directory, collection = self.directory / entry.name, self.collection
        return Segment(directory, entry, collection.dimension, collection.metric, self.partition, set(verified))

    # -- write ---------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Our writer epoch; only after `claim`."""
        assert self._newest is not None
        return self._newest.writer_epoch

    @property
    def version(self) -> int:
        """The version of the newest manifest we published; only after `claim`."""
        assert self._newest is not None
        return self._newest.version

    def claim(self, topic: TopicIdentity, loaded: Loaded | None, first_position: int) -> bool:
        """Publish the loaded checkpoint again under the next epoch: from now on older writers are fenced.

        False when what was loaded is not the newest any more: load again, then claim again. Raises StaleOwner when
        another writer claims it after us: of those who claim at once the last one has it, so they do not wait for
        each other for ever.
        """
        newest = [loaded.newest_version] if loaded else []
        if not self._fence.epoch:
            names = files.names(self.directory)
            if _versions(names)[-1:] != newest:
                return False
            self._fence.take(self._highest_epoch(names))
            reach("marked")
        # Whoever publishes from here on sees our mark; what was published before it is seen here.
        names = files.names(self.directory)
        self._fence.check(names)
        if _versions(names)[-1:] != newest:
            return False
        manifest = self._claim(topic, loaded, first_position)
        if not self._claimed(manifest):
            return False
        reach("claimed")
        self._newest = manifest
        self._check_still_owner(manifest)
        return True

    def _claimed(self, manifest: Manifest) -> bool:
        try:
            return self._create(manifest)
        except StoreFull:
            if not self._remove_obsolete():
                raise
        return self._create(manifest)

    def _claim(self, topic: TopicIdentity, loaded: Loaded | None, first_position: int) -> Manifest:
        based_on = loaded.manifest if loaded else None
        return Manifest(
            collection=self.collection.name,
            generation=self.generation,
            partition=self.partition,
            version=loaded.newest_version + 1 if loaded else 1,
            writer_epoch=self._fence.epoch,
            writer_nonce=self._nonce,
            created_ms=now_ms(),
            caught_up_ms=based_on.caught_up_ms if based_on else now_ms(),
            identity=self.collection.identity(),
            cluster_id=topic.cluster_id,
            topic_id=topic.topic_id,
            position=based_on.position if based_on else first_position,
            leader_epoch=based_on.leader_epoch if based_on else -1,
            digest=based_on.digest if based_on else 0,
            segments=based_on.segments if based_on else [],
        )

    def _create(self, manifest: Manifest) -> bool:
        return files.create(self.directory / layout.manifest_name(manifest.version), encode(manifest))

    def _highest_epoch(self, names: Iterable[str]) -> int:
        """The highest epoch of any mark, readable manifest or segment among the names, 0 when there is none."""
        epochs = [highest_mark(names)]
        for version in _versions(names):
            with contextlib.suppress(CorruptCheckpoint, FileNotFoundError):
                epochs.append(self.read(version).writer_epoch)
        epochs += [layout.segment_epoch(name) or 0 for name in names]
        return max(epochs)

    def publish(self, view: View, caught_up_ms: int, quantizer: Versioned | None = None) -> Manifest:
        """Make our partition of the view durable: after this returns, all before its position may be committed.

        `caught_up_ms` is when the view was last known to hold all of the log. Few rows get codes of the `quantizer`
        as they are written. Raises StaleOwner when another writer
        has claimed the partition, and StoreUnavailable when the disk does not take it: then the checkpoint before is
        still the newest, and the next call tries again.
        """
        self._fence.check()
        try:
            return self._publish_where_there_is_room(view, caught_up_ms, quantizer)
        except StoreUnavailable:
            self._fence.check()  # what an heir has removed under us looks like a bad disk
            raise

    def _publish_where_there_is_room(self, view: View, caught_up_ms: int, quantizer: Versioned | None) -> Manifest:
        try:
            return self._publish(view, caught_up_ms, quantizer)
        except StoreFull:
            # The files that the next manifest is to name are on disk, and no manifest names them yet.
            entries = [segment.entry for segment in view.partitions[self.partition].segments]
            if not self._remove_obsolete({f"{entry.name}/{name}" for entry in entries for name in entry.files}):
                raise
        return self._publish(view, caught_up_ms, quantizer)

    def _publish(self, view: View, caught_up_ms: int, quantizer: Versioned | None) -> Manifest:
        assert self._newest is not None
        self._save_tails(view, quantizer)
        number, self._next_dead_rows = self._next_dead_rows, self._next_dead_rows + 1
        state = view.partitions[self.partition]
        for segment in state.segments:
            segment.save_dead_rows(self.epoch, number)
        reach("dead-rows-durable")
        manifest = msgspec.structs.replace(
            self._newest,
            version=self._newest.version + 1,
            created_ms=now_ms(),
            caught_up_ms=caught_up_ms,
            position=state.position,
            leader_epoch=state.leader_epoch,
            digest=state.digest,
            segments=[segment.entry for segment in state.segments],
        )
        created = self._create(manifest)
        reach("manifest-durable")
        if not created:
            self._refuse_taken(manifest.version)
        self._newest = manifest
        self._unpublished -= {entry.name for entry in manifest.segments}
        self._unpublished -= {f"{entry.name}/{entry.codes_file}" for entry in manifest.segments}
        self._check_still_owner(manifest)
        return manifest

    def _refuse_taken(self, version: int) -> None:
        self._fence.check()
        path = self.directory / layout.manifest_name(version)
        raise StaleOwner(
            f"{path} is there, and not by us, the owner of epoch {self.epoch}: another program writes here"
        )

    def _check_still_owner(self, published: Manifest) -> None:
        """Raise StaleOwner when another has claimed the partition while we published.

        The heir has seen our manifest and goes on from it. Or our version was free only because the heir's manifests
        had become obsolete: then ours is below the heir's, and goes.
        """
        if not self._fence.holds and self.versions()[-1] > published.version:
            files.remove(self.directory / layout.manifest_name(published.version))
        self._fence.check()

    def _save_tails(self, view: View, quantizer: Versioned | None) -> None:
        rows = view.unsaved_rows(self.partition)
        if rows is None:
            view.saved(self.partition, None)
            return
        directory = self.new_segment_directory()
        few = rows.vectors.size <= CODED_AT_ONCE
        entry = write_segment(directory, rows, self.collection.metric, _FLAT, 0, quantizer if few else None)
        reach("flat-durable")
        try:
            view.saved(self.partition, self._open(entry, verified=entry.files))  # just hashed as they were written
        except (StoreUnavailable, CorruptCheckpoint) as error:
            remove_segment_files(directory)
            raise StoreUnavailable(str(error)) from error

    def new_segment_directory(self) -> Path:
        """A segment directory nobody has used; numbers are not reused within an epoch."""
        while True:
            directory = self.directory / layout.segment_name(self.epoch, self._next_segment)
            self._next_segment += 1
            with files.operation("looking for", directory):
                is_free = not directory.exists()
            if is_free:
                self._unpublished.add(directory.name)
                return directory

    def new_codes_name(self, segment: str, quantizer: int) -> str:
        """A name for codes beside a segment's files that nobody has used."""
        name = layout.added_codes_name(quantizer, self.epoch, self._next_codes)
        self._next_codes += 1
        self._unpublished.add(f"{segment}/{name}")
        return name

    # -- remove --------------------------------------------------------------------------------------------

    def remove_obsolete(self) -> list[str]:
        """Remove what no reader needs any more; the names of what is gone. Only the newest epoch's writer does.

        What cannot be looked at stays: the checkpoint was made, and the next one tries again.
        """
        try:
            return self._remove_obsolete() if self._newest is not None else []
        except StoreUnavailable as error:
            logger.warning("obsolete files are not removed: %s", error)
            return []

    def _remove_obsolete(self, keep: Iterable[str] = ()) -> list[str]:
        if not self._fence.holds:
            return []
        return obsolete.remove(self.directory, self._fence.epoch, self._grace_s, self._unpublished.union(keep))


def partitions(root: Path, collection: str, generation: str) -> list[int]:
    """The partitions of a generation that have a directory, ascending; raises StoreUnavailable."""
    names = files.names(root / layout.generation_directory(collection, generation))
    return sorted(number for name in names if (number := layout.partition_number(name)) is not None)


def _versions(names: Iterable[str]) -> list[int]:
    return sorted(version for name in names if (version := layout.manifest_version(name)) is not None)
