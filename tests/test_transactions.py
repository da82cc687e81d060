"""Transactions: what is committed is applied, what is aborted never, and what waits behind an open one is said."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from consumer.partition import BACKLOG_OFFSETS
from tests.conftest import Tidemark
from tests.services import DIMENSION, Deployment, vectors, wait_until
from tests.test_consumer import _ids, _upserts
from tests.test_crash_points import opened
from tests.transactions import Transactions
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]
SEARCH = "/collections/docs/search"


def _ends(deployed: Deployment) -> list[int]:
    """Of each partition, markers counted."""
    partitions = [(deployed.topic, number) for number in range(deployed.partitions)]
    return list(Topics(deployed.settings.kafka).ends(partitions).values())


def _digests(deployed: Deployment) -> list[str]:
    return [partition["digest"] for partition in deployed.lag()["partitions"]]


def _checkpointed_digests(deployed: Deployment) -> list[str]:
    return [f"{deployed.newest_manifest(number).digest:016x}" for number in range(deployed.partitions)]


def _positions(deployed: Deployment) -> list[int]:
    return [partition["applied_position"] for partition in deployed.lag()["partitions"]]


def _search(deployed: Deployment, positions: dict[str, int], timeout_ms: int) -> Any:
    body = {"vector": [0.0] * DIMENSION, "k": 1, "min_positions": positions, "timeout_ms": timeout_ms}
    return deployed.ask("POST", SEARCH, json=body)


def test_what_is_committed_is_applied_what_is_aborted_never_and_positions_pass_the_markers(
    deploy: MakeDeployment,
) -> None:
    """Partition 0 has all kinds of transactions and ends with an aborted one, partition 1 has an aborted one only."""
    deployed = deploy(partitions=2)
    first = deployed.start("consumer")
    deployed.start("api")
    writer = Transactions(deployed)
    writer.committed(_upserts(100))  # offsets 0 to 99, marker 100
    never = _upserts(50, seed=1, prefix="never")
    writer.aborted([*never, (b"id-0", None), *_upserts(10, seed=2)])  # 101 to 161, marker 162
    writer.committed([(b"id-1", None), (b"never-there", None)])  # 163 and 164, marker 165
    writer.aborted(_upserts(30, seed=3))  # 166 to 195, marker 196
    writer.aborted(_upserts(20, prefix="nobody"), partition=1)  # marker 20
    assert _ends(deployed) == [197, 21]
    deployed.wait_until_ready()
    answer = _search(deployed, {"0": 197, "1": 21}, 15_000)
    assert answer.status_code == 200, answer.text
    assert answer.json()["positions"] == {"0": 197, "1": 21}
    # What is told of lags is a moment old.
    wait_until(lambda: (deployed.lag()["offset_lag"], _positions(deployed)) == (0, [197, 21]), 20, "no lag")
    deployed.wait_until_checkpointed()  # at the offset after a marker
    kept = {key for key, _ in _upserts(100)} - {b"id-1"}
    assert (_ids(deployed, 0), _ids(deployed, 1)) == (kept, set())
    assert _digests(deployed) == _checkpointed_digests(deployed)
    hit = opened(deployed).get(b"id-5")
    assert hit is not None and np.array_equal(hit.vector, vectors(100)[5])  # not the aborted update's
    assert first.terminate() == 0
    writer.committed(_upserts(10, seed=4, prefix="later"))
    second = deployed.start("consumer")
    deployed.wait_until_checkpointed()
    assert f"{deployed.topic}[0] generation g000001 from position 197 (99 rows" in second.text
    assert len(_ids(deployed, 0)) == 109
    deployed.wait_until_applied()
    assert _digests(deployed) == _checkpointed_digests(deployed)


def _partition(deployed: Deployment) -> dict[str, Any]:
    return deployed.lag()["partitions"][0]  # type: ignore[no-any-return]


def test_what_waits_behind_an_open_transaction_is_counted_and_named_until_it_ends(
    deploy: MakeDeployment, tidemark: Tidemark, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    deployed = deploy()
    deployed.start("consumer")
    deployed.start("api")
    deployed.produce(_upserts(10, prefix="before"))
    deployed.wait_until_ready()
    deployed.wait_until_applied()
    assert _partition(deployed)["open_transaction_offsets"] == 0
    writer = Transactions(deployed)
    writer.begin(_upserts(5, prefix="open"))
    deployed.produce(_upserts(20, prefix="acknowledged"))
    wait_until(lambda: _partition(deployed)["open_transaction_offsets"] == 25, 15, "25 offsets wait")
    assert (_partition(deployed)["applied_position"], _partition(deployed)["offset_lag"]) == (10, 0)
    answer = _search(deployed, {"0": 35}, 100)
    assert answer.status_code == 412
    assert "of partition 0 25 offsets wait behind an open transaction" in answer.text
    code, output, _ = tidemark("lag", "docs", "--api", f"http://127.0.0.1:{deployed.api_port}")
    assert (code, "25 offsets wait behind an open transaction" in output) == (0, True), output
    assert "open_transaction_offsets" in deployed.ask("GET", "/metrics").text
    writer.commit()
    assert _search(deployed, {"0": 36}, 15_000).status_code == 200
    wait_until(lambda: _partition(deployed)["open_transaction_offsets"] == 0, 15, "nothing waits any more")
    assert _partition(deployed)["live_rows"] == 35
    assert "open transaction" not in _search(deployed, {"0": 37}, 0).text


def test_a_long_open_transaction_is_no_backlog_that_keeps_builds_from_being_made(deploy: MakeDeployment) -> None:
    deployed = deploy(**{"collections.docs.index": {"kind": "hnsw", "ann_rows_min": 512}})
    deployed.produce(_upserts(1_000))
    writer = Transactions(deployed)
    row = b"\0" * 4 * DIMENSION
    writer.begin((b"open-%d" % number, row) for number in range(BACKLOG_OFFSETS + 1_000))
    consumer = deployed.start("consumer")
    wait_until(lambda: "built hnsw" in consumer.text, 40, consumer.text[-2000:])
    assert deployed.manifest_position(0) == 1_000
    writer.abort()
    deployed.wait_until_checkpointed()
    assert len(_ids(deployed)) == 1_000
