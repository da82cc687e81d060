"""The sample data of `tidemark up`: the documentation of Python's standard library, as TF-IDF + SVD vectors.

Docstrings are read from source with `ast`, so no module is executed; functions written in C are read from a few
modules that are safe to import. The encoder is latent semantic analysis (Deerwester et al., 1990): TF-IDF over
words, reduced by truncated SVD, so that a question in words finds the function. Demo code: a real collection
brings vectors of its own.
"""

import ast
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DIMENSION = 256
_SKIPPED = {"idlelib", "lib2to3", "test", "antigravity", "this", "turtledemo", "turtle", "site-packages", "ensurepip"}
_IN_C = ("math", "itertools", "time", "zlib", "binascii", "gc", "array", "select", "errno", "marshal", "operator", "re")
_WORD = re.compile(r"[a-z][a-z0-9]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_STOP = {
    "the",
    "and",
    "for",
    "this",
    "that",
    "with",
    "from",
    "are",
    "not",
    "its",
    "you",
    "can",
    "will",
    "which",
    "when",
    "any",
    "has",
    "have",
    "but",
    "all",
    "one",
    "use",
    "used",
    "return",
    "returns",
    "returned",
    "see",
    "default",
    "argument",
    "arguments",
    "self",
    "none",
    "true",
    "false",
    "given",
    "object",
    "objects",
    "method",
}


@dataclass(frozen=True, slots=True)
class Document:
    """One module, class, function or method; `id` is its qualified name."""

    id: str
    module: str
    kind: str
    summary: str
    text: str

    @property
    def metadata(self) -> bytes:
        return json.dumps({"module": self.module, "kind": self.kind, "summary": self.summary}).encode()


def documents() -> list[Document]:
    """Everything public in the standard library that has a docstring, each id once."""
    found = {document.id: document for document in (*_from_source(), *_from_c_modules())}
    return list(found.values())


def _from_source() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        top = parts[0]
        if top in _SKIPPED or "test" in path.stem or "tests" in parts or top not in sys.stdlib_module_names:
            continue
        if not any(part.startswith("_") for part in module.split(".")):
            yield from _of_module(path, module)


def _of_module(path: Path, module: str) -> Iterator[Document]:
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
    for module in _IN_C:
        loaded = import_module(module)
        yield from _document(module, module, "module", loaded.__doc__)
        for name, member in inspect.getmembers(loaded, callable):
            if not name.startswith("_"):
                kind = "class" if inspect.isclass(member) else "function"
                yield from _document(f"{module}.{name}", module, kind, inspect.getdoc(member))


def _document(name: str, module: str, kind: str, docstring: str | None) -> Iterator[Document]:
    if docstring and len(tokens(docstring)) >= 2:
        summary = docstring.strip().splitlines()[0][:200]
        # The name says most of what a thing is for, and the first line most of the rest.
        text = " ".join([name] * 3 + [summary] * 2 + [docstring[:1_000]])
        yield Document(name, module, kind, summary, text)


def tokens(text: str) -> list[str]:
    """Lower-case words; OrderedDict and snake_case are taken apart, plurals and endings cut."""
    words = _WORD.findall(_CAMEL.sub(" ", text).lower())
    return [_stem(word) for word in words if word not in _STOP]


def _stem(word: str) -> str:
    for ending in ("ization", "ation", "ings", "ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            return word[: -len(ending)]
    return word


class Encoder:
    """TF-IDF weights and SVD components; `encode` needs numpy alone."""

    def __init__(self, vocabulary: dict[str, int], idf: NDArray[np.float32], components: NDArray[np.float32]) -> None:
        self._vocabulary = vocabulary
        self._idf = idf
        self._components = components

    @classmethod
    def fit(cls, texts: Sequence[str], seed: int = 0) -> "tuple[Encoder, NDArray[np.float32]]":
        """Fit on the texts; the encoder and their vectors, float32 (n, 256)."""
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(analyzer=tokens, min_df=2, max_features=20_000, sublinear_tf=True)
        weights = vectorizer.fit_transform(texts)
        svd = TruncatedSVD(DIMENSION, n_iter=3, random_state=seed).fit(weights)
        names = vectorizer.get_feature_names_out()
        encoder = cls(
            {str(name): number for number, name in enumerate(names)},
            vectorizer.idf_.astype(np.float32),
            svd.components_.astype(np.float32),
        )
        return encoder, _normalised((weights @ svd.components_.T).astype(np.float32))

    def encode(self, text: str) -> NDArray[np.float32]:
        """float32 (256,); raises ValueError when no word is known."""
        known = [self._vocabulary[token] for token in tokens(text) if token in self._vocabulary]
        if not known:
            raise ValueError(f"no word of {text!r} occurs in the sample data")
        columns, counts = np.unique(known, return_counts=True)
        weights = (1 + np.log(counts)) * self._idf[columns]
        vector = (weights / np.linalg.norm(weights)) @ self._components.T[columns]
        return _normalised(vector[None, :].astype(np.float32))[0]

    def save(self, path: Path) -> None:
        names = np.array(sorted(self._vocabulary, key=self._vocabulary.__getitem__))
        with path.open("wb") as file:
            np.savez(file, names=names, idf=self._idf, components=self._components)

    @classmethod
    def load(cls, path: Path) -> "Encoder":
        with np.load(path, allow_pickle=False) as saved:
            names = saved["names"]
            return cls({str(name): number for number, name in enumerate(names)}, saved["idf"], saved["components"])


def _normalised(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms == 0, 1, norms)  # type: ignore[no-any-return]
