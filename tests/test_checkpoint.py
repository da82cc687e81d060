"""Claims, fencing, falling back from damage, and what is removed when."""

import os
import time
from pathlib import Path

import pytest

from tests.messages import upsert
from tidemark import searcher
from tidemark.checkpoint import MANIFESTS_KEPT, Checkpoints
from tidemark.collection import Collection
from tidemark.errors import CheckpointMismatch, CorruptCheckpoint, StaleOwner
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")


def _checkpoints(root: Path, collection: Collection = COLLECTION) -> Checkpoints:
    return Checkpoints(root, collection, "g000001", 0)


def _owner(root: Path) -> tuple[Checkpoints, View]:
    """A writer that has taken over what is there."""
    checkpoints, view = _checkpoints(root), View(COLLECTION, 0)
    loaded = checkpoints.load()
    if loaded is not None:
        manifest = loaded.manifest
        view.open(loaded.segments, manifest.position, manifest.leader_epoch, manifest.digest)
    assert checkpoints.claim(TOPIC, loaded, 0)
    return checkpoints, view


def _apply(view: View, count: int) -> None:
    start = view.position
    messages = [upsert(start + i, b"id-%d" % (start + i), [start + i, 1, 2, 3]) for i in range(count)]
    view.apply(decode(messages, COLLECTION)[0])


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 10)
    checkpoints.publish(view)
    again = _owner(tmp_path)[1]
    assert (again.position, again.digest, again.live_rows) == (view.position, view.digest, 10)
    assert {hit.id for hit in searcher.scan([again], None, 100)} == {b"id-%d" % i for i in range(10)}


def test_a_stale_owner_cannot_publish_after_a_new_one_has_claimed(tmp_path: Path) -> None:
    stale, old_view = _owner(tmp_path)
    _apply(old_view, 5)
    stale.publish(old_view)
    heir, new_view = _owner(tmp_path)
    _apply(old_view, 5)
    with pytest.raises(StaleOwner, match="epoch 2, ours is 1"):
        stale.publish(old_view)
    _apply(new_view, 1)
    assert heir.publish(new_view).position == 6


def test_a_claim_fails_when_the_checkpoint_is_not_the_newest_any_more(tmp_path: Path) -> None:
    owner, view = _owner(tmp_path)
    heir = _checkpoints(tmp_path)
    loaded = heir.load()
    _apply(view, 5)
    owner.publish(view)
    assert not heir.claim(TOPIC, loaded, 0)
    assert heir.claim(TOPIC, heir.load(), 0)


def test_two_writers_never_share_a_segment_name(tmp_path: Path) -> None:
    first, _ = _owner(tmp_path)
    second, _ = _owner(tmp_path)
    assert first.new_segment_directory() != second.new_segment_directory()


@pytest.mark.parametrize("file", ["manifest", "vectors.f32", "rows.arrow"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path, file: str) -> None:
    checkpoints, view = _owner(tmp_path)
    for _ in range(2):
        _apply(view, 5)
        newest = checkpoints.publish(view)
    damaged = checkpoints.directory / newest.segments[-1].name / file
    if file == "manifest":
        damaged = checkpoints.directory / f"manifest-{newest.version:010}.json"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    loaded = _checkpoints(tmp_path).load()
    assert loaded is not None and loaded.manifest.position == 5
    assert len(loaded.damaged) == 1
    heir = _checkpoints(tmp_path)
    assert heir.claim(TOPIC, heir.load(), 0)
    assert heir.version == newest.version + 1


def test_nothing_is_touched_when_no_checkpoint_is_whole(tmp_path: Path) -> None:
    checkpoints, _ = _owner(tmp_path)
    for path in checkpoints.directory.glob("manifest-*"):
        path.write_bytes(b"\0" * path.stat().st_size)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptCheckpoint, match="no checkpoint is whole, nothing was changed"):
        _checkpoints(tmp_path).load()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_metric_is_refused(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    checkpoints.publish(view)
    with pytest.raises(CheckpointMismatch, match="metric was 'l2', is 'ip'"):
        _checkpoints(tmp_path, Collection("docs", "docs", 4, "ip")).load()


def test_leftover_temporary_and_unknown_files_do_not_stop_a_start(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 5)
    checkpoints.publish(view)
    (checkpoints.directory / ".manifest-0000000009.json.abc.tmp").write_bytes(b"half")
    (checkpoints.directory / "notes.txt").write_text("mine")
    (checkpoints.directory / "seg-000009-000001").mkdir()
    assert _owner(tmp_path)[1].live_rows == 5


def test_obsolete_files_are_removed_after_the_grace_and_named_ones_never(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    for _ in range(6):
        _apply(view, 2)
        checkpoints.publish(view)
    orphan = checkpoints.directory / "seg-000001-009999"
    building = checkpoints.directory / "seg-000001-009998"
    for path in (orphan, building):
        path.mkdir()
    assert checkpoints.remove_obsolete(grace_s=3600) == []
    old = time.time() - 7200
    for path in checkpoints.directory.rglob("*"):
        os.utime(path, (old, old))
    checkpoints.remove_obsolete(grace_s=3600, keep=[building.name])
    assert len(checkpoints.versions()) == MANIFESTS_KEPT
    assert not orphan.exists() and building.exists()
    assert _owner(tmp_path)[1].live_rows == 12


def test_only_the_newest_epochs_writer_removes_files(tmp_path: Path) -> None:
    stale, view = _owner(tmp_path)
    for _ in range(6):
        _apply(view, 2)
        stale.publish(view)
    _owner(tmp_path)
    assert stale.remove_obsolete(grace_s=0) == []
