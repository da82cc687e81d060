"""`tidemark replay`: `python -m consumer replay` as a child process, with its progress shown."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli.exits import Interrupted
from tidemark import service
from tidemark.errors import BadConfiguration, TidemarkError
from tidemark.service import EXIT_CONFIGURATION

STOP_S = 30.0


def replay(collection: str, start: str, index: str, config: Path | None) -> str:
    """Build and serve a new generation; returns its name. Raises with the child's reason."""
    command = service.python("consumer", *(["--config", str(config)] if config else []))
    command += ["--dies-with-parent", str(os.getpid()), "replay", collection, "--from", start, "--json"]
    command += ["--index", index] if index else []
    # To a file: a pipe that nobody reads would stop the child, and its log would cut through the bar.
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, process_group=0
        )
        assert process.stdout is not None
        with process.stdout:
            try:
                made = _follow(process.stdout, collection)
            except KeyboardInterrupt:
                process.terminate()
                process.wait(STOP_S)
                raise Interrupted("replay stopped: the generation served is as it was") from None
        code = process.wait()
        if code or not made:
            raise _failure(code, log)
    return made


def _follow(lines: IO[bytes], collection: str) -> str:
    """Show the progress lines; the name of the generation from the last one."""
    console = Console(stderr=True)
    columns = (
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unbuilt]}")),
        TimeRemainingColumn(),
    )
    made = ""
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"replaying {collection}", total=None, unbuilt="")
        for line in lines:
            found = json.loads(line)
            made = found.get("generation", made)
            if "total" in found:
                unbuilt = f"{found['unbuilt_rows']:,} rows to build"
                progress.update(task, completed=found["done"], total=found["total"], unbuilt=unbuilt)
    return made


def _failure(code: int, log: IO[bytes]) -> TidemarkError:
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if reasons and code == EXIT_CONFIGURATION:
        return BadConfiguration(reasons[-1])
    if reasons:
        return TidemarkError(reasons[-1])
    return TidemarkError(f"the replay ended with code {code}: {' / '.join(lines[-3:]) or 'it said nothing'}")
