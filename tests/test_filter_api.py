"""Filters over HTTP: searches, pages, counts, facets, groups and deletes, against a plain reading of the filter."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.documents import fits
from tests.running import World, eventually, rows, world

pytestmark = pytest.mark.kafka
COLLECTION = "/collections/docs"
SEARCH, VECTORS = f"{COLLECTION}/search", f"{COLLECTION}/vectors"
COUNT = 600
VECTORS_OF = rows(COUNT, seed=3)
KINDS = ["class", "function", "method"]


def metadata(row: int) -> dict[str, Any] | None:
    if row % 10 == 9:
        return None
    return {
        "kind": KINDS[row % 3],
        "year": 2000 + row % 25,
        "tags": [f"t{row % 4}", f"t{row % 6}"],
        "at": f"2024-0{1 + row % 9}-01T00:00:00Z",
        "a": [{"b": row % 7}, {"b": "x"}],
    }


@pytest.fixture(scope="module")
def docs(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, httpx.Client]]:
    with world(tmp_path_factory.mktemp("filters"), kafka) as made:
        made.consumer()
        _, client = made.ready_api()
        positions: dict[str, int] = {}
        for first in range(0, COUNT, 200):
            upserts = [
                {"id": f"row-{row}", "vector": VECTORS_OF[row].tolist(), "metadata": metadata(row)}
                for row in range(first, first + 200)
            ]
            answer = client.post(VECTORS, json={"upserts": upserts})
            assert answer.status_code == 202, answer.text
            positions |= answer.json()["positions"]
        client.post(SEARCH, json={"id": "row-0", "min_positions": positions, "timeout_ms": 10_000})
        eventually(lambda: bool(client.get(COLLECTION).json()["segments"]))
        yield made, client


@pytest.fixture
def client(docs: tuple[World, httpx.Client]) -> httpx.Client:
    return docs[1]


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def matching(asked: dict[str, Any]) -> list[int]:
    return [row for row in range(COUNT) if fits(asked, metadata(row) or {}, f"row-{row}")]


def nearest(found: list[int], query: Any, k: int) -> list[str]:
    distances = ((VECTORS_OF[found] - query) ** 2).sum(axis=1)
    return [f"row-{found[at]}" for at in np.argsort(distances, kind="stable")[:k]]


ASKED: list[dict[str, Any]] = [
    {"must": {"key": "a[].b", "match": {"value": 3}}},
    {"must": [{"key": "tags", "match": {"any": ["t1", "t5"]}}], "must_not": [{"has_id": ["row-1", "row-5"]}]},
    {"must": {"is_empty": {"key": "tags"}}},
    {"should": [{"key": "a[0].b", "range": {"lt": 1}}, {"key": "tags", "match": {"value": "t0"}}]},
    {"must": {"nested": {"key": "a", "filter": {"must": {"key": "b", "match": {"value": "x"}}}}}},
]


@pytest.mark.parametrize("asked", ASKED)
def test_a_filtered_search_answers_the_nearest_rows_that_match(client: httpx.Client, asked: dict[str, Any]) -> None:
    found = matching(asked)
    for seed in range(3):
        query = rows(1, seed=100 + seed)[0]
        body = {"vector": query.tolist(), "k": 20, "filter": asked, "explain": True}
        answer = ok(client.post(SEARCH, json=body))
        assert [hit["id"] for hit in answer["hits"]] == nearest(found, query, 20)
        assert answer["plan"] == {"kind": "exact", "matches": len(found)}
    many = ok(client.post(SEARCH, json={"vectors": [query.tolist()] * 2, "k": 20, "filter": asked}))
    assert [[hit["id"] for hit in hits] for hits in many["results"]] == [nearest(found, query, 20)] * 2
    by_id = ok(client.post(SEARCH, json={"id": "row-7", "k": 5, "filter": asked}))
    assert [hit["id"] for hit in by_id["hits"]] == nearest(found, VECTORS_OF[7], 5)


def test_queries_in_bytes_are_filtered_too(client: httpx.Client) -> None:
    parameters = {"k": 4, "filter": '{"kind": "class"}', "explain": "true"}
    headers = {"content-type": "application/octet-stream"}
    answer = ok(client.post(SEARCH, params=parameters, content=VECTORS_OF[1].tobytes(), headers=headers))
    found = [row for row in range(COUNT) if (metadata(row) or {}).get("kind") == "class"]
    assert [hit["id"] for hit in answer["hits"]] == nearest(found, VECTORS_OF[1], 4)
    assert answer["plan"]["matches"] == len(found)


def test_hits_beyond_a_distance_are_left_out(client: httpx.Client) -> None:
    body = {"vector": VECTORS_OF[4].tolist(), "k": 30}
    distances = [hit["distance"] for hit in ok(client.post(SEARCH, json=body))["hits"]]
    some = ok(client.post(SEARCH, json={**body, "max_distance": distances[11]}))["hits"]
    assert [hit["distance"] for hit in some] == distances[:12]
    assert ok(client.post(SEARCH, json={**body, "max_distance": -1}))["hits"] == []


def test_counts_and_facets_are_those_of_the_rows_that_match(client: httpx.Client) -> None:
    asked = {"year": {"gte": 2010, "lt": 2012}}
    found = [row for row in range(COUNT) if (metadata(row) or {}).get("year") in (2010, 2011)]
    answer = ok(client.post(f"{COLLECTION}/count", json={"filter": asked}))
    assert answer["count"] == len(found) and set(answer["positions"]) == {"0", "1"}
    assert ok(client.post(f"{COLLECTION}/count", json={}))["count"] == COUNT
    values = ok(client.post(f"{COLLECTION}/facets", json={"key": "tags", "filter": asked}))["values"]
    expected: dict[str, int] = {}
    for row in found:
        for tag in set((metadata(row) or {})["tags"]):
            expected[tag] = expected.get(tag, 0) + 1
    assert {value["value"]: value["count"] for value in values} == expected
    assert [value["count"] for value in values] == sorted(expected.values(), reverse=True)
    assert len(ok(client.post(f"{COLLECTION}/facets", json={"key": "year", "limit": 3}))["values"]) == 3


def pages(client: httpx.Client, **parameters: Any) -> list[Any]:
    found: list[Any] = []
    cursor = ""
    while True:
        page = ok(client.get(VECTORS, params={**parameters, "cursor": cursor, "limit": 37}))
        found += page["vectors"]
        if page["cursor"] is None:
            return found
        cursor = page["cursor"]


def test_pages_of_rows_that_match_hold_each_once_in_their_order(client: httpx.Client) -> None:
    found = pages(client, filter=json.dumps({"kind": "method"}))
    expected = {f"row-{row}" for row in range(COUNT) if (metadata(row) or {}).get("kind") == "method"}
    assert {row["id"] for row in found} == expected and len(found) == len(expected)
    places = [(row["partition"], row["offset"]) for row in found]
    assert places == sorted(places)


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("path", ["year", "at"])
def test_pages_go_by_a_number_or_a_time(client: httpx.Client, path: str, sign: str) -> None:
    found = pages(client, order_by=sign + path)
    values = [row["metadata"][path] for row in found]
    assert values == sorted(values, reverse=bool(sign))
    assert len(found) == len({row["id"] for row in found}) == sum(metadata(row) is not None for row in range(COUNT))


def test_groups_are_those_of_the_nearest_rows_with_the_nearest_of_each(client: httpx.Client) -> None:
    query = rows(1, seed=55)[0]
    body = {"vector": query.tolist(), "k": 4, "group_by": "tags", "group_size": 3, "filter": {"kind": KINDS[:2]}}
    groups = ok(client.post(SEARCH, json=body))["groups"]
    of_kind = [row for row in range(COUNT) if (metadata(row) or {}).get("kind") in KINDS[:2]]
    order = nearest(of_kind, query, COUNT)
    by_tag: dict[str, list[str]] = {}
    for id_ in order:
        for tag in dict.fromkeys((metadata(int(id_[4:])) or {})["tags"]):
            by_tag.setdefault(tag, []).append(id_)
    assert {group["value"]: [hit["id"] for hit in group["hits"]] for group in groups} == {
        tag: ids[:3] for tag, ids in list(by_tag.items())[:4]
    }


WRONG: list[tuple[str, str, Any, str]] = [
    ("search", "filter.must[0].range.gte", {"must": [{"key": "a", "range": {"gte": "x"}}]}, "expected a time"),
    ("count", "filter.price", {"price": 1.5}, "compare floats by range"),
    ("facets", "filter.must[0].geo_radius", {"must": [{"key": "a", "geo_radius": {}}]}, "is not supported"),
    ("vectors/delete", "filter", {}, "would delete every row"),
    ("vectors/delete", "filter.like", {"must": [], "like": 1}, "is not known"),
]


@pytest.mark.parametrize(("route", "at", "asked", "said"), WRONG)
def test_what_is_wrong_with_a_filter_is_said_with_its_place(
    client: httpx.Client, route: str, at: str, asked: Any, said: str
) -> None:
    beside = {"search": {"id": "row-0"}, "facets": {"key": "kind"}}.get(route, {})
    answer = client.post(f"{COLLECTION}/{route}", json={**beside, "filter": asked})
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message.startswith(at) and said in message, message
    assert client.get(VECTORS, params={"filter": "{"}).status_code == 422
    assert client.get(VECTORS, params={"order_by": "a..b"}).status_code == 422
    assert client.get(VECTORS, params={"order_by": "year", "cursor": "x"}).status_code == 422


def test_rows_that_match_are_updated_deleted_and_found_after_a_restart(
    kafka: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with world(tmp_path_factory.mktemp("deletes"), kafka) as made:
        made.consumer()
        process, client = made.ready_api()
        vectors = rows(300, seed=9).tolist()
        upserts = [{"id": f"{n}", "vector": v, "metadata": {"n": n % 10, "old": True}} for n, v in enumerate(vectors)]
        positions = ok(client.post(VECTORS, json={"upserts": upserts}), 202)["positions"]
        changed = [{**one, "metadata": {"n": 3, "old": False}} for one in upserts[:50]]
        positions |= ok(client.post(VECTORS, json={"upserts": changed}), 202)["positions"]
        wait = {"min_positions": positions, "timeout_ms": 10_000}
        body = {"vector": vectors[0], "k": 300, "filter": {"n": 3}, "explain": True}
        assert ok(client.post(SEARCH, json={**body, **wait}))["plan"]["matches"] == 50 + 25
        deleted = ok(client.post(f"{VECTORS}/delete", json={"filter": {"n": 3, "old": True}}), 202)
        assert deleted["deleted"] == 25
        wait["min_positions"] = deleted["positions"]
        hits = ok(client.post(SEARCH, json={**body, **wait}))["hits"]
        assert {hit["id"] for hit in hits} == {str(n) for n in range(50)}
        eventually(lambda: bool(client.get(COLLECTION).json()["segments"]))
        process.stop()
        _, client = made.ready_api()
        hits = ok(client.post(SEARCH, json={**body, **wait}))["hits"]
        assert {hit["id"] for hit in hits} == {str(n) for n in range(50)}
        assert ok(client.post(f"{COLLECTION}/count", json={}))["count"] == 275
