"""The settings table: what is refused, how it is said, and that docs/operations.md lists all of it."""

from pathlib import Path

import pytest

from tidemark import service, settings
from tidemark.errors import BadConfiguration

GOOD = """
[kafka]
bootstrap.servers = "broker:9092"
security.protocol = "SASL_SSL"
[checkpoint]
url = "file:///data"
[collections.docs]
dimension = 8
"""


def _load(tmp_path: Path, text: str) -> settings.Settings:
    path = tmp_path / "tidemark.toml"
    path.write_text(text)
    return settings.load(path)


def test_librdkafka_options_are_passed_through_under_their_dotted_names(tmp_path: Path) -> None:
    found = _load(tmp_path, GOOD)
    assert found.kafka == {"bootstrap.servers": "broker:9092", "security.protocol": "SASL_SSL"}
    assert found.collection("docs").topic == "docs"


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_CHECKPOINT__INTERVAL_S", "7")
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "other:9092")
    found = _load(tmp_path, GOOD)
    assert found.checkpoint.interval_s == 7
    assert found.checkpoint.url == "file:///data"
    assert found.kafka["bootstrap.servers"] == "other:9092"


def test_the_address_of_an_api_in_the_environment_is_not_taken_for_its_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMARK_API", "http://127.0.0.1:18080")
    monkeypatch.setenv("TIDEMARK_API__PORT", "18080")
    assert _load(tmp_path, GOOD).api.port == 18080


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("TIDEMARK_API__PRT", "environment variable TIDEMARK_API__PRT: unknown setting api.prt; did you mean api.port"),
        ("TIDEMARK_API__PORT", "environment variable TIDEMARK_API__PORT: api.port: "),
        ("TIDEMARK_CHECKPOINT_URL", "TIDEMARK_CHECKPOINT_URL is not a setting; did you mean TIDEMARK_CHECKPOINT__URL"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, said: str
) -> None:
    monkeypatch.setenv(variable, "x")
    with pytest.raises(BadConfiguration, match=said):
        _load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "dimensoin = 8", "did you mean collections.docs.dimension"),
        (GOOD.replace("url", "urls"), "did you mean checkpoint.url"),
        (GOOD.replace("8", "0"), "greater than or equal to 1"),
        (GOOD.replace("dimension = 8", ""), "dimension"),
        (GOOD.replace("security.protocol", "enable.auto.commit"), "Tidemark sets this itself"),
        (GOOD.replace("security.protocol", "transactional.id"), "in no transaction"),
        (GOOD.replace("security.protocol", "plugin.library.paths"), "not supported"),
        (GOOD.replace("file:///data", "s3://data"), "only a directory"),
        (GOOD + '[collections.more]\ntopic = "docs"\ndimension = 8', "one topic is the log of one collection"),
        (  # as in spring-projects/spring-kafka#1918 and elastic/logstash#7833, here round three corners
            GOOD
            + 'dead_letter_topic = "a"\n[collections.a]\ndimension = 8\ndead_letter_topic = "b"\n'
            + '[collections.b]\ndimension = 8\ndead_letter_topic = "docs"',
            "come back to its topic",
        ),
        (GOOD.replace("collections.docs", 'collections."../x"'), "collection name"),
        ("[kafka", "not valid TOML"),
        (GOOD.replace("bootstrap.servers", "client.id"), "bootstrap.servers is not set"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadConfiguration, match=said):
        _load(tmp_path, text)


def test_an_unknown_environment_variable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_CHECKPONT__URL", "x")
    with pytest.raises(BadConfiguration, match="did you mean TIDEMARK_CHECKPOINT"):
        _load(tmp_path, GOOD)


@pytest.mark.parametrize(
    "table",
    [
        settings.CheckpointSettings,
        settings.ConsumerSettings,
        settings.ApiSettings,
        settings.CollectionSettings,
        settings.IndexSettings,
    ],
)
def test_the_documents_list_every_setting_with_its_default_and_meaning(table: type[settings._Table]) -> None:
    text = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    for name, field in table.model_fields.items():
        if name == "index":
            continue
        default = "required" if field.is_required() else f"`{field.default!r}`".replace("'", '"')
        assert f"| `{name}` | {default} | {field.description} |" in text


@pytest.mark.parametrize("cpus", ["x", "1-", "0,,1", "-1"])
def test_cores_that_are_no_list_of_numbers_and_ranges_are_refused(tmp_path: Path, cpus: str) -> None:
    with pytest.raises(BadConfiguration, match=r"consumer\.cpus"):
        _load(tmp_path, GOOD + f'[consumer]\ncpus = "{cpus}"')


def test_cores_are_named_one_by_one_and_by_range() -> None:
    ours = service.cores()
    first = min(ours)
    assert service.cores(f"{first},{first}-{first}") == {first}
    with pytest.raises(BadConfiguration, match="may not run on"):
        service.cores(f"{first},9999")


def test_a_checkpoint_url_is_decoded_as_the_url_of_a_file_is(tmp_path: Path) -> None:
    directory = tmp_path / "my data é?#%20"
    loaded = _load(tmp_path, GOOD.replace("file:///data", directory.as_uri()))
    assert loaded.checkpoint_root == directory
