"""The sample data: documents come from source that is never executed, and questions in words find them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cli.sample import DIMENSION, Document, Encoder, documents, parse, tokens

Sample = tuple[list[Document], Encoder, NDArray[np.float32]]


@pytest.fixture(scope="module")
def sample() -> Sample:
    found = documents()
    encoder, vectors = Encoder.fit([document.text for document in found])
    return found, encoder, vectors


def test_a_source_file_is_read_and_never_executed(tmp_path: Path) -> None:
    path = tmp_path / "bomb.py"
    path.write_text(
        '"""Goes off."""\nclass Fuse:\n    """Burns."""\n    def light(self):\n        "Begin."\nraise SystemExit\n'
    )
    found = [(document.id, document.kind, document.summary) for document in parse(path, "bomb")]
    assert found == [
        ("bomb", "module", "Goes off."),
        ("bomb.Fuse", "class", "Burns."),
        ("bomb.Fuse.light", "method", "Begin."),
    ]


def test_a_file_that_is_not_python_has_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def (")
    assert list(parse(path, "broken")) == []


def test_ids_are_unique_qualified_names(sample: Sample) -> None:
    ids = [document.id for document in sample[0]]
    assert len(ids) == len(set(ids)) > 4_000
    assert {"json", "json.loads", "collections.OrderedDict", "math.sqrt", "list.sort"} <= set(ids)
    assert {document.kind for document in sample[0]} == {"module", "class", "function", "method"}


def test_a_summary_is_the_first_sentence_after_signatures(sample: Sample) -> None:
    summaries = {document.id: document.summary for document in sample[0]}
    assert summaries["collections.deque"] == "A list-like sequence optimized for data accesses near its endpoints."
    assert all(summaries.values())


def test_every_document_has_a_vector_of_length_one(sample: Sample) -> None:
    found, _, vectors = sample
    assert vectors.shape == (len(found), DIMENSION)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_saved_encoder_encodes_as_the_fitted_one(sample: Sample, tmp_path: Path) -> None:
    found, encoder, vectors = sample
    encoder.save(tmp_path / "encoder.npz")
    loaded = Encoder.load(tmp_path / "encoder.npz")
    for row in range(0, len(found), 500):
        np.testing.assert_array_equal(loaded.encode(found[row].text), encoder.encode(found[row].text))
        np.testing.assert_allclose(loaded.encode(found[row].text), vectors[row], atol=1e-5)


def test_a_question_without_a_known_word_is_refused(sample: Sample) -> None:
    with pytest.raises(ValueError, match="no word of 'xyzzy the'"):
        sample[1].encode("xyzzy the")


def test_searching_does_not_import_scikit_learn() -> None:
    source = "import cli.sample, sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", source], timeout=60).returncode == 0


def test_names_are_taken_apart_into_words() -> None:
    assert tokens("OrderedDict") == tokens("ordered dictionary")
    assert tokens("parse_args") == tokens("Parsing arguments")
    assert tokens("HTTPServer") == tokens("http servers")
    assert tokens("sha256") == ["sha256", "sha"]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("parse a json string", {"json.loads", "json.load", "json.decoder.JSONDecoder.decode", "json"}),
        ("read csv rows", {"csv", "csv.reader", "csv.DictReader"}),
        ("run a subprocess and capture output", {"subprocess.run", "subprocess.check_output"}),
        ("temporary directory", {"tempfile.TemporaryDirectory", "tempfile.mkdtemp"}),
        ("sort a list with a key", {"sorted", "list.sort"}),
        ("deep copy an object", {"copy.deepcopy"}),
        ("sqlite database connection", {"sqlite3.Connection", "sqlite3.connect"}),
    ],
)
def test_a_question_finds_its_function_among_the_first_three(sample: Sample, question: str, expected: set[str]) -> None:
    found, encoder, vectors = sample
    nearest = np.argsort(-(vectors @ encoder.encode(question)))[:3]
    assert expected & {found[row].id for row in nearest}
