"""`tidemark up`: a broker, the topics, the consumer, the api and the sample data, supervised until Ctrl-C.

A second `up` on the same directory continues from what is there: the broker's data, the checkpoints and the
mark that the sample data was loaded whole. Everything runs in the main thread: children are bound to the
thread that starts them, and a signal only sets a flag (except while the broker is being opened).
"""

import logging
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from cli import run_files
from cli.broker import Broker, open_broker
from cli.children import Child, Watch
from cli.remote_api import get
from cli.run_settings import RunSettings
from cli.sample_load import COLLECTION, SampleLoad
from cli.welcome import address_of, what_to_try
from tidemark import files
from tidemark.errors import BadConfiguration, BrokerUnreachable, TidemarkError
from tidemark.printable import printable_lines
from tidemark.service import EXIT_CONFIGURATION
from tidemark.settings import Settings
from tidemark.topic import Topics

TOPIC_PARTITIONS = 2
TURN_S = 0.1
SAY_EVERY_S = 5.0
# A service that ends this often before everything is ready will not get well by itself.
ENDS_AT_START = 3
SILENT_API_S = 120.0
LEFT_OVER_S = 3.0
# In the order of stopping; with the broker's second or two it is over within 20 s.
STOP_S = {"api": 7.0, "consumer": 12.0}


class Stopped(Exception):
    """We were told to stop; ends whatever is under way."""


class Up:
    """One run of everything; `run` returns when told to stop."""

    def __init__(self, config: Path | None, api_port: int | None, quiet: bool) -> None:
        self._config = config
        self._api_port = api_port
        self._quiet = quiet
        self._directory = run_files.up_directory()
        self._started = time.monotonic()
        self._stopping = False
        self._opening_broker = False
        self._services: list[Child] = []
        self._watches: list[Watch] = []
        self._sample: SampleLoad | None = None

    def run(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="          %(message)s")
        logging.getLogger("cli").setLevel(logging.WARNING if self._quiet else logging.INFO)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        with ExitStack() as stack:
            try:
                self._run(stack)
            except Stopped:
                pass
            except TidemarkError:
                if not self._stopping:  # else it is only how something took the order to stop
                    raise
            self._say("stopping")
        self._say("stopped")

    def _run(self, stack: ExitStack) -> None:
        lock = files.DirectoryLock(self._directory, "`tidemark up`")
        stack.callback(lock.close)
        self._wait_for_the_last_run()
        run_settings = RunSettings(self._config)
        run_settings.choose_ports(self._api_port)
        if run_settings.is_sample:
            self._sample = SampleLoad()
            stack.callback(self._sample.child.stop, 2.0)
            if run_files.sample_loaded() is None:
                self._sample.begin()
        broker = self._open_broker(stack, run_settings)
        settings = run_settings.write(broker.bootstrap_servers, is_local=broker.local is not None)
        self._check_stop()
        self._start(stack, settings)
        if self._sample:
            self._load_sample(self._sample, settings)
        self._wait_until_ready(settings)
        stack.callback(lambda: run_files.state_path().unlink(missing_ok=True))
        self._write_state(broker, settings)
        self._say("ready")
        if not self._quiet:
            sys.stdout.write(what_to_try(settings, self._sample is not None))
            sys.stdout.flush()
        while True:
            if self._turn():
                self._write_state(broker, settings)

    # -- start ---------------------------------------------------------------------------------------------

    def _wait_for_the_last_run(self) -> None:
        """When the last `up` was killed, its services may hang at closing: their broker was killed too."""
        left = [pid for pid in (run_files.state() or {}).get("pids", {}).values() if _is_ours(pid)]
        run_files.state_path().unlink(missing_ok=True)
        if left:
            self._say("waiting for the services of the last run, which was killed")
        deadline = time.monotonic() + LEFT_OVER_S
        while left := [pid for pid in left if _is_ours(pid)]:
            self._pause()
            if time.monotonic() > deadline:
                for pid in left:  # a crash loses nothing: the next one replays from the checkpoint
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _open_broker(self, stack: ExitStack, run_settings: RunSettings) -> Broker:
        named = run_settings.named_servers
        if named and "KAFKA_BOOTSTRAP_SERVERS" not in os.environ:
            return Broker(named, f"{run_settings.source} names it")
        self._say("starting a broker")
        self._opening_broker = True
        try:
            broker = stack.enter_context(open_broker(self._directory / "kafka"))
        finally:
            self._opening_broker = False
        self._say(f"broker at {broker.bootstrap_servers}")
        if broker.local:
            self._watches.append(Watch(broker.local, self._tell))
        return broker

    def _start(self, stack: ExitStack, settings: Settings) -> None:
        _make_topics(settings)
        stack.callback(self._stop_services)
        for name in ("consumer", "api"):
            arguments = [name, "--config", str(run_files.run_config()), "--dies-with-parent", str(os.getpid())]
            child = Child(name, arguments, self._directory / f"{name}.log")
            self._services.append(child)
            child.start()
            self._watches.append(Watch(child, self._tell))
        self._say("consumer and api are starting")

    def _load_sample(self, sample: SampleLoad, settings: Settings) -> None:
        collection = settings.collection(COLLECTION)
        identity = Topics(_quietly(settings)).identity(collection.topic)
        if sample.is_loaded(collection, identity):
            return
        sample.begin()
        self._say("making vectors of the standard library's documentation")
        while not sample.is_made():
            self._turn()
        self._say("loading them through Kafka")
        count, positions = sample.load(collection, settings, identity, self._check_stop)
        self._say(f"{count} documents are loaded")
        self._wait_until_applied(address_of(settings), positions)

    def _wait_until_applied(self, address: str, positions: dict[int, int]) -> None:
        """Until a search sees the sample data, so that the first one already answers well."""
        while not self._turn_all():
            try:
                partitions = get(f"{address}/collections/{COLLECTION}/lag", 2.0).json()["partitions"]
            except (httpx.HTTPError, ValueError, KeyError):
                continue
            reached = {partition["partition"]: partition["applied_position"] or 0 for partition in partitions}
            if all(reached.get(number, 0) >= position for number, position in positions.items()):
                return

    def _wait_until_ready(self, settings: Settings) -> None:
        answered = said = time.monotonic()
        while not self._turn_all():
            try:
                answer = get(address_of(settings) + "/readyz", 2.0)
                if answer.status_code == 200:
                    return
                answered, reason = time.monotonic(), str(answer.json().get("reasons"))
            except (httpx.HTTPError, ValueError) as error:
                reason = f"the api does not answer ({error or type(error).__name__})"
            if time.monotonic() - answered > SILENT_API_S:
                raise BrokerUnreachable(f"{reason} for {SILENT_API_S:.0f} s: see {self._directory}/api.log")
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
                self._say(f"not ready yet: {reason}")

    def _turn_all(self) -> bool:
        """One turn while starting: never True; raises when a service cannot be started at all."""
        self._turn()
        for watch, child in zip(self._watches[-len(self._services) :], self._services, strict=True):
            if child.exit_code == EXIT_CONFIGURATION:
                raise BadConfiguration(child.last_lines(1).removeprefix("error: "))
            if watch.ends >= ENDS_AT_START:
                raise BrokerUnreachable(
                    f"{child.name} ended {watch.ends} times; {child.log_path} ends with:\n{child.last_lines()}"
                )
        return False

    # -- run -----------------------------------------------------------------------------------------------

    def _turn(self) -> bool:
        """A short pause, and whatever has ended is started again; True when something was."""
        self._pause()
        started = [watch.turn() for watch in self._watches]
        return any(started)

    def _pause(self) -> None:
        self._check_stop()
        time.sleep(TURN_S)
        self._check_stop()

    def _check_stop(self) -> None:
        if self._stopping:
            raise Stopped

    def _write_state(self, broker: Broker, settings: Settings) -> None:
        run_files.write_state(
            {
                "api": address_of(settings),
                "bootstrap_servers": broker.bootstrap_servers,
                "collections": sorted(settings.collections),
                "pids": {"broker": broker.pid, **{child.name: child.pid for child in self._services}},
            }
        )

    # -- stop ----------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _: object) -> None:
        """The first one stops in order; a second one at once."""
        if self._stopping:
            for child in self._services:
                child.kill()
            return
        self._stopping = True
        if self._opening_broker:
            raise Stopped

    def _stop_services(self) -> None:
        for child in reversed(self._services):
            if not child.stop(STOP_S[child.name]):
                self._tell(
                    f"{child.name} did not stop within {STOP_S[child.name]:.0f} s: killed (checkpoints are safe)"
                )

    # -- messages ------------------------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._tell(text)

    def _tell(self, text: str) -> None:
        """What is said even when quiet: that something went wrong."""
        sys.stderr.write(f"{time.monotonic() - self._started:6.1f} s  {printable_lines(text)}\n")
        sys.stderr.flush()


def _is_ours(pid: int | None) -> bool:
    """Whether the process is a service that reads this directory's settings, and not a stranger's with its number."""
    try:
        return bool(pid) and os.fsencode(run_files.run_config()) in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _quietly(settings: Settings) -> dict[str, str | int | float | bool]:
    """The Kafka settings without librdkafka's own lines on stderr."""
    return {"log_level": 0, **settings.kafka}


def _make_topics(settings: Settings) -> None:
    topics = Topics(_quietly(settings))
    for collection in settings.all_collections():
        for topic, partitions in ((collection.topic, TOPIC_PARTITIONS), (collection.dead_letters, 1)):
            if not topics.exists(topic):
                topics.create(topic, partitions)
