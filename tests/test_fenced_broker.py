"""Asking a broker that is fenced: an error, and not the end of the process."""

import subprocess
import sys

from tests.fenced_broker import fenced_broker

ASK = """
import sys
from tidemark.errors import BrokerUnreachable
from tidemark.topic import Topics

topics = Topics({"bootstrap.servers": sys.argv[1]}, timeout_s=5.0)
print(topics.identity("docs").cluster_id, flush=True)
sys.stdin.readline()
try:
    topics.identity("docs")
except BrokerUnreachable as error:
    print(error)
"""


def test_a_broker_that_names_no_broker_is_an_error_and_does_not_end_the_process() -> None:
    with fenced_broker() as broker:
        command = [sys.executable, "-c", ASK, broker.address]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as asking:
            assert asking.stdin and asking.stdout
            assert asking.stdout.readline() == "one\n"
            broker.fenced = True
            said, errors = asking.communicate("\n", timeout=30)
    assert (asking.returncode, errors) == (0, "")
    assert "describing topic 'docs'" in said
