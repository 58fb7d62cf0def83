"""The command line: train scVI on a file of counts, and ask the trained model.

    {prog} train counts.h5ad --out run          a folder: checkpoint, settings, history
    {prog} import scvi_model --counts counts.h5ad --out run     a model that scvi-tools saved
    {prog} embed run --out latent.csv           latent coordinates of each cell
    {prog} denoise run --out denoised.npz       expected counts
    {prog} de run --key labels --groups B T     genes that two groups of cells express differently
    {prog} abundance run --sample-key donor --condition-key drug --out abundance.csv
                                                where one condition has more cells than another
    {prog} generate run --cells 1000 --out new.npz
    {prog} impute-score run                     how well hidden counts are recovered
    {prog} map run new.h5ad --out mapped        the model, with cells of new batches mapped onto it
    {prog} label latent.csv new.csv --labels types.csv --out labels.csv    types of new cells
    {prog} report run                           a page of pictures: run/index.html
    {prog} compare counts.h5ad --out trials     which likelihood and sizes suit these counts

COUNTS: .h5ad, .zarr, .h5 of 10x Genomics, .loom, .mtx, a 10x folder, .csv, .tsv or .txt (cells as
rows), .npz of sparse rows; several are joined on the genes that all have. Later commands read the
counts again from where train found them; another file may be given, and the model's genes are taken
from it by name. Tables go to standard output, progress and warnings to standard error. Files are
written whole or not at all. Exit codes: 0; 1 for a failure, with a line that says why (--debug: and
the traceback); 2 for wrong usage; 130 for Ctrl-C. What is to be written to files is written
whatever becomes of the two streams: a reader that leaves early, as head does, or a closed stream is
no failure; a table lost on a full disk is one.
"""

# This is engineering. (The text above is printed as help.) Know before reading: runs.py, which says
# what a run is, and argparse. A command is a function of its options; a test calls `main` with a
# list of words. Know after: what each command calls, so that a notebook can do the same.
from __future__ import annotations

import argparse
import inspect
import os
import shlex
import sys
import traceback
import unicodedata
import warnings
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from minigrad import checkpoint
from minigrad.notebook import for_number, number_of, short
from minigrad.parallel import LAUNCHERS, AnotherRankFailed, ranks_of
from models import (
    colors,
    comparison,
    imputation,
    latent_files,
    query,
    recipe,
    report,
    runs,
    streams,
)
from models.counts import HOW_TO_ROUND, Counts, empty_cells, library_size
from models.differential_table import aligned
from models.files import HOW_TO_ADD
from models.joining import FILE, names_of_files
from models.runs import Run
from models.scvi import SCVI
from models.transfer import transfer_labels

VARIED = ("likelihood", "n_latent", "n_layers", "n_hidden", "epochs")  # settings compared
PICTURES = (".png", ".pdf", ".svg")
OPTIONS = {
    "backed=True": "--on-disk",
    "only_annotated=True": "--only-annotated",
    "leave those cells out, or give": "leave those cells out (--only-annotated), or give",
    "leave them out, or give them a label": "leave them out (--only-annotated), or give them one",
    "fill it in, or leave the cell out": (
        "fill it in, or leave out cells without a value: --only-annotated"
    ),
    "transpose=True": "--transpose",
    HOW_TO_ROUND: "--round",
    "rounded=True": "--round",
    "rounded=False": "--no-round",
    HOW_TO_ADD: "--obs TABLE",
    "gene_names=": "--gene-names ",
    "min_overlap=": "--min-overlap ",
    "covariates: '": "--covariate: '",
    "ask the model itself": "give them as COUNTS to embed, de and the others",
    "name=, or other labels": "--batch-name, or other labels",
    "train without batch=": "train without --batch-key",
    "among categorical=": "among --categorical",
    "Give counts that have it: an AnnData object, or models.counts.Counts with obs": (
        "Give a table of the cells that has it: --obs TABLE"
    ),
    'layer="counts"': "--layer counts",
    'layer="raw"': "--layer raw",
    "transfer_labels: n_neighbors": "--neighbors",
    "transfer_labels: reference_z": "REFERENCE",
    "transfer_labels: query_z": "QUERY",
    "reference_z": "REFERENCE",
    "transform_batch=": "--transform-batch",
    "leave_out='cell'": "--leave-out cell",
    "say by group_a which is compared, and by group_b with which, or leave that out for all": (
        "say by --groups which is compared, and with which, or leave the second out for all"
    ),
    "library_size: ": "--library-size: ",
}  # in words of errors


class WrongUsage(Exception):
    """The words of the command line do not go together: exit code 2."""


# ----------------------------------------------------------------------------------------- commands
def train(options) -> int:
    """Train a model; a run that was killed goes on with --resume."""
    refuse_processes_apart(options)
    run = Run(options.out)
    ranks = ranks_of(options.parallel)
    options.is_first = ranks.rank == 0  # of several processes, the first alone writes and prints
    with ExitStack() as until_done:
        with ranks.preparing():
            if options.is_first:
                until_done.enter_context(run.owned())
        return train_run(run, ranks, options)


def train_run(run: Run, ranks, options) -> int:
    """The training itself, of a run that no other process trains."""
    with ranks.preparing():
        path, settings = training_settings(run, options)
        counts = runs.training_counts(path, settings)
        batch = (
            None
            if settings.get("batch_key") is None
            else runs.labels_of(counts, settings["batch_key"])
        )
        model = runs.new_model(counts, settings)
    with ranks.preparing():  # when all have seen whether the run is new
        if options.is_first and not run.checkpoint.exists():
            run.begin(path, settings)
    if options.is_first:
        say(
            sizes_of(counts)
            + f", {number_of(model.n_batches, 'batch', 'batches')}" * (batch is not None)
            + covariates_of(model)
            + f" of {name_of(path)}"
        )
        say(f"cells: {first_of(counts.cells)}; genes: {first_of(counts.genes)}")
    try:
        with fatal_errors_in_a_line(options):
            history = model.fit(
                counts,
                batch,
                checkpoint=run.checkpoint,
                resume=options.resume,
                device=options.device,
                parallel=options.parallel,
                **runs.fit_arguments(settings),
            )
        if options.is_first:
            run.write_history(history)
        if history.interrupted:
            raise KeyboardInterrupt
    except (
        KeyboardInterrupt
    ):  # which fit lets through when it comes again, while the last checkpoint is written
        if options.is_first:
            say(f"go on with: {how_to_go_on(run, options, ranks.size)}")
        raise
    if options.is_first:
        print_result(run, history)
    return 0


def sizes_of(counts: Counts) -> str:
    """How many cells and genes there are."""
    return f"{number_of(len(counts), 'cell')}, {number_of(counts.shape[1], 'gene')}"


def covariates_in(model) -> list[str]:
    """The obs columns of a model's covariates."""
    return [*model.columns.categorical, *model.columns.continuous]


def covariates_of(model) -> str:
    """The covariates of a model, to be said after its sizes; nothing where it has none."""
    names = covariates_in(model)
    return f", told {', '.join(names)}" if names else ""


def refuse_processes_apart(options) -> None:
    """WrongUsage where mpiexec started several processes that know nothing of each other: all would
    write the same run.
    """
    for size, rank in LAUNCHERS:
        n = os.environ.get(size, "")
        if options.parallel is None and n.isdecimal() and int(n) > 1:
            options.is_first = os.environ.get(rank, "0") == "0"
            raise WrongUsage(
                f"mpiexec started {n} processes, of which each would train, and write "
                f"{options.out}; add "
                "--parallel mpi, and they train one model together"
            )


@contextmanager
def fatal_errors_in_a_line(options):
    """Within, an error of one rank that ends all of them is shown as `main` shows errors.

    See Ranks.together.
    """
    before = sys.excepthook
    sys.excepthook = lambda kind, error, place: complain(error, options)
    try:
        yield
    finally:
        sys.excepthook = before


def name_of(path) -> str:
    """The path of counts, or of several."""
    return ", ".join(map(str, runs.paths_of(path)))


def first_of(names) -> str:
    """The first of some names, so that who reads them sees whether cells are cells."""
    return ", ".join(names[:3]) + ", ..." * (len(names) > 3)


def how_to_go_on(run: Run, options, n_ranks: int) -> str:
    """The command that goes on with an interrupted training."""
    command = f"{program()} train --resume --out {shlex.quote(str(run.folder))}"
    return (
        command
        if options.parallel is None
        else f"mpiexec -n {n_ranks} {command} --parallel {options.parallel}"
    )


def print_result(run: Run, history) -> None:
    """The last line of the history, as a table."""
    print(f"{'epochs':<28}{len(history)}\n{'seconds':<28}{sum(history['seconds']):.1f}")
    for name in [name for name in history.names if name.startswith(("train_", "validation_"))]:
        print(f"{name:<28}{history[name][-1]:.2f}")
    print(f"{'run':<28}{run.folder}")


def training_settings(run: Run, options) -> tuple[str, dict]:
    """(path of the counts, settings) of a new training, or with --resume those of the run.

    Nothing may contradict those of the run. With --settings both come from a comparison, except
    for what is given beside.
    """
    given = settings_given(options)
    if options.settings is not None:
        given = of_comparison(options, given)
    if not options.resume or options.counts is not None and not run.config_file.exists():
        if options.counts is None:
            raise WrongUsage(
                "COUNTS is missing (it is known from the run with --resume, and from a comparison "
                "with --settings)"
            )
        if run.checkpoint.exists():
            raise WrongUsage(
                f"{run.folder} holds a run already: go on with --resume, or give another --out"
            )
        check_together(run, options.counts, given)
        if isinstance(options.counts, list):
            given.setdefault("batch_key", FILE)
        return options.counts, given
    path, settings = run.config()
    if "reference" in settings:
        raise WrongUsage(
            f"{run.folder} was made by map, and there is nothing to go on with; map anew, to "
            "another --out"
        )
    for name, value in given.items():
        if settings.get(name) != value:
            option = "--" + name.removeprefix("n_").replace("_", "-").replace("rounded", "round")
            raise WrongUsage(
                f"{option} {value} contradicts {run.folder}, which was begun with "
                f"{settings.get(name, 'the default')}; leave it out to go on, or give another --out"
            )
    return options.counts or path, settings


def check_counts_together(given: dict, several: bool = False) -> None:
    """WrongUsage where the options that say what of the counts is seen do not go together.

    several: whether there are several files of counts, which have the batch that they are.
    """
    if "genes_from" in given and ("genes" in given or "selection" in given):
        raise WrongUsage(
            "--genes-from takes the genes that the file marks: leave out --genes and --selection"
        )
    if "selection" in given and "genes" not in given:
        raise WrongUsage("--selection says how to choose --genes N: give both")
    if "within_batches" in given and not ("genes" in given and ("batch_key" in given or several)):
        raise WrongUsage("--within-batches says how to choose --genes N: give it and --batch-key")


def settings_given(options) -> dict:
    """Those of the options that are settings of a run: name -> value."""
    return {
        name: value
        for name, value in vars(options).items()
        if name in (*runs.COUNTS, *runs.MODEL, *runs.FIT)
    }


def of_comparison(options, given: dict) -> dict:
    """The settings that a comparison came to, with those given beside in their place.

    The counts are those of the comparison too, unless others are given.
    """
    path, best = comparison.read_best(options.settings)
    if options.counts is None:
        options.counts = path
    said = ", ".join(f"{name} {value}" for name, value in {**best, **given}.items())
    replaced = [name for name, value in given.items() if name in best and best[name] != value]
    beside = f" (given beside: {', '.join(replaced)})" if replaced else ""
    if options.is_first:
        say(f"settings of {options.settings}: {said}{beside}")
    return {**best, **given}


def check_together(run: Run, path, given: dict) -> None:
    """WrongUsage where the options of a new training do not go together."""
    tables = runs.paths_of(given.get("obs") or ())
    if any(is_same(p, file) for p in tables for file in run.files):
        raise WrongUsage(
            f"--obs {name_of(tables)} has the name of a file of the run, and would be replaced; "
            "give another --out"
        )
    if any(is_same(p, file) for p in runs.paths_of(path) for file in run.files):
        raise WrongUsage(
            f"COUNTS {name_of(path)} has the name of a file of the run, and would be replaced; "
            "give another --out"
        )
    check_counts_together(given, several=isinstance(path, list))
    if given.get("selection") == "pearson" and "on_disk" in given:
        raise WrongUsage(
            "--selection pearson needs all counts in memory; leave out --on-disk, or choose by "
            "variance"
        )
    if "early_stopping" in given and given.get("validation") == 0:
        raise WrongUsage(
            "--early-stopping looks at cells held out, and --validation 0 holds out none; raise it"
        )


def map_query(options) -> int:
    """Map cells of new batches onto the trained model of RUN: weights of the new batches are
    trained, on these cells alone, and all else stays as it is, so that the cells of RUN keep their
    latent coordinates to the last bit. What comes is a run like any other, of QUERY. Unless RUN was
    trained with --encode-covariates, latent coordinates of QUERY are those that RUN would give;
    expected counts are corrected in any case. Types of the new cells: embed both runs, then
    label."""
    source, run = Run(options.run), Run(options.out)
    model = source.model()
    if run.checkpoint.exists():
        raise WrongUsage(f"{run.folder} holds a run already; give another --out")
    if options.batch_key is not None and options.batch_name is not None:
        raise WrongUsage("--batch-name is for cells that are all of one batch: leave out one")
    settings = reading_asked(options) | {
        name: value
        for name in ("layer", "on_disk", "batch_key", "batch_name", "min_overlap")
        if (value := getattr(options, name)) not in (None, False)
    }
    settings["reference"] = os.path.abspath(options.run)
    with run.owned():
        key = column_of_query(source, options)
        told = [*([] if key is None else [key]), *covariates_in(model)]
        counts = runs.read_counts(
            options.counts, options.layer, options.on_disk, runs.reading_of(settings), told
        )
        settings |= batch_of_query(key, counts, options)
        genes = model_genes(model)
        n_found = len(set(genes) & set(counts.genes.tolist()))
        say(
            f"{number_of(len(counts), 'cell')} of {name_of(options.counts)}, with {n_found:,} of "
            f"the {number_of(len(genes), 'gene')} of {options.run} ({n_found / len(genes):.1%})"
        )
        say(f"cells: {first_of(counts.cells)}; genes: {first_of(counts.genes)}")
        if "batch_key" in settings:
            batch = runs.labels_of(counts, settings["batch_key"])
        else:
            batch = np.full(len(counts), settings["batch_name"])
        mapped = query.map_cells(
            model,
            runs.genes_by_name(counts, genes, str(options.run), options.min_overlap),
            batch,
            epochs=options.epochs,
            seed=options.seed,
            device=options.device,
        )
        if mapped.history.interrupted:
            raise KeyboardInterrupt
        known = len(model.batches)
        say(f"new batches: {', '.join(mapped.model.batches[known:]) or 'none'}")
        run.begin(options.counts, settings)
        run.write_model(mapped.model, mapped.history)
        run.write_history(mapped.history)
    print_result(run, mapped.history)
    return 0


def column_of_query(source: Run, options) -> str | None:
    """The obs column in which batches of a query are looked for; None: all cells are of one batch.

    As the options say; else the file, where there are several, or the column of the run.
    """
    if options.batch_key is not None or options.batch_name is not None:
        return options.batch_key
    return FILE if isinstance(options.counts, list) else source.config()[1].get("batch_key")


def batch_of_query(key: str | None, counts: Counts, options) -> dict:
    """The settings that say which batches the cells of a query are of, beside the options.

    By the column of `column_of_query`, where the counts have it; else all are of one batch, with
    the name of the file.
    """
    if options.batch_key is not None or options.batch_name is not None:
        return {}
    if key in counts.obs:
        return {"batch_key": key}
    return {"batch_name": names_of_files([options.counts])[0]}


def compare(options) -> int:
    """Train scVI in all combinations of --likelihood, --latent, --layers, --hidden and --epochs,
    and compare them by the log p of a fifth of the cells, which no training sees, beside two ways
    without a model. Prints a table and says which settings are equally good within error, and which
    of these is the simplest; writes it to DIR as comparison.csv and comparison.png. `train
    --settings DIR` then trains that one on all cells. The same command again goes on with a
    comparison that was stopped or killed, or adds settings to it. All counts are held in memory,
    and once more in each process.
    """
    folder = Path(options.out)
    settings = settings_given(options)
    varied = {name: settings.pop(name) for name in VARIED if name in settings}
    if len(set(settings.get("library", []))) > 1:
        raise WrongUsage(
            "--library: a model with an observed and one with a latent library cannot be compared, "
            "as the former is told each cell's total; give one of the two"
        )
    if "library" in settings:
        settings["library"] = settings["library"][0]
    if "on_disk" in settings:
        raise WrongUsage(
            "--on-disk: compare holds all counts in memory, and once more in each process; leave "
            "it out, and compare on fewer cells where they are too many: train --settings DIR "
            "--on-disk then takes all of them"
        )
    several = isinstance(options.counts, list)
    check_counts_together(settings, several)
    files = [folder / name for name in ("comparison.csv", "comparison.png", "best.json")]
    tables = runs.paths_of(settings.get("obs") or ())
    for read_from, what in ((runs.paths_of(options.counts), "COUNTS"), (tables, "--obs")):
        for path in read_from:
            if any(is_same(path, file) for file in files):
                raise WrongUsage(
                    f"{what} {path} has the name of a file of the comparison, and would be "
                    "replaced; give another --out"
                )
    of_counts = {name: settings.pop(name) for name in runs.COUNTS if name in settings}
    if several:
        of_counts.setdefault("batch_key", FILE)
    also = [] if options.labels is None else [options.labels]
    counts = runs.training_counts(options.counts, of_counts, also)
    key = of_counts.get("batch_key")
    say(f"{sizes_of(counts)} of {name_of(options.counts)}")
    try:
        table = comparison.compare(
            counts,
            None if key is None else runs.labels_of(counts, key),
            categorical=of_counts.get("categorical", ()),
            continuous=of_counts.get("continuous", ()),
            labels=None if options.labels is None else runs.labels_of(counts, options.labels),
            n_samples=options.samples,
            seeds=options.seeds,
            jobs=options.jobs,
            out=folder,
            **varied,
            **settings,
        )
    except KeyboardInterrupt:
        say("the same command goes on where it was")
        raise
    print(harmless(str(table)))
    chosen = table.best  # an error, where all settings have failed
    csv, picture, best = files
    table.to_csv(csv)
    table.plot(picture)
    taken = {**of_counts, **settings, **chosen.config(), **chosen.fit()}
    comparison.write_best(folder, options.counts, taken)
    say(f"written: {csv}, {picture}, and {best} for train --settings {folder}")
    return 0


def take_over(options) -> int:
    """Take over a model that scvi-tools trained and saved, as a run that the other commands take.
    FOLDER is what its `save` wrote, of which no code is run. COUNTS, with the genes of the model
    and the columns of its batches and covariates, are those that later commands read, and say how
    many counts cells have, where the model does not."""
    run = Run(options.out)
    if run.checkpoint.exists():
        raise WrongUsage(f"{run.folder} holds a run already; give another --out")
    model = SCVI.from_scvi_tools(options.folder)
    reading = reading_asked(options)
    told = runs.columns_told(runs.settings_of(model))
    everything = runs.read_counts(options.counts, options.layer, reading=reading, told=told)
    overlap = options.min_overlap or 1.0
    counts = runs.genes_by_name(everything, model_genes(model), min_overlap=overlap)
    x, codes, _ = model.minibatches(counts).columns
    totals = library_size(x)
    if model.library == "observed" and totals.any():
        recipe.start_library_prior(model, totals[totals > 0], codes[totals > 0])
    settings = {"layer": options.layer, **reading, **runs.settings_of(model)}
    settings["min_overlap"] = options.min_overlap
    with run.owned():
        run.begin(options.counts, {key: v for key, v in settings.items() if v is not None})
        model.save(run.checkpoint)
    say(f"{sizes_of(counts)}, {number_of(model.n_batches, 'batch', 'batches')}")
    print(f"{'run':<28}{run.folder}")
    return 0


def embed(options) -> int:
    """Latent coordinates: the mean of q(z | x) of each cell."""
    run, kind = Run(options.run), output("--out", options.out)
    model = run.model()
    counts, path, batch = of_run(run, options, model, is_own_batch_decoded=False)
    is_added = runs.is_h5ad(path) and not runs.why_not_added(path, counts, "obsm")
    keep_counts(run, path, "--out", options.out, is_added, options.obs)
    if kind == ".csv":
        latent_files.check_beside(options.out)
    told = genes_of(run, model, counts, options)
    has_counts = ~empty_cells(told.X)
    n_empty = int(np.sum(~has_counts))
    if n_empty:
        warnings.warn(
            f"{n_empty:,} of {number_of(len(told), 'cell')} {for_number(n_empty, 'has', 'have')} "
            "no counts of the run's genes: their "
            "coordinates say nothing, and label gives them no label",
            stacklevel=2,
        )
    z: Any = model.latent(told, batch)
    names = [f"z{i}" for i in range(z.shape[1])]
    space = latent_files.space_of(model)
    known = {"space": space, "has_counts": has_counts}
    runs.write_cells(options.out, counts, "obsm", "X_scVI", z, names, source=path, known=known)
    if kind == ".csv":
        latent_files.write_beside(options.out, space, has_counts)
    sizes = f"{number_of(len(z), 'cell')} x {number_of(z.shape[1], 'dimension')}"
    say(f"{sizes}, {kind} written: {options.out}")
    return 0


def denoise(options) -> int:
    """Expected counts of each cell and gene: the mean mu of the negative binomial.

    The table is dense, and held in memory: of all genes, or of those that --genes names.
    """
    run, kind = Run(options.run), output("--out", options.out)
    model = run.model()
    is_own_batch_decoded = options.transform_batch is None
    everything, path, batch = of_run(run, options, model, is_own_batch_decoded)
    counts = genes_of(run, model, everything, options)
    is_added = (
        counts is everything
        and options.genes is None
        and runs.is_h5ad(path)
        and not runs.why_not_added(path, counts, "layers")
    )
    keep_counts(run, path, "--out", options.out, is_added, options.obs)
    mu = model.denoise(
        counts,
        batch,
        library_size=options.library_size,
        transform_batch=options.transform_batch,
        n_samples=options.samples,
        seed=options.seed,
        genes=options.genes,
    )
    if options.genes is not None:
        position = {name: i for i, name in enumerate(counts.genes.tolist())}
        counts = counts.select_genes(np.array([position[name] for name in options.genes]))
    runs.write_cells(
        options.out,
        counts,
        "layers",
        "scvi_denoised",
        mu,
        counts.genes,
        source=path if counts is everything else None,
    )
    sizes = f"{number_of(len(mu), 'cell')} x {number_of(mu.shape[1], 'gene')}"
    say(f"{sizes}, {kind} written: {options.out}")
    return 0


def impute_score(options) -> int:
    """Hide counts, train anew on the rest with the settings of the run, and see how well what was
    hidden is recovered: the median absolute error over hidden entries, beside that of each gene's
    mean and of PCA (10 components of normalised log1p counts). The run itself has seen all counts,
    and is not used. Memory: all counts, and n_cells x n_genes for what is imputed."""
    run = Run(options.run)
    _, settings = run.config()
    model = run.model()
    everything, _, batch = of_run(run, options, model)
    counts = genes_of(run, model, everything, options)
    arguments = runs.fit_arguments(settings) | (
        {} if options.epochs is None else {"epochs": options.epochs}
    )

    def impute(x):
        corrupted = Counts(x, counts.genes, counts.cells, counts.obs)
        # Not what the run's own counts led to, nor what map did.
        asked = {"dropout": settings.get("dropout"), "reference": None}
        fresh = type(model)(**{**model.config, **asked})
        say(f"training anew on what is left: {x.nnz:,} counts above 0")
        fresh.fit(corrupted, batch, device=options.device, **arguments)
        say("imputing what was hidden, by the model, the genes' means and PCA")
        return fresh.to("numpy").denoise(corrupted, batch, n_samples=10)

    found = imputation.imputation_error(
        counts, impute, fraction=options.fraction, seed=options.seed
    )
    print(f"{options.fraction:.0%} of the counts above 0 hidden; median absolute error, in counts")
    for name, value in found.items():
        print(f"{name:<12}{value:.4f}")
    return 0


def de(options) -> int:
    """A table of the genes that groups of cells express differently, most certain first. Bayes
    factors are no p-values. With one label, group b is all other cells, those without a label
    included; with --all-groups, each label in turn is group a."""
    if (options.groups is None) != options.all_groups:
        raise WrongUsage("give either --groups LABEL [LABEL] or --all-groups")
    asked = options.groups or []
    if len(asked) > 2:
        raise WrongUsage(
            f"--groups takes one label or two, not {len(asked)}: {', '.join(asked)}; for every "
            "group against the rest, give --all-groups in its place"
        )
    if len(set(asked)) < len(asked):
        raise WrongUsage(
            f"--groups: both are {asked[0]!r}; give two that differ, or one, for it against the "
            "rest"
        )
    targets = [
        (option, path, allowed)
        for option, path, allowed in (
            ("--csv", options.csv, (".csv",)),
            ("--volcano", options.volcano, PICTURES),
        )
        if path is not None
    ]
    for target in targets:
        output(*target)
    run = Run(options.run)
    model = run.model()
    counts, read_from, batch = of_run(run, options, model)
    for option, path, _ in targets:
        keep_counts(run, read_from, option, path, obs=options.obs)
    table = model.differential_expression(
        genes_of(run, model, counts, options),
        group_a=asked[0] if asked else None,
        group_b=asked[1] if len(asked) > 1 else None,
        groupby=options.key,
        mode=options.mode,
        delta=options.delta,
        fdr=options.fdr,
        n_samples=options.samples,
        batch=batch,
        genes=model_genes(model),
        seed=options.seed,
    )
    print(harmless(f"groups of {options.key}\n{table.head(options.rows)}"))
    for path, write in ((options.csv, table.to_csv), (options.volcano, table.volcano)):
        if path is not None:
            write(path)
            say(f"written: {path}")
    return 0


def abundance(options) -> int:
    """Where in the latent space samples of one condition have more cells than those of another. For
    each cell: the log of the ratio of the densities of both conditions around it (0: the same share
    of their cells lies there; 0.69: twice the share in a; -0.69: in b), its error, which is large
    where few cells are near, and in what proportion of pairs of samples that of a is the denser
    one. The cell's own sample is left out, as every cell is near to itself."""
    output("--out", options.out, (".csv",))
    asked = options.groups or [None]
    if len(asked) > 2:
        raise WrongUsage(f"--groups takes one label or two, not {len(asked)}: {', '.join(asked)}")
    run = Run(options.run)
    model = run.model()
    counts, read_from, batch = of_run(run, options, model, is_own_batch_decoded=False)
    keep_counts(run, read_from, "--out", options.out, obs=options.obs)
    labels = None if options.key is None else runs.labels_of(counts, options.key)
    table = model.differential_abundance(
        genes_of(run, model, counts, options),
        runs.labels_of(counts, options.sample_key),
        runs.labels_of(counts, options.condition_key),
        *asked,
        n_neighbors=options.neighbors,
        leave_out=options.leave_out,
        batch=batch,
    )
    print(harmless(str(table)))
    if labels is not None:
        columns = table.by(labels)
        shown = {name: [short(value) for value in values] for name, values in columns.items()}
        print(harmless(f"medians by {options.key}\n" + "\n".join(aligned(shown))))
    table.to_csv(options.out)
    say(f"written: {options.out}")
    return 0


def generate(options) -> int:
    """Counts of new cells: z from the prior, library sizes, batches and labels of covariates as in
    the training, numbers at their mean. What each cell was told is in its columns of obs."""
    run, kind = Run(options.run), output("--out", options.out)
    model = run.model()
    keep_counts(run, run.config()[0], "--out", options.out)
    found, obs = model.generate(
        options.cells,
        batch=options.batch,
        covariates=covariates_asked(model, options.covariate),
        library_size=options.library_size,
        seed=options.seed,
        return_obs=True,
    )
    x = sparse.csr_array(found)
    names = np.array([f"generated_{i}" for i in range(x.shape[0])])
    runs.write_counts(options.out, Counts(x, np.array(model_genes(model)), names, obs))
    if obs and kind == ".csv":
        say(f"a table has no place for {', '.join(obs)} of each cell: .npz and .h5ad have")
    sizes = f"{number_of(x.shape[0], 'cell')} x {number_of(x.shape[1], 'gene')}"
    say(f"{sizes}, {kind} written: {options.out}")
    return 0


def covariates_asked(model, words: list[str] | None) -> dict:
    """obs column -> the value that COLUMN=VALUE says; WrongUsage for what is no such thing."""
    found: dict = {}
    for word in words or []:
        name, separator, value = word.partition("=")
        if not separator:
            raise WrongUsage(f"--covariate {word}: must be COLUMN=VALUE")
        found[name] = value
        if name in model.columns.continuous:
            try:
                found[name] = float(value)
            except ValueError:
                raise WrongUsage(f"--covariate {word}: {name} is a number of each cell") from None
    return found


def label(options) -> int:
    """Types of new cells, from the nearest cells whose types are known, and how uncertain they are:
    the share of the weighted votes that went to other types. REFERENCE and QUERY are latent
    coordinates of one model, or of one and those that map made of it, as embed writes them to .csv
    or .npz; those of different models are refused. A cell without counts gets no label."""
    output("--out", options.out, (".csv",))
    inputs = (options.reference, options.query, options.labels)
    if any(is_same(path, options.out) for path in inputs):
        raise WrongUsage(f"--out {options.out} would replace what is read; give another path")
    reference = latent_files.read_latent(options.reference)
    query = latent_files.read_latent(options.query)
    latent_files.refuse_other_space(reference, query)
    for path, latent in ((options.reference, reference), (options.query, query)):
        if latent.space is None:
            warnings.warn(
                f"{path} does not say which model its coordinates are of, as files of embed do: "
                "if REFERENCE and QUERY are of different models, the labels mean nothing",
                stacklevel=2,
            )
    labels = latent_files.read_labels(options.labels, options.column, reference.cells)
    is_labelled = np.array([value is not None for value in labels])
    if not is_labelled.all():
        say(f"{some_of(~is_labelled, 'REFERENCE')} no label: left out")
    if not reference.has_counts.all():
        say(f"{some_of(~reference.has_counts, 'REFERENCE')} no counts: left out")
    asked = is_labelled & reference.has_counts
    if not asked.any():
        raise ValueError(f"{options.reference}: no cell has both a label and counts")
    if not query.has_counts.any():
        raise ValueError(f"{options.query}: no cell has counts, so that none can be labelled")
    found = transfer_labels(
        reference.z[asked],
        labels[asked].astype(str),
        query.z[query.has_counts],
        options.neighbors,
    )
    of_all = np.full(len(query.cells), "", dtype=object)
    of_all[query.has_counts] = found.labels
    uncertainty = np.ones(len(query.cells))
    uncertainty[query.has_counts] = found.uncertainty
    if not query.has_counts.all():
        say(f"{some_of(~query.has_counts, 'QUERY')} no counts: without label, uncertainty 1")
    runs.write_table(
        options.out,
        ["cell", "label", "uncertainty"],
        zip(query.cells.tolist(), of_all.tolist(), uncertainty.tolist()),
    )
    print(f"{'label':<32}{'cells':>8}{'mean uncertainty':>18}")
    for name, count in zip(*np.unique(found.labels, return_counts=True)):
        mean = found.uncertainty[found.labels == name].mean()
        print(f"{harmless(name):<32}{count:>8,}{mean:>18.3f}")
    say(f"{number_of(len(query.z), 'cell')}, .csv written: {options.out}")
    return 0


def some_of(are_meant: np.ndarray, whose: str) -> str:
    """How many cells (n,) of whose have something, up to what they have."""
    n = int(np.sum(are_meant))
    n_all = number_of(len(are_meant), "cell")
    return f"{n:,} of {n_all} of {whose} {for_number(n, 'has', 'have')}"


def make_report(options) -> int:
    """A page of pictures, one HTML file: training curves, latent space, use of its dimensions,
    counts of genes and library sizes in the data and in draws from the model. Of large data a
    random 3,000 cells are looked at. A label keeps its colour: in RUN/colors.json, which may be
    edited by hand, for later reports of this run and, with --colors-from, of others."""
    run, out = Run(options.run), options.out or Path(options.run) / "index.html"
    model = run.model()
    output("--out", out, (".html",))
    if options.out is None:
        run.check_target(out)
    counts, path, batch = of_run(run, options, model)
    keep_counts(run, path, "--out", out, obs=options.obs)
    labels = None if options.color is None else runs.labels_of(counts, options.color)
    known = run.colors() | colors_from(options.colors_from)
    used = report.write(
        out,
        model,
        run.history(),
        genes_of(run, model, counts, options),
        batch,
        labels,
        options.color or "cluster",
        title=f"{run.folder.name}: scVI on " + ", ".join(Path(p).name for p in runs.paths_of(path)),
        colors=known,
    )
    try:
        run.keep_colors(used)
    except OSError as error:  # the page is what was asked for
        warnings.warn(f"later reports may have other colours: {sentence(error)}", stacklevel=1)
    say(f"written: {out}")
    return 0


def colors_from(path: Path | None) -> dict[str, str]:
    """Name of a label -> its colour, in the reports of the run with this folder or page.

    WrongUsage where there was no report.
    """
    if path is None:
        return {}
    run = Run(path if path.is_dir() else path.parent)
    if not run.colors_file.is_file():
        raise WrongUsage(
            f"--colors-from {path}: there is no {run.colors_file}; make a report of that run first"
        )
    return colors.read_colors(run.colors_file)


def of_run(run: Run, options, model, is_own_batch_decoded: bool = True) -> tuple:
    """(counts with all their genes, their path, batch labels or None), as options and run say.

    is_own_batch_decoded: whether the decoder is told each cell's own batch. Where it is not, nor
    the encoder, and where the model has but one, it is looked for only if an option names its
    column.
    """
    on_disk = getattr(
        options, "on_disk", False
    )  # None where the option is there, and was not given
    reading = reading_asked(options)
    told = covariates_in(model)
    if getattr(options, "only_annotated", None):
        options_of_columns = ("key", "color", "sample_key", "condition_key")
        asked = [getattr(options, name, None) for name in options_of_columns]
        told += [name for name in asked if name is not None]
    counts, path, key = run.counts(
        options.counts, options.layer, options.batch_key, on_disk, reading, told
    )
    is_told = is_own_batch_decoded or model.config["encode_covariates"]
    is_batch_needed = is_told and model.n_batches > 1
    if not is_batch_needed:
        key = options.batch_key
    if key is not None:
        return counts, path, runs.labels_of(counts, key)
    name = run.config()[1].get("batch_name")  # of all the cells that map was given
    if not is_batch_needed or name is None or options.counts is not None:
        return counts, path, None
    return counts, path, np.full(len(counts), name)


def reading_asked(options) -> dict:
    """How a file of counts is to be read, as options say: arguments of counts.read."""
    asked = {name: getattr(options, name, None) for name in runs.READING}
    is_refusal = {"rounded": False}  # --no-round; else what is false was not given
    return {name: value for name, value in asked.items() if value or {name: value} == is_refusal}


def genes_of(run: Run, model, counts, options) -> Counts:
    """The genes of the run's model, by name; missing ones are taken for 0 as far as the options
    allow it, or the run, as one does that map made.
    """
    overlap = options.min_overlap or run.config()[1].get("min_overlap", 1.0)
    return runs.genes_by_name(counts, model_genes(model), min_overlap=overlap)


def model_genes(model) -> list:
    """Names of the model's genes."""
    return model.genes if model.genes is not None else [f"gene_{i}" for i in range(model.n_genes)]


def output(option: str, path, allowed: tuple = runs.SUFFIXES) -> str:
    """The kind of file that an option asks for, before any work is done for it. WrongUsage for one
    that is not allowed, OSError or ImportError where it could not be written."""
    try:
        kind = runs.suffix(path, allowed)
    except ValueError as error:
        raise WrongUsage(f"{option} {error}") from None
    checkpoint.check_target(path)
    if kind == ".h5ad":
        runs.h5ad_packages(path)
    return kind


def keep_counts(run: Run, read_from, option: str, target, is_added: bool = False, obs=()) -> None:
    """WrongUsage where the file that an option asks for is one of counts, of what is known of their
    cells, or of the run, or any .h5ad that is there: it would be lost.

    read_from: the path of the counts that were read. is_added: results are added to an .h5ad of
    counts, and nothing is lost. obs: paths of the tables of cells that were given beside.
    """
    if is_added and runs.is_h5ad(target) and is_same(read_from, target):
        return
    trained_on, settings = run.config()
    of_cells = [*runs.paths_of(obs or ()), *runs.paths_of(settings.get("obs") or ())]
    for path, what in (
        *((path, "the counts") for path in runs.paths_of(read_from)),
        *((path, "the counts that the run was trained on") for path in runs.paths_of(trained_on)),
        *((path, "what is known of the cells (--obs)") for path in of_cells),
        *((path, "a file of the run") for path in run.files),
    ):
        if is_same(path, target):
            raise WrongUsage(
                f"{option} {target} is {what}, and would be replaced; give another path"
            )
    if runs.is_h5ad(target) and os.path.exists(target):
        raise WrongUsage(
            f"{option} {target} is there already, and all that it holds would be lost: results are "
            "added to an .h5ad only where it is the COUNTS that are read; name a new file"
        )


def is_same(a, b) -> bool:
    """Whether two paths lead to one file, which is there."""
    return os.path.exists(a) and os.path.exists(b) and os.path.samefile(a, b)


# -------------------------------------------------------------------------------- what can be typed
def whole(least: int):
    """A function from text to a whole number that is not below the least, for argparse."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"must be a whole number of at least {least}, not {text!r}"
            )
        return int(text)

    return parse


def number(allowed, words: str):
    """A function from text to a float for which `allowed` holds, for argparse; words say which."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = np.nan
        if not allowed(value):
            raise argparse.ArgumentTypeError(f"must be {words}, not {text!r}")
        return value

    return parse


FRACTION = number(lambda v: 0 <= v < 1, "a fraction from 0 to below 1")
INSIDE = number(lambda v: 0 < v < 1, "a number between 0 and 1")
POSITIVE = number(lambda v: 0 < v < np.inf, "a number above 0")
AT_LEAST_0 = number(lambda v: 0 <= v < np.inf, "a number of at least 0")
HALF = number(lambda v: 0 <= v <= 0.5, "a fraction from 0 to 0.5")
OVERLAP = number(lambda v: 0 < v <= 1, "a fraction above 0, at most 1")


def program() -> str:
    """How this program was called."""
    return "minigrad" if Path(sys.argv[0]).name == "minigrad" else "python -m models"


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; each command sets `run_command`."""
    top = argparse.ArgumentParser(
        prog=program(),
        description=__doc__.format(prog=program()),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(
        metavar="COMMAND",
        required=True,
        dest="command",
        help=f"{', '.join(COMMANDS)}; `{program()} COMMAND --help` says more",
    )
    for name, (function, add_options, examples) in COMMANDS.items():
        lines = "\n".join(f"  {program()} {name} {line}" for line in examples.split("\n"))
        command = commands.add_parser(
            name,
            description=inspect.getdoc(function),
            epilog=f"examples:\n{lines}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_options(command.add_argument)
        command.add_argument(
            "--debug", action="store_true", help="after a failure, show the traceback too"
        )
        command.set_defaults(run_command=function, is_first=True)
    return top


# Of COUNTS, for the help of several commands.
SEVERAL = "Several files are joined on the genes that all have, with the name of the file as batch"


def train_options(add) -> None:
    """Options without a value here are left to the model's defaults; the run need not know them."""
    unset = argparse.SUPPRESS
    add(
        "counts",
        metavar="COUNTS",
        nargs="*",
        help=f"counts to train on; known from the run with --resume. {SEVERAL}",
    )
    add("--out", metavar="RUN", type=Path, required=True, help="folder for the run; it is made")
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was stopped or killed, with its settings, to the very "
        "numbers of one that was not; a run that is not there yet begins",
    )
    add(
        "--settings",
        metavar="DIR",
        type=Path,
        help="take the settings, and COUNTS if they are not given, of a comparison (compare); "
        "options given beside count more",
    )
    add(
        "--layer",
        default=unset,
        help="layer of an .h5ad or .loom file with the counts "
        '("raw": raw.X); default: the main matrix',
    )
    add(
        "--transpose",
        action="store_true",
        default=unset,
        help="the file has its genes where cells are expected: a table with one line for each "
        "gene, or an .mtx without names of which it was guessed wrongly",
    )
    reading_options(add, unset)
    add(
        "--batch-key",
        metavar="COLUMN",
        default=unset,
        help="obs column with the batch of each cell; default: all one batch",
    )
    add(
        "--categorical",
        metavar="COLUMN",
        nargs="+",
        default=unset,
        help="obs columns of labels that the decoder is told beside the batch, such as the donor's "
        "sex, so that the latent space need not say them",
    )
    add(
        "--continuous",
        metavar="COLUMN",
        nargs="+",
        default=unset,
        help="the same of numbers, such as the percentage of mitochondrial counts; they are "
        "standardised",
    )
    add(
        "--encode-covariates",
        action="store_true",
        default=unset,
        help="let the encoder see batch and covariates, too",
    )
    add(
        "--genes-from",
        metavar="COLUMN",
        default=unset,
        help="train on the genes that this column of genes marks, such as highly_variable",
    )
    add(
        "--genes",
        metavar="N",
        type=whole(1),
        default=unset,
        help="train on the N genes that vary most; default: all",
    )
    add(
        "--selection",
        choices=list(runs.SELECTIONS),
        default=unset,
        help="how --genes chooses: by the variance of counts "
        "(default; Lopez et al. 2018), or of Pearson residuals, which does not favour genes of "
        "high mean (Lause et al. 2021), "
        "and needs all counts in memory",
    )
    add(
        "--within-batches",
        action="store_true",
        default=unset,
        help="--genes chooses by how genes vary within each batch of --batch-key, and not between "
        "them",
    )
    add(
        "--likelihood",
        choices=["zinb", "nb", "poisson"],
        default=unset,
        help="distribution of counts (default: zinb)",
    )
    add(
        "--dispersion",
        choices=["gene", "gene-batch", "gene-cell"],
        default=unset,
        help="what the inverse dispersion theta is specific to (default: gene)",
    )
    add(
        "--library",
        choices=["observed", "latent"],
        default=unset,
        help="library size: the cell's total, or a latent variable (default: observed)",
    )
    add(
        "--latent",
        metavar="N",
        dest="n_latent",
        type=whole(1),
        default=unset,
        help="dimensions of z (default: 30)",
    )
    add(
        "--hidden",
        metavar="N",
        dest="n_hidden",
        type=whole(1),
        default=unset,
        help="width of hidden layers (default: 128)",
    )
    add(
        "--layers",
        metavar="N",
        dest="n_layers",
        type=whole(1),
        default=unset,
        help="hidden layers (default: 1; 2 with several batches or covariates)",
    )
    add(
        "--dropout",
        metavar="P",
        type=FRACTION,
        default=unset,
        help="of the encoder's hidden units "
        "(default: 0.3, less for cells of more than one count a gene)",
    )
    add(
        "--epochs",
        metavar="N",
        type=whole(1),
        default=unset,
        help="default: 200, fewer above 20,000 cells, more below 350, or below 1,000 with several "
        "batches or covariates",
    )
    add(
        "--batch-size",
        metavar="N",
        type=whole(2),
        default=unset,
        help="cells a minibatch, 2 or more (default: 128)",
    )
    add(
        "--validation",
        metavar="F",
        type=FRACTION,
        default=unset,
        help="fraction of cells held out (default: 0.1)",
    )
    add(
        "--learning-rate",
        metavar="RATE",
        type=POSITIVE,
        default=unset,
        help="at the start; falls to 0 (default: 0.004)",
    )
    add(
        "--kl-warmup",
        metavar="F",
        type=HALF,
        default=unset,
        help="fraction of the training over which the KL weight rises to 1 (default: 0.25, "
        "or 0 where there are several batches or covariates)",
    )
    add(
        "--early-stopping",
        action="store_true",
        default=unset,
        help="stop when the held-out ELBO has not improved for 20 epochs, "
        "and keep the best weights",
    )
    add(
        "--seed",
        metavar="N",
        type=whole(0),
        default=unset,
        help="of weights, split, order and noise (default: 0)",
    )
    add(
        "--device",
        choices=["numpy", "cupy"],
        help="where to compute: cupy is an NVIDIA GPU "
        "(default: the variable MINIGRAD_DEVICE, else numpy)",
    )
    add(
        "--on-disk",
        action="store_true",
        default=unset,
        help="leave the counts in their .h5ad file and read them a block at "
        "a time: for files larger than memory. embed, denoise, de and report then do so too; "
        "impute-score needs all counts in memory",
    )
    add(
        "--parallel",
        choices=["mpi"],
        help="train on all processes that mpiexec started: "
        "mpiexec -n 4 python -m models train COUNTS --out RUN --parallel mpi; --batch-size is that "
        "of all together",
    )


def import_options(add) -> None:
    add("folder", metavar="FOLDER", type=Path, help="what scvi-tools' SCVI.save wrote")
    add("--counts", metavar="COUNTS", required=True, help="counts that the model is asked about")
    add("--out", metavar="RUN", type=Path, required=True, help="folder for the run; it is made")
    add("--layer", help="layer of COUNTS (default: the main matrix)")
    add("--transpose", action="store_true", help="COUNTS have their genes where cells are expected")
    reading_options(add)
    overlap_option(add)


def compare_options(add) -> None:
    """What train takes, with several values where settings are compared."""
    not_for_all = {"counts", "--out", "--resume", "--settings", "--device", "--on-disk"}
    not_for_all |= {"--parallel", *(f"--{name.removeprefix('n_')}" for name in VARIED)}

    def add_same(name, **options):
        if name == "--library":
            options["nargs"] = "+"  # so that two of them are refused in a sentence
        if name not in not_for_all:
            add(name, **options)

    add("counts", metavar="COUNTS", nargs="+", help=f"counts to compare settings on. {SEVERAL}")
    add("--out", metavar="DIR", type=Path, required=True, help="folder of the comparison")
    several = {"nargs": "+", "default": argparse.SUPPRESS}
    add("--likelihood", choices=["zinb", "nb", "poisson"], help="default: all three", **several)
    for name, dest, default, what in (
        ("--latent", "n_latent", "10 20 30", "dimensions of z"),
        ("--layers", "n_layers", "1 2", "hidden layers"),
        ("--hidden", "n_hidden", "128", "width of hidden layers"),
        ("--epochs", "epochs", "by the number of cells", "passes over the training cells"),
    ):
        add(
            name,
            metavar="N",
            dest=dest,
            type=whole(1),
            help=f"{what} (default: {default})",
            **several,
        )
    add("--labels", metavar="COLUMN", help="obs column of known groups, to score clusters by")
    add(
        "--jobs",
        metavar="N",
        type=whole(1),
        help="settings trained at a time, each on one thread (default: one for each processor)",
    )
    add(
        "--seeds",
        metavar="N",
        type=whole(1),
        default=1,
        help="trainings of each setting, whose log p is averaged (default: 1)",
    )
    add(
        "--samples",
        metavar="N",
        type=whole(2),
        default=300,
        help="draws of z for the log p of each cell (default: 300)",
    )
    train_options(add_same)
    add(
        "--on-disk",
        action="store_true",
        default=argparse.SUPPRESS,
        help="refused: a comparison needs all counts in memory",
    )


def reading_options(add, unset=None) -> None:
    """How a file of counts is read, beside its layer and --transpose."""
    add(
        "--obs",
        metavar="META",
        type=os.path.abspath,
        action="append",
        default=unset,
        help="table of what is known of the cells (.csv, .tsv, .txt, .gz), a line each, for files "
        "without: it is joined by the names of cells. May be given several times; what a later "
        "command is given is added to the tables of the run, such as labels or clusters. Of two "
        "columns of one name the later counts",
    )
    add(
        "--only-annotated",
        action="store_true",
        default=unset,
        help="leave out cells that a table of --obs lacks, and those without a value (empty, NaN, "
        "NA) in the columns of batch and covariates, and of groups or colours where a command has "
        "such; how many these are is said",
    )
    add(
        "--gene-names",
        metavar="COLUMN",
        default=unset,
        help="column of genes to take their names from: feature_name where a file of CELLxGENE has "
        "Ensembl ids as names, gene_ids of 10x Genomics for the reverse",
    )
    add(
        "--round",
        dest="rounded",
        action=argparse.BooleanOptionalAction,
        default=unset,
        help="of counts with fractions, as corrections for ambient RNA leave them, make whole "
        "numbers, up or down at random, so that means stay; or refuse them. Default: make them, "
        "if they look like counts, and say in a warning what follows",
    )


def counts_options(add) -> None:
    """What every command that reads counts takes."""
    add("run", metavar="RUN", type=Path, help="folder of a trained model")
    add(
        "counts",
        metavar="COUNTS",
        nargs="*",
        help="other counts than the run was trained on; genes are matched by name",
    )
    add(
        "--layer",
        help="layer of COUNTS, where given "
        "(default: that of the run for its own counts, else the main matrix)",
    )
    add(
        "--transpose",
        action="store_true",
        help="COUNTS, where given, have their genes where cells are expected",
    )
    reading_options(add)
    overlap_option(add)
    add(
        "--batch-key",
        metavar="COLUMN",
        help="obs column with the batch of each cell (default: that of the run)",
    )


def overlap_option(add) -> None:
    """For commands to which COUNTS may be given that lack genes of the model."""
    add(
        "--min-overlap",
        metavar="F",
        type=OVERLAP,
        help="least fraction of the genes of the model that COUNTS must have; the others are taken "
        "for 0, with a warning (default: all, or what map was told)",
    )


def on_disk_option(add) -> None:
    """For commands that go through the cells once."""
    add(
        "--on-disk",
        action="store_true",
        default=None,
        help="leave the counts in their .h5ad file and read them a block at a "
        "time; without COUNTS it is known from the run",
    )


def embed_options(add) -> None:
    counts_options(add)
    on_disk_option(add)
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".csv (a line a cell), .npz (arrays cells, columns, X_scVI) or "
        '.h5ad (obsm["X_scVI"], beside all that COUNTS has if it is an .h5ad). Of which model they '
        "are, for label to know, is said too: beside a .csv in FILE.json, in arrays space and "
        'has_counts of .npz, in uns["X_scVI_space"] of .h5ad',
    )


def denoise_options(add) -> None:
    counts_options(add)
    on_disk_option(add)
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".csv (a line a cell), .npz (arrays cells, columns, "
        'scvi_denoised) or .h5ad (layers["scvi_denoised"], beside all that COUNTS has '
        "if it is an .h5ad and the run has all "
        "of its genes)",
    )
    add(
        "--library-size",
        metavar="N",
        type=POSITIVE,
        help="what every cell's expectations sum to (default: its own total)",
    )
    add(
        "--transform-batch", metavar="LABEL", help="as if measured in this batch (default: its own)"
    )
    add(
        "--samples",
        metavar="N",
        type=whole(1),
        default=1,
        help="draws of z to average over (default: 1)",
    )
    add(
        "--genes",
        metavar="GENE",
        nargs="+",
        help="of these genes only, in this order (default: of all genes of the run)",
    )
    add("--seed", metavar="N", type=whole(0), default=0, help="of the draws (default: 0)")


def impute_options(add) -> None:
    counts_options(add)
    add(
        "--fraction",
        metavar="F",
        type=INSIDE,
        default=0.1,
        help="of the counts above 0 that are hidden (default: 0.1)",
    )
    add(
        "--epochs",
        metavar="N",
        type=whole(1),
        help="of the new training (default: those of the run)",
    )
    add("--seed", metavar="N", type=whole(0), default=0, help="of what is hidden (default: 0)")
    add("--device", choices=["numpy", "cupy"], help="where to train")


def de_options(add) -> None:
    counts_options(add)
    on_disk_option(add)
    add("--key", metavar="COLUMN", required=True, help="obs column with the labels")
    add(
        "--groups",
        metavar="LABEL",
        nargs="+",
        help="group a, and group b (default: all other cells)",
    )
    add(
        "--all-groups",
        action="store_true",
        help="compare every group of COLUMN with all other cells, in one table",
    )
    add(
        "--mode",
        choices=["change", "vanilla"],
        default="change",
        help="do the means differ by a log2 fold change beyond --delta (change, default), or in "
        "which direction do pairs of cells (vanilla, which marks no genes)",
    )
    add(
        "--delta",
        metavar="D",
        type=AT_LEAST_0,
        help="log2 fold change of mode change (default: 0.25, or the typical gene's if larger)",
    )
    add(
        "--fdr",
        metavar="F",
        type=INSIDE,
        default=0.05,
        help="expected share of false genes among is_de (default: 0.05)",
    )
    add(
        "--samples",
        metavar="N",
        type=whole(1),
        default=5000,
        help="pairs of cells that are drawn (default: 5000)",
    )
    add(
        "--rows",
        metavar="N",
        type=whole(1),
        default=20,
        help="genes printed of each comparison (20)",
    )
    add("--csv", metavar="FILE", type=Path, help="write the whole table (.csv)")
    add("--volcano", metavar="FILE", type=Path, help="draw the volcano plot (.png, .pdf or .svg)")
    add("--seed", metavar="N", type=whole(0), default=0, help="of the draws (default: 0)")


def abundance_options(add) -> None:
    counts_options(add)
    on_disk_option(add)
    add(
        "--sample-key",
        metavar="COLUMN",
        required=True,
        help="obs column with the sample of each cell, such as the donor",
    )
    add(
        "--condition-key",
        metavar="COLUMN",
        required=True,
        help="obs column with the condition of each sample, such as the treatment",
    )
    add(
        "--groups",
        metavar="LABEL",
        nargs="+",
        help="condition a, and b (default: where there are just two, in alphabetical order; b: all "
        "that are not a)",
    )
    add(
        "--neighbors",
        metavar="N",
        type=whole(1),
        default=50,
        help="cells that each density rests on at least: more of them are less noise and a coarser "
        "look, which blurs kinds of fewer cells (default: 50)",
    )
    add(
        "--leave-out",
        choices=["sample", "cell"],
        default="sample",
        help="what of a cell's own is left out of the densities around it; cell: where a condition "
        "has but one sample, whose own peculiarities then count as the condition's",
    )
    add("--key", metavar="COLUMN", help="obs column of labels, such as types, to print medians of")
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".csv: cell, sample, condition, log_ratio, error, agreement, log_q of each sample",
    )


def generate_options(add) -> None:
    add("run", metavar="RUN", type=Path, help="folder of a trained model")
    add(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help=".csv, .npz or .h5ad, which COUNTS may be again",
    )
    add("--cells", metavar="N", type=whole(1), required=True, help="how many cells")
    add("--batch", metavar="LABEL", help="of all of them (default: batches as in the training)")
    add(
        "--covariate",
        metavar="COLUMN=VALUE",
        action="append",
        help="of all of them; may be given several times (default: labels as in the training, "
        "numbers at their mean)",
    )
    add(
        "--library-size",
        metavar="N",
        type=POSITIVE,
        help="what every cell's expectations sum to (default: drawn, as in the training)",
    )
    add("--seed", metavar="N", type=whole(0), default=0, help="of the draws (default: 0)")


def map_options(add) -> None:
    add("run", metavar="RUN", type=Path, help="folder of the trained model")
    add(
        "counts",
        metavar="QUERY",
        nargs="+",
        help=f"counts of the new cells; genes are found by name. {SEVERAL}",
    )
    add("--out", metavar="RUN2", type=Path, required=True, help="folder for the new run")
    add(
        "--batch-key",
        metavar="COLUMN",
        help="obs column with the batch of each new cell (default: that of RUN, where QUERY has "
        "it; else all cells are one batch)",
    )
    add(
        "--batch-name",
        metavar="LABEL",
        help="name of that one batch (default: that of the file)",
    )
    add(
        "--min-overlap",
        metavar="F",
        type=OVERLAP,
        default=0.8,
        help="least fraction of the genes of RUN that QUERY must have; the others are taken for 0 "
        "(default: 0.8)",
    )
    add("--epochs", metavar="N", type=whole(1), help="default: by the number of new cells")
    add("--layer", help='layer of QUERY with the counts ("raw": raw.X); default: the main matrix')
    add(
        "--transpose",
        action="store_true",
        help="QUERY has its genes where cells are expected",
    )
    reading_options(add)
    on_disk_option(add)
    add("--seed", metavar="N", type=whole(0), help="of order and noise (default: that of RUN)")
    add("--device", choices=["numpy", "cupy"], help="where to train")


def label_options(add) -> None:
    add("reference", metavar="REFERENCE", type=Path, help="latent coordinates of labelled cells")
    add("query", metavar="QUERY", type=Path, help="those of the cells to label, of the same model")
    add(
        "--labels",
        metavar="TABLE",
        type=Path,
        required=True,
        help=".csv or .tsv: a line of names of columns, then a line for each cell of REFERENCE; "
        "which column has their names is found out",
    )
    add("--column", metavar="COLUMN", help="of TABLE (default: the only one)")
    add(
        "--neighbors",
        metavar="N",
        type=whole(1),
        default=15,
        help="labelled cells that each cell asks (default: 15)",
    )
    add("--out", metavar="FILE", type=Path, required=True, help=".csv: cell, label, uncertainty")


def report_options(add) -> None:
    counts_options(add)
    on_disk_option(add)
    add("--out", metavar="FILE", type=Path, help="the page, .html (default: RUN/index.html)")
    add(
        "--color",
        metavar="COLUMN",
        help="obs column by which cells are coloured (default: clusters found by k-means)",
    )
    add(
        "--colors-from",
        metavar="RUN",
        type=Path,
        help="a run whose reports have the colours that labels are to have here too",
    )


COMMANDS = {
    "train": (
        train,
        train_options,
        "counts.h5ad --out run --layer counts --batch-key donor --genes 2000\n"
        "counts.h5ad --out run --batch-key donor --categorical sex --continuous pct_mito\n"
        "demos/data/cortex.npz --out run --likelihood nb --epochs 50\n--out run --resume\n"
        "--out run --settings trials",
    ),
    "compare": (
        compare,
        compare_options,
        "counts.h5ad --out trials --likelihood nb zinb --latent 10 30 --jobs 2\n"
        "demos/data/cortex.npz --out trials --layers 1 --labels labels",
    ),
    "import": (
        take_over,
        import_options,
        "scvi_model --counts counts.h5ad --out run",
    ),
    "embed": (
        embed,
        embed_options,
        "run --out latent.csv\nrun new_cells.h5ad --out new_cells_scvi.h5ad",
    ),
    "denoise": (
        denoise,
        denoise_options,
        "run --out denoised.npz --samples 25\nrun --out denoised.csv --library-size 10000\n"
        "run --out denoised.csv --genes CD3D MS4A1 LYZ",
    ),
    "impute-score": (impute_score, impute_options, "run\nrun --fraction 0.2 --epochs 50"),
    "de": (
        de,
        de_options,
        'run --key labels --groups "CD19+ B" Dendritic --csv de.csv --volcano de.png\n'
        "run --key labels --groups Dendritic --delta 1\n"
        "run --key labels --all-groups --csv markers.csv",
    ),
    "abundance": (
        abundance,
        abundance_options,
        "run --sample-key donor --condition-key drug --groups stim ctrl --out abundance.csv\n"
        "run --sample-key donor --condition-key drug --key cell_type --out abundance.csv",
    ),
    "generate": (
        generate,
        generate_options,
        "run --cells 1000 --out new.npz\n"
        "run --cells 1000 --out new.h5ad --batch d1 --covariate sex=f --covariate pct_mito=5",
    ),
    "map": (
        map_query,
        map_options,
        "run new_cells.h5ad --out mapped --batch-key donor\n"
        "run new_cells.csv --out mapped --batch-name day2 --min-overlap 0.7",
    ),
    "label": (
        label,
        label_options,
        "reference.csv query.csv --labels types.csv --out labels.csv\n"
        "reference.npz query.npz --labels meta.tsv --column cell_type --out labels.csv",
    ),
    "report": (
        make_report,
        report_options,
        "run\nrun --color labels --out page.html\nrun2 --color labels --colors-from run",
    ),
}


# --------------------------------------------------------------------------------------------- main
def say(text) -> None:
    """A line to standard error."""
    print(harmless(str(text)), file=sys.stderr)


def harmless(text: str) -> str:
    """The same text; characters that steer a terminal, which a stranger's names may have, as \\x1b
    and the like.
    """
    steers = {c for c in set(text) if c != "\n" and unicodedata.category(c).startswith("C")}
    return text.translate({ord(c): repr(c)[1:-1] for c in steers})


def say_warning(options, message, *_) -> None:
    """A warning of Python's, in the words of options, if it is to be said at all."""
    if options.is_first:
        say(f"warning: {in_options(str(message))}")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code; arguments: those of the process by default."""
    with streams.kept_going():
        try:
            options = parser().parse_args(arguments)
            for name in ("counts", "obs"):  # one alone is no list
                given = getattr(options, name, None)
                if isinstance(given, list) and len(given) < 2:
                    setattr(options, name, given[0] if given else None)
        except SystemExit as said:  # argparse has printed the help, or what is wrong
            return said.code  # type: ignore[return-value]  # argparse ends with a number
    with streams.kept_going() as output:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = partial(say_warning, options)
                code = options.run_command(options)
                output.flush()
            if output.lost is not None:
                raise OSError(f"standard output was lost: {output.lost.strerror}")
            return code
        except (Exception, KeyboardInterrupt) as error:
            return complain(error, options, aloud=options.is_first)


def complain(error: BaseException, options, aloud: bool = True) -> int:
    """The exit code for an error; aloud: after a line that says what went wrong.

    With --debug the traceback comes first, in any case.
    """
    is_ctrl_c = isinstance(error, KeyboardInterrupt)
    if options.debug and not is_ctrl_c:
        traceback.print_exception(type(error), error, error.__traceback__)
    if aloud:
        say(
            "interrupted"
            if is_ctrl_c
            else f"{program()} {options.command}: error: {sentence(error)}"
        )
    return 130 if is_ctrl_c else 2 if isinstance(error, WrongUsage) else 1


def sentence(error: BaseException) -> str:
    """What an error says, in one line; of one that nobody wrote a sentence for, its kind too."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    text = " ".join(
        str(error.args[0] if isinstance(error, KeyError) and error.args else error).split()
    )
    text = in_options(text)
    expected = isinstance(
        error, (WrongUsage, ValueError, OSError, ImportError, FloatingPointError, AnotherRankFailed)
    )
    return text if expected and text else f"{type(error).__name__}: {text} (--debug shows where)"


def in_options(text: str) -> str:
    """A text that names arguments of functions, in the words of the command line."""
    for argument, option in OPTIONS.items():
        text = text.replace(argument, option)
    return text


if __name__ == "__main__":
    sys.exit(main())
