"""Count, facets, pages and deletes by filter over HTTP, against plain Python over the same records."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from api.filter_schemas import DELETES_MAX, filter_to_delete_by
from tests.documents import fits
from tests.services import Deployment, deployment, vectors, wait_until
from tidemark.errors import BadQuery
from tidemark.filters.grammar import HasId

pytestmark = pytest.mark.kafka
COUNT, FACETS = "/collections/docs/count", "/collections/docs/facets"
VECTORS, DELETE = "/collections/docs/vectors", "/collections/docs/vectors/delete"
COLOURS = ["red", "green", "blue", "grey"]
FILTERS: list[Any] = [
    None,
    {},
    {"must": [{"key": "a", "match": {"value": "red"}}]},
    {"must": [{"key": "b", "range": {"gte": 3, "lt": 7}}], "must_not": [{"key": "a", "match": {"value": "blue"}}]},
    {"should": [{"key": "tags[]", "match": {"value": "red"}}, {"is_empty": {"key": "b"}}]},
    {"must": [{"has_id": ["0-1", "1-7", "nobody"]}]},
    {"must": [{"key": "a", "match": {"value": "never"}}]},
]

Records = dict[str, Any]


class Docs:
    """A deployment of two partitions, and what its topic says as a dictionary of metadata by id."""

    def __init__(self, made: Deployment) -> None:
        self.made = made
        self.records: Records = {}
        self._version = 0

    def write(self, ids: list[str]) -> None:
        """A new version of each id, in the partition that its name begins with."""
        self._version += 1
        random = np.random.default_rng(self._version)
        for partition in range(self.made.partitions):
            some = [one for one in ids if one.startswith(f"{partition}-")]
            lines = []
            for one, vector in zip(some, vectors(len(some), self._version), strict=True):
                metadata = _metadata(random)
                self.records[one] = metadata
                value = {"vector": vector.tolist(), "metadata": metadata}
                lines.append((one.encode(), json.dumps(value).encode()))
            self.made.produce(lines, partition)

    def delete(self, ids: list[str]) -> None:
        for one in ids:
            del self.records[one]
            self.made.produce([(one.encode(), None)], int(one[0]))

    def matching(self, filter_: Any) -> set[str]:
        return {one for one, metadata in self.records.items() if fits(filter_ or {}, metadata or {}, one)}

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.made.ask("POST", path, json=body)
        assert answer.status_code in (200, 202), answer.text
        return answer.json()  # type: ignore[no-any-return]

    def pages(self, between: Callable[[], None] | None = None, **parameters: Any) -> list[dict[str, Any]]:
        """All rows, page by page."""
        found: list[dict[str, Any]] = []
        while True:
            answer = self.made.ask("GET", VECTORS, params=parameters)
            assert answer.status_code == 200, answer.text
            found += answer.json()["vectors"]
            if (cursor := answer.json()["cursor"]) is None:
                return found
            parameters["cursor"] = cursor
            if between is not None:
                between()


def _metadata(random: np.random.Generator) -> Any:
    if random.random() < 0.1:
        return None
    found: dict[str, Any] = {"a": str(random.choice(COLOURS)), "tags": random.choice(COLOURS, 2).tolist()}
    if random.random() < 0.8:
        found["b"] = int(random.integers(10)) if random.random() < 0.5 else float(random.integers(10)) + 0.5
    return found


def ids(first: int, stop: int) -> list[str]:
    return [f"{partition}-{number}" for partition in (0, 1) for number in range(first, stop)]


@pytest.fixture(scope="module")
def docs(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docs]:
    """Rows in segments and in tails, some of either replaced or deleted."""
    format_ = {"collections.docs": {"format": "json"}}
    with deployment(tmp_path_factory.mktemp("filters"), kafka, 2, **format_) as made:
        found = Docs(made)
        made.start("consumer")
        made.start("api")
        made.wait_until_ready()
        found.write(ids(0, 400))
        made.wait_until_checkpointed()
        wait_until(lambda: made.ask("GET", "/collections/docs").json()["segments"], what="segments taken over")
        found.write(ids(300, 500))
        found.delete(ids(50, 60) + ids(450, 460))
        made.wait_until_applied()
        yield found


def _values(metadata: Any, key: str) -> set[tuple[type, Any]]:
    value = (metadata or {}).get(key)
    values = value if isinstance(value, list) else [value]
    return {(type(one), one) for one in values if isinstance(one, str | int)}


@pytest.mark.parametrize("filter_", FILTERS)
def test_the_count_is_that_of_the_records_that_match(docs: Docs, filter_: Any) -> None:
    answer = docs.ask(COUNT, filter=filter_)
    assert answer["count"] == len(docs.matching(filter_))
    assert set(answer["positions"]) == {"0", "1"} and "partial" not in answer


def test_a_count_without_a_body_is_of_all_rows(docs: Docs) -> None:
    assert docs.made.ask("POST", COUNT).json()["count"] == len(docs.records)


@pytest.mark.parametrize("filter_", FILTERS)
@pytest.mark.parametrize("key", ["a", "tags", "b", "never"])
def test_facets_count_each_value_of_the_records_that_match(docs: Docs, key: str, filter_: Any) -> None:
    counts = Counter(value for one in docs.matching(filter_) for value in _values(docs.records[one], key))
    expected = sorted(counts.items(), key=lambda item: (-item[1], item[0][1]))
    for limit in (3, 100):
        values = docs.ask(FACETS, key=key, filter=filter_, limit=limit)["values"]
        assert values == [{"value": value, "count": count} for (_, value), count in expected[:limit]]


@pytest.mark.parametrize("filter_", FILTERS)
def test_pages_hold_every_row_that_matches_once_in_the_order_of_the_log(docs: Docs, filter_: Any) -> None:
    found = docs.pages(limit=70, filter=json.dumps(filter_))
    places = [(row["partition"], row["offset"]) for row in found]
    assert places == sorted(places)
    assert len(found) == len(docs.matching(filter_))
    assert {row["id"]: row["metadata"] for row in found} == {one: docs.records[one] for one in docs.matching(filter_)}


@pytest.mark.parametrize("order_by", ["b", "-b"])
@pytest.mark.parametrize("filter_", [None, {"a": ["red", "green"]}])
def test_pages_in_the_order_of_a_field_hold_every_row_that_has_it_once(docs: Docs, order_by: str, filter_: Any) -> None:
    found = docs.pages(limit=70, order_by=order_by, filter=json.dumps(filter_))
    sign = -1 if order_by == "-b" else 1
    keys = [(sign * row["metadata"]["b"], row["partition"], row["offset"]) for row in found]
    assert keys == sorted(keys)
    colours = COLOURS if filter_ is None else filter_["a"]
    expected = {one for one, metadata in docs.records.items() if "b" in (metadata or {}) and metadata["a"] in colours}
    assert len(found) == len(expected) and {row["id"] for row in found} == expected


def test_a_cursor_stays_good_while_rows_are_written(docs: Docs) -> None:
    """Rows whose key stays the same are on one page each, whatever is replaced, deleted and new between two pages."""
    made, still = docs.made, [f"0-still-{number}" for number in range(40)]
    value = {"vector": [1.0] * 16, "metadata": {"s": 1}}
    made.produce([(one.encode(), json.dumps(value).encode()) for one in still], 0)
    for number, one in enumerate(still):
        metadata = docs.records[one] = {"s": number}
        moved = {"vector": [1.0] * 16, "metadata": metadata}
        made.produce([(one.encode(), json.dumps(moved).encode())], 0)
    made.wait_until_applied()
    number = iter(range(100))

    def between() -> None:
        now = f"0-between-{next(number)}"
        docs.write([now, "0-1", "1-1"])
        made.wait_until_applied()
        docs.delete([now])

    found = docs.pages(between, limit=7, order_by="-s")
    assert [row["id"] for row in found] == still[::-1]
    made.wait_until_applied()


def test_the_same_is_true_after_a_checkpoint(docs: Docs) -> None:
    docs.made.wait_until_checkpointed()
    for filter_ in FILTERS:
        assert docs.ask(COUNT, filter=filter_)["count"] == len(docs.matching(filter_))
        found = docs.pages(limit=1_000, filter=json.dumps(filter_))
        assert sorted(row["id"] for row in found) == sorted(docs.matching(filter_))


def test_rows_deleted_by_filter_are_gone_at_the_positions_told_and_no_others(docs: Docs) -> None:
    filter_ = {"must": [{"key": "a", "match": {"value": "grey"}}, {"key": "b", "range": {"gte": 5}}]}
    gone = docs.matching(filter_)
    answer = docs.ask(DELETE, filter=filter_)
    assert (answer["deleted"], answer["more"]) == (len(gone), False)
    for one in gone:
        del docs.records[one]
    assert docs.ask(COUNT, min_positions=answer["positions"])["count"] == len(docs.records)
    assert docs.ask(COUNT, filter=filter_)["count"] == 0
    again = docs.ask(DELETE, filter=filter_)
    assert again == {"deleted": 0, "more": False, "positions": {}}


def test_a_delete_is_bounded_and_says_that_more_rows_match(docs: Docs) -> None:
    made = docs.made
    many = [
        (b"0-many-%d" % number, b'{"vector": [%s], "metadata": {"many": 1}}' % b", ".join([b"1"] * 16))
        for number in range(DELETES_MAX + 5)
    ]
    made.produce(many, 0)
    made.wait_until_applied()
    first = docs.ask(DELETE, filter={"many": 1})
    assert (first["deleted"], first["more"]) == (DELETES_MAX, True)
    rest = docs.ask(DELETE, filter={"many": 1}, min_positions=first["positions"], timeout_ms=30_000)
    assert (rest["deleted"], rest["more"]) == (5, False)
    last = docs.ask(COUNT, min_positions=rest["positions"], timeout_ms=30_000)
    assert last["count"] == len(docs.records)


BAD_FILTERS: dict[str, tuple[Any, str]] = {
    "no object": ([1], "filter: expected a filter, found an array"),
    "unknown condition": ({"must": [{"key": "a", "like": "b"}]}, "filter.must[0]"),
    "ill-typed value": ({"must": [{"key": "a", "match": {"value": 1.5}}]}, "filter.must[0].match.value"),
    "ill-typed bound": ({"must": [{"key": "a", "range": {"gte": True}}]}, "filter.must[0].range.gte"),
    "bad path": ({"must": [{"key": "a..b", "match": {"value": 1}}]}, "filter.must[0].key"),
    "not supported": ({"must": [{"key": "a", "geo_radius": {}}]}, "geo_radius"),
}


def _error(answer: httpx.Response, status: int = 422) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]["message"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", BAD_FILTERS)
def test_a_bad_filter_is_refused_with_its_path_and_what_was_expected(docs: Docs, name: str) -> None:
    filter_, said = BAD_FILTERS[name]
    ask = docs.made.ask
    for answer in (
        ask("POST", COUNT, json={"filter": filter_}),
        ask("POST", FACETS, json={"key": "a", "filter": filter_}),
        ask("POST", DELETE, json={"filter": filter_}),
        ask("GET", VECTORS, params={"filter": json.dumps(filter_)}),
    ):
        assert said in _error(answer)


def test_a_filter_too_deep_or_too_wide_is_refused(docs: Docs) -> None:
    filter_: Any = {"must": []}
    for _ in range(20):
        filter_ = {"must": [filter_]}
    assert "nested at most 16 deep" in _error(docs.made.ask("POST", COUNT, json={"filter": filter_}))
    assert docs.made.ask("POST", COUNT, content=b'{"filter": ' + b'{"must": [' * 50_000).status_code == 422
    wide = {"must": [{"key": "a", "match": {"value": 1}}] * 1_025}
    assert "at most 1024 conditions" in _error(docs.made.ask("POST", COUNT, json={"filter": wide}))


@pytest.mark.parametrize("filter_", [None, {}, {"must": []}, {"must": [{"should": []}]}])
def test_a_delete_without_a_condition_is_refused(docs: Docs, filter_: Any) -> None:
    assert "has no condition" in _error(docs.made.ask("POST", DELETE, json={"filter": filter_}))
    assert docs.ask(COUNT)["count"] == len(docs.records)


def test_other_mistakes_are_refused_with_their_parameter(docs: Docs) -> None:
    ask = docs.made.ask
    assert "filter" in _error(ask("POST", DELETE, json={}))
    assert "limit" in _error(ask("POST", FACETS, json={"key": "a", "limit": 0}))
    assert "key" in _error(ask("POST", FACETS, json={"filter": {}}))
    assert "key: expected a key" in _error(ask("POST", FACETS, json={"key": "a..b"}))
    assert "unknown" in _error(ask("POST", COUNT, json={"filters": {}}))
    assert "filter: is not JSON" in _error(ask("GET", VECTORS, params={"filter": "{a"}))
    assert "order_by: expected a key" in _error(ask("GET", VECTORS, params={"order_by": "-"}))
    assert "cursor" in _error(ask("GET", VECTORS, params={"order_by": "b", "cursor": "0-1"}))
    assert "cursor" in _error(ask("GET", VECTORS, params={"cursor": "0000000000000000-0-1"}))
    assert "cursor" in _error(ask("GET", VECTORS, params={"order_by": "b", "cursor": "7ff8000000000000-0-1"}))
    assert "were not reached" in _error(ask("POST", COUNT, json={"min_positions": {"0": 10**9}, "timeout_ms": 9}), 412)
    assert _error(ask("POST", "/collections/nothing/count", json={}), 404)
    headers = {"content-type": "text/plain"}
    assert _error(ask("POST", DELETE, content=b"{}", headers=headers), 415)
    assert _error(ask("POST", DELETE, content=b"{}"), 415)
    assert _error(ask("POST", COUNT, content=b"{}", headers=headers), 415)


def test_the_api_page_tells_of_every_route(docs: Docs) -> None:
    found = docs.made.ask("GET", "/openapi.json").json()
    for path, name in (("count", "CountRequest"), ("facets", "FacetsRequest"), ("vectors/delete", "DeleteRequest")):
        operation = found["paths"][f"/collections/{{c}}/{path}"]["post"]
        assert name in json.dumps(operation["requestBody"]) and name in found["components"]["schemas"]
    parameters = found["paths"]["/collections/{c}/vectors"]["get"]["parameters"]
    assert {"filter", "order_by"} <= {parameter["name"] for parameter in parameters}
    assert "DeleteRequest" in docs.made.ask("GET", "/docs").text


def test_ids_of_a_filter_are_read_in_the_collections_format() -> None:
    assert filter_to_delete_by({"has_id": ["7"]}, "int64").must == (HasId((b"\0" * 7 + b"\7",)),)
    with pytest.raises(BadQuery, match="has_id"):
        filter_to_delete_by({"has_id": ["seven"]}, "int64")
