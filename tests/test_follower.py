"""What a replica does while checkpoints, generations, brokers and processes come and go."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.local_kafka import LocalKafka
from tests.processes import children, connections, has_ended, listeners
from tests.running import World, eventually, rows, world
from tidemark import service
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka
SEARCH = "/collections/docs/search"


class SearchLoop:
    """Searches for one known row without a pause; whatever is not a full answer is kept."""

    def __init__(self, client: httpx.Client, vector: list[float]) -> None:
        self.client = httpx.Client(base_url=client.base_url, timeout=20)
        self.vector = vector
        self.failures: list[str] = []
        self.count = 0
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                answer = self.client.post(SEARCH, json={"vector": self.vector, "k": 1})
                if answer.status_code != 200 or [hit["id"] for hit in answer.json()["hits"]] != ["row-0"]:
                    self.failures.append(answer.text)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            self.count += 1
            time.sleep(0.005)  # leave the idle-priority builder some of the machine

    def __enter__(self) -> "SearchLoop":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()
        self.client.close()


def lag(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/collections/docs/lag").json()
    return found


def states(client: httpx.Client) -> dict[int, tuple[int, str]]:
    """Position and digest per partition."""
    return {p["partition"]: (p["applied_position"], p["digest"]) for p in lag(client)["partitions"]}


def wait_until_applied(client: httpx.Client, positions: dict[str, int]) -> None:
    """They are searched, and the lag says so, which it does a little later."""
    answer = client.post(SEARCH, json={"vector": [1.0] * 8, "min_positions": positions, "timeout_ms": 15_000})
    assert answer.status_code == 200, answer.text
    eventually(lambda: all(states(client)[int(number)][0] >= position for number, position in positions.items()))


def checkpointed(client: httpx.Client, positions: dict[str, int]) -> bool:
    reached = {str(p["partition"]): p["checkpointed_position"] or -1 for p in lag(client)["partitions"]}
    return all(reached.get(partition, -1) >= position for partition, position in positions.items())


def replay(made: World) -> None:
    command = service.python("consumer", "--config", str(made.config), "replay", "docs")
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "KAFKA_BOOTSTRAP_SERVERS": made.servers}
    )
    assert done.returncode == 0, done.stderr


def test_new_manifests_and_a_new_generation_come_without_a_failed_search(kafka: str, tmp_path: Path) -> None:
    vectors = rows(3_000)
    with world(tmp_path, kafka) as made:
        _, client = made.ready_api()  # before the first checkpoint, before CURRENT
        wait_until_applied(client, made.produce(vectors[:100]))
        assert client.post(SEARCH, json={"vector": vectors[0].tolist(), "k": 1}).json()["hits"][0]["id"] == "row-0"
        with SearchLoop(client, vectors[0].tolist()) as loop:
            made.consumer()
            for first in range(100, 3_000, 500):
                positions = made.produce(vectors[first : first + 500], first)
                time.sleep(0.2)
            positions = made.produce(vectors[1:50], 1)  # kills rows in segments
            wait_until_applied(client, positions)
            eventually(lambda: checkpointed(client, positions))
            before = states(client)
            generation = lag(client)["generation"]
            replay(made)
            eventually(lambda: lag(client)["generation"] not in (None, generation))
            assert states(client) == before
            time.sleep(0.3)
        assert loop.failures == []
        assert loop.count > 100
        assert lag(client)["live_rows"] == 3_000


def test_an_api_started_late_or_killed_serves_the_same_digest(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka) as made:
        first, client = made.ready_api()
        made.consumer()
        made.produce(rows(2_000))
        positions = made.produce(rows(300, seed=8), 100)
        wait_until_applied(client, positions)
        eventually(lambda: checkpointed(client, positions))
        expected = states(client)
        _, late = made.ready_api()
        assert states(late) == expected
        first.stop(signal.SIGKILL)
        _, again = made.ready_api()
        assert states(again) == expected
        positions = made.produce(rows(50, seed=9), 5_000)
        for client in (late, again):
            wait_until_applied(client, positions)
        assert states(late) == states(again)


def test_a_killed_http_worker_is_started_again_and_searches_all_rows(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka, partitions=1, api="workers = 2") as made:
        process, client = made.ready_api()
        made.consumer()
        vectors = rows(1_000)
        wait_until_applied(client, made.produce(vectors))
        for worker in children(process.child.pid):
            os.kill(worker, signal.SIGKILL)
        eventually(lambda: len(children(process.child.pid)) == 2)

        def searched() -> bool:
            with contextlib.suppress(httpx.TransportError):
                answer = client.post(SEARCH, json={"vectors": vectors[:50].tolist(), "k": 1, "exact": True})
                return [hits[0]["id"] for hits in answer.json()["results"]] == [f"row-{n}" for n in range(50)]
            return False

        eventually(searched)
        assert process.stop() == 0


def test_connections_are_dealt_out_among_http_workers(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka, partitions=1, api="workers = 2") as made, contextlib.ExitStack() as opened:
        process, client = made.ready_api()
        port = client.base_url.port
        assert port is not None
        eventually(lambda: listeners(port) == 2)
        workers = children(process.child.pid)
        for _ in range(60):
            opened.enter_context(socket.create_connection(("127.0.0.1", port)))
        eventually(lambda: sum(connections(port, worker) for worker in workers) >= 60)
        assert min(connections(port, worker) for worker in workers) >= 10


def test_http_workers_die_with_the_replica(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka, partitions=1, api="workers = 2") as made:
        process, _ = made.ready_api()
        workers = children(process.child.pid)
        assert len(workers) == 2
        process.stop(signal.SIGKILL)
        eventually(lambda: all(has_ended(worker) for worker in workers))


def test_a_replica_behind_a_manifest_takes_its_kills_too(kafka: str, tmp_path: Path) -> None:
    """Its own cap stops it, the consumer goes on: what died meanwhile is dead in the segments it holds."""
    with world(tmp_path, kafka, partitions=1) as made:
        consumer = made.consumer()
        vectors = rows(1_000)
        made.produce(vectors)
        _, client = made.ready_api()
        eventually(lambda: checkpointed(client, {"0": 1_000}))
        consumer.stop()
        made.configure(api="tail_rows_max = 100")
        _, held = made.ready_api()
        positions = made.produce(rows(900, seed=11))
        eventually(lambda: "waiting for the consumer's checkpoint" in json.dumps(lag(held)))
        assert lag(held)["offset_lag"] > 0
        made.consumer()
        wait_until_applied(held, positions)
        wait_until_applied(client, positions)
        eventually(lambda: lag(held)["live_rows"] == 1_000)
        assert states(held) == states(client)
        body = {"vectors": vectors[:900].tolist(), "k": 1, "exact": True}
        for result in held.post(SEARCH, json=body).json()["results"]:
            assert result[0]["distance"] > 0, "the older version of a row was answered"


def test_an_api_without_a_broker_serves_the_checkpoint_and_recovers(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    broker = LocalKafka(tmp_path / "kafka", port=port, fast_start=True)
    broker.start()
    try:
        with world(tmp_path, broker.bootstrap_servers, partitions=1) as made:
            consumer = made.consumer()
            made.produce(rows(500))
            _, client = made.ready_api()
            eventually(lambda: checkpointed(client, {"0": 500}))
            consumer.stop()
            made.processes[-1].stop()
            broker.stop()
            _, client = made.api()
            eventually(lambda: client.post(SEARCH, json={"vector": rows(1)[0].tolist(), "k": 1}).status_code == 200)
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
            assert lag(client)["offset_lag"] is None
            broker.start()
            wait_until_applied(client, made.produce(rows(10, seed=12), 500))
            eventually(lambda: client.get("/readyz").status_code == 200)
            assert lag(client)["live_rows"] == 510
            broker.stop()
            eventually(lambda: lag(client)["offset_lag"] is None, 30)
            assert client.post(SEARCH, json={"vector": rows(1)[0].tolist()}).json()["staleness_ms"] != 0
    finally:
        broker.stop()


def test_a_recreated_topic_is_said_and_the_rows_stay(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka, partitions=1) as made:
        consumer = made.consumer()
        made.produce(rows(200))
        first, client = made.ready_api()
        eventually(lambda: checkpointed(client, {"0": 200}))
        consumer.stop()
        first.stop()
        topics = Topics({"bootstrap.servers": kafka})
        topics._admin.delete_topics([made.topic])[made.topic].result()
        eventually(lambda: not topics.exists(made.topic))
        topics.create(made.topic, 1)
        _, client = made.api()
        eventually(lambda: "deleted and created again" in client.get("/readyz").text)
        assert client.get("/readyz").status_code == 503
        assert client.post(SEARCH, json={"vector": rows(1)[0].tolist(), "k": 1}).json()["hits"][0]["id"] == "row-0"


def test_a_stopped_api_leaves_within_seconds_and_a_taken_port_is_explained(kafka: str, tmp_path: Path) -> None:
    with world(tmp_path, kafka) as made:
        process, client = made.ready_api()
        made.configure(api=f"port = {client.base_url.port}".replace("port", "host = '127.0.0.1'\nport", 1))
        text = made.config.read_text().replace("[api]\nport = 0", "[api]")
        made.config.write_text(text)
        second = made.start("api")
        assert second.child.wait(20) == 78
        assert str(client.base_url.port) in second.log.read_text()
        started = time.monotonic()
        assert process.stop() == 0
        assert time.monotonic() - started < 6


def test_a_current_that_cannot_be_read_is_said_and_what_is_served_stays(tmp_path: Path, kafka: str) -> None:
    with world(tmp_path, kafka) as made:
        current = tmp_path / "checkpoints" / "docs" / "CURRENT"
        current.mkdir(parents=True)  # reading it fails, as on a disk that answers EIO
        process, client = made.ready_api()
        process.wait_for_line(r"CURRENT not followed: reading of .*CURRENT failed: Is a directory")
        made.produce(rows(10))
        eventually(lambda: client.get("/collections/docs").json()["live_rows"] == 10)


def test_a_checkpoint_directory_begun_again_is_taken_over_by_a_running_replica(kafka: str, tmp_path: Path) -> None:
    vectors = rows(500)
    with world(tmp_path, kafka, partitions=1) as made:
        consumer, (_, client) = made.consumer(), made.ready_api()
        for first in range(0, 400, 100):
            positions = made.produce(vectors[first : first + 100], first)
            eventually(lambda: checkpointed(client, positions))  # noqa: B023
        before = lag(client)["partitions"][0]["manifest"]
        assert consumer.stop() == 0
        (tmp_path / "checkpoints").rename(tmp_path / "aside")
        made.consumer()
        eventually(lambda: lag(client)["partitions"][0]["manifest"] < before)
        positions = made.produce(vectors[400:], 400)
        eventually(lambda: checkpointed(client, positions))
        assert lag(client)["live_rows"] == 500
        assert lag(client)["partitions"][0]["problem"] is None
