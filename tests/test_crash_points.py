"""A consumer killed at any step of checkpoint and commit, restarted, ends with exactly what the log says."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tests.services import Deployment, Service, vectors, wait_until
from tests.views import open_checkpoint, page
from tidemark import searcher
from tidemark.checkpoint import Checkpoints
from tidemark.generation import current
from tidemark.mirror import ViewMirror
from tidemark.partition_state import PartitionState
from tidemark.searcher import Hit
from tidemark.topic import Topics
from tidemark.view import View

# Each step, at an occurrence that lies in the middle of work: `name:n` is the n-th time it is reached.
STEPS = [
    "marked",
    "claimed",
    "applied:2",
    "dead-letters-acknowledged:2",
    "flat-durable:2",
    "dead-rows-durable:3",
    "temporary-written:6",
    "linked:6",
    "manifest-durable:3",
    "committed:3",
    "manifests-removed:2",
    "obsolete-removed:3",
    "installed",
]
BUILDER_STEPS = ["quantizer-durable", "codes-durable", "build-read", "build-written"]


@dataclass(frozen=True, slots=True)
class Opened:
    """The newest checkpoints of some partitions, read as a restarting service reads them."""

    view: View
    mirror: ViewMirror

    @property
    def state(self) -> PartitionState:
        """Of the first partition."""
        return next(iter(self.view.partitions.values()))

    def scan(self) -> list[Hit]:
        return page(self.mirror, None, 1_000_000)

    def get(self, id_: bytes) -> Hit | None:
        return searcher.get(self.mirror, id_)


def opened(deployed: Deployment, *partitions: int) -> Opened:
    """Partition 0 if none is named."""
    collection = deployed.settings.collection("docs")
    generation = current(deployed.checkpoints, "docs")
    assert generation is not None
    view = View(collection, shared=True)
    for partition in partitions or (0,):
        checkpoints = Checkpoints(deployed.checkpoints, collection, generation, partition)
        assert open_checkpoint(checkpoints, view) is not None
    return Opened(view, ViewMirror(collection, view.place))


def _produce_round(deployed: Deployment, number: int, state: dict[bytes, bytes]) -> None:
    """Upserts, updates and deletes over some hundred ids, and a bad record; `state` becomes what they end in."""
    written = {b"id-%d" % (i + 150 * number): row.tobytes() for i, row in enumerate(vectors(600, number))}
    deleted = list(written)[::7]
    deployed.produce([*written.items(), (b"bad-%d" % number, b"no vector"), *((key, None) for key in deleted)])
    state.update(written)
    for key in deleted:
        del state[key]


def _assert_equals(found: Opened, state: dict[bytes, bytes]) -> None:
    assert {hit.id: np.array(hit.vector).tobytes() for hit in found.scan()} == state
    answer = searcher.search(found.mirror, vectors(20, 99), 50, exact=True)
    for hits in answer.hits:
        assert len({hit.id for hit in hits}) == len(hits) == 50


@pytest.mark.kafka
@pytest.mark.parametrize("step", [*STEPS, *BUILDER_STEPS])
def test_a_kill_at_this_step_loses_nothing_and_doubles_nothing(step: str, deploy: Callable[..., Deployment]) -> None:
    # A static member takes its partitions over again at once, without waiting for the session of the killed one.
    deployed = deploy(
        kafka={"group.instance.id": "one"},
        checkpoint={"interval_s": 0.05, "grace_s": 0.0},
        consumer={"fetch_records": 400},
    )
    killed = deployed.start("consumer", TIDEMARK_CRASH_AT=step)
    state: dict[bytes, bytes] = {}
    for number in range(100):
        _produce_round(deployed, number, state)
        if number >= 3 and _is_killed(killed, step):
            break
        time.sleep(0.1)
    assert _is_killed(killed, step), killed.text[-2000:]
    killed.kill()
    restarted = deployed.start("consumer")
    wait_until(lambda: "owns" in restarted.text, 30, restarted.text[-2000:])
    deployed.wait_until_checkpointed()
    _assert_built(deployed)
    assert restarted.terminate() == 0
    found = opened(deployed)
    _assert_equals(found, state)
    topics = Topics(deployed.settings.kafka)
    committed = topics.committed(deployed.topic, [(deployed.topic, 0)])
    assert committed[(deployed.topic, 0)].offset <= found.state.position


@pytest.mark.kafka
@pytest.mark.parametrize("step", ["flat-durable:6", "dead-rows-durable:4", "linked:8", "committed:5"])
def test_owners_of_two_partitions_killed_one_after_another_lose_nothing_and_double_nothing(
    step: str, deploy: Callable[..., Deployment]
) -> None:
    """The second one deletes and updates what the first one's segments hold, and is killed over that in turn."""
    deployed = deploy(
        partitions=2,
        kafka={"group.instance.id": "one"},
        checkpoint={"interval_s": 0.05, "grace_s": 0.0},
        consumer={"fetch_records": 400},
    )
    state: dict[bytes, bytes] = {}
    number = 0
    for owner in ("first", "second"):
        killed = deployed.start("consumer", TIDEMARK_CRASH_AT=step)
        for _ in range(100):
            _produce_round(deployed, number % 6, state)  # ids come again: most of it updates and deletes
            number += 1
            if _is_killed(killed, step):
                break
            time.sleep(0.1)
        assert _is_killed(killed, step), f"{owner}: {killed.text[-2000:]}"
        killed.kill()
    last = deployed.start("consumer")
    deployed.wait_until_checkpointed()
    assert last.terminate() == 0
    found = opened(deployed, 0, 1)
    assert all(each.live_rows for each in found.view.partitions.values())
    _assert_equals(found, state)


def _is_killed(service: Service, step: str) -> bool:
    """The consumer itself, or its builder, which it reports."""
    return "builder failed" in service.text if step in BUILDER_STEPS else service.process.poll() == -9


def _assert_built(deployed: Deployment) -> None:
    def is_built() -> bool:
        return all(segment.codes_file for segment in deployed.newest_manifest().segments)

    wait_until(is_built, 30, "all rows have codes")
