"""`tidemark up`: a broker, the topics, the consumer, the api and the sample data, supervised until Ctrl-C.

A second `up` on the same directory continues from what is there: the broker's data, the checkpoints and the
mark that the sample data was loaded whole.
"""

import json
import logging
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from cli import run_files
from cli.broker import Broker, open_broker
from cli.children import Child
from cli.ports import free_port, is_free
from cli.produce import Records, produce
from cli.sample import Encoder, documents
from tidemark import files
from tidemark.collection import Collection
from tidemark.errors import BadConfiguration, BrokerUnreachable
from tidemark.settings import Settings, load
from tidemark.topic import Topics

READY_S = 120.0
TOPIC_PARTITIONS = 2
WATCH_S = 0.2


class Up:
    """One run of everything; `run` returns when told to stop."""

    def __init__(self, config: Path | None, api_port: int | None) -> None:
        self._config = config
        self._api_port = api_port
        self._directory = run_files.up_directory()
        self._started = time.monotonic()
        self._stopping = threading.Event()
        self._children: list[Child] = []

    def say(self, text: str) -> None:
        sys.stderr.write(f"{time.monotonic() - self._started:6.1f} s  {text}\n")
        sys.stderr.flush()

    def run(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="          %(message)s")
        logging.getLogger("cli").setLevel(logging.INFO)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopping.set())
        with ExitStack() as stack:
            lock = files.DirectoryLock(self._directory, "`tidemark up`")
            stack.callback(lock.close)
            stack.callback(lambda: run_files.state_path().unlink(missing_ok=True))
            self.say("starting a broker")
            broker = stack.enter_context(open_broker(self._directory / "kafka"))
            self.say(f"broker at {broker.bootstrap_servers}")
            settings, is_sample = self._settings(broker)
            stack.callback(self._stop_children)
            self._start(settings, broker, is_sample)
            self._supervise(broker, settings)
            self.say("stopping")
        self.say("stopped")

    def _settings(self, broker: Broker) -> tuple[Settings, bool]:
        consumer_port = None if is_free(8081) else free_port()
        is_sample = run_files.write_run_config(self._config, broker.bootstrap_servers, self._api_port, consumer_port)
        settings = load(run_files.run_config())
        if settings.api.port and not is_free(settings.api.port):
            raise BadConfiguration(
                f"port {settings.api.port} is in use: stop what uses it, or start with `--api-port 0` for a free one"
            )
        if not settings.api.port:
            run_files.write_run_config(self._config, broker.bootstrap_servers, free_port(), consumer_port)
            settings = load(run_files.run_config())
        return settings, is_sample

    def _start(self, settings: Settings, broker: Broker, is_sample: bool) -> None:
        _make_topics(settings)
        for name in ("consumer", "api"):
            child = Child(name, run_files.run_config(), self._directory / f"{name}.log", self.say)
            child.start()
            self._children.append(child)
        self.say("consumer and api are starting")
        if is_sample and not run_files.loaded_marker().exists():
            self._load_sample(settings.collection("docs"), settings)
        self._wait_until_ready(settings)
        self._write_state(broker, settings)
        self.say("ready")
        self._show(settings, is_sample)

    def _load_sample(self, collection: Collection, settings: Settings) -> None:
        """The mark is written last: a load that was interrupted is done again, by id, so nothing is twice."""
        self.say("reading the standard library's documentation")
        found = documents()
        encoder, vectors = Encoder.fit([document.text for document in found])
        self.say(f"loading {len(found)} documents through Kafka")
        records = Records(
            ((document.id.encode(), vectors[row].tobytes(), document.metadata) for row, document in enumerate(found)),
            len(found),
        )
        produced = produce(settings.kafka, collection.topic, records, "sample data")
        encoder.save(run_files.encoder_path())
        files.replace(run_files.loaded_marker(), json.dumps(produced.to_json()).encode())

    def _wait_until_ready(self, settings: Settings) -> None:
        deadline = time.monotonic() + READY_S
        while not self._stopping.wait(0.1):
            self._watch()
            try:
                answer = httpx.get(_address(settings) + "/readyz", timeout=2.0)
                if answer.status_code == 200:
                    return
                reasons = str(answer.json().get("reasons"))
            except httpx.HTTPError:
                reasons = "it does not answer yet"
            if time.monotonic() > deadline:
                logs = "\n".join(f"{child.log_path}:\n{child.last_lines()}" for child in self._children)
                raise BrokerUnreachable(f"the api is not ready after {READY_S:.0f} s: {reasons}\n{logs}")

    def _supervise(self, broker: Broker, settings: Settings) -> None:
        while not self._stopping.wait(WATCH_S):
            if self._watch():
                self._write_state(broker, settings)

    def _watch(self) -> bool:
        started = [child.watch() for child in self._children]
        return any(started)

    def _write_state(self, broker: Broker, settings: Settings) -> None:
        pids = {"broker": broker.pid, **{child.name: child.pid for child in self._children}}
        run_files.write_state(
            {
                "api": _address(settings),
                "bootstrap_servers": broker.bootstrap_servers,
                "collections": sorted(settings.collections),
                "pids": pids,
            }
        )

    def _stop_children(self) -> None:
        for child in reversed(self._children):
            child.stop()

    def _show(self, settings: Settings, is_sample: bool) -> None:
        name = sorted(settings.collections)[0]
        lines = ["", f"  api       {_address(settings)}  (its page: /docs)"]
        lines += [f"  kafka     {settings.kafka['bootstrap.servers']}", f"  directory {self._directory}", ""]
        lines += ["Try, in another terminal:", ""]
        if is_sample:
            lines.append('  .venv/bin/tidemark search docs --text "parse a json string"')
        lines += [f"  .venv/bin/tidemark lag {name}", f"  curl {_address(settings)}/collections/{name}", ""]
        lines.append("Ctrl-C stops everything; the next `make up` continues from here.\n")
        sys.stdout.write("\n".join(lines))
        sys.stdout.flush()


def _make_topics(settings: Settings) -> None:
    topics = Topics(settings.kafka)
    for collection in settings.all_collections():
        for topic, partitions in ((collection.topic, TOPIC_PARTITIONS), (collection.dead_letters, 1)):
            if not topics.exists(topic):
                topics.create(topic, partitions)


def _address(settings: Settings) -> str:
    return f"http://{settings.api.host}:{settings.api.port}"
