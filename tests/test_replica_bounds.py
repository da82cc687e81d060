"""The bounds of a replica's memory, with the real services: each is reached, and left again when checkpoints come."""

import signal
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.services import Deployment, Service, vectors, wait_until

pytestmark = pytest.mark.kafka
MakeDeployment = Callable[..., Deployment]
ROWS_MAX, BYTES_MAX = 1_000, 2**20
Records = Iterable[tuple[bytes, bytes | None]]


def rows(count: int, first: int = 0, text_bytes: int = 0) -> list[tuple[bytes, bytes | None]]:
    texts = b'{"vector": %s, "metadata": {"text": "%s"}}'
    return [
        (b"id-%d" % (first + n), texts % (str(v.tolist()).encode(), b"x" * text_bytes) if text_bytes else v.tobytes())
        for n, v in enumerate(vectors(count, seed=first))
    ]


def partition(made: Deployment) -> dict[str, Any]:
    found: dict[str, Any] = made.lag()["partitions"][0]
    return found


def reach_and_leave(made: Deployment, consumer: Service, records: Records, says: str) -> None:
    """While the consumer is stopped the records are more than the bound; when it goes on, all of them are applied."""
    consumer.process.send_signal(signal.SIGSTOP)
    made.produce(records)
    held = wait_until(lambda: (p := partition(made))["state"] == "waiting" and p, what=f"held: {partition(made)}")
    assert held["offset_lag"] > 0
    assert says in held["problem"]
    assert held["problem_since_ms"] > 0
    assert held["tail_bytes"] <= BYTES_MAX
    consumer.process.send_signal(signal.SIGCONT)
    made.wait_until_applied()
    left = wait_until(lambda: (p := partition(made))["state"] == "following" and p, what=f"left: {partition(made)}")
    assert left["problem"] is left["problem_since_ms"] is None


@pytest.mark.parametrize("kind", ["ivfpq", "hnsw", "flat"])
def test_every_bound_of_a_replica_is_left_again(deploy: MakeDeployment, kind: str) -> None:
    made = deploy(
        api={"tail_rows_max": ROWS_MAX, "tail_bytes_max": BYTES_MAX, "fetch_records": 50},
        **{"collections.docs.index": {"kind": kind, "ann_rows_min": 512}},
    )
    consumer = made.start("consumer")
    made.start("api")
    made.produce(rows(10))
    made.wait_until_ready()
    reach_and_leave(made, consumer, rows(250, text_bytes=6_000), f"api.tail_bytes_max is {BYTES_MAX}")
    deletes: Records = [(b"gone-%d" % number, None) for number in range(2 * ROWS_MAX)]
    reach_and_leave(made, consumer, deletes, f"deletes in memory (api.tail_rows_max is {ROWS_MAX})")
    reach_and_leave(made, consumer, rows(3 * ROWS_MAX, first=1_000), f"api.tail_rows_max is {ROWS_MAX}")
    assert made.lag()["live_rows"] == 250 + 3 * ROWS_MAX


def test_a_partition_whose_consumer_is_dead_leaves_memory_for_the_others(deploy: MakeDeployment) -> None:
    made = deploy(partitions=2, api={"tail_bytes_max": BYTES_MAX, "fetch_records": 20})
    made.start("api")
    made.wait_until_ready()
    made.produce(rows(300, text_bytes=6_000), partition=0)
    wait_until(lambda: partition(made)["state"] == "waiting", what=f"held: {made.lag()}")
    made.produce(rows(100, first=1_000), partition=1)
    wait_until(lambda: made.lag()["partitions"][1]["applied_position"] == 100, what=f"read: {made.lag()}")
    assert partition(made)["state"] == "waiting"
