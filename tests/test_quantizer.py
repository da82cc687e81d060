"""The quantizer: any rows train one, it survives being written, and its codes do not depend on who makes them."""

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tests.searching import all_alive, filled, nearest
from tidemark.ann import exact
from tidemark.ann.open_lists import OpenLists
from tidemark.ann.quantizer import OUTLIER, ROWS_LEAST, Quantizer
from tidemark.collection import Metric

TARGET = 0.95


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("dimension", [1, 2, 17, 32])
def test_what_was_written_codes_and_searches_alike(metric: Metric, dimension: int) -> None:
    rows = embeddings(3_000, dimension, rank=min(8, dimension))
    rows = rows if metric == "l2" else unit(rows)
    quantizer = Quantizer.train(rows, metric, 3_000, TARGET, seed=1)
    read = Quantizer.from_bytes(quantizer.to_bytes())
    for name in ("dimension", "metric", "lists", "code_bytes", "row_count", "parameters", "error", "recall_target"):
        assert getattr(read, name) == getattr(quantizer, name)
    ours, theirs = quantizer.encode(rows), read.encode(rows)
    assert (ours.lists == theirs.lists).all() and (ours.codes == theirs.codes).all() and ours.error == theirs.error
    assert read.to_bytes() == quantizer.to_bytes() and read.identity == quantizer.identity
    found = [
        nearest(OpenLists(each, filled(each, rows)), rows, rows[:9], 5, all_alive(3_000)) for each in (quantizer, read)
    ]
    assert (found[0] == found[1]).all()


def test_the_same_sample_in_any_order_and_the_same_seed_train_as_well() -> None:
    rows = embeddings(6_000, 16)
    by_number = Quantizer.train(rows[np.argsort(rows[:, 0])], "l2", 6_000, TARGET, seed=1)
    assert by_number.error <= 1.05 * Quantizer.train(rows, "l2", 6_000, TARGET, seed=1).error
    assert (
        Quantizer.train(rows, "l2", 6_000, TARGET, seed=1).to_bytes()
        == Quantizer.train(rows, "l2", 6_000, TARGET, seed=1).to_bytes()
    )


def test_lists_are_as_many_as_the_rows_of_the_collection_ask_for_and_the_sample_allows() -> None:
    rows = embeddings(6_000, 8)
    assert Quantizer.train(rows, "l2", 1_000, TARGET, seed=1).lists == 126
    assert Quantizer.train(rows, "l2", 10**6, TARGET, seed=1).lists == 150
    assert Quantizer.train(rows, "l2", 10**6, TARGET, seed=1, nlist=7).lists == 7


def odd_rows() -> dict[str, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return {
        "zeros": np.zeros((3_000, 8)),
        "equal": np.full((ROWS_LEAST, 5), 7),
        "equal but for a few": np.concatenate([np.ones((2_990, 3)), rng.normal(size=(10, 3))]),
        "three numbers": rng.integers(0, 3, (5_000, 1)).astype(np.float64),
        "one dimension": rng.normal(size=(5_000, 1)),
        "bits": rng.integers(0, 2, (4_000, 16)).astype(np.float64),
        "longest": 3e17 * rng.normal(size=(3_000, 4)),
        "shortest": 1e-38 * rng.normal(size=(3_000, 4)),
        "of all lengths": 10.0 ** rng.uniform(-30, 17, (3_000, 1)) * rng.normal(size=(3_000, 4)),
        "half far out": np.concatenate([rng.normal(size=(1_500, 4)), 1e15 * rng.normal(size=(1_500, 4))]),
        "far from the origin": 1e4 + rng.normal(size=(12_000, 7)),
        "at 1e15 from the origin": 1e15 + 1e9 * rng.normal(size=(12_000, 4)),
        "sorted": np.sort(rng.normal(size=(12_000, 4)), axis=0) + rng.normal(size=(12_000, 4)),
        "few": rng.normal(size=(ROWS_LEAST, 3)),
        "wide": rng.normal(size=(ROWS_LEAST, 4_096)),
        "odd and wide": rng.normal(size=(500, 4_095)),
    }


@pytest.mark.parametrize("metric", ["l2", "ip"])
@pytest.mark.parametrize("name", odd_rows())
def test_any_rows_train_one_that_says_its_recall(metric: Metric, name: str) -> None:
    rows = odd_rows()[name].astype(np.float32)
    quantizer = Quantizer.train(rows, metric, len(rows), 0.97, seed=1)
    queries = np.ascontiguousarray(rows[:20])
    found = nearest(OpenLists(quantizer, filled(quantizer, rows)), rows, queries, 10, all_alive(len(rows)))
    assert all(len(set(line)) == 10 and min(line) >= 0 for line in found.tolist())
    distances = exact.rank(rows, queries, found, metric)
    assert np.isfinite(distances).all()
    worst = np.sort(exact.exact_search(rows, queries, 10, metric)[0], axis=1)[:, -1 if metric == "l2" else 0][:, None]
    near = distances <= worst * (1 + 1e-5) if metric == "l2" else distances >= worst - 1e-5 * np.abs(worst)
    assert near.mean() >= quantizer.parameters.recall - 0.15
    assert quantizer.parameters.recall >= 0.97 or name in ("of all lengths", "wide", "odd and wide")


def test_one_row_is_coded_as_in_a_batch_but_for_its_list() -> None:
    rows = embeddings(4_000, 24)
    quantizer = Quantizer.train(rows, "l2", 10**6, TARGET, seed=1)
    together = quantizer.encode(rows[:50])
    alone = [quantizer.encode(rows[number : number + 1]) for number in range(50)]
    assert (np.concatenate([each.codes for each in alone]) == together.codes).all()
    assert np.mean(np.concatenate([each.lists for each in alone]) == together.lists) >= 0.9


def test_rows_unlike_the_sample_are_coded_with_a_larger_error_and_far_ones_not_at_all() -> None:
    rows = embeddings(4_000, 24)
    quantizer = Quantizer.train(rows, "l2", 4_000, TARGET, seed=1)
    assert quantizer.encode(rows).error == pytest.approx(quantizer.error, rel=0.1)
    assert quantizer.encode(rows[:, ::-1]).error > 1.3 * quantizer.error
    far = quantizer.encode(rows[:3] * np.float32(1e6))
    assert (far.lists == OUTLIER).all() and not far.codes.any() and far.error == 0
    none = quantizer.encode(rows[:0])
    assert none.lists.shape == (0,) and none.codes.shape == (0, quantizer.code_bytes)
