"""Which settings of scVI suit these counts? Each is trained, and judged on cells that it never saw.

This is engineering.

Know before reading: trial.py, which trains and judges one setting, and what a standard error is. A
fifth of the cells is held out, the same for all settings, and log p(x) of each of these cells is
estimated under each trained model. Cells differ from each other far more than models do: on 540
cells of blood the standard error of the mean log p is 15 nats. But the models are asked about the
same cells, and what counts is the difference of their log p, cell by cell. Its standard error is
below 1 nat:

    >>> cell = np.array([-900.0, -1500.0, -1200.0, -2000.0])
    >>> one, other = cell + [1.0, 2.0, 3.0, 2.0], cell
    >>> round(standard_error(one)), round(standard_error(one - other), 2)
    (234, 0.41)

Settings whose difference from the best is less than two standard errors are called equally good,
and the simplest of them, the one with the fewest weights, is the one to take:

    table = compare(counts, likelihood=("nb", "zinb"), n_latent=(10, 30), jobs=2)
    print(table)
    model = SCVI(n_genes, **table.best.config())

Each setting is trained in a process of its own, with one thread. Processes are started as programs
(`python -c ...`), so that a script which calls `compare` needs no guard. What a trial finds is a
file in the folder of the comparison, and a training leaves its checkpoint there: so a comparison
that was killed goes on where it was.

Know after: why two models are compared cell by cell, and what such a comparison leaves open.
"""

from __future__ import annotations

import hashlib
import html
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad import checkpoint
from minigrad.checkpoint import whole_file, write_figure
from minigrad.notebook import as_frame, as_picture, for_number, number_of
from minigrad.progress import bar as bar_of
from models import guarded, locks, runs, trial
from models.counts import as_matrix, batch_codes, library_size
from models.covariates import columns_in, names_of
from models.inputs import one_of, whole_number
from models.labels import by_cell, cells_of
from models.scvi import LIKELIHOODS, SCVI
from models.trial import Cells, Judged

FORMAT, VERSION = "minigrad comparison", 1
HELD_OUT = 5  # one cell of so many
LEAST_HELD_OUT = 10  # cells: of fewer, a standard error says little
UNLIKE = 0.2  # nats by which biases may differ without a word
EQUAL = 2.0  # standard errors of a difference that is put down to chance
SIMPLEST_FIRST = ("poisson", "nb", "zinb")
GENE_NB, PCA = "NB of each gene", "PCA of log counts"
BASELINES = {GENE_NB: "gene nb", PCA: "pca"}
# Settings that are the same for all: of SCVI, and of its `fit`.
OF_MODEL = ("dispersion", "library", "dropout", "encode_covariates")
OF_FIT = ("batch_size", "validation", "learning_rate", "kl_warmup", "early_stopping")
# What the libraries of linear algebra ask for the number of their threads.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    ),
    "1",
)


# ------------------------------------------------------------------------------- what is compared
class Setting(NamedTuple):
    """What is varied. epochs: None is the number that follows from the cells (`SCVI.fit`)."""

    likelihood: str
    n_latent: int
    n_layers: int
    n_hidden: int
    epochs: int | None = None

    def __str__(self) -> str:
        text = f"{self.likelihood}, {self.n_latent} latent, {self.n_layers} x {self.n_hidden}"
        return text if self.epochs is None else f"{text}, {number_of(self.epochs, 'epoch')}"

    def config(self) -> dict:
        """The arguments of SCVI."""
        return {name: value for name, value in self._asdict().items() if name != "epochs"}

    def fit(self) -> dict:
        """The arguments of `SCVI.fit`."""
        return {} if self.epochs is None else {"epochs": self.epochs}

    def file_name(self, seed: int) -> str:
        """What the files of one training are called, without their ending."""
        epochs = "default" if self.epochs is None else self.epochs
        sizes = f"{self.n_latent}-{self.n_layers}x{self.n_hidden}"
        return f"{self.likelihood}-{sizes}-{epochs}-seed{seed}"


class Row(NamedTuple):
    """A line of the table: a setting, or a way without a model (setting is None).

    Log-probabilities are in nats, means over the held-out cells, and over trainings if there are
    several. difference, elbo_difference: from the best setting, below 0 for worse; with the
    standard errors of these. is_equal: whether that is put down to chance. bias: about how much
    log p is too low for want of draws, half the mean square of its Monte Carlo errors, as E[log w]
    = log E[w] - var(w) / 2 E[w]^2 to second order. seconds: of training, on one thread, a mean;
    ari, nmi: of clusters against labels. failure: why there is nothing else, in a sentence. None:
    there is no such thing.
    """

    name: str
    setting: Setting | None = None
    n_weights: int | None = None
    log_p: float | None = None
    difference: float | None = None
    error: float | None = None
    elbo: float | None = None
    elbo_difference: float | None = None
    elbo_error: float | None = None
    is_equal: bool = False
    bias: float | None = None
    seconds: float | None = None
    ari: float | None = None
    nmi: float | None = None
    failure: str | None = None

    def is_worse(self) -> bool:
        """Whether it is worse than the best by more than is put down to chance."""
        if self.difference is None or self.error is None:
            return True
        return self.difference < -EQUAL * self.error


class Comparison:
    """What `compare` found: settings by held-out log p, the best first, then the ways without one.

    rows: a list of Row; best: the Setting to take, the simplest of those that are equally good;
    n_held_out: cells that judged; n_seeds: trainings of each setting. `print(table)` shows all and
    says what follows.
    """

    def __init__(self, rows: list[Row], n_held_out: int, n_seeds: int):
        self.rows = rows
        self.n_held_out = n_held_out
        self.n_seeds = n_seeds

    @property
    def equally_good(self) -> list[Row]:
        """The rows of the best setting and of all that are as good within error, simplest first."""
        return sorted((row for row in self.rows if row.is_equal), key=_simplicity)

    @property
    def best(self) -> Setting:
        """The simplest of the settings that are equally good. ValueError where all have failed."""
        if not self.equally_good:
            failures = [row.failure for row in self.rows if row.failure]
            raise ValueError(f"no setting could be trained; the first failed: {failures[0]}")
        return self.equally_good[0].setting  # type: ignore[return-value]  # only settings are equal

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.verdict()}"

    __repr__ = __str__

    def table(self) -> str:
        """The rows as text, with differences as `value ± standard error`."""
        columns = {
            "setting": [row.name for row in self.rows],
            "weights": [_text(row.n_weights, ",") for row in self.rows],
            "log p": [_text(row.log_p, ".1f") for row in self.rows],
            "from the best": [_plus_minus(row.difference, row.error) for row in self.rows],
            "ELBO": [_text(row.elbo, ".1f") for row in self.rows],
            "from its ELBO": [
                _plus_minus(row.elbo_difference, row.elbo_error) for row in self.rows
            ],
            "equal": ["yes" if row.is_equal else "" for row in self.rows],
            "seconds": [_text(row.seconds, ".0f") for row in self.rows],
        }
        if any(row.ari is not None for row in self.rows):
            columns["ARI"] = [_text(row.ari, ".2f") for row in self.rows]
            columns["NMI"] = [_text(row.nmi, ".2f") for row in self.rows]
        widths = {name: max(len(name), *map(len, texts)) for name, texts in columns.items()}
        first = widths.pop("setting")
        lines = ["setting".ljust(first) + "".join(f"  {n.rjust(w)}" for n, w in widths.items())]
        for i, row in enumerate(self.rows):
            line = row.name.ljust(first)
            if row.failure is not None:
                lines.append(f"{line}  failed: {row.failure}")
                continue
            cells = (columns[name][i].rjust(width) for name, width in widths.items())
            lines.append("".join([line, *(f"  {cell}" for cell in cells)]).rstrip())
        return "\n".join(lines)

    def verdict(self) -> str:
        """What the table says, in sentences."""
        if not self.equally_good:
            return "No setting could be trained."
        best, chosen = self.rows[0], self.equally_good[0]
        others = [row.name for row in self.rows if row.is_equal and row is not best]
        said = [f"The best log p of {self.n_held_out:,} held-out cells has {best.name}."]
        if others:
            said.append(
                f"Equally good within error (less than {EQUAL:g} standard errors of the paired "
                f"difference): {'; '.join(others)}."
            )
        else:
            said.append("No other is equally good within error (2 standard errors).")
        said.append(f"To take, as the simplest of these (fewest weights): {chosen.name}.")
        if any(row.name == GENE_NB and not row.is_worse() for row in self.rows):
            said.append(
                "But an NB of each gene, without latent variables, is no worse: the cells do not "
                "differ beyond their totals, or the models have not learnt how."
            )
        if self.n_seeds == 1:
            said.append(
                "The errors are of the held-out cells only, and not of the training: how far "
                "another seed moves a mean, several seeds say."
            )
        else:
            said.append(
                f"The errors are of the held-out cells and of {self.n_seeds} trainings of each "
                "setting; the split is one and the same."
            )
        biases = [row.bias for row in self.rows if row.bias is not None]
        if max(biases) - min(biases) > UNLIKE:
            said.append(
                "For want of draws the log p of the settings are too low by about "
                f"{min(biases):.1f} to {max(biases):.1f} nats, which is not in the errors: draw "
                "more samples."
            )
        return "\n".join(said)

    def _repr_html_(self) -> str:
        text = html.escape(str(self))
        return f"<pre>{text}</pre>"

    def to_csv(self, path) -> None:
        """Write all rows, with a first line of column names."""
        runs.write_table(path, self._header(), self._lines())

    def to_frame(self) -> Any:
        """All rows as a pandas DataFrame. ImportError where pandas is not installed."""
        return as_frame(dict(zip(self._header(), zip(*self._lines()))))

    def _header(self) -> list[str]:
        others = [name for name in Row._fields if name not in ("name", "setting")]
        return ["name", *Setting._fields, *others]

    def _lines(self) -> list[list]:
        """All rows, in the order of the header."""
        nothing = [None] * len(Setting._fields)
        lines = []
        for name, setting, *others in self.rows:
            lines.append([name, *(nothing if setting is None else setting), *others])
        return lines

    def plot(self, path=None) -> Any:
        """Draw the table: differences of log p with twice their errors, seconds, ARI and NMI.

        With a path (.png, .pdf, .svg) the picture is written and the path returned, without one the
        figure is returned.
        """
        figure = _drawn(self)
        if path is None:
            return as_picture(figure)
        return write_figure(figure, path, dpi=130)


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of values (n,): std / sqrt(n), in their units."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _simplicity(row: Row):
    """What sorts settings: fewest weights; then the likelihood of fewest parameters and epochs."""
    setting = row.setting
    assert setting is not None and row.n_weights is not None
    return row.n_weights, SIMPLEST_FIRST.index(setting.likelihood), setting.epochs or 0


def _text(value, form: str) -> str:
    return "-" if value is None else format(value, form)


def _plus_minus(value, error) -> str:
    if value is None:
        return "-"
    return "0" if value == 0 == error else f"{value:+.2f} ± {error:.2f}"


# -------------------------------------------------------------------------------- the comparison
def compare(
    counts,
    batch=None,
    *,
    likelihood: str | Sequence[str] = ("zinb", "nb", "poisson"),
    n_latent: int | Sequence[int] = (10, 20, 30),
    n_layers: int | Sequence[int] = (1, 2),
    n_hidden: int | Sequence[int] = (128,),
    epochs: int | None | Sequence[int | None] = (None,),
    library: str | Sequence[str] = "observed",
    categorical: str | Iterable[str] = (),
    continuous: str | Iterable[str] = (),
    labels=None,
    seeds: int = 1,
    seed: int = 0,
    n_samples: int = 300,
    jobs: int | None = None,
    out=None,
    layer: str | None = None,
    progress: bool = True,
    **settings,
) -> Comparison:
    """Train SCVI in all combinations of the settings given, and compare them on held-out cells.

    counts (n_cells, n_genes), batch and layer: as for `SCVI.fit`; all counts are held in memory,
    and once more in each process. likelihood, n_latent, n_layers, n_hidden, epochs: one value or
    several. library: "observed" or "latent", the same for all, as the two cannot be compared
    (`log_likelihood` says why). categorical, continuous: names of obs columns with covariates that
    all are told (`SCVI.for_data`). labels: a known group per cell, whole numbers or strings, or the
    name of an obs column; with them the clusters of each latent space are scored. seeds: trainings
    of each setting, whose log p is averaged. seed: of the split and of the first of them.
    n_samples: draws of z for log p. jobs: processes at a time, by default one for each processor.
    out: a folder, made if it is not there, in which a comparison that was stopped goes on; it keeps
    what each training found. Ctrl-C ends all processes. settings: further arguments of SCVI
    (dispersion, dropout, encode_covariates) and of its `fit` (batch_size, validation,
    learning_rate, kl_warmup, early_stopping), the same for all.

    Of each batch a random fifth of the cells is held out; `SCVI.fit` sees the others only. Cells
    without counts are left out, with a warning. Beside the settings stand a negative binomial for
    each gene without latent variables (where the library is observed), and PCA (where labels are
    given); trial.py says which. A setting that fails has the reason in its row. Computed on the
    device that the environment variable MINIGRAD_DEVICE names.

    Returns the table. ValueError names the argument that cannot be; OSError where `out` cannot be
    written, or another process compares there; ValueError where it holds another comparison.
    """
    kind, grid = _grid(likelihood, n_latent, n_layers, n_hidden, epochs, library)
    seeds, n_samples = whole_number("seeds", seeds), whole_number("n_samples", n_samples)
    jobs = _processors() if jobs is None else whole_number("jobs", jobs)
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
    config, fit = _fixed(settings, kind)
    categorical = names_of("categorical", categorical)
    continuous = names_of("continuous", continuous)
    cells = _cells(counts, batch, labels, layer, seed, categorical, continuous)
    if cells.covariates:
        columns = columns_in(cells.covariates, len(cells.batch), None, categorical, continuous)
        config["columns"] = columns.described()
    weights = {setting: _n_weights(setting, cells, config) for setting in grid}
    with ExitStack() as until_done:
        if out is None:
            folder = Path(until_done.enter_context(tempfile.TemporaryDirectory()))
        else:
            folder = Path(out)
            _make_folder(folder)
            until_done.enter_context(
                locks.locked(folder / ".lock", f"is comparing settings in {folder}")
            )
        _refuse_another(folder, _identity(cells, seed, n_samples, {**config, **fit}))
        trials = folder / "trials"
        trials.mkdir(exist_ok=True)
        requests = _requests(
            trials, grid, range(int(seed), int(seed) + seeds), config, fit, n_samples
        )
        requests |= _baselines(trials, kind, cells)
        pending = {
            name: request
            for name, request in requests.items()
            if trial.read_judged(request["result"]) is None
        }
        failures = _carry_out(pending, cells, trials / "cells.npz", jobs, progress)
        found = {name: trial.read_judged(request["result"]) for name, request in requests.items()}
    return _tabulate(grid, seeds, weights, found, failures, int(cells.is_held_out.sum()))


def _grid(likelihood, n_latent, n_layers, n_hidden, epochs, library) -> tuple[str, list[Setting]]:
    """(kind of library, all combinations). ValueError for what cannot be, and for none at all."""
    kinds = _several("library", library)
    if len(kinds) > 1:
        raise ValueError(
            "library: a model with an observed and one with a latent library cannot be compared by "
            "log p, which the former is told the total for; compare settings of one kind only"
        )
    one_of("library", kinds[0], ("observed", "latent"))
    likelihoods = _several("likelihood", likelihood)
    for name in likelihoods:
        one_of("likelihood", name, LIKELIHOODS)
    sizes = []
    for name, values in (("n_latent", n_latent), ("n_layers", n_layers), ("n_hidden", n_hidden)):
        sizes.append([whole_number(name, value) for value in _several(name, values)])
    of_epochs = [
        None if value is None else whole_number("epochs", value)
        for value in _several("epochs", epochs)
    ]
    combinations = itertools.product(likelihoods, *sizes, of_epochs)
    return kinds[0], [Setting(*combination) for combination in dict.fromkeys(combinations)]


def _several(name: str, values) -> list:
    """The values as a list; one that stands alone as a list of one. ValueError for none."""
    if values is None or isinstance(values, str) or not hasattr(values, "__iter__"):
        return [values]
    values = list(values)
    if not values:
        raise ValueError(f"{name}: an empty list, which leaves nothing to compare; give one value")
    return values


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _fixed(settings: dict, library: str) -> tuple[dict, dict]:
    """The settings that are the same for all: of SCVI, of fit. ValueError for an unknown one."""
    for name in settings:
        if name not in (*OF_MODEL, *OF_FIT):
            raise ValueError(
                f"{name} is no setting of a comparison; there are {', '.join(OF_MODEL + OF_FIT)}"
            )
    plain = {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in settings.items()
    }
    config = {name: plain[name] for name in OF_MODEL if name in plain} | {"library": library}
    return config, {name: plain[name] for name in OF_FIT if name in plain}


def _cells(
    counts,
    batch,
    labels,
    layer,
    seed: int,
    categorical: Sequence[str] = (),
    continuous: Sequence[str] = (),
) -> Cells:
    """The cells that have counts, split.

    ValueError where they are too few, or labels or covariates not right.
    """
    x = sparse.csr_array(as_matrix(counts, layer=layer))
    obs = getattr(counts, "obs", None)
    names = cells_of(counts)
    batch = by_cell(batch, names, "batch")
    labels = by_cell(labels, names, "labels")
    codes, _ = batch_codes(batch, x.shape[0], obs=obs, cells=names)
    of_labels = None if labels is None else _label_codes(labels, x.shape[0], obs, names)
    columns = columns_in(obs, x.shape[0], None, categorical, continuous, names)
    covariates = columns.values(obs, x.shape[0])
    has_counts = library_size(x) > 0
    if not has_counts.all():
        n = int(np.sum(~has_counts))
        are = for_number(n, "is", "are")
        warnings.warn(f"{number_of(n, 'cell')} without counts {are} left out", stacklevel=3)
        x = x[has_counts]
        codes = np.unique(codes[has_counts], return_inverse=True)[1]
        if of_labels is not None:
            of_labels = np.unique(of_labels[has_counts], return_inverse=True)[1]
        covariates = {name: values[has_counts] for name, values in covariates.items()}
    is_held_out = _held_out(codes, seed)
    n = int(is_held_out.sum())
    if n < LEAST_HELD_OUT:
        raise ValueError(
            f"counts: {number_of(len(codes), 'cell')} with counts, of which a fifth of each batch, "
            f"{n}, would be held out; a comparison needs {LEAST_HELD_OUT}, so give more cells"
        )
    return Cells(x, codes, is_held_out, of_labels, covariates)


def _label_codes(labels, n_cells: int, obs, cells) -> np.ndarray:
    """Labels as codes (n_cells,). ValueError where they are not one of several for each cell."""
    codes, names = batch_codes(labels, n_cells, obs=obs, name="labels", cells=cells)
    if len(names) < 2:
        raise ValueError(f"labels: all cells have the same, {names[0]}; leave them out")
    return codes


def _held_out(batch: np.ndarray, seed: int) -> np.ndarray:
    """Which cells are held out, (n_cells,) bool: the first fifth of each batch in a random order.

    batch: codes (n_cells,). No batch is held out as a whole: the model would not know it.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(batch))
    found = np.zeros(len(batch), bool)
    for code in range(int(batch.max()) + 1):
        of_batch = order[batch[order] == code]
        found[of_batch[: len(of_batch) // HELD_OUT]] = True
    return found


def _n_weights(setting: Setting, cells: Cells, config: dict) -> int:
    """The number of weights of the model. ValueError for arguments that SCVI refuses."""
    model = SCVI(cells.x.shape[1], cells.n_batches, **setting.config(), **config)
    return sum(parameter.size for parameter in model.parameters())


# ------------------------------------------------------------------------------------- the folder
def _make_folder(folder: Path) -> None:
    """Make the folder. OSError, in a sentence, where nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"{folder}: no folder can be made there ({error.strerror}); give another path"
        ) from error
    checkpoint.check_target(folder / "comparison.json")


def _identity(cells: Cells, seed: int, n_samples: int, fixed: dict) -> dict:
    """What must be the same for a comparison to go on: name -> text or number."""
    of_columns = {}
    if "columns" in fixed:
        of_columns["covariates"] = _digest(*cells.covariates.values())
    return {
        "counts": _digest(cells.x.data, cells.x.indices, cells.x.indptr),
        "batch": _digest(cells.batch),
        "labels": "none" if cells.labels is None else _digest(cells.labels),
        "seed": int(seed),
        "n_samples": n_samples,
        **of_columns,
        **fixed,
    }


def _digest(*arrays: np.ndarray) -> str:
    """A text that differs where the arrays do."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()[:32]


def _refuse_another(folder: Path, identity: dict) -> None:
    """Write down what is compared; ValueError where the folder holds another comparison."""
    file = folder / "comparison.json"
    if not file.exists():
        _write_json(file, {"format": FORMAT, "version": VERSION, "of": identity})
        return
    before = _read_json(file)["of"]
    names = [name for name in {**identity, **before} if identity.get(name) != before.get(name)]
    if names:
        raise ValueError(
            f"{folder} holds a comparison with other {', '.join(names)}; give another folder, or "
            "the same as before to go on"
        )


def _write_json(file: Path, content: dict) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(file: Path) -> dict:
    """A file that `_write_json` wrote for a comparison; ValueError for any other."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        is_right = content["format"] == FORMAT and content["version"] == VERSION
        assert isinstance(content.get("of", {}), dict)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise ValueError(f"{file}: damaged, or of no comparison ({error})") from error
    if not is_right:
        raise ValueError(f"{file}: not of a comparison that this program reads")
    return content


def write_best(folder, counts_path, settings: dict) -> None:
    """Write down what `train --settings` is to take: a path of counts, or a list of several, and
    settings of a run.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "counts": runs.absolute(counts_path),
        "settings": settings,
    }
    _write_json(Path(folder) / "best.json", content)


def read_best(folder) -> tuple[Any, dict]:
    """(path of the counts, or a list of several; settings), as `write_best` wrote them.
    FileNotFoundError, ValueError where it did not.
    """
    file = Path(folder) / "best.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no finished comparison: it has no best.json; make one with the "
            "command compare"
        )
    content = _read_json(file)
    counts, settings = content.get("counts"), content.get("settings")
    known = (*runs.COUNTS, *runs.MODEL, *runs.FIT)
    are_paths = all(isinstance(path, str) for path in runs.paths_of(counts))
    if not are_paths or not isinstance(settings, dict) or set(settings) - {*known}:
        raise ValueError(f"{file}: damaged, or of another version of this program")
    return counts, settings


# -------------------------------------------------------------------------------------- the trials
def _requests(folder: Path, grid, seeds, config: dict, fit: dict, n_samples: int) -> dict:
    """(setting, number of the seed) -> what the process of that training is told."""
    found = {}
    for setting, (i, seed) in itertools.product(grid, enumerate(seeds)):
        name = setting.file_name(seed)
        found[setting, i] = {
            "kind": "scvi",
            "name": f"{setting}" + f", seed {seed}" * (len(seeds) > 1),
            "result": str(folder / f"{name}.npz"),
            "unfinished": str(folder / f"{name}.checkpoint.npz"),
            "config": {**setting.config(), **config, "seed": seed},
            "fit": {**fit, **setting.fit()},
            "n_samples": n_samples,
        }
    return found


def _baselines(folder: Path, library: str, cells: Cells) -> dict:
    """(name, 0) -> what the processes of the ways without a model are told."""
    found = {}
    for name, kind in BASELINES.items():
        is_wanted = library == "observed" if name == GENE_NB else cells.labels is not None
        if is_wanted:
            result = str(folder / f"{kind.replace(' ', '-')}.npz")
            found[name, 0] = {"kind": kind, "name": name, "result": result}
    return found


def _carry_out(requests: dict, cells: Cells, path: Path, jobs: int, progress: bool) -> dict:
    """Carry out the requests, `jobs` at a time, and return key -> sentence for those that failed.

    path: of the file in which the processes find the cells, written here and removed again.
    """
    failures: dict = {}
    if not requests:
        return failures
    trial.write_cells(path, cells)
    children = _Children()
    bar = bar_of(len(requests), 0, "setting", progress)
    pool = ThreadPoolExecutor(jobs)
    try:
        begun = {}
        for key, request in requests.items():
            begun[pool.submit(children.run, {**request, "cells": str(path)})] = key
        for future in as_completed(begun):
            key = begun[future]
            failure = future.result()
            if failure is not None:
                failures[key] = failure
            if progress:
                bar.write(_news(requests[key], failure), file=sys.stderr)
            bar.update()
    finally:
        children.stop()
        pool.shutdown(cancel_futures=True)
        bar.close()
        with suppress(FileNotFoundError):
            os.unlink(path)
    return failures


def _news(request: dict, failure: str | None) -> str:
    """A line about a trial that is over."""
    if failure is not None:
        return f"{request['name']}: failed: {failure}"
    judged = trial.read_judged(request["result"])
    if judged is None or judged.log_p is None:
        return f"{request['name']}: done"
    return f"{request['name']}: log p {np.mean(judged.log_p):.1f}, {judged.seconds:.0f} s"


class _Children:
    """The processes that are running, so that all can be ended."""

    def __init__(self):
        self.running: set[subprocess.Popen] = set()
        self.is_over = False
        self.lock = Lock()

    def run(self, request: dict) -> str | None:
        """Carry out a request in a process of its own. Returns why it failed, or None.

        The process ends when its standard input does, which this process holds open while it lives.
        """
        program = "import sys; from models import trial; trial.main(sys.argv[1])"
        with tempfile.TemporaryFile() as log:
            with self.lock:
                if self.is_over:
                    return "it was not begun"
                child = subprocess.Popen(
                    [sys.executable, "-P", "-c", program, json.dumps(request)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**guarded.environment(), **ONE_THREAD},
                )
                self.running.add(child)
            try:
                said: Any = child.stdout.read()  # type: ignore[union-attr]  # it is a pipe
                code = child.wait()
            finally:
                with self.lock:
                    self.running.discard(child)
                for pipe in (child.stdin, child.stdout):
                    pipe.close()  # type: ignore[union-attr]
            if code == 0:
                return None
            log.seek(0)
            return _why(said, log.read(), code)

    def stop(self) -> None:
        """End all processes, and begin no other."""
        with self.lock:
            self.is_over = True
            for child in self.running:
                child.kill()


def _why(said: bytes, log: bytes, code: int) -> str:
    """Why a process failed: its own sentence, else the last line of its log, and how it ended."""
    with suppress(ValueError, IndexError):
        return json.loads(said.splitlines()[-1])
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; was there too little memory? Try fewer jobs" * (name == "SIGKILL")
        return f"its process was ended by {name}{hint}"
    lines = log.decode(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "")
    return f"its process ended with code {code} {last}".rstrip()


# --------------------------------------------------------------------------------------- the table
class Means(NamedTuple):
    """The trainings of one setting taken together: (n_seeds, n_held_out) each, in nats."""

    log_p: np.ndarray
    log_p_error: np.ndarray
    elbo: np.ndarray


def _tabulate(grid, n_seeds, weights, found, failures, n_held_out) -> Comparison:
    """The table of all that was found. found: (setting or name, number of the seed) -> Judged."""
    trained: dict[Setting, list[Judged]] = {}
    rows = []
    for setting in grid:
        judged = [found[setting, i] for i in range(n_seeds)]
        if all(judged):
            trained[setting] = judged
            continue
        reasons = [failures[setting, i] for i in range(n_seeds) if (setting, i) in failures]
        failure = reasons[0] if reasons else "its file cannot be read"
        rows.append(Row(str(setting), setting, weights[setting], failure=failure))
    means = {
        setting: Means(*[np.array([getattr(j, name) for j in judged]) for name in Means._fields])
        for setting, judged in trained.items()
    }
    in_order = sorted(trained, key=lambda setting: -np.mean(means[setting].log_p))
    best = means[in_order[0]] if in_order else None
    ranked = [_row(s, weights[s], trained[s], means[s], best) for s in in_order]
    ranked += rows
    for name in BASELINES:
        if (name, 0) in failures:
            ranked.append(Row(name, failure=failures[name, 0]))
        elif found.get((name, 0)) is not None:
            ranked.append(_baseline_row(name, found[name, 0], best))
    return Comparison(ranked, n_held_out, n_seeds)


def _row(setting, n_weights: int, judged: list[Judged], own: Means, best) -> Row:
    """The row of a setting that was trained."""
    difference, error = paired_difference(own.log_p, best.log_p)
    elbo_difference, elbo_error = paired_difference(own.elbo, best.elbo)
    row = Row(
        name=str(setting),
        setting=setting,
        n_weights=n_weights,
        log_p=float(np.mean(own.log_p)),
        difference=difference,
        error=error,
        elbo=float(np.mean(own.elbo)),
        elbo_difference=elbo_difference,
        elbo_error=elbo_error,
        bias=float(np.mean(own.log_p_error**2)) / 2.0,
        seconds=_mean(judged, "seconds"),
        ari=_mean(judged, "ari"),
        nmi=_mean(judged, "nmi"),
    )
    return row._replace(is_equal=not row.is_worse())


def _baseline_row(name: str, judged: Judged, best: Means | None) -> Row:
    """The row of a way without a model. Its log p, where it has one, is exact, and no bound."""
    row = Row(name, seconds=judged.seconds, ari=judged.ari, nmi=judged.nmi)
    if judged.log_p is None:
        return row
    row = row._replace(log_p=float(np.mean(judged.log_p)))
    if best is None:
        return row
    difference, error = paired_difference(judged.log_p[None], best.log_p)
    return row._replace(difference=difference, error=error)


def paired_difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean of one - other and its standard error, of (n_seeds, n_held_out) log-probabilities in
    nats.

    The cells are the same in both, so that what makes a cell probable or not drops out. Of several
    trainings each, their variance is added: error^2 = var(difference of a cell) / n_held_out +
    var(mean of a training of one) / n_seeds + the same of the other.
    """
    difference = np.mean(one, axis=0) - np.mean(other, axis=0)
    variance = standard_error(difference) ** 2
    if one is not other:
        for side in (one, other):
            if len(side) > 1:
                variance += standard_error(np.mean(side, axis=1)) ** 2
    return float(np.mean(difference)), math.sqrt(variance)


def _mean(judged: list[Judged], name: str) -> float | None:
    values = [getattr(each, name) for each in judged]
    return None if None in values else float(np.mean(values))


# ------------------------------------------------------------------------------------- the picture
def _drawn(table: Comparison):
    """The figure of a comparison: a line for each row that did not fail, the best on top."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from models.report import COLORS, MARKERS

    rows = [row for row in table.rows if row.failure is None]
    kinds = [*SIMPLEST_FIRST, None]
    is_scored = any(row.ari is not None for row in rows)
    figure = Figure(figsize=(12.5 if is_scored else 9.5, 1.9 + 0.3 * len(rows)))
    figure.set_layout_engine("constrained")
    ratios = [2.2, 1, 0.8] if is_scored else [2.2, 0.8]
    all_axes = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0]
    quality, clusters, time = all_axes[0], all_axes[1], all_axes[-1]
    chosen = table.equally_good[0] if table.equally_good else None
    for y, row in enumerate(rows):
        number = kinds.index(row.setting.likelihood if row.setting else None)
        look = {"color": COLORS[(0, 1, 2, 6)[number]], "marker": MARKERS[number], "markersize": 7}
        if not row.is_equal:
            look["markerfacecolor"] = "white"
        if row.difference is not None and row.error is not None:
            width = EQUAL * row.error
            quality.errorbar(row.difference, y, xerr=width, capsize=3, linestyle="", **look)
        if row.seconds is not None:
            time.plot(row.seconds, y, linestyle="", clip_on=False, **look)
        if is_scored and row.ari is not None:
            clusters.plot([row.ari, row.nmi], [y, y], color="#BBBBBB", linewidth=1, zorder=1)
            clusters.plot(row.ari, y, linestyle="", marker="o", color=COLORS[4])
            clusters.plot(row.nmi, y, linestyle="", marker="v", color=COLORS[5])
    names = [row.name + "  (to take)" * (row is chosen) for row in rows]
    quality.set_yticks(range(len(rows)), names)
    quality.set_ylim(len(rows) - 0.5, -0.5)
    quality.axvline(0.0, color="#999999", linewidth=0.8, zorder=0)
    quality.set_xlabel("held-out log p from the best (nats a cell), with 2 standard errors")
    lowest = min((row.difference for row in rows if row.difference is not None), default=0.0)
    if lowest < -50:
        quality.set_xscale("symlog", linthresh=10, linscale=1.5)
        left, right = quality.get_xlim()
        ticks = np.outer(10.0 ** np.arange(6), [1, 2, 5]).ravel()[2:]  # from 5 up
        ticks = np.concatenate([[0.0], ticks, -ticks])
        quality.set_xticks(ticks[(left < ticks) & (ticks < right)])
        quality.xaxis.set_major_formatter("{x:g}")
        quality.set_xlabel(f"{quality.get_xlabel()}\nlogarithmic beyond 10")
    time.set_xlabel("training (s, one thread)")
    time.set_xlim(0.0, 1.1 * time.get_xlim()[1])
    if is_scored:
        clusters.set_xlabel("clusters against labels")
        marks = [
            Line2D([], [], linestyle="", marker=marker, color=color, label=name)
            for name, marker, color in (("ARI", "o", COLORS[4]), ("NMI", "v", COLORS[5]))
        ]
        clusters.legend(handles=marks, frameon=False, fontsize=8, loc="best")
    for axes in all_axes:
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)
    figure.suptitle(
        f"Filled: equally good within error, by {table.n_held_out:,} held-out cells", fontsize=10
    )
    return figure
