"""What may go from a partition's directory: manifests past their grace, and files that no manifest names.

Invariants: the newest manifests stay, whatever their age; an older one stays for the grace, counted from when a
newer one took its place among them, so who has just read it finds its files; a file stays as long as any manifest
here names it. A file's own age never counts. Nothing of a higher epoch is touched: its writer came after us.
Who calls this holds the fence.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from tidemark import files, layout
from tidemark.caught_up import now_ms
from tidemark.crash_point import reach
from tidemark.errors import CorruptCheckpoint, NewerFormat, StoreUnavailable
from tidemark.manifest import Manifest, parse
from tidemark.segment_files import remove_segment_files

logger = logging.getLogger(__name__)

MANIFESTS_KEPT = 3
# A writer has its temporary file for the time of a write and an fsync; claims by others may be under way.
TEMPORARY_S = 60.0


def remove(directory: Path, epoch: int, grace_s: float, keep: Collection[str]) -> list[str]:
    """Remove what is obsolete; the names of what is gone. `keep`: segments, and files in some, that are new."""
    try:
        manifests = _manifests(directory)
    except NewerFormat:
        return []
    removed = _remove_each(directory, _past_grace(manifests, grace_s))
    removed += _remove_each(directory, _marks_below(directory, epoch))
    reach("manifests-removed")
    left = [manifest for version, manifest in manifests.items() if layout.manifest_name(version) not in removed]
    named = _named(left)
    if named is not None:  # what a damaged manifest names is not known: its files stay
        removed += _remove_each(directory, _unnamed(directory, epoch, named, keep))
    return removed


def _manifests(directory: Path) -> dict[int, Manifest | None]:
    """By version, oldest first; None for a damaged one."""
    found: dict[int, Manifest | None] = {}
    for version in sorted(v for name in files.names(directory) if (v := layout.manifest_version(name)) is not None):
        path = directory / layout.manifest_name(version)
        try:
            found[version] = parse(files.read(path), str(path))
        except FileNotFoundError:
            continue
        except CorruptCheckpoint:
            found[version] = None
    return found


def _past_grace(manifests: dict[int, Manifest | None], grace_s: float) -> list[str]:
    """Manifests that a newer one made obsolete longer ago than the grace."""
    every = list(manifests.items())
    before_ms = now_ms() - 1000 * grace_s
    found = []
    for n, (version, _) in enumerate(every[:-MANIFESTS_KEPT]):
        # The least of all: a clock that was ahead for a time would keep what was written then until it is that late.
        newer = (m.created_ms for _, m in every[n + MANIFESTS_KEPT :] if m is not None)
        if min(newer, default=now_ms()) <= before_ms:
            found.append(layout.manifest_name(version))
    return found


def _marks_below(directory: Path, epoch: int) -> list[str]:
    return [name for name in files.names(directory) if (mark := layout.mark_epoch(name)) is not None and mark < epoch]


def _named(manifests: Iterable[Manifest | None]) -> set[str] | None:
    """Segments, and `segment/file` of dead rows and codes, that the manifests name; None when one is damaged."""
    named: set[str] = set()
    for manifest in manifests:
        if manifest is None:
            return None
        named |= {entry.name for entry in manifest.segments}
        named |= {f"{entry.name}/{name}" for entry in manifest.segments for name in entry.files}
    return named


def _unnamed(directory: Path, epoch: int, named: Collection[str], keep: Collection[str]) -> list[str]:
    """Segments, and files that were added to some, of this epoch or an older one that are not named; temporary files.

    Into a segment that no manifest names yet nobody looks: it is being written.
    """
    found = []
    for name in files.names(directory):
        segment_epoch = layout.segment_epoch(name)
        if segment_epoch is None:
            found += [name] if name.endswith(".tmp") and _is_left_behind(directory / name) else []
        elif name in named:
            found += [each for each in _added(directory, name, epoch) if each not in named and each not in keep]
        elif segment_epoch <= epoch and name not in keep:
            found.append(name)
    return found


def _added(directory: Path, segment: str, epoch: int) -> list[str]:
    """Files of dead rows and codes in a segment, by writers of this epoch or an older one."""
    epochs = {name: _added_epoch(name) for name in files.names(directory / segment)}
    return [f"{segment}/{name}" for name, found in epochs.items() if found is not None and found <= epoch]


def _added_epoch(name: str) -> int | None:
    found = layout.dead_rows_epoch(name)
    return layout.codes_epoch(name) if found is None else found


def _is_left_behind(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - TEMPORARY_S
    except OSError:  # its writer has just finished with it, or it is looked at again the next time
        return False


def _remove_each(directory: Path, names: Iterable[str]) -> list[str]:
    """Remove files and segments one by one; what cannot be removed is said and tried again the next time."""
    removed = []
    for name in names:
        path = directory / name
        action: Callable[[Path], None] = (
            remove_segment_files if layout.segment_epoch(name) is not None else files.remove
        )
        try:
            action(path)
            removed.append(name)
        except StoreUnavailable as error:
            logger.warning("obsolete, and not removed: %s", error)
    return removed
