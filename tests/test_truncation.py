"""A log that lost what was acknowledged is noticed, and a change of leader alone is not taken for that.

With one broker an unclean election is made by hand: the broker is stopped, its log is cut, and it is started again as
a leader with a newer epoch.
"""

import re
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.local_kafka import LocalKafka
from tests.services import Deployment, deployment, wait_until
from tests.test_consumer import _ids, _upserts
from tests.transactions import Transactions

pytestmark = pytest.mark.kafka


class CuttableKafka(LocalKafka):
    """A broker whose logs can be cut back as an unclean election does it."""

    def restart_cut(self, topic: str, position: int) -> None:
        """Lose the records from the batch that holds this position on; at least one batch is lost."""
        logs = self._data_dir / "logs"
        self.stop()
        path = logs / f"{topic}-0" / f"{0:020}.log"
        content, at = path.read_bytes(), 0
        while at < len(content):
            first, length = struct.unpack_from(">qi", content, at)
            if first >= position:
                break
            at += 12 + length
        assert at < len(content), "nothing to cut"
        with path.open("r+b") as file:
            file.truncate(at)
        (logs / ".kafka_cleanshutdown").unlink()  # or it would trust what it noted at its end
        self.start()

    def restart(self) -> None:
        self.stop()
        self.start()


@pytest.fixture(scope="module")
def cuttable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CuttableKafka]:
    with CuttableKafka(tmp_path_factory.mktemp("cuttable"), fast_start=True) as kafka:
        yield kafka


@pytest.fixture
def deployed(cuttable: CuttableKafka, tmp_path: Path) -> Iterator[Deployment]:
    with deployment(tmp_path, cuttable.bootstrap_servers) as made:
        yield made


def _produce_batches(deployed: Deployment, count: int, prefix: str) -> None:
    """Batches of ten records each."""
    for first in range(0, count, 10):
        deployed.produce(_upserts(10, seed=first, prefix=f"{prefix}-{first}"))


def test_a_log_that_was_cut_back_stops_consumer_and_api_at_start_also_when_it_has_grown_beyond_their_position(
    cuttable: CuttableKafka, deployed: Deployment
) -> None:
    first = deployed.start("consumer")
    _produce_batches(deployed, 40, "lost")
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    cuttable.restart_cut(deployed.topic, 20)
    beyond = deployed.start("consumer"), deployed.start("api")
    for service in beyond:
        wait_until(lambda service=service: "the log ends at 20: it was cut back" in service.text, 30, service.text)
        service.terminate()
    _produce_batches(deployed, 60, "other")
    for service in deployed.start("consumer"), deployed.start("api"):
        wait_until(lambda service=service: "log truncation detected" in service.text, 30, service.text)
        assert "broker end offset is 20" in service.text
    assert len(_ids(deployed)) == 40
    assert deployed.lag()["partitions"][0]["live_rows"] == 40
    replay = deployed.start("consumer", "replay", "docs")
    assert replay.process.wait(60) == 0, replay.text
    deployed.wait_until_checkpointed()
    wait_until(lambda: deployed.lag()["partitions"][0]["live_rows"] == 80, 30, "the api serves the replay")


def test_a_log_that_is_cut_back_and_grows_again_under_running_services_stops_them(
    cuttable: CuttableKafka, deployed: Deployment
) -> None:
    services = deployed.start("consumer"), deployed.start("api")
    _produce_batches(deployed, 40, "lost")
    deployed.wait_until_checkpointed()
    deployed.wait_until_applied()
    for service in services:  # who is awake may find the log's end before it has grown again
        service.process.send_signal(signal.SIGSTOP)
    cuttable.restart_cut(deployed.topic, 20)
    _produce_batches(deployed, 60, "other")
    for service in services:
        service.process.send_signal(signal.SIGCONT)
    for service in services:
        wait_until(lambda service=service: re.search("truncation|cut back", service.text), 40, service.text)
    assert deployed.lag()["partitions"][0]["live_rows"] == 40
    assert len(_ids(deployed)) == 40


def test_a_transaction_that_ends_under_a_newer_leader_is_not_taken_for_a_log_that_was_cut_back(
    cuttable: CuttableKafka, deployed: Deployment
) -> None:
    """Its marker, the log's last offset, is of a newer leader epoch than the last record."""
    first = deployed.start("consumer")
    writer = Transactions(deployed)
    writer.begin(_upserts(20))
    cuttable.restart()
    writer.commit()
    wait_until(lambda: deployed.manifest_position(0) == 21, 30, "a checkpoint after the marker")
    wait_until(lambda: deployed.newest_manifest().leader_epoch > 0, 20, "the leader epoch of the log's end is kept")
    assert first.terminate() == 0
    cuttable.restart()
    second, api = deployed.start("consumer"), deployed.start("api")
    deployed.produce(_upserts(10, prefix="more"))
    deployed.wait_until_checkpointed()
    assert len(_ids(deployed)) == 30
    deployed.wait_until_applied()
    assert "truncation" not in second.text + api.text
