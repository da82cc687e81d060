"""Durable files: a name appears once, whole, and leaves nothing beside it."""

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
