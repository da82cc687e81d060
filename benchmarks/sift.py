"""A million real vectors made offline: dense SIFT descriptors of photographs that ship inside two wheels.

The photographs are those in the scikit-image and scikit-learn packages; each is described on a grid of points
at several scales (SIFT: Lowe, 2004), so nothing is downloaded. Rows are distinct, never all zero, hold whole
numbers from 0 to 255 as float32, and come in one seeded order: the queries are its first rows, the base the
rows after them. So no query is in the base, and a smaller base is a prefix of a larger one. The order depends
on the seed alone, the numbers on the versions of OpenCV and of the two packages as well.

Neighbouring grid points overlap, as in any dense description: a query's nearest rows are mostly from its own
photograph. Made once, then mapped from `$TIDEMARK_CACHE_DIR/sift`.
"""

import argparse
import os
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIMENSION = 128
RECIPE = 1  # part of the cache's name: count it up when a constant below changes
STEP = 2  # pixels between points; with SCALES it makes about 3.2 million distinct rows reachable
SCALES = (1.0, 0.7, 0.5, 0.35)  # half-octave steps, for large structures as well as small
KEYPOINT_SIZE = 4.0  # pixels; the first octave's scale, and the cost of a row grows with its square
_MARGIN = 1.1  # about 5% of the points are flat or repeated, so one round nearly always suffices

_SCIKIT_IMAGE = (
    *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png"),
    *("motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg", "text.png"),
)
_SCIKIT_LEARN = ("china.jpg", "flower.jpg")

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sift:
    """`base`, (rows, 128), is mapped read-only from disk; no row of `queries`, (queries, 128), is in it."""

    base: NDArray[np.float32]
    queries: NDArray[np.float32]
    directory: Path

    def ground_truth(self, k: int = 10) -> NDArray[np.int64]:
        """Base rows nearest to each query under L2, nearest first, (queries, k): exact, and kept on disk."""
        path = self.directory / f"truth-{len(self.base)}-k{k}.npy"
        if not path.exists():
            import faiss

            _, labels = faiss.knn(np.ascontiguousarray(self.queries), np.ascontiguousarray(self.base), k)
            _save(path, labels.astype(np.int64))
        return np.load(path)  # type: ignore[no-any-return]


def load(rows: int = 1_000_000, queries: int = 1_000, seed: int = 0) -> Sift:
    """The data set, made and kept when it is not there yet.

    Raises ModuleNotFoundError when a package is missing, ValueError for more rows than there are.
    """
    directory = _cache() / f"recipe{RECIPE}-seed{seed}-queries{queries}"
    size = _kept(directory, rows)
    if size is None:
        size = rows
        made = _make(queries + rows, seed).astype(np.float32)
        _save(directory / f"queries-{size}.npy", made[:queries])
        _save(directory / f"base-{size}.npy", made[queries:])  # last: its name says that both are there
    base = np.load(directory / f"base-{size}.npy", mmap_mode="r")
    return Sift(base[:rows], np.load(directory / f"queries-{size}.npy"), directory)


def _cache() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemark"
    return Path(os.environ.get("TIDEMARK_CACHE_DIR") or default) / "sift"


def _kept(directory: Path, rows: int) -> int | None:
    """The size of the smallest kept base with enough rows."""
    sizes = [int(path.stem.removeprefix("base-")) for path in directory.glob("base-*.npy")]
    return min((size for size in sizes if size >= rows), default=None)


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("xb") as file:
            np.save(file, array)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _make(count: int, seed: int) -> Bytes:
    """The first `count` distinct descriptors in the seed's order; only about so many are computed."""
    views = _views()
    ends = np.cumsum([_grid(view)[0] * _grid(view)[1] for view in views])
    order = np.random.default_rng(seed).permutation(int(ends[-1]))
    rows = np.empty((0, DIMENSION), np.uint8)
    while len(rows) < count:
        if not len(order):
            raise ValueError(f"the photographs hold {len(rows)} distinct descriptors, {count} were asked for")
        more = int((count - len(rows)) * _MARGIN) + 1_000
        rows = _distinct(np.concatenate([rows, _describe(views, ends, order[:more])]))
        order = order[more:]
    return rows[:count]


def _views() -> list[Bytes]:
    """Every photograph at every scale, grey, uint8 (height, width)."""
    cv2 = _opencv()
    views = []
    for path in _photographs():
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise FileNotFoundError(f"{path}: this version of the package has no such photograph")
        views += [cv2.resize(image, None, fx=s, fy=s, interpolation=cv2.INTER_AREA) for s in SCALES]
    return views


def _photographs() -> list[Path]:
    images = _package("skimage", "scikit-image") / "data"
    more = _package("sklearn", "scikit-learn") / "datasets" / "images"
    return [images / name for name in _SCIKIT_IMAGE] + [more / name for name in _SCIKIT_LEARN]


def _grid(view: Bytes) -> tuple[int, int]:
    """Points in a column and in a row."""
    return -(-view.shape[0] // STEP), -(-view.shape[1] // STEP)


def _describe(views: Sequence[Bytes], ends: NDArray[np.int64], points: NDArray[np.int64]) -> Bytes:
    """Descriptors of points, which are numbered through the grids of all views; uint8 (points, 128)."""
    cv2 = _opencv()
    sift = cv2.SIFT_create()
    rows = np.empty((len(points), DIMENSION), np.uint8)
    owners = np.searchsorted(ends, points, side="right")
    for number, view in enumerate(views):
        places = np.flatnonzero(owners == number)
        height, width = _grid(view)
        y, x = np.divmod(points[places] - (ends[number] - height * width), width)
        xy = (STEP * np.stack([x, y], axis=1)).tolist()
        if xy:
            # Upright (angle 0), as dense descriptors are; the numbers come back whole.
            _, found = sift.compute(view, [cv2.KeyPoint(x, y, KEYPOINT_SIZE, 0) for x, y in xy])
            rows[places] = found
    return rows


def _distinct(rows: Bytes) -> Bytes:
    """Without all-zero rows and with the first of equal rows; the order stays."""
    rows = rows[rows.any(axis=1)]
    _, first = np.unique(rows.view(f"V{DIMENSION}").ravel(), return_index=True)
    return rows[np.sort(first)]


def _opencv() -> Any:
    _package("cv2", "opencv-python-headless")
    import cv2

    return cv2


def _package(module: str, distribution: str) -> Path:
    found = find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"the SIFT data set needs {distribution}, which is not installed: "
            "install the development packages with `make setup`",
            name=module,
        )
    return Path(found.origin).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the data set and say what it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sift", description=main.__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        made = load(options.rows, options.queries, options.seed)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    seconds = time.perf_counter() - started
    print(f"{len(made.base):,} distinct rows of {DIMENSION} numbers and {len(made.queries):,} queries")
    print(f"{seconds:.1f} s, kept in {made.directory}")


if __name__ == "__main__":
    main()
