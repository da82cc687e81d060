"""The sample data of `tidemark up` and `tidemark sample`: made in a child process, then loaded once.

The mark that it was loaded is written last, so an interrupted load is repeated (ids are the same: nothing is
twice), and it names the topic, so another broker gets the data too. `python -m cli.sample_load DIRECTORY` is
the child; `sample.py` says what the documents and their vectors are.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from cli import run_files
from cli.children import Child
from cli.produce import produce
from cli.records import Item, Records
from tidemark import files
from tidemark.collection import Collection
from tidemark.errors import TidemarkError
from tidemark.manifest import TopicIdentity
from tidemark.settings import Settings
from tidemark.topic import Topics

COLLECTION = "docs"
_VECTORS, _DOCUMENTS, _ENCODER = "vectors.npy", "documents.jsonl", "encoder.npz"


class SampleFailed(TidemarkError):
    """The sample data could not be made: see its log, or run `up` with a configuration of your own."""


class SampleLoad:
    """The sample data of one run; the files are in the up directory."""

    def __init__(self) -> None:
        self.directory = run_files.sample_directory()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.child = Child("sample data", ["cli.sample_load", str(self.directory)], self.directory / "sample.log")

    def is_loaded(self, collection: Collection, identity: TopicIdentity) -> bool:
        loaded = run_files.sample_loaded() or {}
        return (loaded.get("collection"), loaded.get("topic_id")) == (collection.name, identity.topic_id)

    def begin(self) -> None:
        """Start making the vectors unless that is under way."""
        if self.child.pid is None and self.child.exit_code is None:
            run_files.loaded_marker().unlink(missing_ok=True)
            self.child.start()

    def is_made(self) -> bool:
        """Raises SampleFailed when they will never be."""
        code = self.child.exit_code
        if code:
            lines = self.child.last_lines(1)
            raise SampleFailed(f"the sample data could not be made ({lines}): see {self.child.log_path}")
        return code == 0

    def load(
        self, collection: Collection, settings: Settings, identity: TopicIdentity, check_stop: Callable[[], None]
    ) -> tuple[int, dict[int, int]]:
        """Produce it all; the number of records, and the positions they reach. `check_stop` may raise."""
        vectors = np.load(self.directory / _VECTORS, mmap_mode="r")
        records = Records(_items(self.directory / _DOCUMENTS, vectors, check_stop), len(vectors))
        produced = produce(settings.kafka, collection, records)
        mark = {"collection": collection.name, "topic_id": identity.topic_id, **asdict(produced)}
        files.replace(run_files.loaded_marker(), json.dumps(mark).encode())
        return produced.records, produced.positions


def load_sample(config: Path | None) -> int | None:
    """Load the sample data into `docs` of services that run elsewhere; how many records, None when it was there."""
    settings = run_files.settings(config)
    collection = settings.collection(COLLECTION)
    identity = Topics(settings.kafka).identity(collection.topic)
    sample = SampleLoad()
    if sample.is_loaded(collection, identity):
        return None
    sample.begin()
    try:
        while not sample.is_made():
            time.sleep(0.05)
        return sample.load(collection, settings, identity, check_stop=lambda: None)[0]
    finally:
        sample.child.stop(2.0)


def _items(documents: Path, vectors: np.ndarray, check_stop: Callable[[], None]) -> Iterator[Item]:
    with documents.open("rb") as lines:
        for line, vector in zip(lines, vectors, strict=True):
            check_stop()
            document = json.loads(line)
            yield document["id"].encode(), vector.tobytes(), document["metadata"].encode()


def _make(directory: Path) -> None:
    from cli.sample import Encoder, documents

    found = documents()
    encoder, vectors = Encoder.fit([document.text for document in found])
    encoder.save(directory / _ENCODER)
    np.save(directory / _VECTORS, vectors.astype("<f4"))
    with (directory / _DOCUMENTS).open("w") as output:
        for document in found:
            output.write(json.dumps({"id": document.id, "metadata": document.metadata.decode()}) + "\n")


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
