"""What a figure was measured on: printed with every table and kept in every result."""

import contextlib
import os
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tidemark.ann.exact import simd_level

# Below followers, consumers and builds.
NICE = 15


def describe(seed: int) -> dict[str, Any]:
    """Processor, cores, memory, versions and seed."""
    model = ""
    with open("/proc/cpuinfo") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ("confluent-kafka", "faiss-cpu", "numpy", "fastapi", "uvicorn")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "faiss_simd": simd_level(),
        "versions": {name: version(name) for name in packages},
        "seed": seed,
    }


def heading(about: dict[str, Any]) -> str:
    """Two lines over a table, of what `describe` found."""
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    first = f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB; {about['faiss_simd']}"
    return f"{first}\nPython {about['python']}, {versions}"


def private_rss_mb(pid: int) -> float:
    """Memory of a process and of those it started that no file holds: their own and what they share, in MB.

    Mapped files are left out: another replica on the machine would share them.
    """
    return sum(_rollup_mb(one, "Pss_Anon") + _rollup_mb(one, "Pss_Shmem") for one in family(pid))


def rss_mb(pid: int) -> float:
    """Resident memory of a process and of those it started, with everything mapped, in MB."""
    return sum(_rollup_mb(one, "Pss") for one in family(pid))


def _rollup_mb(pid: int, name: str) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return [pid, *(member for child in children for member in family(child))]


def cpu_s(pid: int) -> float:
    """CPU time a process and its children that have ended have used, in seconds, in steps of a hundredth."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def give_way(pid: int) -> None:
    """Lower the priority of a process that stands for another machine, so that it does not take ours from searches."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(task.name), NICE)


def keep_to(pid: int, cpus: Iterable[int]) -> None:
    """Keep all threads of a process on some cores."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cpus)
