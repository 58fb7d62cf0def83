"""AnnData in a zarr store: a folder of small files. This is engineering.

Know before reading: hdf5.py, whose groups, arrays and attributes these are too, with a folder for
each. Reading is left to zarr and anndata; here it is seen to that nothing comes of it but arrays.
A store names the codecs that its chunks go through, and one of them, "pickle", would run code: so
only those are allowed that are known to do no more than pack numbers and text. And a chunk that is
not there stands for zeros, so that a file of 100 bytes can declare a terabyte.

Know after: which stores are read, and which are refused before a chunk of them is.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scipy import sparse

from models.files import Content, Refused, allow, need

DESCRIPTIONS = (".zarray", "zarr.json")  # of an array, in format 2 and 3 of zarr
MARKS = (".zgroup", ".zattrs", "zarr.json")  # one of which is in the folder of every store
CODECS = {
    *("blosc", "zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "vlen-utf8", "vlen-bytes", "bytes"),
    *("crc32c", "transpose", "sharding_indexed", "shuffle", "endian"),
}


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / mark).exists() for mark in MARKS)


def read_zarr(path: Path, transpose: bool = False, layer: str | None = None) -> Content:
    """An AnnData object from the folder that `write_zarr` made; layer as in counts.read.

    ImportError without anndata or zarr. Refused for other stores, and for what could do harm.
    """
    zarr, read_elem = need("zarr", "zarr"), need("anndata", "zarr").io.read_elem
    for folder, description in _arrays(path):
        _check_array(path, folder, description)
    # Without the summary of all descriptions (.zmetadata), for it may say something else.
    store = zarr.open_group(str(path), mode="r", use_consolidated=False)
    if "obs" not in store or "var" not in store:
        raise Refused("a zarr store, but not of AnnData: it has no obs and var")
    layers = store["layers"] if "layers" in store else {}
    raw = store["raw"] if "raw" in store and hasattr(store["raw"], "keys") else {}
    if layer is None:
        place, genes = store, store["var"]
        key = "X"
    elif layer in layers:
        place, genes = layers, store["var"]
        key = layer
    else:
        place = raw if layer == "raw" else {}
        genes = raw["var"] if place else None
        key = "X"
    if key not in place:
        what = "X" if layer is None else f"layer {layer!r}"
        raise Refused(f"no {what}; there are: {', '.join(sorted(layers)) or 'none'}")
    obs, var = read_elem(store["obs"]), read_elem(genes)
    content = Content(
        sparse.csr_array(read_elem(place[key])),
        var.index.astype(str),
        obs.index.astype(str),
        _columns(obs),
        var=_columns(var),
    )
    return content.transposed() if transpose else content


def _columns(frame: Any) -> dict:
    """The columns of a DataFrame as arrays; None, in an array of objects, where one is missing."""
    found = {}
    for name in frame.columns:
        values = frame[name].to_numpy()
        if values.dtype.kind not in "biuf":
            missing = frame[name].isna().to_numpy()
            values = values.astype(object)
            values[missing] = None
            if not missing.any():
                values = values.astype(str)
        found[str(name)] = values
    return found


# ---------------------------------------------------------------------------- what a store declares
def _arrays(path: Path) -> Iterator[tuple[Path, dict]]:
    """(folder, description) of each array. Refused for links, which may lead anywhere, and for
    pipes, which may never end.
    """
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            if os.path.islink(os.path.join(folder, name)):
                raise Refused(f"{os.path.join(folder, name)} is a link; write all into one folder")
        for name in files:
            if not os.path.isfile(os.path.join(folder, name)):
                raise Refused(f"{os.path.join(folder, name)} is a pipe or a device; remove it")
        for name in set(files) & set(DESCRIPTIONS):
            found = json.loads(Path(folder, name).read_text(encoding="utf-8"))
            if "shape" in found:
                yield Path(folder), found


def _check_array(store: Path, folder: Path, description: dict) -> None:
    """Refused for codecs that are not known, and for far more numbers than the folder holds."""
    name = str(folder.relative_to(store))
    pipelines = [description.get(key) for key in ("compressor", "filters", "codecs")]
    for codec in _codecs(pipelines):
        if codec not in CODECS:
            raise Refused(
                f"{name} is packed with {codec!r}, which is not known to be harmless; write it "
                "again with anndata's write_zarr"
            )
    grid = description.get("chunk_grid", {}).get("configuration", {})
    chunks = description.get("chunks", grid.get("chunk_shape", []))
    stored = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    for shape in (description["shape"], chunks):
        allow(8 * math.prod(int(n) for n in shape), stored, name, ratio=1100)


def _codecs(pipeline: Any) -> Iterator[str]:
    """The names of all codecs in a description, also of those inside of another."""
    if isinstance(pipeline, list):
        for part in pipeline:
            yield from _codecs(part)
    elif isinstance(pipeline, dict):
        name = pipeline.get("id", pipeline.get("name"))
        if name is not None:
            yield str(name)
        for part in pipeline.values():
            yield from _codecs(part)
