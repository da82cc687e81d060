"""What `tidemark up` prints once everything is ready: where things are, and a search to try."""

import os
import shlex
import shutil
import sys
from pathlib import Path

from cli import run_files
from tidemark.settings import Settings


def address_of(settings: Settings) -> str:
    """Where this machine reaches the api, also when it listens on every address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.api.host, settings.api.host)
    return f"http://{host}:{settings.api.port}"


def what_to_try(settings: Settings, is_sample: bool) -> str:
    """Commands that work as they are printed, in another terminal and the same directory."""
    name, address = sorted(settings.collections)[0], address_of(settings)
    program = "tidemark" if shutil.which("tidemark") else os.path.relpath(Path(sys.executable).with_name("tidemark"))
    if found := os.environ.get("TIDEMARK_UP_DIR"):
        program = f"TIDEMARK_UP_DIR={shlex.quote(found)} {program}"
    lines = ["", f"  api        {address}  (its page: {address}/docs)"]
    lines += [f"  kafka      {settings.kafka['bootstrap.servers']}", f"  directory  {run_files.up_directory()}", ""]
    lines += ["Try, in another terminal:", ""]
    if is_sample:
        lines.append(f'  {program} search {name} --text "parse a json string"')
        search = f"""  curl {address}/collections/{name}/search -d '{{"id": "json.loads", "k": 5}}'"""
        lines.append(f"{search} -H content-type:application/json")
    else:
        lines.append(f"  curl {address}/collections/{name}")
    lines += [f"  {program} lag", "", "Ctrl-C stops everything; the next `up` continues from here.", ""]
    return "\n".join(lines) + "\n"
