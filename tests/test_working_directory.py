"""No file of the working directory is run: everything starts in one that holds modules named as ours and Python's."""

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.services import wait_until

TIDEMARK = Path(sys.executable).with_name("tidemark")
OURS = ("tidemark", "api", "consumer", "cli")
OTHERS = ("json", "logging", "signal", "typing", "numpy", "faiss", "typer", "pydantic", "sitecustomize", "readline")
ROWS, DIMENSION = 600, 8
SETTINGS = """
[kafka]
"bootstrap.servers" = "{servers}"
[checkpoint]
interval_s = 0.2
[consumer]
group = "{group}"
[collections.docs]
topic = "{group}"
dimension = 8
metric = "l2"
index = {{ ann_rows_min = 256 }}
"""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory of modules that leave `NAME.was-run` when one of them is imported."""
    directory = tmp_path / "hostile"
    for name in OURS:
        (directory / name).mkdir(parents=True)
    for path in (*(directory / name / "__init__.py" for name in OURS), *(directory / f"{n}.py" for n in OTHERS)):
        name = path.stem if path.stem != "__init__" else path.parent.name
        path.write_text(f"open({str(tmp_path / name)!r} + '.was-run', 'w').close()\n")
    return directory


def _environment(directory: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TIDEMARK_", "KAFKA_", "PYTHON"))}
    return {**kept, "TIDEMARK_UP_DIR": str(directory / "up")}


def test_everything_runs_in_a_directory_of_modules_with_our_names(kafka: str, hostile: Path) -> None:
    """`up` starts the consumer, its builder, the api and its worker; `replay` is a child of its own."""
    group = f"here-{uuid.uuid4().hex[:8]}"
    (hostile / "tidemark.toml").write_text(SETTINGS.format(servers=kafka, group=group))
    np.save(hostile / "rows.npy", np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype("<f4"))
    environment = _environment(hostile)

    def tidemark(*arguments: str) -> str:
        found = subprocess.run([TIDEMARK, *arguments], cwd=hostile, env=environment, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    with (hostile / "up.err").open("wb") as output:
        up = subprocess.Popen(
            [TIDEMARK, "up", "--api-port", "0"], cwd=hostile, env=environment, stdout=output, stderr=output
        )
    try:
        said = hostile / "up.err"
        wait_until(lambda: "  ready\n" in said.read_text() or up.poll() is not None, 60.0, "ready")
        assert up.poll() is None, said.read_text()
        api = json.loads((hostile / "up" / "up.json").read_text())["api"]
        tidemark("produce", "docs", "rows.npy")

        def is_built() -> bool:
            found = httpx.get(f"{api}/collections/docs/lag", trust_env=False).json()["partitions"]
            rows = sum(partition["live_rows"] for partition in found)
            return rows == ROWS and not any(partition["unbuilt_rows"] for partition in found)

        wait_until(is_built, 30.0, "the builder has built")
        assert tidemark("search", "docs", "--id", "7", "-k", "1").splitlines()[1].split()[0] == "7"
        assert "generation g000002" in tidemark("replay", "docs")
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(40) == 0
    assert sorted(path.name for path in hostile.parent.glob("*.was-run")) == []


def test_a_service_started_by_itself_runs_no_file_of_the_working_directory(hostile: Path) -> None:
    """Without settings, both end with the reason: that of our own modules."""
    for name in ("consumer", "api"):
        found = subprocess.run(
            [TIDEMARK, name], cwd=hostile, env=_environment(hostile), capture_output=True, text=True, timeout=60
        )
        assert (found.returncode, "bootstrap.servers is not set" in found.stderr) == (78, True)
    assert sorted(path.name for path in hostile.parent.glob("*.was-run")) == []


@pytest.mark.parametrize("package", OURS)
def test_every_process_of_our_modules_is_started_by_the_one_function_that_keeps_the_directory_out(package: str) -> None:
    sources = (Path(__file__).parent.parent / package).glob("*.py")
    assert [path.name for path in sources if '"-m"' in path.read_text()] == (
        ["service.py"] if package == "tidemark" else []
    )
