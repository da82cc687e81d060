"""Checkpoints of one partition of one generation: claim, publish, load, fall back, remove what is obsolete.

The order of `publish`, top-down: segment files durable -> dead rows durable -> manifest durable under the
next free version (created, never overwritten). Only then may offsets be committed.
Fencing: a new owner publishes a claim, the newest manifest again with `writer_epoch + 1`; whoever finds its
version taken compares epochs. Segment names carry the epoch, so two writers never share one, and only the
newest epoch's writer removes files. Nothing is removed because it looks wrong: it is set aside.
Knows nothing of Kafka's client; `view.py` holds the rows.
"""

import contextlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidemark import files, layout
from tidemark.collection import Collection, IndexParameters
from tidemark.crash_point import reach
from tidemark.errors import CheckpointMismatch, CorruptCheckpoint, StaleOwner
from tidemark.manifest import Manifest, SegmentEntry, TopicIdentity, encode, parse
from tidemark.segment import Segment, remove_segment_files, write_segment
from tidemark.view import View

# A checkpoint writes its rows as they are; the builder indexes them later.
_FLAT = IndexParameters(kind="flat")
MANIFESTS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint whose every file was verified, and the newer manifests that could not be used."""

    manifest: Manifest
    segments: list[Segment]
    damaged: list[str]
    newest_version: int


class Checkpoints:
    """The checkpoints of one partition, read by anyone, written by the claim's holder.

    `shared`: the segments it opens may be searched by other processes too.
    """

    def __init__(
        self, root: Path, collection: Collection, generation: str, partition: int, shared: bool = False
    ) -> None:
        self.collection = collection
        self._shared = shared
        self.generation = generation
        self.partition = partition
        self.directory = root / layout.partition_directory(collection.name, generation, partition)
        self._nonce = secrets.token_hex(8)
        self._newest: Manifest | None = None
        self._next_segment = 1

    # -- read ----------------------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Versions of the manifests present, oldest first."""
        if not self.directory.is_dir():
            return []
        found = (layout.manifest_version(path.name) for path in self.directory.iterdir())
        return sorted(version for version in found if version is not None)

    def read(self, version: int) -> Manifest:
        path = self.directory / layout.manifest_name(version)
        manifest = parse(path.read_bytes(), str(path))
        self._check_identity(manifest, path)
        return manifest

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
        is whole, CorruptCheckpoint is raised: what is there is not touched.
        """
        ready = {segment.name: segment for segment in opened}
        damaged: list[str] = []
        versions = self.versions()
        for version in reversed(versions):
            try:
                manifest = self.read(version)
                return Loaded(manifest, self._open_segments(manifest, ready), damaged, versions[-1])
            except CorruptCheckpoint as error:
                damaged.append(str(error))
            except FileNotFoundError:  # removed as obsolete meanwhile: a newer one is there
                return self.load(opened)
        if damaged:
            raise CorruptCheckpoint(
                f"{self.directory}: no checkpoint is whole, nothing was changed ({damaged[0]}): set the "
                f"directory aside and restart, or run `tidemark replay {self.collection.name} --from earliest`"
            )
        return None

    def _open_segments(self, manifest: Manifest, ready: dict[str, Segment]) -> list[Segment]:
        return [ready.get(entry.name) or self._open(entry) for entry in manifest.segments]

    def _open(self, entry: SegmentEntry, verified: Iterable[str] = ()) -> Segment:
        directory, collection = self.directory / entry.name, self.collection
        return Segment(directory, entry, collection.dimension, collection.metric, set(verified), self._shared)

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

        False when another writer has published since it was loaded: load again, then claim again.
        """
        based_on = loaded.manifest if loaded else None
        version = loaded.newest_version + 1 if loaded else 1
        manifest = Manifest(
            collection=self.collection.name,
            generation=self.generation,
            partition=self.partition,
            version=version,
            writer_epoch=self._highest_epoch() + 1,
            writer_nonce=self._nonce,
            created_ms=_now_ms(),
            identity=self.collection.identity(),
            cluster_id=topic.cluster_id,
            topic_id=topic.topic_id,
            position=based_on.position if based_on else first_position,
            leader_epoch=based_on.leader_epoch if based_on else -1,
            digest=based_on.digest if based_on else 0,
            segments=based_on.segments if based_on else [],
        )
        if not files.create(self.directory / layout.manifest_name(version), encode(manifest)):
            return False
        reach("claimed")
        self._newest = manifest
        return True

    def _highest_epoch(self) -> int:
        """The highest epoch any readable manifest or segment name was written under, 0 when there is none."""
        epochs = [0]
        for version in self.versions():
            with contextlib.suppress(CorruptCheckpoint, FileNotFoundError):
                epochs.append(self.read(version).writer_epoch)
        if self.directory.is_dir():
            epochs += [layout.segment_epoch(path.name) or 0 for path in self.directory.iterdir()]
        return max(epochs)

    def publish(self, view: View) -> Manifest:
        """Make the view durable: after this returns, everything before its position may be committed."""
        assert self._newest is not None
        self._save_tails(view)
        version = self._newest.version + 1
        for segment in view.searcher.segments:
            segment.save_dead_rows(version)
        reach("dead-rows-durable")
        manifest = msgspec.structs.replace(
            self._newest,
            version=version,
            created_ms=_now_ms(),
            position=view.position,
            leader_epoch=view.leader_epoch,
            digest=view.digest,
            segments=[segment.entry for segment in view.searcher.segments],
        )
        path = self.directory / layout.manifest_name(version)
        if not files.create(path, encode(manifest)):
            self._fenced(path)
        reach("manifest-durable")
        self._newest = manifest
        return manifest

    def _save_tails(self, view: View) -> None:
        rows = view.unsaved_rows()
        if rows is None:
            view.saved(None)
            return
        entry = write_segment(self.new_segment_directory(), rows, self.collection.metric, _FLAT, 0)
        reach("flat-durable")
        view.saved(self._open(entry, verified=entry.files))  # just hashed as they were written

    def new_segment_directory(self) -> Path:
        """A segment directory nobody has used; numbers are not reused within an epoch."""
        while True:
            directory = self.directory / layout.segment_name(self.epoch, self._next_segment)
            self._next_segment += 1
            if not directory.exists():
                return directory

    def _fenced(self, path: Path) -> None:
        theirs = parse(path.read_bytes(), str(path))
        raise StaleOwner(
            f"{path} was published by a writer of epoch {theirs.writer_epoch}, ours is {self.epoch}: another "
            f"consumer owns partition {self.partition} of {self.collection.name!r}; this one stops writing it"
        )

    # -- remove --------------------------------------------------------------------------------------------

    def remove_obsolete(self, grace_s: float, keep: Iterable[str] = ()) -> list[str]:
        """Remove manifests but the newest few, and files that no kept manifest names, older than the grace.

        `keep` names segments that are being written.
        Readers open a manifest's files well within the grace. Only the newest epoch's writer may call this.
        """
        versions = self.versions()
        if not versions or self._newest is None or versions[-1] != self._newest.version:
            return []
        cutoff = time.time() - grace_s
        kept = versions[-MANIFESTS_KEPT:]
        named: set[str] = set(keep)
        for version in kept:
            try:
                manifest = self.read(version)
            except CorruptCheckpoint:
                return []  # what a damaged manifest names is not known: remove nothing
            named |= {entry.name for entry in manifest.segments}
            named |= {f"{entry.name}/{entry.dead_file}" for entry in manifest.segments if entry.dead_file}
        removed = []
        for version in versions[:-MANIFESTS_KEPT]:
            path = self.directory / layout.manifest_name(version)
            if path.stat().st_mtime < cutoff:
                path.unlink()
                removed.append(path.name)
        reach("manifests-removed")
        removed += self._remove_unnamed(named, cutoff)
        return removed

    def _remove_unnamed(self, named: set[str], cutoff: float) -> list[str]:
        removed = []
        for path in self.directory.iterdir():
            old = path.stat().st_mtime < cutoff
            if path.name.endswith(".tmp") and old:
                path.unlink(missing_ok=True)
                removed.append(path.name)
            elif layout.segment_epoch(path.name) is not None and path.name not in named and old:
                remove_segment_files(path)
                removed.append(path.name)
            elif layout.segment_epoch(path.name) is not None:
                for bits in path.glob("dead-*.bits"):
                    if f"{path.name}/{bits.name}" not in named and bits.stat().st_mtime < cutoff:
                        bits.unlink()
                        removed.append(f"{path.name}/{bits.name}")
        return removed


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
