"""The consumer against a real Kafka: what it applies, hands over, refuses and dead-letters."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from cli.ports import free_port
from tests.processes import children
from tests.services import DIMENSION, Deployment, Service, vectors, wait_until
from tests.test_crash_points import opened
from tidemark.checkpoint import Checkpoints
from tidemark.service import EXIT_UNAVAILABLE
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]


def _ids(deployed: Deployment, partition: int = 0) -> set[bytes]:
    return {hit.id for hit in opened(deployed, partition).scan()}


def _upserts(count: int, seed: int = 0, prefix: str = "id") -> list[tuple[bytes, bytes]]:
    return [(f"{prefix}-{i}".encode(), row.tobytes()) for i, row in enumerate(vectors(count, seed))]


def test_a_tombstone_deletes_and_the_newest_write_of_an_id_wins(deploy: MakeDeployment) -> None:
    deployed = deploy()
    deployed.start("consumer")
    rows = vectors(50)
    many = [(b"same", row.tobytes()) for row in rows]
    deployed.produce([*many, (b"gone", rows[0].tobytes()), (b"gone", None), (b"never-there", None)])
    deployed.wait_until_checkpointed()
    view = opened(deployed)
    assert _ids(deployed) == {b"same"}
    hit = view.get(b"same")
    assert hit is not None and np.array_equal(hit.vector, rows[-1])


BAD: dict[str, tuple[bytes | None, bytes]] = {
    "no_key": (None, b"\0" * 4 * DIMENSION),
    "bad_key": (b"\xff\xfe", b"\0" * 4 * DIMENSION),
    "dimension": (b"short", b"\0" * 8),
    "not_finite": (b"nan", np.full(DIMENSION, np.nan, np.float32).tobytes()),
    "decode": (b"json", b'{"vector": [1, 2'),
    "too_large": (b"k" * 2_000, b"\0" * 4 * DIMENSION),
}


def test_each_kind_of_bad_record_goes_to_the_dead_letter_topic_with_its_coordinates_and_reason(
    deploy: MakeDeployment,
) -> None:
    deployed = deploy()
    deployed.start("consumer")
    deployed.produce([*_upserts(3), *BAD.values(), *_upserts(3, prefix="after")])
    deployed.wait_until_checkpointed()
    assert len(_ids(deployed)) == 6
    letters = _read_all(deployed.bootstrap_servers, f"{deployed.topic}.dead-letters", len(BAD))
    found = {dict(letter.headers())["tidemark.reason"].decode(): letter for letter in letters}
    assert set(found) == set(BAD)
    for number, (reason, (key, value)) in enumerate(BAD.items()):
        headers = dict(found[reason].headers())
        assert (found[reason].key(), found[reason].value()) == (key, value)
        assert headers["__connect.errors.topic"].decode() == deployed.topic
        assert headers["__connect.errors.offset"] == str(3 + number).encode()


def _read_all(bootstrap_servers: str, topic: str, count: int) -> list[Any]:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "letters"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    found: list[Any] = []
    wait_until(lambda: found.extend(consumer.consume(100, 0.2)) or len(found) >= count, 15, "dead letters")
    consumer.close()
    return found


def test_records_produced_while_the_consumer_is_down_are_replayed_from_its_checkpoint(deploy: MakeDeployment) -> None:
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(500))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.produce([*_upserts(300, seed=1), (b"id-400", None)])
    second = deployed.start("consumer")
    deployed.wait_until_checkpointed()
    assert "from position 500 (500 rows" in second.text
    assert len(_ids(deployed)) == 499


def test_sigterm_checkpoints_commits_and_exits_with_0(deploy: MakeDeployment) -> None:
    deployed = deploy(checkpoint={"interval_s": 3600.0})
    consumer = deployed.start("consumer")
    wait_until(lambda: "owns" in consumer.text, 30, consumer.text)
    deployed.produce(_upserts(200))
    time.sleep(1.0)
    assert consumer.terminate() == 0
    assert deployed.manifest_position(0) == 200
    topics = Topics(deployed.settings.kafka)
    committed = topics.committed(deployed.topic, [(deployed.topic, 0)])
    assert committed[(deployed.topic, 0)].offset == 200


def test_offsets_are_committed_only_after_the_checkpoint_is_durable(deploy: MakeDeployment) -> None:
    deployed = deploy()
    killed = deployed.start("consumer", TIDEMARK_CRASH_AT="dead-rows-durable")
    deployed.produce(_upserts(100))
    wait_until(lambda: killed.process.poll() is not None, 30, killed.text)
    assert deployed.manifest_position(0) == 0
    assert Topics(deployed.settings.kafka).committed(deployed.topic, [(deployed.topic, 0)]) == {}


def test_two_consumers_share_the_partitions_and_hand_them_over_without_loss(deploy: MakeDeployment) -> None:
    deployed = deploy(partitions=4)
    one = deployed.start("consumer")
    wait_until(lambda: one.text.count("owns") == 4, 30, one.text)
    deployed.produce(_upserts(2_000))
    two = deployed.start("consumer")
    wait_until(lambda: two.text.count("owns") >= 2, 60, "two partitions handed over")
    deployed.produce(_upserts(2_000, seed=1, prefix="more"))
    deployed.wait_until_checkpointed()
    one.kill()
    deployed.produce(_upserts(500, seed=2, prefix="last"))
    deployed.wait_until_checkpointed(60)
    assert sum(len(_ids(deployed, partition)) for partition in range(4)) == 4_500
    assert two.terminate() == 0


def test_partitions_that_are_not_read_can_be_revoked(deploy: MakeDeployment) -> None:
    deployed = deploy(partitions=2)
    deployed.produce(_upserts(200))
    current = deployed.checkpoints / "docs" / "CURRENT"
    current.parent.mkdir(parents=True)
    current.write_text("{")  # each partition is refused
    first = deployed.start("consumer")
    wait_until(lambda: "not taken over" in first.text, 20, "refused")
    second = deployed.start("consumer")
    wait_until(lambda: "not taken over" in second.text, 20, "one is the second one's")
    current.unlink()
    deployed.wait_until_checkpointed()
    assert [first.text.count("owns docs-"), second.text.count("owns docs-")] == [1, 1]
    assert first.process.poll() is None


def test_a_static_member_that_is_replaced_ends_in_one_line(deploy: MakeDeployment) -> None:
    deployed = deploy(kafka={"group.instance.id": "one"})
    consumer = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    settings = {"bootstrap.servers": deployed.bootstrap_servers, "group.id": deployed.topic, "group.instance.id": "one"}
    other = Consumer({**settings, "partition.assignment.strategy": "cooperative-sticky"})
    other.subscribe([deployed.topic])
    try:
        wait_until(lambda: (other.poll(0.1), consumer.process.poll())[-1], 30, "the one that was replaced ends")
    finally:
        other.close()
    assert consumer.process.poll() == EXIT_UNAVAILABLE
    assert re.search(r"^error: the Kafka client has ended for good .*start this process again", consumer.text, re.M)
    deployed.produce(_upserts(100, prefix="more"))
    deployed.start("consumer")
    deployed.wait_until_checkpointed()


def test_a_paused_owner_that_wakes_up_cannot_publish(deploy: MakeDeployment) -> None:
    """It has applied what no checkpoint holds, and its next version is free again: the heir's was obsolete."""
    deployed = deploy(
        kafka={"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}, checkpoint={"interval_s": 0.1, "grace_s": 0.0}
    )
    zombie = deployed.start("consumer", TIDEMARK_CHECKPOINT__INTERVAL_S="3600")
    wait_until(lambda: "owns" in zombie.text, 30, zombie.text)
    deployed.produce(_upserts(300))
    wait_until(lambda: applied(zombie) == 300, 30, zombie.text)
    zombie.process.send_signal(signal.SIGSTOP)
    heir = deployed.start("consumer")
    wait_until(lambda: "owns" in heir.text, 60, heir.text)
    claimed = _manifests(deployed)
    for number in range(8):
        deployed.produce(_upserts(10, seed=number, prefix=f"new-{number}"))
        deployed.wait_until_checkpointed()
    free = max(version for version, epoch in claimed.items() if epoch == 1) + 1
    wait_until(lambda: free not in _manifests(deployed), 30, "the heir's first manifests are removed")
    zombie.process.send_signal(signal.SIGCONT)
    wait_until(lambda: "was claimed under epoch" in zombie.text, 30, zombie.text)
    deployed.produce(_upserts(300, seed=9, prefix="newer"))
    deployed.wait_until_checkpointed()
    left = _manifests(deployed)
    assert not {version for version, epoch in left.items() if epoch == 1 and version >= min(free, *claimed)}
    collection = deployed.settings.collection("docs")
    checkpoints = Checkpoints(deployed.checkpoints, collection, "g000001", 0)
    loaded = checkpoints.load()
    assert loaded is not None and loaded.damaged == []
    assert len(_ids(deployed)) == 300 + 80 + 300


def applied(consumer: Service) -> int:
    """How many records it has applied, by its own metrics; -1 while it does not say."""
    port = re.search(r"metrics and health on port (\d+)", consumer.text)
    assert port is not None
    metrics = httpx.get(f"http://127.0.0.1:{port[1]}/metrics").text
    found = re.search(r"^tidemark_records_applied_total{.*} (\S+)$", metrics, re.MULTILINE)
    return int(float(found[1])) if found else -1


def _manifests(deployed: Deployment) -> dict[int, int]:
    """The writer's epoch of each manifest of partition 0, by version."""
    checkpoints = Checkpoints(deployed.checkpoints, deployed.settings.collection("docs"), "g000001", 0)
    found: dict[int, int] = {}
    for version in checkpoints.versions():
        with contextlib.suppress(FileNotFoundError):  # removed as obsolete meanwhile
            found[version] = checkpoints.read(version).writer_epoch
    return found


def test_a_recreated_topic_stops_the_partition_and_keeps_the_checkpoint(deploy: MakeDeployment) -> None:
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    admin.delete_topics([deployed.topic])[deployed.topic].result()
    topics = Topics(deployed.settings.kafka)
    wait_until(lambda: not topics.exists(deployed.topic), 20, "deleted")
    topics.create(deployed.topic, 1)
    deployed.produce(_upserts(300, prefix="other"))
    second = deployed.start("consumer")
    wait_until(lambda: "it was deleted and created again" in second.text, 30, second.text)
    assert len(_ids(deployed)) == 100


def test_a_log_that_starts_after_the_checkpoint_stops_the_partition(deploy: MakeDeployment) -> None:
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.produce(_upserts(100, prefix="unread"))
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(deployed.topic, 0, 150)]).values():
        future.result()
    second = deployed.start("consumer")
    wait_until(lambda: "50 offsets were removed unread" in second.text, 30, second.text)
    assert len(_ids(deployed)) == 100


def test_a_builder_that_is_killed_is_started_again(deploy: MakeDeployment) -> None:
    deployed = deploy(**{"collections.docs.index": {"kind": "hnsw", "ann_rows_min": 256}})
    consumer = deployed.start("consumer")
    deployed.produce(_upserts(2_000))
    wait_until(lambda: "built hnsw" in consumer.text, 30, consumer.text)
    os.kill(children(consumer.process.pid).pop(), signal.SIGKILL)
    deployed.produce(_upserts(2_000, prefix="more"))
    wait_until(lambda: consumer.text.count("built hnsw") >= 2, 30, consumer.text)
    assert consumer.process.poll() is None


def test_a_checkpoint_of_another_dimension_is_refused(deploy: MakeDeployment) -> None:
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(10))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.config.write_text(deployed.config.read_text().replace(f'"dimension" = {DIMENSION}', '"dimension" = 8'))
    second = deployed.start("consumer")
    wait_until(lambda: "dimension was 16, is 8" in second.text, 30, second.text)


@pytest.mark.parametrize(
    ("table", "setting", "value", "said"),
    [
        ("checkpoint", "intervall_s", 1, "did you mean checkpoint.interval_s"),
        ("kafka", "bootstrap.servers", "127.0.0.1:1", "no broker at 127.0.0.1:1 answered"),
        ("kafka", "enable.auto.commit", True, "Tidemark sets this itself"),
        ("collections.docs", "topic", "no-such-topic", "create it"),
        ("checkpoint", "url", "s3://bucket", "only a directory"),
        ("checkpoint", "url", "file:///proc/none", "writable"),
    ],
)
def test_a_consumer_that_cannot_start_says_in_one_line_what_to_do(
    deploy: MakeDeployment, table: str, setting: str, value: Any, said: str
) -> None:
    deployed = deploy(**{table: {setting: value}})
    consumer = deployed.start("consumer")
    assert consumer.process.wait(40) in (69, 78)
    assert said in consumer.text
    assert "Traceback" not in consumer.text


def test_a_second_consumer_on_the_same_metrics_port_is_refused(deploy: MakeDeployment) -> None:
    deployed = deploy(consumer={"port": free_port()})
    first = deployed.start("consumer")
    wait_until(lambda: "metrics and health" in first.text, 20, first.text)
    second = deployed.start("consumer")
    assert second.process.wait(30) in (69, 78)
    assert "in use" in second.text


def test_replay_with_another_index_makes_the_same_state_and_switches_to_it(deploy: MakeDeployment) -> None:
    deployed = deploy(partitions=2)
    consumer = deployed.start("consumer")
    deployed.produce([*_upserts(3_000), *((f"id-{i}".encode(), None) for i in range(0, 3_000, 5))])
    deployed.wait_until_checkpointed()
    before = [(opened(deployed, p).state.digest, opened(deployed, p).state.position) for p in (0, 1)]
    replay = deployed.start("consumer", "replay", "docs", "--index", '{"kind": "hnsw"}')
    assert replay.process.wait(60) == 0, replay.text
    wait_until(lambda: "generation g000002" in consumer.text, 20, consumer.text)
    assert [(opened(deployed, p).state.digest, opened(deployed, p).state.position) for p in (0, 1)] == before
    assert {segment.kind for segment in deployed.newest_manifest().segments} == {"hnsw"}
    deployed.produce(_upserts(100, prefix="later"))
    deployed.wait_until_checkpointed()
    assert sum(len(_ids(deployed, partition)) for partition in (0, 1)) == 2_500
