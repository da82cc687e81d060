"""The HTTP contract (design section 10), against a real api process and a real broker."""

import html
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.running import DIMENSION, World, eventually, rows, world

pytestmark = pytest.mark.kafka
SEARCH, VECTORS = "/collections/docs/search", "/collections/docs/vectors"
GOOD = [1.0] * DIMENSION


@pytest.fixture(scope="module")
def docs(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, httpx.Client]]:
    with world(tmp_path_factory.mktemp("api"), kafka, metric="cosine", api="body_bytes_max = 100000") as made:
        _, client = made.ready_api()
        yield made, client


@pytest.fixture
def client(docs: tuple[World, httpx.Client]) -> httpx.Client:
    return docs[1]


def write(client: httpx.Client, **body: Any) -> dict[str, int]:
    answer = client.post(VECTORS, json=body)
    assert answer.status_code == 202, answer.text
    positions: dict[str, int] = answer.json()["positions"]
    return positions


def assert_error(answer: httpx.Response, status: int) -> dict[str, str]:
    assert answer.status_code == status, answer.text
    error: dict[str, str] = answer.json()["error"]
    assert error["code"] and error["message"]
    return error


def lag_at_rest(client: httpx.Client) -> dict[str, Any]:
    """The lag when nothing is on its way any more: other tests write too, and do not wait."""
    seen: list[dict[str, Any]] = []

    def rests() -> bool:
        time.sleep(0.2)
        seen.append(client.get("/collections/docs/lag").json())
        ends = [[p["log_end_offset"] for p in lag["partitions"]] for lag in seen[-3:]]
        return len(ends) == 3 and ends[0] == ends[2] and seen[-1]["offset_lag"] == 0

    eventually(rests)
    return seen[-1]


def test_a_write_is_found_by_a_search_from_its_positions(client: httpx.Client) -> None:
    vector = rows(1, seed=1)[0].tolist()
    positions = write(client, upserts=[{"id": "first", "vector": vector, "metadata": {"n": 1}}])
    answer = client.post(SEARCH, json={"vector": vector, "k": 1, "min_positions": positions}).json()
    assert answer["hits"][0]["id"] == "first"
    assert answer["hits"][0]["distance"] == pytest.approx(0, abs=1e-5)
    assert answer["hits"][0]["metadata"] == {"n": 1}
    assert all(answer["positions"][partition] >= position for partition, position in positions.items())
    assert answer["generation"] is None or isinstance(answer["generation"], str)
    assert answer["staleness_ms"] is not None and answer["took_ms"] >= 0


def test_every_write_is_read_at_its_positions_and_a_deleted_id_never(client: httpx.Client) -> None:
    for number, vector in enumerate(rows(60, seed=2).tolist()):
        positions = write(client, upserts=[{"id": "again", "vector": vector, "metadata": {"n": number}}])
        body = {"vector": vector, "k": 3, "min_positions": positions}
        hits = client.post(SEARCH, json=body).json()["hits"]
        assert [hit["metadata"] for hit in hits if hit["id"] == "again"] == [{"n": number}]
    positions = write(client, deletes=["again"])
    hits = client.post(SEARCH, json={"vector": vector, "k": 100, "min_positions": positions}).json()["hits"]
    assert "again" not in [hit["id"] for hit in hits]
    assert_error(client.get(f"{VECTORS}/again"), 404)


def test_positions_not_reached_in_time_are_412_with_those_reached(client: httpx.Client) -> None:
    body = {"vector": GOOD, "min_positions": {"0": 10**9}, "timeout_ms": 50}
    error = assert_error(client.post(SEARCH, json=body), 412)
    assert error["code"] == "not_fresh_enough"
    assert str(10**9) in error["message"]


def test_several_queries_answer_in_their_order(client: httpx.Client) -> None:
    vectors = rows(3, seed=3).tolist()
    positions = write(client, upserts=[{"id": f"many-{n}", "vector": v} for n, v in enumerate(vectors)])
    body = {"vectors": vectors, "k": 1, "min_positions": positions, "include": ["vector"]}
    results = client.post(SEARCH, json=body).json()["results"]
    assert [hits[0]["id"] for hits in results] == ["many-0", "many-1", "many-2"]
    assert len(results[0][0]["vector"]) == DIMENSION
    assert "metadata" not in results[0][0]


def test_binary_queries_answer_as_json_ones_do(client: httpx.Client) -> None:
    vector = rows(1, seed=4)
    positions = write(client, upserts=[{"id": "binary", "vector": vector[0].tolist()}, {"id": "other", "vector": GOOD}])
    client.post(SEARCH, json={"vector": GOOD, "min_positions": positions})
    headers = {"content-type": "application/octet-stream"}
    one = client.post(f"{SEARCH}?k=2", content=vector.tobytes(), headers=headers).json()
    assert one["hits"][0]["id"] == "binary" and len(one["hits"]) == 2
    two = client.post(f"{SEARCH}?k=1&exact=true&queries=2", content=vector.tobytes() * 2, headers=headers).json()
    assert [hits[0]["id"] for hits in two["results"]] == ["binary", "binary"]


def test_searching_by_id_uses_the_stored_vector(client: httpx.Client) -> None:
    positions = write(client, upserts=[{"id": "stored", "vector": rows(1, seed=5)[0].tolist()}])
    answer = client.post(SEARCH, json={"id": "stored", "k": 1, "min_positions": positions})
    assert answer.json()["hits"][0]["id"] == "stored"
    assert_error(client.post(SEARCH, json={"id": "nobody"}), 404)


def test_pages_hold_every_row_once(client: httpx.Client) -> None:
    upserts = [{"id": f"page/{n} ü", "vector": v} for n, v in enumerate(rows(25, seed=6).tolist())]
    positions = write(client, upserts=upserts)
    client.post(SEARCH, json={"vector": GOOD, "min_positions": positions})
    seen, cursor = [], None
    while True:
        page = client.get(VECTORS, params={"limit": 7, **({"cursor": cursor} if cursor else {})}).json()
        seen += [row["id"] for row in page["vectors"]]
        assert len(page["vectors"]) <= 7
        if (cursor := page["cursor"]) is None:
            break
    assert len(seen) == len(set(seen))
    assert {upsert["id"] for upsert in upserts} <= set(seen)
    one = client.get(f"{VECTORS}/page%2F3%20%C3%BC").json()
    assert one["id"] == "page/3 ü" and len(one["vector"]) == DIMENSION


VECTOR_1E39 = json.dumps(GOOD[:-1])[:-1] + ", 1e39]"
BAD_SEARCHES: dict[str, Any] = {
    "no body": "",
    "not JSON": "{",
    "not an object": "[1]",
    "null": "null",
    "nothing asked": "{}",
    "two things asked": {"vector": GOOD, "id": "a"},
    "empty vector": {"vector": []},
    "short vector": {"vector": GOOD[1:]},
    "long vector": {"vector": [*GOOD, 1.0]},
    "zero vector": {"vector": [0.0] * DIMENSION},
    "null in vector": {"vector": [None] * DIMENSION},
    "strings in vector": {"vector": ["1"] * DIMENSION},
    "NaN": '{"vector": [NaN, 1, 1, 1, 1, 1, 1, 1]}',
    "Infinity": '{"vector": [Infinity, 1, 1, 1, 1, 1, 1, 1]}',
    "1e999": '{"vector": [1e999, 1, 1, 1, 1, 1, 1, 1]}',
    "beyond float32": f'{{"vector": {VECTOR_1E39}}}',
    "huge integer": f'{{"vector": [{"9" * 400}, 1, 1, 1, 1, 1, 1, 1]}}',
    "no queries": {"vectors": []},
    "ragged queries": {"vectors": [GOOD, GOOD[1:]]},
    "empty query": {"vectors": [[]]},
    "too many queries": '{"vectors": [' + ",".join(["[1,1,1,1,1,1,1,1]"] * 1001) + "]}",
    "k 0": {"vector": GOOD, "k": 0},
    "k -1": {"vector": GOOD, "k": -1},
    "k 1001": {"vector": GOOD, "k": 1001},
    "k a float": {"vector": GOOD, "k": 1.5},
    "k a string": {"vector": GOOD, "k": "3"},
    "k null": {"vector": GOOD, "k": None},
    "k huge": f'{{"vector": {json.dumps(GOOD)}, "k": {10**30}}}',
    "effort 0": {"vector": GOOD, "effort": 0},
    "effort negative": {"vector": GOOD, "effort": -1},
    "effort huge": {"vector": GOOD, "effort": 1e300},
    "unknown field": {"vector": GOOD, "vectr": 1},
    "unknown include": {"vector": GOOD, "include": ["secrets"]},
    "filter of no object": {"vector": GOOD, "filter": [1]},
    "filter of an unknown condition": {"vector": GOOD, "filter": {"must": [{"key": "a", "like": "x"}]}},
    "filter by a path that is none": {"vector": GOOD, "filter": {"a..b": 1}},
    "filter null is none": {"vector": GOOD[1:], "filter": None},
    "group_by that is no path": {"vector": GOOD, "group_by": ""},
    "group_by of several queries": {"vectors": [GOOD], "group_by": "a"},
    "group_size 0": {"vector": GOOD, "group_by": "a", "group_size": 0},
    "max_distance a string": {"vector": GOOD, "max_distance": "1"},
    "explain a number": {"vector": GOOD, "explain": 1},
    "positions a list": {"vector": GOOD, "min_positions": [1]},
    "partition not a number": {"vector": GOOD, "min_positions": {"a": 1}},
    "partition oddly written": {"vector": GOOD, "min_positions": {" 0_0 ": 1}},
    "position negative": {"vector": GOOD, "min_positions": {"0": -5}},
    "position a string": {"vector": GOOD, "min_positions": {"0": "5"}},
    "timeout negative": {"vector": GOOD, "timeout_ms": -1},
    "timeout too long": {"vector": GOOD, "timeout_ms": 30_001},
    "empty id": {"id": ""},
    "long id": {"id": "x" * 1025},
    "lone surrogate": '{"id": "\\ud800"}',
    "invalid UTF-8": b'{"id": "\xff"}',
    "deep nesting": '{"filter": ' + "[" * 20_000 + "]" * 20_000 + "}",
}
DEEP: Any = json.loads("[" * 100 + "]" * 100)
BAD_WRITES: dict[str, Any] = {
    "no body": "",
    "nothing": "{}",
    "no vector": {"upserts": [{"id": "a"}]},
    "no id": {"upserts": [{"vector": GOOD}]},
    "empty id": {"upserts": [{"id": "", "vector": GOOD}]},
    "long id": {"upserts": [{"id": "x" * 1025, "vector": GOOD}]},
    "number as id": {"upserts": [{"id": 5, "vector": GOOD}]},
    "short vector": {"upserts": [{"id": "a", "vector": GOOD[1:]}]},
    "zero vector": {"upserts": [{"id": "a", "vector": [0] * DIMENSION}]},
    "beyond float32": f'{{"upserts": [{{"id": "a", "vector": {VECTOR_1E39}}}]}}',
    "metadata a list": {"upserts": [{"id": "a", "vector": GOOD, "metadata": [1]}]},
    "metadata too large": {"upserts": [{"id": "a", "vector": GOOD, "metadata": {"a": "x" * 70_000}}]},
    "metadata too deep": {"upserts": [{"id": "a", "vector": GOOD, "metadata": {"a": DEEP}}]},
    "delete a number": {"deletes": [5]},
    "delete nothing": {"deletes": [""]},
    "unknown field": {"upsert": []},
    "unknown field of an item": {"upserts": [{"id": "a", "vector": GOOD, "extra": 1}]},
}


def content(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body)).encode()


@pytest.mark.parametrize("name", BAD_SEARCHES)
def test_a_bad_search_gets_a_reason(client: httpx.Client, name: str) -> None:
    answer = client.post(SEARCH, content=content(BAD_SEARCHES[name]), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert_error(answer, answer.status_code)


@pytest.mark.parametrize("name", BAD_WRITES)
def test_a_bad_write_gets_a_reason(client: httpx.Client, name: str) -> None:
    answer = client.post(VECTORS, content=content(BAD_WRITES[name]), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert_error(answer, answer.status_code)


def test_a_write_with_one_bad_item_names_it_and_writes_nothing(client: httpx.Client) -> None:
    before = lag_at_rest(client)
    body = {"upserts": [{"id": "good", "vector": GOOD}, {"id": "bad", "vector": GOOD[1:]}]}
    assert "1" in assert_error(client.post(VECTORS, json=body), 422)["message"]
    write(client, deletes=["nothing-written"])
    after = lag_at_rest(client)
    ends = [sum(p["log_end_offset"] for p in lag["partitions"]) for lag in (before, after)]
    assert ends[1] - ends[0] <= 1


@pytest.mark.parametrize("metadata", ['{"n": 123456789012345678901234567890}', '{"a": 1e400}', '{"a": "\\ud800"}'])
def test_odd_metadata_is_never_a_server_error(client: httpx.Client, metadata: str) -> None:
    body = f'{{"upserts": [{{"id": "odd", "vector": {json.dumps(GOOD)}, "metadata": {metadata}}}]}}'
    answer = client.post(VECTORS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (202, 400, 422), answer.text


@pytest.mark.parametrize("query", ["k=0", "k=x", "k=1001", "effort=nan", "effort=-1", "exact=maybe", "kk=1"])
def test_bad_parameters_of_a_binary_search_get_a_reason(client: httpx.Client, query: str) -> None:
    headers = {"content-type": "application/octet-stream"}
    body = np.ones(DIMENSION, "<f4").tobytes()
    assert_error(client.post(f"{SEARCH}?{query}", content=body, headers=headers), 422)


@pytest.mark.parametrize("body", [b"", b"123", b"\x00\x00\xc0\x7f" * DIMENSION, b"\x00" * 4 * DIMENSION])
def test_a_bad_binary_query_gets_a_reason(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/octet-stream"}
    answer = client.post(SEARCH, content=body, headers=headers)
    assert_error(answer, answer.status_code)
    assert answer.status_code in (400, 422)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/collections/none", 404),
        ("GET", "/collections/none/lag", 404),
        ("POST", "/collections/none/search", 404),
        ("POST", "/collections/none/vectors", 404),
        ("GET", "/collections/..%2f..%2fetc/lag", 404),
        ("GET", f"{VECTORS}/unknown", 404),
        ("GET", SEARCH, 405),
        ("DELETE", "/collections", 405),
        ("GET", f"{VECTORS}?limit=0", 422),
        ("GET", f"{VECTORS}?limit=1001", 422),
        ("GET", f"{VECTORS}?limit=x", 422),
        ("GET", f"{VECTORS}?cursor=%21%21", 422),
        ("GET", f"{VECTORS}?cursor=99999999999999999999", 422),
        ("GET", f"{VECTORS}?filter=a", 422),
        ("GET", f"{VECTORS}/{'x' * 1025}", 422),
    ],
)
def test_errors_have_one_shape(client: httpx.Client, method: str, path: str, status: int) -> None:
    body = json.dumps({"vector": GOOD}) if method == "POST" else None
    headers = {"content-type": "application/json"} if method == "POST" else {}
    assert_error(client.request(method, path, content=body, headers=headers), status)


@pytest.mark.parametrize("path", [SEARCH, VECTORS])
def test_a_large_body_is_413_with_and_without_a_length(client: httpx.Client, path: str) -> None:
    headers = {"content-type": "application/json"}
    assert_error(client.post(path, content=b"x" * 100_001, headers=headers), 413)
    endless = (b"x" * 10_000 for _ in range(20))
    assert_error(client.post(path, content=endless, headers=headers), 413)


@pytest.mark.parametrize("path", [SEARCH, VECTORS])
def test_a_client_that_goes_away_in_the_middle_of_a_body_is_counted_as_499(client: httpx.Client, path: str) -> None:
    assert client.base_url.port is not None
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: tests\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
        connection.sendall(head.encode() + b'{"vector"')
    counted = f'tidemark_http_requests_total{{route="{path.replace("docs", "{c}")}",status="499"}}'
    eventually(lambda: counted in client.get("/metrics").text)


def test_the_lag_is_known_and_zero_when_caught_up(client: httpx.Client) -> None:
    positions = write(client, upserts=[{"id": "lag", "vector": GOOD}])
    client.post(SEARCH, json={"vector": GOOD, "min_positions": positions})
    lag = lag_at_rest(client)
    assert lag["time_lag_ms"] == 0
    assert {p["partition"] for p in lag["partitions"]} == {0, 1}
    for partition in lag["partitions"]:
        assert partition["applied_position"] == partition["log_end_offset"]
        int(partition["digest"], 16)
    assert client.get("/lag").status_code == 200


def test_collections_are_listed_and_described(client: httpx.Client) -> None:
    assert "docs" in client.get("/collections").text
    described = client.get("/collections/docs").json()
    assert described["dimension"] == DIMENSION and described["metric"] == "cosine"
    assert (described["kind"], described["recall_target"]) == ("ivfpq", 0.97)
    assert not any(segment["below_recall_target"] for segment in described["segments"])


def test_the_page_documents_every_call_with_schemas(client: httpx.Client) -> None:
    shown = client.get("/docs")
    assert shown.status_code == 200 and shown.headers["content-type"].startswith("text/html")
    assert not re.search(r"<script|https?://(?!HOST)|src=", shown.text), "it loads nothing from elsewhere"
    for path in client.get("/openapi.json").json()["paths"]:
        assert html.escape(path) in shown.text
    assert "min_positions" in shown.text and "upserts" in shown.text
    assert client.get("/", follow_redirects=False).status_code in (302, 303, 307)
    page = client.get("/openapi.json").json()
    for path in ("/collections/{c}/search", "/collections/{c}/vectors", "/lag", "/readyz", "/healthz"):
        assert any(known.replace("{name}", "{c}").replace("{collection}", "{c}") == path for known in page["paths"])
    search = next(call["post"] for known, call in page["paths"].items() if known.endswith("/search"))
    assert search["requestBody"]["content"]["application/json"]
    assert {"200", "412", "415", "429"} <= search["responses"].keys()


def test_metrics_never_name_an_id(client: httpx.Client) -> None:
    client.get(f"{VECTORS}/secret-id-7")
    client.get("/nowhere/secret-id-7")
    text = client.get("/metrics").text
    assert "tidemark_" in text and "secret-id-7" not in text


def test_no_header_names_the_server_and_no_origin_is_allowed(client: httpx.Client) -> None:
    answer = client.get("/healthz", headers={"origin": "http://example.org"})
    assert answer.status_code == 200
    assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers


def test_searches_that_wait_for_positions_do_not_keep_out_those_that_need_not(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka, metric="cosine", api="search_queue_max = 4") as made, ThreadPoolExecutor(12) as threads:
        _, client = made.ready_api()

        def wait(_: int) -> httpx.Response:
            return client.post(SEARCH, json={"vector": GOOD, "min_positions": {"0": 10**9}, "timeout_ms": 2_000})

        waiting = threads.map(wait, range(12))
        time.sleep(0.7)
        for _ in range(20):
            assert client.post(SEARCH, json={"vector": GOOD}).status_code == 200
        answers = list(waiting)
        assert sorted(answer.status_code for answer in answers) == [412] * 4 + [429] * 8
        said = next(answer for answer in answers if answer.status_code == 429)
        assert "4 searches wait for positions" in assert_error(said, 429)["message"]
