"""The examples in the docstrings of minigrad, models and demos, and the README's script, run and print what they claim."""

import ast
import doctest
import importlib
import textwrap
from pathlib import Path

import numpy as np
import pytest

from models import SCVI, counts

ROOT = Path(__file__).parents[1]
FILES = [
    p
    for package in ("minigrad", "models", "demos")
    for p in sorted((ROOT / package).glob("*.py"))
    if p.stem != "__main__"
]
MODULES = [
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES
]
DISTRIBUTIONS = [
    "Normal",
    "Bernoulli",
    "Categorical",
    "Poisson",
    "NegativeBinomial",
    "ZeroInflatedNegativeBinomial",
    "kl_divergence",
]
SHOWN = [
    "minigrad.tensor.Tensor",
    "minigrad.tensor.grad",
    "minigrad.table.primitive",
    "minigrad.checking.gradcheck",
    *[f"minigrad.distributions.{name}" for name in DISTRIBUTIONS],
    "minigrad.nn.Sequential",
    "models.autoencoder.Autoencoder",
    "models.vae.VAE",
    "models.scvi.SCVI",
]


pytestmark = pytest.mark.usefixtures("table_as_it_was")  # exercises and examples add primitives


def docstrings(path):
    """The docstrings that stand in a source."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef
    return [ast.get_docstring(node, clean=False) or "" for node in nodes if isinstance(node, kinds)]


def examples(module, path):
    """The docstrings with examples of a module; what they use beside the module's own names is numpy.

    What doctest finds beyond those of the source is NumPy's: Tensor.T has the docstring of numpy.transpose.
    """
    own = docstrings(path)
    found = doctest.DocTestFinder().find(importlib.import_module(module), extraglobs={"np": np})
    return [test for test in found if test.examples and test.docstring in own]


@pytest.mark.parametrize("module, path", list(zip(MODULES, FILES)), ids=MODULES)
def test_docstring_examples_print_what_they_claim(module, path):
    found, report = examples(module, path), []
    assert sum(len(test.examples) for test in found) == "".join(docstrings(path)).count(
        ">>> "
    )  # none is overlooked
    for test in found:
        doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)


def test_the_central_names_have_examples():
    assert set(SHOWN) <= {test.name for place in zip(MODULES, FILES) for test in examples(*place)}


def test_a_wrong_example_is_seen():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(test, out=lambda text: None).failed == 1


def test_the_script_of_the_readme_runs(tmp_path, monkeypatch):
    """Its own text, on small counts, trained for two epochs."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## scVI on your own counts\n")[2].partition("\n## ")[0]
    script = textwrap.dedent(
        "\n".join(
            line for line in section.splitlines() if line.startswith("    ") or not line.strip()
        )
    )
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    x = np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32)
    labels = pandas.Categorical(["CD19+ B", "CD14+ Monocyte"] * 30)
    names = [f"cell{i}" for i in range(60)]
    donor = np.repeat(["d1", "d2", "d3", "d4"], 15)
    columns = {"labels": labels, "donor": donor, "drug": np.repeat(["stim", "ctrl"], 30)}
    obs = pandas.DataFrame(columns, index=names)
    anndata.AnnData(X=x, obs=obs).write_h5ad(tmp_path / "counts.h5ad")
    train = SCVI.fit
    monkeypatch.setattr(
        SCVI,
        "fit",
        lambda self, x, **keywords: train(self, x, epochs=2, progress=False, **keywords),
    )
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(compile(script, "README.md", "exec"), found)
    assert isinstance(found["counts"], counts.Counts) and found["z"].shape == (60, 30)
    assert len(found["table"]["gene"]) == 12 and (tmp_path / "run.npz").exists()
