"""The walk through a day: what its notebook shows is so, and it runs without what is optional."""

import json
import re
import sys

import numpy as np
import pytest

from models.counts import read
from tests import lessons


def shown():
    """The text that each cell of code of the notebook printed, one below the other."""
    notebook = json.loads((lessons.WALKS / "day.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    texts = [output.get("text") or output["data"].get("text/plain", "") for output in outputs]
    return "\n".join("".join(text) for text in texts)


def test_the_notebook_was_made_with_scanpy_and_igraph():
    assert "stand in" not in shown() and "placed by UMAP" in shown()


def test_the_notebook_shows_what_its_text_claims():
    text = shown()
    scores = {
        name: (float(before), float(after))
        for name, before, after in re.findall(
            r"^(\w[\w (²)]*?) +(-?\d\.\d\d) +(-?\d\.\d\d)$", text, re.M
        )
    }
    for mixing in ("ilisi", "kbet", "pcr_comparison", "batch_silhouette"):
        assert scores[mixing][1] > scores[mixing][0], mixing
    for types in ("clisi", "label_silhouette", "graph_connectivity"):
        assert scores[types][1] > scores[types][0] - 0.05, types
    before, after = scores["pct_mito in it (R²)"]
    assert after < before / 2
    assert "the morning's cells stay where they were: True" in text
    assert "as saved, so loaded: True" in text
    differences = re.findall(r"largest difference from above (\S+)", text)
    assert len(differences) == 2 and all(float(difference) < 1e-5 for difference in differences)
    sure = int(re.search(r"cells named, right: (\d+)%", text).group(1))
    unsure = int(re.search(r"unknown ones it would be: (\d+)%", text).group(1))
    assert sure >= 85 > 75 > unsure
    assert int(re.search(r"and (\d+)% of them unknown", text).group(1)) >= 90


def test_the_markers_of_the_clusters_are_those_of_the_books():
    """In every cluster a known marker at least is marked, and the largest agree with the annotation."""
    found = re.findall(
        r"^cluster \d+, +(\d+) cells: (.*)\n.*\n +known: +(.*)\n +annotated: (.*) \((\d+)%",
        shown(),
        re.M,
    )
    assert len(found) >= 8 and all(markers.split() for _, _, markers, _, _ in found)
    largest = {}
    for n_cells, kind, _, annotated, share in sorted(found, key=lambda row: int(row[0])):
        largest[kind] = annotated, int(share), int(n_cells)
    for kind, type_of_authors in {
        "B cells": "CD19+ B",
        "plasma cells": "CD19+ B",
        "dendritic cells (cDC1)": "Dendritic",
        "dendritic cells (cDC2)": "Dendritic",
        "CD16+ monocytes": "CD14+ Monocyte",
        "progenitors": "CD34+",
    }.items():
        annotated, share, _ = largest[kind]
        assert annotated == type_of_authors and share > 75, kind


def test_the_walk_says_what_it_does_without(tmp_path, monkeypatch, capsys):
    """All of it but its end, the same day in a terminal, without scanpy and anndata."""
    for name in ("scanpy", "anndata"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("MINIGRAD_QUICK", "1")
    monkeypatch.setenv("MINIGRAD_OUT", str(tmp_path))
    monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards: the walk has its own
    code = [cell.text for cell in lessons.cells("day", lessons.WALKS) if cell.is_code]
    end = next(i for i, text in enumerate(code) if "def terminal" in text)
    exec(compile("\n\n".join(code[:end]), "day.py", "exec"), names := {"__name__": "__main__"})
    said = capsys.readouterr().out
    assert "k-means and t-SNE stand in" in said and "pip install scanpy igraph" in said
    assert "no .h5ad is written" in said and "pip install -e '.[singlecell]'" in said
    assert not list(tmp_path.rglob("*.h5ad"))
    assert "warning: " in said and "transpose" in said  # of the folder that is read the wrong way
    counts = read(tmp_path / "day" / "morning", obs=tmp_path / "day" / "morning.csv")
    everything = names["everything"]
    assert set(counts.obs["donor"]) == {"D1", "D2"} and not set(names["second"].cells) & set(
        counts.cells
    )
    rows = [everything.cells.tolist().index(cell) for cell in counts.cells]
    np.testing.assert_array_equal(counts.X.toarray(), everything.X.toarray()[rows])
    assert (counts.genes == everything.genes).all()
    assert (tmp_path / "day" / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("is_quick", [True, False])
def test_the_demo_leaves_the_environment_as_it_was(tmp_path, monkeypatch, is_quick):
    import os
    from types import SimpleNamespace

    from demos import day

    script = tmp_path / "walk.py"
    script.write_text(
        "import os, warnings\n"
        "from pathlib import Path\n"
        "out = Path(os.environ['MINIGRAD_OUT'])\n"
        "(out / 'said.txt').write_text(os.environ.get('MINIGRAD_QUICK', 'in full'))\n"
        "warnings.showwarning = print\n"
    )
    monkeypatch.setattr(day, "SCRIPT", script)
    monkeypatch.delenv("MINIGRAD_QUICK", raising=False)
    before = dict(os.environ)
    shows = sys.modules["warnings"].showwarning
    day.run(SimpleNamespace(out=tmp_path, quick=is_quick))
    assert (tmp_path / "said.txt").read_text() == ("1" if is_quick else "in full")
    assert dict(os.environ) == before
    assert sys.modules["warnings"].showwarning is shows
