"""A disk that is full or fails: what was durable stays, nothing half is left, and it goes on when the disk is well."""

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.messages import delete, upsert
from tests.rows import embeddings, quantizer_of, rows_of
from tests.views import open_checkpoint
from tidemark import files, generation, layout
from tidemark.checkpoint import Checkpoints
from tidemark.collection import Collection, IndexKind, IndexParameters
from tidemark.errors import FsyncFailed, StoreFull, StoreUnavailable
from tidemark.manifest import TopicIdentity
from tidemark.record import decode
from tidemark.segment_files import write_segment
from tidemark.view import View

COLLECTION = Collection("docs", "docs", 4, "l2")
TOPIC = TopicIdentity("cluster", "topic")
QUANTIZER = quantizer_of(4)
WRITES = ("writing", "link", "creating", "mkdir", "opening", "rename")
READS = ("listing", "reading", "looking for")


def _owner(root: Path, grace_s: float = 60.0) -> tuple[Checkpoints, View]:
    checkpoints, view = Checkpoints(root, COLLECTION, "g000001", 0, grace_s=grace_s), View(COLLECTION)
    loaded = open_checkpoint(checkpoints, view)
    assert checkpoints.claim(TOPIC, loaded, 0)
    return checkpoints, view


def _apply(view: View, count: int) -> None:
    """So many records: each third deletes one of before, so that segments on disk get dead rows."""
    at = view.partitions[0].position
    messages = [
        delete(n, b"%d" % (n // 2)) if n % 3 == 2 else upsert(n, b"%d" % n, [n, 1, 2, 3]) for n in range(at, at + count)
    ]
    view.apply(decode({0: messages}, COLLECTION)[0])


def _state(root: Path) -> tuple[int, int]:
    """Position and digest of what a restart finds; every file of it is whole."""
    view = View(COLLECTION)
    loaded = open_checkpoint(Checkpoints(root, COLLECTION, "g000001", 0), view)
    assert loaded is not None and loaded.damaged == []
    return _state_of(view)


def _state_of(view: View) -> tuple[int, int]:
    return view.partitions[0].position, view.partitions[0].digest


def _unnamed(checkpoints: Checkpoints, view: View) -> set[str]:
    """Files of the directory that neither a manifest nor the view knows."""
    entries = [entry for version in checkpoints.versions() for entry in checkpoints.read(version).segments]
    entries += [segment.entry for segment in view.segments]
    known = {f"{entry.name}/{name}" for entry in entries for name in entry.files} | {entry.name for entry in entries}
    known |= {layout.manifest_name(version) for version in checkpoints.versions()}
    every = {str(path.relative_to(checkpoints.directory)) for path in checkpoints.directory.rglob("*")}
    return {name for name in every - known if layout.mark_epoch(name) is None}


class Failing:
    """Lets the n-th operation of some kinds fail, once; `failed` says whether there was one."""

    def __init__(self, n: int, number: int, kinds: tuple[str, ...]) -> None:
        self.left, self.number, self.kinds = n, number, kinds
        self.failed = False

    def __call__(self, operation: str, path: Path) -> None:
        if operation in self.kinds and not self.failed:
            self.left -= 1
            if self.left < 0:
                self.failed = True
                raise OSError(self.number, os.strerror(self.number), str(path))


@pytest.mark.parametrize(
    ("number", "kinds"),
    [(errno.ENOSPC, WRITES), (errno.EDQUOT, WRITES), (errno.EIO, WRITES + READS), (errno.EROFS, WRITES)],
)
def test_whichever_operation_of_a_checkpoint_fails_the_one_before_stays_and_the_next_one_passes(
    new_root: Callable[[], Path], number: int, kinds: tuple[str, ...]
) -> None:
    failed = 0
    while True:
        root = new_root()
        checkpoints, view = _owner(root)
        _apply(view, 30)
        checkpoints.publish(view, 0, QUANTIZER)
        before = _state(root)
        _apply(view, 30)
        failing = Failing(failed, number, kinds)
        with files.watched(failing):
            told = failing_publish(checkpoints, view)
        if not failing.failed:
            break
        failed += 1
        assert told or _state(root) == _state_of(view)  # what was removed made room
        assert _state(root) in (before, _state_of(view))
        assert _unnamed(checkpoints, view) == set()
        checkpoints.publish(view, 0, QUANTIZER)
        assert _state(root) == _state_of(view)
        assert _unnamed(checkpoints, view) == set()
    assert failed >= 12


def failing_publish(checkpoints: Checkpoints, view: View) -> bool:
    """Whether it failed, in the one way that is told to an operator."""
    try:
        checkpoints.publish(view, 0, QUANTIZER)
    except StoreUnavailable as error:
        assert str(checkpoints.directory) in str(error)
        return True
    return False


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_operation_of_a_claim_fails_the_next_claim_passes(new_root: Callable[[], Path], number: int) -> None:
    for failed in range(100):
        root = new_root()
        checkpoints, view = _owner(root)
        _apply(view, 30)
        checkpoints.publish(view, 0, QUANTIZER)
        before = _state(root)
        heir, failing = Checkpoints(root, COLLECTION, "g000001", 0), Failing(failed, number, WRITES + READS)
        loaded = heir.load()
        with files.watched(failing):
            try:
                assert heir.claim(TOPIC, loaded, 0)
                break
            except StoreUnavailable:
                pass
        assert _state(root) == before
        assert _unnamed(checkpoints, view) == set()
        _owner(root)
        assert _state(root) == before
    assert failed >= 5


def test_to_make_room_nothing_is_removed_that_the_next_manifest_names(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    _apply(view, 30)
    checkpoints.publish(view, 0, QUANTIZER)
    _apply(view, 30)
    with files.watched(lambda operation, path: _full_at(operation, path, "manifest-")):
        assert failing_publish(checkpoints, view)
    checkpoints.publish(view, 0, QUANTIZER)
    assert _state(tmp_path) == _state_of(view)


def _full_at(operation: str, path: Path, name: str) -> None:
    if operation == "writing" and name in path.name:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def test_an_operation_that_fails_while_a_generation_is_made_or_promoted_is_told(new_root: Callable[[], Path]) -> None:
    for failed in range(100):
        root = new_root()
        with files.watched(Failing(failed, errno.ENOSPC, WRITES + READS)):
            try:
                generation.served(root, COLLECTION)
                generation.promote(root, "docs", generation.create(root, COLLECTION, "earliest").name)
                break
            except StoreFull:
                pass
        assert generation.served(root, COLLECTION).name == "g000001"
        assert not list(root.rglob("*.tmp"))
    assert failed >= 8


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path: Path) -> None:
    checkpoints, view = _owner(tmp_path)
    for _ in range(3):
        _apply(view, 30)
        checkpoints.publish(view, 0, QUANTIZER)
    for number in (errno.EIO, errno.EACCES, errno.EMFILE, errno.ESTALE):
        for failed in range(100):
            failing = Failing(failed, number, READS)
            with files.watched(failing):
                try:
                    loaded = Checkpoints(tmp_path, COLLECTION, "g000001", 0).load()
                    break
                except StoreUnavailable as error:
                    assert os.strerror(number) in str(error)
        assert not failing.failed
        assert loaded is not None and loaded.damaged == []
        assert failed >= 8


def _in_a_process(function: Callable[[], None]) -> None:
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def _about_to_publish(root: Path) -> tuple[Checkpoints, View]:
    """An owner with one checkpoint, and records for the next."""
    checkpoints, view = _owner(root)
    _apply(view, 30)
    checkpoints.publish(view, 0, QUANTIZER)
    _apply(view, 30)
    return checkpoints, view


def _fsyncs_of_a_publish(root: Path) -> int:
    checkpoints, view = _about_to_publish(root)
    found: list[Path] = []
    with files.watched(lambda operation, path: found.append(path) if operation == "fsync" else None):
        checkpoints.publish(view, 0, QUANTIZER)
    return len(found)


def test_after_a_failed_fsync_the_process_writes_nothing_and_the_next_one_goes_on(
    new_root: Callable[[], Path],
) -> None:
    fsyncs = _fsyncs_of_a_publish(new_root())
    assert fsyncs >= 6
    for number in range(fsyncs):
        root = new_root()
        checkpoints, view = _about_to_publish(root)
        before = _state(root)
        _in_a_process(partial(_assert_writes_nothing_after_fsync, number, checkpoints, view))
        assert _state(root)[0] in (before[0], view.partitions[0].position)
        heir, again = _owner(root, grace_s=0)
        _apply(again, 30)
        heir.publish(again, 0)
        heir.remove_obsolete()
        assert _unnamed(heir, again) == set()


def _assert_writes_nothing_after_fsync(number: int, checkpoints: Checkpoints, view: View) -> None:
    """In a process of its own: the fsync with this number fails, and what comes after it touches nothing."""
    with files.watched(Failing(number, errno.EIO, ("fsync",))), pytest.raises(FsyncFailed, match="until this process"):
        checkpoints.publish(view, 0, QUANTIZER)
    names = sorted(checkpoints.directory.rglob("*"))
    other = Checkpoints(checkpoints.directory, COLLECTION, "g000001", 1)
    attempts: list[Callable[[], object]] = [
        lambda: checkpoints.publish(view, 0, QUANTIZER),
        lambda: other.claim(TOPIC, None, 0),
        lambda: generation.served(checkpoints.directory, COLLECTION),
        lambda: files.replace(checkpoints.directory / "file", b""),
    ]
    for attempt in attempts:
        with pytest.raises(FsyncFailed, match="until this process is restarted"):
            attempt()
    assert sorted(checkpoints.directory.rglob("*")) == names


# -- a disk that is full ---------------------------------------------------------------------------------------


def _fill(path: Path, but: int) -> None:
    """Leave so many bytes of the disk free."""
    path.write_bytes(bytes(shutil.disk_usage(path.parent).free - but))


def test_a_full_disk_is_told_and_keeps_the_last_checkpoint_until_there_is_room(small_disk: Path) -> None:
    checkpoints, view = _owner(small_disk)
    _apply(view, 300)
    checkpoints.publish(view, 0, QUANTIZER)
    before = _state(small_disk)
    ballast = small_disk / "ballast"
    _fill(ballast, 8192)
    _apply(view, 3_000)
    for _ in range(3):
        with pytest.raises(StoreFull, match=r"No space left on device \(0\.\d MiB are free\): make room"):
            checkpoints.publish(view, 0, QUANTIZER)
        assert _state(small_disk) == before
        assert _unnamed(checkpoints, view) == set()
    ballast.unlink()
    checkpoints.publish(view, 0, QUANTIZER)
    assert _state(small_disk) == _state_of(view)


def test_a_full_disk_is_given_back_what_is_obsolete_and_the_checkpoint_passes(small_disk: Path) -> None:
    checkpoints, view = _owner(small_disk, grace_s=0)
    for _ in range(6):
        _apply(view, 30)
        checkpoints.publish(view, 0, QUANTIZER)
    oldest = checkpoints.directory / layout.manifest_name(checkpoints.versions()[0])
    orphan = checkpoints.directory / layout.segment_name(0, 1)
    orphan.mkdir()
    _fill(orphan / layout.VECTORS, 0)
    _apply(view, 300)
    checkpoints.publish(view, 0, QUANTIZER)
    assert not orphan.exists() and not oldest.exists()
    assert _state(small_disk) == _state_of(view)


def test_who_takes_over_on_a_full_disk_is_given_back_what_a_dead_writer_left(small_disk: Path) -> None:
    checkpoints, view = _owner(small_disk)
    _apply(view, 30)
    checkpoints.publish(view, 0, QUANTIZER)
    orphan = checkpoints.directory / layout.segment_name(1, 99)
    orphan.mkdir()
    _fill(orphan / layout.VECTORS, 0)
    heir, _ = _owner(small_disk)
    assert not orphan.exists()
    assert heir.epoch == 2


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_a_segment_that_finds_no_room_leaves_nothing_however_much_there_was(small_disk: Path, kind: IndexKind) -> None:
    rows, parameters = rows_of(embeddings(600, 16)), IndexParameters(kind=kind, ann_rows_min=64)
    quantizer = quantizer_of(16)
    write_segment(small_disk / "s", rows, "l2", parameters, 1, quantizer)
    size = sum(-(-path.stat().st_size // 4096) * 4096 for path in (small_disk / "s").iterdir())
    shutil.rmtree(small_disk / "s")
    ballast = small_disk / "ballast"
    for room in (size - 4096, size // 2, 3 * 4096, 4096):
        _fill(ballast, room)
        with pytest.raises(StoreFull):
            write_segment(small_disk / "s", rows, "l2", parameters, 1, quantizer)
        assert list(small_disk.iterdir()) == [ballast]
        ballast.unlink()
