"""An index that misses its recall target is used, and both services say so."""

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from cli.ports import free_port
from tests.rows import unit
from tests.services import DIMENSION, Deployment, wait_until

pytestmark = pytest.mark.kafka


def test_an_index_below_its_target_is_told_by_the_collection_the_metrics_and_once_by_the_log(
    deploy: Callable[..., Deployment],
) -> None:
    port = free_port()
    deployed = deploy(consumer={"port": port}, **{"collections.docs": {"metric": "cosine", "format": "raw"}})
    # All of nearly one direction: the error of a code is larger than what there is between their products.
    noise = np.random.default_rng(0).standard_normal((2_000, DIMENSION))
    rows = unit((1 + 0.01 * noise).astype(np.float32))
    deployed.produce((b"%d" % number, row.tobytes()) for number, row in enumerate(rows))
    consumer = deployed.start("consumer")
    deployed.start("api")
    deployed.wait_until_ready()
    index = wait_until(lambda: (i := _described(deployed)["index"]) and i["version"] and i, 30, consumer.text)
    assert index["below_recall_target"]
    assert index["recall"] < _described(deployed)["recall_target"] == 0.97
    ours, consumers = deployed.ask("GET", "/metrics").text, httpx.get(f"http://127.0.0.1:{port}/metrics").text
    for metrics, name in ((ours, "tidemark_index_recall{"), (consumers, "tidemark_segment_recall_min{")):
        (least,) = [line for line in metrics.splitlines() if line.startswith(name)]
        assert float(least.split()[-1]) == pytest.approx(index["recall"])
    assert 'tidemark_index_below_recall_target{collection="docs"} 1.0' in ours
    assert 'tidemark_segments_below_recall_target{collection="docs",partition="0"} 1.0' in consumers
    lines = [line for line in consumer.text.splitlines() if f"quantizer {index['version']} has recall" in line]
    assert len(lines) == 1
    assert f"recall {index['recall']:.3f} where index.recall_target asks for 0.970" in lines[0]


def _described(deployed: Deployment) -> dict[str, Any]:
    return deployed.ask("GET", "/collections/docs").json()  # type: ignore[no-any-return]
