"""`tidemark up` as a user runs it: it loads, continues, repairs itself, stops, and leaves no process behind."""

import json
import os
import re
import signal
import socket
import subprocess
import time
import tomllib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import below, has_ended
from tests.services import wait_until
from tidemark import service
from tidemark.topic import Topics

READY_S = 90.0


@dataclass(slots=True)
class Run:
    """`tidemark` in a directory of its own; `start` runs `up` there until it is stopped."""

    directory: Path
    process: subprocess.Popen[bytes] | None = None
    ready_s: float = 0.0
    runs: list[Path] = field(default_factory=list)

    @property
    def state_path(self) -> Path:
        return self.directory / "up" / "up.json"

    @property
    def state(self) -> dict[str, Any]:
        return json.loads(self.state_path.read_text())  # type: ignore[no-any-return]

    @property
    def said(self) -> str:
        return self.runs[-1].read_text()

    @property
    def printed(self) -> str:
        return self.runs[-1].with_suffix(".out").read_text()

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMARK_") and k != "KAFKA_BOOTSTRAP_SERVERS"}
        cache = {k: v for k, v in os.environ.items() if k in ("TIDEMARK_CACHE_DIR", "TIDEMARK_MAVEN_REPOSITORY")}
        no_docker = {"DOCKER_HOST": f"unix://{self.directory}/no.sock"}
        return {**kept, **cache, **no_docker, "TIDEMARK_UP_DIR": str(self.directory / "up")}

    def start(self, *arguments: str) -> None:
        log = self.directory / f"run-{len(self.runs)}.err"
        self.runs.append(log)
        started = time.monotonic()
        with log.open("wb") as errors, log.with_suffix(".out").open("wb") as output:
            command = service.python("cli.main", "up", "--api-port", "0", *arguments)
            process = subprocess.Popen(
                command, cwd=self.directory, stdout=output, stderr=errors, env=self.environment()
            )
        self.process = process
        wait_until(lambda: "  ready\n" in self.said or process.poll() is not None, READY_S, "ready")
        assert process.poll() is None, self.said
        self.ready_s = time.monotonic() - started

    def ensure_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            self.start()

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(40)

    def tidemark(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            service.python("cli.main", *arguments),
            cwd=self.directory,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def partitions(self) -> list[dict[str, Any]]:
        answer = httpx.get(self.state["api"] + "/collections/docs/lag", timeout=10.0, trust_env=False)
        return answer.json()["partitions"]  # type: ignore[no-any-return]

    def logged(self) -> tuple[int, int]:
        """Records in the log, and live rows in the index."""
        found = self.partitions()
        return sum(p["log_end_offset"] or 0 for p in found), sum(p["live_rows"] for p in found)


@pytest.fixture(scope="module")
def one_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("up"))
    yield run
    if run.process is not None and run.process.poll() is None:
        run.stop()


@pytest.fixture
def up(one_run: Run) -> Run:
    """One `up` for all tests, running: a test may stop it or kill it."""
    one_run.ensure_running()
    return one_run


def test_a_search_in_words_finds_what_it_is_about(up: Run) -> None:
    found = up.tidemark("search", "docs", "--text", "parse a json string", "--json")
    assert found.returncode == 0, found.stderr
    hits = json.loads(found.stdout)["hits"]
    assert len(hits) == 10
    assert sum(hit["id"].startswith("json.") for hit in hits) >= 7
    assert [hit["distance"] for hit in hits] == sorted(hit["distance"] for hit in hits)


def test_the_state_file_names_the_addresses_and_the_processes(up: Run) -> None:
    state = up.state
    assert set(state) == {"api", "bootstrap_servers", "collections", "pids"}
    assert state["collections"] == ["docs"]
    assert set(state["pids"]) == {"broker", "consumer", "api"}
    assert not any(has_ended(pid) for pid in state["pids"].values())
    assert httpx.get(state["api"] + "/readyz", timeout=10.0, trust_env=False).status_code == 200


def test_what_is_printed_can_be_tried(up: Run) -> None:
    address = up.state["api"]
    assert address in up.printed
    assert 'search docs --text "parse a json string"' in up.printed
    body = re.search(r"curl (\S+) -d '(.*)'", up.printed)
    assert body is not None
    answer = httpx.post(body[1], content=body[2], timeout=10.0, trust_env=False)
    assert [hit["id"] for hit in answer.json()["hits"]][:1] == ["json.loads"]


def test_stopped_by_ctrl_c_it_leaves_no_process_and_the_next_one_continues(up: Run) -> None:
    before = up.logged()
    assert before[1] > 1_000
    assert up.process is not None
    processes = below(up.process.pid)
    assert set(up.state["pids"].values()) <= processes
    stopping = time.monotonic()
    assert up.stop() == 0
    assert time.monotonic() - stopping < 20
    assert all(has_ended(pid) for pid in processes)
    assert not up.state_path.exists()
    up.start()
    assert up.logged() == before
    assert "loading" not in up.said
    assert up.ready_s < 30  # about 4 s on an idle machine


def test_a_consumer_that_was_killed_is_started_again_and_that_is_said(up: Run) -> None:
    pid = up.state["pids"]["consumer"]
    os.kill(pid, signal.SIGKILL)
    again = wait_until(lambda: (now := up.state["pids"]["consumer"]) not in (None, pid) and now, 20.0, "another pid")
    assert "consumer was ended by SIGKILL" in up.said
    assert f"consumer is started again (pid {again})" in up.said
    answer = up.tidemark("search", "docs", "--id", "json.loads", "--json")
    assert json.loads(answer.stdout)["hits"][0]["id"] == "json.loads"


def test_a_broker_that_was_killed_is_started_again_with_its_data(up: Run) -> None:
    before, pid = up.logged(), up.state["pids"]["broker"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: up.state["pids"]["broker"] not in (None, pid), 40.0, "another broker")
    assert "broker was ended by SIGKILL" in up.said

    def answered() -> bool:
        made = up.tidemark("produce", "docs", str(line), "--json")
        return made.returncode == 0

    line = up.directory / "again.jsonl"
    line.write_text(json.dumps({"id": "json.loads", "deleted": False, "vector": [1.0] * 256}))
    wait_until(answered, 30.0, "a record produced")
    wait_until(lambda: up.logged()[0] > before[0], 30.0, "the record in the log")


def test_a_second_one_on_the_same_directory_is_refused(up: Run) -> None:
    assert up.process is not None
    second = up.tidemark("up", "--api-port", "0")
    assert second.returncode == 69
    assert second.stdout == ""
    assert re.search(rf"in use by `tidemark up` \(pid {up.process.pid}\): stop it", second.stderr)
    assert up.state["pids"]["consumer"] is not None


def test_killed_itself_it_leaves_no_process_to_the_next_one_which_continues(up: Run) -> None:
    """The consumer may hang for a while at closing, because its broker is gone: the next `up` ends it."""
    assert up.process is not None
    processes, pids, before = below(up.process.pid), up.state["pids"], up.logged()
    up.process.kill()
    up.process.wait()
    wait_until(lambda: has_ended(pids["broker"]) and has_ended(pids["api"]), 20.0, "broker and api ended")
    up.start()
    assert all(has_ended(pid) for pid in processes)
    assert up.logged() == before


# -- other configurations --------------------------------------------------------------------------------------

OWN = """
[kafka]
bootstrap.servers = "{servers}"
[consumer]
group = "{group}"
port = 0
[collections.one]
topic = "{group}-one"
dimension = 3
[collections.two]
topic = "{group}-two"
dimension = 4
metric = "l2"
"""


def test_other_collections_are_served_on_the_broker_their_file_names(kafka: str, tmp_path: Path) -> None:
    group = f"own-{uuid.uuid4().hex[:8]}"
    (tmp_path / "own.toml").write_text(OWN.format(servers=kafka, group=group))
    run = Run(tmp_path)
    try:
        run.start("--config", "own.toml")
        assert run.state["collections"] == ["one", "two"]
        assert (run.state["bootstrap_servers"], run.state["pids"]["broker"]) == (kafka, None)
        assert "documents" not in run.said
        topics = Topics({"bootstrap.servers": kafka})
        assert topics.identity(f"{group}-one").partitions == 2
        assert topics.identity(f"{group}-two.dead-letters").partitions == 1
        (tmp_path / "rows.jsonl").write_text('{"id": "a", "vector": [1, 2, 3]}\n')
        assert run.tidemark("produce", "one", "rows.jsonl").returncode == 0
        assert wait_until(lambda: run.tidemark("search", "one", "--id", "a").returncode == 0, 20.0)
        words = run.tidemark("search", "one", "--text", "json")
        assert (words.returncode, "sample data" in words.stderr) == (2, True)
        assert run.stop(signal.SIGTERM) == 0
    finally:
        if run.process is not None and run.process.poll() is None:
            run.stop()
    assert tomllib.loads((tmp_path / "up" / "tidemark.toml").read_text())["consumer"]["group"] == group


def test_killed_while_its_services_start_it_leaves_no_process(kafka: str, tmp_path: Path) -> None:
    """Also before they have asked for their parent's death themselves."""
    (tmp_path / "own.toml").write_text(OWN.format(servers=kafka, group=f"own-{uuid.uuid4().hex[:8]}"))
    process = subprocess.Popen(
        service.python("cli.main", "up", "--api-port", "0", "--quiet", "--config", "own.toml"),
        cwd=tmp_path,
        env=Run(tmp_path).environment(),
    )
    services = wait_until(lambda: len(found := below(process.pid)) == 2 and found, 30.0, "the services are started")
    process.kill()
    process.wait()
    wait_until(lambda: all(has_ended(pid) for pid in services), 20.0, "every process ended")


def refused(directory: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """What `up` says when it does not even start a broker."""
    run = Run(directory)
    found = subprocess.run(
        service.python("cli.main", "up", *arguments),
        cwd=directory,
        env={**run.environment(), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.stdout == ""
    assert not (directory / "up" / "kafka").exists()
    return found.returncode, found.stderr


def test_a_port_in_use_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, error = refused(tmp_path, "--api-port", str(port))
    assert code == 78
    assert f"port {port} is in use" in error
    assert "`--api-port 0`" in error


def test_a_mistake_in_the_settings_names_the_file_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text("[collections.docs]\ndimension = 3\nmetrik = 'l2'\n")
    code, error = refused(tmp_path, "--config", "own.toml")
    assert code == 78
    assert "error: own.toml: unknown setting collections.docs.metrik" in error
