"""Durable files: a name appears once, whole, and leaves nothing beside it."""

import errno
import os
from pathlib import Path

import pytest

from tidemark import files
from tidemark.errors import StoreUnavailable


def test_a_file_is_created_only_under_a_free_name(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "manifest"
    assert files.create(path, b"one")
    assert not files.create(path, b"two")
    assert path.read_bytes() == b"one"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_replaced_and_no_temporary_is_left(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    for data in (b"one", b"", b"three"):
        files.replace(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_has_one_holder_who_is_named(tmp_path: Path) -> None:
    lock = files.DirectoryLock(tmp_path / "store", "the first")
    with pytest.raises(StoreUnavailable, match="the first"):
        files.DirectoryLock(tmp_path / "store", "the second")
    lock.close()
    files.DirectoryLock(tmp_path / "store", "the second").close()


def test_a_store_that_is_not_a_directory_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StoreUnavailable, match="not writable"):
        files.DirectoryLock(tmp_path, "us")


def test_every_directory_made_is_durable_in_the_one_above_it(tmp_path: Path) -> None:
    done: list[tuple[str, Path]] = []
    with files.watched(lambda operation, path: done.append((operation, path))):
        files.create(tmp_path / "docs" / "g000001" / "p0" / "manifest", b"one")
    made = [path for operation, path in done if operation == "mkdir"]
    assert made == [tmp_path / "docs", tmp_path / "docs" / "g000001", tmp_path / "docs" / "g000001" / "p0"]
    linked = done.index(("link", tmp_path / "docs" / "g000001" / "p0" / "manifest"))
    for directory in made:
        synced = done.index(("fsync", directory.parent), done.index(("mkdir", directory)))
        assert synced < linked  # before anything in it counts


def test_a_full_disk_is_said_with_what_is_free_and_a_refusal_with_whose_it_has_to_be(tmp_path: Path) -> None:
    for number, said in (
        (errno.ENOSPC, r"No space left on device \([\d,.]+ MiB are free\): make room"),
        (errno.EDQUOT, r"Disk quota exceeded \([\d,.]+ MiB are free\): make room or raise the limit"),
        (errno.EROFS, r"Read-only file system: make it writable for uid \d+"),
        (errno.EIO, r"Input/output error: see to the disk"),
    ):

        def fail(operation: str, path: Path, number: int = number) -> None:
            if operation == "writing":
                raise OSError(number, os.strerror(number))

        with files.watched(fail), pytest.raises(StoreUnavailable, match=said) as told:
            files.create(tmp_path / "manifest", b"one")
        assert str(tmp_path) in str(told.value)
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_finds_no_room_says_so(tmp_path: Path) -> None:
    def fail(operation: str, path: Path) -> None:
        if operation == "locking":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with files.watched(fail), pytest.raises(StoreUnavailable, match=r"locking of .* failed: No space left on device"):
        files.DirectoryLock(tmp_path, "us")
    files.DirectoryLock(tmp_path, "us").close()
