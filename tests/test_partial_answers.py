"""An answer is never silently partial: a partition that cannot be served is named, or makes it a 503."""

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import children
from tests.services import Deployment, vectors, wait_until
from tidemark import layout
from tidemark.generation import current

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
SEARCH, VECTORS = "/collections/docs/search", "/collections/docs/vectors"
COUNT, FACETS, DELETE = "/collections/docs/count", "/collections/docs/facets", f"{VECTORS}/delete"
NONE_MATCH = {"filter": {"has_id": ["nobody"]}}
QUERY = {"vector": [1.0] * 16, "k": 100}


def checkpointed(deploy: MakeDeployment) -> tuple[Deployment, Path]:
    """Two partitions of 50 rows each in checkpoints, nothing running; the directory of partition 1."""
    made = deploy(partitions=2)
    for number in (0, 1):
        made.produce([(b"%d-%d" % (number, n), v.tobytes()) for n, v in enumerate(vectors(50))], partition=number)
    consumer = made.start("consumer")
    made.wait_until_checkpointed()
    consumer.terminate()
    name = current(made.checkpoints, "docs")
    assert name is not None
    return made, made.checkpoints / layout.partition_directory("docs", name, 1)


def damage(directory: Path) -> None:
    """Damage the only checkpoint that is left."""
    for path in sorted(directory.glob("manifest-*"))[:-1]:
        path.unlink()
    for path in directory.glob("*/vectors.f32"):
        path.write_bytes(b"x" * path.stat().st_size)


def assert_partial(made: Deployment, why: str) -> None:
    """Every way to ask says that partition 1 is missing, and gives the rows of partition 0 when that is allowed."""
    by_bytes = {"content": vectors(1).tobytes(), "headers": {"content-type": "application/octet-stream"}}
    refused = [
        made.ask("POST", SEARCH, json=QUERY),
        made.ask("POST", SEARCH, json={"id": "0-1"}),
        made.ask("POST", f"{SEARCH}?k=100", **by_bytes),
        made.ask("GET", VECTORS),
        made.ask("GET", f"{VECTORS}/0-1"),
        made.ask("GET", f"{VECTORS}/1-1"),
        made.ask("POST", COUNT),
        made.ask("POST", FACETS, json={"key": "a"}),
        made.ask("POST", DELETE, json=NONE_MATCH),
    ]
    for answer in refused:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "incomplete"
        assert "partition 1" in answer.json()["error"]["message"] and why in answer.json()["error"]["message"]
    allowed: list[dict[str, Any]] = [
        made.ask("POST", SEARCH, json={**QUERY, "allow_partial": True}).json(),
        made.ask("POST", SEARCH, json={"id": "0-1", "k": 100, "allow_partial": True}).json(),
        made.ask("POST", f"{SEARCH}?k=100&allow_partial=true", **by_bytes).json(),
        made.ask("GET", f"{VECTORS}?allow_partial=true").json(),
        made.ask("GET", f"{VECTORS}/0-1?allow_partial=true").json(),
        made.ask("POST", COUNT, json={"allow_partial": True}).json(),
        made.ask("POST", FACETS, json={"key": "a", "allow_partial": True}).json(),
        made.ask("POST", DELETE, json={**NONE_MATCH, "allow_partial": True}).json(),
    ]
    for body in allowed:
        assert body["partial"] is True
        assert [missing["partition"] for missing in body["missing"]] == [1]
        assert why in body["missing"][0]["why"]
    assert [len(body["hits"]) for body in allowed[:3]] == [50, 50, 50]
    assert len(allowed[3]["vectors"]) == 50
    assert allowed[5]["count"] == 50
    assert made.ask("GET", f"{VECTORS}/1-1?allow_partial=true").status_code == 404
    ready = made.ask("GET", "/readyz")
    assert ready.status_code == 503 and "partition 1" in ready.text and why in ready.text
    problem = made.ask("GET", "/healthz").json()["problems"]["docs"][0]
    assert problem["partition"] == 1 and why in problem["problem"] and problem["since_ms"] > 0
    found = made.lag()["partitions"][1]
    assert why in found["problem"] and found["problem_since_ms"] > 0
    assert 'tidemark_partition_problem{collection="docs",partition="1"} 1.0' in made.ask("GET", "/metrics").text


def assert_whole(made: Deployment) -> None:
    def whole() -> bool:
        answer = made.ask("POST", SEARCH, json=QUERY)
        return answer.status_code == 200 and len(answer.json()["hits"]) == 100 and "partial" not in answer.json()

    wait_until(whole, what=f"whole: {made.ask('POST', SEARCH, json=QUERY).text}")
    page = made.ask("GET", VECTORS).json()
    assert len(page["vectors"]) == 100 and "missing" not in page
    assert made.ask("GET", f"{VECTORS}/1-1").status_code == 200
    wait_until(lambda: made.ask("GET", "/readyz").status_code == 200, what="ready again")
    assert made.ask("GET", "/healthz").json()["problems"] == {}
    assert made.lag()["partitions"][1]["problem"] is None


def test_a_partition_whose_checkpoint_is_damaged_is_missing_until_a_whole_one_comes(deploy: MakeDeployment) -> None:
    made, directory = checkpointed(deploy)
    whole = directory.with_name("whole")
    shutil.copytree(directory, whole)
    damage(directory)
    made.start("api")
    wait_until(lambda: "no checkpoint is whole" in made.started[-1].text, what="damage seen")
    wait_until(lambda: made.ask("POST", SEARCH, json=QUERY).json()["error"]["code"] == "incomplete", what="opened")
    assert_partial(made, "no checkpoint is whole")
    shutil.rmtree(directory)
    whole.rename(directory)
    assert_whole(made)


def test_a_partition_that_an_http_worker_cannot_open_is_missing_until_it_can(deploy: MakeDeployment) -> None:
    """Its files are replaced while the replica has them mapped: only a worker that starts anew is concerned."""
    made, directory = checkpointed(deploy)
    api = made.start("api")
    made.wait_until_ready()
    assert_whole(made)
    vectors_of = next(directory.glob("*/vectors.f32"))
    kept = vectors_of.rename(vectors_of.with_name("kept"))
    vectors_of.write_bytes(b"x" * 100)
    assert made.ask("POST", SEARCH, json=QUERY).status_code == 200
    (worker,) = children(api.process.pid)
    os.kill(worker, signal.SIGKILL)

    def answers() -> bool:
        with contextlib.suppress(httpx.TransportError):
            return made.ask("POST", SEARCH, json=QUERY).status_code == 503
        return False

    wait_until(answers, what="the worker started again")
    assert_partial(made, "is not 50 rows")
    kept.rename(vectors_of)
    assert_whole(made)
