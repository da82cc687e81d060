"""What a store has to do to be measured, and what the adapters of all stores share."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.conditions import Below, Columns

K = 10
M, EF_CONSTRUCTION = 16, 200
BATCH = 2_000  # 1 MB of rows a request: within the limits of every peer
WAIT_S = 1_800.0
COLLECTION = "TidemarkPeers"
# efSearch of graphs, and the lists that LanceDB probes; in small steps: nobody is measured far above the recall asked.
EF = (10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 256, 384, 512)

Rows = NDArray[np.float32]
Insert = Callable[[int, Rows], None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a peer may keep its files, how many rows will come, and where its server is if it is given."""

    directory: Path
    rows: int
    url: str


class Peer(Protocol):
    """One store with one empty collection; what it started is stopped by the ExitStack it is made with.

    Rows are called by their numbers. `wait_indexed` returns when nothing is built any more, and the moment at which
    all rows were in an index. `address` is what `WRITERS` inserts through from another process, "" where none can.
    """

    version: str
    index: str
    address: str

    @property
    def efforts(self) -> Sequence[float]: ...
    def insert(self, base: Rows) -> None: ...
    def count(self) -> int: ...
    def wait_indexed(self) -> float: ...
    def tune(self, effort: float) -> None: ...
    def search(self, query: Rows) -> list[int]: ...


class FilteredPeer(Peer, Protocol):
    """One that also searches among the rows that a condition picks."""

    def insert_with(self, base: Rows, columns: Columns) -> None:
        """All rows, each with its metadata, indexed where the store does that when asked for."""
        ...

    def choose(self, condition: Below | None) -> None:
        """Search among these rows from now on; None: among all."""
        ...


def batches(base: Rows) -> Iterator[tuple[int, Rows]]:
    for first in range(0, len(base), BATCH):
        yield first, np.ascontiguousarray(base[first : first + BATCH])


def insert_all(insert: Insert, base: Rows) -> None:
    for first, rows in batches(base):
        insert(first, rows)


def start(stack: ExitStack, command: list[str], log: Any) -> None:
    """A child process that ends with the stack, and with us however we end."""
    import cli.die_with_parent as with_parent

    wrapper = [sys.executable, with_parent.__file__, str(os.getpid())]
    process = subprocess.Popen([*wrapper, *command], stdout=log, stderr=log)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def wait_for(asked: Callable[[], Any], what: str) -> Any:
    """What `asked` returns as soon as it is true."""
    deadline = time.perf_counter() + WAIT_S
    while not (answer := asked()):
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{what}: not done after {WAIT_S:.0f} s")
        time.sleep(0.01)
    return answer
