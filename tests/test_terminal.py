"""What a person can type, pipe or redirect: never a traceback, never their mistake blamed on the server, and no
control character of data on their terminal."""

import contextlib
import http.server
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import cli
from tests.commands import Tidemark, config, one_line
from tests.services import DIMENSION, Deployment, deployment, vectors
from tidemark.printable import printable, printable_lines

PROGRAM = Path(sys.executable).with_name("tidemark")
OURS = os.fsencode(Path(cli.__file__).parent) + b"/"
NOBODY = "127.0.0.1:1"
HOSTILE_ID = "\x1b[31mRED\x1b[0m\x1b[2J"
HOSTILE_TEXT = "\x1b]0;owned\x07 \x9b31m \u202eevil\u2066 \u2028next \x7f \x08\x08"


# -- arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t8?x=1", "..", "docs#", "", "a/b", "%2e", "DOCS", "\udcff", "x" * 5000])
def test_what_can_be_no_collections_name_is_not_found_and_asks_for_nothing(name: str, tidemark: Tidemark) -> None:
    for arguments in (("lag", name), ("search", name, "--id", "a")):
        code, output, error = tidemark(*arguments, "--api", NOBODY)
        assert (code, output) == (1, "")
        assert "no collection of that name" in error
        assert one_line(error)


@pytest.mark.parametrize(
    "address",
    [
        *("http://", "ftp://x", "127.0.0.1:99999", "http://[::1", " ", "http://a b", "http://☃☃:1", "h\udcff"),
        *("127.0.0.1:1?x", "http://x#y", "http://\n", "http://\x1b[31m"),
    ],
)
def test_what_is_no_address_is_wrong_usage(address: str, tidemark: Tidemark) -> None:
    code, output, error = tidemark("lag", "--api", address)
    assert (code, output) == (2, "")
    assert "is not the address of an api" in error
    assert one_line(error)


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ("[NaN, 1]", "number 0 is nan"),
        ("[1, -Infinity]", "number 1 is -inf"),
        ("[1e999]", "number 0 is inf"),
        ("[1e39]", "number 0 is 1e+39"),
        (f"[{'9' * 400}]", "number 0 is 9999"),
        (f"[{'9' * 5000}]", "--vector is not JSON"),
        ("[" * 100_000, "--vector is not JSON"),
        ("[[1]]", "not a list of numbers"),
        ("[true]", "not a list of numbers"),
        ('["1"]', "not a list of numbers"),
        ("{}", "not a list of numbers"),
        ("[]", "--vector is empty"),
    ],
)
def test_a_vector_that_can_be_no_query_is_wrong_usage_before_any_request(
    vector: str,
    why: str,
    tidemark: Tidemark,
) -> None:
    code, output, error = tidemark("search", "docs", "--vector", vector, "--api", NOBODY)
    assert (code, output) == (2, "")
    assert why in error
    assert one_line(error)


def test_an_npy_file_that_can_be_no_query_is_wrong_usage_before_any_request(
    tmp_path: Path,
    tidemark: Tidemark,
) -> None:
    arrays = {"nan": [1, np.nan], "text": ["a"], "complex": [1j], "none": [], "one": 3.0, "two": [[1.0, 2], [3, 4]]}
    for name, content in arrays.items():
        np.save(tmp_path / f"{name}.npy", np.array(content))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00\xff\xff")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "zip.npy").write_bytes(b"PK\x03\x04")
    for name in (*(path.name for path in tmp_path.iterdir()), ".", "nope", "/dev/null", "/dev/full", "/proc/self/mem"):
        code, output, error = tidemark("search", "docs", "--vector-file", name, "--api", NOBODY)
        assert (code, output) == (2, ""), error
        assert f"--vector-file {name}" in error
        assert one_line(error)


def test_an_id_that_is_no_text_is_wrong_usage(tidemark: Tidemark) -> None:
    code, _, error = tidemark("search", "docs", "--id", "a\udcff", "--api", NOBODY)
    assert (code, error) == (2, "error: --id: byte 1 (0xff) is not UTF-8: write it as UTF-8\n")


def test_a_settings_file_that_cannot_be_read_is_named(tmp_path: Path, tidemark: Tidemark) -> None:
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    (tmp_path / "mark.toml").write_bytes(b"\xef\xbb\xbf[kafka]")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    for name in (".", "latin.toml", "mark.toml", "loop.toml", "nope.toml", "/proc/self/mem", "/dev/full/x"):
        for arguments in (("generations", "docs"), ("up",)):
            if name == "/dev/full/x" and arguments == ("up",):
                continue
            code, output, error = tidemark(*arguments, "--config", name)
            assert (code, output) == (78, ""), error
            assert error.startswith(f"error: {name}: ")
            assert one_line(error)


@pytest.mark.parametrize("parameters", ["{", "[1]", '{"m": "x"}', '{"kind": "x"}', '{"nope": 1}', "1", "[" * 9_999])
def test_index_parameters_are_checked_before_a_replay(parameters: str, tmp_path: Path, tidemark: Tidemark) -> None:
    own = config(tmp_path, NOBODY, "never-made")
    code, _, error = tidemark("replay", "docs", "--index", parameters, "--config", own)
    assert code == 78
    assert "parameters: kind, recall_target" in error


# -- text files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"caf\xe9\ncaf\xe8\nok\n", "ids.txt, line 1: byte 3 (0xe9) is not UTF-8: write it as UTF-8"),
        (b"\xef\xbb\xbfa\nb\nc\n", "ids.txt, line 1: it starts with a byte order mark"),
        ("a\nb\nc\n".encode("utf-16"), "ids.txt, line 1: it starts with UTF-16"),
        (b"a\n\nc\n", "ids.txt, line 2: is empty"),
        (b"a\nb\na\n", "ids.txt, line 3: is the id of line 1 again"),
        (b"a\nb\r\nb", "ids.txt, line 3: is the id of line 2 again"),
        (b"a\n" + b"x" * 1025 + b"\nc", "ids.txt, line 2: id "),
    ],
)
def test_a_file_of_ids_that_would_alter_or_lose_one_is_refused_with_its_line(
    content: bytes,
    said: str,
    tmp_path: Path,
    tidemark: Tidemark,
) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    np.save(tmp_path / "rows.npy", vectors(3))
    own = config(tmp_path, NOBODY, "never-made")
    code, output, error = tidemark("produce", "docs", "rows.npy", "--ids", "ids.txt", "--config", own)
    assert (code, output) == (1, "")
    assert error.startswith(f"error: {said}")
    assert error.endswith("; nothing was produced\n")


def test_ids_that_are_one_number_are_one_id(tmp_path: Path, tidemark: Tidemark) -> None:
    (tmp_path / "ids.txt").write_text("7\n8\n007\n")
    np.save(tmp_path / "rows.npy", vectors(3))
    own = config(tmp_path, NOBODY, "never-made", id_format="int64")
    error = tidemark("produce", "docs", "rows.npy", "--ids", "ids.txt", "--config", own)[2]
    assert "line 3: is the id of line 1 again" in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'\xef\xbb\xbf{"id": "a"}', "it starts with a byte order mark: write it as UTF-8 without a byte order mark"),
        ('{"id": "a"}'.encode("utf-16-le"), "it is UTF-16 or UTF-32: write it as UTF-8"),
        (b'{"id": "caf\xe9"}', "byte 11 (0xe9) is not UTF-8"),
        (b'{"id": "a\\ud800"}', "\\ud800 is half of a surrogate pair, not a character"),
        (b'{"id": "\\udc00"}', "\\udc00 is half of a surrogate pair, not a character"),
        (b'{"id": "\\ud83d\\ude00", "x', "it ends too soon"),
        (b'{"metadata": ' * 100_000, "it is nested too deeply"),
    ],
)
def test_a_line_that_is_not_json_is_refused_in_words(
    line: bytes,
    said: str,
    tmp_path: Path,
    docs: Deployment,
    tidemark: Tidemark,
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(line)
    code, _, error = tidemark("produce", "docs", "rows.jsonl", "--config", str(docs.config))
    assert code == 1
    assert "rows.jsonl, line 1: is not JSON: " in error
    assert said in error


# -- pipes, redirections and the environment -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("tidemark --version > /dev/full", 74, "No space left on device"),
        ("tidemark lag --api $API > /dev/full", 74, "No space left on device"),
        ("tidemark lag --api $API --json > /dev/full", 74, "No space left on device"),
        ("tidemark lag --api $API >&-", 74, "Bad file descriptor"),
        ("tidemark lag --api $API 2>&-", 0, None),
        ("tidemark lag --api 127.0.0.1:1 2>&-", 69, None),
        ("tidemark lag --api 127.0.0.1:1 2> /dev/full", 69, None),
        ("tidemark produce docs - --config $CONFIG <&-", 74, "Bad file descriptor"),
        ("(tidemark lag --api $API --watch; echo $? >&2) | head -1 > /dev/null", 0, "^(1|74)$"),
        ("mkdir gone && cd gone && rmdir ../gone && tidemark up", 69, "working directory is not there any more"),
        ("env -i COLUMNS=1 TERM=dumb $(command -v tidemark) lag --api $API > /dev/null", 0, None),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii tidemark search docs --id é --api $API", 1, "holds no id"),
        ("TIDEMARK_COLLECTIONS=xx tidemark generations docs", 78, "write tables and lists there as JSON"),
        ("TIDEMARK_UP_DIR=/proc/nope tidemark up", 69, "/proc/nope is not writable"),
        ("TIDEMARK_CHECKPOINT__URL=file:///dev/null tidemark generations docs --config $CONFIG", 69, "Not a directory"),
        ("tidemark healthcheck 'http://[::1'", 1, "does not answer"),
    ],
)
def test_pipes_redirections_and_odd_environments_are_said_in_one_line(
    line: str, code: int, said: str | None, docs: Deployment, tmp_path: Path
) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEMARK_", "KAFKA_"))}
    environment = {**kept, "API": f"127.0.0.1:{docs.api_port}", "CONFIG": str(docs.config)}
    environment["PATH"] = f"{PROGRAM.parent}:{environment['PATH']}"
    found = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == code, found.stderr
    assert found.stderr.count("\n") == (0 if said is None else 1), found.stderr
    assert re.search(said or "^$", found.stderr, re.MULTILINE), found.stderr


def test_ctrl_c_at_any_moment_is_no_traceback(tmp_path: Path) -> None:
    """From the first of our own lines on: before it, Python itself is starting."""
    for delay_s in (0.1, 0.2, 0.3, 0.5, 0.8):
        process = subprocess.Popen([PROGRAM, "lag", "--watch", "--api", NOBODY], cwd=tmp_path, stderr=subprocess.PIPE)
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
        assert OURS not in said, (delay_s, said)


# -- what the other side answers -------------------------------------------------------------------------------


ANSWERS = [
    (200, b"<html>"),
    (200, b""),
    (200, b"[]"),
    (200, b"null"),
    (200, b"{}"),
    (200, b'{"hits": 1, "collections": [1]}'),
    (200, b'{"hits": [{}], "collections": [{}]}'),
    (200, b'{"hits": [{"id": "a", "distance": "far"}], "collection": "a", "partitions": [null]}'),
    (200, b"[" * 100_000),
    (200, b"\xff\xfe\x00"),
    (302, b"{}"),
    (404, b"not here"),
    (500, b'{"error": "x"}'),
    (502, b"<html>"),
]


@contextlib.contextmanager
def stranger(status: int, body: bytes) -> Iterator[str]:
    """Something else that listens at the api's address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # named by http.server
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:1/")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815  # named by http.server

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("status", "body"), ANSWERS)
def test_an_answer_that_is_not_an_apis_is_said_to_be_so(status: int, body: bytes, tidemark: Tidemark) -> None:
    with stranger(status, body) as address:
        for arguments in (("search", "docs", "--id", "a"), ("lag",)):
            code, output, error = tidemark(*arguments, "--api", address)
            assert (code, output) == (69, ""), (arguments, error)
            assert error == (
                f"error: http://{address} does not answer like a Tidemark api (HTTP {status}): name it with --api\n"
            )


# -- the terminal ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """An api over one row whose id and metadata are hostile."""
    with deployment(tmp_path_factory.mktemp("terminal"), kafka) as made:
        value = {"vector": [1.0] * DIMENSION, "metadata": {"summary": HOSTILE_TEXT}}
        made.produce([(HOSTILE_ID.encode(), json.dumps(value).encode())])
        made.start("api")
        made.wait_until_ready()
        made.wait_until_applied()
        yield made


def on_a_terminal(*arguments: str, term: str) -> bytes:
    """What a terminal gets, from stdout and stderr alike."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM=term, COLUMNS="200")
        os.execv(PROGRAM, [str(PROGRAM), *arguments])
    said = b""
    with contextlib.suppress(OSError):  # how a terminal's end is told
        while select.select([terminal], [], [], 30)[0] and (piece := os.read(terminal, 65536)):
            said += piece
    os.close(terminal)
    os.waitpid(pid, 0)
    return said


def test_no_control_character_of_data_reaches_a_terminal(docs: Deployment, tmp_path: Path) -> None:
    api = ("--api", f"127.0.0.1:{docs.api_port}")
    hostile_file = tmp_path / "a\x1b[2Jb.npy"
    vector = json.dumps([1.0] * DIMENSION)
    commands = [
        ("search", "docs", "--vector", vector, *api),
        ("search", "docs", "--id", HOSTILE_ID + "\x9b", *api),
        ("search", "docs", "--vector", vector, "--json", *api),
        ("produce", "docs", str(hostile_file), "--config", str(docs.config)),
        ("lag", "a\x1b[2J", *api),
    ]
    for command in commands:
        said = on_a_terminal(*command, term="dumb").decode()
        assert "\x1b".encode("unicode_escape").decode() in said or "\\u001b" in said, said
        assert not re.search("[^\\r\\n\\x20-\\x7e\u2026]", said), said
    said = on_a_terminal(*commands[0], term="xterm").decode()
    assert "\\x1b[31mRED" in said
    assert set(re.findall("\x1b.{0,3}", said)) <= {"\x1b[1m", "\x1b[0m", "\x1b[0m\x1b"[:4]}


def test_what_controls_a_terminal_is_escaped_and_all_else_stays() -> None:
    assert printable("a\x1b\x7f\x9b\u202e\u2028\n\t") == "a\\x1b\\x7f\\x9b\\u202e\\u2028\\n\\t"
    assert printable_lines("a\nb\r") == "a\nb\\r"
    assert printable("é 漢 🙂 \u200d \\") == "é 漢 🙂 \u200d \\"
