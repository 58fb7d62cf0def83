"""models/comparison.py: the table says what is true of simulated cells, nothing is lost, and no bad argument gets through."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from matplotlib.figure import Figure
from scipy import sparse, stats

import models
from models import comparison, guarded, posterior, runs, trial
from models.__main__ import main
from models.comparison import Comparison, Row, Setting, paired_difference, standard_error
from models.counts import Counts

ROOT = Path(__file__).resolve().parent.parent
SMALL = dict(n_latent=3, n_layers=1, n_hidden=8, n_samples=40, jobs=2, progress=False)


def cells(kind, n_cells=250, n_genes=15, seed=0):
    """(counts, group of each cell): three groups, counted by a Poisson or a wide NB distribution."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 3, n_cells)
    mu = rng.integers(150, 300, n_cells)[:, None] * rng.dirichlet(np.ones(n_genes), 3)[group]
    if kind == "poisson":
        return rng.poisson(mu).astype(np.float32), group
    return rng.negative_binomial(0.5, 0.5 / (0.5 + mu)).astype(np.float32), group


def numbers(table):
    """All of a table but how long it took."""
    return [row._replace(seconds=None) for row in table.rows]


def named(table, name):
    return next(row for row in table.rows if row.name == name)


# ----------------------------------------------------------------------------------- what is true
@pytest.fixture(scope="module")
def of_nb(tmp_path_factory):
    """(folder, counts, group, table) of cells that vary much more than Poisson counts."""
    folder = tmp_path_factory.mktemp("nb")
    x, group = cells("nb")
    table = models.compare(
        x, likelihood=("poisson", "nb"), epochs=40, labels=group, out=folder / "trials", **SMALL
    )
    return folder, x, group, table


def test_of_overdispersed_counts_the_poisson_loses(of_nb):
    _, _, _, table = of_nb
    best, worst = table.rows[:2]
    assert best.setting.likelihood == "nb" and worst.setting.likelihood == "poisson"
    assert worst.difference < -8 * worst.error and not worst.is_equal
    assert table.best == Setting("nb", 3, 1, 8, 40)
    assert str(table).count("To take, as the simplest of these (fewest weights): nb, 3 latent") == 1


def test_a_row_is_what_the_model_says_of_the_held_out_cells(of_nb):
    """Everything computed anew: the split of tests/benchmarks/held_out, SCVI by its public methods."""
    _, x, _, table = of_nb
    order = np.random.default_rng([0, 1]).permutation(len(x))
    test, train = np.sort(order[: len(x) // 5]), np.sort(order[len(x) // 5 :])
    log_p, elbo = {}, {}
    for likelihood in ("nb", "poisson"):
        model = models.SCVI(15, n_latent=3, n_hidden=8, likelihood=likelihood)
        model.fit(x[train], epochs=40, progress=False)
        log_p[likelihood] = model.log_likelihood(x[test], n_samples=40)
        elbo[likelihood] = model.elbo(x[test], n_samples=trial.ELBO_DRAWS)
    assert table.n_held_out == len(test) == 50
    for row in table.rows[:2]:
        kind = row.setting.likelihood
        assert row.log_p == pytest.approx(log_p[kind].mean(), rel=1e-4)
        assert row.elbo == pytest.approx(elbo[kind].mean(), rel=1e-4)
    _, error = model.log_likelihood(x[test], n_samples=40, return_error=True)
    assert table.rows[1].bias == pytest.approx(np.mean(error**2) / 2, rel=1e-2)
    row, difference = table.rows[1], log_p["poisson"] - log_p["nb"]
    assert row.difference == pytest.approx(difference.mean(), rel=1e-3)
    assert row.error == pytest.approx(stats.sem(difference), rel=1e-3)
    assert row.elbo_error == pytest.approx(stats.sem(elbo["poisson"] - elbo["nb"]), rel=1e-3)
    weights = [
        p.size for p in models.SCVI(15, n_latent=3, n_hidden=8, likelihood="nb").parameters()
    ]
    assert table.rows[0].n_weights == sum(weights)


def test_ways_without_a_model_stand_below(of_nb):
    _, _, _, table = of_nb
    gene_nb, pca = table.rows[2:]
    assert (gene_nb.name, pca.name) == (comparison.GENE_NB, comparison.PCA)
    assert gene_nb.log_p == pytest.approx(table.rows[0].log_p + gene_nb.difference)
    assert gene_nb.elbo is None and gene_nb.ari is None and pca.log_p is None
    assert all(0 < row.ari <= 1 and 0 < row.nmi <= 1 for row in (*table.rows[:2], pca))


SCRIPT = """
import numpy as np
import models
from tests.test_comparison import SMALL, cells
x, _ = cells("poisson", n_cells=400)
table = models.compare(x, likelihood=("zinb", "nb", "poisson"), epochs=50, **SMALL)
print(table.best.likelihood, [row.setting.likelihood for row in table.equally_good])
print([row.name for row in table.rows if row.setting is None], table.rows[-1].is_worse())
"""


def test_of_poisson_counts_the_poisson_is_the_simplest_in_a_script_without_a_guard(tmp_path):
    """The script has no `if __name__ == "__main__"`, runs elsewhere, and leaves nothing there."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**guarded.environment(), **comparison.ONE_THREAD},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("poisson ['poisson'")
    assert second == f"[{comparison.GENE_NB!r}] True"  # without labels no PCA; the groups are found
    assert os.listdir(tmp_path) == ["script.py"]


def test_of_cells_that_do_not_differ_no_model_is_better():
    rng = np.random.default_rng(0)
    total, theta = rng.integers(150, 300, 150)[:, None], 1.0
    mu = total * rng.dirichlet(np.ones(10))
    x = rng.negative_binomial(theta, theta / (theta + mu)).astype(np.float32)
    table = models.compare(x, likelihood="nb", epochs=10, **SMALL)
    assert not named(table, comparison.GENE_NB).is_worse()
    assert "But an NB of each gene, without latent variables, is no worse" in str(table)


def test_several_trainings_are_averaged(tmp_path):
    x, _ = cells("nb", n_cells=120)
    options = dict(likelihood=("nb", "poisson"), epochs=3, out=tmp_path, **SMALL)
    table = models.compare(x, seeds=2, **options)
    of = {
        kind: np.array(
            [
                trial.read_judged(tmp_path / f"trials/{kind}-3-1x8-3-seed{s}.npz").log_p
                for s in (0, 1)
            ]
        )
        for kind in ("nb", "poisson")
    }
    difference = of["poisson"].mean(axis=0) - of["nb"].mean(axis=0)
    variance = difference.var(ddof=1) / len(difference)
    variance += sum(of[kind].mean(axis=1).var(ddof=1) / 2 for kind in of)
    row = next(row for row in table.rows if row.setting and row.setting.likelihood == "poisson")
    assert row.difference == pytest.approx(difference.mean())
    assert row.error == pytest.approx(math.sqrt(variance))
    assert "2 trainings of each setting" in str(table)
    again = models.compare(x, **options)  # the first of them is there already
    assert named(again, "nb, 3 latent, 1 x 8, 3 epochs").log_p == pytest.approx(of["nb"][0].mean())
    assert "The errors are of the held-out cells only" in str(again)


def test_a_latent_library_has_no_baseline_that_knows_the_totals():
    x, _ = cells("nb", n_cells=80)
    table = models.compare(x, likelihood="nb", epochs=2, library="latent", **SMALL)
    assert [row.name for row in table.rows] == ["nb, 3 latent, 1 x 8, 2 epochs"]


def test_batches_are_held_out_by_fifths():
    batch = np.repeat([0, 1, 2], [100, 23, 4])
    held_out = comparison._held_out(batch, 0)
    assert [held_out[batch == b].sum() for b in range(3)] == [20, 4, 0]
    assert (held_out != comparison._held_out(batch, 1)).any()


def test_batches_and_labels_go_by_the_names_of_cells():
    x, group = cells("nb", n_cells=60)
    names = [f"c{i}" for i in range(60)]
    frame = pandas.DataFrame(x, names)
    order = np.random.default_rng(0).permutation(60)
    columns = pandas.DataFrame({"batch": np.arange(60) % 2, "kind": group}, names)
    expected = comparison._cells(frame, columns["batch"], columns["kind"], None, 0)
    turned = columns.iloc[order]
    found = comparison._cells(frame, turned["batch"], turned["kind"], None, 0)
    np.testing.assert_array_equal(found.batch, np.arange(60) % 2)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_batches_are_told_to_the_model_and_empty_cells_are_left_out(tmp_path):
    x, group = cells("nb", n_cells=100)
    x[7] = 0.0
    batch = np.array(["a", "b"])[np.arange(100) % 2]
    counts = Counts(x, np.arange(15), np.arange(100), {"batch": batch, "group": group})
    with pytest.warns(UserWarning, match="1 cell without counts is left out"):
        table = models.compare(
            counts, "batch", labels="group", likelihood="nb", epochs=2, out=tmp_path, **SMALL
        )
    model = models.SCVI(15, 2, n_latent=3, n_layers=1, n_hidden=8, likelihood="nb")
    assert table.rows[0].n_weights == sum(p.size for p in model.parameters())
    assert table.n_held_out == 10 + 49 // 5


# ------------------------------------------------------------------------------------ the judgement
def with_covariates(n_cells=150):
    """Counts of cells of which two genes are doubled in women, and one grows with age; cell 4 has none."""
    rng = np.random.default_rng(3)
    sex, age = rng.integers(0, 2, n_cells), rng.normal(50.0, 9.0, n_cells)
    mu = np.full((n_cells, 10), 6.0)
    mu[sex == 1, :2] *= 3
    mu[:, 9] *= np.exp((age - 50) / 20)
    x = rng.poisson(mu).astype(np.float32)
    x[4] = 0
    obs = {"sex": np.array(["m", "f"])[sex], "age": age, "donor": np.array(["a", "b"])[sex]}
    names = np.array([f"c{i}" for i in range(n_cells)])
    return Counts(sparse.csr_array(x), [f"g{i}" for i in range(10)], names, obs)


@pytest.mark.filterwarnings("ignore:1 cell")
def test_covariates_are_told_to_every_model(tmp_path):
    """Computed anew by SCVI's public methods, on the same split."""
    counts = with_covariates()
    told = {"categorical": ["sex"], "continuous": "age"}
    small = {**SMALL, "likelihood": "nb", "epochs": 20, "out": tmp_path}
    table = models.compare(counts, **told, encode_covariates=True, **small)
    kept = counts[np.arange(150) != 4]
    order = np.random.default_rng([0, 1]).permutation(149)
    test, train = np.sort(order[: 149 // 5]), np.sort(order[149 // 5 :])
    model = models.SCVI.for_data(
        kept,
        **told,
        n_latent=3,
        n_hidden=8,
        n_layers=1,
        likelihood="nb",
        encode_covariates=True,
    )
    model.fit(kept[train], epochs=20, progress=False)
    row = table.rows[0]
    assert row.log_p == pytest.approx(
        model.log_likelihood(kept[test], n_samples=40).mean(), rel=1e-4
    )
    assert row.n_weights == sum(p.size for p in model.parameters())
    with pytest.raises(ValueError, match="holds a comparison with other covariates"):
        obs = {**counts.obs, "sex": counts.obs["sex"][::-1]}
        models.compare(
            Counts(counts.X, counts.genes, counts.cells, obs),
            **told,
            encode_covariates=True,
            **small,
        )
    with pytest.raises(ValueError, match="categorical: no obs column 'site'"):
        models.compare(counts, categorical="site", **SMALL)


def test_a_paired_difference_is_that_of_scipy():
    one, other = np.random.default_rng(0).normal(size=(2, 1, 40))
    difference, error = paired_difference(one, other)
    test = stats.ttest_rel(one[0], other[0])
    assert difference / error == pytest.approx(test.statistic)
    assert error == pytest.approx(stats.sem(one[0] - other[0])) == standard_error((one - other)[0])
    assert paired_difference(one, one) == (0.0, 0.0)


def row(likelihood, n_weights, difference, error, epochs=None):
    setting = Setting(likelihood, 10, 1, 128, epochs)
    made = Row(str(setting), setting, n_weights, -100.0 + difference, difference, error)
    return made._replace(is_equal=not made.is_worse(), elbo=-101.0, seconds=3.0, bias=0.1)


@pytest.mark.parametrize(
    "rows, best",
    [
        ([row("zinb", 300, 0.0, 0.0), row("nb", 200, -1.0, 0.6)], "nb"),
        ([row("zinb", 300, 0.0, 0.0), row("nb", 200, -1.0, 0.4)], "zinb"),
        ([row("nb", 200, 0.0, 0.0), row("zinb", 300, -0.1, 0.4)], "nb"),
        ([row("zinb", 200, 0.0, 0.0), row("nb", 200, -0.1, 0.4)], "nb"),
        ([row("nb", 200, 0.0, 0.0), row("poisson", 200, -0.1, 0.4)], "poisson"),
    ],
)
def test_the_simplest_of_those_that_are_equally_good_is_the_best(rows, best):
    table = Comparison(rows, 40, 1)
    assert table.best.likelihood == best
    others = [r.name for r in rows[1:] if r.is_equal]
    said = "No other is equally good" if not others else "paired difference): " + others[0]
    assert said in table.verdict()


def test_fewer_epochs_are_simpler():
    rows = [row("nb", 200, 0.0, 0.0, 400), row("nb", 200, -0.1, 0.4, 100)]
    assert Comparison(rows, 40, 1).best.epochs == 100


def test_too_few_draws_are_said():
    rows = [row("nb", 200, 0.0, 0.0), row("zinb", 300, -0.1, 0.4)._replace(bias=0.25)]
    assert "draws" not in Comparison(rows, 40, 1).verdict()
    rows[1] = rows[1]._replace(bias=0.42)
    assert "too low by about 0.1 to 0.4 nats" in Comparison(rows, 40, 1).verdict()


def test_the_bias_of_log_p_is_about_what_many_draws_take_away():
    """Means and their logarithms of 50 log-normal weights, of which all is known."""
    log_w = 0.8 * np.random.default_rng(0).standard_normal((50, 4000))
    value, error = posterior.log_mean_exp([log_w])
    exact = 0.8**2 / 2
    assert np.mean(error**2) / 2 == pytest.approx(exact - value.mean(), rel=0.25)


def test_the_table_as_text_and_file(of_nb, tmp_path):
    _, _, _, table = of_nb
    lines = table.table().splitlines()
    assert lines[0].split()[:3] == ["setting", "weights", "log"] and "ARI" in lines[0]
    assert all(len(line) <= len(lines[0]) for line in lines) and "± " in lines[2]
    table.to_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        found = list(csv.DictReader(file))
    for line, row in zip(found, table.rows, strict=True):
        assert line["name"] == row.name
        assert line["likelihood"] == (row.setting.likelihood if row.setting else "")
        if row.log_p is not None:
            assert float(line["log_p"]) == pytest.approx(row.log_p)
    frame = table.to_frame()
    assert list(frame.columns) == list(found[0]) and frame["name"].tolist() == [
        row.name for row in table.rows
    ]
    assert frame["ari"].tolist()[0] == table.rows[0].ari


def test_a_notebook_shows_names_as_they_are():
    row = Row("<b>nb</b>", Setting("nb", 9, 1, 8), 7, failure="a < b")
    page = Comparison([row], 10, 1)._repr_html_()
    assert "&lt;b&gt;nb" in page and "a &lt; b" in page and page.count("<") == 2


def test_the_picture_shows_every_row_that_did_not_fail(of_nb, tmp_path):
    _, _, _, table = of_nb
    failed = Row("zinb, 9 latent", Setting("zinb", 9, 1, 8), 7, failure="no luck")
    rows = [*table.rows[:2], failed, *table.rows[2:]]
    table = Comparison(rows, table.n_held_out, 1)
    figure = table.plot()
    assert isinstance(figure, Figure) and len(figure.axes) == 3
    assert figure._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    names = [
        text.get_text().removesuffix("  (to take)") for text in figure.axes[0].get_yticklabels()
    ]
    assert names == [r.name for r in table.rows if r.failure is None]
    drawn = [c.lines[0].get_xdata()[0] for c in figure.axes[0].containers]
    assert drawn == pytest.approx([r.difference for r in table.rows if r.difference is not None])
    assert figure.axes[0].get_xscale() == ("symlog" if min(drawn) < -50 else "linear")
    assert table.plot(tmp_path / "t.svg") == tmp_path / "t.svg"
    assert (tmp_path / "t.svg").read_text().startswith("<?xml")
    assert "failed: no luck" in str(table)


# ------------------------------------------------------------------------------------- nothing lost
def test_what_is_finished_is_not_done_again(of_nb):
    folder, x, group, table = of_nb
    files = {file: file.stat().st_mtime_ns for file in (folder / "trials/trials").iterdir()}
    assert len(files) == 4
    options = dict(labels=group, out=folder / "trials", epochs=40, **SMALL)
    again = models.compare(x, likelihood=("poisson", "nb"), **options)
    assert numbers(again) == numbers(table)
    assert {f: f.stat().st_mtime_ns for f in (folder / "trials/trials").iterdir()} == files


@pytest.mark.parametrize(
    "change, name",
    [
        ({"seed": 1}, "seed"),
        ({"labels": None}, "labels"),
        ({"n_samples": 30}, "n_samples"),
        ({"library": "latent"}, "library"),
        ({"batch_size": 64}, "batch_size"),
        ({"batch": np.arange(250) % 2}, "batch"),
    ],
)
def test_another_comparison_in_the_same_folder_is_refused(of_nb, change, name):
    folder, x, group, _ = of_nb
    options = dict(labels=group, likelihood="nb", epochs=40, out=folder / "trials", **SMALL)
    with pytest.raises(ValueError, match=f"holds a comparison with other .*{name}"):
        models.compare(x, **{**options, **change})


def test_other_counts_in_the_same_folder_are_refused(of_nb):
    folder, x, group, _ = of_nb
    x = x.copy()
    x[3, 4] += 1
    with pytest.raises(ValueError, match="holds a comparison with other counts; give another"):
        models.compare(x, labels=group, out=folder / "trials", **SMALL)


def write_counts(folder):
    x, group = cells("nb")
    genes, names = [f"g{i}" for i in range(15)], [f"c{i}" for i in range(250)]
    counts = Counts(sparse.csr_array(x), genes, names, {"kind": group})
    runs.write_counts(folder / "counts.npz", counts)


WORDS = ["--latent", "3", "--layers", "1", "--hidden", "8", "--samples", "40", "--labels", "kind"]


def started(folder, epochs):
    """`compare` in a process group of its own, once a training has written its checkpoint."""
    words = ["compare", folder / "counts.npz", "--out", folder / "out", *WORDS, "--jobs", "2"]
    words += ["--likelihood", "nb", "poisson", "--epochs", str(epochs)]
    process = subprocess.Popen(
        [sys.executable, "-m", "models", *map(str, words)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **comparison.ONE_THREAD},
        start_new_session=True,
        text=True,
    )
    wait_for(lambda: len(list((folder / "out/trials").glob("*.checkpoint.npz"))) > 0, process)
    return process


def wait_for(is_so, process=None):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end and (process is None or process.poll() is None)
        time.sleep(0.02)


def children_of(folder):
    """The numbers of processes that have this folder in their words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_a_comparison_that_was_killed_goes_on(tmp_path):
    """SIGKILL in the middle of a training: it ends too, and the end is that of one never killed."""
    write_counts(tmp_path)
    process = started(tmp_path, 50)
    process.kill()
    process.wait()
    process.stderr.close()
    wait_for(lambda: not children_of(tmp_path))
    left = {file.name for file in (tmp_path / "out/trials").iterdir()}
    assert "cells.npz" in left and any(name.endswith(".checkpoint.npz") for name in left)
    assert not {"nb-3-1x8-50-seed0.npz", "poisson-3-1x8-50-seed0.npz"} <= left
    x, group = cells("nb")
    options = dict(likelihood=("nb", "poisson"), epochs=50, labels=group, **SMALL)
    resumed = models.compare(x, out=tmp_path / "out", **options)
    assert numbers(resumed) == numbers(models.compare(x, **options))
    left = sorted(file.name for file in (tmp_path / "out/trials").iterdir())
    trainings = ["nb-3-1x8-50-seed0.npz", "poisson-3-1x8-50-seed0.npz"]
    assert left == ["gene-nb.npz", trainings[0], "pca.npz", trainings[1]]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
def test_ctrl_c_ends_all_processes(tmp_path):
    write_counts(tmp_path)
    process = started(tmp_path, 100_000)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all of them
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on where it was" in said and "Traceback" not in said
    wait_for(lambda: not children_of(tmp_path))
    assert not (tmp_path / "out/trials/cells.npz").exists()


def test_a_setting_that_fails_has_the_reason_in_its_row(tmp_path):
    x, _ = cells("nb", n_cells=80)
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials/poisson-3-1x8-2-seed0.npz").mkdir()  # where its result was to be written
    options = dict(likelihood=("nb", "poisson"), epochs=2, out=tmp_path, **SMALL)
    table = models.compare(x, **options)
    name = "poisson, 3 latent, 1 x 8, 2 epochs"
    assert "it is a folder" in named(table, name).failure
    assert f"{name}" in str(table) and table.best.likelihood == "nb"
    (tmp_path / "trials/poisson-3-1x8-2-seed0.npz").rmdir()
    assert named(models.compare(x, **options), name).failure is None


def test_where_all_fail_there_is_no_best():
    x, _ = cells("nb", n_cells=80)
    table = models.compare(x, likelihood="nb", epochs=2, learning_rate=-1.0, **SMALL)
    assert "No setting could be trained" in str(table)
    with pytest.raises(ValueError, match="no setting could be trained; .*learning_rate must be"):
        _ = table.best


def test_why_a_process_failed():
    assert comparison._why(b'"no luck"\n', b"", 1) == "no luck"
    assert comparison._why(b"", b"a\nMemoryError: b\n", 1) == (
        "its process ended with code 1 MemoryError: b"
    )
    if hasattr(signal, "SIGKILL"):
        assert "SIGKILL; was there too little memory? Try fewer jobs" in comparison._why(
            b"", b"", -9
        )


# ---------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    "change, message",
    [
        ({"likelihood": ()}, "likelihood: an empty list, which leaves nothing to compare"),
        ({"n_latent": []}, "n_latent: an empty list"),
        (
            {"likelihood": "gauss"},
            "likelihood must be one of .*'zinb', 'nb', 'poisson'.*, not 'gauss'",
        ),
        ({"likelihood": ("nb", "gauss")}, "likelihood must be one of"),
        ({"n_latent": (2, 0)}, "n_latent must be a whole number of at least 1, not 0"),
        ({"n_layers": 1.5}, "n_layers must be a whole number"),
        ({"epochs": (10, 0)}, "epochs must be a whole number of at least 1, not 0"),
        ({"jobs": 0}, "jobs must be a whole number of at least 1, not 0"),
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"seed": -1}, "seed must be a whole number of at least 0, not -1"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, not 'a'"),
        ({"n_samples": 0}, "n_samples must be a whole number"),
        ({"library": ("observed", "latent")}, "library: .*cannot be compared"),
        ({"library": "known"}, "library must be one of"),
        ({"labels": np.zeros(80, int)}, "labels: all cells have the same, 0; leave them out"),
        (
            {"labels": np.zeros(5, int)},
            r"labels: has shape \(5,\), must be one label for each of 80",
        ),
        ({"labels": "kind"}, "labels: no obs column 'kind'; there are: none"),
        ({"labels": np.array([None] * 80)}, "labels: 80 of 80 cells have no label"),
        ({"batch": "donor"}, "batch: no obs column 'donor'"),
        ({"momentum": 3}, "momentum is no setting of a comparison; there are dispersion"),
        ({"dispersion": "cell"}, "dispersion must be one of"),
        ({"counts": np.ones((3, 15))}, "counts: 3 cells with counts, of which a fifth .*give more"),
        ({"counts": np.full((80, 15), 0.5)}, "counts: row 0, column 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(change, message, monkeypatch):
    monkeypatch.setattr(comparison, "_carry_out", lambda *_: pytest.fail("it was begun"))
    x, _ = cells("nb", n_cells=80)
    options = {"counts": x, **SMALL, **change}
    with pytest.raises(ValueError, match=message):
        models.compare(**options)


def test_a_folder_that_cannot_be_written(tmp_path):
    x, _ = cells("nb", n_cells=80)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match="no folder can be made there"):
        models.compare(x, out=tmp_path / "file", **SMALL)
    with pytest.raises(OSError, match="no folder can be made there"):
        models.compare(x, out=tmp_path / "file" / "below", **SMALL)
    assert (tmp_path / "file").read_text() == "kept"


def test_two_comparisons_in_one_folder_do_not_mix(tmp_path):
    x, _ = cells("nb", n_cells=80)
    with (
        comparison.locks.locked(tmp_path / ".lock", "is comparing settings"),
        pytest.raises(OSError, match="is comparing settings.*wait until it is done"),
    ):
        models.compare(x, out=tmp_path, **SMALL)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "minigrad run", "version": 1}', '{"format": 1, "of": 2}']
)
def test_a_file_that_is_not_of_a_comparison_is_refused(tmp_path, text):
    x, _ = cells("nb", n_cells=80)
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(ValueError, match=r"comparison\.json: (damaged|not of a comparison)"):
        models.compare(x, out=tmp_path, **SMALL)


# --------------------------------------------------------------------------------- the command line
def call(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with counts.npz and the comparison `out`, made by the command."""
    folder = tmp_path_factory.mktemp("cli")
    write_counts(folder)
    words = ["--likelihood", "nb", "poisson", "--epochs", "20", "--batch-size", "64", "--seed", "2"]
    assert call("compare", folder / "counts.npz", "--out", folder / "out", *WORDS, *words) == 0
    return folder


def test_the_command_writes_what_the_function_says(compared, capsys):
    x, group = cells("nb")
    options = {**SMALL, "likelihood": ("nb", "poisson"), "epochs": 20, "labels": group}
    table = models.compare(x, batch_size=64, seed=2, out=compared / "out", **options)
    words = ["--likelihood", "nb", "poisson", "--epochs", "20", "--batch-size", "64", "--seed", "2"]
    assert call("compare", compared / "counts.npz", "--out", compared / "out", *WORDS, *words) == 0
    said = capsys.readouterr()
    assert said.out == f"{table}\n" and "for train --settings" in said.err
    assert (compared / "out/comparison.png").read_bytes().startswith(b"\x89PNG")
    with open(compared / "out/comparison.csv", newline="") as file:
        assert [line["name"] for line in csv.DictReader(file)] == [r.name for r in table.rows]


def test_train_takes_the_best_settings_and_the_counts(compared, tmp_path, capsys):
    folder = tmp_path / "run"
    assert call("train", "--out", folder, "--settings", compared / "out") == 0
    assert "settings of" in (said := capsys.readouterr().err) and "likelihood nb" in said
    model = models.SCVI.load(folder / "model.npz")
    x, _ = cells("nb")
    expected = models.SCVI(15, n_latent=3, n_hidden=8, likelihood="nb", seed=2)
    expected.fit(x, epochs=20, batch_size=64, progress=False)
    for name, value in expected.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], value)
    written = json.loads((folder / "config.json").read_text())
    assert written["counts"] == str(compared / "counts.npz")
    assert call("train", "--out", folder, "--resume") == 0


def test_what_is_given_beside_settings_counts_more(compared, tmp_path, capsys):
    words = ["--settings", compared / "out", "--epochs", "2", "--likelihood", "zinb"]
    assert call("train", compared / "counts.npz", "--out", tmp_path / "run", *words) == 0
    assert "(given beside: epochs, likelihood)" in capsys.readouterr().err
    config = json.loads((tmp_path / "run/config.json").read_text())["settings"]
    assert config["epochs"] == 2 and config["likelihood"] == "zinb" and config["n_hidden"] == 8


def test_a_run_begun_otherwise_contradicts_settings(compared, tmp_path, capsys):
    words = ["--epochs", "2", "--latent", "2", "--hidden", "4"]
    assert call("train", compared / "counts.npz", "--out", tmp_path / "run", *words) == 0
    assert call("train", "--out", tmp_path / "run", "--resume", "--settings", compared / "out") == 2
    assert "contradicts" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--likelihood"], 2, "expected at least one argument"),
        (["--likelihood", "gauss"], 2, "invalid choice: 'gauss'"),
        (["--latent", "0"], 2, "must be a whole number of at least 1, not '0'"),
        (["--jobs", "0"], 2, "must be a whole number of at least 1, not '0'"),
        (["--labels", "tissue"], 1, "no column 'tissue' of cells in the counts; there are: kind"),
        (["--selection", "pearson"], 2, "--selection says how to choose --genes N"),
        (["--genes", "16"], 1, "has 15 genes, fewer than --genes 16"),
        (["--library", "observed", "latent"], 2, "cannot be compared"),
        (["--out", "counts.npz"], 1, "no folder can be made there"),
    ],
)
def test_wrong_words_end_in_a_sentence(compared, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(compared)
    assert call("compare", "counts.npz", "--out", "other", *words) == code
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert not (compared / "other").exists()


def test_counts_are_not_replaced_by_the_table(compared, capsys):
    path = compared / "out/comparison.csv"
    before = path.read_bytes()
    assert call("compare", path, "--out", compared / "out") == 2
    assert "would be replaced" in capsys.readouterr().err and path.read_bytes() == before


def test_settings_of_what_is_no_comparison(tmp_path, capsys):
    assert call("train", "--out", tmp_path / "run", "--settings", tmp_path) == 1
    assert "holds no finished comparison" in capsys.readouterr().err
    for text in ("", '{"format": "minigrad comparison", "version": 1, "settings": {"epochs": 1}}'):
        (tmp_path / "best.json").write_text(text)
        assert call("train", "--out", tmp_path / "run", "--settings", tmp_path) == 1
        assert "best.json: damaged" in capsys.readouterr().err
    bad = {"format": "minigrad comparison", "version": 1, "counts": "x", "settings": {"code": "1"}}
    (tmp_path / "best.json").write_text(json.dumps(bad))
    assert call("train", "--out", tmp_path / "run", "--settings", tmp_path) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_several_files_with_covariates_are_compared_and_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    counts = with_covariates()
    frame = pandas.DataFrame({"sex": counts.obs["sex"], "age": counts.obs["age"]}, counts.cells)
    frame.iloc[:3, 0] = None
    frame.iloc[:-2].to_csv("meta.csv")
    for name, part in (("one", counts[:75]), ("two", counts[75:])):
        runs.write_counts(f"{name}.npz", Counts(part.X, part.genes, part.cells))
    words = ["--latent", "2", "--layers", "1", "--hidden", "8", "--likelihood", "nb", "--samples"]
    words += ["20", "--epochs", "2", "--jobs", "1", "--obs", "meta.csv", "--only-annotated"]
    told = ["--categorical", "sex", "--continuous", "age", "--encode-covariates"]
    assert call("compare", "one.npz", "two.npz", "--out", "out", *words, *told) == 0
    assert "145 cells, 10 genes of one.npz, two.npz" in capsys.readouterr().err
    assert call("train", "--settings", "out", "--out", "run") == 0
    settings = json.loads(Path("run/config.json").read_text())
    assert settings["counts"] == [str(tmp_path / "one.npz"), str(tmp_path / "two.npz")]
    model = models.SCVI.load("run/model.npz")
    assert model.batches == ["one", "two"] and model.columns.batch == "file"
    assert list(model.columns.categorical) == ["sex"]
    assert list(model.columns.continuous) == ["age"]
    assert model.config["encode_covariates"] and model.n_cells == 144  # one has no counts
    assert call("embed", "run", "--out", "z.csv") == 0
    shutil.copy("meta.csv", "out/comparison.csv")
    words[words.index("meta.csv")] = "out/comparison.csv"
    assert call("compare", "one.npz", "two.npz", "--out", "out", *words, *told) == 2
    assert "--obs" in (said := capsys.readouterr().err) and "would be replaced" in said


def test_a_comparison_from_the_disk_is_refused_in_a_sentence(compared, capsys):
    words = ["--out", compared / "never", "--on-disk"]
    assert call("compare", compared / "counts.npz", *words) == 2
    assert "compare holds all counts in memory" in capsys.readouterr().err
    assert not (compared / "never").exists()
