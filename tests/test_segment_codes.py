"""Codes of a segment's rows: written with it or beside it later, read back, refused when damaged."""

import errno
import os
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from tests.rows import FLAT, embeddings, quantizer_of, rows_of, segment_of
from tests.test_segment import DAMAGE
from tidemark import files, segment_files
from tidemark.ann.quantizer import OUTLIER, Encoded
from tidemark.errors import CorruptCheckpoint, StoreUnavailable
from tidemark.part_codes import Used, codes_of
from tidemark.segment import Segment
from tidemark.segment_files import joined, write_codes, write_segment

QUANTIZER = quantizer_of(8)


def _coded(directory: Path, count: int = 300) -> Segment:
    entry = write_segment(directory, rows_of(embeddings(count, 8, seed=5)), "l2", FLAT, 1, QUANTIZER)
    return Segment(directory, entry, 8, "l2")


def _assert_codes(segment: Segment, expected: Encoded) -> None:
    assert segment.codes is not None
    lists, codes = segment.codes
    assert (lists.dtype, codes.dtype) == (np.uint32, np.uint8)
    assert np.array_equal(lists, expected.lists) and np.array_equal(codes, expected.codes)


def test_codes_are_read_back_as_they_were_written_with_their_segment(tmp_path: Path) -> None:
    segment = _coded(tmp_path / "s")
    expected = QUANTIZER.quantizer.encode(embeddings(300, 8, seed=5))
    _assert_codes(segment, expected)
    assert (segment.entry.codes_file, segment.entry.quantizer) == ("codes-000001.u8", 1)
    assert segment.entry.error == expected.error > 0
    assert (tmp_path / "s" / "codes-000001.u8").stat().st_size == 300 * (4 + QUANTIZER.quantizer.code_bytes)


def test_without_a_quantizer_a_segment_has_no_codes(tmp_path: Path) -> None:
    assert segment_of(tmp_path / "s", embeddings(10, 8)).codes is None


def test_codes_that_are_given_are_written_as_they_are(tmp_path: Path) -> None:
    rows = rows_of(embeddings(5, 8))
    code_bytes = QUANTIZER.quantizer.code_bytes
    given = Encoded(np.array([0, 1, 2, OUTLIER, 3], np.uint32), np.full((5, code_bytes), 7, np.uint8), 0.5)
    entry = write_segment(tmp_path / "s", rows, "l2", FLAT, 1, QUANTIZER, given)
    _assert_codes(Segment(tmp_path / "s", entry, 8, "l2"), given)
    assert (entry.error, entry.outliers) == (0.5, 1)


def test_codes_are_added_beside_a_segment_and_the_ones_before_stay_for_who_reads_them(tmp_path: Path) -> None:
    segment, second = _coded(tmp_path / "s"), quantizer_of(8, version=2)
    before = segment.entry
    written = write_codes(tmp_path / "s", "codes-000002-000001-000001.u8", segment.vectors, second)
    segment.entry = segment.entry.with_codes(written)
    _assert_codes(segment, second.quantizer.encode(embeddings(300, 8, seed=5)))
    _assert_codes(Segment(tmp_path / "s", segment.entry, 8, "l2"), second.quantizer.encode(embeddings(300, 8, seed=5)))
    _assert_codes(Segment(tmp_path / "s", before, 8, "l2"), QUANTIZER.quantizer.encode(embeddings(300, 8, seed=5)))
    with pytest.raises(StoreUnavailable):  # created, never written over
        write_codes(tmp_path / "s", "codes-000002-000001-000001.u8", segment.vectors, second)
    Segment(tmp_path / "s", segment.entry, 8, "l2")


def test_codes_are_taken_as_one_entry_says_although_another_takes_its_place_meanwhile(tmp_path: Path) -> None:
    """Another thread may give a segment the codes of a newer version at any time: here at the second look."""
    segment, second = _coded(tmp_path / "s"), quantizer_of(8, version=2)
    written = write_codes(tmp_path / "s", "codes-000002-000001-000001.u8", segment.vectors, second)
    looks = chain([segment.entry], repeat(segment.entry.with_codes(written)))

    class Replaced(Segment):
        entry = property(lambda self: next(looks), lambda self, entry: None)  # type: ignore[assignment]

    opened = Replaced.__new__(Replaced)
    opened.__dict__.update(segment.__dict__)
    expected = QUANTIZER.quantizer.encode(segment.vectors)
    coded, _ = codes_of(opened, Used(QUANTIZER.quantizer, 1))
    assert np.array_equal(coded.lists, expected.lists) and np.array_equal(coded.codes, expected.codes)


def test_rows_are_encoded_in_pieces_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = embeddings(1_000, 8)
    at_once = QUANTIZER.quantizer.encode(vectors)
    monkeypatch.setattr(segment_files, "ENCODED_NUMBERS", 8 * 300)
    pieces = segment_files.encode(QUANTIZER.quantizer, vectors)
    assert np.array_equal(pieces.lists, at_once.lists) and np.array_equal(pieces.codes, at_once.codes)
    assert pieces.error == pytest.approx(at_once.error, rel=0.05)


def test_the_error_of_joined_codes_is_that_of_their_rows() -> None:
    one, three = (Encoded(np.zeros(n, np.uint32), np.zeros((n, 2), np.uint8), float(n)) for n in (1, 3))
    assert joined([one, three]).error == 2.5


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_codes_are_refused_as_any_other_file(tmp_path: Path, damage: str) -> None:
    segment = _coded(tmp_path / "s")
    assert segment.entry.codes_file is not None
    path = tmp_path / "s" / segment.entry.codes_file
    path.write_bytes(DAMAGE[damage](bytearray(path.read_bytes())))
    with pytest.raises(CorruptCheckpoint, match=path.name):
        Segment(tmp_path / "s", segment.entry, 8, "l2")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_whichever_operation_of_adding_codes_fails_nothing_half_is_left(
    new_root: Callable[[], Path], number: int
) -> None:
    for failing in range(100):
        directory, left = new_root() / "s", failing
        segment = segment_of(directory, embeddings(50, 8))
        before = sorted(directory.iterdir())

        def fail(operation: str, path: Path) -> None:
            nonlocal left
            left -= operation != "fsync"
            if left < 0 and operation != "fsync":
                raise OSError(number, os.strerror(number), str(path))

        try:
            with files.watched(fail):
                write_codes(directory, "codes-000001-000001-000001.u8", segment.vectors, QUANTIZER)
            break
        except StoreUnavailable:
            pass
        assert sorted(directory.iterdir()) == before
    assert failing >= 2
