"""A segment that misses its recall target is served, and both services say so."""

from collections.abc import Callable

import httpx
import numpy as np
import pytest

from cli.ports import free_port
from tests.rows import unit
from tests.services import DIMENSION, Deployment, wait_until

pytestmark = pytest.mark.kafka


def test_a_segment_below_its_target_is_told_by_the_collection_the_metrics_and_once_by_the_log(
    deploy: Callable[..., Deployment],
) -> None:
    port = free_port()
    deployed = deploy(consumer={"port": port}, **{"collections.docs": {"metric": "cosine", "format": "raw"}})
    consumer = deployed.start("consumer")
    deployed.start("api")
    # All of nearly one direction: the error of a code is larger than what there is between their products.
    noise = np.random.default_rng(0).standard_normal((2_000, DIMENSION))
    rows = unit((1 + 0.01 * noise).astype(np.float32))
    deployed.produce((b"%d" % number, row.tobytes()) for number, row in enumerate(rows))
    deployed.wait_until_ready()
    missed = wait_until(lambda: _described(deployed)["segments_below_recall_target"], 30, consumer.text)
    assert missed == 1
    described = _described(deployed)
    (segment,) = [segment for segment in described["segments"] if segment["below_recall_target"]]
    assert segment["recall"] < described["recall_target"] == 0.97
    for metrics in (deployed.ask("GET", "/metrics").text, httpx.get(f"http://127.0.0.1:{port}/metrics").text):
        (least,) = [line for line in metrics.splitlines() if line.startswith("tidemark_segment_recall_min{")]
        assert float(least.split()[-1]) == pytest.approx(segment["recall"])
        assert 'tidemark_segments_below_recall_target{collection="docs",partition="0"} 1.0' in metrics
    lines = [line for line in consumer.text.splitlines() if f"the index of segment {segment['name']}" in line]
    assert len(lines) == 1
    assert f"recall {segment['recall']:.3f} where index.recall_target asks for 0.970" in lines[0]


def _described(deployed: Deployment) -> dict[str, object]:
    return deployed.ask("GET", "/collections/docs").json()  # type: ignore[no-any-return]
