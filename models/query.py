"""Cells of new batches, mapped onto a model that is trained. This is engineering.

A model of annotated cells is there, and cells come from another donor or laboratory. To train anew
on all of them takes the old counts, and moves every cell in the latent space. Architecture surgery
(Lotfollahi et al. 2022, scArches) does without: the networks gain columns of weights for the new
batches, and these alone are trained, on the new cells, while all else is frozen. Here three genes
of ten are counted twice as well in the second batch:

    >>> rng = np.random.default_rng(0)
    >>> rates = np.array([[9.0] * 5 + [1.0] * 5, [1.0] * 5 + [9.0] * 5])[np.arange(200) % 2]
    >>> reference = rng.poisson(rates)
    >>> new_cells = rng.poisson(rates * ([2.0] * 3 + [1.0] * 7))
    >>> from models import SCVI
    >>> model = SCVI(10, n_latent=2, n_hidden=16, likelihood="nb")
    >>> history = model.fit(reference, epochs=50, progress=False)
    >>> query = model.map_query(new_cells, name="new", progress=False)
    >>> query.batches
    ['0', 'new']
    >>> bool(np.mean(query.elbo(new_cells, ["new"] * 200)) > np.mean(model.elbo(new_cells)))
    True
    >>> np.array_equal(query.latent(reference), model.latent(reference))
    True

The last line holds to the bit, and for likelihoods too. A matrix with more columns is multiplied in
another order, and its last digits differ even if the further columns meet zeros. So the new columns
are a matrix of their own (`Grown`); and as the decoder's frozen output weights W_rho can say little
of what a batch does to each gene, its new batches have offsets of log rho as well:

    h'      = W [h, conditions that the reference was told] + b + V [new conditions]
    log rho = W_rho h + b_rho + offsets [new conditions] - log(sum over genes of the like)

For an old cell the last products are sums of zeros. V starts at the mean of the known batches'
columns, the offsets at 0, with a normal prior of standard deviation 0.5. scArches and scvi-tools
have no offsets.

What it is worth, on real cells with simulated batches: two of the reference, one as it was, one
with every gene counted exp(Normal(0, 0.5)) times as well, and a third with other such factors. 60 %
of the cells are the reference, 20 % the query, 20 % are held out. Gain in held-out log p of the
third batch over that as the nearer of the known ones, importance-weighted, in nats a cell, one
split and training each:

| data | cells x genes of the reference | columns alone | with offsets | the same from 20 cells |
| --- | --- | --- | --- | --- |
| pbmc68k | 420 x 765 | +3.6 | +41.7 | +31.8 |
| pbmc68k, other split | 420 x 765 | +2.8 | +39.0 | +29.2 |
| cortex | 1,803 x 558 | +39.9 | +228.5 | +208.9 |

scvi-tools 1.4 (`load_query_data`, its defaults, 400 and 200 epochs) gains 6.1 and 6.8 on the two
splits of pbmc68k, where it also trains the decoder's batch norm.

Know before reading: scvi.py (Layers, `conditions`, `fit`), covariates.py, count_inputs.py.

Know after: what a new batch changes in a model, and what it leaves alone.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import numpy as np
from scipy import sparse

from minigrad import backend, functional, optim
from minigrad.backend import Array, Matrix
from minigrad.data import Blocks
from minigrad.fit import History, fit
from minigrad.nn import Linear, Module, Parameter
from minigrad.notebook import number_of
from minigrad.tensor import Tensor
from models.count_inputs import (
    TrainingCells,
    check_training,
    training_cells,
    warn_of_labels_that_are_none,
)
from models.counts import Counts, as_matrix, batch_codes
from models.covariates import ObsColumns
from models.inputs import dense, whole_number
from models.labels import by_cell, cells_of, genes_of, unique_names
from models.measured import IS_MEASURED, measured_in
from models.recipe import LIBRARY_FLOOR, OFFSET_PRECISION, add_prior

N_STEPS = 150  # of a mapping, at least
VERSION = re.compile(r"\.\d+$")  # of an id, as in ENSG00000141510.18
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
LEAST_TO_LOWER = 0.3  # overlap from which a lower min_overlap is worth a thought
LEAST_TO_TAKE = 0.8  # overlap from which what is missing may be taken for 0: the default of mapping
SHOWN = 5  # names of genes, or of batches, in a message
# What has an entry for each batch or label, beside NewColumns: `_extend_theta` and `_count_in` fill
# in those of new ones.
PER_LABEL = ("log_theta", "library_log_mean", "library_log_var", "batch_fraction", "covariate_mean")


# ------------------------------------------------------------------------ what is known, and new
class Reference(NamedTuple):
    """How many labels a model knew before it was mapped onto, for the first time if for several."""

    n_batches: int
    n_labels: Mapping[str, int]  # of each categorical covariate

    def described(self) -> dict[str, Any]:
        """The same as JSON has it, for the configuration of a model."""
        return {"n_batches": self.n_batches, "n_labels": dict(self.n_labels)}


class Parts(NamedTuple):
    """Parts of the conditions that `SCVI.conditions` makes, as slices of its columns."""

    known: list[slice]  # those that the reference was told
    new: list[slice]  # those of batches and labels that came later


def reference_from(
    description: Mapping[str, Any], n_batches: int, columns: ObsColumns
) -> Reference:
    """What `Reference.described` says, of a model with these batches and columns.

    ValueError for another description.
    """
    try:
        found = Reference(
            int(description["n_batches"]),
            {name: int(description["n_labels"][name]) for name in columns.categorical},
        )
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"reference: no description of a reference model ({error})") from error
    pairs = [(found.n_batches, n_batches)]
    pairs += [(found.n_labels[name], len(labels)) for name, labels in columns.categorical.items()]
    if not all(1 <= n_before <= n for n_before, n in pairs):
        raise ValueError(
            f"reference: {found.described()} does not fit a model of {n_batches} batches and its "
            "columns: it cannot have had more of them, nor none"
        )
    return found


def parts_of(n_batches: int, columns: ObsColumns, reference: Reference | None) -> Parts:
    """Which columns of the conditions are known, and which are new.

    A single batch, or label, is not told: it has no column. Where others have joined it, its own
    column is neither known nor new, and has no weights.
    """
    n_labels = n_labels_of(n_batches, columns)
    n_before = n_labels
    if reference is not None:
        n_before = [reference.n_batches, *(reference.n_labels[k] for k in columns.categorical)]
    parts = Parts([], [])
    start = 0
    for n, before in zip(n_labels, n_before):
        if n == 1:
            continue
        if before > 1:
            parts.known.append(slice(start, start + before))
        if n > before:
            parts.new.append(slice(start + before, start + n))
        start += n
    if columns.continuous:
        parts.known.append(slice(start, start + len(columns.continuous)))
    return parts


def n_labels_of(n_batches: int, columns: ObsColumns) -> list[int]:
    """How many batches there are, and labels of each categorical covariate."""
    return [n_batches, *(len(labels) for labels in columns.categorical.values())]


def n_conditions_in(parts: Iterable[slice]) -> int:
    """How many conditions these parts hold together."""
    return sum(part.stop - part.start for part in parts)


# --------------------------------------------------------------------------- layers that have grown
class NewColumns(Module):
    """y = V [new conditions]: from conditions (n, n_conditions) to (n, n_out).

    weight: V, (n_out, new), which starts at 0.
    """

    def __init__(self, n_out: int, parts: Parts, dtype: Any):
        self.weight = Parameter(np.zeros((n_out, n_conditions_in(parts.new))), dtype)
        self.parts = parts

    def __call__(self, conditions):
        return parts_from(conditions, self.parts.new) @ np.transpose(self.weight)


class Grown(Linear):
    """A Linear of x and conditions that has gained columns for new conditions.

    y = W [x, known conditions] + b + V [new conditions]. x: (n, n_in), dense or CSR; conditions:
    (n, n_conditions), of which parts says what is known and what is new. weight: W, (n_out, n_in +
    known); bias: (n_out,); new: V. Made of a Linear of x and all conditions, of the same shapes.

    W and V hold no weights of the model yet. W is the first columns of that Linear, whatever they
    are for, and V is 0: both only have the right shape, until `extended` or `load` writes into
    them.
    """

    def __init__(self, linear: Linear, n_conditions: int, parts: Parts):
        n_out, n_all = linear.weight.shape
        self.n_in = n_all - n_conditions
        self.parts = parts
        n_kept = self.n_in + n_conditions_in(parts.known)
        self.weight = Parameter(linear.weight.numpy()[:, :n_kept])
        self.bias = linear.bias
        self.new = NewColumns(n_out, parts, self.weight.dtype)

    def __call__(self, x, conditions=None):
        if self.parts.known:
            x = np.concatenate([dense(x), parts_from(conditions, self.parts.known)], axis=1)
        return functional.linear(x, self.weight, self.bias) + self.new(conditions)


def parts_from(x: Array, parts: Sequence[slice]) -> Array:
    """Parts of the conditions, or of their weights, x (n, n_conditions), side by side: (n, k)."""
    if not parts:
        return x[:, :0]
    return np.concatenate([x[:, part] for part in parts], axis=1)


def keep_apart(model: Any, reference: Mapping[str, Any]) -> None:
    """Let the model, an SCVI that was just made, have weights of new conditions beside the old.

    reference: as `Reference.described` says it; ValueError if it is something else.
    """
    known = reference_from(reference, model.n_batches, model.columns)
    model.config["reference"] = known.described()
    parts = parts_of(model.n_batches, model.columns, known)
    if not parts.new:
        return
    for layers in told_layers(model):
        layers.linears = [Grown(linear, model.n_conditions, parts) for linear in layers.linears]
    model.decoder.offsets = NewColumns(model.n_genes, parts, model.dtype)


def told_layers(model: Any) -> list[Any]:
    """The Layers of an SCVI that are told the conditions."""
    networks = [model.decoder]
    if model.config["encode_covariates"]:
        networks.append(model.z_encoder)
        if model.library == "latent":
            networks.append(model.l_encoder)
    return [network.layers for network in networks]


# ------------------------------------------------------------------------------ genes by their name
def share_genes(
    counts: Counts, genes: Sequence[str], min_overlap: float, whose: str = "the model"
) -> Counts:
    """These genes of the counts, in this order; those that are not there are 0 in all cells.

    A warning says how many these are. min_overlap: the least fraction of the genes that must be
    there. whose genes they are: for messages. The cells and their obs stay; `var` is kept where no
    gene is missing, and else says only which are there (measured.py). Genes of one name are told
    apart by their order, and "TBCE-1" is the second TBCE, as AnnData calls it. ValueError for fewer
    genes, and for genes of one name where the others stand in another order.
    """
    if not 0 < min_overlap <= 1:
        raise ValueError(f"min_overlap must be above 0, and at most 1, not {min_overlap!r}")
    names = counts.genes.tolist()
    if names == list(genes):
        return counts
    places = _places_of(genes, names, whose)
    missing = [name for name, place in zip(genes, places) if place < 0]
    if not missing:
        var = {key: values[places] for key, values in counts.var.items()}
        X = _placed(counts.X, places)
        return Counts(X, np.asarray(genes), counts.cells, counts.obs, var)
    is_measured = places >= 0
    measured_before = measured_in(counts)
    if measured_before is not None:
        is_measured &= measured_before[places]
    examples = ", ".join(missing[:SHOWN]) + " ..." * (len(missing) > SHOWN)
    n_found = len(genes) - len(missing)
    overlap = n_found / len(genes)
    if overlap < min_overlap:
        advice = _advice_on_names(counts, genes) or "pass counts with the same gene names"
        said = (
            f"{len(missing):,} of the {len(genes):,} genes of {whose} are not among the "
            f"{len(names):,} of the counts: {examples}; {advice}"
        )
        if min_overlap == 1 and overlap >= LEAST_TO_TAKE:
            said += f", or take those for 0 with min_overlap={LEAST_TO_TAKE:g}"
        elif min_overlap < 1 and overlap >= LEAST_TO_LOWER:
            said += (
                f", or at least {min_overlap:.0%} of them ({overlap:.1%} are there), or lower "
                f"min_overlap={min_overlap:g}"
            )
        raise ValueError(said)
    warnings.warn(
        f"counts: {n_found:,} of the {len(genes):,} genes of {whose} are there ({overlap:.1%}); "
        f"the other {len(missing):,} are taken for 0 in all cells: {examples}",
        stacklevel=3,
    )
    var = {IS_MEASURED: is_measured}
    return Counts(_placed(counts.X, places), np.asarray(genes), counts.cells, counts.obs, var)


def _advice_on_names(counts: Counts, genes: Sequence[str]) -> str | None:
    """What to do about names of genes that most of the model's have in another form here."""
    column = _column_of_names(counts, genes)
    if column is not None:
        return f"they stand in its column {column!r}: read it with gene_names={column}"
    here, there = counts.genes.tolist(), list(genes)
    example = _example_of_alike(here, there, str.upper)
    if example:
        return (
            f"most names differ in upper and lower case only ({example}): where that is spelling, "
            "bring it in line; between species, as mouse and human, translate the names by a table "
            "of orthologues"
        )
    example = _example_of_alike(here, there, lambda name: VERSION.sub("", name))
    if example:
        return (
            f"most names differ in the version behind the dot only ({example}): take it away from "
            "all names"
        )
    are_ids, were_ids = _are_ensembl(here), _are_ensembl(there)
    if are_ids != were_ids:
        forms = ("Ensembl ids", "symbols") if are_ids else ("symbols", "Ensembl ids")
        return (
            f"the counts name genes by {forms[0]} ({here[0]}), and {forms[1]} are asked for: read "
            f"them with gene_names=COLUMN, of the one that has those (there are: "
            f"{', '.join(counts.var) or 'none'})"
        )
    return None


def _example_of_alike(here: list[str], there: list[str], form: Callable[[str], str]) -> str:
    """A name here and that of the same form there, if most names there have such; else ""."""
    original = {form(name): name for name in there}
    known = set(there)
    alike = [name for name in here if name not in known and form(name) in original]
    if 2 * len(alike) <= len(there):
        return ""
    return f"{alike[0]} for {original[form(alike[0])]}"


def _are_ensembl(names: Sequence[str]) -> bool:
    """Whether most names of genes are ids of Ensembl, such as ENSG00000141510."""
    return 2 * sum(bool(ENSEMBL.match(name)) for name in names) > len(names)


def _column_of_names(counts: Counts, genes: Sequence[str]) -> str | None:
    """The column of var in which most of these names of genes are, and more than in their names.

    None where there is no such column: a folder may have the same names twice.
    """
    n_by_name = len(set(genes) & set(counts.genes.tolist()))
    for key, values in counts.var.items():
        n_found = len(set(genes) & set(values.astype(str).tolist()))
        if 2 * n_found > len(genes) and n_found > n_by_name:
            return key
    return None


def _places_of(genes: Sequence[str], names: Sequence[str], whose: str) -> np.ndarray:
    """The position of each of the genes (n,) among the names of the counts' genes; -1: not there.

    A warning for a name that more genes have than were asked for: the first are taken.
    """
    position = {name: i for i, name in enumerate(unique_names(names).tolist())}
    places = np.array([position.get(name, -1) for name in unique_names(genes).tolist()])
    here = [names[place] for place in places if place >= 0]  # "TBCE", where "TBCE-1" was asked for
    times, wanted = Counter(names), Counter(genes)
    shared = [name for name in dict.fromkeys([*here, *genes]) if max(times[name], wanted[name]) > 1]
    if shared and np.any(np.diff(places[places >= 0]) < 0):
        name = shared[0]
        owner = "the counts" if times[name] > 1 else whose
        raise ValueError(
            f"counts: {name!r} is the name of several genes of {owner}, and the genes stand in "
            "another order than those of the model: it cannot be known which is which; give "
            "every gene a name of its own (read(..., gene_names=...) takes them from a column), or "
            "bring them into the order of the model"
        )
    for name in shared:
        if times[name] > wanted[name] > 0:
            warnings.warn(
                f"counts: {name!r} is the name of {times[name]} genes of the counts, and of "
                f"{wanted[name]} of {whose}: taken is what comes first",
                stacklevel=4,
            )
    return places


def _placed(x: Matrix, places: np.ndarray) -> Any:
    """A matrix (n, len(places)) of the columns of x at these places; 0 where a place is -1."""
    is_there = places >= 0
    columns = places[is_there]
    targets = np.flatnonzero(is_there)
    n = len(places)
    if isinstance(x, Blocks):

        def read(start, stop):
            return _placed(x.read(start, stop), places)

        return Blocks(read, x.file_bounds, n, x.dtype, x.file_rows)
    if not sparse.issparse(x):
        found = np.zeros((len(x), n), x.dtype)
        found[:, targets] = x[:, columns]
        return found
    part = sparse.csr_array(x)[:, columns]
    part.sort_indices()
    indices = targets[part.indices].astype(part.indices.dtype)
    return sparse.csr_array((part.data, indices, part.indptr), shape=(part.shape[0], n))


def aligned(model: Any, counts: Any, min_overlap: float, layer: str | None = None) -> Counts:
    """Anything that holds counts as Counts of the genes of the model, an SCVI, in its order.

    Counts without names of genes, or for a model that knows none, must have as many as the model,
    and are taken for the same in the same order. ValueError for others, and as for `share_genes`.
    """
    x = as_matrix(counts, layer=layer, on_disk=True)
    names = genes_of(counts.raw if layer == "raw" else counts)
    n_cells, n_genes = x.shape
    cells = cells_of(counts)
    if cells is None:
        cells = [f"cell_{i}" for i in range(n_cells)]
    obs = getattr(counts, "obs", None)
    columns = {} if obs is None else {str(name): np.asarray(obs[name]) for name in obs}
    measured = measured_in(counts.raw if layer == "raw" else counts)
    var = {} if measured is None else {IS_MEASURED: measured}
    are_named = names is not None and model.genes is not None
    if not are_named and n_genes != model.n_genes:
        nameless = "counts have" if names is None else "the model has"
        raise ValueError(
            f"counts: {n_genes:,} genes for a model of {model.n_genes:,}, and {nameless} no names "
            "of genes to find them by; pass counts with names (AnnData, a DataFrame, or what "
            "models.counts.read returns) to a model that was trained on such"
        )
    if not are_named:
        names = model.genes or [f"gene_{i}" for i in range(n_genes)]
    found = Counts(x, np.asarray(names), np.asarray(cells), columns, var)  # type: ignore[arg-type]
    return share_genes(found, model.genes, min_overlap) if are_named else found


# ------------------------------------------------------------------------------------- the mapping
class Mapped(NamedTuple):
    """What `map_cells` returns."""

    model: Any  # an SCVI that knows the new batches, too
    history: History  # of the training of their weights


def map_cells(
    model: Any,
    counts: Any,
    batch: Array | str | None = None,
    *,
    name: str = "query",
    min_overlap: float = 0.8,
    epochs: int | None = None,
    batch_size: int = 128,
    validation: float = 0.1,
    learning_rate: float = 3e-2,
    seed: int | None = None,
    progress: bool = True,
    device: str | None = None,
    layer: str | None = None,
) -> Mapped:
    """What `MapsQueries.map_query` says, of an SCVI; with the history of the training.

    counts: (n_cells, n_genes); batch: (n_cells,). ValueError as there.
    """
    check_training(1, None, epochs, batch_size, learning_rate, kl_warmup=0.0)
    if not model.trained:
        raise ValueError("map_query: the model is not trained; call fit first, or load one that is")
    cells = aligned(model, counts, min_overlap, layer)
    batch = by_cell(batch, cells_of(counts), "batch")
    labels = _labels(model, cells, batch, name)
    query = extended(model, cells, labels.names)
    query.unmeasured = _unmeasured_by_batch(model, query, cells)
    chosen = training_cells(query, cells, np.array(labels.names)[labels.codes], None)
    rows = np.flatnonzero(_has_new(query, chosen))
    if len(rows) == 0:
        raise ValueError(
            f"batch: all cells are of batches that the model knows ({', '.join(labels.names)}), so "
            "there is nothing to learn: ask the model itself, or give the cells a batch of their "
            "own (name=, or other labels)"
        )
    _warn_of_known(model, labels)
    column = _column_of_batches(model, query, cells, batch, labels)
    query._know_columns(query.columns._replace(batch=column))
    warn_of_labels_that_are_none(labels.names, labels.codes)
    _warn_of_new_labels(model, cells)
    n_train = max(1, len(rows) - round(validation * len(rows)))
    _count_in(model, query, chosen, n_train)
    if epochs is None:
        epochs = epochs_of_mapping(n_train, batch_size)
    query.to(model.device)

    def optimizer(_):
        trained = new_weights(model, query)
        offsets = query.decoder.offsets.weight
        return AdamOfColumns(trained, learning_rate, OFFSET_PRECISION / n_train, offsets)

    with training_only(query, new_weights(model, query)):
        history = fit(
            NewWeights(query),
            _rows_of(query, chosen, rows),
            epochs=epochs,
            optimizer=optimizer,
            batch_size=batch_size,
            validation=validation,
            seed=model.config["seed"] if seed is None else whole_number("seed", seed, least=0),
            progress=progress,
            device=device,
        )
    return Mapped(query, history)


def epochs_of_mapping(n_cells: int, batch_size: int) -> int:
    """Epochs of a mapping that trains on n_cells: what makes N_STEPS steps, and 10 at least."""
    n_steps = max(1, round(n_cells / batch_size))  # of an epoch
    return max(10, -(-N_STEPS // n_steps))


# ------------------------------------------------------------------------------ cells of the query
class Labels(NamedTuple):
    """The batches of the cells of a query."""

    codes: np.ndarray  # (n_cells,), positions among the names
    names: list[str]


def _labels(model, cells: Counts, batch, name: str) -> Labels:
    """The batch of each cell: as given, or of the column that the model remembers, or `name`."""
    if batch is None and model.columns.batch in cells.obs:
        batch = model.columns.batch
    if batch is None:
        batch = np.full(len(cells), name)
    return Labels(*batch_codes(batch, len(cells), obs=cells.obs))


def _unmeasured_by_batch(model, query, cells: Counts) -> dict[str, list[str]]:
    """Names of the genes that each batch lacks: as the model knows, and of new ones these cells."""
    measured = measured_in(cells)
    if measured is None or measured.all():
        return dict(model.unmeasured)
    absent = cells.genes[~measured].tolist()
    new = query.batches[len(model.batches) :]
    return {**model.unmeasured, **{str(batch): absent for batch in new}}


def _warn_of_known(model, labels: Labels) -> None:
    """Warn where a batch of the query has the name of one of the model's."""
    known = {str(label) for label in model.batches}
    is_known = np.array([name in known for name in labels.names])
    if np.any(is_known):
        names = ", ".join(name for name in labels.names if name in known)
        n_cells = int(is_known[labels.codes].sum())
        warnings.warn(
            f"batch: {names} is known to the model: {n_cells:,} cells are taken for further cells "
            "of it, for which nothing is learnt; if they are of another batch, give it another "
            "name",
            stacklevel=4,
        )


def _column_of_batches(model, query, cells: Counts, batch, labels: Labels) -> str | None:
    """The obs column in which the query looks for batches: the model's, which the old cells have.

    None, with a warning, where it would take some of the new cells for those of another batch.
    """
    column = model.columns.batch
    is_named = batch is not None and not (isinstance(batch, str) and batch == column)
    if not is_named or column not in cells.obs:
        return column
    in_column = np.asarray(cells.obs[column]).astype(str)
    own = np.array(labels.names)[labels.codes]
    is_other = (in_column != own) & np.isin(in_column, [str(label) for label in query.batches])
    if not np.any(is_other):
        return column
    first = int(np.argmax(is_other))
    warnings.warn(
        f"batch: the model finds batches in the obs column {column!r}, where {is_other.sum():,} of "
        f"these cells are of another batch than here, the first of {in_column[first]} instead of "
        f"{own[first]}; the new model remembers no column: pass batch= whenever it is asked",
        stacklevel=4,
    )
    return None


def _warn_of_new_labels(model, cells: Counts) -> None:
    """Warn of labels of categorical covariates that the model does not know.

    A slip of the pen would get weights of its own, too.
    """
    for name, known in model.columns.categorical.items():
        codes, labels = model.columns.codes_in(cells.obs, name, len(cells))
        new = [i for i, label in enumerate(labels) if label not in known]
        if new:
            warnings.warn(
                f"categorical {name!r}: {', '.join(labels[i] for i in new)} unknown; the model "
                f"knows {', '.join(known)}: {np.isin(codes, new).sum():,} cells get weights of "
                "their own for it, as those of a new batch do; if it is another spelling, correct "
                "it",
                stacklevel=4,
            )


def _has_new(query, chosen: TrainingCells) -> np.ndarray:
    """Which cells have a batch or a label that is new, (n_cells,) bool."""
    parts = _parts(query)
    conditions = query.conditions(chosen.codes, chosen.covariates)
    if conditions is None:
        return np.zeros(len(chosen.codes), bool)
    return np.asarray(parts_from(conditions, parts.new).any(axis=1))


def _rows_of(query, chosen: TrainingCells, rows: np.ndarray) -> tuple:
    """The columns to train on, of these cells alone."""
    columns = [chosen.counts, chosen.codes]
    if query.columns.n_covariates:
        columns.append(chosen.covariates)
    return tuple(column[rows] for column in columns)


# ------------------------------------------------------------------------------------- the surgery
# In a layer that is told the conditions, each batch and each label has a column of weights: those
# of the reference are in W, those of all that came later in V. A mapping copies W, and makes V
# wider: what earlier mappings have learnt is copied into it, and the rest gets starting values. As
# V is a matrix of its own, nothing changes for cells that have none of what is new.
#
# A model of batches d1 and d2 and of one number, age, was mapped onto with d3, and now is with d4:
#
#                x      d1 d2 age        d3                   x      d1 d2 age        d3    d4
#     before [   W    |     W     ] + [  V  ]      after  [   W    |     W     ] + [  V  | mean ]
#
# The conditions themselves are in the order d1 d2 d3 d4 age. So weights are brought into theirs
# (`_by_condition`), new ones join those of their factor (`_with_new_labels`), and V is the new
# parts of the result (`parts_from`).


def extended(model: Any, cells: Counts, names: Sequence[str]) -> Any:
    """A copy of the model, an SCVI, that knows these batches and the labels of the cells as well.

    Weights and log theta of what is new are the mean of those of what is known, weighted by numbers
    of cells; offsets are 0. RuntimeError for a model with something else for each batch, of which
    nobody says here where it starts.
    """
    known = {str(label) for label in model.batches}
    batches = [*model.batches, *(name for name in names if name not in known)]
    columns = model.columns.with_labels_of(cells.obs, len(cells), cells.cells)
    reference = (
        model.config["reference"]
        or Reference(
            model.n_batches,
            {name: len(labels) for name, labels in model.columns.categorical.items()},
        ).described()
    )
    config = {"n_batches": len(batches), "columns": columns.described(), "reference": reference}
    query = type(model)(**{**model.config, **config})
    query.batches = batches
    query.genes = model.genes
    query.trained = True
    query.kl_warmup = model.kl_warmup
    query.load_state_dict(_state_so_far(model, query))
    is_free = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, p in query.named_parameters():
        p.requires_grad = is_free.get(name, True)
    _extend_layers(model, query)
    _extend_offsets(model, query)
    _extend_theta(model, query)
    return query.eval()


def _state_so_far(model, query) -> dict[str, Array]:
    """The state dict of the query, with all arrays of the model that keep their shape.

    RuntimeError for others that nothing here fills in.
    """
    modules = query.named_modules()
    widened = {f"{name}.weight" for name, module in modules if isinstance(module, NewColumns)}
    widened.update(PER_LABEL)
    before = model.state_dict()
    state = query.state_dict()
    for name, array in state.items():
        if name in before and before[name].shape == array.shape:
            state[name] = before[name]
        elif name not in widened:
            raise RuntimeError(
                f"map_query: {name} has shape {array.shape} with the new batches, and before "
                f"{np.shape(before.get(name))}; say in query.py where the new part starts"
            )
    return state


def _extend_layers(model, query) -> None:
    """V of each layer that is told the conditions: what the model has of it, and means."""
    new = _parts(query).new
    for old_layers, new_layers in zip(told_layers(model), told_layers(query)):
        for old, grown in zip(old_layers.linears, new_layers.linears):
            if isinstance(grown, Grown):
                weights = _with_new_labels(model, query, _by_condition(model, old), _mean)
                backend.assign(grown.new.weight.data, parts_from(weights, new))


def _extend_offsets(model, query) -> None:
    """The offsets of log rho: what the model has of them, and zeros."""
    if query.decoder.offsets is None:
        return
    offsets = np.zeros((model.n_genes, model.n_conditions), model.dtype)
    if model.decoder.offsets is not None:
        _put_back(model.decoder.offsets.weight.numpy(), _parts(model).new, offsets)
    offsets = _with_new_labels(model, query, offsets, _zero)
    backend.assign(query.decoder.offsets.weight.data, parts_from(offsets, _parts(query).new))


class Factor(NamedTuple):
    """The batches, or the labels of a categorical covariate."""

    conditions: slice  # those of its labels; none of a single label
    fractions: np.ndarray  # of cells that have each label


def _factors(model) -> list[Factor]:
    """The batches, and then the labels of each categorical covariate."""
    fractions = [backend.to_host(model.batch_fraction)]
    first = 0
    for width in model.columns.widths:
        fractions.append(backend.to_host(model.covariate_mean)[first : first + width])
        first += width
    factors = []
    start = 0
    for fraction in fractions:
        width = len(fraction) if len(fraction) > 1 else 0
        factors.append(Factor(slice(start, start + width), fraction))
        start += width
    return factors


def _by_condition(model, linear: Linear) -> np.ndarray:
    """The weights of all conditions in their order, (n_out, n_conditions); 0 where one has none."""
    n_conditions = model.n_conditions
    weight = linear.weight.numpy()
    if not isinstance(linear, Grown):
        return weight[:, weight.shape[1] - n_conditions :]
    found = np.zeros((len(weight), n_conditions), weight.dtype)
    _put_back(weight[:, linear.n_in :], linear.parts.known, found)
    _put_back(linear.new.weight.numpy(), linear.parts.new, found)
    return found


def _put_back(values: np.ndarray, parts: Sequence[slice], into: np.ndarray) -> None:
    """Write values, (n_out, k), into these parts of (n_out, n_conditions): undoes `parts_from`."""
    start = 0
    for part in parts:
        width = part.stop - part.start
        into[:, part] = values[:, start : start + width]
        start += width


def _with_new_labels(model, query, weights: np.ndarray, start: Callable) -> np.ndarray:
    """Weights of the conditions of the model, (n_out, n_conditions), as those of the query's.

    start: what a new label begins with, (n_out,), by the weights of the known labels of its factor,
    and the fractions of cells that have these. A single label has no weights, which means 0.
    """
    n_labels = n_labels_of(query.n_batches, query.columns)
    found = []
    for factor, n in zip(_factors(model), n_labels):
        known = weights[:, factor.conditions]
        if n > 1 and known.shape[1] == 0:
            known = np.zeros((len(weights), 1), weights.dtype)
        found.append(known)
        n_new = n - known.shape[1] if n > 1 else 0
        if n_new > 0:
            found.append(np.tile(start(known, factor.fractions)[:, None], n_new))
    n_numbers = len(model.columns.continuous)
    return np.hstack([*found, weights[:, weights.shape[1] - n_numbers :]])


def _mean(weights: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """The mean over labels of weights (n_out, k), by fractions of cells: (n_out,)."""
    if weights.shape[1] == 1:
        return weights[:, 0]
    return weights @ (fractions / fractions.sum()).astype(weights.dtype)


def _zero(weights: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.zeros(len(weights), weights.dtype)


def _extend_theta(model, query) -> None:
    """log theta of each gene and batch: that of a new batch is the mean of the known ones."""
    if model.dispersion == "gene-batch" and model.likelihood != "poisson":
        log_theta = model.log_theta.numpy()
        mean = _mean(log_theta, backend.to_host(model.batch_fraction))
        further = np.tile(mean[:, None], query.n_batches - model.n_batches)
        backend.assign(query.log_theta.data, np.hstack([log_theta, further]))


def _count_in(model, query, chosen: TrainingCells, n_train: int) -> None:
    """Moments of the library sizes of new batches, and how many cells have which labels.

    As in `SCVI.fit`, these are of all cells, those for validation too. n_train: new cells that are
    trained on.
    """
    log_totals = np.log(chosen.sums.totals)
    n_old = model.n_batches
    query.library_log_mean[:n_old] = backend.to_host(model.library_log_mean)
    query.library_log_var[:n_old] = backend.to_host(model.library_log_var)
    for code in range(n_old, query.n_batches):
        of_batch = log_totals[chosen.codes == code]
        if len(of_batch) == 0:  # its cells are all without counts
            of_batch = log_totals
        query.library_log_mean[code] = of_batch.mean()
        query.library_log_var[code] = max(of_batch.var(), LIBRARY_FLOOR)
    n_new = len(log_totals)
    n_before = _n_cells_of(model, n_new)
    query.n_cells = n_before + n_new
    if model.trained_on is not None:
        query.trained_on = {**model.trained_on, "rows": model.trained_on["rows"] + n_train}
    share = n_before / query.n_cells
    counted = np.bincount(chosen.codes, minlength=query.n_batches) / len(chosen.codes)
    query.batch_fraction[:] = (1 - share) * counted
    query.batch_fraction[:n_old] += share * backend.to_host(model.batch_fraction)
    if query.columns.n_covariates:
        before = _mean_in_new_columns(model, query)
        query.covariate_mean[:] = share * before + (1 - share) * chosen.covariates.mean(axis=0)


def _n_cells_of(model, n_new: int) -> int:
    """How many cells the model's `batch_fraction` is of.

    A file of an earlier version does not say so; those trained on come near it. Weights of
    scvi-tools say nothing: as many as are new.
    """
    if model.n_cells is not None:
        return max(1, int(model.n_cells))
    if model.trained_on is not None:
        return model.trained_on["rows"]
    return n_new


def _mean_in_new_columns(model, query) -> np.ndarray:
    """The mean of the model's table of covariates, with 0 for labels that it does not know."""
    means = [factor.fractions for factor in _factors(model)[1:]]
    found = []
    for mean, labels in zip(means, query.columns.categorical.values()):
        if len(labels) > 1:
            mean = mean if len(mean) else np.ones(1)  # all cells had the only label
            found.append(np.pad(mean, (0, len(labels) - len(mean))))
    n_numbers = len(model.columns.continuous)
    numbers = backend.to_host(model.covariate_mean)[len(model.covariate_mean) - n_numbers :]
    return np.concatenate([*found, numbers])


def _parts(model) -> Parts:
    """The parts of the conditions of an SCVI."""
    reference = model.config["reference"]
    if reference is not None:
        reference = reference_from(reference, model.n_batches, model.columns)
    return parts_of(model.n_batches, model.columns, reference)


# ------------------------------------------------------------------------------------ the training
class NewWeights(Module):
    """A model, an SCVI, whose new weights are trained; in all else it is as in evaluation.

    So running statistics stay, nothing is dropped or thinned, and the divergence has weight 1:

        loss = -ELBO = -E_q[log p(x | z, l)] + KL(q(z) || p(z)) + KL(q(l) || p(l))
    """

    def __init__(self, model: Any):
        self.model = model

    def train(self, mode: bool = True) -> Self:
        """Evaluation, whatever the mode."""
        return super().train(False)

    def loss(self, *minibatch, progress: float, rng: np.random.Generator) -> Tensor:
        """-ELBO of a minibatch, a scalar in nats: SCVI.loss, as at the end of a training."""
        return self.model.loss(*minibatch, progress=1.0, rng=rng)

    def validation(self, *minibatch, rng: np.random.Generator) -> dict:
        """The ELBO of each cell and its parts: SCVI.validation."""
        return self.model.validation(*minibatch, rng=rng)


class AdamOfColumns(optim.Adam):
    """Adam on some columns of each parameter.

    is_trained: parameter (n, k) -> which columns are trained, (k,) zeros and ones. A weight whose
    gradients are all 0 does not move. `decayed` is one of them, of which a normal prior joins the
    loss, as in recipe.py (`AdamForCounts`):

        loss = that of the data + weight_decay / 2 * sum(w^2)
    """

    def __init__(
        self,
        is_trained: Mapping[Tensor, Array],
        learning_rate: float,
        weight_decay: float,
        decayed: Tensor,
    ):
        super().__init__(is_trained, learning_rate)
        self.is_trained = is_trained
        self.weight_decay = float(weight_decay)
        self.decayed = decayed

    def step(self) -> None:
        """Adam's step, of these columns."""
        add_prior(self.decayed, self.weight_decay)
        for p, is_trained in self.is_trained.items():
            p.grad *= is_trained
        super().step()


def new_weights(model: Any, query: Any) -> dict[Tensor, Array]:
    """What the query, an extended copy of the model, has beyond it, for AdamOfColumns.

    Those are all NewColumns, and log_theta where there is one for each batch, (n, k) each; but for
    columns that the model has, too.
    """
    n_labels = n_labels_of(query.n_batches, query.columns)
    n_known = n_labels_of(model.n_batches, model.columns)
    is_new = [np.arange(n) >= known for n, known in zip(n_labels, n_known) if n > 1]
    is_new.append(np.zeros(len(query.columns.continuous), bool))
    of_parts = parts_from(np.concatenate(is_new)[None], _parts(query).new)[0]
    found = {
        module.weight: of_parts
        for _, module in query.named_modules()
        if isinstance(module, NewColumns)
    }
    if query.dispersion == "gene-batch" and query.likelihood != "poisson":
        found[query.log_theta] = np.arange(query.n_batches) >= model.n_batches
    return {
        p: backend.to_device(columns.astype(query.dtype), query.device)
        for p, columns in found.items()
    }


@contextmanager
def training_only(model: Module, trained: Collection[Tensor]) -> Iterator[None]:
    """Within, all parameters of the model are frozen, but for these, of any shapes."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    for p, _ in before:
        p.requires_grad = p in trained
    try:
        yield
    finally:
        for p, was in before:
            p.requires_grad = was


# ---------------------------------------------------------------------------------------- questions
def _first_of(names: list) -> str:
    """The first of names, and how many more there are."""
    more = f" and {number_of(len(names) - SHOWN, 'other')}" * (len(names) > SHOWN)
    return ", ".join(map(str, names[:SHOWN])) + more


class MapsQueries(Module):
    """What a trained model of counts does with cells of new batches (Lotfollahi et al. 2022).

    SCVI is such a model.
    """

    n_batches: int
    batches: list
    config: dict

    def _known(self) -> list[tuple[str, str]]:
        """(what, value) pairs, for people: batches of its own training, and those mapped since."""
        n_own = self.n_batches
        if self.config["reference"] is not None:
            n_own = self.config["reference"]["n_batches"]
        own, mapped = self.batches[:n_own], self.batches[n_own:]
        found = []
        if self.n_batches > 1:
            found.append(("batches", _first_of(own)))
        if mapped:
            found.append(("mapped since", _first_of(mapped)))
        return found

    def align_genes(
        self, counts: Any, min_overlap: float = 0.8, layer: str | None = None
    ) -> Counts:
        """The model's genes of any counts, in its order, as `map_query` takes them: for questions.

        counts: (n_cells, any number of genes), as for `fit`; their genes are found by name, and
        further ones left out. Those that are missing are 0 in all cells, with a warning that counts
        them; ValueError where fewer than the fraction min_overlap of the model's are there.
        """
        return aligned(self, counts, min_overlap, layer)

    def map_query(
        self,
        counts: Any,
        batch: Array | str | None = None,
        *,
        name: str = "query",
        min_overlap: float = 0.8,
        epochs: int | None = None,
        batch_size: int = 128,
        validation: float = 0.1,
        learning_rate: float = 3e-2,
        seed: int | None = None,
        progress: bool = True,
        device: str | None = None,
        layer: str | None = None,
    ) -> Self:
        """A model that knows the batches of these cells, too, and is the same for all others.

        Only weights of the new batches are trained, on these cells: columns of the layers' inputs
        and an offset of each gene. All others are frozen, and so are the running statistics of
        batch norm (architecture surgery, Lotfollahi et al. 2022; its code has no offsets).
        This model stays as it is. The cells that it was trained on have the same latent state in
        the new model, and the same likelihood, to the bit. The new one is an SCVI like any other:
        it can be saved, asked, mapped onto again, and trained on.

        **What becomes of z.** Unless the encoder is told the batch (encode_covariates=True), z of
        the new cells is what this model's `latent` says of them before any mapping: the surgery is
        of the decoder alone, and corrects likelihoods and expected expression. To have z see the
        new batches, train the reference with encode_covariates=True; what that does for the
        transfer of labels was within noise where it was measured.

        counts: (n_cells, any number of genes), as for `fit`. Genes are found by name; those that
        are missing are taken for 0, with a warning, if the fraction min_overlap of the model's is
        there; `align_genes` brings the same counts into the form in which the new model is asked
        about them. The new model remembers which were missing (measured.py): differential
        expression leaves them out, and other answers about them come with a warning; likelihoods
        count their zeros; ask with transform_batch, a known batch, what to expect of them. batch:
        as for `fit`; None: the obs column that the model remembers, or where the counts have none
        such, all cells are of one new batch called `name`. A label that the model knows is its
        batch, with a warning: nothing is learnt for these cells. A reference of one batch was told
        none; the new model tells it by its label (model.batches[0]). Covariates are found in
        counts.obs; new labels of categorical ones get weights as new batches do, numbers are
        standardised as before. Library sizes of new batches get moments of their own.

        The new model remembers the obs column that this one does, and no other that is named here,
        for that is where the old cells have their batches: name the other column when you ask about
        the new cells. Where some of these would be taken for cells of another batch by the column
        that is remembered, the new model forgets it, with a warning, and must always be told.

        epochs: None for 150 steps, and 10 epochs at least. validation: fraction of cells held out.
        seed: None for the model's. Other arguments are those of `fit`. ValueError for a model that
        is not trained, for too few genes, for cells of known batches only, fewer than two cells
        with counts, and as for `fit`.
        """
        return map_cells(
            self,
            counts,
            batch,
            name=name,
            min_overlap=min_overlap,
            epochs=epochs,
            batch_size=batch_size,
            validation=validation,
            learning_rate=learning_rate,
            seed=seed,
            progress=progress,
            device=device,
            layer=layer,
        ).model
