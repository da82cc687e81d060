"""What is committed and said beside the offsets: no broker."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from consumer import told
from consumer.partition import OwnedPartition
from consumer.take_over import Waiting
from consumer.told import Told
from tests.test_partition import COLLECTION, TOPIC, apply, owned_in
from tidemark.errors import LogGap
from tidemark.log import Committed, Log
from tidemark.topic_watch import TopicFacts


@pytest.fixture
def owned(tmp_path: Path) -> OwnedPartition:
    return owned_in(tmp_path)


def _told() -> tuple[Told, list[int]]:
    """And the positions it has committed."""
    committed: list[int] = []
    log = SimpleNamespace(commit=lambda _, position, __: committed.append(position))
    return Told(cast(Log, log)), committed


def test_a_position_that_was_not_taken_is_committed_again(
    owned: OwnedPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell, committed = _told()
    apply(owned, 5)
    owned.checkpoint()
    tell.checkpointed(owned)
    tell.problem_of(owned)
    assert committed == [5]
    monkeypatch.setattr(told, "EVERY_S", 0.0)
    tell.problem_of(owned)
    assert committed == [5, 5]
    owned.committed = 5  # the answer
    tell.problem_of(owned)
    assert committed == [5, 5]


def test_a_problem_is_since_when_it_began_not_since_the_last_checkpoint(owned: OwnedPartition) -> None:
    tell, _ = _told()
    owned.held = "waiting for the builder"
    tell.problem_of(owned)
    owned.problem_since_ms = since_ms = 1_000
    tell.checkpointed(owned)
    tell.problem_of(owned)
    assert owned.problem_since_ms == since_ms
    owned.held = None
    tell.problem_of(owned)
    assert owned.problem_since_ms is None


@pytest.mark.parametrize(
    ("known", "expected"), [(None, []), ({}, [7]), ({0: Committed(500, "")}, [500])], ids=["unknown", "none", "some"]
)
def test_a_refusal_moves_no_offset_that_is_not_known(known: Any, expected: list[int]) -> None:
    tell, committed = _told()
    waiting = Waiting(("docs", 0), COLLECTION)
    waiting.refuse(LogGap("a gap"))
    tell.refusal_of(waiting, None, TopicFacts(TOPIC, None, {0: 7}, {0: 900}, {}, {}, known, 0.0, 0, 0.0))
    assert committed == expected
