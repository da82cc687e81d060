"""The sample data of `tidemark up`: the documentation of Python's standard library, as TF-IDF + SVD vectors.

Docstrings are read from source with `ast`, so no module is executed; what is written in C is read from a list of
modules that are safe to import. The encoder is latent semantic analysis (Deerwester et al., 1990): TF-IDF over
words, reduced by truncated SVD, so that a question in words finds the function. Demo code: a real collection
brings vectors of its own.
"""

import ast
import inspect
import io
import json
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from tidemark import files

DIMENSION = 256
_MIN_DOCUMENTS = 2  # a word of one document finds nothing else, and SVD would drop it
_TEXT_CHARACTERS = 200  # of a docstring: more of it drowns the name and the first sentence

_SKIPPED = {"antigravity", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "this", "turtledemo"}
_IN_C = (
    *("builtins", "array", "atexit", "binascii", "bisect", "cmath", "collections", "contextvars", "csv", "datetime"),
    *("decimal", "errno", "fcntl", "functools", "gc", "hashlib", "heapq", "io", "itertools", "lzma", "marshal"),
    *("math", "mmap", "operator", "os", "pickle", "pwd", "queue", "random", "re", "select", "signal", "socket"),
    *("sqlite3", "ssl", "statistics", "string", "struct", "sys", "syslog", "threading", "time", "types"),
    *("unicodedata", "weakref", "zlib"),
)

_WORD = re.compile(r"[a-z][a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SIGNATURE = re.compile(r"(\w+ = )?[\w.]+\(")
_ENDINGS = {"ization": 4, "ations": 4, "ation": 4, "ings": 4, "ing": 4, "ed": 4, "es": 4, "s": 3, "e": 3}
_STOP_WORDS = """
    a all also an and any are as at be been but by can default do does each every for from given has have how if in
    into is it its may must my no none not of on one only optional or other return returned returns see self should
    so such than that the their them then there these they this to true false up use used uses using was we what
    when where which while will with without would you your
"""
_STOP = frozenset(_STOP_WORDS.split())
# What programmers shorten in names, and people write out in questions.
_WRITTEN_OUT = {
    "addr": "address",
    "args": "arguments",
    "cmd": "command",
    "conn": "connection",
    "delete": "remove",
    "deserialize": "parse",
    "dict": "dictionary",
    "dir": "directory",
    "dirs": "directory",
    "dumps": "write string",
    "func": "function",
    "int": "integer",
    "loads": "load string",
    "mail": "email",
    "mkdtemp": "temporary directory",
    "proc": "process",
    "regex": "regular expression",
    "rmtree": "remove tree",
    "str": "string",
    "temp": "temporary",
    "tmp": "temporary",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One module, class, function or method; `id` is its qualified name, `text` what the encoder reads."""

    id: str
    module: str
    kind: str
    summary: str
    text: str

    @property
    def metadata(self) -> bytes:
        return json.dumps({"module": self.module, "kind": self.kind, "summary": self.summary}).encode()


def documents() -> list[Document]:
    """Everything public in the standard library that has a docstring, each id once; every text can be encoded."""
    found: dict[str, Document] = {}
    for document in (*_from_source(), *_from_c_modules()):
        found.setdefault(document.id, document)
    words = {document.id: set(tokens(document.text)) for document in found.values()}
    frequency = Counter(word for of_one in words.values() for word in of_one)
    return [one for one in found.values() if any(frequency[word] >= _MIN_DOCUMENTS for word in words[one.id])]


def _from_source() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for top in sorted(sys.stdlib_module_names - _SKIPPED):
        single = root / f"{top}.py"
        for path in [single] if single.exists() else sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            names = parts[:-1] if parts[-1] == "__init__" else parts
            if not any(name.startswith("_") or name in ("test", "tests") for name in names):
                yield from parse(path, ".".join(names))


def parse(path: Path, module: str) -> Iterator[Document]:
    """The documents of one source file, which is not executed; none when it cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    yield from _document(module, module, "module", ast.get_docstring(tree))
    yield from _below(tree, module, module, "function")


def _below(node: ast.Module | ast.ClassDef, name: str, module: str, kind: str) -> Iterator[Document]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        full = f"{name}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from _document(full, module, "class", ast.get_docstring(child))
            yield from _below(child, full, module, "method")
        else:
            yield from _document(full, module, kind, ast.get_docstring(child))


def _from_c_modules() -> Iterator[Document]:
    for name in _IN_C:
        with suppress(ImportError):  # some Pythons are built without sqlite3 or lzma
            module = import_module(name)
            yield from _document(name, name, "module", module.__doc__)
            yield from _of_c_module(module, name)


def _of_c_module(module: ModuleType, name: str) -> Iterator[Document]:
    prefix = "" if name == "builtins" else f"{name}."
    for member_name, member in vars(module).items():
        home = getattr(member, "__module__", None) or name
        # The C half of `csv` is `_csv`, that of `os` is `posix`; anything else was imported from its own module.
        if member_name.startswith("_") or not (home in (name, "posix") or home.startswith("_")):
            continue
        if inspect.isbuiltin(member):
            yield from _document(prefix + member_name, name, "function", member.__doc__)
        elif inspect.isclass(member):
            yield from _document(prefix + member_name, name, "class", member.__doc__)
            for method, value in vars(member).items():
                if not method.startswith("_") and (inspect.ismethoddescriptor(value) or inspect.isbuiltin(value)):
                    yield from _document(f"{prefix}{member_name}.{method}", name, "method", value.__doc__)


def _document(name: str, module: str, kind: str, docstring: str | None) -> Iterator[Document]:
    lines = [line.strip() for line in (docstring or "").splitlines() if line.strip()]
    if lines:
        # Where a docstring begins with signatures, the first sentence comes after them.
        summary = next((line for line in lines if not _SIGNATURE.match(line)), lines[0])[:200]
        # The name says most of what a thing is for: its weight was tuned on questions like those in the tests.
        words = [name] * 4 + [name.rpartition(".")[2]] * 3 + [summary] * 2 + [" ".join(lines)[:_TEXT_CHARACTERS]]
        yield Document(name, module, kind, summary, " ".join(words))


def tokens(text: str) -> list[str]:
    """Lower-case word stems: OrderedDict and snake_case are taken apart, sha256 is also sha, endings are cut."""
    found: list[str] = []
    for word in _WORD.findall(_CAMEL.sub(" ", text).lower()):
        if word not in _STOP:
            found += [_stem(part) for part in _WRITTEN_OUT.get(word, word).split()]
            letters = word.rstrip("0123456789")
            if letters != word and len(letters) > 2:
                found.append(_stem(letters))
    return found


def _stem(word: str) -> str:
    for ending, shortest in _ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) >= shortest:
            word = word[: -len(ending)]
            break
    return word[:-1] if len(word) > 4 and word[-1] == word[-2] else word


class Encoder:
    """TF-IDF weights and SVD components; scikit-learn is needed by `fit` alone, numpy is enough for the rest."""

    def __init__(self, vocabulary: dict[str, int], idf: NDArray[np.float32], components: NDArray[np.float32]) -> None:
        self._vocabulary = vocabulary
        self._idf = idf
        self._components = components

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int = 0) -> "tuple[Encoder, NDArray[np.float32]]":
        """Fit on the texts; the encoder and their vectors, float32 (n, 256), each of length 1.

        Raises ValueError when a text shares no word with another.
        """
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer=tokens, min_df=_MIN_DOCUMENTS, sublinear_tf=True, dtype=np.float32)
        weights = vectorizer.fit_transform(texts)
        svd = TruncatedSVD(DIMENSION, n_iter=2, random_state=seed).fit(weights)
        vocabulary = {str(name): number for number, name in enumerate(vectorizer.get_feature_names_out())}
        encoder = cls(vocabulary, vectorizer.idf_.astype(np.float32), svd.components_.astype(np.float32))
        return encoder, _normalised(weights @ encoder._components.T)

    def encode(self, text: str) -> NDArray[np.float32]:
        """float32 (256,) of length 1; raises ValueError when no word is known."""
        known = [self._vocabulary[token] for token in tokens(text) if token in self._vocabulary]
        if not known:
            raise ValueError(f"no word of {text!r} occurs in the sample data: try other words")
        columns, counts = np.unique(known, return_counts=True)
        weights = ((1 + np.log(counts)) * self._idf[columns]).astype(np.float32)
        vector: NDArray[np.float32] = _normalised((weights @ self._components.T[columns])[None])[0]
        return vector

    def save(self, path: Path) -> None:
        names = np.array(sorted(self._vocabulary, key=self._vocabulary.__getitem__))
        content = io.BytesIO()
        np.savez(content, names=names, idf=self._idf, components=self._components)
        files.replace(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        with np.load(path, allow_pickle=False) as saved:
            names = saved["names"]
            return cls({str(name): number for number, name in enumerate(names)}, saved["idf"], saved["components"])


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not norms.all():
        raise ValueError(f"{int((norms == 0).sum())} of {len(vectors)} texts have no word that the encoder knows")
    return vectors / norms  # type: ignore[no-any-return]
