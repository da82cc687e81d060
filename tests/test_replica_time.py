"""How old a replica's answers are: by its own clock, from when the brokers were asked, whatever records say."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from cli.local_kafka import LocalKafka
from tests.services import Deployment, deployment, vectors, wait_until
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
DAY_MS = 86_400_000


def set_topic(made: Deployment, **config: str) -> None:
    """Make the topic of a deployment again, with another configuration."""
    topics = Topics(made.settings.kafka)
    topics._admin.delete_topics([made.topic])[made.topic].result()
    wait_until(lambda: not topics.exists(made.topic))
    topics.create(made.topic, made.partitions, {name.replace("_", "."): value for name, value in config.items()})


def produce_at(made: Deployment, timestamp_ms: int, count: int, partition: int) -> None:
    producer = Producer({"bootstrap.servers": made.bootstrap_servers})
    errors: list[Any] = []
    for number, vector in enumerate(vectors(count)):
        producer.produce(
            made.topic,
            vector.tobytes(),
            b"id-%d" % number,
            partition,
            timestamp=timestamp_ms,
            on_delivery=lambda error, _: errors.append(error),
        )
    assert producer.flush(20) == 0
    assert set(errors) == {None}


def partitions(made: Deployment) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.lag()["partitions"]
    return found


def test_a_lag_grows_in_real_time_whatever_timestamps_the_records_have(deploy: MakeDeployment) -> None:
    """A producer's clock is a day ahead, at the beginning of time, and before it; the replica is held at its cap."""
    made = deploy(partitions=3, api={"tail_rows_max": 100, "fetch_records": 50})
    set_topic(made, message_timestamp_after_max_ms=str(2 * DAY_MS), message_timestamp_type="CreateTime")
    made.start("api")
    made.wait_until_ready()
    wait_until(lambda: [p["time_lag_ms"] for p in partitions(made)] == [0, 0, 0], what="nothing to do is no lag")
    started_ms = time.time() * 1000
    for partition, timestamp_ms in enumerate([int(started_ms) + DAY_MS, 1, -5]):
        produce_at(made, timestamp_ms, 1_000, partition)
    wait_until(lambda: {p["state"] for p in partitions(made)} == {"waiting"}, what=f"held: {partitions(made)}")
    held_ms = time.time() * 1000
    wait_until(lambda: min(p["time_lag_ms"] for p in partitions(made)) > 1_500, what=f"lags: {partitions(made)}")
    for found in partitions(made):
        elapsed_ms = time.time() * 1000 - started_ms
        assert time.time() * 1000 - held_ms - 100 <= found["time_lag_ms"] <= elapsed_ms + 5_000, found
        assert found["offset_lag"] > 0
        assert found["caught_up_ms"] <= held_ms
    answer = made.ask("POST", "/collections/docs/search", json={"vector": [1.0] * 16}).json()
    assert answer["staleness_ms"] > 1_500


def test_while_a_broker_hangs_the_age_counts_from_when_it_was_last_asked(tmp_path: Path) -> None:
    broker = LocalKafka(tmp_path / "kafka", fast_start=True)
    broker.start()
    try:
        with deployment(tmp_path, broker.bootstrap_servers) as made:
            made.start("api")
            made.produce([(b"a", vectors(1).tobytes())])
            made.wait_until_ready()
            wait_until(lambda: partitions(made)[0]["time_lag_ms"] == 0, what="caught up")
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            found = wait_until(
                lambda: (p := partitions(made)[0])["time_lag_ms"] and p, what="not called caught up any more"
            )
            assert found["offset_lag"] == 0, "said before its last answer counts as too old to know the end"
            for _ in range(5):
                since_ms = (time.monotonic() - stopped) * 1000
                assert partitions(made)[0]["time_lag_ms"] >= since_ms
            os.kill(broker.pid, signal.SIGCONT)
            wait_until(lambda: partitions(made)[0]["time_lag_ms"] == 0, what="caught up again")
    finally:
        broker.stop()


def test_a_replica_behind_for_longer_than_deletes_are_kept_waits_for_a_newer_checkpoint(deploy: MakeDeployment) -> None:
    made = deploy(api={"tail_rows_max": 100, "fetch_records": 50}, checkpoint={"interval_s": 3_600, "rows": 700})
    set_topic(made, cleanup_policy="compact", delete_retention_ms="3000")
    made.start("consumer")
    made.start("api")
    made.wait_until_ready()
    made.produce([(b"id-%d" % n, vector.tobytes()) for n, vector in enumerate(vectors(500))])
    wait_until(
        lambda: "delete.retention.ms=3000" in (partitions(made)[0]["problem"] or ""), what=f"refused: {made.lag()}"
    )
    refused = partitions(made)[0]
    assert refused["state"] == "stopped"
    assert 0 < refused["problem_since_ms"] <= time.time() * 1000
    made.produce([(b"id-%d" % n, vector.tobytes()) for n, vector in enumerate(vectors(500), 500)])
    made.wait_until_applied()
    wait_until(lambda: partitions(made)[0]["state"] == "following", what=f"goes on: {made.lag()}")
    assert partitions(made)[0]["problem"] is None
    assert made.lag()["live_rows"] == 1_000
