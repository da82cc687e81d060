"""A partition that is refused says why, is tried again, and goes on by itself once it can; against a real Kafka."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from cli.local_kafka import LocalKafka
from tests.ports import own_port
from tests.services import Deployment, Service, deployment, wait_until
from tests.test_consumer import _ids, _upserts
from tests.test_holding_back import _told
from tidemark.checkpoint import Checkpoints
from tidemark.manifest import TopicIdentity
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]


def _health(deployed: Deployment) -> dict[str, Any]:
    port = deployed.settings.consumer.port
    return httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5).json()  # type: ignore[no-any-return]


def _problem(deployed: Deployment) -> dict[str, Any]:
    with contextlib.suppress(httpx.ConnectError):  # it is starting
        return _health(deployed)["problems"].get(f"{deployed.topic}[0]", {})  # type: ignore[no-any-return]
    return {}


def _remove_records(deployed: Deployment, before: int) -> None:
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    for future in admin.delete_records([TopicPartition(deployed.topic, 0, before)]).values():
        future.result()


def _make_again(deployed: Deployment) -> None:
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    admin.delete_topics([deployed.topic])[deployed.topic].result()
    topics = Topics(deployed.settings.kafka)
    wait_until(lambda: not topics.exists(deployed.topic), 20, "deleted")
    topics.create(deployed.topic, deployed.partitions)


def _replay(deployed: Deployment) -> None:
    replay = deployed.start("consumer", "replay", "docs")
    assert replay.process.wait(60) == 0, replay.text


def test_after_a_gap_and_its_remedy_the_running_consumer_serves_the_new_generation(deploy: MakeDeployment) -> None:
    deployed = deploy(consumer={"port": own_port()})
    first = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.produce(_upserts(100, prefix="unread"))
    _remove_records(deployed, before=150)
    before_ms = time.time_ns() // 1_000_000
    consumer = deployed.start("consumer")
    wait_until(lambda: "50 offsets were removed unread" in _problem(deployed).get("problem", ""), 30, consumer.text)
    assert before_ms <= _problem(deployed)["since_ms"] <= time.time_ns() // 1_000_000
    wait_until(lambda: "50 offsets were removed unread" in _told(deployed).get("problem", ""), 20, "said to the api")
    _replay(deployed)
    wait_until(lambda: "problem" not in _told(deployed), 20, "taken back without any new record")
    wait_until(lambda: _problem(deployed) == {}, 20, "no problem is left")
    deployed.produce(_upserts(50, prefix="later"))
    deployed.wait_until_checkpointed()
    assert "problem" not in _told(deployed)
    assert len(_ids(deployed)) == 100
    assert consumer.process.poll() is None


def test_a_topic_made_again_while_the_consumer_runs_stops_its_partition_until_a_replay(deploy: MakeDeployment) -> None:
    deployed = deploy(consumer={"port": own_port()})
    consumer = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    _make_again(deployed)
    deployed.produce(_upserts(300, prefix="other"))
    wait_until(lambda: "it was deleted and created again" in _problem(deployed).get("problem", ""), 45, consumer.text)
    assert len(_ids(deployed)) == 100
    _replay(deployed)
    deployed.wait_until_checkpointed()
    assert {id_[:5] for id_ in _ids(deployed)} == {b"other"}
    wait_until(lambda: _problem(deployed) == {}, 20, "no problem is left")


def test_a_stale_owner_that_still_has_its_partition_takes_it_over_again(deploy: MakeDeployment) -> None:
    deployed = deploy()
    consumer = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    stranger = Checkpoints(deployed.checkpoints, deployed.settings.collection("docs"), "g000001", 0)
    newest = deployed.newest_manifest()
    assert stranger.claim(TopicIdentity(newest.cluster_id, newest.topic_id), stranger.load(), 0)
    deployed.produce(_upserts(100, prefix="more"))
    deployed.wait_until_checkpointed()
    assert consumer.text.count("owns docs-") == 2
    assert deployed.newest_manifest().writer_epoch == 3
    assert len(_ids(deployed)) == 200


def test_a_hundred_partitions_are_taken_over_by_one_consumer(deploy: MakeDeployment) -> None:
    deployed = deploy(partitions=100)
    consumer = deployed.start("consumer")
    wait_until(lambda: consumer.text.count("owns") == 100, 60, consumer.text[-2000:])
    deployed.produce(_upserts(1_000))
    deployed.wait_until_checkpointed(60)
    assert sum(len(_ids(deployed, number)) for number in range(100)) == 1_000
    limits = Path(f"/proc/{consumer.process.pid}/limits").read_text()
    soft, hard = re.search(r"Max open files +(\d+) +(\d+)", limits).groups()  # type: ignore[union-attr]
    assert int(soft) == min(65_536, int(hard))
    assert consumer.terminate() == 0


def test_a_consumer_whose_brokers_are_silent_stays_alive_and_goes_on_when_they_answer(tmp_path: Path) -> None:
    with (
        LocalKafka(tmp_path / "kafka", fast_start=True) as kafka,
        deployment(tmp_path, kafka.bootstrap_servers, 2, consumer={"port": own_port()}) as deployed,
    ):
        consumer = deployed.start("consumer")
        deployed.produce(_upserts(100))
        deployed.wait_until_checkpointed()
        assert kafka.pid is not None
        os.kill(kafka.pid, signal.SIGSTOP)
        try:
            for _ in range(24):
                time.sleep(0.5)
                assert _health(deployed)["turned_seconds_ago"] < 3.0
        finally:
            os.kill(kafka.pid, signal.SIGCONT)
        deployed.produce(_upserts(100, prefix="more"))
        deployed.wait_until_checkpointed()
        assert sum(len(_ids(deployed, number)) for number in range(2)) == 200
        _assert_stops(consumer)


def _assert_stops(consumer: Service) -> None:
    assert consumer.terminate() == 0
    assert "Traceback" not in consumer.text


def test_what_a_replay_reads_first_is_dead_lettered_by_it(deploy: MakeDeployment) -> None:
    """After a gap no consumer has read the records that the replay does."""
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.produce([*_upserts(100, prefix="unread"), (b"bad", b"\0\0\0")])
    _remove_records(deployed, before=150)
    _replay(deployed)
    letters = Topics(deployed.settings.kafka).ends([(f"{deployed.topic}.dead-letters", 0)])
    assert list(letters.values()) == [1]
    assert json.dumps(deployed.newest_manifest().position) == "201"


def test_a_topic_that_is_missing_stops_its_collection_only(deploy: MakeDeployment) -> None:
    other = {"topic": f"missing-{os.urandom(4).hex()}", "dimension": 4}
    deployed = deploy(consumer={"port": own_port()}, **{"collections.other": other})
    consumer = deployed.start("consumer")
    deployed.produce(_upserts(100))
    deployed.wait_until_checkpointed()
    wait_until(lambda: "create it" in _health(deployed)["topics"].get(other["topic"], ""), 20, consumer.text)
    assert consumer.terminate() == 0
