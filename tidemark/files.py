"""Durable files in a directory: fsync, create-if-absent by link, atomic replace, and the directory lock.

Invariants: a name appears only when the bytes under it are durable; what a failed write has begun is removed. An
OSError is StoreUnavailable, with the path and what to do. After a failed fsync nobody knows what is on the disk (the
kernel may have dropped the pages), so the process writes nothing durable any more: every later attempt is FsyncFailed.
Knows nothing of what the files mean.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tidemark.crash_point import reach
from tidemark.errors import FsyncFailed, StoreFull, StoreUnavailable

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)

# What has failed to reach the disk, and why: no durable write of this process may follow.
_unsynced: str | None = None
# Who is told of each operation just before it: a test, which may raise an OSError or let another thread go first.
_watcher: Callable[[str, Path], None] | None = None


@contextlib.contextmanager
def watched(watcher: Callable[[str, Path], None]) -> Iterator[None]:
    """Tell `watcher(operation, path)` of each operation of this module before it happens; for tests."""
    global _watcher
    _watcher = watcher
    try:
        yield
    finally:
        _watcher = None


@contextlib.contextmanager
def operation(name: str, path: Path) -> Iterator[None]:
    """One use of the disk: an OSError in it is StoreUnavailable."""
    try:
        _tell(name, path)
        yield
    except OSError as error:
        raise unavailable(name, path, error) from error


def _tell(name: str, path: Path) -> None:
    if _watcher is not None:
        _watcher(name, path)


@contextlib.contextmanager
def changing(name: str, path: Path) -> Iterator[None]:
    """One change that is to be durable; FsyncFailed when an earlier one was not."""
    check_synced()
    with operation(name, path):
        yield


def check_synced() -> None:
    """Raise FsyncFailed when something of this process may not have reached the disk."""
    if _unsynced is not None:
        raise FsyncFailed(_unsynced)


def unavailable(name: str, path: Path, error: OSError) -> StoreUnavailable:
    """The error an operator can act on: what failed where, and what to do."""
    failed = f"{name} of {path} failed: {error.strerror or error}"
    if error.errno in _FULL:
        return StoreFull(f"{failed} ({_free(path)}): make room or raise the limit; it is tried again by itself")
    if error.errno in _REFUSED:
        return StoreUnavailable(f"{failed}: make it writable for uid {os.geteuid()}, or choose another directory")
    return StoreUnavailable(f"{failed}: see to the disk; what is stored was not judged and is as it was")


def _free(path: Path) -> str:
    for parent in path.parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(parent).free / 2**20:,.1f} MiB are free"
    return "how much is free is not known"


# -- read ----------------------------------------------------------------------------------------------------


def names(directory: Path) -> list[str]:
    """The names in a directory, none when it does not exist."""
    with operation("listing", directory):
        try:
            return os.listdir(directory)
        except FileNotFoundError:
            return []


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """While a file is read: raises FileNotFoundError when it is not there, StoreUnavailable for any other failure."""
    try:
        _tell("reading", path)
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unavailable("reading", path, error) from error


def read(path: Path) -> bytes:
    """All bytes of a file; raises as `reading` does."""
    with reading(path):
        return path.read_bytes()


# -- write ---------------------------------------------------------------------------------------------------


def fsync_directory(path: Path) -> None:
    with entering(path):
        pass


@contextlib.contextmanager
def entering(directory: Path) -> Iterator[None]:
    """While a name is put into a directory: opened before, fsynced after it, so that only the fsync can fail then."""
    with changing("opening", directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        _fsync(descriptor, directory)
    finally:
        os.close(descriptor)


def _fsync(descriptor: int, path: Path) -> None:
    global _unsynced
    try:
        with changing("fsync", path):
            os.fsync(descriptor)
    except FsyncFailed:
        raise
    except StoreUnavailable as error:
        _unsynced = f"{error}; nothing is written any more until this process is restarted"
        raise FsyncFailed(_unsynced) from error


def make_directory(path: Path) -> None:
    """Make a directory and those above it, durably; fine when it is there."""
    with operation("looking for", path):
        missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        with entering(directory.parent), changing("mkdir", directory):
            directory.mkdir(exist_ok=True)


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a new file with these bytes, as `writing` does."""
    with writing(path) as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file to write into: fsynced at the end, removed when something fails. Its name is not durable yet."""
    created = False
    try:
        with changing("writing", path), path.open("xb") as file:
            created = True
            yield file
            file.flush()
            _fsync(file.fileno(), path)
    except BaseException:
        if created:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def create(path: Path, data: bytes) -> bool:
    """Create a file durably under a name that nobody has; False when the name is taken."""
    temporary = _write_temporary(path, data)
    reach("temporary-written")
    try:
        with entering(path.parent):
            with changing("link", path):
                if not _linked(temporary, path):
                    return False
            reach("linked")
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return True


def _linked(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)  # unlike rename, link refuses to overwrite
    except FileExistsError:
        return False
    return True


def create_empty(path: Path) -> bool:
    """Create an empty file durably under a name that nobody has; False when the name is taken.

    It needs no block of the disk, so that it works where a full disk has no room for a file with bytes.
    """
    make_directory(path.parent)
    with entering(path.parent), changing("creating", path):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
    return True


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another, atomically and durably."""
    temporary = _write_temporary(path, data)
    try:
        with entering(path.parent), changing("rename", path):
            os.replace(temporary, path)
    except StoreUnavailable:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _write_temporary(path: Path, data: bytes) -> Path:
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    write(temporary, data)
    return temporary


def remove(path: Path) -> None:
    """Remove a file; fine when it is gone. Not durable by itself: after a power loss it may be there again."""
    with operation("removing", path):
        path.unlink(missing_ok=True)


class DirectoryLock:
    """An exclusive lock on a directory, held until closed or until the process ends."""

    def __init__(self, directory: Path, holder: str) -> None:
        path = directory / ".lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+")
        except OSError as error:
            if error.errno in _FULL:
                raise unavailable("locking", path, error) from error
            raise StoreUnavailable(
                f"{directory} is not writable for uid {os.geteuid()} ({error.strerror}): "
                "make it that user's, or choose another directory"
            ) from error
        try:
            with operation("locking", path):
                self._lock(directory, holder)
        except StoreUnavailable:
            self._file.close()
            raise

    def _lock(self, directory: Path, holder: str) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            other = self._file.read().strip() or "another process"
            raise StoreUnavailable(f"{directory} is in use by {other}: stop it, or use another directory") from None
        self._file.truncate(0)
        self._file.write(f"{holder} (pid {os.getpid()})")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
