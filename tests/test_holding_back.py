"""Every bound that holds the consumer's and a replay's reading back is reached here and left again, on a real Kafka."""

import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.services import DIMENSION, Deployment, Service, vectors, wait_until
from tests.test_consumer import _ids
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]
KINDS = ("ivfpq", "hnsw", "flat")
CAP, INDEXED = 2_000, 1_000
# Three times the cap, and a part.
ROWS = 3 * CAP + 700
SMALL = {
    "consumer": {"unbuilt_rows_max": CAP, "fetch_records": 300},
    "checkpoint": {"rows": 300, "grace_s": 1.0},
    "collections.docs.index": {"ann_rows_min": INDEXED},
}


def _rows(count: int, first: int = 0) -> list[tuple[bytes, bytes]]:
    return [(f"id-{first + n}".encode(), row.tobytes()) for n, row in enumerate(vectors(count, seed=first))]


def _with_kind(kind: str, **more: dict[str, Any]) -> dict[str, Any]:
    index = {"kind": kind, **SMALL["collections.docs.index"]}
    return {**SMALL, "collections.docs.index": index, **more}


def _all_built(deployed: Deployment, kind: str) -> bool:
    """Nothing waits for a build in the newest checkpoint, but what is too little for one."""
    found = deployed.newest_manifest()
    without = [segment for segment in found.segments if segment.kind == "flat" and segment.codes_file is None]
    return sum(segment.rows for segment in without if kind != "flat" or segment.rows < INDEXED) < INDEXED


@pytest.mark.parametrize("kind", KINDS)
def test_a_backlog_of_three_times_the_cap_of_unbuilt_rows_is_taken_in_and_what_comes_after_it_too(
    deploy: MakeDeployment, kind: str
) -> None:
    deployed = deploy(**_with_kind(kind))
    deployed.produce(_rows(ROWS))
    consumer = deployed.start("consumer")
    deployed.wait_until_checkpointed(60)
    assert "rows without an index are at their bound" in consumer.text
    assert "reading goes on" in consumer.text
    deployed.produce(_rows(CAP, first=ROWS))
    deployed.wait_until_checkpointed(60)
    wait_until(lambda: _all_built(deployed, kind), 60, consumer.text[-2000:])
    assert len(_ids(deployed)) == ROWS + CAP


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_of_three_times_the_cap_ends(deploy: MakeDeployment, kind: str) -> None:
    deployed = deploy(**_with_kind("ivfpq"))
    deployed.produce(_rows(ROWS))
    replay = deployed.start("consumer", "replay", "docs", "--index", json.dumps({"kind": kind}))
    assert replay.process.wait(90) == 0, replay.text
    assert "reading goes on" in replay.text
    assert len(_ids(deployed)) == ROWS


def test_the_bound_in_bytes_is_reached_and_left_as_the_one_in_rows_is(deploy: MakeDeployment) -> None:
    consumer = {"unbuilt_bytes_max": CAP * 4 * DIMENSION, "fetch_records": 300}
    deployed = deploy(**{**SMALL, "consumer": consumer})
    deployed.produce(_rows(ROWS))
    consumer_process = deployed.start("consumer")
    deployed.wait_until_checkpointed(60)
    assert "rows without an index are at their bound" in consumer_process.text
    assert len(_ids(deployed)) == ROWS


def test_rows_in_memory_of_all_partitions_are_checkpointed_at_their_bound_in_bytes(deploy: MakeDeployment) -> None:
    deployed = deploy(partitions=4, checkpoint={"interval_s": 3_600.0, "bytes": 400_000})
    consumer = deployed.start("consumer")
    wait_until(lambda: consumer.text.count("owns") == 4, 30, consumer.text)
    deployed.produce(_rows(4_000))  # some 300 bytes each
    wait_until(lambda: sum(deployed.manifest_position(n) for n in range(4)) >= 2_500, 30, consumer.text)


def test_rows_that_no_checkpoint_can_take_hold_reading_back_until_one_can(deploy: MakeDeployment) -> None:
    """Dead letters that are not acknowledged let no checkpoint pass."""
    dead_letters = f"later-{os.urandom(4).hex()}"
    deployed = deploy(**{**SMALL, "collections.docs": {"dead_letter_topic": dead_letters}})
    consumer = deployed.start("consumer")
    deployed.produce([(b"bad", b"\0"), *_rows(4_000)])
    wait_until(lambda: "rows in memory are at their bound" in consumer.text, 40, consumer.text)
    assert deployed.manifest_position(0) == 0
    wait_until(lambda: dead_letters in (_told(deployed).get("problem") or ""), 40, "the reason beside the offset")
    assert re.search(rf"no checkpoint: .*could not be written to {dead_letters}", consumer.text)
    Topics(deployed.settings.kafka).create(dead_letters, 1)
    deployed.wait_until_checkpointed(60)
    assert "reading goes on" in consumer.text
    assert len(_ids(deployed)) == 4_000
    wait_until(lambda: "problem" not in _told(deployed), 20, "the reason is taken back")
    assert consumer.process.poll() is None


def _told(deployed: Deployment) -> dict[str, Any]:
    """What the consumer says beside the offset it has committed."""
    found = Topics(deployed.settings.kafka).committed(deployed.topic, [(deployed.topic, 0)])
    return json.loads(found[(deployed.topic, 0)].metadata) if found else {}


def test_a_cap_below_what_gets_an_index_holds_nothing_back_for_ever(deploy: MakeDeployment) -> None:
    deployed = deploy(consumer={"unbuilt_rows_max": 100, "fetch_records": 300}, checkpoint={"rows": 200})
    deployed.produce(_rows(2_500))
    deployed.start("consumer")
    deployed.wait_until_checkpointed(60)
    assert len(_ids(deployed)) == 2_500


def test_updates_of_a_few_ids_leave_dead_rows_that_hold_nothing_back_for_ever(deploy: MakeDeployment) -> None:
    deployed = deploy(**SMALL)
    rows = _rows(200)
    deployed.produce([row for _ in range(30) for row in rows])
    deployed.start("consumer")
    deployed.wait_until_checkpointed(60)
    assert len(_ids(deployed)) == 200


def test_a_builder_that_keeps_dying_holds_reading_back_and_one_that_lives_lets_it_go_on(deploy: MakeDeployment) -> None:
    deployed = deploy(**SMALL)
    deployed.produce(_rows(ROWS))
    consumer: Service = deployed.start("consumer", TIDEMARK_CRASH_AT="build-read")
    wait_until(lambda: "rows without an index are at their bound" in consumer.text, 40, consumer.text)
    wait_until(lambda: consumer.text.count("builder failed") >= 2, 40, consumer.text)
    wait_until(lambda: "the builder has failed" in (_told(deployed).get("problem") or ""), 40, "the reason is said")
    assert deployed.manifest_position(0) < ROWS
    consumer.process.send_signal(signal.SIGKILL)
    consumer.process.wait()
    deployed.start("consumer")
    deployed.wait_until_checkpointed(60)
    assert len(_ids(deployed)) == ROWS


def test_a_replay_of_a_topic_that_is_written_to_makes_few_checkpoints_while_it_builds(deploy: MakeDeployment) -> None:
    deployed = deploy(checkpoint={"interval_s": 3_600.0})
    deployed.produce(_rows(20_000))
    stopping = threading.Event()

    def write() -> None:
        for number in itertools.count():
            if stopping.wait(0.005):
                return
            deployed.produce(_rows(1, first=100_000 + number))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        replay = deployed.start("consumer", "replay", "docs", "--index", json.dumps({"kind": "hnsw"}))
        assert replay.process.wait(90) == 0, replay.text
    finally:
        stopping.set()
        writer.join()
    # A claim, one when it had caught up, one with the index, the last one; each may have one more beside it.
    assert deployed.newest_manifest().version <= 8


def test_a_replay_that_is_stopped_says_that_nothing_has_changed(deploy: MakeDeployment) -> None:
    deployed = deploy()
    deployed.produce(_rows(30_000))
    replay = deployed.start(
        "consumer", "replay", "docs", "--index", json.dumps({"kind": "hnsw", "ef_construction": 400})
    )
    wait_until(lambda: "offsets" in replay.text, 30, replay.text)
    assert replay.terminate() == 69
    assert "the generation served is as it was" in replay.text
    assert "Traceback" not in replay.text
