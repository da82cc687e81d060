"""Claims, fencing, falling back from damage, and what is removed when."""

import errno
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from tests.messages import delete, upsert
from tests.rows import quantizer_of
from tests.views import live_ids, open_checkpoint
from tidemark import checkpoint, files, layout
from tidemark.caught_up import now_ms
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexParameters
from tidemark.errors import CheckpointMismatch, CorruptCheckpoint, NewerFormat, StaleOwner
from tidemark.manifest import FORMAT, TopicIdentity, encode
from tidemark.obsolete import MANIFESTS_KEPT
from tidemark.quantizers import Versioned
from tidemark.record import decode
from tidemark.segment import Segment
from tidemark.segment_files import verify_file, write_codes, write_segment
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
QUANTIZER = quantizer_of(4)
CAUGHT_UP_MS = 1_700_000_000_000


def _checkpoints(root: Path, collection: Collection = COLLECTION, grace_s: float = 60.0) -> Checkpoints:
    return Checkpoints(root, collection, "g000001", 0, grace_s=grace_s)


def _owner(root: Path, grace_s: float = 60.0) -> tuple[Checkpoints, View]:
    """A writer that has taken over what is there."""
    checkpoints, view = _checkpoints(root, grace_s=grace_s), View(COLLECTION)
    loaded = open_checkpoint(checkpoints, view)
    assert checkpoints.claim(TOPIC, loaded, 0)
    return checkpoints, view


def _apply(view: View, count: int) -> None:
    start = view.partitions[0].position
    messages = [upsert(start + i, b"id-%d" % (start + i), [start + i, 1, 2, 3]) for i in range(count)]
    view.apply(decode({0: messages}, COLLECTION)[0])


def _delete(view: View, ids: list[bytes]) -> None:
    messages = [delete(view.partitions[0].position + n, id_) for n, id_ in enumerate(ids)]
    view.apply(decode({0: messages}, COLLECTION)[0])


def _add_codes(checkpoints: Checkpoints, segment: Segment, quantizer: Versioned) -> Path:
    """As the builder does."""
    name = checkpoints.new_codes_name(segment.name, quantizer.version)
    segment.entry = segment.entry.with_codes(write_codes(segment.directory, name, segment.vectors, quantizer))
    return segment.directory / name


def test_a_checkpoint_is_read_back_as_it_was(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 10)
    checkpoints.publish(view, CAUGHT_UP_MS)
    again = _owner(tmp_path)[1]
    found, state = again.partitions[0], view.partitions[0]
    assert (found.position, found.digest, found.live_rows) == (state.position, state.digest, 10)
    assert live_ids(again) == {b"id-%d" % i for i in range(10)}


def test_a_stale_owner_cannot_publish_after_a_new_one_has_claimed(tmp_path: Path) -> None:
    stale, old_view = _owner(tmp_path)
    _apply(old_view, 5)
    stale.publish(old_view, CAUGHT_UP_MS)
    heir, new_view = _owner(tmp_path)
    _apply(old_view, 5)
    with pytest.raises(StaleOwner, match="epoch 2, ours is 1"):
        stale.publish(old_view, CAUGHT_UP_MS)
    _apply(new_view, 1)
    assert heir.publish(new_view, CAUGHT_UP_MS).position == 6


def test_a_claim_fails_when_the_checkpoint_is_not_the_newest_any_more(tmp_path: Path) -> None:
    owner, view = _owner(tmp_path)
    heir = _checkpoints(tmp_path)
    loaded = heir.load()
    _apply(view, 5)
    owner.publish(view, CAUGHT_UP_MS)
    assert not heir.claim(TOPIC, loaded, 0)
    assert heir.claim(TOPIC, heir.load(), 0)


def test_two_writers_never_share_a_segment_name(tmp_path: Path) -> None:
    first, _ = _owner(tmp_path)
    second, _ = _owner(tmp_path)
    assert first.new_segment_directory() != second.new_segment_directory()


def _flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped": _flip,
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "zeros of the right length": lambda data: bytes(len(data)),
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_with_any_damaged_file_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 5)
    checkpoints.publish(view, CAUGHT_UP_MS)
    before = set(checkpoints.directory.rglob("*"))
    _apply(view, 300)
    rows = view.unsaved_rows(0)
    assert rows is not None
    directory = checkpoints.new_segment_directory()
    entry = write_segment(directory, rows, "l2", IndexParameters(kind="hnsw", ann_rows_min=64), 1, QUANTIZER)
    view.saved(0, Segment(directory, entry, 4, "l2"))
    _add_codes(checkpoints, view.partitions[0].segments[0], QUANTIZER)
    _delete(view, [b"id-0", b"id-7"])  # one of each segment
    newest = checkpoints.publish(view, CAUGHT_UP_MS)
    new = [path for path in set(checkpoints.directory.rglob("*")) - before if path.is_file()]
    kinds = sorted(re.sub(r"\d", "", path.name) for path in new)
    assert kinds == [
        *("codes---.u", "codes-.u", "dead--.bits", "dead--.bits"),
        *("index.faiss", "manifest-.json", "rows.arrow", "vectors.f"),
    ]
    for path in new:
        whole = path.read_bytes()
        path.write_bytes(DAMAGE[damage](whole))
        loaded = _checkpoints(tmp_path).load()
        assert loaded is not None and loaded.manifest.position == 5
        assert len(loaded.damaged) == 1 and path.name in loaded.damaged[0]
        path.write_bytes(whole)
    whole_again = _checkpoints(tmp_path).load()
    assert whole_again is not None and whole_again.manifest == newest


def test_an_heir_of_a_damaged_checkpoint_claims_above_it(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    for _ in range(2):
        _apply(view, 5)
        newest = checkpoints.publish(view, CAUGHT_UP_MS)
    damaged = checkpoints.directory / newest.segments[-1].name / layout.ROWS
    damaged.write_bytes(bytes(damaged.stat().st_size))
    heir = _checkpoints(tmp_path)
    loaded = heir.load()
    assert loaded is not None and loaded.manifest.position == 5
    assert heir.claim(TOPIC, loaded, 0)
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
    checkpoints.publish(view, CAUGHT_UP_MS)
    with pytest.raises(CheckpointMismatch, match="metric was 'l2', is 'ip'"):
        _checkpoints(tmp_path, Collection("docs", "docs", 4, "ip")).load()


def test_leftover_temporary_and_unknown_files_do_not_stop_a_start(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 5)
    checkpoints.publish(view, CAUGHT_UP_MS)
    (checkpoints.directory / ".manifest-0000000009.json.abc.tmp").write_bytes(b"half")
    (checkpoints.directory / "notes.txt").write_text("mine")
    (checkpoints.directory / "seg-000009-000001").mkdir()
    assert _owner(tmp_path)[1].partitions[0].live_rows == 5


def _rounds(checkpoints: Checkpoints, view: View, rounds: int) -> None:
    for _ in range(rounds):
        _apply(view, 2)
        checkpoints.publish(view, CAUGHT_UP_MS)


def _replace_first_segment(view: View) -> Path:
    """Kill every row of the oldest segment, and put a build without rows in its place, as a merge does."""
    segment = view.partitions[0].segments[0]
    _delete(view, [segment.id_of(n) for n in range(segment.row_count)])
    view.install(0, None, [segment.name], {segment.name: segment.dead_mask()})
    return segment.directory


def _age(root: Path) -> None:
    old = time.time() - 7200
    for path in root.rglob("*"):
        os.utime(path, (old, old))


def test_a_file_is_kept_for_the_grace_from_when_it_became_obsolete_however_old_it_is(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=3600)
    _rounds(checkpoints, view, 3)
    _age(tmp_path)
    replaced = _replace_first_segment(view)
    _rounds(checkpoints, view, MANIFESTS_KEPT + 2)
    _age(tmp_path)
    kept = checkpoints.versions()
    assert checkpoints.remove_obsolete() == []
    assert replaced.exists() and checkpoints.versions() == kept
    heir, _ = _owner(tmp_path, grace_s=0)
    removed = heir.remove_obsolete()
    assert replaced.name in removed and not replaced.exists()
    assert len(heir.versions()) == MANIFESTS_KEPT


def test_a_reader_of_any_manifest_that_is_there_finds_its_files(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    for _ in range(6):
        _rounds(checkpoints, view, 2)
        _replace_first_segment(view)
        _rounds(checkpoints, view, 1)
        checkpoints.remove_obsolete()
        for version in checkpoints.versions():
            for entry in checkpoints.read(version).segments:
                for name, file in entry.files.items():
                    verify_file(checkpoints.directory / entry.name / name, file)


def test_few_rows_get_codes_as_they_are_written_and_many_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, view = _owner(tmp_path)
    monkeypatch.setattr(checkpoint, "CODED_AT_ONCE", 4 * 100)
    for count, expected in ((100, 1), (101, 0)):
        _apply(view, count)
        entry = checkpoints.publish(view, CAUGHT_UP_MS, QUANTIZER).segments[-1]
        assert (entry.rows, entry.quantizer) == (count, expected)
    again = _checkpoints(tmp_path).load()
    assert again is not None
    assert [segment.codes is not None for segment in again.segments] == [True, False]


def test_a_reader_takes_codes_that_a_newer_manifest_names_for_a_segment_that_it_has_open(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _rounds(checkpoints, view, 2)
    before = _checkpoints(tmp_path).load()
    assert before is not None
    path = _add_codes(checkpoints, view.partitions[0].segments[0], QUANTIZER)
    checkpoints.publish(view, CAUGHT_UP_MS)
    whole = path.read_bytes()
    path.write_bytes(_flip(whole))
    damaged = _checkpoints(tmp_path).load(before.segments)
    assert damaged is not None and path.name in damaged.damaged[0]
    assert before.segments[0].codes is None
    path.write_bytes(whole)
    after = _checkpoints(tmp_path).load(before.segments)
    assert after is not None
    assert list(map(id, after.segments)) == list(map(id, before.segments))
    assert before.segments[0].codes is not None and before.segments[0].entry.quantizer == 1


def test_codes_that_newer_ones_replaced_are_removed_and_what_is_being_written_is_not(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _apply(view, 5)
    checkpoints.publish(view, CAUGHT_UP_MS, QUANTIZER)
    segment = view.partitions[0].segments[0]
    with_it = segment.directory / layout.codes_name(1)
    second, third = (quantizer_of(4, version=version) for version in (2, 3))
    added = [_add_codes(checkpoints, segment, second)]
    _rounds(checkpoints, view, 1)
    added.append(_add_codes(checkpoints, segment, third))
    writing = segment.directory / checkpoints.new_codes_name(segment.name, 4)
    later = segment.directory / layout.added_codes_name(4, 9, 1)  # a higher epoch's
    building = checkpoints.new_segment_directory() / layout.codes_name(4)
    building.parent.mkdir()
    for path in (writing, later, building):
        path.touch()
    for number in range(MANIFESTS_KEPT):
        assert (with_it.exists(), added[0].exists()) == (number < MANIFESTS_KEPT - 1, True)  # as manifests name them
        _rounds(checkpoints, view, 1)
        checkpoints.remove_obsolete()
    assert not with_it.exists() and not added[0].exists()
    assert all(path.exists() for path in (added[1], writing, later, building))
    heir, view = _owner(tmp_path, grace_s=0)
    heir.remove_obsolete()
    assert not writing.exists() and added[1].exists() and later.exists()


def test_orphans_are_removed_and_what_is_named_or_being_written_is_not(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _rounds(checkpoints, view, 6)
    heir, view = _owner(tmp_path, grace_s=0)
    orphan, later = (heir.directory / name for name in ("seg-000001-009999", "seg-000003-000001"))
    building = heir.new_segment_directory()
    for path in (orphan, building, later):
        path.mkdir()
    heir.remove_obsolete()
    assert not orphan.exists()
    assert building.exists()
    assert later.exists()  # a higher epoch's: its writer came after us
    assert _owner(tmp_path)[1].partitions[0].live_rows == 12


def test_a_temporary_file_is_removed_when_it_was_left_behind_and_may_vanish_at_any_time(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _rounds(checkpoints, view, 6)
    left, young, vanished = (checkpoints.directory / f".manifest-{n}.tmp" for n in range(3))
    for path in (left, young):
        path.write_bytes(b"half")
    vanished.symlink_to("nowhere")  # listed, and gone when it is looked at
    old = time.time() - 7200
    os.utime(left, (old, old))
    checkpoints.remove_obsolete()
    assert not left.exists() and young.exists()


def test_nothing_that_a_damaged_manifest_may_name_is_removed(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _rounds(checkpoints, view, 6)
    orphan = checkpoints.directory / "seg-000000-000001"
    orphan.mkdir()
    path = checkpoints.directory / f"manifest-{checkpoints.version - 1:010}.json"
    whole = path.read_bytes()
    path.write_bytes(b"\0" * len(whole))
    checkpoints.remove_obsolete()
    assert orphan.exists()
    path.write_bytes(whole)
    checkpoints.remove_obsolete()
    assert not orphan.exists()


def test_epochs_and_segments_beyond_six_digits_fence_and_are_removed_as_others_are(tmp_path: Path) -> None:
    _owner(tmp_path)
    stray = _checkpoints(tmp_path).directory / "seg-999999-1000000"
    stray.mkdir()
    stale, old_view = _owner(tmp_path, grace_s=0)
    heir, view = _owner(tmp_path, grace_s=0)
    assert (stale.epoch, heir.epoch) == (1_000_000, 1_000_001)
    _apply(old_view, 1)
    with pytest.raises(StaleOwner, match="claimed under epoch 1000001"):
        stale.publish(old_view, CAUGHT_UP_MS)
    _rounds(heir, view, 6)
    orphan = heir.directory / "seg-1000000-1000000"
    orphan.mkdir()
    heir.remove_obsolete()
    assert not stray.exists() and not orphan.exists()
    assert [path.name for path in heir.directory.glob("epoch-*")] == ["epoch-1000001"]


def test_what_a_link_named_as_a_segment_points_to_is_not_touched(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path / "store", grace_s=0)
    _rounds(checkpoints, view, 6)
    file = tmp_path / "elsewhere" / "precious"
    file.parent.mkdir()
    file.touch()
    link = checkpoints.directory / "seg-000001-009999"
    link.symlink_to(file.parent)
    checkpoints.remove_obsolete()
    assert file.exists() and not link.is_symlink()


def test_an_old_manifest_that_cannot_be_read_is_no_reason_to_say_that_no_checkpoint_is_made(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _rounds(checkpoints, view, 6)

    def unreadable(operation: str, path: Path) -> None:
        if operation == "reading" and path.name == layout.manifest_name(1):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with files.watched(unreadable):
        assert checkpoints.remove_obsolete() == []
    assert len(checkpoints.versions()) == 7
    checkpoints.remove_obsolete()
    assert len(checkpoints.versions()) == MANIFESTS_KEPT


def test_manifests_of_a_time_when_the_clock_was_ahead_do_not_stay_until_it_is_that_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=1)
    monkeypatch.setattr(checkpoint, "now_ms", lambda: now_ms() + 365 * 86_400_000)
    _rounds(checkpoints, view, 6)
    monkeypatch.setattr(checkpoint, "now_ms", lambda: now_ms() - 2_000)
    _rounds(checkpoints, view, MANIFESTS_KEPT)
    checkpoints.remove_obsolete()
    assert len(checkpoints.versions()) == MANIFESTS_KEPT


def test_only_the_newest_epochs_writer_removes_files(tmp_path: Path) -> None:
    stale, view = _owner(tmp_path, grace_s=0)
    _rounds(stale, view, 6)
    heir, _ = _owner(tmp_path, grace_s=0)
    assert stale.remove_obsolete() == []
    assert heir.remove_obsolete() != []


def test_the_newest_mark_stays_and_older_ones_go(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        checkpoints, view = _owner(tmp_path, grace_s=0)
        assert checkpoints.epoch == epoch
    assert sorted(path.name for path in checkpoints.directory.glob("epoch-*")) == [
        "epoch-000001",
        "epoch-000002",
        "epoch-000003",
    ]
    _rounds(checkpoints, view, 6)
    checkpoints.remove_obsolete()
    assert [path.name for path in checkpoints.directory.glob("epoch-*")] == ["epoch-000003"]


def test_a_checkpoint_of_a_newer_format_is_never_passed_over_or_written_over(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path, grace_s=0)
    _rounds(checkpoints, view, 2)
    loaded = _checkpoints(tmp_path).load()
    newer = checkpoints.directory / f"manifest-{checkpoints.version + 1:010}.json"
    manifest = msgspec.structs.replace(checkpoints.read(checkpoints.version), format=FORMAT + 1)
    newer.write_bytes(encode(manifest))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NewerFormat, match=f"format {FORMAT + 1}"):
        _checkpoints(tmp_path).load()
    assert not _checkpoints(tmp_path).claim(TOPIC, loaded, 0)
    assert loaded is not None
    with pytest.raises(NewerFormat):
        _checkpoints(tmp_path).claim(TOPIC, replace(loaded, newest_version=checkpoints.version + 1), 0)
    assert checkpoints.remove_obsolete() == []
    assert sorted(tmp_path.rglob("*")) == before


def test_a_claim_carries_over_when_its_position_was_caught_up(tmp_path: Path) -> None:
    before = now_ms()
    checkpoints, view = _owner(tmp_path)
    assert checkpoints.read(1).caught_up_ms >= before  # a first claim has read all of what it starts after: nothing
    _apply(view, 5)
    checkpoints.publish(view, CAUGHT_UP_MS)
    for _ in range(3):
        heir, _ = _owner(tmp_path)
        claimed = heir.read(heir.version)
        assert (claimed.caught_up_ms, claimed.position) == (CAUGHT_UP_MS, 5)
        assert claimed.created_ms >= before
