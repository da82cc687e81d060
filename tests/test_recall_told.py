"""A collection whose codes miss the recall target is served, and both services say so."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from tests.ports import own_port
from tests.rows import unit
from tests.services import DIMENSION, Deployment, wait_until

pytestmark = pytest.mark.kafka


def test_an_index_below_its_target_is_told_by_the_collection_the_metrics_and_once_by_the_log(
    deploy: Callable[..., Deployment],
) -> None:
    port = own_port()
    deployed = deploy(consumer={"port": port}, **{"collections.docs": {"metric": "cosine", "format": "raw"}})
    consumer = deployed.start("consumer")
    deployed.start("api")
    # All of nearly one direction: the error of a code is larger than what there is between their products.
    noise = np.random.default_rng(0).standard_normal((2_000, DIMENSION))
    rows = unit((1 + 0.01 * noise).astype(np.float32))
    deployed.produce((b"%d" % number, row.tobytes()) for number, row in enumerate(rows))
    deployed.wait_until_ready()
    wait_until(lambda: (_index(deployed) or {}).get("below_recall_target"), 30, consumer.text)
    wait_until(lambda: "has recall" in consumer.text, 30, consumer.text)
    index = _index(deployed)
    assert index is not None and index["recall"] < 0.97
    metrics = deployed.ask("GET", "/metrics").text
    assert 'tidemark_index_below_recall_target{collection="docs"} 1.0' in metrics

    def told() -> list[str]:
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        return [line for line in lines if line.startswith("tidemark_quantizer_recall{")]

    assert float(wait_until(told, 30, consumer.text)[0].split()[-1]) < 0.97
    (line,) = [line for line in consumer.text.splitlines() if "docs: quantizer 1 has recall" in line]
    assert "where index.recall_target asks for 0.970" in line


def _index(deployed: Deployment) -> dict[str, Any] | None:
    found = deployed.ask("GET", "/collections/docs").json()
    assert found["recall_target"] == 0.97
    return found["index"]  # type: ignore[no-any-return]
