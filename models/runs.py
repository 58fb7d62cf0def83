"""The folder of one training, and the files that are made of it, as the command line keeps them.

This is engineering.

Know before reading: counts.py, scvi.py, and minigrad/checkpoint.py. A run is a folder with these
files:

    config.json   where the counts were read and what the training was told; written before it
                  starts
    model.npz     the checkpoint: weights, genes, batches, history, and all that going on with a
                  killed training needs
    history.csv   what training recorded, a line an epoch; written when it ends
    colors.json   which colour a label has in reports; written by the first of them

Later commands read the counts again, from the same place or another, and take the model's genes
from them by name. Genes of one name are numbered in the order of the file, so that a name says
which of them is meant; where another file has its genes in another order that is not known, and
refused. All files are written whole or not at all.

Know after: what is in a run, and what `python -m models` writes.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from scipy import sparse

from minigrad import checkpoint
from minigrad.backend import Matrix
from minigrad.checkpoint import whole_file
from minigrad.data import Blocks, pieces
from minigrad.fit import History
from minigrad.notebook import number_of
from models import colors, guarded, locks
from models.colors import NO_LABEL
from models.counts import (
    Counts,
    annotate_h5ad,
    batch_codes,
    highest_variance,
    pearson_residual_variance,
)
from models.files import HOW_TO_ADD, need, warn_of_formulas
from models.hdf5 import index_of
from models.hdf5_writing import hdf5_file
from models.labels import is_missing, unique_names
from models.query import share_genes
from models.scvi import SCVI

FORMAT, VERSION = "minigrad run", 1
SUFFIXES = (".csv", ".npz", ".h5ad")
SELECTIONS: dict[str, Any] = {"variance": highest_variance, "pearson": pearson_residual_variance}
COUNTS = (
    "layer",
    "transpose",
    "obs",
    "only_annotated",
    "gene_names",
    "rounded",
    "batch_key",
    "categorical",
    "continuous",
    "genes",
    "genes_from",
    "selection",
    "within_batches",
    "on_disk",
)  # settings that say what of the counts the model sees
READING = (
    "transpose",
    "obs",
    "only_annotated",
    "gene_names",
    "rounded",
)  # of these, arguments of counts.read
MODEL = (
    "likelihood",
    "dispersion",
    "library",
    "n_latent",
    "n_hidden",
    "n_layers",
    "dropout",
    "encode_covariates",
    "seed",
)
MAPPING = ("reference", "batch_name", "min_overlap")  # of a run that `map` made
FIT = ("epochs", "batch_size", "validation", "learning_rate", "kl_warmup", "early_stopping")


# ------------------------------------------------------------------------------------------- counts
@dataclass(eq=False)
class UniquelyNamed(Counts):
    """Counts, X (n_cells, n_genes), in which each name of a gene occurs once.

    numbered: the names of those genes that shared one in the file.
    """

    numbered: frozenset = frozenset()


def read_counts(
    path,
    layer: str | None = None,
    on_disk: bool = False,
    reading: dict | None = None,
    told: Sequence[str] = (),
) -> UniquelyNamed:
    """`models.guarded.read`, with names of genes that occur once each.

    on_disk: leave the matrix in its .h5ad file. reading: name -> value of other arguments of it;
    with "only_annotated" cells are left out, too, that have no value in the obs columns told, of
    batch and covariates, as far as there are such columns. ValueError where none is left.
    """
    reading = dict(reading or {})
    is_filtered = reading.get("only_annotated", False)
    if is_filtered and not reading.get("obs"):
        if not told:
            raise ValueError(
                "--only-annotated leaves out cells that the table of --obs lacks, or without a "
                "value in the columns of batch, covariates or groups, and none of these is given"
            )
        del reading["only_annotated"]
    counts = guarded.read(path, layer, backed=on_disk, **reading)
    if is_filtered:
        counts = counts.annotated([name for name in told if name in counts.obs])
    names = unique_names(counts.genes)
    times = Counter(counts.genes.tolist())
    numbered = {new for new, name in zip(names.tolist(), counts.genes.tolist()) if times[name] > 1}
    return UniquelyNamed(counts.X, names, counts.cells, counts.obs, counts.var, frozenset(numbered))


def genes_by_name(
    counts: UniquelyNamed, genes, whose: str = "the model", min_overlap: float = 1.0
) -> Counts:
    """These genes of the counts, in this order; ValueError that says which are not there.

    min_overlap: the least fraction of them that must be there; the others are 0, with a warning.
    Genes that had one name in the file are told apart by their order: ValueError where the file has
    its genes in another order, and so perhaps these too.
    """
    if list(counts.genes) == list(genes):
        return counts
    found = share_genes(counts, genes, min_overlap, whose)
    position = {name: i for i, name in enumerate(counts.genes.tolist())}
    columns = np.array([position[name] for name in genes if name in position])
    alike = [name for name in genes if name in counts.numbered]
    if alike and np.any(np.diff(columns) < 0):
        names = ", ".join(alike[:5]) + " ..." * (len(alike) > 5)
        raise ValueError(
            f"{len(alike)} of the {len(genes)} genes of {whose} share their names with other genes "
            f"of the counts ({names}), whose genes stand in another order: it cannot be known which"
            " is which; pass counts with the genes in the model's order, or give every gene a name "
            "of its own before training"
        )
    return found


def in_memory(counts: Counts) -> Counts:
    """The same counts, a matrix that lies on the disk read into memory, as CSR."""
    if not isinstance(counts.X, Blocks):
        return counts
    x = sparse.vstack([part for _, part in pieces(counts.X)], format="csr")
    return Counts(x, counts.genes, counts.cells, counts.obs, counts.var)


def labels_of(counts: Counts, key: str) -> np.ndarray:
    """An obs column, (n_cells,), as it is. ValueError lists the columns there are."""
    if key not in counts.obs:
        raise ValueError(
            f"no column {key!r} of cells in the counts; there are: "
            f"{', '.join(counts.obs) or 'none'}. A table of the cells may have it: {HOW_TO_ADD}"
        )
    return counts.obs[key]


def as_texts(labels) -> np.ndarray:
    """Labels as (n,) str; NO_LABEL where one is None or NaN."""
    labels = np.asarray(labels)
    texts = labels.astype(str)
    missing = [is_missing(label) for label in labels.tolist()]
    return np.where(missing, NO_LABEL, texts)


# --------------------------------------------------------------------------------------------- runs
class Run:
    """The folder of one training.

    Reading is done when asked for, so that a command takes what it needs.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.checkpoint, self.config_file = self.folder / "model.npz", self.folder / "config.json"
        self.history_file = self.folder / "history.csv"
        self.files = self.config_file, self.checkpoint, self.history_file
        self.colors_file = self.folder / "colors.json"

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Within, no other process trains this run; locks.Locked, an OSError, if one does already.

        OSError, in a sentence, where a file of the run could not be written: before hours of work.
        """
        missing = [f for f in (self.folder, *self.folder.parents) if not os.path.exists(f)]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise type(error)(
                f"{self.folder}: no folder can be made there ({error.strerror}); give another path"
            ) from error
        try:
            with locks.locked(self.folder / ".lock", f"is training {self.folder}"):
                for file in self.files:
                    self.check_target(file)
                yield
        finally:
            with suppress(OSError):  # what was made goes if nothing came of it
                for folder in missing:
                    folder.rmdir()

    def check_target(self, file: Path) -> None:
        """OSError, in a sentence, where a file in the folder of the run could not be written.

        A link is refused: nobody named it, and in a stranger's folder it could lead to any file.
        """
        if file.is_symlink():
            raise OSError(
                f"{file} is a link to {os.path.realpath(file)}, which would be written over; put "
                "the file itself in its place, or remove the link"
            )
        checkpoint.check_target(file)

    def begin(self, counts_path, settings: dict) -> None:
        """Make the folder, and write down where the counts are and what the training is told."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format": FORMAT,
            "version": VERSION,
            "counts": absolute(counts_path),
            "settings": settings,
        }
        with whole_file(self.config_file) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def config(self) -> tuple[Any, dict]:
        """(path of the counts, or a list of several; settings), as `begin` wrote them.

        FileNotFoundError, ValueError where it did not.
        """
        if not self.config_file.exists():
            raise FileNotFoundError(
                f"{self.folder} is no run: it has no config.json; make one with the command train"
            )
        try:
            config = json.loads(self.config_file.read_text(encoding="utf-8"))
            right = config["format"] == FORMAT and config["version"] == VERSION
            counts, settings = config["counts"], dict(config["settings"])
            right = right and all(isinstance(path, str) for path in paths_of(counts))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.config_file}: damaged, or not of a run ({type(error).__name__}: {error})"
            ) from error
        unknown = [name for name in settings if name not in (*COUNTS, *MODEL, *MAPPING, *FIT)]
        if not right or unknown:
            raise ValueError(
                f"{self.config_file}: not of a run that this program reads "
                f"{' '.join(unknown)}".rstrip()
            )
        return counts, settings

    def model(self) -> SCVI:
        """The trained model, in evaluation mode. FileNotFoundError where none was written."""
        if not self.checkpoint.exists():
            self.config()  # the better error, where the folder is none of ours
            raise FileNotFoundError(
                f"{self.folder} has no model.npz: its training wrote no checkpoint; run train again"
            )
        return SCVI.load(self.checkpoint)

    def history(self) -> History:
        """What training recorded, from the checkpoint: even of a training that was killed."""
        return History(checkpoint.load(self.checkpoint)[1].get("history"))

    def write_model(self, model: SCVI, history: History) -> None:
        """model.npz, of a model that was trained without a checkpoint."""
        weights = {f"weights/{name}": array for name, array in model.state_dict().items()}
        told = {**model.description(), "history": history.columns}
        checkpoint.save(self.checkpoint, weights, told)

    def write_history(self, history: History) -> None:
        """history.csv, a line an epoch."""
        write_table(self.history_file, history.names, zip(*history.columns.values()))

    def colors(self) -> dict[str, str]:
        """Name of a label -> its colour in earlier reports, of this run, or of that it was mapped
        onto.

        ValueError where a file of colours is damaged.
        """
        reference = self.config()[1].get("reference")
        known = {} if reference is None else _colors_in(Run(reference).colors_file)
        return known | _colors_in(self.colors_file)

    def keep_colors(self, used: dict[str, str]) -> None:
        """Add name -> colour to those of earlier reports. OSError where that cannot be written."""
        before = _colors_in(self.colors_file)
        if before | used != before:
            self.check_target(self.colors_file)
            colors.write_colors(self.colors_file, before | used)

    def counts(
        self,
        path=None,
        layer: str | None = None,
        batch_key=None,
        on_disk: bool | None = False,
        reading: dict | None = None,
        told: Sequence[str] = (),
    ) -> tuple[Counts, str, str | None]:
        """(all genes of the counts, their path, name of the batch column or None).

        path: another file than the one trained on; then layer and reading (see read_counts) are
        those of this file, and not the run's; else tables of cells, in reading["obs"], are added to
        those of the run. on_disk: leave the matrix in its file; None: where the training left it,
        if these are the counts trained on. told: covariates of the run's model, see read_counts.
        FileNotFoundError where the counts are no longer there.
        """
        trained_on, settings = self.config()
        gone = [p for p in paths_of(trained_on) if not os.path.exists(p)]
        if path is None and gone:
            raise FileNotFoundError(
                f"{gone[0]}: the counts of {self.folder} are no longer there; pass their path "
                "as COUNTS"
            )
        layer = settings.get("layer") if layer is None and path is None else layer
        on_disk = path is None and settings.get("on_disk", False) if on_disk is None else on_disk
        reading = reading or {}
        if path is None:
            path = trained_on
            reading = reading_of(settings) | reading
            reading |= tables_of(settings, reading)
        key = batch_key or settings.get("batch_key")
        told = [*told, *([] if key is None or key in told else [key])]
        return read_counts(path, layer, on_disk, reading, told), path, key


def _colors_in(path: Path) -> dict[str, str]:
    """The colours in a file; none where it is not there."""
    return colors.read_colors(path) if path.is_file() else {}


def paths_of(path) -> list:
    """The paths of counts, of which there may be one or several."""
    return list(path) if isinstance(path, (list, tuple)) else [path]


def absolute(path) -> str | list[str]:
    """The absolute path of counts, or the paths of several."""
    found = [os.path.abspath(p) for p in paths_of(path)]
    return found if isinstance(path, (list, tuple)) else found[0]


def tables_of(settings: dict, reading: dict) -> dict:
    """The tables of cells of a run, and after them those that are given beside, as an argument of
    counts.read. One of the run that is gone is not missed where others are given.
    """
    own, given = paths_of(settings.get("obs") or []), paths_of(reading.get("obs") or [])
    if given == own:
        return {}
    own = [path for path in own if path not in given and os.path.exists(path)]
    return {"obs": own + given}


def reading_of(settings: dict) -> dict:
    """The settings that are arguments of counts.read, but for the layer."""
    return {name: settings[name] for name in READING if name in settings}


def columns_told(settings: dict) -> list[str]:
    """The obs columns that settings name: of the batch, and of covariates."""
    batch = [settings["batch_key"]] if "batch_key" in settings else []
    return [*batch, *settings.get("categorical", ()), *settings.get("continuous", ())]


def training_counts(path, settings: dict, also: Sequence[str] = ()) -> Counts:
    """The counts as a model with these settings sees them: the layer, and the genes that vary most,
    or that a column of the file marks.

    also: obs columns in which cells must have a value too, where settings ask for annotated cells
    only. ValueError for too few genes.
    """
    counts = read_counts(
        path,
        settings.get("layer"),
        settings.get("on_disk", False),
        reading_of(settings),
        [*columns_told(settings), *also],
    )
    if "genes_from" in settings:
        return counts.select_genes(marked_genes(counts, settings["genes_from"]))
    if "genes" not in settings:
        return counts
    n, there = settings["genes"], counts.shape[1]
    if n > there:
        raise ValueError(
            f"{path}: has {number_of(there, 'gene')}, fewer than --genes {n}; ask for at most as "
            "many, or leave --genes out"
        )
    batch = None
    if settings.get("within_batches"):
        batch = batch_codes(labels_of(counts, settings["batch_key"]), len(counts))[0]
    select = SELECTIONS[settings.get("selection", "variance")]
    return counts.select_genes(select(counts.X, n, batch=batch))


def marked_genes(counts: Counts, key: str) -> np.ndarray:
    """The genes that a column of var marks, (n_genes,) bool. ValueError where there are none."""
    if key not in counts.var:
        raise ValueError(
            f"--genes-from {key}: there is no such column of genes; there are: "
            f"{', '.join(counts.var) or 'none'}"
        )
    marks = counts.var[key]
    if marks.dtype != bool:
        texts = np.char.lower(marks.astype(str))
        if not set(texts.tolist()) <= {"true", "false", "1", "0", "1.0", "0.0"}:
            raise ValueError(
                f"--genes-from {key}: its values are such as {str(marks[0])!r}; it must say true "
                "or false of each gene, as highly_variable does"
            )
        marks = np.isin(texts, ["true", "1", "1.0"])
    if not marks.any():
        raise ValueError(f"--genes-from {key}: it marks no gene; leave it out, or mark some")
    return marks


def new_model(counts: Counts, settings: dict) -> SCVI:
    """An untrained model for these counts, with the settings that are the model's.

    It remembers the columns of batch and covariates, so that the same columns are found in other
    counts.
    """
    return SCVI.for_data(
        counts,
        settings.get("batch_key"),
        settings.get("categorical", ()),
        settings.get("continuous", ()),
        **{name: settings[name] for name in MODEL if name in settings},
    )


def settings_of(model: SCVI) -> dict:
    """The settings that say of a model, which was trained elsewhere, how it was made."""
    settings = {name: model.config[name] for name in MODEL}
    columns = model.columns
    if columns.batch is not None:
        settings["batch_key"] = columns.batch
    if columns.categorical:
        settings["categorical"] = list(columns.categorical)
    if columns.continuous:
        settings["continuous"] = list(columns.continuous)
    return settings


def fit_arguments(settings: dict) -> dict:
    """The settings that are arguments of SCVI.fit."""
    return {name: settings[name] for name in FIT if name in settings}


# -------------------------------------------------------------------------------------------- files
def write_table(path, header, rows) -> None:
    """A CSV file with a first line of names. Floats have the 9 digits that say exactly which
    float32 they are.

    Texts are written as they are; a warning says which of them a spreadsheet would take for
    formulas.
    """
    texts = [str(name) for name in header]

    def written(value):
        if isinstance(value, str):
            texts.append(value)
        return f"{value:.9g}" if isinstance(value, float) else value

    with whole_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows([written(value) for value in row] for row in rows)
    warn_of_formulas(texts)


def write_arrays(path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write name -> array, of any shapes, as an uncompressed .npz file.

    As np.savez does, which takes no array that is called "file".
    """
    with whole_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_cells(
    path, counts: Counts, place: str, name: str, values, columns, source=None, known=None
) -> None:
    """One row of values for each cell of counts, by the suffix of path.

    values: (n_cells, k) dense. place: "obsm" or "layers", where an .h5ad has them under `name`; in
    a "layer" columns are the genes. columns: (k,) names. source: the path that counts were read
    from, with all of its genes. known: what else is known of the values, name -> array
    or text.
        .csv   a line a cell: its name, then its values; what is known has no place
        .npz   arrays `cells`, `columns` and `name`, and what is known
        .h5ad  a copy of source with the values added if that is an .h5ad that can take them; else a
               new file of counts, obs and values; a text is uns["name_key"]
    ValueError for another suffix; ImportError without anndata.
    """
    kind = suffix(path)
    known = known or {}
    places = {place: {name: values}}
    if known:
        texts = {key: text for key, text in known.items() if isinstance(text, str)}
        places["uns"] = {f"{name}_{key}": text for key, text in texts.items()}
    if kind == ".csv":
        write_table(
            path,
            ["cell", *columns],
            ([cell, *row.tolist()] for cell, row in zip(counts.cells, values)),
        )
    elif kind == ".npz":
        names = {"cells": counts.cells, "columns": np.asarray(columns, dtype=str)}
        write_arrays(path, {**names, name: values, **known})
    elif is_h5ad(source) and not (why := why_not_added(source, counts, place)):
        checkpoint.check_target(path)
        annotate_h5ad(source, path, **places)
    else:
        write_h5ad(path, counts, **places)
        if is_h5ad(source):
            warnings.warn(
                f"{path}: a new file of counts, obs and {name}, without what else is in {source}, "
                f"for {why}",
                stacklevel=2,
            )


def is_h5ad(path) -> bool:
    """Whether it is the path of an .h5ad file."""
    return path is not None and str(path).lower().endswith(".h5ad")


def why_not_added(source, counts: Counts, place: str) -> str:
    """Why results of these counts, which were read from the .h5ad file source, cannot be added to
    it; "" if they can. place: "obsm" or "layers".
    """
    with need("h5py").File(source, "r") as file:
        if any(hasattr(file[axis], "dtype") for axis in ("obs", "var")):
            return "it was written by anndata before 0.7, and nothing can be added to it"
        genes = unique_names(index_of(file["var"]))
        n_cells = len(index_of(file["obs"]))
    if n_cells != len(counts):
        return f"its {n_cells:,} rows are not the {len(counts):,} cells that were read"
    if place == "layers" and genes.tolist() != counts.genes.tolist():
        return f"its layers are of {len(genes):,} genes, and other {len(counts.genes):,} were read"
    return ""


def write_counts(path, counts: Counts) -> None:
    """Counts as a file that models.counts.read reads, of the kind that the suffix of path says:
    .csv, .npz or .h5ad. ValueError for an obs column that has a name of the arrays of an .npz.
    """
    kind = suffix(path)
    x: Matrix = counts.X
    if kind == ".csv":
        rows = (x[i : i + 1].toarray()[0].astype(np.int64).tolist() for i in range(len(counts)))
        write_table(
            path, ["cell", *counts.genes], ([cell, *row] for cell, row in zip(counts.cells, rows))
        )
    elif kind == ".npz":
        arrays = {
            "data": x.data,
            "indices": x.indices,
            "indptr": x.indptr,
            "shape": np.array(x.shape),
            "genes": counts.genes,
            "cells": counts.cells,
        }
        taken = [name for name in counts.obs if name in (*arrays, "format")]
        if taken:
            raise ValueError(
                f"{path}: obs has a column {taken[0]!r}, which is the name of another array of "
                "such a file; rename it, or write .h5ad"
            )
        write_arrays(path, {**arrays, **counts.obs})
    else:
        write_h5ad(path, counts)


def write_h5ad(path, counts: Counts, **places) -> None:
    """A new .h5ad file: counts, names and obs, with places such as obsm={"X_scVI": z}.

    ImportError without anndata.
    """
    anndata, _ = h5ad_packages(path)
    data = counts.to_anndata()
    for place, values in places.items():
        getattr(data, place).update(values)
    data.strings_to_categoricals()  # as AnnData.write_h5ad does
    with whole_file(path) as temporary:
        with hdf5_file(temporary, "w") as file:
            anndata.io.write_elem(file, "/", data)
            file.pop("raw", None)  # some versions write that there is none


def h5ad_packages(path) -> tuple:
    """(anndata, pandas), which write the .h5ad file `path`.

    ImportError that says how to install them.
    """
    try:
        return importlib.import_module("anndata"), importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            f'{path}: .h5ad needs anndata: pip install "minigrad-scvi[singlecell]"'
        ) from error


def suffix(path, allowed: tuple = SUFFIXES) -> str:
    """The kind of file that a path asks for: one of those allowed, or ValueError."""
    found = Path(path).suffix.lower()
    if found not in allowed:
        raise ValueError(
            f"{path}: must end in "
            f"{', '.join(allowed[:-1])}{' or ' * (len(allowed) > 1)}{allowed[-1]}, by which "
            "it is known what is written"
        )
    return found
