"""podman in a directory of its own: images, containers and volumes there, nothing of it left afterwards.

It also runs where the kernel gives root less than containers expect, as inside another container: limits that may not
be raised are left out (a wrapper around runc), control groups are used without systemd. Run `Engine.run` inside a
network namespace of its own, and containers with `--network host`: they then share its loopback, and no one else's.
"""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Programs and the Debian packages they are in.
TOOLS = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "mmdebstrap": "mmdebstrap",
    "tini-static": "tini",
    "unshare": "util-linux",
    "ip": "iproute2",
}

_CONTAINERS = """[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc-without-limits"
runtime_supports_json = ["runc-without-limits"]
init_path = "{init}"
[engine.runtimes]
runc-without-limits = ["{runtime}"]
"""
_REGISTRIES = 'unqualified-search-registries = ["docker.io"]\n'
# runc fails where it may not raise a limit, which podman always asks for.
_RUNTIME = """#!/usr/bin/env python3
import json, os, sys

arguments = sys.argv[1:]

def without_limits(path, process):
    found = json.load(open(path))
    process(found).pop("rlimits", None)
    json.dump(found, open(path, "w"))

for flag in ("--bundle", "-b"):
    if "create" in arguments and flag in arguments:
        without_limits(arguments[arguments.index(flag) + 1] + "/config.json", lambda found: found["process"])
for flag in ("--process", "-p"):
    if "exec" in arguments and flag in arguments:
        without_limits(arguments[arguments.index(flag) + 1], lambda found: found)
os.execvp("runc", ["runc", *arguments])
"""


def missing_packages() -> list[str]:
    """The Debian packages of the programs that are not here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return sorted({package for program, package in TOOLS.items() if not shutil.which(program, path=path)})


class Engine:
    """podman over one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._not_ours = {place for place in _outside() if place.exists()}
        runtime = directory / "runc-without-limits"
        containers = directory / "containers.conf"
        registries = directory / "registries.conf"
        runtime.write_text(_RUNTIME)
        runtime.chmod(0o755)
        init = shutil.which("tini-static") or ""
        containers.write_text(_CONTAINERS.format(runtime=runtime, init=init))
        registries.write_text(_REGISTRIES)
        self._environment = {
            **os.environ,
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "CONTAINERS_CONF": str(containers),
            "CONTAINERS_REGISTRIES_CONF": str(registries),
        }
        places = {"root": "storage", "runroot": "run", "tmpdir": "tmp"}
        self._podman = ["podman", *(f"--{flag}={directory / name}" for flag, name in places.items())]

    def run(self, *words: str, check: bool = True, timeout_s: float = 300, text: str = "") -> str:
        """`podman WORDS`; what it writes to stdout. Raises CalledProcessError with what it said unless `check`."""
        done = subprocess.run(
            [*self._podman, *words],
            env=self._environment,
            input=text,
            text=True,
            capture_output=True,
            timeout=timeout_s,
        )
        if check and done.returncode:
            raise RuntimeError(f"podman {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def build(self, tag: str, context: Path, dockerfile: Path, *options: str) -> None:
        """Without a network of its own, because containers cannot have one here."""
        words = ["build", "--pull=never", "--isolation=chroot", "--network=host", *options]
        self.run(*words, f"--file={dockerfile}", f"--tag={tag}", str(context), timeout_s=1_200)

    def inspect(self, container: str) -> dict[str, object]:
        """The state of a container."""
        found: dict[str, object] = json.loads(self.run("inspect", "--format={{json .State}}", container))
        return found

    def logs(self, container: str) -> str:
        done = subprocess.run(
            [*self._podman, "logs", container],
            env=self._environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return done.stdout

    def clean_up(self) -> None:
        """Everything ends and its files go."""
        self.run("rm", "--all", "--force", "--time=0", "--volumes", check=False)
        self.run("volume", "rm", "--all", "--force", check=False)
        self.run("rmi", "--all", "--force", check=False)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (mounted := line.split()[1]).startswith(f"{self.directory}/"):
                subprocess.run(["umount", "--lazy", mounted], check=False)
        for place in reversed(_outside()):
            if place in self._not_ours:
                continue
            if place.is_relative_to(_CGROUPS):
                with contextlib.suppress(OSError):
                    place.rmdir()
            else:
                shutil.rmtree(place, ignore_errors=True)


def _outside() -> list[Path]:
    """What podman makes outside of its directory."""
    groups = [path for root in _CGROUPS.glob("*/libpod_parent") for path in (root, *root.rglob("*")) if path.is_dir()]
    return [Path("/var/lib/containers"), Path("/var/lib/containers/cache"), *sorted(groups)]


def words_of(options: dict[str, Sequence[str]]) -> list[str]:
    """Command-line words of options, each as often as it has values."""
    return [f"--{name}={value}" for name, values in options.items() for value in values]
