"""Ids that two partitioners have placed in different partitions are met, told, and forgotten when that is mended."""

from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from tests.services import Deployment, vectors, wait_until

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
IDS, PARTITIONS = 300, 4


def produce(made: Deployment, partitioner: str) -> None:
    producer = Producer({"bootstrap.servers": made.bootstrap_servers, "partitioner": partitioner})
    for number, vector in enumerate(vectors(IDS)):
        producer.produce(made.topic, vector.tobytes(), b"id-%d" % number)
    assert producer.flush(20) == 0


def test_ids_placed_by_two_partitioners_are_counted_and_the_remedy_named(deploy: MakeDeployment) -> None:
    made = deploy(partitions=PARTITIONS)
    made.start("consumer")
    made.start("api")
    made.wait_until_ready()
    for _ in range(2):
        produce(made, "murmur2_random")
    made.wait_until_applied()
    made.wait_until_checkpointed()
    assert made.lag()["live_rows"] == IDS
    assert (made.lag()["ids_in_two_partitions"], made.lag()["warning"]) == (0, None)
    produce(made, "consistent_random")
    made.wait_until_applied()
    twice = made.lag()["live_rows"] - IDS
    assert 0 < twice < IDS
    wait_until(lambda: made.lag()["ids_in_two_partitions"] > 0, what=f"met: {made.lag()}")
    assert made.lag()["ids_in_two_partitions"] <= twice
    assert "run `tidemark doctor docs`" in made.lag()["warning"]
    assert "tidemark_ids_in_two_partitions{" in made.ask("GET", "/metrics").text
    for partition in range(PARTITIONS):
        made.produce([(b"id-%d" % number, None) for number in range(IDS)], partition)
    wait_until(lambda: made.lag()["warning"] is None, what=f"mended: {made.lag()}")
    assert made.lag()["ids_in_two_partitions"] == 0
