"""Where ids are placed: our functions beside librdkafka's, and all three writers of one collection alike."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer

from cli.produce import produce_file
from tests.services import Deployment, vectors
from tidemark.errors import BadConfiguration
from tidemark.kafka_settings import check, producer_settings
from tidemark.partitioner import LIBRDKAFKA, PARTITIONERS, Partitioner, fnv1a, murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "hashed"),
    [  # of Kafka's UtilsTest.testMurmur2
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_that_of_kafkas_own_tests(key: str, hashed: int) -> None:
    assert murmur2(key.encode()) == hashed % (1 << 32)


def test_fnv1a_is_the_absolute_value_of_the_published_hash() -> None:
    assert fnv1a(b"a") == (1 << 32) - 0xE40C292C  # the published vectors, negative as signed numbers
    assert fnv1a(b"foobar") == (1 << 32) - 0xBF9CF968


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_each_partitioner_chooses_as_librdkafka_does(
    partitioner: Partitioner, deploy: Callable[..., Deployment]
) -> None:
    deployed, random = deploy(partitions=7), np.random.default_rng(1)
    keys = [random.bytes(length) for length in range(1, 200)] + [b"\x00", b"\xff" * 5, "é".encode(), b"a" * 1024]
    chosen: dict[bytes, int] = {}
    producer = Producer(producer_settings(deployed.settings.kafka, partitioner))
    for key in keys:
        producer.produce(deployed.topic, b"", key, on_delivery=lambda _, m: chosen.update({m.key(): m.partition()}))
    assert producer.flush(30) == 0
    assert chosen == {key: partition_of(key, 7, partitioner) for key in keys}
    assert len(set(chosen.values())) == 7


def test_a_client_that_sets_no_partitioner_is_consistent(deploy: Callable[..., Deployment]) -> None:
    deployed = deploy(partitions=5)
    chosen: dict[bytes, int] = {}
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers})
    for number in range(50):
        producer.produce(
            deployed.topic, b"", f"id-{number}", on_delivery=lambda _, m: chosen.update({m.key(): m.partition()})
        )
    assert producer.flush(30) == 0
    assert chosen == {key: partition_of(key, 5, "consistent") for key in chosen}


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_the_command_line_and_http_place_ids_as_the_collections_other_producers_do(
    partitioner: Partitioner, deploy: Callable[..., Deployment], tmp_path: Path
) -> None:
    """What another client wrote is replaced and deleted by `tidemark produce`, and no id is stored twice."""
    deployed = deploy(partitions=3, **{"collections.docs": {"partitioner": partitioner}})
    rows = vectors(20)
    producer = Producer({"bootstrap.servers": deployed.bootstrap_servers, "partitioner": LIBRDKAFKA[partitioner]})
    for number, row in enumerate(rows):
        producer.produce(deployed.topic, row.tobytes(), f"row-{number}")
    assert producer.flush(30) == 0
    deployed.start("api")
    deployed.wait_until_ready()
    lines = [{"id": f"row-{n}", "vector": [float(n)] * rows.shape[1]} for n in range(10)]
    deletes = [{"id": f"row-{n}", "deleted": True} for n in range(10, 20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *deletes]))
    produce_file("docs", str(tmp_path / "rows.jsonl"), "", None, deployed.config)
    new = [{"id": f"new-{n}", "vector": [100.0] * rows.shape[1]} for n in range(10)]
    assert deployed.ask("POST", "/collections/docs/vectors", json={"upserts": new}).status_code == 202
    deployed.wait_until_applied()
    assert sum(partition["live_rows"] for partition in deployed.lag()["partitions"]) == 20
    for number in range(10):
        assert deployed.ask("GET", f"/collections/docs/vectors/row-{number}").json()["vector"][0] == number
        found = deployed.ask("GET", f"/collections/docs/vectors/new-{number}").json()
        assert found["partition"] == partition_of(f"new-{number}".encode(), 3, partitioner)


def test_a_partitioner_among_the_kafka_settings_is_refused_with_the_setting_to_use() -> None:
    with pytest.raises(BadConfiguration, match=r"set collections\.NAME\.partitioner"):
        check({"bootstrap.servers": "x", "partitioner": "consistent_random"})
