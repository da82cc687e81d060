"""With this directory in PYTHONPATH, Python and its children import only what requirements-service.lock names.

So a test sees what the container image sees, without making an environment: packages of the development
environment that the image does not have are refused as if they were not installed.
"""

import re
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

LOCK = Path(__file__).parents[2] / "requirements-service.lock"
OUR_OWN = "tidemark"


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


class _OnlyTheLock:
    """The first finder asked: it refuses packages whose every distribution is missing from the lock."""

    def __init__(self) -> None:
        lines = LOCK.read_text().splitlines()
        locked = {_normalized(found[1]) for line in lines if (found := re.match(r"([\w.-]+)==", line))}
        locked.add(OUR_OWN)
        self._refused = {
            package: sorted(set(distributions))
            for package, distributions in packages_distributions().items()
            if locked.isdisjoint(map(_normalized, distributions))
        }

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if path is None and name in self._refused:
            raise ModuleNotFoundError(f"{name} (of {self._refused[name]}) is not in {LOCK.name}", name=name)
        return None


sys.meta_path.insert(0, _OnlyTheLock())
