"""Ports for the services that tests start some time after they have chosen the port."""

import itertools
import os

from cli.ports import is_free

# Below the ports that Linux gives to who asks for any, so none of those is taken before the service listens.
_FIRST, _COUNT = 10_000, 22_000
_numbers = itertools.count(os.getpid() * 1_000)  # each test process begins elsewhere


def own_port() -> int:
    """A free port of 127.0.0.1 that no other test is given."""
    return next(port for number in _numbers if is_free(port := _FIRST + number % _COUNT))
