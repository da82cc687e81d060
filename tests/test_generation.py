"""Which generation is served, also when several consumers start at once or a replay comes first."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import turns
from tidemark import generation, layout
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, CorruptCheckpoint

STEPS = ("listing", "reading", "link", "rename")
COLLECTION = Collection("docs", "docs", 4, "l2")


def test_eight_consumers_that_start_at_once_serve_one_generation(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), []

    def serve() -> None:
        start.wait()
        found.append(generation.served(tmp_path, COLLECTION).name)

    threads = [threading.Thread(target=serve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["g000001"] * 8
    assert generation.names(tmp_path, "docs") == ["g000001"]


def test_two_consumers_that_start_at_once_serve_one_generation_in_any_order(new_root: Callable[[], Path]) -> None:
    for order in turns.orders(5, 5):
        root, found = new_root(), []

        def serve(root: Path = root, found: list[str] = found) -> None:
            found.append(generation.served(root, COLLECTION).name)

        turns.run([serve, serve], order, STEPS)
        assert found == ["g000001"] * 2
        assert generation.names(root, "docs") == ["g000001"]


def test_a_replay_promoted_while_a_consumer_starts_stays_promoted(new_root: Callable[[], Path]) -> None:
    for order in turns.orders(5, 6):
        root = new_root()

        def serve(root: Path = root) -> None:
            generation.served(root, COLLECTION)

        def replay(root: Path = root) -> None:
            generation.promote(root, "docs", generation.create(root, COLLECTION, "earliest").name)

        try:
            turns.run([serve, replay], order, STEPS)
        except CorruptCheckpoint as error:
            assert "wait for the first replay to end" in str(error)
        assert generation.served(root, COLLECTION).name == "g000002"


def test_an_unfinished_replay_is_not_served(tmp_path: Path) -> None:
    made = generation.create(tmp_path, COLLECTION, "earliest")
    assert made.name == "g000002"
    with pytest.raises(CorruptCheckpoint, match="wait for the first replay to end, or run `tidemark promote docs"):
        generation.served(tmp_path, COLLECTION)
    generation.promote(tmp_path, "docs", made.name)
    assert generation.served(tmp_path, COLLECTION) == made


def test_a_lost_current_is_told_and_not_guessed(tmp_path: Path) -> None:
    assert generation.served(tmp_path, COLLECTION).name == "g000001"
    second = generation.create(tmp_path, COLLECTION, "0=5")
    generation.promote(tmp_path, "docs", second.name)
    (tmp_path / layout.current("docs")).unlink()
    with pytest.raises(CorruptCheckpoint, match="CURRENT is missing, and there are generations g000002"):
        generation.served(tmp_path, COLLECTION)


def test_what_is_served_cannot_be_dropped_and_the_rest_can(tmp_path: Path) -> None:
    generation.served(tmp_path, COLLECTION)
    second = generation.create(tmp_path, COLLECTION, "earliest").name
    with pytest.raises(BadConfiguration, match="is served"):
        generation.drop(tmp_path, "docs", "g000001")
    generation.drop(tmp_path, "docs", second)
    assert generation.names(tmp_path, "docs") == ["g000001"]
