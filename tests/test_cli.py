"""The commands of `tidemark`, each over a real broker and real services; called in this process for speed."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import remote_api
from cli.main import app
from tests.commands import Tidemark, config, one_line
from tests.ports import own_port
from tests.services import DIMENSION, Deployment, deployment, vectors, wait_until
from tidemark import __version__
from tidemark.settings import load

COMMANDS = sorted(
    command.name or getattr(command.callback, "__name__", "").replace("_", "-") for command in app.registered_commands
)


@pytest.fixture(scope="module")
def docs(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A consumer and an api over a collection with three rows, for all tests that only ask."""
    with deployment(tmp_path_factory.mktemp("docs"), kafka, 2) as made:
        rows = np.eye(DIMENSION, dtype=np.float32)[:3]
        made.produce((f"row-{i}".encode(), row.tobytes()) for i, row in enumerate(rows))
        made.start("consumer")
        made.start("api")
        made.wait_until_ready()
        made.wait_until_applied()
        wait_until(lambda: (made.checkpoints / "docs" / "CURRENT").exists(), 20.0, "a generation")
        yield made


@pytest.fixture
def api(docs: Deployment) -> str:
    return f"http://127.0.0.1:{docs.api_port}"


def lines_of(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("api", "address"),
    [
        ("port = 18080", "http://127.0.0.1:18080"),
        ('host = "0.0.0.0"\nport = 18080', "http://127.0.0.1:18080"),
        ('host = "::1"', "http://[::1]:8080"),
        ("port = 0", "http://127.0.0.1:8080"),
    ],
)
def test_the_api_that_is_asked_is_that_of_the_settings_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: str, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert remote_api.address(None) == "http://127.0.0.1:8080"
    path = Path(config(tmp_path, "nowhere:9092", "docs")).rename("tidemark.toml")
    path.write_text(f"{path.read_text()}\n[api]\n{api}\n")
    assert remote_api.address(None) == address
    assert remote_api.address("other:1") == "http://other:1"


# -- help and usage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example_that_starts_with_it(command: str, tidemark: Tidemark) -> None:
    code, output, _ = tidemark(command, "--help")
    assert code == 0
    assert f"Example: tidemark {command}" in output


def test_the_commands_are_those_of_the_contract() -> None:
    contract = "up sample consumer api produce search lag doctor replay promote generations drop export healthcheck"
    assert sorted(contract.split()) == COMMANDS


def test_the_version_is_printed(tidemark: Tidemark) -> None:
    assert tidemark("--version") == (0, f"tidemark {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["bogus"], ["search"], ["search", "docs", "-k", "0"], ["lag", "--no-such"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], tidemark: Tidemark) -> None:
    code, output, error = tidemark(*arguments)
    assert (code, output) == (2, "")
    assert "Error: " in error


def test_without_any_configuration_it_says_what_to_set(tidemark: Tidemark) -> None:
    code, _, error = tidemark("generations", "docs")
    assert code == 78
    assert "KAFKA_BOOTSTRAP_SERVERS" in error


# -- produce ---------------------------------------------------------------------------------------------------


def produced(docs: Deployment, tidemark: Tidemark, *arguments: str) -> dict[str, Any]:
    code, output, error = tidemark("produce", "docs", *arguments, "--config", str(docs.config), "--json")
    assert (code, error) == (0, "")
    return json.loads(output)  # type: ignore[no-any-return]


def stored(docs: Deployment, id_: str) -> Any:
    docs.wait_until_applied()
    answer = docs.ask("GET", f"/collections/docs/vectors/{id_}")
    return answer.json() if answer.status_code == 200 else None


def test_an_npy_file_is_produced_with_ids_of_prefix_and_row(
    docs: Deployment, tidemark: Tidemark, tmp_path: Path
) -> None:
    rows = 100 + vectors(20)
    np.save(tmp_path / "rows.npy", rows)
    done = produced(docs, tidemark, "rows.npy", "--id-prefix", "npy-")
    assert done["records"] == 20
    assert set(done["positions"]) == {"0", "1"}
    assert done["seconds"] > 0
    assert np.allclose(stored(docs, "npy-19")["vector"], rows[19])


def test_an_npy_file_takes_its_ids_from_a_file(docs: Deployment, tidemark: Tidemark, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", 100 + vectors(2))
    (tmp_path / "ids.txt").write_text("first é\nsecond\n")
    assert produced(docs, tidemark, "rows.npy", "--ids", "ids.txt")["records"] == 2
    assert stored(docs, "first é") is not None


def test_json_lines_upsert_and_delete(docs: Deployment, tidemark: Tidemark, tmp_path: Path) -> None:
    row = [200.0] * DIMENSION
    upserts = ({"id": "a", "vector": row, "metadata": {"kind": "x"}}, {"id": "b", "vector": row})
    (tmp_path / "rows.jsonl").write_text(lines_of(*upserts, {"id": "b", "deleted": True}))
    assert produced(docs, tidemark, "rows.jsonl")["records"] == 3
    assert stored(docs, "a")["metadata"] == {"kind": "x"}
    assert stored(docs, "b") is None


def test_json_lines_come_from_standard_input(
    docs: Deployment, tidemark: Tidemark, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = lines_of({"id": "piped", "vector": [300.0] * DIMENSION}) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert produced(docs, tidemark, "-")["records"] == 1
    assert stored(docs, "piped") is not None


GOOD = {"id": "good", "vector": [400.0] * DIMENSION}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"id": "x", "vector": [1, 2]}', f"2 numbers, collection 'docs' has dimension {DIMENSION}"),
        (json.dumps({"id": "x", "vector": [1e39] * DIMENSION}), "NaN, an infinity or a number beyond float32"),
        (json.dumps({"id": "x", "vector": [1e19] * DIMENSION}), "distances would be infinite"),
        (json.dumps({"id": "x", "vector": [float("nan")] * DIMENSION}), "malformed"),
        (json.dumps({"id": "", "vector": [1.0] * DIMENSION}), "an id is empty"),
        ('{"id": "x"}', 'neither "vector" nor "deleted": true'),
        ('{"id": "x", "vectr": [1]}', "unknown field `vectr`"),
        ("not json", "malformed"),
    ],
)
def test_a_bad_line_is_named_and_nothing_after_it_is_sent(
    line: str, why: str, kafka: str, docs: Deployment, tidemark: Tidemark, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(GOOD) + f"\n{line}\n" + lines_of({**GOOD, "id": "after"}))
    code, output, error = tidemark("produce", "docs", "rows.jsonl", "--config", str(docs.config))
    assert (code, output) == (1, "")
    assert one_line(error)
    assert "rows.jsonl, line 2: " in error
    assert why in error
    assert "nothing after it was sent, 1 records were produced" in error
    assert stored(docs, "after") is None


def test_a_bad_row_of_an_npy_file_is_named(docs: Deployment, tidemark: Tidemark, tmp_path: Path) -> None:
    rows = 500 + vectors(3000)
    rows[2500, 3] = np.nan
    np.save(tmp_path / "rows.npy", rows)
    code, _, error = tidemark("produce", "docs", "rows.npy", "--id-prefix", "nan-", "--config", str(docs.config))
    assert code == 1
    assert "rows.npy, row 2500: the vector holds NaN" in error
    assert "2500 records were produced" in error
    assert stored(docs, "nan-2499") is not None
    assert stored(docs, "nan-2501") is None


def test_a_zero_vector_is_refused_under_cosine_alone(kafka: str, tidemark: Tidemark, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines_of({"id": "z", "vector": [0] * DIMENSION}))
    own = config(tmp_path, kafka, "never-made", metric="cosine")
    code, _, error = tidemark("produce", "docs", "rows.jsonl", "--config", own)
    assert code == 69  # the topic is missing: that is said before a line is read
    assert "topic 'never-made' does not exist" in error


@pytest.mark.parametrize(
    ("array", "why"),
    [
        (np.zeros((2, 3), np.float32), f"3 numbers per row, collection 'docs' has dimension {DIMENSION}"),
        (np.zeros(DIMENSION, np.float32), "it must be (rows, dimension) of float32"),
        (np.zeros((2, DIMENSION), np.int64), "of int64: it must be (rows, dimension) of float32"),
    ],
)
def test_an_npy_file_of_another_shape_is_refused_whole(
    array: Any, why: str, docs: Deployment, tidemark: Tidemark, tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", array)
    code, _, error = tidemark("produce", "docs", "rows.npy", "--config", str(docs.config))
    assert code == 1
    assert why in error


def test_ids_and_rows_must_be_as_many(docs: Deployment, tidemark: Tidemark, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", vectors(3))
    (tmp_path / "ids.txt").write_text("a\nb\n")
    code, _, error = tidemark("produce", "docs", "rows.npy", "--ids", "ids.txt", "--config", str(docs.config))
    assert code == 1
    assert "ids.txt: has 2 lines, rows.npy has 3 rows" in error


def test_a_collection_of_json_records_gets_json(
    docs: Deployment, kafka: str, tidemark: Tidemark, tmp_path: Path
) -> None:
    """Sent to the topic of `docs`, whose format `auto` reads both."""
    (tmp_path / "rows.jsonl").write_text(lines_of({**GOOD, "id": "as-json", "metadata": {"n": 1}}))
    own = config(tmp_path, kafka, docs.topic, format="json")
    assert tidemark("produce", "docs", "rows.jsonl", "--config", own)[0] == 0
    assert stored(docs, "as-json")["metadata"] == {"n": 1}


def test_producing_to_a_broker_that_is_not_there_says_so(tidemark: Tidemark, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(lines_of(GOOD))
    own = config(tmp_path, f"127.0.0.1:{own_port()}", "docs")
    code, _, error = tidemark("produce", "docs", "rows.jsonl", "--config", own)
    assert code == 69
    assert one_line(error)
    assert "no broker at 127.0.0.1:" in error


def test_an_unknown_collection_or_file_is_not_found(docs: Deployment, tidemark: Tidemark) -> None:
    for arguments, why in ((("nope", "-"), "there are: docs"), (("docs", "nope.npy"), "nope.npy: no such file")):
        code, _, error = tidemark("produce", *arguments, "--config", str(docs.config))
        assert code == 1
        assert one_line(error)
        assert why in error


# -- search and lag --------------------------------------------------------------------------------------------


def test_a_search_prints_the_nearest_first(api: str, tidemark: Tidemark) -> None:
    vector = json.dumps([1.0] + [0.0] * (DIMENSION - 1))
    code, output, error = tidemark("search", "docs", "--vector", vector, "-k", "3", "--api", api)
    assert (code, error) == (0, "")
    heading, *rows = output.splitlines()
    assert heading.split() == ["id", "distance", "metadata"]
    assert rows[0].split()[0] == "row-0"
    assert len(rows) == 3


def test_a_search_takes_a_vector_file_or_an_id_and_gives_json(api: str, tidemark: Tidemark, tmp_path: Path) -> None:
    np.save(tmp_path / "query.npy", np.eye(DIMENSION)[1])
    for query in (["--vector-file", "query.npy"], ["--id", "row-1"]):
        code, output, _ = tidemark("search", "docs", *query, "--exact", "--json", "--api", api)
        assert code == 0
        assert json.loads(output)["hits"][0]["id"] == "row-1"


def test_a_search_with_a_filter_finds_only_rows_that_match(
    docs: Deployment, api: str, tidemark: Tidemark, tmp_path: Path
) -> None:
    lines = [{**GOOD, "id": f"kept-{n}", "metadata": {"kept": n % 2 == 0, "n": n}} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text(lines_of(*lines))
    assert tidemark("produce", "docs", "rows.jsonl", "--config", str(docs.config))[0] == 0
    docs.wait_until_applied()
    long = {"must": [{"key": "kept", "match": {"value": True}}], "must_not": [{"key": "n", "range": {"lt": 2}}]}
    for filter_, expected in (({"kept": True}, {0, 2, 4}), (long, {2, 4}), ({"kept": True, "n": [0, 4]}, {0, 4})):
        arguments = ("--id", "row-1", "--filter", json.dumps(filter_), "--json", "--api", api)
        code, output, _ = tidemark("search", "docs", *arguments)
        assert code == 0
        assert {hit["metadata"]["n"] for hit in json.loads(output)["hits"]} == expected


@pytest.mark.parametrize(
    ("query", "why"),
    [
        ([], "exactly one of --text, --vector, --vector-file and --id"),
        (["--id", "a", "--text", "b"], "exactly one of"),
        (["--vector", "[1, 2]"], "2"),
        (["--vector", "nonsense"], "--vector is not JSON"),
        (["--vector-file", "nope.npy"], "--vector-file nope.npy: cannot be read"),
        (["--text", "json"], "--text works for the sample data of `tidemark up` only"),
        (["--id", "row-1", "--filter", "kind=b"], "--filter is not JSON"),
        (["--id", "row-1", "--filter", '{"a": NaN}'], "--filter is not JSON"),
        (["--id", "row-1", "--filter", '{"a": 1e999}'], "--filter is not JSON"),
        (["--id", "row-1", "--filter", "[" * 100_000], "--filter is not JSON"),
        (["--id", "row-1", "--filter", "[1]"], "--filter is not a JSON object"),
        (["--id", "row-1", "--filter", '{"must": [{"key": "a"}]}'], "filter.must[0]"),
    ],
)
def test_a_query_that_cannot_be_answered_is_wrong_usage(
    query: list[str], why: str, api: str, tidemark: Tidemark
) -> None:
    code, output, error = tidemark("search", "docs", *query, "--api", api)
    assert (code, output) == (2, "")
    assert one_line(error)
    assert why in error


def test_what_the_api_does_not_find_is_exit_code_1(api: str, tidemark: Tidemark) -> None:
    for arguments in (("search", "docs", "--id", "no-such"), ("search", "nope", "--id", "a"), ("lag", "nope")):
        code, _, error = tidemark(*arguments, "--api", api)
        assert code == 1
        assert one_line(error)


def test_an_api_that_does_not_answer_is_named_with_what_to_do(tidemark: Tidemark) -> None:
    address = f"http://127.0.0.1:{own_port()}"
    for arguments in (("search", "docs", "--id", "a"), ("lag",)):
        code, output, error = tidemark(*arguments, "--api", address)
        assert (code, output) == (69, "")
        assert one_line(error)
        assert f"no api at {address}" in error
        assert "tidemark up" in error


def test_the_lag_of_every_partition_is_shown(docs: Deployment, api: str, tidemark: Tidemark) -> None:
    docs.wait_until_applied()
    code, output, _ = tidemark("lag", "--api", api)
    assert code == 0
    assert re.search(r"^docs  g000001  ready$", output, re.MULTILINE)
    partitions = [line.split() for line in output.splitlines() if line.split()[0].isdigit()]
    assert [row[0] for row in partitions] == ["0", "1"]
    assert all(row[1] == row[2] and row[5] == "0" for row in partitions)  # applied to the end: no lag


def test_the_lag_as_json_is_the_answer_of_the_api(docs: Deployment, api: str, tidemark: Tidemark) -> None:
    code, output, _ = tidemark("lag", "docs", "--json", "--api", api)
    assert code == 0
    assert [p["partition"] for p in json.loads(output)["partitions"]] == [0, 1]


def test_a_health_check_is_an_exit_code(api: str, tidemark: Tidemark) -> None:
    assert tidemark("healthcheck", f"{api}/healthz") == (0, "", "")
    for url in (f"{api}/nowhere", f"http://127.0.0.1:{own_port()}/healthz"):
        code, _, error = tidemark("healthcheck", url)
        assert code == 1
        assert one_line(error)


# -- generations -----------------------------------------------------------------------------------------------


def test_a_replay_makes_a_generation_that_can_be_promoted_and_dropped(
    kafka: str, tidemark: Tidemark, tmp_path: Path
) -> None:
    with deployment(tmp_path, kafka) as own:
        own.produce((f"{i}".encode(), row.tobytes()) for i, row in enumerate(vectors(50)))
        settings = ("--config", str(own.config))
        names = []
        for index in ("{}", '{"kind": "flat"}'):
            code, output, error = tidemark("replay", "docs", "--index", index, "--json", *settings)
            assert (code, error) == (0, "")
            names.append(json.loads(output)["generation"])
        # The first number is left to the consumer.
        assert names == ["g000002", "g000003"]
        listed = json.loads(tidemark("generations", "docs", "--json", *settings)[1])
        assert [(row["generation"], row["served"]) for row in listed] == [("g000002", False), ("g000003", True)]
        assert "flat" in tidemark("generations", "docs", *settings)[1]
        assert tidemark("promote", "docs", "g000002", *settings)[0] == 0
        code, _, error = tidemark("drop", "docs", "g000002", *settings)
        assert (code, "promote another one first" in error) == (1, True)
        assert tidemark("drop", "docs", "g000003", *settings)[0] == 0
        assert [row["generation"] for row in json.loads(tidemark("generations", "docs", "--json", *settings)[1])] == [
            "g000002"
        ]


def test_the_sample_data_is_loaded_once_and_answers_words(kafka: str, tidemark: Tidemark, tmp_path: Path) -> None:
    collection = {"dimension": 256, "metric": "cosine"}
    with deployment(tmp_path, kafka, 2, **{"collections.docs": collection}) as made:
        code, out, err = tidemark("sample", "--config", str(made.config))
        assert (code, out.split(" ", 1)[1]) == (0, "documents are loaded\n"), err
        assert tidemark("sample", "--config", str(made.config))[1] == "the sample data is there already\n"
        made.start("api")
        made.wait_until_ready()
        made.wait_until_applied()
        api = f"http://127.0.0.1:{made.api_port}"
        code, out, err = tidemark("search", "docs", "--text", "parse a json string", "-k", "3", "--json", "--api", api)
        assert code == 0, err
        assert {hit["id"] for hit in json.loads(out)["hits"]} & {"json.loads", "json.load", "json"}


def test_the_compose_file_runs_commands_that_exist_with_settings_that_load(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:29092")
    settings = load(root / "deploy" / "compose.toml")
    text = (root / "docker-compose.yml").read_text()
    assert set(re.findall(r"    command: \[(\w+)\]", text)) == {"consumer", "api", "sample"} <= set(COMMANDS)
    assert f"topic in {settings.collection('docs').topic}:" in text
    assert settings.checkpoint.url.removeprefix("file://") + "\n" in text


def test_a_generation_that_is_not_there_is_not_found(docs: Deployment, tidemark: Tidemark) -> None:
    for command in ("promote", "drop"):
        code, output, error = tidemark(command, "docs", "g000099", "--config", str(docs.config))
        assert (code, output) == (1, "")
        assert one_line(error)
        assert "has no generation 'g000099'; there are: g000001" in error
    assert tidemark("generations", "nope", "--config", str(docs.config))[0] == 1


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--from", "yesterday", "use earliest"),
        ("--index", '{"kinds": 1}', "parameters: kind"),
        ("--from", "9=0", "partitions 0 to 1"),
    ],
)
def test_a_replay_that_cannot_begin_says_why(
    option: str, value: str, why: str, docs: Deployment, tidemark: Tidemark
) -> None:
    code, output, error = tidemark("replay", "docs", option, value, "--config", str(docs.config))
    assert (code, output) == (78, "")
    assert why in error
    served = json.loads(tidemark("generations", "docs", "--json", "--config", str(docs.config))[1])
    assert [row["generation"] for row in served if row["served"]] == ["g000001"]
