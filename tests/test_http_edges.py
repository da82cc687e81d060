"""What a client may send besides a proper request: paths, media types, methods, against a real api process."""

import contextlib
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import httpx
import numpy as np
import pytest

from tests.raw_http import ask, connected
from tests.running import DIMENSION, eventually, rows, world

pytestmark = pytest.mark.kafka
SEARCH, VECTORS = "/collections/docs/search", "/collections/docs/vectors"
GOOD = [1.0] * DIMENSION
IDS = [
    *("new\nline", "\n", "ends\n", "a\r\nb", "\u2028", "\u0085", "/", "//", "a/../b", ".", "..", "../..", "%2e%2e"),
    *(
        "%",
        "%zz",
        "%252e",
        "?",
        "a?k=1",
        "#",
        "a#b",
        "\0",
        "a\0b",
        "\x1b[31m",
        " ",
        " a ",
        "+",
        "a+b",
        "search",
        "a\\b",
    ),
    *("x" * 1024, "ü" * 512, "\ufffd", "\U0001f600", ";", "a;b=c", "&", "\"'<>", "\x7f", "lag", "vectors/"),
]


@pytest.fixture(scope="module")
def client(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    limits = "connections_max = 64\nheader_timeout_s = 60"
    with world(tmp_path_factory.mktemp("edges"), kafka, partitions=1, api=limits) as made:
        _, found = made.ready_api()
        upserts = [{"id": id_, "vector": vector} for id_, vector in zip(IDS, rows(len(IDS)).tolist(), strict=True)]
        positions = found.post(VECTORS, json={"upserts": upserts}).json()["positions"]
        search = {"vector": GOOD, "min_positions": positions, "timeout_ms": 20_000}
        assert found.post(SEARCH, json=search).status_code == 200
        yield found


@pytest.mark.parametrize("id_", IDS)
def test_any_id_that_is_stored_can_be_asked_for_by_its_path(client: httpx.Client, id_: str) -> None:
    target = f"{VECTORS}/{quote_from_bytes(id_.encode(), safe='')}".encode()
    answer = ask(client, "GET", target)
    assert (answer.status, answer.json["id"]) == (200, id_)
    assert ask(client, "HEAD", target).status == 200


@pytest.mark.parametrize("path", ["/healthz", "/lag", "/collections", "/collections/docs", SEARCH, VECTORS])
def test_a_path_with_a_line_end_or_a_slash_after_it_is_another_path(client: httpx.Client, path: str) -> None:
    method = "POST" if path == SEARCH else "GET"
    # After the last slash of the vectors there is an id.
    for more in (b"%0A", b"%0D%0A", b"%00", b"%2F%0A" if path != VECTORS else b"%20"):
        answer = ask(client, method, path.encode() + more, b"content-type: application/json", body=b"{}")
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
    assert ask(client, "GET", path.encode() + b"/").status == (422 if path == VECTORS else 404)


@pytest.mark.parametrize("bad", [b"%ff", b"%C3", b"a%80b", b"%ED%A0%80", b"%C0%AF", b"%F4%90%80%80"])
def test_a_path_that_is_no_utf8_is_refused_and_not_taken_for_another(client: httpx.Client, bad: bytes) -> None:
    for target in (f"{VECTORS}/".encode() + bad, b"/collections/" + bad, b"/collections/" + bad + b"/vectors/a"):
        answer = ask(client, "GET", target)
        assert (answer.status, answer.json["error"]["code"]) == (422, "bad_request")
        assert "UTF-8" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "name", ["a%0Ab", "docs%0A", "..", "%2e%2e", "%00", "docs%2F", "a%3Fb", "a%23b", "%1b%5b2J", "x" * 5_000]
)
def test_an_odd_name_of_a_collection_is_not_found(client: httpx.Client, name: str) -> None:
    for method, rest in (("GET", ""), ("GET", "/lag"), ("GET", "/vectors"), ("POST", "/vectors"), ("POST", "/search")):
        answer = ask(
            client, method, f"/collections/{name}{rest}".encode(), b"content-type: application/json", body=b"{}"
        )
        assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
        assert not any(line in answer.body for line in (b"\n", b"\x1b", b"\0"))


@pytest.mark.parametrize(
    ("content_type", "write", "search"),
    [
        (b"application/json", 202, 200),
        (b"Application/JSON", 202, 200),
        (b"APPLICATION/JSON;CHARSET=UTF-8", 202, 200),
        (b'application/json ; charset="utf-8"', 202, 200),
        (b"application/json; odata=verbose", 202, 200),
        (b"application/vnd.api+json", 202, 200),
        (b"application/json; charset=utf-16", 415, 415),
        (b"application/json; charset=latin-1", 415, 415),
        (b"application/jsonx", 415, 415),
        (b"application/json-seq", 415, 415),
        (b"application/json, text/plain", 415, 415),
        (b"application/x-www-form-urlencoded", 415, 415),
        (b"text/plain", 415, 415),
        (b"text/json+json", 415, 415),
        (b"application", 415, 415),
        (b"application/json; charset*=utf-8''x; charset*1=b", 415, 415),
        (b";", 415, 415),
        (b"x" * 5_000, 415, 415),
        (b"\xff\xfe", 415, 415),
        (b"application/octet-stream", 415, 422),
        (None, 415, 200),
        (b"", 415, 200),
    ],
)
def test_media_types_are_compared_as_media_types(
    client: httpx.Client, content_type: bytes | None, write: int, search: int
) -> None:
    headers = [] if content_type is None else [b"content-type: " + content_type]
    for path, body, status in ((VECTORS, {"deletes": ["nobody"]}, write), (SEARCH, {"vector": GOOD}, search)):
        answer = ask(client, "POST", path.encode(), *headers, body=json.dumps(body).encode())
        assert answer.status == status, answer.body
        if status == 415:
            assert answer.json["error"]["code"] == "unsupported_media_type"
            assert "application/json" in answer.json["error"]["message"] or b"charset" in headers[0]


def test_two_headers_of_different_media_types_are_none_of_them(client: httpx.Client) -> None:
    headers = b"content-type: application/json", b"content-type: text/plain"
    assert ask(client, "POST", SEARCH.encode(), *headers, body=b"{}").status == 415


@pytest.mark.parametrize("content_type", [b"Application/Octet-Stream", b"application/octet-stream; x=y"])
def test_octets_are_octets_however_their_type_is_written(client: httpx.Client, content_type: bytes) -> None:
    body = np.ones(DIMENSION, "<f4").tobytes()
    answer = ask(client, "POST", SEARCH.encode(), b"content-type: " + content_type, body=body)
    assert answer.status == 200 and answer.json["hits"]


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br", b"GZIP", b"identity, gzip", b"x-unknown"])
@pytest.mark.parametrize("path", [SEARCH, VECTORS])
def test_a_compressed_body_is_refused_and_not_read_as_it_is(client: httpx.Client, coding: bytes, path: str) -> None:
    json_body = json.dumps({"vector": GOOD}).encode()
    octets = np.ones(DIMENSION, "<f4").tobytes()
    bodies = {b"application/json": gzip.compress(json_body), b"application/octet-stream": zlib.compress(octets)[:32]}
    for content_type, body in bodies.items():
        headers = b"content-type: " + content_type, b"content-encoding: " + coding
        answer = ask(client, "POST", path.encode(), *headers, body=body)
        assert (answer.status, answer.json["error"]["code"]) == (415, "unsupported_media_type")
        assert "without content-encoding" in answer.json["error"]["message"]
    same = ask(client, "POST", SEARCH.encode(), b"content-encoding: identity", body=json_body)
    assert same.status == 200


def test_queries_in_bytes_say_how_many_they_are(client: httpx.Client) -> None:
    headers = {"content-type": "application/octet-stream"}
    one = rows(1, seed=3)

    def post(content: bytes, queries: str = "") -> httpx.Response:
        return client.post(f"{SEARCH}?k=1{queries}", content=content, headers=headers)

    assert "hits" in post(one.tobytes()).json()
    assert len(post(one.tobytes(), "&queries=1").json()["results"]) == 1
    assert len(post(one.tobytes() * 3, "&queries=3").json()["results"]) == 3
    as_float64 = post(one.astype("<f8").tobytes())
    assert as_float64.status_code == 422
    message = as_float64.json()["error"]["message"]
    assert "queries=2" in message and "float32" in message
    for content, queries in ((one.tobytes() * 2, "&queries=3"), (one.tobytes(), "&queries=2"), (b"", "&queries=1")):
        assert post(content, queries).status_code == 422
    for queries in ("0", "-1", "x", "1.5", "1001", ""):
        assert post(one.tobytes(), f"&queries={queries}").status_code == 422


GET = ("/collections", "/collections/docs", "/collections/docs/lag", "/lag", "/healthz", "/readyz", "/metrics")


@pytest.mark.parametrize("path", [*GET, VECTORS, f"{VECTORS}/search", "/docs", "/openapi.json", "/", "/nothing"])
def test_head_is_answered_as_get_is_without_the_body(client: httpx.Client, path: str) -> None:
    get, head = client.get(path), ask(client, "HEAD", path.encode())
    assert (head.status, head.body) == (get.status_code, b"")
    assert head.headers.get("content-type") == get.headers.get("content-type")
    if path in ("/docs", "/collections", VECTORS):
        assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *[(path, "GET, HEAD") for path in (*GET, f"{VECTORS}/a", "/docs", "/openapi.json", "/")],
        (VECTORS, "GET, HEAD, POST"),
        (SEARCH, "POST"),
    ],
)
def test_another_method_is_405_and_says_which_there_are(client: httpx.Client, path: str, allowed: str) -> None:
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
        if method in allowed:
            continue
        answer = ask(client, method, path.encode())
        assert (answer.status, answer.headers.get("allow")) == (405, allowed), method
        assert method == "HEAD" or answer.json["error"]["code"] == "method_not_allowed"
    assert ask(client, "DELETE", b"/nothing").status == 404


def test_heads_are_counted_under_their_route(client: httpx.Client) -> None:
    ask(client, "HEAD", b"/collections/docs")
    counted = 'tidemark_http_requests_total{route="/collections/{c}",status="200"}'
    eventually(lambda: counted in client.get("/metrics").text)


def test_small_searches_are_answered_while_bodies_of_sixteen_megabytes_are_sent(client: httpx.Client) -> None:
    # Of another dimension: each is decoded in whole before that can be said.
    line = b"[%s]" % b",".join([b"0.123456789"] * 1_300)
    body = b'{"vectors": [%s]}' % b",".join([line] * 1_000)
    assert 15_000_000 < len(body) < 16 * 2**20
    statuses: list[int] = []

    def send() -> None:
        for _ in range(3):
            statuses.append(httpx.post(f"{client.base_url}{SEARCH}", content=body, timeout=60).status_code)

    senders = [threading.Thread(target=send) for _ in range(3)]
    for sender in senders:
        sender.start()
    answered = 0
    while any(sender.is_alive() for sender in senders):
        assert client.post(SEARCH, json={"vector": GOOD}).status_code == 200
        assert client.get("/healthz").status_code == 200
        answered += 1
    assert statuses == [422] * 9
    assert answered >= 3 * len(statuses)


def test_half_requests_keep_neither_searches_nor_checks_of_health_out(client: httpx.Client) -> None:
    half = b"POST %s HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{" % SEARCH.encode()
    halves = (b"", b"GET /healthz HTTP/1.1\r\n", half)
    with contextlib.ExitStack() as stack:
        for number in range(200):
            stack.enter_context(connected(client)).send(halves[number % 3])
        for path in (b"/healthz", b"/readyz", b"/metrics"):
            assert ask(client, "GET", path).status == 200
        assert ask(client, "POST", SEARCH.encode(), body=json.dumps({"vector": GOOD}).encode()).status == 200


def test_a_request_refused_while_its_body_is_read_is_counted_as_that(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.send(
            b"POST %s HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n" % SEARCH.encode()
        )
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(b"1;" + b"x" * 2_000_000)
        assert connection.answer().status == 431
    counted = 'tidemark_http_requests_total{route="/collections/{c}/search",status="431"}'
    eventually(lambda: counted in client.get("/metrics").text)
