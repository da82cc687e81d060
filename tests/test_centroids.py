"""Centroids: a row goes to the nearest or to one almost as near, and a query probes as many lists as it takes."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.rows import embeddings, unit
from tests.searching import filled, recall
from tidemark.ann import centroids, ivf
from tidemark.ann.centroids import Centroids, Occupancy
from tidemark.ann.exact import exact_search
from tidemark.ann.groups import Groups
from tidemark.ann.open_lists import OpenLists
from tidemark.ann.parameters import SearchParameters
from tidemark.ann.quantizer import Quantizer
from tidemark.collection import Metric

LISTS, TARGET = 300, 0.95


def rows_of(metric: Metric, count: int, dimension: int = 16) -> NDArray[np.float32]:
    rows = embeddings(count, dimension)
    return rows if metric == "l2" else unit(rows)


def full(lists: int) -> Occupancy:
    return Occupancy(np.full(lists, 50), np.zeros(lists, np.int64))


def probed(found: Centroids, queries: NDArray[np.float32], parameters: SearchParameters) -> NDArray[np.int64]:
    lists = found.within(np.ascontiguousarray(queries), parameters, full(found.lists))[0]
    return np.count_nonzero(lists >= 0, axis=1)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("count", [1, 30, 12_000])
@pytest.mark.parametrize("offset", [0, 1e3])
def test_a_row_goes_to_the_nearest_centroid_or_to_one_almost_as_near(metric: Metric, count: int, offset: float) -> None:
    rows = rows_of(metric, 12_000) + np.float32(offset if metric == "l2" else 0)
    vectors = ivf.train(rows, LISTS, metric, seed=0)
    given = Centroids(vectors, metric, Groups.of(vectors, metric)).assign(rows[:count])
    middle = np.float32(offset if metric == "l2" else 0)  # far from the origin FAISS is not exact
    best, nearest = exact_search(vectors - middle, rows[:count] - middle, 1, metric)
    assert (given == nearest[:, 0]).mean() > 0.9
    if metric == "l2":
        assert np.square(rows[:count] - vectors[given]).sum(axis=1).mean() <= 1.05 * best.mean()
    else:
        assert np.einsum("ij,ij->i", rows[:count], vectors[given]).mean() >= 0.98 * best.mean()


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_a_query_unlike_all_rows_probes_more_lists_and_is_answered_better_for_it(metric: Metric) -> None:
    rows = embeddings(20_000, 32, rank=20)
    rows = rows if metric == "l2" else unit(rows)
    quantizer = Quantizer.train(rows, metric, len(rows), TARGET, seed=1)
    lists, search = filled(quantizer, rows), quantizer.parameters
    strange = np.ascontiguousarray(embeddings(200, 32, seed=7)[:, ::-1])
    amid, far = (probed(quantizer.centroids, queries, search) for queries in (rows[::100], strange))
    assert far.mean() > 1.5 * amid.mean()
    assert max(*far, *amid) <= centroids.LISTS_MOST * search.effort
    assert min(*far, *amid) >= centroids.LISTS_LEAST * search.effort
    by_lists = replace(search, k_factor=64)  # not what codes leave out
    found = []
    for parameters in (by_lists, replace(by_lists, reach=0.0)):  # the latter: as many as a row
        lists.set_parameters(parameters)
        found.append(recall(OpenLists(quantizer, lists), rows, strange, 10, np.ones(len(rows), np.bool_)))
    assert found[0] > found[1] + 0.01


def test_few_lists_and_equal_centroids_are_probed_within_the_bounds() -> None:
    for vectors in (embeddings(4, 6), np.repeat(embeddings(4, 6), 100, axis=0)):
        found = Centroids(vectors, "l2")
        for effort, reach in ((1, 0.001), (2, 0.5), (1_000, 0.1)):
            counts = probed(found, embeddings(9, 6), SearchParameters(effort, reach=reach))
            assert (counts >= min(found.lists, centroids.LISTS_LEAST * effort)).all()
            assert (counts <= min(found.lists, centroids.LISTS_MOST * effort)).all()


def test_as_many_lists_are_probed_as_hold_the_share_of_living_rows_asked_for() -> None:
    found, living = Centroids(embeddings(LISTS, 6), "l2"), np.random.default_rng(0).integers(1, 100, LISTS)
    for share in (0.01, 0.3, 1.0):
        lists, _ = found.within(
            embeddings(20, 6, seed=1), SearchParameters(2, reach=0.1, living=share), Occupancy(living, 0 * living)
        )
        assert (np.where(lists >= 0, living[lists], 0).sum(axis=1) >= share * living.sum()).all()
        assert all(len(set(line[line >= 0].tolist())) == np.count_nonzero(line >= 0) for line in lists)


@pytest.mark.parametrize("length", [1e-25, 1e-6, 1e6, 1e16])
def test_the_length_of_a_query_changes_nothing_under_inner_product(length: float) -> None:
    rows, queries = embeddings(3_000, 13), embeddings(200, 13, seed=9)
    found, parameters = Centroids(ivf.train(rows, LISTS, "ip", seed=0), "ip"), SearchParameters(8, reach=0.1)
    lists = found.within(queries, parameters, full(LISTS))[0]
    scaled = found.within(queries * np.float32(length), parameters, full(LISTS))[0]
    assert [len(set(a) & set(b)) >= 0.95 * len(set(a)) for a, b in zip(lists.tolist(), scaled.tolist(), strict=True)]
    assert (scaled >= 0).sum() == pytest.approx((lists >= 0).sum(), rel=0.01)


@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_lists_looked_for_in_groups_are_nearly_those_looked_for_among_all(metric: Metric) -> None:
    rows = rows_of(metric, 40_000)
    vectors = ivf.train(rows, 2_000, metric, seed=0)
    queries, parameters = np.ascontiguousarray(rows[::400]), SearchParameters(12, reach=0.15, living=0.002)
    in_groups, among_all = (
        Centroids(vectors, metric, groups).within(queries, parameters, full(2_000))[0].tolist()
        for groups in (Groups.of(vectors, metric), None)
    )
    same = [len(set(a) & set(b)) / len(set(b)) for a, b in zip(in_groups, among_all, strict=True)]
    assert np.mean(same) > 0.95
