"""What the HTTP workers count: kept over their restarts, and nothing is left behind for ever."""

import contextlib
import os
import re
import signal
from pathlib import Path

import httpx
import pytest

from tests.processes import children
from tests.running import World, eventually, rows, world

SEARCH = "/collections/docs/search"


def searched(client: httpx.Client) -> float:
    """Searches of all workers so far, -1 while nobody answers."""
    with contextlib.suppress(httpx.TransportError):
        found = re.search(r'tidemark_search_seconds_count\{collection="docs"\} (\S+)', client.get("/metrics").text)
        return float(found[1]) if found else 0.0
    return -1.0


@pytest.mark.kafka
def test_counts_survive_killed_workers_without_a_file_for_each(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with world(tmp_path, kafka, partitions=1) as made:
        process, client = made.ready_api()
        count = 0
        files: set[str] = set()
        for _ in range(3):
            for _ in range(5):
                assert client.post(SEARCH, json={"vector": rows(1)[0].tolist()}).status_code == 200
            count += 5
            eventually(lambda expected=count: searched(client) == expected)
            found = {path.name for path in tmp_path.glob("tidemark-counts-*/*.db")}
            files = files or found
            assert found == files
            workers = children(process.child.pid)
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            eventually(lambda gone=workers: searched(client) >= 0 and not children(process.child.pid) & gone)
        assert searched(client) == count


def directories(tmp_path: Path) -> set[Path]:
    return set(tmp_path.glob("tidemark-counts-*"))


@pytest.mark.kafka
def test_the_next_replica_removes_what_a_killed_one_has_left_and_nothing_of_a_living_one(
    kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def start(made: World) -> set[Path]:
        before = directories(tmp_path)
        made.ready_api()
        return directories(tmp_path) - before

    with world(tmp_path, kafka, partitions=1) as made:
        of_living, of_killed = start(made), start(made)
        made.processes[-1].stop(signal.SIGKILL)
        assert directories(tmp_path) == of_living | of_killed
        of_next = start(made)
        assert directories(tmp_path) == of_living | of_next
    assert directories(tmp_path) == set()
