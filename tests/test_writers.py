"""Every function of the project that writes a file, on a disk that fills, and killed in the middle.

A limit on the size of files (RLIMIT_FSIZE) stands for the disk: what is over it is an error, or,
where the signal is not ignored, the end of the process in the middle of a write. So the tests run
in a process of their own, `python test_writers.py FOLDER`, which tries all and says what it found.
"""

import ast
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from minigrad.fit import History

ROOT = Path(__file__).resolve().parent.parent

# The functions in which a file is opened to write, or in a way that cannot be told from it. Each of
# them is tried below by `writers`, or says why not.
OPENED = {
    "demos/autodiff.py": {"draw_scvi", "run"},  # captions of pictures, a line of text
    "demos/differential_expression.py": {"run"},  # the same
    "demos/page.py": {"recorded", "write"},  # what is printed, while it is
    "demos/scvi.py": {"run"},  # a caption
    "demos/show.py": {"save"},  # a caption
    "demos/walks/day.py": {"write_10x", "write_metadata"},  # the files that a day begins with
    "minigrad/checkpoint.py": {
        *("_flush_folder", "check_target", "save", "whole_file", "write_figure"),
    },
    "minigrad/notebook.py": {"_png"},  # in memory
    "models/colors.py": {"write_colors"},
    "models/comparison.py": {"_write_json"},
    "models/abundance_table.py": {"to_csv"},
    "models/differential_table.py": {"to_csv"},
    "models/files.py": {"npz_arrays"},  # reads
    "models/hdf5_writing.py": {"hdf5_file"},
    "models/latent_files.py": {"write_beside"},
    "models/locks.py": {"_taken"},  # its file is empty
    "models/report.py": {"png", "write"},  # png: in memory
    "models/runs.py": {"begin", "write_arrays", "write_table"},
    "models/streams.py": {"_fill_descriptors", "_let_go"},  # standard output and error
    "models/trial.py": {"write_cells"},
}


def writers():
    """name -> (name of the file, a function that writes it when called with its path)."""
    from scipy import sparse

    from demos import show
    from minigrad import Tensor, checkpoint, trace
    from models import SCVI, Autoencoder, colors, comparison, latent_files, report, runs, trial
    from models.counts import Counts, annotate_h5ad

    rng = np.random.default_rng(0)
    x = sparse.csr_array(rng.poisson(2.0, (60, 8)).astype(np.float32))
    cells, genes = [f"c{i}" for i in range(60)], [f"g{i}" for i in range(8)]
    counts = Counts(x, genes, cells, {"kind": np.array(["a", "b"] * 30)})
    model = SCVI(8, n_latent=2, n_hidden=4)
    history = model.fit(counts, epochs=2, progress=False)
    table = model.differential_expression(counts, groupby="kind", n_samples=50)
    z = model.latent(counts)
    setting = comparison.Setting("nb", 9, 1, 8)
    compared = comparison.Comparison(
        [comparison.Row("nb", setting, 7, -100.0, 0.0, 1.0, is_equal=True, bias=0.1)], 40, 1
    )
    trained = trial.Cells(x, np.zeros(60, int), np.arange(60) % 2 == 0, None, {})
    abundance = model.differential_abundance(
        counts, sample=np.arange(60) % 4, condition=np.arange(60) % 2
    )
    tensor = Tensor(np.ones(3), requires_grad=True)
    figure, _ = show.figure()

    def run_of(path):
        return runs.Run(path.parent)

    def cells_to(path):
        runs.write_cells(path, counts, "obsm", "X_scVI", z, ["z1", "z2"])

    def beside_a_table(path):
        table = path.parent / "z.csv"
        if not table.exists():
            table.write_text("cell,z\nc,1\n")
        latent_files.write_beside(table, "space", np.arange(60) > 30)

    def added(path):
        if not path.exists() or path.stat().st_size == len(OLD):
            runs.write_h5ad(path, counts)
        annotate_h5ad(path, path, obsm={"X_scVI": z})

    return {
        "checkpoint.save": ("a.npz", lambda path: checkpoint.save(path, {"z": z}, {})),
        "SCVI.save": ("a.npz", model.save),
        "Autoencoder.save": ("a.npz", Autoencoder(8, hidden=(4,), n_latent=2).save),
        "history.plot png": ("a.png", history.plot),
        "history.plot pdf": ("a.pdf", history.plot),
        "history.plot svg": ("a.svg", history.plot),
        "trace.draw": ("a.png", lambda path: trace.draw((tensor * 2).sum(), path)),
        "table.to_csv": ("a.csv", table.to_csv),
        "table.volcano": ("a.png", table.volcano),
        "abundance.to_csv": ("a.csv", abundance.to_csv),
        "comparison.to_csv": ("a.csv", compared.to_csv),
        "comparison.plot": ("a.png", compared.plot),
        "comparison.write_best": (
            "best.json",
            lambda path: comparison.write_best(path.parent, "c.h5ad", {"genes": 3}),
        ),
        "report": ("a.html", lambda path: report.write(path, model, history, counts)),
        "trial.write_cells": ("a.npz", lambda path: trial.write_cells(path, trained)),
        "cells csv": ("a.csv", cells_to),
        "cells npz": ("a.npz", cells_to),
        "cells h5ad": ("a.h5ad", cells_to),
        "counts csv": ("a.csv", lambda path: runs.write_counts(path, counts)),
        "counts npz": ("a.npz", lambda path: runs.write_counts(path, counts)),
        "counts h5ad": ("a.h5ad", lambda path: runs.write_counts(path, counts)),
        "annotate_h5ad": ("a.h5ad", added),
        "config.json": ("config.json", lambda path: run_of(path).begin("c.h5ad", {"genes": 3})),
        "model.npz": ("model.npz", lambda path: run_of(path).write_model(model, history)),
        "history.csv": (
            "history.csv",
            lambda path: run_of(path).write_history(History({"epoch": list(range(9))})),
        ),
        "colors.json": (
            "colors.json",
            lambda path: colors.write_colors(path, {"B": "#0072B2", "NK": "#E69F00"}),
        ),
        "beside a latent space": (latent_files.beside(Path("z.csv")).name, beside_a_table),
        "demos' pictures": ("a.png", lambda path: show.save(figure, path.parent, "a", "what")),
    }


OLD = b"what was there before"


def try_all(folder):
    """(In a process of its own.) Prints, as JSON, what was wrong with each writer."""
    import resource
    import signal

    warnings.simplefilter("ignore")
    wrong = {}
    for name, (file, write) in writers().items():
        place = Path(folder) / name.replace("/", " ")
        place.mkdir()
        path = place / file
        found = wrong.setdefault(name, [])
        write(path)
        size = path.stat().st_size
        others = {p.name: p.read_bytes() for p in place.iterdir() if p != path}
        before = path.read_bytes() if name == "annotate_h5ad" else OLD
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for share in (0.0, 0.4, 0.9):
            path.write_bytes(before)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), hard))
            try:
                write(path)
                found.append(f"no error at {share} of the size")
            except OSError as error:
                if str(path) not in f"{error.filename} {error}":
                    found.append(f"the file is not named: {error!r} at {share}")
            except BaseException as error:
                found.append(f"{type(error).__name__}: {error} at {share}")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            left = {p.name for p in place.iterdir()} - {file, *others}
            if left:
                found.append(f"left at {share}: {left}")
            if path.read_bytes() != before:
                found.append(f"the old file is gone at {share}")
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends the process in the write
            write(path)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WTERMSIG(status) != signal.SIGXFSZ:
            found.append(f"was not killed: {status}")
        if path.read_bytes() != before:
            found.append("the old file is gone when killed")
        write(path)
        if path.stat().st_size < size // 2:
            found.append("cannot be written afterwards")
    print(json.dumps(wrong))


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    pytest.importorskip("resource")
    for package in ("anndata", "pandas", "h5py"):
        pytest.importorskip(package)
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("writers"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NAMES = (
    *("checkpoint.save", "SCVI.save", "Autoencoder.save", "history.plot png", "history.plot pdf"),
    *("history.plot svg", "trace.draw", "table.to_csv", "table.volcano", "comparison.to_csv"),
    *(
        "abundance.to_csv",
        "comparison.plot",
        "comparison.write_best",
        "report",
        "trial.write_cells",
        "cells csv",
    ),
    *("cells npz", "cells h5ad", "counts csv", "counts npz", "counts h5ad", "annotate_h5ad"),
    *("config.json", "model.npz", "history.csv", "demos' pictures"),
    *("colors.json", "beside a latent space"),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_disk_that_fills_and_a_kill_leave_the_old_file(tried, name):
    assert tried[name] == []
    assert set(tried) == set(NAMES)


def test_a_picture_without_a_suffix_is_a_png_and_an_open_file_is_written_to(tmp_path):
    history = History({"epoch": [1, 2, 3], "train_loss": [3.0, 2.0, 1.0]})
    assert history.plot(tmp_path / "curve") == tmp_path / "curve"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert history.plot(str(tmp_path / "a.PDF")) == str(tmp_path / "a.PDF")
    assert (tmp_path / "a.PDF").read_bytes().startswith(b"%PDF")
    file = io.BytesIO()
    assert history.plot(file) is file
    assert file.getvalue() == (tmp_path / "curve.png").read_bytes()
    with pytest.raises(ValueError, match="Format 'xyz' is not supported"):
        history.plot(tmp_path / "a.xyz")
    with pytest.raises(FileNotFoundError, match="there is no folder .*gone; make it first"):
        history.plot(tmp_path / "gone" / "a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PDF", "curve.png"]


def opening(path):
    """The names of the functions of a file that open one to write."""
    writes = {"savefig", "write_text", "write_bytes", "savez", "savez_compressed", "save_npz"}

    def visit(node, function):
        for below in ast.iter_child_nodes(node):
            inside = below.name if isinstance(below, ast.FunctionDef) else function
            if isinstance(below, ast.Call):
                name = ast.unparse(below.func).split(".")[-1]
                second = [a.value for a in below.args[1:2] if isinstance(a, ast.Constant)]
                is_open = name == "open" and second not in (["r"], ["rb"])
                if name in writes or is_open or (name == "File" and second != ["r"]):
                    yield inside
            yield from visit(below, inside)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), "")


def test_nothing_else_opens_a_file_to_write():
    found = {}
    for folder in ("minigrad", "models", "demos"):
        for path in (ROOT / folder).rglob("*.py"):
            for function in opening(path):
                found.setdefault(str(path.relative_to(ROOT)), set()).add(function)
    assert found == OPENED


if __name__ == "__main__":
    try_all(sys.argv[1])
