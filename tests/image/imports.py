"""`python imports.py`: import whatever a command of the container image may import, at its start or later.

It begins with the services and with each command of `tidemark` that the image runs, which is every one but `up`, and
follows every import statement of our own modules, also those inside functions. What cannot be imported is named on
stdout, one line each, and the exit code is then 1. It runs with the packages that are there: those of the image when
it is run in the image, those of the service lock when `sitecustomize.py` beside it is on the path.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("tidemark", "consumer", "api", "cli")
SERVICES = ("consumer.__main__", "consumer.build", "api.__main__", "api.worker")
COMMANDS = "cli.main"
ENTRY_POINT = "cli.start"
# What starts a broker of its own needs a JRE and Kafka's jars, which the image rightly has not.
NOT_IN_THE_IMAGE = "up"


def statements(module: str) -> Iterator[tuple[str, str | None]]:
    """What a module of ours imports: (module, name of it or None)."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, module
    tree = ast.parse(Path(spec.origin).read_text())
    if module == COMMANDS:
        tree.body = [node for node in tree.body if getattr(node, "name", "") != NOT_IN_THE_IMAGE]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{module}: relative imports are not followed here"
            yield from ((node.module, alias.name) for alias in node.names)


def imported(module: str, name: str | None) -> str | None:
    """Import it as the statement would; the name of the module when `name` is one."""
    found = importlib.import_module(module)
    if name is None or (hasattr(found, name) and f"{module}.{name}" not in sys.modules):
        return None
    importlib.import_module(f"{module}.{name}")
    return f"{module}.{name}"


def main() -> int:
    todo = [*SERVICES, ENTRY_POINT, COMMANDS]
    seen, faults = set(todo), 0
    while todo:
        module = todo.pop()
        for wanted, name in statements(module):
            try:
                inner = imported(wanted, name)
            except ImportError as error:
                sys.stdout.write(f"{module} imports {wanted}: {error}\n")
                faults += 1
                continue
            new = {each for each in (wanted, inner) if each and each.split(".")[0] in PACKAGES} - seen
            seen |= new
            todo += sorted(new)
    if len(seen) < 40:
        sys.stdout.write(f"only {len(seen)} modules were found: {sorted(seen)}\n")
        return 1
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
