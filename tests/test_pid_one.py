"""The services as process 1, which they are in a container that has no init, and stopped at any moment of a start."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from tests import pid_one
from tests.services import Deployment, Service, vectors, wait_until

pytestmark = pytest.mark.kafka

MakeDeployment = Callable[..., Deployment]

# Ends with 9 at the first import of a package that is neither Python's nor ours while SIGTERM has no handler.
_WATCH_IMPORTS = """
import os, runpy, signal, sys

class Watch:
    def find_spec(self, name, path, target=None):
        known = name in sys.stdlib_module_names or name in ("tidemark", "consumer", "api")
        if path is None and not known and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            print(name)
            os._exit(9)

sys.meta_path.insert(0, Watch())
sys.argv[1:] = ["--help"]
runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["consumer", "api"])
def test_a_service_heeds_signals_before_it_imports_any_package(module: str) -> None:
    source = _WATCH_IMPORTS.replace("MODULE", repr(module))
    done = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["consumer", "api"])
def test_a_service_that_is_process_1_ends_in_order_whenever_it_is_stopped(deploy: MakeDeployment, module: str) -> None:
    deployed = deploy()
    deployed.produce((f"id-{i}".encode(), row.tobytes()) for i, row in enumerate(vectors(1_000)))
    for delay_s in (0, 0.1, 0.3, 0.6, 1.5):
        started = deployed.start(module, within=pid_one.unshare())
        pid = pid_one.pid_outside(started)
        pid_one.wait_until_it_heeds(pid)
        time.sleep(delay_s)
        os.kill(pid, signal.SIGTERM)
        assert started.process.wait(30) in (0, 143), f"after {delay_s} s: {started.text}"
        assert "Traceback" not in started.text


def test_a_command_that_is_process_1_is_ended_by_sigterm(deploy: MakeDeployment) -> None:
    deployed = deploy(kafka={"bootstrap.servers": "127.0.0.1:1"})
    command = [*pid_one.unshare(), Path(sys.executable).with_name("tidemark"), "sample", "--config", deployed.config]
    environment = {**os.environ, "TIDEMARK_UP_DIR": str(deployed.directory / "up")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deployed.started.append(started := Service(process, deployed.directory / "sample.log"))
    pid = pid_one.pid_outside(started)
    pid_one.wait_until_it_heeds(pid)
    os.kill(pid, signal.SIGTERM)
    assert process.wait(30) == 143  # 69 when it had waited for the broker


def test_a_consumer_that_waits_for_brokers_at_its_start_is_stopped_at_once(deploy: MakeDeployment) -> None:
    deployed = deploy(kafka={"bootstrap.servers": "127.0.0.1:1"})
    started = deployed.start("consumer")
    wait_until(lambda: "metrics and health" in started.text, 30, "started")
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(30) == 143, started.text  # 69 when it had waited


def test_a_consumer_is_not_held_up_at_its_stop_by_a_member_that_was_killed(deploy: MakeDeployment) -> None:
    deployed = deploy(kafka={"session.timeout.ms": 30_000})
    killed = deployed.start("consumer")
    wait_until(lambda: "owns" in killed.text, 30, "the partition is owned")
    killed.kill()
    waiting = deployed.start("consumer")
    admin = AdminClient({"bootstrap.servers": deployed.bootstrap_servers})
    group = deployed.topic

    def joins() -> bool:
        state = admin.describe_consumer_groups([group])[group].result().state
        return bool(state == ConsumerGroupState.PREPARING_REBALANCING)

    wait_until(joins, 25, "its join waits for the member that was killed")
    assert waiting.terminate() == 0
    assert "left without its answer" in waiting.text
    assert waiting.text.endswith("stopped cleanly\n")


def test_a_consumer_that_is_process_1_trains_and_codes(deploy: MakeDeployment) -> None:
    deployed = deploy()
    consumer = deployed.start("consumer", within=pid_one.unshare())
    deployed.produce((f"id-{i}".encode(), row.tobytes()) for i, row in enumerate(vectors(2_000)))
    wait_until(lambda: ": coded " in consumer.text or "builder failed" in consumer.text, 30, "rows are coded")
    assert "builder failed" not in consumer.text
