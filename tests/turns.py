"""Runs functions in threads that use the disk one at a time, in an order given: every interleaving can be tried.

A step ends where a thread is about to do an operation of a kind that the test names; the test says who goes next.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from itertools import combinations
from pathlib import Path

from tidemark import files

# What a claim and a publication do to the directory that others can see, and where they look at others.
CLAIMS = ("listing", "creating", "link")


class _Worker:
    def __init__(self, function: Callable[[], object]) -> None:
        self.go, self.waits = threading.Semaphore(0), threading.Semaphore(0)
        self.ended = False
        self.error: BaseException | None = None
        self.steps = 0
        self.thread = threading.Thread(target=self._run, args=(function,))
        self.thread.start()

    def _run(self, function: Callable[[], object]) -> None:
        self.go.acquire()
        try:
            function()
        except BaseException as error:
            self.error = error
        self.ended = True
        self.waits.release()

    def step(self) -> None:
        if not self.ended:
            self.steps += 1
            self.go.release()
            self.waits.acquire()


def run(functions: list[Callable[[], object]], order: Iterable[int], kinds: Collection[str] = CLAIMS) -> list[int]:
    """Take one step of the function with each number in turn, then all to their ends; how many steps each took."""
    workers = [_Worker(function) for function in functions]
    by_thread = {worker.thread: worker for worker in workers}

    def before(operation: str, _path: Path) -> None:
        worker = by_thread.get(threading.current_thread())
        if worker is not None and operation in kinds:
            worker.waits.release()
            worker.go.acquire()

    with files.watched(before):
        for number in order:
            workers[number].step()
        while not all(worker.ended for worker in workers):
            for worker in workers:
                worker.step()
    for worker in workers:
        worker.thread.join()
        if worker.error is not None:
            raise worker.error
    return [worker.steps for worker in workers]


def orders(first: int, second: int) -> list[list[int]]:
    """Every order of so many steps of function 0 and so many of function 1."""
    every = range(first + second)
    return [[0 if n in chosen else 1 for n in every] for chosen in map(set, combinations(every, first))]
