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
    if _unsynced is not None:
        raise FsyncFailed(_unsynced)
    with operation(name, path):
        yield


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


def fsync_file(path: Path) -> None:
    _fsync(path, os.O_RDONLY)


def fsync_directory(path: Path) -> None:
    _fsync(path, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    global _unsynced
    with changing("opening", path):
        descriptor = os.open(path, flags)
    try:
        with changing("fsync", path):
            os.fsync(descriptor)
    except StoreUnavailable as error:
        _unsynced = f"{error}; nothing is written any more until this process is restarted"
        raise FsyncFailed(_unsynced) from error
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, durably; fine when it is there."""
    with operation("looking for", path):
        missing = [directory for directory in (path, *path.parents) if not directory.exists()]
    for directory in reversed(missing):
        with changing("mkdir", directory):
            directory.mkdir(exist_ok=True)
        fsync_directory(directory.parent)


def write(path: Path, data: bytes | memoryview) -> None:
    """Write a new file and fsync it; a file that is there already is an error. Its name is not durable yet."""
    with writing(path), path.open("xb") as file:
        file.write(data)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a new file is written: fsynced at the end, removed when that fails."""
    try:
        with changing("writing", path):
            yield
        fsync_file(path)
    except StoreUnavailable:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def create(path: Path, data: bytes) -> bool:
    """Create a file durably under a name that nobody has; False when the name is taken."""
    temporary = _write_temporary(path, data)
    reach("temporary-written")
    try:
        with changing("link", path):
            if not _linked(temporary, path):
                return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    reach("linked")
    fsync_directory(path.parent)
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
    with changing("creating", path):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return False
    fsync_directory(path.parent)
    return True


def replace(path: Path, data: bytes) -> None:
    """Put a file in the place of another, atomically and durably."""
    temporary = _write_temporary(path, data)
    try:
        with changing("rename", path):
            os.replace(temporary, path)
    except StoreUnavailable:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    fsync_directory(path.parent)


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
