"""The quantizers of a generation: made once, found by all, never used when damaged, their numbers never used twice."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from tests.rows import embeddings, quantizer_of
from tidemark import files, layout
from tidemark.collection import Collection
from tidemark.errors import CorruptCheckpoint, NewerFormat, StoreFull, StoreUnavailable
from tidemark.quantizers import KEPT, Quantizers

COLLECTION = Collection("docs", "docs", 8, "l2")


def _quantizers(root: Path, collection: Collection = COLLECTION) -> Quantizers:
    return Quantizers(root, collection, "g000001")


def _path(root: Path, version: int) -> Path:
    return root / "docs" / "g000001" / layout.quantizer_name(version)


def _made(root: Path, count: int) -> Quantizers:
    made = _quantizers(root)
    quantizer = quantizer_of(8).quantizer
    for version in range(1, count + 1):
        assert made.create(version, quantizer)
    return made


def test_a_quantizer_is_read_back_and_codes_as_the_one_that_was_made(tmp_path: Path) -> None:
    assert _quantizers(tmp_path).newest() is None
    first, second = quantizer_of(8, version=1), quantizer_of(8, version=2)
    assert _quantizers(tmp_path).create(*first)
    assert _quantizers(tmp_path).create(*second)
    found = _quantizers(tmp_path).newest()
    assert found is not None and found.version == 2
    vectors = embeddings(100, 8, seed=3)
    ours, theirs = second.quantizer.encode(vectors), found.quantizer.encode(vectors)
    assert (ours.lists.tobytes(), ours.codes.tobytes()) == (theirs.lists.tobytes(), theirs.codes.tobytes())
    assert found.quantizer.to_bytes() == second.quantizer.to_bytes()
    assert _quantizers(tmp_path).read(1).to_bytes() == first.quantizer.to_bytes()
    assert _quantizers(tmp_path).newest(found) is None


def test_of_eight_who_make_the_same_version_at_once_one_wins_and_all_find_its(tmp_path: Path) -> None:
    start, won = threading.Barrier(8), []
    made = [quantizer_of(8, version=seed).quantizer for seed in range(1, 9)]

    def create(seed: int) -> None:
        start.wait()
        if _quantizers(tmp_path).create(1, made[seed]):
            won.append(seed)

    threads = [threading.Thread(target=create, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert _quantizers(tmp_path).read(1).to_bytes() == made[won[0]].to_bytes()
    assert not list(tmp_path.rglob("*.tmp"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "middle byte": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
    "last byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "cut by one": lambda data: data[:-1],
    "empty": lambda data: b"",
    "short": lambda data: data[:7],
    "zeros": lambda data: bytes(len(data)),
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_quantizer_is_passed_over_for_the_one_before_and_said(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = _made(tmp_path, 2)
    path = _path(tmp_path, 2)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(CorruptCheckpoint, match=path.name):
        made.read(2)
    found = made.newest()
    assert found is not None and found.version == 1
    assert "quantizer passed over" in caplog.text and path.name in caplog.text
    assert made.newest(found) is None
    assert made.versions() == [1, 2]  # its number stays taken


def test_a_quantizer_of_a_newer_version_of_the_program_is_not_called_damaged(tmp_path: Path) -> None:
    made = _made(tmp_path, 2)
    content = _path(tmp_path, 2).read_bytes()[:-16].replace(b"quantizer 1\n", b"quantizer 2\n")
    _path(tmp_path, 2).write_bytes(content + xxhash.xxh3_128_digest(content))
    with pytest.raises(NewerFormat):
        made.read(2)
    found = made.newest()
    assert found is not None and found.version == 1


def test_a_quantizer_of_another_dimension_is_not_used(tmp_path: Path) -> None:
    _made(tmp_path, 1)
    with pytest.raises(CorruptCheckpoint, match="is of 8 dimensions, the collection has 9"):
        _quantizers(tmp_path, Collection("docs", "docs", 9, "l2")).read(1)


def test_of_old_versions_only_the_numbers_stay_and_are_never_used_again(tmp_path: Path) -> None:
    made = _made(tmp_path, KEPT + 2)
    made.remove_old()
    made.remove_old()
    assert [_path(tmp_path, version).stat().st_size > 0 for version in made.versions()] == [False] * 2 + [True] * KEPT
    assert not made.create(1, quantizer_of(8).quantizer)
    with pytest.raises(CorruptCheckpoint):
        made.read(1)
    found = made.newest()
    assert found is not None and found.version == KEPT + 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_operation_of_making_one_fails_nothing_half_is_left_and_the_next_try_passes(
    new_root: Callable[[], Path], number: int
) -> None:
    quantizer = quantizer_of(8).quantizer
    for failing in range(100):
        root, left = new_root(), failing

        def fail(operation: str, path: Path) -> None:
            nonlocal left
            left -= operation != "fsync"
            if left < 0 and operation != "fsync":
                raise OSError(number, os.strerror(number), str(path))

        made = _quantizers(root)
        try:
            with files.watched(fail):
                assert made.create(1, quantizer)
            break
        except StoreUnavailable as error:
            assert isinstance(error, StoreFull) == (number == errno.ENOSPC)
        assert made.newest() is None
        assert not list(root.rglob("*.tmp"))
        assert made.create(1, quantizer)
    assert failing >= 4


def test_in_a_directory_begun_again_a_quantizer_of_a_number_known_or_a_lower_one_is_newer(tmp_path: Path) -> None:
    made = _made(tmp_path, 3)
    known = made.newest()
    assert known is not None and known.version == 3 and made.newest(known) is None
    for path in (tmp_path / "docs" / "g000001").iterdir():
        path.unlink()
    assert made.newest(known) is None
    first, third = (quantizer_of(8, version=seed).quantizer for seed in (11, 13))
    assert made.create(1, first)
    found = made.newest(known)
    assert found is not None and (found.version, found.quantizer.identity) == (1, first.identity)
    assert made.newest(found) is None
    assert made.create(2, first) and made.create(3, third)
    found = made.newest(known)
    assert found is not None and (found.version, found.quantizer.identity) == (3, third.identity)
    for version in range(4, 4 + KEPT):
        assert made.create(version, first)
    made.remove_old()
    newer = made.newest(found)
    assert newer is not None and newer.version == 3 + KEPT
    assert made.newest(newer) is None


def test_a_disk_that_cannot_be_read_is_not_taken_for_damage(tmp_path: Path) -> None:
    made = _made(tmp_path, 2)

    def fail(operation: str, path: Path) -> None:
        if operation == "reading" and path.name == layout.quantizer_name(2):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with files.watched(fail), pytest.raises(StoreUnavailable):
        made.newest()
