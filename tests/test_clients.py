"""Mistakes in librdkafka's own settings end a start in words; none is met later in a thread or an HTTP worker."""

import os
import subprocess
from pathlib import Path

import pytest

from tidemark.clients import try_settings
from tidemark.errors import BadConfiguration
from tidemark.service import python

SERVERS = {"bootstrap.servers": "127.0.0.1:1"}
# The first of a consumer only (as in confluentinc/librdkafka#5028), the second of a producer only, the others of all.
MISTAKES: dict[str, dict[str, str | int]] = {
    "session.timeout.ms": {"group.protocol": "consumer", "session.timeout.ms": 6_000},
    "acks": {"acks": 1},
    "no.such.option": {"no.such.option": 1},
    "ssl.ca.location": {"security.protocol": "ssl", "ssl.ca.location": "/no/such/file"},
}


@pytest.mark.parametrize("named", MISTAKES)
def test_a_setting_that_a_client_refuses_is_named(named: str) -> None:
    with pytest.raises(BadConfiguration, match=named):
        try_settings({**SERVERS, **MISTAKES[named]}, "group")


@pytest.mark.parametrize("settings", [{}, {"group.protocol": "consumer"}, {"group.instance.id": "one"}])
def test_settings_that_clients_take_are_fine_without_any_broker(
    settings: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    try_settings({**SERVERS, **settings}, "group")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("service", ["consumer", "api"])
@pytest.mark.parametrize("named", ["session.timeout.ms", "acks"])
def test_a_service_with_such_a_setting_does_not_start(tmp_path: Path, service: str, named: str) -> None:
    config = tmp_path / "tidemark.toml"
    settings = "\n".join(f'"{name}" = {value!r}' for name, value in {**SERVERS, **MISTAKES[named]}.items())
    config.write_text(
        f'[kafka]\n{settings}\n[checkpoint]\nurl = "{tmp_path.as_uri()}"\n[api]\nport = 0\n[consumer]\nport = 0\n'
        "[collections.docs]\ndimension = 2\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    ended = subprocess.run(
        python(service, "--config", str(config)),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
    )
    assert ended.returncode == 78
    assert "error: [kafka]: " in ended.stderr and named in ended.stderr
    assert "Traceback" not in ended.stderr
