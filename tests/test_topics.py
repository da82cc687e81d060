"""What consumer and api do when their topic becomes another one: of another cluster, or with other partitions."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from cli.local_kafka import LocalKafka
from tests.services import Deployment, wait_until
from tests.test_consumer import _ids, _upserts
from tests.test_refused import _make_again
from tidemark.topic import Topics

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]


def _add_partitions(deployed: Deployment, count: int) -> None:
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    admin.create_partitions([NewPartitions(deployed.topic, count)])[deployed.topic].result()
    deployed.partitions = count


def test_partitions_that_are_added_while_the_services_run_are_read(deploy: MakeDeployment) -> None:
    often = {"topic.metadata.refresh.interval.ms": 1_000}
    deployed = deploy(kafka=often)
    consumer = deployed.start("consumer")
    deployed.start("api")
    deployed.produce(_upserts(20))
    deployed.wait_until_ready()
    deployed.wait_until_checkpointed()
    _add_partitions(deployed, 3)
    deployed.produce(_upserts(20, prefix="added"), partition=2)
    wait_until(lambda: deployed.manifest_position(2) == 20, 60, consumer.text)
    wait_until(lambda: [p["applied_position"] for p in deployed.lag()["partitions"]] == [20, 0, 20], 60, "all are read")
    assert len(_ids(deployed, 2)) == 20
    assert deployed.lag()["ready"]


def test_a_topic_made_again_with_fewer_partitions_stops_each_of_them_in_consumer_and_api(
    deploy: MakeDeployment,
) -> None:
    deployed = deploy(partitions=2)
    first = deployed.start("consumer")
    for number in range(2):
        deployed.produce(_upserts(20, prefix=f"p{number}"), partition=number)
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    deployed.partitions = 1
    _make_again(deployed)
    deployed.produce(_upserts(50, prefix="other"))
    for service in deployed.start("consumer"), deployed.start("api"):
        wait_until(lambda service=service: "it was deleted and created again" in service.text, 40, service.text)
    assert (len(_ids(deployed, 0)), len(_ids(deployed, 1))) == (20, 20)
    wait_until(lambda: deployed.ask("GET", "/readyz").status_code == 503, 20, "not ready")
    assert deployed.lag()["live_rows"] == 40


def test_a_topic_of_the_same_name_on_another_cluster_is_refused_by_consumer_and_api(
    deploy: MakeDeployment, tmp_path: Path
) -> None:
    deployed = deploy()
    first = deployed.start("consumer")
    deployed.produce(_upserts(20))
    deployed.wait_until_checkpointed()
    assert first.terminate() == 0
    with LocalKafka(tmp_path / "other", fast_start=True) as other:
        topics = Topics({"bootstrap.servers": other.bootstrap_servers})
        topics.create(deployed.topic, 1)
        deployed.config.write_text(
            deployed.config.read_text().replace(deployed.bootstrap_servers, other.bootstrap_servers)
        )
        for service in deployed.start("consumer"), deployed.start("api"):
            wait_until(lambda service=service: re.search(r"is of cluster \S+, this is", service.text), 40, service.text)
        assert len(_ids(deployed)) == 20
        deployed.stop()
