"""`tidemark doctor` over a real topic and real checkpoints: what it finds, and what a repair deletes."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from tests.commands import Tidemark, config
from tests.ports import own_port
from tests.services import Deployment, vectors, wait_until
from tidemark.partitioner import LIBRDKAFKA, Partitioner, partition_of

PARTITIONS = 3


def write(made: Deployment, keys: Iterable[bytes], partitioner: Partitioner | None, number: float | None) -> None:
    """One row of equal numbers for each key, or deletes; by confluent_kafka's default where None is said."""
    own = {"partitioner": LIBRDKAFKA[partitioner]} if partitioner else {}
    producer = Producer({"bootstrap.servers": made.bootstrap_servers, **own})
    for key in keys:
        value = None if number is None else np.full_like(vectors(1)[0], number).tobytes()
        producer.produce(made.topic, value, key)
    assert producer.flush(30) == 0


def keys(first: int, count: int) -> list[bytes]:
    return [f"id-{number}".encode() for number in range(first, first + count)]


def disputed(found: list[bytes]) -> list[bytes]:
    """The ids that the two partitioners put into different partitions."""
    return [k for k in found if partition_of(k, PARTITIONS, "murmur2") != partition_of(k, PARTITIONS, "consistent")]


def diagnosed(made: Deployment, tidemark: Tidemark) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit code, the collection's JSON, and its findings by name."""
    code, output, error = tidemark("doctor", "docs", "--config", str(made.config), "--json")
    assert error == ""
    found = json.loads(output)["collections"][0]
    return code, found, {finding["check"]: finding for finding in found["findings"]}


def test_a_deployment_that_is_well_is_exit_code_0(deploy: Callable[..., Deployment], tidemark: Tidemark) -> None:
    made = deploy(partitions=PARTITIONS)
    write(made, keys(0, 700), "murmur2", 1.0)
    made.start("consumer")
    made.wait_until_checkpointed()
    code, found, findings = diagnosed(made, tidemark)
    assert (code, found["well"], found["ids_in_two_partitions"]) == (0, True, [])
    assert list(findings) == [
        *("topic", "dead-letter topic", "checkpoint directory", "manifests", "log", "consumer"),
        *("consumer runs", "consumer group", "one id, one partition", "partitioner"),
    ]
    assert "none of 700 rows" in findings["one id, one partition"]["message"]
    code, output, _ = tidemark("doctor", "--config", str(made.config))
    assert (code, output.count("ok  "), "PROBLEM" in output) == (0, 10, False)


def test_what_the_consumer_tells_of_a_partition_is_found(deploy: Callable[..., Deployment], tidemark: Tidemark) -> None:
    made = deploy(partitions=PARTITIONS)
    write(made, keys(0, 30), "murmur2", 1.0)
    assert tidemark("doctor", "--config", str(made.config))[0] == 1, "no checkpoint yet"
    consumer = made.start("consumer")
    made.wait_until_checkpointed()
    consumer.terminate()
    client = Consumer({"bootstrap.servers": made.bootstrap_servers, "group.id": made.settings.consumer.group})
    for number, metadata in ((0, "another's"), (1, '{"problem": "the disk is full"}'), (2, "[" * 4_000)):
        client.commit(offsets=[TopicPartition(made.topic, number, 1, metadata)], asynchronous=False)
    client.close()
    code, _, findings = diagnosed(made, tidemark)
    assert (code, findings["consumer"]["well"]) == (1, False)
    assert findings["consumer"]["message"] == "of partition 1 it says: the disk is full"


def test_records_that_wait_while_no_consumer_runs_are_a_problem(
    deploy: Callable[..., Deployment], tidemark: Tidemark
) -> None:
    made = deploy(partitions=PARTITIONS)
    write(made, keys(0, 30), "murmur2", 1.0)
    consumer = made.start("consumer")
    made.wait_until_checkpointed()
    consumer.terminate()
    assert diagnosed(made, tidemark)[2]["consumer runs"]["well"], "all is in a checkpoint"
    write(made, keys(30, 7), "murmur2", 1.0)
    code, _, findings = diagnosed(made, tidemark)
    assert (code, findings["consumer runs"]["well"]) == (1, False)
    assert "and 7 offsets are in no checkpoint" in findings["consumer runs"]["message"]


def test_another_deployment_in_the_same_group_is_noticed(deploy: Callable[..., Deployment], tidemark: Tidemark) -> None:
    """As in DataCater/datacater#60, here with checkpoints: each reads some of the partitions into its own directory."""
    made = deploy(partitions=2)
    write(made, keys(0, 100), "murmur2", 1.0)
    made.start("consumer")
    made.wait_until_checkpointed()
    ours = made.config.read_text()
    made.config.write_text(ours.replace("/checkpoints", "/others"))
    other = made.start("consumer")
    wait_until(lambda: "owns" in other.text, 30, other.text)
    write(made, keys(100, 100), "murmur2", 1.0)
    made.config.write_text(ours)

    def noticed() -> bool:
        _, _, findings = diagnosed(made, tidemark)
        return "has committed offset" in findings["consumer group"]["message"]

    wait_until(noticed, 30, other.text)
    code, _, findings = diagnosed(made, tidemark)
    assert (code, findings["manifests"]["well"]) == (1, True)
    assert "its own consumer.group" in findings["consumer group"]["do"]


def test_ids_placed_by_another_partitioner_name_the_setting(
    deploy: Callable[..., Deployment], tidemark: Tidemark
) -> None:
    made = deploy(partitions=PARTITIONS)
    write(made, keys(0, 300), None, 1.0)
    made.start("consumer")
    made.wait_until_checkpointed()
    code, _, findings = diagnosed(made, tidemark)
    assert (code, findings["one id, one partition"]["well"]) == (1, True)
    assert findings["partitioner"]["do"] == ('set collections.docs.partitioner = "consistent": it explains all of them')


def test_ids_in_two_partitions_are_found_and_their_older_copies_deleted(
    deploy: Callable[..., Deployment], tidemark: Tidemark
) -> None:
    """Ids by confluent_kafka's default, updates and deletes by murmur2; then the other way round for one id."""
    made = deploy(partitions=PARTITIONS)
    write(made, keys(0, 300), None, 1.0)
    write(made, keys(0, 60), "murmur2", 2.0)
    write(made, keys(290, 10), "murmur2", None)
    doubled = {
        k for k in keys(0, 60) if partition_of(k, PARTITIONS, "murmur2") != partition_of(k, PARTITIONS, "consistent")
    }
    newer = next(
        k for k in keys(100, 50) if partition_of(k, PARTITIONS, "murmur2") != partition_of(k, PARTITIONS, "consistent")
    )
    write(made, [newer], "murmur2", 2.0)
    write(made, [newer], None, 3.0)
    made.start("consumer")
    made.wait_until_checkpointed()
    code, found, findings = diagnosed(made, tidemark)
    assert code == 1
    assert {entry["id"].encode() for entry in found["ids_in_two_partitions"]} == doubled | {newer}
    for entry in found["ids_in_two_partitions"]:
        places = {copy["partition"] for copy in entry["copies"]}
        assert places == {partition_of(entry["id"].encode(), PARTITIONS, name) for name in ("murmur2", "consistent")}
    assert f"{len(doubled) + 1} ids are in two partitions" in findings["one id, one partition"]["message"]
    assert "--repair" in findings["one id, one partition"]["do"]
    assert "most fit 'consistent'" in findings["partitioner"]["do"]

    repair = ("doctor", "docs", "--repair", "--config", str(made.config))
    code, output, error = tidemark(*repair)
    assert (code, f"{len(doubled)} copies would be deleted: add --yes" in output) == (1, True)
    assert "1 ids are not touched, because their newest copy" in error
    made.wait_until_checkpointed()
    assert len(diagnosed(made, tidemark)[1]["ids_in_two_partitions"]) == len(doubled) + 1

    code, output, _ = tidemark(*repair, "--yes")
    assert f"{len(doubled)} copies are deleted" in output
    made.wait_until_checkpointed()
    _, found, _ = diagnosed(made, tidemark)
    assert [entry["id"].encode() for entry in found["ids_in_two_partitions"]] == [newer]


def test_a_missing_topic_a_broker_away_and_damage_are_problems_with_what_to_do(
    deploy: Callable[..., Deployment], kafka: str, tidemark: Tidemark, tmp_path: Path
) -> None:
    made = deploy(partitions=1)
    write(made, keys(0, 10), None, 1.0)
    consumer = made.start("consumer")
    made.wait_until_checkpointed()
    assert consumer.terminate() == 0
    partition = next(made.checkpoints.glob("docs/g*/p0"))
    columns = next(partition.glob("seg-*/rows.arrow"))
    columns.write_bytes(columns.read_bytes()[:-1] + b"x")
    _, _, findings = diagnosed(made, tidemark)
    assert "checksum" in findings["one id, one partition"]["message"]
    newest = max(partition.glob("manifest-*.json"))
    newest.write_bytes(b"{}")
    assert str(newest) in diagnosed(made, tidemark)[2]["manifests"]["message"]
    (made.checkpoints / "docs" / "CURRENT").write_bytes(b"nonsense")
    assert "tidemark promote docs" in diagnosed(made, tidemark)[2]["checkpoint directory"]["message"]
    shutil.rmtree(made.checkpoints)
    assert "start the consumer" in diagnosed(made, tidemark)[2]["checkpoint directory"]["do"]

    own = config(tmp_path, kafka, "never-made")
    code, output, _ = tidemark("doctor", "docs", "--config", own)
    assert (code, "topic 'never-made' does not exist" in output) == (1, True)
    code, output, _ = tidemark("doctor", "--config", config(tmp_path, f"127.0.0.1:{own_port()}", "docs"))
    assert (code, "PROBLEM  docs  topic: no broker at" in output) == (1, True)


@pytest.mark.parametrize("arguments", [["--repair"], ["docs", "--repair", "--json"]])
def test_a_repair_is_of_one_collection(arguments: list[str], tidemark: Tidemark, tmp_path: Path) -> None:
    own = config(tmp_path, "127.0.0.1:1", "docs")
    assert tidemark("doctor", *arguments, "--config", own)[0] == 2
