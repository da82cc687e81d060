"""Every name in a checkpoint store, spelled once (docs/format.md, section 2).

<collection>/CURRENT                                   which generation is served
<collection>/<generation>/generation.json              how that generation is built
<collection>/<generation>/quantizer-<version>.bin      centroids and codebooks, shared by all partitions
<collection>/<generation>/p<partition>/manifest-<version>.json
<collection>/<generation>/p<partition>/epoch-<epoch>   the writer's mark: whoever sees a higher one stops writing
<collection>/<generation>/p<partition>/seg-<epoch>-<number>/{vectors.f32,rows.arrow,meta.arrow,index.faiss,outliers.u32}
<collection>/<generation>/p<partition>/seg-<epoch>-<number>/dead-<epoch>-<number>.bits
<collection>/<generation>/p<partition>/seg-<epoch>-<number>/codes-<quantizer>.u8
<collection>/<generation>/p<partition>/seg-<epoch>-<number>/codes-<quantizer>-<epoch>-<number>.u8
"""

import re

VECTORS = "vectors.f32"
ROWS = "rows.arrow"
META = "meta.arrow"
INDEX = "index.faiss"
OUTLIERS = "outliers.u32"

_MANIFEST = re.compile(r"manifest-(\d{10})\.json")
# Numbers are padded to so many digits, and may have more.
_MARK = re.compile(r"epoch-(\d{6,})")
_SEGMENT = re.compile(r"seg-(\d{6,})-(\d{6,})")
_DEAD_ROWS = re.compile(r"dead-(?:(\d{6,})-)?\d{10,}\.bits")  # format 1 had no epoch in the name
_CODES = re.compile(r"codes-\d{6,}(?:-(\d{6,})-\d{6,})?\.u8")
_QUANTIZER = re.compile(r"quantizer-(\d{6,})\.bin")
_GENERATION = re.compile(r"g(\d{6})")


def current(collection: str) -> str:
    return f"{collection}/CURRENT"


def generation_name(number: int) -> str:
    return f"g{number:06}"


def generation_number(name: str) -> int | None:
    match = _GENERATION.fullmatch(name)
    return int(match[1]) if match else None


def generation_file(collection: str, generation: str) -> str:
    return f"{collection}/{generation}/generation.json"


def generation_directory(collection: str, generation: str) -> str:
    return f"{collection}/{generation}"


def quantizer_name(version: int) -> str:
    return f"quantizer-{version:06}.bin"


def quantizer_version(name: str) -> int | None:
    match = _QUANTIZER.fullmatch(name)
    return int(match[1]) if match else None


def partition_directory(collection: str, generation: str, partition: int) -> str:
    return f"{collection}/{generation}/p{partition}"


def partition_number(name: str) -> int | None:
    """The partition whose directory has this name, None when it is not one's."""
    return int(name[1:]) if re.fullmatch(r"p\d+", name) else None


def manifest_name(version: int) -> str:
    return f"manifest-{version:010}.json"


def manifest_version(name: str) -> int | None:
    match = _MANIFEST.fullmatch(name)
    return int(match[1]) if match else None


def mark_name(writer_epoch: int) -> str:
    return f"epoch-{writer_epoch:06}"


def mark_epoch(name: str) -> int | None:
    """The epoch that a writer's mark stands for, None when the name is not a mark's."""
    match = _MARK.fullmatch(name)
    return int(match[1]) if match else None


def segment_name(writer_epoch: int, number: int) -> str:
    return f"seg-{writer_epoch:06}-{number:06}"


def segment_epoch(name: str) -> int | None:
    """The epoch of the writer of a segment, None when the name is not a segment's."""
    match = _SEGMENT.fullmatch(name)
    return int(match[1]) if match else None


def dead_rows_name(writer_epoch: int, number: int) -> str:
    return f"dead-{writer_epoch:06}-{number:010}.bits"


def dead_rows_epoch(name: str) -> int | None:
    """The epoch of the writer of a dead rows' file, 0 when its name has none, None when it is no such name."""
    match = _DEAD_ROWS.fullmatch(name)
    return int(match[1] or 0) if match else None


def codes_name(quantizer: int) -> str:
    """Of codes that are written with their segment."""
    return f"codes-{quantizer:06}.u8"


def added_codes_name(quantizer: int, writer_epoch: int, number: int) -> str:
    """Of codes that are written beside a segment later."""
    return f"codes-{quantizer:06}-{writer_epoch:06}-{number:06}.u8"


def codes_epoch(name: str) -> int | None:
    """The epoch of the writer of a codes file, 0 when its name has none, None when it is no such name."""
    match = _CODES.fullmatch(name)
    return int(match[1] or 0) if match else None
