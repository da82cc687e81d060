"""The consumer on a disk that fails under it: it says so, keeps what is durable, and loses no record."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consumer.indexer import Indexer
from tests.services import Deployment, Service, vectors, wait_until
from tests.test_consumer import applied
from tests.test_crash_points import opened
from tidemark import files
from tidemark.errors import FsyncFailed

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]


def _produce(deployed: Deployment, count: int, prefix: str) -> None:
    deployed.produce([(f"{prefix}-{n}".encode(), row.tobytes()) for n, row in enumerate(vectors(count))])


def _live_ids(deployed: Deployment) -> int:
    return len({hit.id for hit in opened(deployed).scan()})


def _has_ended(consumer: Service) -> bool:
    return consumer.process.poll() is not None


@contextmanager
def _failing_fsyncs(consumer: Service) -> Iterator[None]:
    """While every fsync of the running process answers EIO, as the kernel's, without reaching the disk."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    attached = subprocess.Popen(
        [
            strace,
            "-f",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync",
            "-e",
            "inject=fsync:error=EIO",
            "-p",
            str(consumer.process.pid),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert attached.stderr is not None
    try:
        said = attached.stderr.readline()
        if "attached" not in said:
            pytest.skip(f"strace may not be used here: {said.strip()}")
        yield
    finally:
        attached.terminate()
        try:
            attached.wait(5)
        except subprocess.TimeoutExpired:  # it waits for a thread of the process that it will never be told of
            attached.kill()
            attached.wait()
        attached.stderr.close()


def test_after_a_failed_fsync_the_consumer_makes_no_checkpoint_until_it_is_restarted(deploy: MakeDeployment) -> None:
    deployed = deploy()
    consumer = deployed.start("consumer")
    wait_until(lambda: "owns" in consumer.text, 30, consumer.text)
    _produce(deployed, 200, "durable")
    deployed.wait_until_checkpointed()
    with _failing_fsyncs(consumer):
        _produce(deployed, 200, "at-risk")
        wait_until(lambda: "failed: Input/output error" in consumer.text, 30, consumer.text)
    known = _versions(deployed)
    _produce(deployed, 200, "later")
    wait_until(lambda: _has_ended(consumer) or applied(consumer) == 600, 30, consumer.text)
    if not _has_ended(consumer):
        consumer.terminate()
    assert "nothing is written any more until this process is restarted" in consumer.text
    assert "Traceback" not in consumer.text
    assert _versions(deployed) == known
    deployed.start("consumer")
    deployed.wait_until_checkpointed()
    assert _live_ids(deployed) == 600


def test_a_consumer_whose_claim_cannot_be_made_durable_ends(
    deploy: MakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_unsynced", None)  # as it is in a new process, and again afterwards
    deployed = deploy()
    settings = deployed.settings

    def fails(operation: str, path: Path) -> None:
        if operation == "fsync" and path.name == "p0":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    until = time.monotonic() + 30
    with files.watched(fails), pytest.raises(FsyncFailed, match="until this process is restarted"):
        Indexer(settings, settings.all_collections()).run(lambda: time.monotonic() > until)


def _versions(deployed: Deployment) -> set[str]:
    return {path.name for path in deployed.checkpoints.rglob("manifest-*")}


def test_a_consumer_on_a_full_disk_says_how_much_is_free_and_goes_on_when_there_is_room(
    deploy: MakeDeployment, small_disk: Path
) -> None:
    deployed = deploy(checkpoint={"url": small_disk.as_uri(), "interval_s": 0.1})
    consumer = deployed.start("consumer")
    _produce(deployed, 200, "durable")
    deployed.wait_until_checkpointed()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096))
    _produce(deployed, 1_000, "waiting")
    wait_until(lambda: "No space left on device (0.0 MiB are free): make room" in consumer.text, 30, consumer.text)
    assert _live_ids(deployed) == 200
    ballast.unlink()

    def checkpointed() -> bool:
        if _has_ended(deployed.started[-1]):  # as an operator, or a supervisor, has it started again
            deployed.start("consumer")
        return deployed.manifest_position(0) == 1_200

    wait_until(checkpointed, 40, consumer.text)
    assert _live_ids(deployed) == 1_200
    assert "Traceback" not in "".join(service.text for service in deployed.started)
