"""What a replica says of partitions that are refused, by itself or by the consumer, and when it stops saying so."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from tests.services import Deployment, vectors, wait_until

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
SEARCH = "/collections/docs/search"


def partitions(made: Deployment) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = made.lag()["partitions"]
    return found


def produce(made: Deployment, count: int, first: int = 0) -> None:
    made.produce([(b"id-%d" % (first + n), v.tobytes()) for n, v in enumerate(vectors(count, seed=first))])


def test_a_gap_is_told_with_its_remedy_until_the_remedy_was_followed(deploy: MakeDeployment) -> None:
    made = deploy()
    produce(made, 100)
    consumer = made.start("consumer")
    made.wait_until_checkpointed()
    consumer.terminate()
    produce(made, 100, first=100)
    admin = AdminClient({"bootstrap.servers": made.bootstrap_servers})
    for deleted in admin.delete_records([TopicPartition(made.topic, 0, 150)]).values():
        deleted.result()
    made.start("api")
    wait_until(lambda: "tidemark replay docs" in made.started[-1].text, what="refused")
    refused = wait_until(lambda: (p := partitions(made)[0])["problem"] and p, what="told")
    assert "50 offsets were removed unread" in refused["problem"]
    assert refused["state"] == "stopped" and refused["problem_since_ms"] > 0
    assert "50 offsets were removed unread" in made.ask("GET", "/readyz").text
    hits = made.ask("POST", SEARCH, json={"vector": vectors(1)[0].tolist(), "k": 1}).json()["hits"]
    assert hits[0]["id"] == "id-0", "what the checkpoint holds is still served"
    since_ms = refused["problem_since_ms"]
    wait_until(lambda: partitions(made)[0]["problem_since_ms"] == since_ms, what="tried again, and refused since then")
    replay = made.start("consumer", "replay", "docs", "--from", "earliest")
    assert replay.process.wait(60) == 0, replay.text
    wait_until(lambda: made.ask("GET", "/readyz").status_code == 200, what=f"ready: {made.lag()}")
    assert "tidemark replay" not in json.dumps(made.lag()) + made.ask("GET", "/healthz").text
    found = partitions(made)[0]
    assert (found["problem"], found["problem_since_ms"], found["state"]) == (None, None, "following")
    assert made.lag()["live_rows"] == 50


SAID: list[tuple[str, tuple[str | None, int | None]]] = [
    (json.dumps({"manifest": 7, "generation": "g000001"}), (None, None)),
    (
        json.dumps({"problem": "the disk is full", "since_ms": 1_700_000_000_000}),
        ("the disk is full", 1_700_000_000_000),
    ),
    (json.dumps({"problem": "no since"}), ("no since", None)),
    (json.dumps({"problem": "\x1b[31mé\ud83d\ude00"}), ("\x1b[31mé\U0001f600", None)),
    ("", (None, None)),
    ("of another program", (None, None)),
    ("[1, 2]", (None, None)),
    ("[" * 3_000, (None, None)),
    ('{"problem": 5}', (None, None)),
    ('{"problem": "a", "since_ms": -1}', (None, None)),
    ('{"problem": "a", "since_ms": 1e400}', (None, None)),
    ('{"since_ms": 5}', (None, None)),
    ('{"problem": "\\ud800"}', (None, None)),
]


def test_what_the_consumer_says_is_shown_and_what_others_commit_is_ignored(deploy: MakeDeployment) -> None:
    made = deploy(partitions=len(SAID))
    group = Consumer({"bootstrap.servers": made.bootstrap_servers, "group.id": made.topic})
    group.commit(
        offsets=[TopicPartition(made.topic, n, 0, metadata) for n, (metadata, _) in enumerate(SAID)], asynchronous=False
    )
    group.close()
    made.start("api")
    made.wait_until_ready()
    wait_until(lambda: {p["committed_offset"] for p in partitions(made)} == {0}, what=f"committed: {made.lag()}")
    told = [(p["consumer_problem"], p["consumer_problem_since_ms"]) for p in partitions(made)]
    assert told == [wanted for _, wanted in SAID]
    assert {p["problem"] for p in partitions(made)} == {None}
    command = [sys.executable, "-P", "-m", "cli.main", "lag", "--api", f"http://127.0.0.1:{made.api_port}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert "consumer: the disk is full" in shown.stdout
    assert "\x1b" not in shown.stdout
