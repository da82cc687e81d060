"""What a figure was measured on: printed with every table and kept in every result."""

import os
import platform
from importlib.metadata import version
from typing import Any

from tidemark.exact import simd_level


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


def private_rss_mb(pid: int) -> float:
    """Memory that is this process's own (anonymous, and mapped pages it has changed), in MB.

    Mapped files are left out: another replica on the machine would share them.
    """
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1024


def rss_mb(pid: int) -> float:
    """Resident memory with everything mapped, in MB."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024
