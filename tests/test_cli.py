"""models/__main__.py, runs.py, report.py: what the commands write is what the model says; what goes wrong is said in a line."""

import base64
import configparser
import csv
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from minigrad.data import Blocks
from models import SCVI, imputation, report, runs
from models.__main__ import COMMANDS, main, parser, program
from models.counts import (
    Counts,
    annotate_h5ad,
    as_matrix,
    highest_variance,
    pearson_residual_variance,
    read,
    round_counts,
)
from tests.test_hdf5 import write_anndata_0_6

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "--epochs",
    "3",
    "--latent",
    "4",
    "--hidden",
    "8",
    "--batch-size",
    "16",
    "--likelihood",
    "nb",
]


def made_counts(n_cells=60, n_genes=12):
    """Two types of cells, two batches, and names of genes of which one occurs twice."""
    rng = np.random.default_rng(0)
    kind, batch = rng.integers(0, 2, n_cells), rng.integers(0, 2, n_cells)
    rates = np.stack([np.linspace(0.3, 6, n_genes), np.linspace(6, 0.3, n_genes)])[kind] * (
        1 + batch[:, None]
    )
    genes = [f"G{i}" for i in range(n_genes - 1)] + ["G0"]
    x = sparse.csr_array(rng.poisson(rates).astype(np.float32))
    return Counts(
        x,
        genes,
        [f"c{i}" for i in range(n_cells)],
        {"kind": np.array(["T cell", "B cell"])[kind], "donor": np.array(["old", "new"])[batch]},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with counts.npz, the same as counts.h5ad, and a run `run` trained on counts.npz with batches."""
    folder = tmp_path_factory.mktemp("cli")
    counts = made_counts()
    runs.write_counts(folder / "counts.npz", counts)
    anndata.AnnData(
        sparse.csr_matrix(counts.X),
        obs=pandas.DataFrame(counts.obs, index=counts.cells),
        uns={"kept": "note"},
        var=pandas.DataFrame(index=runs.unique_names(counts.genes)),
    ).write_h5ad(folder / "counts.h5ad")
    assert (
        main(
            [
                "train",
                str(folder / "counts.npz"),
                "--out",
                str(folder / "run"),
                "--batch-key",
                "donor",
                *SMALL,
            ]
        )
        == 0
    )
    return folder


@pytest.fixture(scope="module")
def model(place):
    return SCVI.load(place / "run" / "model.npz")


def call(*words):
    return main([str(word) for word in words])


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, a in expected.items():
        np.testing.assert_array_equal(found[name], a, err_msg=name)


# -------------------------------------------------------------------------------------------------------------- training
def test_training_is_that_of_the_model(place, model):
    counts = made_counts()
    expected = SCVI(12, 2, n_latent=4, n_hidden=8, likelihood="nb")
    history = expected.fit(counts.X, counts.obs["donor"], epochs=3, batch_size=16)
    same(model.state_dict(), expected.state_dict())
    assert model.genes == [*(f"G{i}" for i in range(11)), "G0-1"] and model.batches == [
        "new",
        "old",
    ]
    header, *rows = rows_of(place / "run" / "history.csv")
    assert header == history.names and len(rows) == 3
    for name, column in zip(header, zip(*rows)):
        if name != "seconds":
            np.testing.assert_allclose(np.array(column, float), history[name], rtol=1e-8)


def test_training_and_embedding_from_disk(place, tmp_path):
    """The counts stay in their file; the genes are selected there too, and the order of cells is another."""
    words = ["--genes", 8, "--batch-key", "donor", *SMALL]
    assert call("train", place / "counts.h5ad", "--out", tmp_path / "r", "--on-disk", *words) == 0
    assert call("embed", tmp_path / "r", "--out", tmp_path / "z.npz", "--on-disk") == 0
    counts = read(place / "counts.h5ad").select_genes(highest_variance(made_counts().X, 8))
    model = SCVI.load(tmp_path / "r" / "model.npz")
    with np.load(tmp_path / "z.npz") as file:
        np.testing.assert_allclose(
            file["X_scVI"], model.latent(counts, counts.obs["donor"]), rtol=1e-5, atol=1e-6
        )
    assert json.loads((tmp_path / "r" / "config.json").read_text())["settings"]["on_disk"] is True
    assert call("train", "--out", tmp_path / "r", "--resume") == 0


KINDS = ("csv", "npz", "h5ad")


def content(path):
    """What embed or denoise wrote: (names of cells, values)."""
    if path.suffix == ".csv":
        _, *rows = rows_of(path)
        return [row[0] for row in rows], np.array([row[1:] for row in rows], np.float32)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return list(file["cells"]), file["X_scVI" if "X_scVI" in file else "scvi_denoised"]
    data = anndata.read_h5ad(path)
    return list(data.obs_names), data.obsm["X_scVI"] if "X_scVI" in data.obsm else data.layers[
        "scvi_denoised"
    ]


@pytest.fixture(scope="module", params=["all", "8"])
def on_disk(place, tmp_path_factory, request):
    """A run trained on counts that stay in their file, with all genes and with some of them."""
    run, genes = (
        tmp_path_factory.mktemp("disk") / "run",
        [] if request.param == "all" else ["--genes", request.param],
    )
    assert (
        call(
            "train",
            place / "counts.h5ad",
            "--out",
            run,
            "--on-disk",
            "--batch-key",
            "donor",
            *genes,
            *SMALL,
        )
        == 0
    )
    return run


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["embed", "denoise"])
def test_every_kind_of_file_is_written_from_the_disk_as_from_memory(
    place, on_disk, tmp_path, command, kind
):
    for name, words in (
        ("memory", [place / "counts.h5ad"]),
        ("disk", []),
        ("told", [place / "counts.h5ad", "--on-disk"]),
    ):
        assert call(command, on_disk, *words, "--out", tmp_path / f"{name}.{kind}") == 0
    cells, values = content(tmp_path / f"memory.{kind}")
    assert cells == list(made_counts().cells) and values.shape[0] == 60 and np.ptp(values) > 0
    for name in ("disk", "told"):
        assert content(tmp_path / f"{name}.{kind}")[0] == cells
        np.testing.assert_allclose(
            content(tmp_path / f"{name}.{kind}")[1], values, rtol=1e-5, atol=1e-6
        )
    if kind == "h5ad":
        kept = [anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("memory", "disk")]
        np.testing.assert_array_equal(*[data.X.toarray() for data in kept])
        assert list(kept[0].var_names) == list(kept[1].var_names)


def test_a_run_trained_from_disk_is_asked_from_disk(place, on_disk, tmp_path, monkeypatch):
    found, original = [], runs.read_counts

    def read_counts(*arguments):
        counts = original(*arguments)
        found.append(isinstance(counts.X, Blocks))
        return counts

    monkeypatch.setattr(runs, "read_counts", read_counts)
    monkeypatch.setattr(report, "MOST_CELLS", 40)
    page, same_page, out, given = (
        tmp_path / "a.html",
        tmp_path / "b.html",
        ["--out", tmp_path / "z.npz"],
        place / "counts.h5ad",
    )
    for words, stays in (
        (["embed", on_disk, *out], True),
        (["denoise", on_disk, *out], True),
        (["report", on_disk, "--color", "kind", "--out", page], True),
        (["embed", on_disk, given, *out], False),
        (["report", on_disk, given, "--color", "kind", "--out", same_page], False),
        (["de", on_disk, "--key", "kind", "--groups", "T cell", "--samples", "50"], True),
    ):
        assert call(*words) == 0
        assert found.pop() == stays, words
    numbers = [re.findall("<tr>.*</table>", path.read_text()) for path in (page, same_page)]
    assert (
        numbers[0] == numbers[1]
        and "<td>40" in numbers[0][0]
        and page.read_text().count("<img") == 15
    )


def on_ranks(*words, code=None):
    """A command, or with `code` that program, on two ranks."""
    pytest.importorskip("mpi4py")
    places = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])
    mpiexec = shutil.which("mpiexec", path=places)
    if mpiexec is None:
        pytest.skip('there is no mpiexec: pip install "minigrad-scvi[mpi]"')
    start = ["-m", "models"] if code is None else ["-c", code]
    return subprocess.run(
        [mpiexec, "-n", "2", sys.executable, *start, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


def test_two_processes_train_one_run(place, tmp_path):
    done = on_ranks(
        "train", place / "counts.npz", "--out", tmp_path / "r", "--parallel", "mpi", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.count("validation_elbo") == 1 and done.stderr.count("60 cells, 12 genes") == 1
    )
    assert len(rows_of(tmp_path / "r" / "history.csv")) == 4
    model = SCVI.load(tmp_path / "r" / "model.npz")
    assert model.latent(made_counts().X).shape == (60, 4)


@pytest.mark.parametrize(
    "words, code, says",
    [
        (
            ["{counts}", "--out", "{new}", "--parallel", "mpi", "--layer", "a"],
            1,
            "only .h5ad and .loom",
        ),
        (
            ["{other}", "--out", "{run}", "--parallel", "mpi", "--resume"],
            1,
            "model.npz is a checkpoint of a run with",
        ),
        (["{counts}", "--out", "{run}", "--parallel", "mpi"], 2, "holds a run already"),
        (["{counts}", "--out", "{new}"], 2, "mpiexec started 2 processes, .*; add --parallel mpi"),
    ],
)
def test_on_two_processes_an_error_is_one_line_too(names, words, code, says):
    done = on_ranks("train", *[word.format(**names) for word in words])
    assert done.returncode == code and re.search(says, done.stderr.splitlines()[-1]), done.stderr
    assert (
        done.stderr.count("error") == 1
        and "Traceback" not in done.stderr
        and "failed" not in done.stderr
    )
    assert not done.stdout and not names["new"].exists()


def test_warnings_come_once_and_tracebacks_when_asked_for(names, tmp_path):
    counts = made_counts()
    counts.X = sparse.csr_array(counts.X.toarray() * (np.arange(60) > 1)[:, None])
    runs.write_counts(tmp_path / "c.npz", counts)
    done = on_ranks(
        "train", tmp_path / "c.npz", "--out", tmp_path / "r", "--parallel", "mpi", *SMALL
    )
    assert done.returncode == 0 and done.stderr.count("warning: 2 cells without counts") == 1, (
        done.stderr
    )
    done = on_ranks("train", names["counts"], "--out", names["run"], "--parallel", "mpi", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr and done.stderr.count("error:") == 1


@pytest.mark.parametrize("launcher", ["PMI", "OMPI_COMM_WORLD"])
def test_processes_that_would_write_the_same_run_are_refused(names, monkeypatch, capsys, launcher):
    words = ["train", names["counts"], "--out", names["new"]]
    monkeypatch.setenv(f"{launcher}_SIZE", "3")
    for rank, lines in ((0, 1), (2, 0)):
        monkeypatch.setenv(f"{launcher}_RANK", str(rank))
        assert call(*words) == 2 and len(capsys.readouterr().err.splitlines()) == lines
    assert (
        call("embed", names["run"], "--out", names["run"].parent / "ranks.npz") == 0
    )  # each may write a file of its own
    monkeypatch.setenv(f"{launcher}_SIZE", "1")
    assert call(*words[:-1], names["run"].parent / f"one_{launcher}", *SMALL) == 0


def test_a_run_is_three_files_and_says_what_it_was_told(place):
    reported = {"index.html"}  # by another test, if that came first
    assert {p.name for p in (place / "run").iterdir()} - reported == {
        "config.json",
        "history.csv",
        "model.npz",
    }
    config = json.loads((place / "run" / "config.json").read_text())
    assert config["counts"] == str(place / "counts.npz")
    assert config["settings"] == {
        "epochs": 3,
        "n_latent": 4,
        "n_hidden": 8,
        "batch_size": 16,
        "likelihood": "nb",
        "batch_key": "donor",
    }


@pytest.mark.parametrize(
    "words, config",
    [
        (["--layers", "2", "--dropout", "0", "--seed", "5"], dict(n_layers=2, dropout=0.0, seed=5)),
        (
            ["--likelihood", "poisson", "--library", "latent"],
            dict(likelihood="poisson", library="latent"),
        ),
        (["--dispersion", "gene-cell"], dict(dispersion="gene-cell", likelihood="zinb")),
    ],
)
def test_options_reach_the_model(place, tmp_path, words, config):
    assert (
        call(
            "train",
            place / "counts.npz",
            "--out",
            tmp_path / "r",
            "--epochs",
            1,
            "--hidden",
            8,
            *words,
        )
        == 0
    )
    made = SCVI.load(tmp_path / "r" / "model.npz").config
    assert {name: made[name] for name in config} == config


def test_options_reach_the_training(place, tmp_path, monkeypatch):
    told = {}
    monkeypatch.setattr(
        SCVI, "fit", lambda self, counts, batch, **arguments: told.update(arguments) or sys.exit(3)
    )
    with pytest.raises(SystemExit):
        call(
            "train",
            place / "counts.npz",
            "--out",
            tmp_path / "r",
            "--epochs",
            7,
            "--batch-size",
            9,
            "--validation",
            0.25,
            "--learning-rate",
            0.01,
            "--kl-warmup",
            0.5,
            "--early-stopping",
            "--device",
            "numpy",
        )
    assert told == dict(
        epochs=7,
        batch_size=9,
        validation=0.25,
        learning_rate=0.01,
        kl_warmup=0.5,
        early_stopping=True,
        device="numpy",
        resume=False,
        parallel=None,
        checkpoint=tmp_path / "r" / "model.npz",
    )


@pytest.mark.parametrize(
    "words, rule",
    [
        (["--genes", "5"], highest_variance),
        (["--genes", "5", "--selection", "pearson"], pearson_residual_variance),
    ],
)
def test_genes_are_selected_and_found_again_by_name(place, tmp_path, words, rule):
    counts, out = runs.read_counts(place / "counts.npz"), tmp_path / "z.npz"
    chosen = rule(counts.X, 5)
    assert call("train", place / "counts.npz", "--out", tmp_path / "r", *SMALL, *words) == 0
    trained = SCVI.load(tmp_path / "r" / "model.npz")
    assert trained.genes == list(counts.genes[chosen])
    assert call("embed", tmp_path / "r", "--out", out) == 0
    np.testing.assert_array_equal(
        np.load(out, allow_pickle=False)["X_scVI"], trained.latent(counts.X[:, chosen])
    )
    assert call("denoise", tmp_path / "r", "--out", tmp_path / "d.h5ad") == 0
    assert list(anndata.read_h5ad(tmp_path / "d.h5ad").var_names) == trained.genes
    assert (
        call("denoise", tmp_path / "r", place / "counts.h5ad", "--out", tmp_path / "e.h5ad") == 0
    )  # fewer genes: a new file
    assert anndata.read_h5ad(tmp_path / "e.h5ad").layers["scvi_denoised"].shape == (60, 5)


# ------------------------------------------------------------------------------------------------------ stops and resumes
STOPS = """
import os, signal, sys
from minigrad.training import Run
from models import SCVI
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background would start without
write = Run.write
def write_and_stop(self, *arguments):
    write(self, *arguments)
    if self.epoch == 2 and any(times):
        os.kill(os.getpid(), times.pop())
Run.write, times = write_and_stop, list(map(int, sys.argv[1].split(",")))
first = SCVI.loss
def loss_or_error(self, *arguments, progress, **keywords):
    if progress > 0.6 and times == [0] and os.environ["PMI_RANK"] == "1":
        raise OSError(28, "No space left on device", "disk")
    return first(self, *arguments, progress=progress, **keywords)
SCVI.loss = loss_or_error
from models.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def in_own_process(*words, code=None):
    start = ["-m", "models"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )


@pytest.mark.parametrize("signals, code", [("9", -signal.SIGKILL), ("2", 130), ("2,2", 130)])
def test_a_stopped_run_resumes_to_the_same_bits(place, model, tmp_path, signals, code):
    words = ["train", place / "counts.npz", "--out", tmp_path / "r", "--batch-key", "donor", *SMALL]
    done = in_own_process(signals, *words, code=STOPS)
    assert done.returncode == code, done.stderr
    assert len(runs.Run(tmp_path / "r").history()) == 2
    if code == 130:
        hint = f"go on with: python -m models train --resume --out {tmp_path / 'r'}"
        assert done.stderr.splitlines()[-2:] == [hint, "interrupted"]
    assert (tmp_path / "r" / "history.csv").exists() == (signals == "2")
    assert call("embed", tmp_path / "r", "--out", tmp_path / "z.npz") == 0  # of what is there
    assert call("train", "--resume", "--out", tmp_path / "r") == 0
    same(SCVI.load(tmp_path / "r" / "model.npz").state_dict(), model.state_dict())
    assert len(rows_of(tmp_path / "r" / "history.csv")) == 4
    assert not list((tmp_path / "r").glob("*.part*"))


def test_ctrl_c_on_two_processes_says_how_to_go_on(place, tmp_path):
    words = ["train", place / "counts.npz", "--out", tmp_path / "r", "--parallel", "mpi", *SMALL]
    done = on_ranks(2, *words, code=STOPS)  # the first rank is pressed, and all agree
    assert (
        done.returncode == 130 and "failed" not in done.stderr and "Traceback" not in done.stderr
    ), done.stderr
    hint = f"mpiexec -n 2 python -m models train --resume --out {tmp_path / 'r'} --parallel mpi"
    assert done.stderr.splitlines()[-2:] == [f"go on with: {hint}", "interrupted"]
    done = on_ranks(*shlex.split(hint)[6:])
    assert done.returncode == 0 and len(rows_of(tmp_path / "r" / "history.csv")) == 4, done.stderr


@pytest.mark.parametrize("debug", [False, True])
def test_a_process_that_dies_says_why_in_a_line(place, tmp_path, debug):
    words = [
        "train",
        place / "counts.npz",
        "--out",
        tmp_path / "r",
        "--parallel",
        "mpi",
        *SMALL,
        *["--debug"] * debug,
    ]
    done = on_ranks(0, *words, code=STOPS)
    assert done.returncode == 1 and "rank 1 of 2 failed, which ends all:" in done.stderr, (
        done.stderr
    )
    assert (
        done.stderr.count("error: disk: No space left on device") == 1
        and ("Traceback" in done.stderr) == debug
    )


def test_resuming_what_is_not_there_begins_and_what_is_finished_ends(place, model, tmp_path):
    words = [
        "train",
        place / "counts.npz",
        "--out",
        tmp_path / "r",
        "--resume",
        "--batch-key",
        "donor",
        *SMALL,
    ]
    for _ in range(2):
        assert call(*words) == 0
        same(SCVI.load(tmp_path / "r" / "model.npz").state_dict(), model.state_dict())


def test_ctrl_c_outside_of_training(place, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "read_counts", interrupted)
    assert call("embed", place / "run", "--out", place / "never.csv") == 130
    assert capsys.readouterr().err == "interrupted\n" and not (place / "never.csv").exists()


# ---------------------------------------------------------------------------------------------------- what is asked of it
def test_embed_is_latent(place, model):
    counts = made_counts()
    z = model.latent(counts.X, counts.obs["donor"])
    for name in ("z.csv", "z.npz", "z.h5ad"):
        assert call("embed", place / "run", "--out", place / name) == 0
    header, *rows = rows_of(place / "z.csv")
    assert header == ["cell", "z0", "z1", "z2", "z3"] and [row[0] for row in rows] == list(
        counts.cells
    )
    np.testing.assert_array_equal(
        np.array([row[1:] for row in rows], np.float64).astype(np.float32), z
    )
    arrays = np.load(place / "z.npz", allow_pickle=False)
    np.testing.assert_array_equal(arrays["X_scVI"], z)
    assert list(arrays["cells"]) == list(counts.cells)
    data = anndata.read_h5ad(place / "z.h5ad")  # made anew: the counts are an .npz
    np.testing.assert_array_equal(data.obsm["X_scVI"], z)
    np.testing.assert_array_equal(data.X.toarray(), counts.X.toarray())
    assert (
        list(data.obs["kind"].astype(str)) == list(counts.obs["kind"])
        and data.var_names[-1] == "G0-1"
    )


def test_embed_of_other_counts_matches_genes_by_name_and_keeps_their_file(place, model):
    counts, order = made_counts(), np.random.default_rng(1).permutation(12)
    data = anndata.read_h5ad(place / "counts.h5ad")[:7, order].copy()
    more = anndata.AnnData(
        sparse.csr_matrix(np.ones((7, 2), np.float32)),
        obs=data.obs,
        var=pandas.DataFrame(index=["x", "y"]),
    )
    data.layers["other"] = data.X * 3
    shuffled = anndata.concat([more, data], axis=1, merge="same")
    shuffled.obs, shuffled.uns = data.obs, {"kept": "note"}
    shuffled.write_h5ad(place / "shuffled.h5ad")
    assert call("embed", place / "run", place / "shuffled.h5ad", "--out", place / "s.h5ad") == 0
    found = anndata.read_h5ad(place / "s.h5ad")
    np.testing.assert_array_equal(
        found.obsm["X_scVI"], model.latent(counts.X[:7], counts.obs["donor"][:7])
    )
    assert found.uns["kept"] == "note" and found.shape == (7, 14)


def test_a_layer_is_that_of_the_run_for_its_own_counts_only(place, tmp_path, capsys):
    data = anndata.read_h5ad(place / "counts.h5ad")
    data.layers["counts"], data.X = data.X.copy(), data.X * 0.5
    data.write_h5ad(tmp_path / "c.h5ad")
    assert (
        call("train", tmp_path / "c.h5ad", "--out", tmp_path / "r", "--layer", "counts", *SMALL)
        == 0
    )
    z = SCVI.load(tmp_path / "r" / "model.npz").latent(made_counts().X)
    for words in ([], [tmp_path / "c.h5ad", "--layer", "counts"]):
        assert call("embed", tmp_path / "r", *words, "--out", tmp_path / "z.npz") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "z.npz", allow_pickle=False)["X_scVI"], z)
    assert call("embed", tmp_path / "r", tmp_path / "c.h5ad", "--out", tmp_path / "z.npz") == 1
    assert "looks normalised" in capsys.readouterr().err


def test_a_table_with_a_line_for_each_gene(place, tmp_path):
    counts = made_counts()
    dense = counts.X.toarray().astype(int)
    for name, cells, lines in (
        ("a.csv", counts.cells, zip(counts.genes, dense.T)),
        ("new.csv", counts.cells[:7], zip(counts.genes, dense[:7].T)),
    ):
        text = [
            ",".join(["", *cells]),
            *(",".join([n, *map(str, line[: len(cells)])]) for n, line in lines),
        ]
        (tmp_path / name).write_text("\n".join(text))
    words = "--epochs", "1", "--latent", "2", "--hidden", "4"
    run, out = tmp_path / "run", ["--out", tmp_path / "z.csv"]
    assert call("train", tmp_path / "a.csv", "--transpose", "--out", run, *words) == 0
    assert SCVI.load(run / "model.npz").genes == list(runs.unique_names(counts.genes))
    for more, n in ((), 60), (("--transpose",), 60), ((tmp_path / "new.csv", "--transpose"), 7):
        assert call("embed", run, *more, *out) == 0
        assert [row[0] for row in rows_of(tmp_path / "z.csv")[1:]] == list(counts.cells[:n])


def test_training_shows_first_names_and_says_which_option_turns_a_table(tmp_path, capsys):
    genes = "Cyp2f2 Scgb3a1 Sftpc Rpl13 Cd74 Actb".split()
    cells = [f"mouse{i}_ACATGTTGACGGTAC" for i in range(30)]
    x = np.random.default_rng(0).poisson(3.0, (6, 30))
    rows = [",".join([gene, *map(str, row)]) for gene, row in zip(genes, x)]
    (tmp_path / "a.csv").write_text("\n".join([",".join(["gene", *cells]), *rows]))
    assert call("train", tmp_path / "a.csv", "--out", tmp_path / "r", *SMALL, "--epochs", 1) == 0
    said = capsys.readouterr().err
    assert "cells: Cyp2f2, Scgb3a1, Sftpc, ...; genes: mouse0_ACATGTTGACGGTAC, mouse1_" in said
    assert "names of genes ('Cyp2f2'): if that is the wrong way round, pass --transpose" in said
    words = ["--transpose", *SMALL, "--epochs", 1]
    assert call("train", tmp_path / "a.csv", "--out", tmp_path / "s", *words) == 0
    said = capsys.readouterr().err
    assert "genes: Cyp2f2, Scgb3a1, Sftpc, ..." in said and "warning" not in said


def test_annotation_names_and_marks_of_genes_are_found_again(place, tmp_path, capsys):
    """--obs, --gene-names, --genes-from and --round are of the run: later commands need not ask."""
    counts = made_counts()
    less = counts.X.toarray()
    less[less > 0] -= 0.25
    data = anndata.AnnData(
        sparse.csr_matrix(less),
        obs=pandas.DataFrame(index=counts.cells),
        var=pandas.DataFrame(
            {
                "feature_name": [f"S{i}" for i in range(12)],
                "highly_variable": np.arange(12) % 2 == 0,
            },
            index=[f"ENSG{i}" for i in range(12)],
        ),
    )
    data.write_h5ad(tmp_path / "c.h5ad")
    meta = pandas.DataFrame(counts.obs, index=counts.cells)
    meta.iloc[::-1].to_csv(tmp_path / "meta.csv")
    words = ["--obs", tmp_path / "meta.csv", "--gene-names", "feature_name", "--round"]
    marked = ["--genes-from", "highly_variable", "--batch-key", "donor"]
    run = tmp_path / "r"
    assert call("train", tmp_path / "c.h5ad", "--out", run, *words, *marked, *SMALL) == 0
    assert "60 cells, 6 genes, 2 batches" in capsys.readouterr().err
    model = SCVI.load(run / "model.npz")
    assert model.genes == [f"S{i}" for i in range(0, 12, 2)] and model.batches == ["new", "old"]
    expected = model.latent(round_counts(less)[:, ::2], counts.obs["donor"])
    for again in ([], [tmp_path / "c.h5ad", *words]):
        assert call("embed", run, *again, "--out", tmp_path / "z.npz") == 0
        np.testing.assert_array_equal(np.load(tmp_path / "z.npz")["X_scVI"], expected)
    refused = ["embed", run, tmp_path / "c.h5ad", "--no-round", "--out", tmp_path / "z.npz"]
    assert call(*refused) == 1
    assert "can be rounded: --round" in capsys.readouterr().err
    asked = ["embed", run, tmp_path / "c.h5ad", "--round", "--out", tmp_path / "z.npz"]
    assert call(*asked) == 1
    said = "they stand in its column 'feature_name': read it with --gene-names feature_name"
    assert said in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("cell,type,g1\nc1,T,4\n")
    assert call("train", tmp_path / "t.csv", "--out", tmp_path / "t") == 1
    assert "in a table of its own: --obs TABLE" in capsys.readouterr().err
    assert call("train", "--out", run, "--resume", "--obs", tmp_path / "other.csv") == 2
    assert "--obs" in capsys.readouterr().err
    new = ["train", tmp_path / "c.h5ad", "--out", tmp_path / "s", "--round"]
    for column, says in (
        ("nothing", "there is no such column of genes; there are: feature_name, highly"),
        ("feature_name", "its values are such as 'S0'"),
    ):
        assert call(*new, "--genes-from", column) == 1
        assert f"--genes-from {column}: {says}"[:60] in capsys.readouterr().err
    assert call(*new, "--genes-from", "highly_variable", "--genes", 3) == 2
    assert call(*new, "--gene-names", "nothing") == 1
    assert "--gene-names 'nothing': there is no such column" in capsys.readouterr().err


def test_corrected_counts_are_the_same_to_every_command(tmp_path, capsys):
    """Fractions that nobody was asked about are rounded alike whenever the file is read."""
    rng = np.random.default_rng(0)
    x = rng.poisson(rng.gamma(1.0, 0.8, 12), (400, 12)).astype(float)
    x[x > 0] -= rng.uniform(0, 0.2, np.count_nonzero(x))
    adata = anndata.AnnData(sparse.csr_matrix(x.astype(np.float32)))
    adata.obs["kind"] = ["a", "b"] * 200
    adata.write_h5ad(tmp_path / "c.h5ad")
    expected = round_counts(x.astype(np.float32))
    runs_of = {}
    for words in ([], ["--on-disk"], ["--round"]):
        run = tmp_path / f"run{len(runs_of)}"
        capsys.readouterr()
        assert call("train", tmp_path / "c.h5ad", "--out", run, *words, *SMALL) == 0
        said = capsys.readouterr().err
        assert "went up or down to whole numbers" in said
        assert ("--round is this without so many words, and --no-round ref" in said) == (
            words != ["--round"]
        )
        runs_of[tuple(words)] = run
        z = SCVI.load(run / "model.npz").latent(expected)
        for on_disk in ([], ["--on-disk"]):
            assert call("embed", run, *on_disk, "--out", tmp_path / "z.npz") == 0
            np.testing.assert_allclose(np.load(tmp_path / "z.npz")["X_scVI"], z, atol=1e-5)
    run = runs_of[()]
    assert call("denoise", run, "--out", tmp_path / "d.npz") == 0
    found = np.load(tmp_path / "d.npz")["scvi_denoised"]
    model = SCVI.load(run / "model.npz")
    np.testing.assert_allclose(found, model.denoise(expected), rtol=1e-4)
    capsys.readouterr()
    for words in (["embed", run, "--no-round"], ["embed", run, tmp_path / "c.h5ad", "--no-round"]):
        assert call(*words, "--out", tmp_path / "z.npz") == 1
        assert "can be rounded: --round" in capsys.readouterr().err
    new = ["train", tmp_path / "c.h5ad", "--out", tmp_path / "new", "--no-round"]
    assert call(*new, *SMALL) == 1 and "can be rounded: --round" in capsys.readouterr().err
    assert call("map", run, tmp_path / "c.h5ad", "--out", tmp_path / "map", "--no-round") == 1
    assert "can be rounded: --round" in capsys.readouterr().err


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    """A stranger's names may hold what clears the screen, or writes to the clipboard."""
    counts = made_counts()
    counts.genes = np.array([f"\x1b[2JG\u202e{i}" for i in range(12)])
    counts.cells = np.array([f"\x1b]0;c{i}\x07" for i in range(60)])
    counts.obs["kind"] = np.array(["T\x1b[31m", "B"])[np.arange(60) % 2]
    runs.write_counts(tmp_path / "c.npz", counts)
    run = tmp_path / "r"
    assert call("train", tmp_path / "c.npz", "--out", run, *SMALL) == 0
    assert r"cells: \x1b]0;c0\x07, \x1b]0;c1\x07," in capsys.readouterr().err
    assert call("de", run, "--key", "kind", "--groups", "B", "T\x1b[31m", "--samples", 50) == 0
    said = capsys.readouterr()
    assert r"\x1b[2JG\u202e" in said.out
    assert call("de", run, "--key", "\x1b[2J", "--groups", "a", "b") == 1
    said_of_error = capsys.readouterr().err
    for text in (said.out, said.err, said_of_error):
        assert not set("\x1b\x07\u202e") & set(text)


def test_genes_are_chosen_within_the_batches_of_the_run(place, tmp_path, capsys):
    counts = made_counts()
    codes = counts.obs["donor"] == "old"
    for words, rule in (
        ([], highest_variance),
        (["--selection", "pearson"], pearson_residual_variance),
    ):
        run = tmp_path / rule.__name__
        words = [*words, "--genes", 5, "--within-batches", "--batch-key", "donor"]
        assert call("train", place / "counts.npz", "--out", run, *words, *SMALL) == 0
        names = runs.unique_names(counts.genes)[rule(counts.X, 5, batch=codes)]
        assert SCVI.load(run / "model.npz").genes == names.tolist()
    for words in (["--genes", 5], ["--batch-key", "donor"]):
        new = ["train", place / "counts.npz", "--out", tmp_path / "n", "--within-batches", *words]
        assert call(*new) == 2
        assert "--within-batches says how to choose --genes N" in capsys.readouterr().err


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """Counts of 60 cells, as .npz and .h5ad, a table without 9 of them, in which 4 have no donor and 3 others no age, and a run."""
    folder = tmp_path_factory.mktemp("partly")
    counts = made_counts()
    bare = Counts(counts.X, runs.unique_names(counts.genes), counts.cells)
    runs.write_counts(folder / "c.npz", bare)
    bare.to_anndata().write_h5ad(folder / "c.h5ad")
    frame = pandas.DataFrame({"donor": counts.obs["donor"], "age": 40.0}, index=counts.cells)
    frame.iloc[10:14, 0] = None
    frame.iloc[12:15, 1] = np.nan
    frame.iloc[9:].to_csv(folder / "meta.csv")
    words = ["--obs", folder / "meta.csv", "--batch-key", "donor", "--only-annotated", *SMALL]
    assert call("train", folder / "c.npz", "--out", folder / "run", *words) == 0
    return folder


LEFT = [f"c{i}" for i in range(60) if i == 9 or i > 13]


def test_cells_of_which_nothing_is_known_are_left_out_on_demand(partly, tmp_path, capsys):
    words = ["--obs", partly / "meta.csv", "--batch-key", "donor", *SMALL]
    assert call("train", partly / "c.npz", "--out", tmp_path / "r", *words) == 1
    said = capsys.readouterr().err
    assert "has no line for 9 of 60 cells, such as 'c0': of these nothing is known" in said
    assert (
        "13 of 60 cells have no label, the first of them cell 0 ('c0'); leave those cells" in said
    )
    assert "(--only-annotated)" in said
    for name in ("c.npz", "c.h5ad"):
        more = ["--continuous", "age", "--only-annotated"]
        run = tmp_path / f"run of {name}"
        assert call("train", partly / name, "--out", run, *words, *more) == 0
        said = capsys.readouterr().err
        assert "has no line for 9 of 60 cells, such as 'c0': left out" in said
        assert "4 of 51 cells have no value in the column 'donor', such as 'c10'" in said
        assert "3 of 51 cells have no value in the column 'age', such as 'c12'" in said
        assert "46 cells, 12 genes, 2 batches" in said
        out = tmp_path / "z.csv"
        assert call("embed", run, "--out", out) == 0
        assert [row[0] for row in rows_of(out)[1:]] == [cell for cell in LEFT if cell != "c14"]


@pytest.mark.parametrize(
    "words",
    [
        ["embed", "run", "--out", "{}/x.npz"],
        ["denoise", "run", "--out", "{}/x.npz"],
        ["denoise", "run", "c.h5ad", "--obs", "meta.csv", "--only-annotated", "--out", "{}/x.npz"],
        ["embed", "run", "c.h5ad", "--on-disk", "--obs", "meta.csv", "--only-annotated"]
        + ["--batch-key", "donor", "--out", "{}/x.npz"],
    ],
)
def test_later_commands_leave_the_same_cells_out(words, partly, tmp_path, monkeypatch):
    monkeypatch.chdir(partly)
    assert main([word.format(tmp_path) for word in words]) == 0
    assert content(tmp_path / "x.npz")[0] == LEFT


def test_groups_and_colours_are_asked_for_too(partly, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(partly)
    for code, words in (
        (1, ["de", "run", "c.npz", "--key", "age", "--groups", "40"]),  # of one group alone
        (0, ["report", "run", "--color", "age", "--out", str(tmp_path / "r.html")]),
        (
            1,  # of one sample alone
            ["abundance", "run", "--sample-key", "age", "--condition-key", "donor"]
            + ["--out", str(tmp_path / "a.csv")],
        ),
    ):
        beside = ["--obs", "meta.csv", "--only-annotated", "--batch-key", "donor"]
        assert main([*words, *beside]) == code
        said = capsys.readouterr().err
        assert "3 of 51 cells have no value in the column 'age', such as 'c12'" in said


def test_mapping_leaves_out_cells_without_a_batch(partly, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(partly)
    frame = pandas.read_csv("meta.csv", index_col=0)
    frame["donor"] = frame["donor"].replace("old", "third")
    frame.to_csv(tmp_path / "new.csv")
    words = ["--obs", str(tmp_path / "new.csv"), "--out", str(tmp_path / "m"), "--epochs", "1"]
    assert main(["map", "run", "c.npz", *words]) == 1
    assert main(["map", "run", "c.npz", *words, "--only-annotated"]) == 0
    assert "new batches: third" in capsys.readouterr().err
    assert main(["denoise", str(tmp_path / "m"), "--out", str(tmp_path / "d.npz")]) == 0
    assert content(tmp_path / "d.npz")[0] == LEFT


def test_a_batch_by_name_asks_for_no_column_of_batches(partly, tmp_path, monkeypatch, capsys):
    """The cells that were mapped are those that later commands are of."""
    monkeypatch.chdir(partly)
    words = ["--obs", "meta.csv", "--only-annotated", "--batch-name", "third", "--epochs", "1"]
    assert main(["map", "run", "c.npz", *words, "--out", str(tmp_path / "m")]) == 0
    assert "51 cells of c.npz" in capsys.readouterr().err
    assert main(["denoise", str(tmp_path / "m"), "--out", str(tmp_path / "d.npz")]) == 0
    assert content(tmp_path / "d.npz")[0] == [f"c{i}" for i in range(9, 60)]


def test_only_annotated_needs_a_table_or_a_column(partly, tmp_path, capsys):
    words = ["--out", tmp_path / "r", "--only-annotated", *SMALL]
    assert call("train", partly / "c.npz", *words) == 1
    assert "--only-annotated leaves out cells that the table of --obs lacks, or" in (
        capsys.readouterr().err
    )
    (tmp_path / "none.csv").write_text("cell,donor\nc0,\nc1,\n")
    words += ["--obs", tmp_path / "none.csv", "--batch-key", "donor"]
    assert call("train", partly / "c.npz", *words) == 1
    assert "no cell has a value in all of donor" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_an_mtx_without_names_says_how_to_turn_it_in_words_of_options(tmp_path, capsys):
    (tmp_path / "a.mtx").write_text(
        "%%MatrixMarket matrix coordinate integer general\n9 3 4\n1 1 2\n2 2 1\n3 3 1\n9 3 1\n"
    )
    words = "--epochs", "1", "--latent", "2", "--hidden", "4", "--validation", "0"
    for more, n_genes in ((), 3), (("--transpose",), 9):
        run = tmp_path / f"run{n_genes}"
        assert call("train", tmp_path / "a.mtx", "--out", run, *words, *more) == 0
        warned = "9 cells and 3 genes; if that is the wrong way round, pass --transpose\n"
        assert (warned in capsys.readouterr().err) == (n_genes == 3)
        assert SCVI.load(run / "model.npz").n_genes == n_genes


def test_batches_that_are_numbers_keep_their_order_and_none_is_missing(place, tmp_path, capsys):
    counts = made_counts()
    counts.obs["lane"] = np.where(counts.obs["donor"] == "old", 10, 9)
    runs.write_counts(tmp_path / "c.npz", counts)
    assert (
        call("train", tmp_path / "c.npz", "--out", tmp_path / "r", "--batch-key", "lane", *SMALL)
        == 0
    )
    assert SCVI.load(tmp_path / "r" / "model.npz").batches == ["9", "10"]
    counts.obs = {"lane": np.where(np.arange(60) == 7, None, "a")}
    runs.write_h5ad(tmp_path / "m.h5ad", counts)
    assert call("train", tmp_path / "m.h5ad", "--out", tmp_path / "s", "--batch-key", "lane") == 1
    assert "batch: 1 of 60 cells has no label, the first of them cell 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, arguments",
    [
        ([], {}),
        (
            ["--library-size", "100", "--samples", "3", "--seed", "4"],
            dict(library_size=100.0, n_samples=3, seed=4),
        ),
        (["--transform-batch", "old"], dict(transform_batch="old")),
    ],
)
def test_denoise_is_denoise(place, model, words, arguments):
    counts = made_counts()
    mu = model.denoise(counts.X, counts.obs["donor"], **arguments)
    (place / "d.h5ad").unlink(missing_ok=True)
    for name in ("d.csv", "d.npz"):
        assert call("denoise", place / "run", "--out", place / name, *words) == 0
    assert (
        call("denoise", place / "run", place / "counts.h5ad", "--out", place / "d.h5ad", *words)
        == 0
    )
    header, *rows = rows_of(place / "d.csv")
    assert header == ["cell", *model.genes]
    np.testing.assert_array_equal(
        np.array([row[1:] for row in rows], np.float64).astype(np.float32), mu
    )
    np.testing.assert_array_equal(np.load(place / "d.npz", allow_pickle=False)["scvi_denoised"], mu)
    data = anndata.read_h5ad(place / "d.h5ad")
    np.testing.assert_array_equal(data.layers["scvi_denoised"], mu)
    assert data.uns["kept"] == "note"


def test_denoise_of_some_genes_has_their_columns_only(place, model, tmp_path, capsys):
    counts = made_counts()
    genes = ["G7", "G0-1", "G2"]
    mu = model.denoise(counts.X, counts.obs["donor"], seed=5)
    expected = mu[:, [model.genes.index(gene) for gene in genes]]
    words = ["--seed", 5, "--genes", *genes]
    assert call("denoise", place / "run", "--out", tmp_path / "d.npz", *words) == 0
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["scvi_denoised"], expected)
        assert file["columns"].tolist() == genes
    h5ad = place / "counts.h5ad"
    assert call("denoise", place / "run", h5ad, "--out", tmp_path / "d.h5ad", *words) == 0
    data = anndata.read_h5ad(tmp_path / "d.h5ad")
    np.testing.assert_array_equal(data.layers["scvi_denoised"], expected)
    assert data.var_names.tolist() == genes
    capsys.readouterr()
    assert call("denoise", place / "run", "--out", tmp_path / "e.csv", "--genes", "G2", "CD3D") == 1
    said = capsys.readouterr().err
    assert "CD3D" in said and "G2," not in said.split(";")[0]
    assert not (tmp_path / "e.csv").exists()
    with pytest.raises(ValueError, match=r"pass \['G2'\]"):
        model.denoise(counts.X, counts.obs["donor"], genes="G2")


@pytest.mark.parametrize("groups", [["T cell"], ["T cell", "B cell"]])
def test_de_is_differential_expression(place, model, capsys, groups):
    counts = made_counts()
    masks = [counts.obs["kind"] == group for group in groups]
    expected = model.differential_expression(
        counts.X,
        *masks,
        batch=counts.obs["donor"],
        mode="change",
        delta=0.1,
        fdr=0.2,
        n_samples=200,
        seed=3,
    )
    assert (
        call(
            "de",
            place / "run",
            "--key",
            "kind",
            "--groups",
            *groups,
            "--mode",
            "change",
            "--delta",
            0.1,
            "--fdr",
            0.2,
            "--samples",
            200,
            "--seed",
            3,
            "--rows",
            4,
            "--csv",
            place / "de.csv",
            "--volcano",
            place / "de.png",
        )
        == 0
    )
    header, *rows = rows_of(place / "de.csv")
    table = dict(zip(header, zip(*rows)))
    assert list(table["gene"]) == list(expected["gene"])
    np.testing.assert_array_equal(np.array(table["lfc_mean"], float), expected["lfc_mean"])
    out = capsys.readouterr().out
    assert expected.head(4).split("\n", 1)[1] in out  # the first line names the groups
    assert (
        f"a: T cell ({masks[0].sum()} cells), b: {'rest' if len(groups) == 1 else 'B cell'} ("
        in out
    )
    assert list(table["group"]) == ["T cell"] * 12
    assert (place / "de.png").read_bytes()[:4] == b"\x89PNG"


def test_de_of_all_groups_is_one_table_that_names_them(place, model, tmp_path, capsys):
    counts = made_counts()
    asked = dict(batch=counts.obs["donor"], n_samples=100, seed=3)
    expected = model.differential_expression(counts.X, groupby=counts.obs["kind"], **asked)
    words = ["--key", "kind", "--all-groups", "--samples", 100, "--seed", 3, "--rows", 2]
    files = ["--csv", tmp_path / "de.csv", "--volcano", tmp_path / "de.png"]
    assert call("de", place / "run", *words, *files) == 0
    out = capsys.readouterr().out
    assert "groups of kind" in out and expected.head(2) in out
    assert "a: B cell (" in out and "a: T cell (" in out
    header, *rows = rows_of(tmp_path / "de.csv")
    table = dict(zip(header, zip(*rows)))
    assert header[:3] == ["group", "comparison", "gene"] and len(rows) == 2 * 12
    assert list(table["group"]) == ["B cell"] * 12 + ["T cell"] * 12
    assert set(table["comparison"]) == {"rest"}
    np.testing.assert_array_equal(np.array(table["lfc_mean"], float), expected["lfc_mean"])
    assert (tmp_path / "de.png").read_bytes()[:4] == b"\x89PNG"
    h5ad = place / "counts.h5ad"
    assert call("de", place / "run", h5ad, "--on-disk", *words, "--csv", tmp_path / "disk.csv") == 0
    assert (tmp_path / "disk.csv").read_text() == (tmp_path / "de.csv").read_text()


def test_de_of_the_batches_says_that_their_difference_is_removed(place, capsys):
    de = ["de", place / "run", "--key", "donor", "--all-groups", "--samples", 60]
    assert call(*de) == 0
    said = capsys.readouterr().err
    assert "of one batch in group 'new' (new 100%) and the rest (old 100%)" in said
    assert "train without --batch-key" in said


@pytest.mark.parametrize("kind", ["csv", "npz", "h5ad"])
def test_generated_cells_can_be_read_again(place, model, kind):
    out = place / f"new.{kind}"
    assert (
        call("generate", place / "run", "--cells", 9, "--batch", "old", "--seed", 2, "--out", out)
        == 0
    )
    found = read(out)
    np.testing.assert_array_equal(found.X.toarray(), model.generate(9, batch="old", seed=2))
    assert list(found.genes) == model.genes and found.cells[8] == "generated_8"


@pytest.mark.parametrize("kind", ["csv", "npz", "h5ad"])
def test_generated_cells_say_which_batch_they_are_of(place, model, tmp_path, capsys, kind):
    out = tmp_path / f"new.{kind}"
    assert call("generate", place / "run", "--cells", 9, "--out", out) == 0
    found = read(out)
    if kind == "csv":
        assert "no place for donor of each cell" in capsys.readouterr().err
        return
    labels = found.obs["donor"]
    np.testing.assert_array_equal(found.X.toarray(), model.generate(9))
    assert set(labels) == {"old", "new"}
    np.testing.assert_array_equal(labels, model.generate(9, return_batch=True)[1])


def test_a_model_that_scvi_tools_saved_becomes_a_run(tmp_path, capsys):
    """It is asked as one that was trained here; how deep cells are, is read off the counts."""
    folder = ROOT / "tests" / "data" / "scvi_folder" / "nb_covariates"
    recorded = dict(np.load(folder / "expected.npz", allow_pickle=False))
    obs = {key: recorded[key] for key in ("donor", "sex", "site", "age", "mito")}
    genes = [f"G{i}" for i in range(20)]
    counts = Counts(sparse.csr_array(recorded["x"]), genes, [f"c{i}" for i in range(12)], obs)
    runs.write_counts(tmp_path / "c.npz", counts.select_genes(np.arange(20)[::-1]))  # by name
    run = tmp_path / "run"
    words = ["import", folder, "--counts", tmp_path / "c.npz", "--out", run]
    assert call(*words) == 0
    assert "12 cells, 20 genes, 2 batches" in capsys.readouterr().err
    assert call("embed", run, "--out", tmp_path / "z.npz") == 0
    found = np.load(tmp_path / "z.npz")["X_scVI"]
    np.testing.assert_allclose(found, recorded["z_mean"], rtol=1e-5, atol=1e-6)
    model = SCVI.load(run / "model.npz")
    totals = recorded["x"].sum(axis=1)
    for b, label in enumerate(["d10", "d2"]):
        log_totals = np.log(totals[recorded["donor"] == label])
        np.testing.assert_allclose(model.library_log_mean[b], log_totals.mean(), rtol=1e-5)
    for command in (
        ["denoise", run, "--out", tmp_path / "mu.npz"],
        ["de", run, "--key", "sex", "--groups", "f", "--samples", 50],
        ["generate", run, "--cells", 5, "--out", tmp_path / "new.npz"],
        ["report", run],
    ):
        assert call(*command) == 0, command
    assert call("train", "--resume", "--out", run) == 1
    assert "holds a model, and no training to go on with" in capsys.readouterr().err
    assert call(*words) == 2 and "holds a run already" in capsys.readouterr().err
    words[-1] = tmp_path / "other"
    runs.write_counts(tmp_path / "c.npz", counts.select_genes(np.arange(15)))
    assert call(*words) == 1 and not (tmp_path / "other").exists()
    assert "5 of the 20 genes of the model are not among the 15" in capsys.readouterr().err
    assert call(*words, "--min-overlap", 0.7) == 0
    assert call("embed", tmp_path / "other", "--out", tmp_path / "z.npz") == 0
    words[1], words[-1] = tmp_path / "nothing", tmp_path / "third"
    assert call(*words) == 1 and "nothing: No such file" in capsys.readouterr().err


def test_generated_cells_are_as_deep_as_asked_for(place, model, tmp_path):
    out = tmp_path / "new.npz"
    assert call("generate", place / "run", "--cells", 5, "--library-size", 900, "--out", out) == 0
    np.testing.assert_array_equal(read(out).X.toarray(), model.generate(5, library_size=900.0))


def test_the_batch_is_asked_for_where_the_answer_depends_on_it_only(place, model, tmp_path, capsys):
    counts = made_counts()
    bare = Counts(counts.X, counts.genes, counts.cells, {"kind": counts.obs["kind"]})
    runs.write_counts(tmp_path / "bare.npz", bare)
    asked = [place / "run", tmp_path / "bare.npz"]
    out = ["--out", tmp_path / "mu.npz"]
    assert call("denoise", *asked, "--transform-batch", "old", *out) == 0
    np.testing.assert_array_equal(
        np.load(tmp_path / "mu.npz")["scvi_denoised"],
        model.denoise(counts.X, counts.obs["donor"], transform_batch="old"),
    )
    capsys.readouterr()
    for command in (
        ["denoise", *asked, *out],
        ["de", *asked, "--key", "kind", "--groups", "T cell"],
        ["report", *asked, "--out", tmp_path / "r.html"],
    ):
        assert call(*command) == 1
        assert "no column 'donor' of cells in the counts" in capsys.readouterr().err


def test_a_run_of_one_batch_never_asks_for_it(tmp_path):
    counts = made_counts()
    one = Counts(counts.X, counts.genes, counts.cells, {**counts.obs, "lane": np.full(60, "L1")})
    runs.write_counts(tmp_path / "one.npz", one)
    runs.write_counts(tmp_path / "bare.npz", counts)  # has no lane
    run = tmp_path / "r"
    short = [*SMALL, "--epochs", 1]
    assert call("train", tmp_path / "one.npz", "--out", run, "--batch-key", "lane", *short) == 0
    asked = [run, tmp_path / "bare.npz"]
    assert call("denoise", *asked, "--out", tmp_path / "mu.npz") == 0
    assert call("de", *asked, "--key", "kind", "--groups", "T cell", "--samples", 50) == 0
    assert call("report", *asked, "--out", tmp_path / "r.html") == 0


def test_a_number_of_each_cell_is_no_batch_and_no_label(tmp_path, capsys):
    counts = made_counts()
    totals = np.asarray(counts.X.sum(axis=1)).ravel().astype(int) * 10 + np.arange(60) % 10
    missing = np.where(np.arange(60) < 9, None, counts.obs["kind"])
    counts.obs |= {
        "n_counts": totals,
        "half": totals / 4,
        "annot": missing,
        "text": missing.astype(str),
    }
    runs.write_h5ad(tmp_path / "c.h5ad", counts)
    out = ["--out", tmp_path / "r", *SMALL, "--epochs", 1]
    assert call("train", tmp_path / "c.h5ad", *out, "--batch-key", "n_counts") == 0
    said = capsys.readouterr().err
    assert said.count("warning: batch: ") == 1 and "different labels for 60 cells, such as" in said
    out[1] = tmp_path / "s"
    assert call("train", tmp_path / "c.h5ad", *out, "--batch-key", "text") == 0
    said = capsys.readouterr().err
    assert "warning: batch: 9 cells have the label 'None', as cells without one do" in said
    for column, says in (
        ("n_counts", "different labels for 60 cells, such as"),
        ("text", "9 cells have the label 'None', as cells without one do, and are a category of"),
    ):
        out[1] = tmp_path / f"told {column}"
        assert call("train", tmp_path / "c.h5ad", *out, "--categorical", column) == 0
        said = capsys.readouterr().err
        assert said.count(f"warning: categorical '{column}': ") == 1 and says in said
    out[1] = tmp_path / "t"
    for key in ("half", "annot"):
        assert call("train", tmp_path / "c.h5ad", *out, "--batch-key", key) == 1
    said = capsys.readouterr().err
    assert "batch: 9 of 60 cells have no label, the first of them cell 0 ('c0');" in said

    assert call("report", tmp_path / "s", "--color", "half") == 0
    page = (tmp_path / "s" / "index.html").read_text()
    assert "against" not in page and "silhouette" not in page
    assert call("report", tmp_path / "s", "--color", "annot") == 0
    page = (tmp_path / "s" / "index.html").read_text()
    assert "3 k-means clusters against annot" in page
    assert call("de", tmp_path / "s", "--key", "annot", "--groups", "None") == 1
    assert "annot 'None'; there are: B cell, T cell\n" in capsys.readouterr().err


def test_impute_score_trains_anew_on_what_is_left(place, model, capsys):
    counts = made_counts()

    def impute(x):
        fresh = SCVI(12, 2, n_latent=4, n_hidden=8, likelihood="nb")
        fresh.fit(x, counts.obs["donor"], epochs=2, batch_size=16)
        return fresh.denoise(x, counts.obs["donor"], n_samples=10)

    expected = imputation.imputation_error(counts.X, impute, fraction=0.2, seed=1)
    assert call("impute-score", place / "run", "--fraction", 0.2, "--seed", 1, "--epochs", 2) == 0
    out, err = capsys.readouterr()
    printed = dict(re.findall(r"^(model|gene mean|pca) +([\d.]+)$", out, re.M))
    assert "training anew" in err and "imputing" in err
    assert printed == {name: f"{value:.4f}" for name, value in expected.items()}


@pytest.mark.filterwarnings("error")
def test_names_that_are_formulas_to_a_spreadsheet_are_kept_and_warned_of(tmp_path, capsys):
    """No name is changed without a word, and no formula is written without one."""
    genes = ["=2+3", "@SUM(A1)", "-a", "\tb", "\rc", "d=e", "g", "h-1"]
    x = np.arange(16.0, dtype=np.float32).reshape(2, 8)
    counts = Counts(sparse.csr_array(x), np.array(genes), np.array(["+cell", "cell"]), {})
    path = tmp_path / "table.csv"
    with pytest.warns(UserWarning, match=r": '\\tb', '\\rc', '\+cell' \.\.\. \(6 in all"):
        runs.write_cells(path, counts, "layers", "mu", x, counts.genes)
    frame = pandas.read_csv(path, index_col=0)
    assert list(frame.columns) == genes and list(frame.index) == ["+cell", "cell"]
    np.testing.assert_array_equal(frame, x)
    with pytest.warns(UserWarning, match=r"names that spreadsheets take .*\(6 in all"):
        runs.write_counts(path, counts)
    quiet = Counts(counts.X[:, 5:], counts.genes[5:], np.array(["a=", "b"]), {})
    runs.write_cells(path, quiet, "layers", "mu", -x[:, 5:], quiet.genes)

    model = SCVI(8, n_latent=2, n_hidden=4)
    model.trained = True
    table = model.differential_expression(counts, [True, False], n_samples=9, genes=genes)
    with pytest.warns(UserWarning, match=r"formulas, .*\(5 in all"):
        table.to_csv(path)
    assert sorted(pandas.read_csv(path)["gene"]) == sorted(genes)


# ---------------------------------------------------------------------------------------------------------------- report
def test_the_report_holds_its_pictures_and_needs_no_network(place):
    assert call("report", place / "run", "--color", "kind") == 0
    page = (place / "run" / "index.html").read_text()
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 15 and all(base64.b64decode(p)[:4] == b"\x89PNG" for p in pictures)
    assert not re.search(r"https?://|<script|<link", page)
    assert (
        "2 k-means clusters against kind" in page
        and "entropy of batch mixing" in page
        and "3 epochs" in page
    )


def test_a_report_of_few_cells_one_latent_dimension_and_no_epoch(place, tmp_path):
    model = SCVI(12, n_latent=1, n_hidden=4)
    model.genes = list(runs.read_counts(place / "counts.npz").genes)
    report.write(
        tmp_path / "a.html",
        model,
        runs.History(),
        runs.read_counts(place / "counts.npz")[:3],
        label_name="<b>&",
        title="<script>",
    )
    page = (tmp_path / "a.html").read_text()
    assert page.count("<img") == 7 and "no whole epoch" in page and "against" not in page
    assert (
        "<script>" not in page and "<b>" not in page and "&lt;b&gt;&amp;" in page
    )  # names are text


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_the_report_says_when_an_elbo_is_given_the_totals(library):
    history = runs.History({"epoch": [1], "seconds": [2.0], "validation_elbo": [-71.26]})
    found = dict(report.facts(SCVI(12, library=library), history, 3))
    said = found["held-out ELBO, last epoch"]
    assert said.startswith("-71.3 nats a cell")
    assert ("given each cell's total, so not to be compared" in said) == (library == "observed")


def test_many_labels_are_few_colours():
    labels = np.repeat([f"type {i:02d}" for i in range(34)], np.arange(34, 0, -1))
    found = report.most_frequent(labels)
    assert sorted(set(found)) == ["others", *(f"type {i:02d}" for i in range(29))]
    assert np.sum(found == "others") == 5 + 4 + 3 + 2 + 1
    thirty = labels[np.isin(labels, np.unique(labels)[:30])]
    np.testing.assert_array_equal(report.most_frequent(thirty), thirty)


@pytest.fixture
def reported(place, tmp_path):
    """A copy of the run of `place`, of which a report was made."""
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "colors.json").unlink(missing_ok=True)
    assert call("report", tmp_path / "run", "--color", "kind") == 0
    return tmp_path / "run"


def colors_in(page):
    """Name of a label -> its colour, in the legends of a page."""
    return dict(
        found[::-1] for found in re.findall(r'fill="(#\w+)"/></svg>(.*?) <small>', page.read_text())
    )


def test_labels_keep_their_colours_in_later_reports_of_a_run(reported):
    first = colors_in(reported / "index.html")
    assert {"T cell", "B cell", "new", "old"} <= set(first)
    assert json.loads((reported / "colors.json").read_text()) == first
    swapped = first | {"T cell": first["B cell"], "B cell": first["T cell"], "new": "#123456"}
    (reported / "colors.json").write_text(json.dumps(swapped | {"not here": "#000000"}))
    assert call("report", reported, "--color", "kind", "--out", reported / "again.html") == 0
    assert colors_in(reported / "again.html") == swapped
    assert json.loads((reported / "colors.json").read_text())["not here"] == "#000000"


@pytest.mark.parametrize("taken_from", ["{0}", "{0}/index.html"])
def test_another_run_takes_the_colours_of_a_report(reported, taken_from, tmp_path):
    odd = {"T cell": "#654321", "B cell": "#123456"}
    other = tmp_path / "other"
    shutil.copytree(reported, other)
    (reported / "colors.json").write_text(json.dumps(odd))
    words = ["--color", "kind", "--colors-from", taken_from.format(reported)]
    assert call("report", other, *words) == 0
    found = colors_in(other / "index.html")
    assert found["B cell"] == "#123456" and found["T cell"] == "#654321"
    assert json.loads((other / "colors.json").read_text()) == found


def test_a_report_without_colours_to_take_is_wrong_usage(reported, place, capsys):
    words = ["--colors-from", place / "nothing", "--out", reported / "p.html"]
    assert call("report", reported, *words) == 2
    assert "make a report of that run first" in capsys.readouterr().err
    assert not (reported / "p.html").exists()


def test_a_damaged_file_of_colours_is_said_before_the_work(reported, capsys):
    (reported / "colors.json").write_text("{")
    assert call("report", reported, "--out", reported / "p.html") == 1
    assert "colors.json: not readable as JSON" in capsys.readouterr().err


def test_colours_do_not_overwrite_what_a_link_leads_to(reported, tmp_path, capsys):
    precious = tmp_path / "precious.json"
    precious.write_text("{}")
    (reported / "colors.json").unlink()
    (reported / "colors.json").symlink_to(precious)
    assert call("report", reported, "--out", reported / "p.html") == 0
    assert "later reports may have other colours" in capsys.readouterr().err
    assert precious.read_text() == "{}" and (reported / "p.html").exists()


# ------------------------------------------------------------------------------------------------------- what goes wrong
WRONG_USAGE = [
    ([], "COMMAND"),
    (["fly"], "invalid choice"),
    (["train"], "--out"),
    (["train", "--out", "{new}"], "COUNTS is missing"),
    (["train", "{counts}", "--out", "{new}", "--epochs", "0"], "whole number of at least 1"),
    (["train", "{counts}", "--out", "{new}", "--epochs", "many"], "whole number of at least 1"),
    (["train", "{counts}", "--out", "{new}", "--validation", "1"], "fraction from 0 to below 1"),
    (["train", "{counts}", "--out", "{new}", "--learning-rate", "0"], "above 0"),
    (["train", "{counts}", "--out", "{new}", "--learning-rate", "nan"], "above 0"),
    (["train", "{counts}", "--out", "{new}", "--kl-warmup", "0.6"], "from 0 to 0.5"),
    (["train", "{counts}", "--out", "{new}", "--seed", "-1"], "--seed"),
    (["train", "{counts}", "--out", "{new}", "--likelihood", "normal"], "zinb"),
    (["train", "{counts}", "--out", "{new}", "--selection", "pearson"], "give both"),
    (["train", "{counts}", "--out", "{new}", "--epo", "3"], "unrecognized"),
    (["train", "{counts}", "--out", "{run}"], "holds a run already"),
    (["train", "--out", "{run}", "--resume", "--latent", "9"], "--latent 9 contradicts"),
    (["train", "--out", "{run}", "--resume", "--early-stopping"], "begun with the default"),
    (["embed", "{run}"], "--out"),
    (["embed", "{run}", "--out", "{new}.txt"], "must end in .csv, .npz or .h5ad"),
    (["denoise", "{run}", "--out", "{new}.csv", "--library-size", "-3"], "above 0"),
    (["de", "{run}", "--groups", "T cell"], "--key"),
    (["de", "{run}", "--key", "kind", "--groups", "a", "b", "c"], "one label or two, not 3"),
    (["de", "{run}", "--key", "kind"], "either --groups"),
    (["de", "{run}", "--key", "kind", "--groups", "T cell", "--all-groups"], "either --groups"),
    (["de", "{run}", "--key", "kind", "--groups", "a", "--fdr", "1"], "between 0 and 1"),
    (["train", "{counts}", "--out", "{new}", "--batch-size", "1"], "whole number of at least 2"),
    (
        ["train", "{counts}", "--out", "{new}", "--early-stopping", "--validation", "0"],
        "--validation 0 holds out none",
    ),
    (
        [
            "train",
            "{counts}",
            "--out",
            "{new}",
            "--genes",
            "5",
            "--selection",
            "pearson",
            "--on-disk",
        ],
        "leave out --on-disk",
    ),
    (
        ["embed", "{run}", "--out", "{counts}"],
        "--out {counts} is the counts, and would be replaced",
    ),
    (["denoise", "{run}", "--out", "{counts}"], "is the counts"),
    (["generate", "{run}", "--cells", "3", "--out", "{counts}"], "is the counts"),
    (
        ["embed", "{run}", "{other}", "--out", "{counts}"],
        "is the counts that the run was trained on",
    ),
    (["embed", "{run}", "{other}", "--out", "{other}"], "is the counts"),
    (["embed", "{run}", "--out", "{run}/model.npz"], "a file of the run"),
    (["denoise", "{run}", "--out", "{run}/history.csv"], "a file of the run"),
    (["generate", "{run}", "--cells", "3", "--out", "{run}/model.npz"], "a file of the run"),
    (
        ["de", "{run}", "--key", "kind", "--groups", "B cell", "--csv", "{run}/history.csv"],
        "--csv {run}/history.csv is a file",
    ),
    (["de", "{run}", "--key", "kind", "--groups", "B cell", "B cell"], "both are 'B cell'"),
    (
        ["de", "{none}", "--key", "kind", "--groups", "B cell", "--volcano", "{new}.txt"],
        "must end in .png, .pdf or .svg",
    ),
    (
        ["de", "{none}", "--key", "kind", "--groups", "B cell", "--csv", "{new}.png"],
        "must end in .csv",
    ),
    (["report", "{run}", "--out", "{run}/config.json"], "must end in .html"),
    (["generate", "{run}", "--out", "{new}.npz"], "--cells"),
    (["impute-score", "{run}", "--fraction", "0"], "between 0 and 1"),
]

FAILURES = [
    (["train", "{none}.h5ad", "--out", "{new}"], "none.h5ad: no such file"),
    (["train", "{bad}", "--out", "{new}"], "counts are whole numbers"),
    (["train", "{counts}", "--out", "{new}", "--layer", "spliced"], "only .h5ad and .loom"),
    (
        ["train", "{counts}", "--out", "{new}", "--batch-key", "lane"],
        "no column 'lane' of cells in the counts; there are: kind",
    ),
    (
        ["train", "{counts}", "--out", "{new}", "--genes", "99"],
        "has 12 genes, fewer than --genes 99",
    ),
    (
        ["train", "{counts}", "--out", "{new}", "--on-disk"],
        "--on-disk: only .h5ad files are read from the disk",
    ),
    (
        ["embed", "{run}", "{bad}", "--out", "{new}.csv"],
        r"looks normalised or scaled.* \(--layer counts\)",
    ),
    (["train", "{counts}", "--out", "{counts}"], "counts.npz"),
    (["train", "--out", "{new}", "--resume"], "is no run: it has no config.json"),
    (["train", "{other}", "--out", "{run}", "--resume"], "this one has {'n_rows': 30"),
    (["embed", "{new}", "--out", "{new}.csv"], "is no run"),
    (["embed", "{empty}", "--out", "{new}.csv"], "has no model.npz"),
    (["embed", "{run}", "--out", "{none}/z.csv"], "there is no folder"),
    (
        ["embed", "{run}", "{few}", "--out", "{new}.csv"],
        "1 of the 12 genes of the model are not among the 11 .*: G0-1;",
    ),
    (["embed", "{run}", "{counts}", "--layer", "a", "--out", "{new}.csv"], "only .h5ad and .loom"),
    (
        ["embed", "{run}", "--batch-key", "kind", "--out", "{new}.csv"],
        "batch: B cell, T cell unknown; the model knows new, old",
    ),
    (["embed", "{moved}", "--out", "{new}.csv"], "no longer there; pass their path as COUNTS"),
    (["embed", "{broken}", "--out", "{new}.csv"], "config.json: damaged"),
    (["embed", "{strange}", "--out", "{new}.csv"], "not of a run that this program reads"),
    (
        ["denoise", "{run}", "--transform-batch", "middle", "--out", "{new}.csv"],
        "middle unknown; the model knows new, old",
    ),
    (
        ["de", "{run}", "--key", "kind", "--groups", "NK"],
        "no cell has kind 'NK'; there are: B cell, T cell",
    ),
    (["de", "{run}", "--key", "age", "--groups", "NK"], "no column 'age'"),
    (
        ["de", "{run}", "--key", "kind", "--groups", "B cell", "--csv", "{none}/a.csv"],
        "there is no folder",
    ),
    (
        ["generate", "{run}", "--cells", "3", "--batch", "middle", "--out", "{new}.npz"],
        "middle unknown",
    ),
    (["report", "{run}", "--color", "age"], "no column 'age'"),
]


@pytest.fixture(scope="module")
def names(place):
    """What the words in braces above stand for; some are made here."""
    bad, few, other = place / "bad.csv", place / "few.npz", place / "other.npz"
    bad.write_text("cell,g\nc,0.5\n")
    counts = made_counts()
    runs.write_counts(few, counts.select_genes(np.arange(11)))
    runs.write_counts(other, counts[:30])
    good = json.loads((place / "run" / "config.json").read_text())
    for name, config in (
        ("empty", good),
        ("moved", {**good, "counts": "/nowhere/counts.npz"}),
        ("broken", None),
        ("strange", {**good, "settings": {"n_latents": 3}}),
    ):
        (place / name).mkdir()
        (place / name / "config.json").write_text("{" if config is None else json.dumps(config))
        if name != "empty":
            (place / name / "model.npz").write_bytes((place / "run" / "model.npz").read_bytes())
    here = ("run", "none", "new", "empty", "moved", "broken", "strange")
    return {
        "counts": place / "counts.npz",
        "bad": bad,
        "few": few,
        "other": other,
        **{name: place / name for name in here},
    }


@pytest.mark.parametrize("words, says", WRONG_USAGE)
def test_wrong_usage_is_2_and_says_why(names, capsys, words, says):
    kept = [names["counts"], names["other"], *names["run"].iterdir()]
    before = [path.read_bytes() for path in kept]
    assert main([word.format(**names) for word in words]) == 2
    out, err = capsys.readouterr()
    assert [path.read_bytes() for path in kept] == before
    assert says.format(**names) in err.splitlines()[-1] and "Traceback" not in err and not out
    assert not names["new"].exists()


@pytest.mark.parametrize("words, says", FAILURES)
def test_a_failure_is_1_and_one_line(names, capsys, words, says):
    before = {p: p.read_bytes() for p in names["run"].iterdir()}
    assert main([word.format(**names) for word in words]) == 1
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "error:" in line]
    assert (
        len(lines) == 1
        and re.search(says.replace("{", r"\{"), lines[0])
        and lines[0] == err.splitlines()[-1]
    ), err
    assert "Traceback" not in err and (not out or words[0] == "de")
    assert {p: p.read_bytes() for p in names["run"].iterdir()} == before
    assert not list(names["run"].parent.glob("*.part*"))


def test_counts_are_added_to_but_never_replaced(place, tmp_path, capsys):
    counts = tmp_path / "c.h5ad"
    shutil.copy(place / "counts.h5ad", counts)
    assert call("train", counts, "--out", tmp_path / "r", *SMALL) == 0
    assert call("train", counts, "--out", tmp_path / "few", "--genes", 5, *SMALL) == 0
    assert call("embed", tmp_path / "few", "--out", counts) == 0
    assert call("denoise", tmp_path / "r", "--out", counts) == 0
    data = anndata.read_h5ad(counts)
    assert data.obsm["X_scVI"].shape == (60, 4) and data.layers["scvi_denoised"].shape == (60, 12)
    np.testing.assert_array_equal(data.X.toarray(), made_counts().X.toarray())
    assert data.uns["kept"] == "note"
    before = counts.read_bytes()
    capsys.readouterr()
    for name in ("csv", "html", "png"):
        os.link(counts, tmp_path / f"link.{name}")
    de = ["de", tmp_path / "r", "--key", "kind", "--groups", "T cell", "--samples", "9"]
    for words in (
        ["denoise", tmp_path / "few", "--out", counts],
        ["denoise", tmp_path / "few", counts, "--out", counts],
        ["embed", tmp_path / "r", place / "counts.h5ad", "--out", counts],  # a copy of another file
        ["generate", tmp_path / "r", "--cells", 3, "--out", counts],
        ["embed", tmp_path / "r", "--out", tmp_path / "link.csv"],
        ["report", tmp_path / "r", "--out", tmp_path / "link.html"],
        [*de, "--csv", tmp_path / "link.csv"],
        [*de, "--volcano", tmp_path / "link.png"],
    ):
        assert (
            call(*words) == 2
            and "and would be replaced; give another path" in capsys.readouterr().err
        ), words
        assert counts.read_bytes() == before and os.path.samefile(counts, tmp_path / "link.csv")


def test_an_h5ad_that_is_not_read_is_never_written_over(place, tmp_path, capsys):
    """An analysis of the same cells, in another file than the run was trained on."""
    mine = tmp_path / "my_analysis.h5ad"
    shutil.copy(place / "counts.h5ad", mine)
    before = mine.read_bytes()
    run = place / "run"
    for words in (
        ["embed", run, "--out", mine],
        ["denoise", run, "--out", mine],
        ["generate", run, "--cells", 3, "--out", mine],
        ["embed", run, place / "counts.h5ad", "--out", mine],
    ):
        assert call(*words) == 2, words
        said = capsys.readouterr().err
        assert f"--out {mine} is there already" in said and "name a new file" in said
        assert mine.read_bytes() == before


def test_the_table_of_cells_of_a_run_is_never_replaced(place, tmp_path, capsys):
    counts = made_counts()
    of_run, given = tmp_path / "meta.csv", tmp_path / "more.csv"
    pandas.DataFrame(counts.obs, index=counts.cells).to_csv(of_run)
    pandas.DataFrame({"more": counts.obs["kind"]}, index=counts.cells).to_csv(given)
    run = tmp_path / "r"
    assert call("train", place / "counts.npz", "--out", run, "--obs", of_run, *SMALL) == 0
    de = ["de", run, "--key", "kind", "--groups", "T cell", "--samples", 9]
    for target, *words in (
        (of_run, "embed", run, "--out", of_run),
        (of_run, "denoise", run, "--out", of_run),
        (of_run, "generate", run, "--cells", 3, "--out", of_run),
        (of_run, *de, "--csv", of_run),
        (given, "embed", run, "--obs", given, "--out", given),
    ):
        before = target.read_bytes()
        assert call(*words) == 2, words
        said = capsys.readouterr().err
        assert f"{target} is what is known of the cells (--obs), and would be replaced" in said
        assert target.read_bytes() == before


def test_results_of_a_raw_that_is_wider_than_x_are_a_new_file(tmp_path, capsys):
    """As scanpy leaves it: raw has all genes, X the most variable ones, normalised."""
    counts = made_counts()
    whole = anndata.AnnData(
        sparse.csr_matrix(counts.X),
        obs=pandas.DataFrame(counts.obs, index=counts.cells),
        var=pandas.DataFrame(index=runs.unique_names(counts.genes)),
        uns={"kept": "note"},
    )
    data = whole[:, :7].copy()
    data.raw = whole
    data.X = data.X.log1p()
    path = tmp_path / "c.h5ad"
    data.write_h5ad(path)
    assert call("train", path, "--out", tmp_path / "r", "--layer", "raw", *SMALL) == 0
    out = tmp_path / "d.h5ad"
    assert call("denoise", tmp_path / "r", "--out", out) == 0
    said = capsys.readouterr().err
    assert "d.h5ad: a new file of counts, obs and scvi_denoised, without what else is in" in said
    assert "its layers are of 7 genes, and other 12 were read" in said
    found = anndata.read_h5ad(out)
    mu = SCVI.load(tmp_path / "r" / "model.npz").denoise(counts.X)
    np.testing.assert_array_equal(found.layers["scvi_denoised"], mu)
    np.testing.assert_array_equal(found.X.toarray(), counts.X.toarray())
    assert list(found.obs["kind"]) == list(counts.obs["kind"]) and found.shape == (60, 12)
    before = path.read_bytes()
    assert call("denoise", tmp_path / "r", "--out", path) == 2  # there it would take its place
    assert "is the counts, and would be replaced" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert call("embed", tmp_path / "r", "--out", path) == 0  # cells are the same
    assert anndata.read_h5ad(path).uns["kept"] == "note"


def test_results_of_a_file_of_anndata_0_6_are_a_new_file(tmp_path, capsys):
    with pytest.warns(UserWarning, match="'odd' left out"):
        write_anndata_0_6(tmp_path / "old.h5ad")
        old = read(tmp_path / "old.h5ad")
    assert call("train", tmp_path / "old.h5ad", "--out", tmp_path / "r", *SMALL) == 0
    for command, place in (("embed", "obsm"), ("denoise", "layers")):
        assert call(command, tmp_path / "r", "--out", tmp_path / f"{command}.h5ad") == 0
        said = capsys.readouterr().err
        assert "it was written by anndata before 0.7, and nothing can be added to it" in said
        found = anndata.read_h5ad(tmp_path / f"{command}.h5ad")
        assert len(getattr(found, place)) == 1 and list(found.obs["lane"]) == list(old.obs["lane"])
        assert call(command, tmp_path / "r", "--out", tmp_path / "old.h5ad") == 2


def test_results_of_transposed_counts_are_a_new_file(place, tmp_path, capsys):
    turned = anndata.read_h5ad(place / "counts.h5ad").T
    turned.write_h5ad(tmp_path / "t.h5ad")
    assert call("train", tmp_path / "t.h5ad", "--out", tmp_path / "r", "--transpose", *SMALL) == 0
    assert call("embed", tmp_path / "r", "--out", tmp_path / "z.h5ad") == 0
    assert "its 12 rows are not the 60 cells that were read" in capsys.readouterr().err
    assert anndata.read_h5ad(tmp_path / "z.h5ad").obsm["X_scVI"].shape == (60, 4)


def test_counts_are_not_where_a_run_keeps_its_history(tmp_path, capsys):
    runs.write_counts(tmp_path / "history.csv", made_counts())
    assert call("train", tmp_path / "history.csv", "--out", tmp_path, *SMALL) == 2
    assert (
        "has the name of a file of the run" in capsys.readouterr().err
        and len(list(tmp_path.iterdir())) == 1
    )


def test_files_of_a_run_are_tried_before_the_training(place, tmp_path, capsys):
    """A link in a run's folder is not followed: in that of a stranger it could lead to any file."""
    words = ["train", place / "counts.npz", *SMALL, "--out"]
    (tmp_path / "r" / "history.csv").mkdir(parents=True)
    assert call(*words, tmp_path / "r") == 1
    assert "history.csv cannot be written: it is a folder" in capsys.readouterr().err
    assert os.listdir(tmp_path / "r") == ["history.csv"]
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "r" / "history.csv").rmdir()
    (tmp_path / "r" / "history.csv").symlink_to(tmp_path / "mine")
    assert call(*words, tmp_path / "r") == 1
    assert "history.csv is a link to" in capsys.readouterr().err
    assert (tmp_path / "mine").read_text() == "precious"
    assert call(*words, tmp_path / ("x" * 300) / "r") == 1
    assert "no folder can be made there" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "new/deep"):  # nothing comes of it, and all is as it was
        assert call("train", place / "nowhere.npz", "--out", tmp_path / folder) == 1
    assert sorted(os.listdir(tmp_path)) == ["empty", "mine", "r"]


def test_the_default_page_of_a_report_is_no_link_to_elsewhere(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "mine.html").write_text("precious")
    (tmp_path / "run" / "index.html").unlink(missing_ok=True)
    (tmp_path / "run" / "index.html").symlink_to(tmp_path / "mine.html")
    assert call("report", tmp_path / "run") == 1
    assert "index.html is a link to" in capsys.readouterr().err
    assert (tmp_path / "mine.html").read_text() == "precious"


def test_a_matrix_by_columns_is_refused_in_words_of_options(place, tmp_path, capsys):
    data = anndata.read_h5ad(place / "counts.h5ad")
    data.X = data.X.tocsc()
    data.write_h5ad(tmp_path / "c.h5ad")
    assert call("train", tmp_path / "c.h5ad", "--out", tmp_path / "r", "--on-disk") == 1
    err = capsys.readouterr().err
    assert "without --on-disk" in err and "backed" not in err


def test_debug_shows_the_traceback_and_the_line(names, capsys):
    assert call("train", names["bad"], "--out", names["new"], "--debug") == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "_in_memory" in err and "error: " in err.splitlines()[-1]


def test_an_error_that_nobody_foresaw_is_still_one_line_with_its_kind(names, capsys, monkeypatch):
    monkeypatch.setattr(SCVI, "latent", lambda *_: {}["what"])
    assert call("embed", names["run"], "--out", names["new"].with_suffix(".csv")) == 1
    assert capsys.readouterr().err.splitlines() == [
        f"{program()} embed: error: KeyError: what (--debug shows where)"
    ]


def test_a_failed_training_can_be_tried_again(names, tmp_path, capsys):
    words = ["train", names["counts"], "--out", tmp_path / "r", *SMALL]
    assert (
        call(*words, "--validation", "0.99", "--early-stopping") == 1
    )  # a minibatch of one cell: batch norm
    assert "error" in capsys.readouterr().err.splitlines()[-1]
    assert call(*words) == 0


def test_a_missing_package_is_named(names, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "anndata", None)
    for words in (
        ["embed"],
        ["denoise"],
        ["generate", "--cells", 3],
    ):  # before any work: there is no such run
        assert call(*words, names["none"], "--out", names["new"].with_suffix(".h5ad")) == 1
        assert 'pip install "minigrad-scvi[singlecell]"' in capsys.readouterr().err
    assert call("embed", names["run"], "--out", names["new"].with_suffix(".h5ad")) == 1
    assert 'pip install "minigrad-scvi[singlecell]"' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "cupy", None)
    out = names["new"].with_name("of_cupy")  # `new` must stay new for the tests of wrong usage
    assert call("train", names["counts"], "--out", out, "--device", "cupy") == 1
    assert "pip install" in capsys.readouterr().err


def test_empty_cells_are_a_warning_line(place, tmp_path, capsys):
    counts = made_counts()
    counts.X = sparse.csr_array(counts.X.toarray() * (np.arange(60) > 1)[:, None])
    runs.write_counts(tmp_path / "c.npz", counts)
    assert call("train", tmp_path / "c.npz", "--out", tmp_path / "r", *SMALL) == 0
    assert (
        "warning: 2 cells without counts are left out of training"
        in capsys.readouterr().err.splitlines()
    )


def test_coordinates_of_empty_cells_are_said_to_say_nothing(place, tmp_path, capsys):
    counts = made_counts()
    x = counts.X.toarray()
    x[[5, 17]] = 0
    empty = Counts(sparse.csr_array(x), counts.genes, counts.cells, counts.obs)
    runs.write_counts(tmp_path / "e.npz", empty)
    for path, said in ((tmp_path / "e.npz", True), (place / "counts.npz", False)):
        assert call("embed", place / "run", path, "--out", tmp_path / "z.csv") == 0
        found = (
            "warning: 2 of 60 cells have no counts of the run's genes" in capsys.readouterr().err
        )
        assert found == said


def test_a_column_that_is_not_there_is_looked_for_in_a_table(tmp_path, capsys):
    counts = made_counts()
    runs.write_counts(tmp_path / "bare.npz", Counts(counts.X, counts.genes, counts.cells))
    assert (
        call("train", tmp_path / "bare.npz", "--out", tmp_path / "a", "--batch-key", "donor") == 1
    )
    assert "A table of the cells may have it: --obs TABLE" in capsys.readouterr().err
    words = ["--out", tmp_path / "a", "--categorical", "sex"]
    assert call("train", tmp_path / "bare.npz", *words) == 1
    said = capsys.readouterr().err
    assert "Give a table of the cells that has it: --obs TABLE" in said and "AnnData" not in said


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.csv"
    runs.write_table(path, ["a"], [[1.0]])

    def rows():
        yield [2.0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.write_table(path, ["a"], rows())
    assert path.read_text().split() == ["a", "1"] and list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------------------------ help
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_manual_with_examples(command, capsys):
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    assert (
        "examples:" in text
        and f"{command} " in text.split("examples:")[1]
        and max(map(len, text.splitlines())) <= 130
    )
    assert "None" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_words_that_the_parser_takes(command):
    for line in COMMANDS[command][2].split("\n"):
        assert parser().parse_args([command, *shlex.split(line)]).command == command


def test_as_a_program(place):
    done = in_own_process("--help")
    assert done.returncode == 0 and "python -m models train" in done.stdout and not done.stderr
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    name, target = setup["options.entry_points"]["console_scripts"].strip().split(" = ")
    module, function = target.split(":")
    assert name == "minigrad" and getattr(importlib.import_module(module), function) is main


def test_a_reader_that_has_had_enough_is_no_failure(place):
    words = ["de", place / "run", "--key", "kind", "--groups", "T cell", "--samples", "50"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "models", *map(str, words)],
        cwd=ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writing)
    assert done.returncode == 0
    # A model of three epochs has not learnt the groups, and says so: that is all that is said.
    assert all(re.match("warning: group '", line) for line in done.stderr.splitlines())


TRAIN = "train counts.npz --out new --epochs 2 --batch-size 16 --latent 2 --hidden 8"


@pytest.mark.parametrize(
    "streams", ["2>&1 | head -c 1", ">&-", "2>&-", ">&- 2>&-", "> /dev/full", "2> /dev/full"]
)
def test_a_training_is_done_whatever_becomes_of_the_streams(place, tmp_path, streams):
    """And the exit code says so: 1 only where a full disk took a table that somebody wanted."""
    shutil.copy(place / "counts.npz", tmp_path / "counts.npz")
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m models {TRAIN} {streams}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    is_lost = streams == "> /dev/full"
    assert done.returncode == (1 if is_lost else 0), done
    assert ("standard output was lost: No space left" in done.stderr) == is_lost
    assert sorted(os.listdir(tmp_path / "new")) == ["config.json", "history.csv", "model.npz"]
    assert len(runs.Run(tmp_path / "new").history()) == 2


def test_a_table_that_the_terminal_cannot_show_does_not_stop_the_files(place, tmp_path):
    words = ["de", place / "run", "--key", "kind", "--groups", "T cell", "--samples", "50"]
    done = subprocess.run(
        [sys.executable, "-m", "models", *map(str, words), "--csv", tmp_path / "β.csv"],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "\\u03b2.csv" in done.stderr
    assert (tmp_path / "β.csv").stat().st_size > 100


def test_two_trainings_of_one_run(place, tmp_path):
    """The second one ends at once, with a sentence; the run is the first one's."""
    with runs.Run(tmp_path / "new").owned():
        done = in_own_process(
            "train", place / "counts.npz", "--out", tmp_path / "new", "--epochs", "1"
        )
        assert done.returncode == 1
        assert f"process {os.getpid()} on" in done.stderr and "is training" in done.stderr
        assert os.listdir(tmp_path / "new") == [".lock"]
    assert not (tmp_path / "new").exists()


def test_two_commands_that_add_to_one_h5ad_keep_both_results(tmp_path):
    names = [f"c{i}" for i in range(8)]
    counts = Counts(sparse.csr_array(np.ones((8, 3), np.float32)), list("abc"), names, {})
    path = tmp_path / "a.h5ad"
    runs.write_h5ad(path, counts)
    threads = [
        threading.Thread(
            target=annotate_h5ad, args=(path, path), kwargs={"obsm": {key: np.full((8, 2), k)}}
        )
        for k, key in enumerate(("first", "second", "third"))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "waiting"
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = anndata.read_h5ad(path).obsm
    assert {key: found[key][0, 0] for key in found} == {"first": 0, "second": 1, "third": 2}
    assert os.listdir(tmp_path) == ["a.h5ad"]


# ----------------------------------------------------------------------------------------------------------------- names
@given(st.lists(st.sampled_from(["a", "b", "a-1", "a-2", "a-1-1", "b-1"]), max_size=12))
def test_unique_names(names):
    found = list(runs.unique_names(names))
    assert len(set(found)) == len(found) == len(names)
    first = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) == i:
            assert found[i] == name  # the first keeps its name
        else:
            assert re.fullmatch(re.escape(name) + r"-\d+", found[i])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        assert found == list(anndata.utils.make_index_unique(pandas.Index(names, dtype=str)))


def test_genes_of_one_name_are_told_apart_by_their_order_or_not_at_all(tmp_path):
    def counts(*columns):
        """A file with these genes, (name, count) each, in this order."""
        names, values = zip(*columns)
        path = tmp_path / "counts.csv"
        lines = (",".join(["cell", *names]), ",".join(["c", *map(str, values)]))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return runs.read_counts(path)

    genes = ["a", "b", "a-1", "c"]
    same = counts(("a", 1), ("x", 9), ("b", 2), ("a", 3), ("c", 4))
    assert runs.genes_by_name(same, genes).X.toarray().tolist() == [[1, 2, 3, 4]]
    turned = counts(("c", 4), ("a", 3), ("b", 2), ("a", 1))
    with pytest.raises(
        ValueError, match=r"2 of the 4 genes of the model share their names .*\(a, a-1\)"
    ):
        runs.genes_by_name(turned, genes)
    assert runs.genes_by_name(turned, ["c", "b"]).X.toarray().tolist() == [[4, 2]]
    assert runs.genes_by_name(turned, ["b", "c"]).X.toarray().tolist() == [[2, 4]]
    real = counts(("c", 4), ("a-1", 3), ("b", 2), ("a", 1))  # a name that only looks numbered
    assert runs.genes_by_name(real, genes).X.toarray().tolist() == [[1, 2, 3, 4]]


def three_cells(obs):
    return Counts(sparse.csr_array(np.ones((3, 1), np.float32)), ["g"], list("abc"), obs)


def test_missing_labels_survive_in_a_new_h5ad(tmp_path):
    counts = three_cells({"o": np.array(["x", None, "y"])})
    runs.write_cells(
        tmp_path / "a.h5ad", counts, "obsm", "z", np.zeros((3, 2), np.float32), ["z0", "z1"]
    )
    assert list(read(tmp_path / "a.h5ad").obs["o"]) == ["x", None, "y"]
    assert as_matrix(tmp_path / "a.h5ad").shape == (3, 1)


# ------------------------------------------------------------------------------------ covariates
def write_with_covariates(path):
    counts = made_counts()
    rng = np.random.default_rng(5)
    counts.obs["sex"] = np.array(["f", "m"])[rng.integers(0, 2, 60)]
    counts.obs["age"] = rng.normal(50.0, 9.0, 60)
    runs.write_counts(path, counts)
    return counts


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with counts.npz that has covariates, and a run `run` that was told them."""
    folder = tmp_path_factory.mktemp("told")
    write_with_covariates(folder / "counts.npz")
    words = ["train", str(folder / "counts.npz"), "--out", str(folder / "run"), *SMALL]
    told = ["--batch-key", "donor", "--categorical", "sex", "--continuous", "age"]
    assert main([*words, *told]) == 0
    return folder


def test_train_with_covariates_is_what_for_data_does(told):
    counts = runs.read_counts(told / "counts.npz")
    model = SCVI.for_data(
        counts, "donor", "sex", "age", likelihood="nb", n_latent=4, n_hidden=8, seed=0
    )
    model.fit(counts, epochs=3, batch_size=16, progress=False)
    found = SCVI.load(told / "run" / "model.npz")
    assert found.columns == model.columns and found.columns.batch == "donor"
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], weights)
    np.testing.assert_array_equal(found.elbo(counts), model.elbo(counts))


@pytest.mark.parametrize(
    "words",
    [
        ["denoise", "run", "--out", "denoised.npz"],
        ["de", "run", "--key", "kind", "--groups", "T cell", "--samples", "60"],
        ["generate", "run", "--cells", "5", "--out", "new.npz"],
        ["impute-score", "run"],
        ["report", "run"],
        ["train", "--out", "run", "--resume"],
    ],
    ids=lambda words: words[0],
)
def test_later_commands_find_the_covariates(words, told, monkeypatch):
    monkeypatch.chdir(told)
    assert main(words) == 0
    if words[0] == "denoise":
        counts = runs.read_counts(told / "counts.npz")
        expected = SCVI.load(told / "run" / "model.npz").denoise(counts, n_samples=1)
        np.testing.assert_array_equal(np.load(told / "denoised.npz")["scvi_denoised"], expected)


def test_generated_cells_have_the_covariates_that_options_say(told, tmp_path, capsys):
    out = tmp_path / "new.npz"
    words = ["generate", told / "run", "--cells", 30, "--out", out]
    assert call(*words, "--covariate", "sex=m", "--covariate", "age=61.5") == 0
    found = read(out)
    assert set(found.obs["sex"]) == {"m"} and set(found.obs["age"]) == {61.5}
    assert set(found.obs["donor"]) == {"old", "new"}
    model = SCVI.load(told / "run" / "model.npz")
    expected = model.generate(30, covariates={"sex": "m", "age": 61.5})
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert call(*words) == 0
    assert set(read(out).obs["sex"]) == {"f", "m"}
    for asked, code, says in (
        ("sex", 2, "--covariate sex: must be COLUMN=VALUE"),
        ("age=old", 2, "--covariate age=old: age is a number of each cell"),
        ("sex=x", 1, "column 'sex': x unknown; the model knows f, m"),
        ("kind=T", 1, "--covariate: 'kind' unknown; the model has sex, age"),
    ):
        assert call(*words, "--covariate", asked) == code
        assert says in capsys.readouterr().err


def test_embedding_asks_for_neither_batch_nor_covariates(told, monkeypatch):
    monkeypatch.chdir(told)
    counts = made_counts()
    counts.obs = {}
    runs.write_counts("bare.npz", counts)
    assert main(["embed", "run", "bare.npz", "--out", "bare_z.npz"]) == 0
    assert main(["embed", "run", "--out", "z.npz"]) == 0
    np.testing.assert_array_equal(np.load("bare_z.npz")["X_scVI"], np.load("z.npz")["X_scVI"])


def test_covariates_that_are_not_there_are_named(told, monkeypatch, capsys):
    monkeypatch.chdir(told)
    counts = write_with_covariates("no_sex.npz")
    del counts.obs["sex"]
    runs.write_counts("no_sex.npz", counts)
    assert main(["denoise", "run", "no_sex.npz", "--out", "x.npz"]) == 1
    assert "categorical: no obs column 'sex'" in capsys.readouterr().err
    words = ["train", "counts.npz", "--out", "other", *SMALL]
    assert main([*words, "--continuous", "kind"]) == 1
    assert "continuous: column 'kind' holds" in capsys.readouterr().err
    assert main(["train", "--out", "run", "--resume", "--categorical", "kind"]) == 2
    assert "--categorical ['kind'] contradicts run" in capsys.readouterr().err


def test_encoders_are_told_covariates_on_demand(told, monkeypatch):
    monkeypatch.chdir(told)
    words = ["train", "counts.npz", "--out", "encoded", *SMALL, "--categorical", "sex"]
    assert main([*words, "--encode-covariates"]) == 0
    model = runs.Run(Path("encoded")).model()
    assert model.z_encoder.layers.linears[0].weight.shape == (8, 12 + 2)
    assert main(["embed", "encoded", "--out", "encoded_z.npz"]) == 0
    expected = model.latent(runs.read_counts("counts.npz"))
    np.testing.assert_array_equal(np.load("encoded_z.npz")["X_scVI"], expected)


# ------------------------------------------------------------------------------------------------------ cells that are mapped
@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A run `run` of two donors, and a run `mapped` of day2.npz, whose cells lack one gene and have the others in another order."""
    folder = tmp_path_factory.mktemp("mapped")
    old, new = made_counts(120), made_counts(80)
    names = [f"G{i}" for i in range(12)]
    old = Counts(old.X, names, old.cells, old.obs)
    runs.write_counts(folder / "old.npz", old)
    lines = [f"{cell},{kind}\n" for cell, kind in zip(old.cells, old.obs["kind"])]
    (folder / "types.csv").write_text("cell,type\n" + "".join(lines))
    columns = np.random.default_rng(0).permutation(12)[:11]
    genes = np.array(names)[columns]
    cells = [f"n{i}" for i in range(80)]
    obs = {"kind": new.obs["kind"], "lane": np.array(["l1", "l2"] * 40)}
    runs.write_counts(folder / "day2.npz", Counts(2 * new.X[:, columns], genes, cells, obs))
    words = ["--out", folder / "run", "--batch-key", "donor", *SMALL, "--epochs", "60"]
    assert call("train", folder / "old.npz", *words) == 0
    assert call("map", folder / "run", folder / "day2.npz", "--out", folder / "mapped") == 0
    return folder


def test_map_is_what_map_query_does(mapped):
    model = SCVI.load(mapped / "run" / "model.npz")
    with pytest.warns(UserWarning, match="11 of the 12 genes"):
        expected = model.map_query(read(mapped / "day2.npz"), name="day2", progress=False)
    run = runs.Run(mapped / "mapped")
    found = run.model()
    same(found.state_dict(), expected.state_dict())
    assert found.batches == expected.batches == ["new", "old", "day2"]
    header, *rows = rows_of(mapped / "mapped" / "history.csv")
    assert header == run.history().names and len(rows) == len(run.history()) > 0
    settings = json.loads((mapped / "mapped" / "config.json").read_text())["settings"]
    assert settings == {
        "min_overlap": 0.8,
        "reference": str(mapped / "run"),
        "batch_name": "day2",
    }


def test_map_embed_and_label_name_the_types_of_new_cells(mapped, tmp_path):
    assert call("embed", mapped / "run", "--out", tmp_path / "old.npz") == 0
    assert call("embed", mapped / "mapped", "--out", tmp_path / "day2.npz") == 0
    words = ["--labels", mapped / "types.csv", "--out", tmp_path / "labels.csv"]
    assert call("label", tmp_path / "old.npz", tmp_path / "day2.npz", *words) == 0
    _, *rows = rows_of(tmp_path / "labels.csv")
    truth = read(mapped / "day2.npz").obs["kind"]
    assert [row[0] for row in rows] == [f"n{i}" for i in range(80)]
    assert np.mean([row[1] == kind for row, kind in zip(rows, truth)]) > 0.9


def test_genes_that_new_cells_lack_are_in_no_table(mapped, tmp_path, capsys):
    words = ["--key", "kind", "--all-groups", "--samples", 60, "--csv", tmp_path / "de.csv"]
    assert call("de", mapped / "mapped", *words) == 0
    assert "genes left out of the table: 1 (" in capsys.readouterr().err
    header, *rows = rows_of(tmp_path / "de.csv")
    genes = [row[header.index("gene")] for row in rows]
    assert sorted(genes) == sorted(2 * read(mapped / "day2.npz").genes.tolist())


def test_cells_of_known_batches_may_lack_a_few_genes(mapped, tmp_path, capsys):
    """There is nothing to map of them, and their panel is another."""
    day3 = read(mapped / "old.npz")[:40].select_genes(np.arange(12) != 4)
    runs.write_counts(tmp_path / "day3.npz", day3)
    words = [mapped / "run", tmp_path / "day3.npz"]
    assert call("map", *words, "--batch-key", "donor", "--out", tmp_path / "mapped") == 1
    assert "give them as COUNTS to embed, de and the others" in capsys.readouterr().err
    words += ["--out", tmp_path / "z.npz"]
    assert call("embed", *words) == 1
    assert "or take those for 0 with --min-overlap 0.8" in capsys.readouterr().err
    assert call("embed", *words, "--min-overlap", "0.95") == 1
    assert "(91.7% are there), or lower --min-overlap 0.95" in capsys.readouterr().err
    assert call("embed", *words, "--min-overlap", "0.9") == 0
    filled = read(mapped / "old.npz")[:40]
    x = filled.X.toarray()
    x[:, 4] = 0
    model = SCVI.load(mapped / "run" / "model.npz")
    expected = model.latent(Counts(x, filled.genes, filled.cells, filled.obs), "donor")
    np.testing.assert_array_equal(content(tmp_path / "z.npz")[1], expected)


def test_tables_of_cells_are_added_to_those_of_the_run(place, tmp_path, capsys):
    """Labels and clusters, as label and scanpy write them, beside the table with the batches."""
    counts = made_counts()
    bare = Counts(counts.X, counts.genes, counts.cells)
    runs.write_counts(tmp_path / "c.npz", bare)
    annotated = anndata.AnnData(
        sparse.csr_matrix(counts.X),
        obs=pandas.DataFrame(index=counts.cells),
        var=pandas.DataFrame(index=runs.unique_names(counts.genes)),
    )
    annotated.write_h5ad(tmp_path / "c.h5ad")  # which a process of its own reads
    meta, labels, leiden = (tmp_path / f"{name}.csv" for name in ("meta", "labels", "leiden"))
    frame = pandas.DataFrame({"donor": counts.obs["donor"]}, index=counts.cells)
    frame.to_csv(meta)
    frame.assign(label=counts.obs["kind"])[["label"]][::-1].to_csv(labels)
    frame.assign(leiden=np.arange(60) % 3)[["leiden"]].to_csv(leiden)
    for name in ("c.npz", "c.h5ad"):
        run = tmp_path / f"run of {name}"
        words = ["--out", run, "--obs", meta, "--batch-key", "donor", *SMALL]
        assert call("train", tmp_path / name, *words) == 0
        beside = ["--obs", labels, "--obs", leiden]
        for key, groups in (("label", ["B cell", "T cell"]), ("leiden", ["0", "1", "2"])):
            de = ["de", run, *beside, "--key", key, "--all-groups", "--samples", 60]
            assert call(*de, "--csv", tmp_path / "de.csv") == 0
            header, *rows = rows_of(tmp_path / "de.csv")
            assert sorted({row[header.index("group")] for row in rows}) == groups
        assert call("report", run, "--obs", labels, "--color", "label") == 0
    meta.rename(tmp_path / "moved.csv")
    assert call("denoise", run, "--obs", tmp_path / "moved.csv", "--out", tmp_path / "d.npz") == 0
    assert call("denoise", run, "--out", tmp_path / "d.npz") == 1
    assert "meta.csv: no such file" in capsys.readouterr().err
    found = read(tmp_path / "c.npz", obs=[tmp_path / "moved.csv", labels])
    assert found.obs["label"].tolist() == counts.obs["kind"].tolist() and "donor" in found.obs


def test_the_report_of_a_mapped_run_has_the_colours_of_its_reference(mapped):
    odd = {"T cell": "#654321", "B cell": "#123456"}
    (mapped / "run" / "colors.json").write_text(json.dumps(odd))
    assert call("report", mapped / "mapped", "--color", "kind") == 0
    found = colors_in(mapped / "mapped" / "index.html")
    assert {name: found[name] for name in set(found) & set(odd)} == {
        name: odd[name] for name in set(found) & set(odd)
    }
    assert set(found) & set(odd)


def test_old_cells_have_the_same_coordinates_in_both_runs(mapped, tmp_path):
    found = []
    for run in ("run", "mapped"):
        words = [mapped / "old.npz", "--batch-key", "donor", "--out", tmp_path / f"{run}.npz"]
        assert call("embed", mapped / run, *words) == 0
        assert call("denoise", mapped / run, *words) == 0
        found.append(content(tmp_path / f"{run}.npz")[1])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "words",
    [
        ["denoise", "mapped", "--out", "denoised.npz"],
        ["de", "mapped", "--key", "kind", "--groups", "T cell", "--samples", "60"],
        ["generate", "mapped", "--cells", "5", "--batch", "day2", "--out", "made.npz"],
        ["impute-score", "mapped", "--epochs", "2"],
        ["report", "mapped"],
        ["map", "mapped", "day2.npz", "--out", "further", "--batch-name", "day3", "--epochs", "1"],
    ],
    ids=lambda words: words[0],
)
def test_a_mapped_run_is_a_run_like_others(words, mapped, monkeypatch):
    monkeypatch.chdir(mapped)
    assert main(words) == 0
    if words[0] == "denoise":
        model = SCVI.load("mapped/model.npz")
        with pytest.warns(UserWarning, match="11 of the 12 genes"):
            counts = model.align_genes(read("day2.npz"))
        expected = model.denoise(counts, ["day2"] * 80)
        np.testing.assert_array_equal(content(Path("denoised.npz"))[1], expected)
    if words[0] == "map":
        assert runs.Run("further").model().batches == ["new", "old", "day2", "day3"]


@pytest.mark.parametrize(
    "words, batches",
    [
        (["--batch-key", "lane"], ["l1", "l2"]),
        (["--batch-name", "a day"], ["a day"]),
        (["again.npz"], ["again", "day2"]),
    ],
)
def test_new_batches_are_named_as_the_options_say(words, batches, mapped, monkeypatch, capsys):
    monkeypatch.chdir(mapped)
    counts = read("day2.npz")
    counts.cells = np.array([f"again_{name}" for name in counts.cells])
    runs.write_counts("again.npz", counts)
    out = f"named_{batches[0]}"
    assert main(["map", "run", "day2.npz", *words, "--out", out, "--epochs", "1"]) == 0
    said = capsys.readouterr().err
    assert f"new batches: {', '.join(batches)}" in said
    assert "11 of the 12 genes of run (91.7%)" in said
    assert runs.Run(out).model().batches == ["new", "old", *batches]
    assert main(["denoise", out, "--out", "x.npz"]) == 0


def test_a_name_counts_more_than_the_column_of_the_run(mapped, monkeypatch, capsys):
    monkeypatch.chdir(mapped)
    words = ["map", "run", "old.npz", "--epochs", "1", "--out"]
    assert main([*words, "as_one", "--batch-name", "day 9"]) == 0
    assert runs.Run("as_one").model().batches == ["new", "old", "day 9"]
    assert main(["denoise", "as_one", "--out", "x.npz"]) == 0
    assert main([*words, "as_two"]) == 1
    assert "all cells are of batches that the model knows (new, old)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--min-overlap", "0.95"], 1, "1 of the 12 genes of run .* lower --min-overlap 0.95"),
        (["--min-overlap", "0"], 2, "must be a fraction above 0"),
        (["--batch-key", "donor"], 1, "no column 'donor' of cells in the counts; there are: kind"),
        (["--batch-key", "lane", "--batch-name", "x"], 2, "leave out one"),
        (["--batch-name", "old"], 1, r"knows \(old\), .* \(--batch-name, or other labels\)"),
    ],
)
def test_what_cannot_be_mapped_leaves_nothing(words, code, said, mapped, monkeypatch, capsys):
    monkeypatch.chdir(mapped)
    assert main(["map", "run", "day2.npz", "--out", "nothing", *words]) == code
    assert re.search(said, capsys.readouterr().err)
    assert not Path("nothing").exists()


def test_a_mapped_run_is_not_replaced_nor_gone_on_with(mapped, monkeypatch, capsys):
    monkeypatch.chdir(mapped)
    before = (mapped / "mapped" / "model.npz").read_bytes()
    assert main(["map", "run", "day2.npz", "--out", "mapped"]) == 2
    assert "mapped holds a run already" in capsys.readouterr().err
    assert main(["train", "--out", "mapped", "--resume"]) == 2
    assert "mapped was made by map" in capsys.readouterr().err
    assert (mapped / "mapped" / "model.npz").read_bytes() == before
