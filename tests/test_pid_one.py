"""The services as process 1, which they are in a container that has no init."""

from collections.abc import Callable

import pytest

from tests import pid_one
from tests.services import Deployment, vectors, wait_until

pytestmark = pytest.mark.kafka


def test_a_consumer_that_is_process_1_builds_indexes(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy()
    consumer = deployed.start("consumer", within=pid_one.unshare())
    deployed.produce((f"id-{i}".encode(), row.tobytes()) for i, row in enumerate(vectors(2_000)))
    wait_until(lambda: "built ivfpq" in consumer.text or "builder failed" in consumer.text, 30, consumer.text)
    assert "builder failed" not in consumer.text
