"""Copies of rows: which are left out, and that rows which differ never are for want of bytes to tell them apart."""

import numpy as np
import pytest

from tidemark.ann import copies
from tidemark.ann.copies import surplus_copies


@pytest.mark.parametrize("dimension", [1, 3, 130])
@pytest.mark.parametrize("block", [64, copies.BLOCK_NUMBERS])
def test_all_but_the_first_few_of_equal_rows_are_given(
    dimension: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "BLOCK_NUMBERS", block)
    rng = np.random.default_rng(0)
    which = rng.integers(40, size=500)
    rows = rng.standard_normal((40, dimension)).astype(np.float32)[which]
    expected = [row for row in range(500) if np.count_nonzero(which[:row] == which[row]) >= 5]
    assert surplus_copies(rows, most=5, least=0).tolist() == expected


def test_zeros_of_either_sign_are_equal() -> None:
    assert surplus_copies(np.array([[0.0], [-0.0], [1]], np.float32), most=1, least=0).tolist() == [1]


def test_rows_that_all_differ_are_kept() -> None:
    assert not len(surplus_copies(np.eye(200, dtype=np.float32), most=1, least=0))


def test_so_many_rows_are_left_as_a_graph_needs() -> None:
    assert len(surplus_copies(np.ones((500, 4), np.float32), most=16, least=64)) == 500 - 64
    assert len(surplus_copies(np.ones((50, 4), np.float32), most=16, least=64)) == 0
