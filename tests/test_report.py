"""models/report.py: texts of users in pictures, as they are."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from minigrad.fit import History
from models import report
from models.differential import DifferentialExpression

# Names that matplotlib would read as mathematics, some of which it cannot, or leave out of legends.
ODD = ["$a$", "$\\frac$", "_hidden", "a$^b", "plain", "x$_$y", "", "_"]


def drawn_texts(figure):
    """Every text of a figure, once drawn, with whether matplotlib reads it as mathematics."""
    figure.canvas.draw()
    found = {}
    for text in figure.findobj(lambda artist: hasattr(artist, "get_parse_math")):
        if text.get_text():
            found[text.get_text()] = (
                text.get_parse_math() and text._preprocess_math(text.get_text())[1]
            )
    return found


@pytest.mark.parametrize("where", ["axes", "figure"])
def test_a_legend_shows_every_name_as_it_is(where, tmp_path):
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    labels = np.repeat(ODD, 3)
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    drawn = report.scatter(axes, points, labels)
    options = {"loc": "outside right upper"} if where == "figure" else {}
    place = figure if where == "figure" else axes
    legend = report.legend(place, drawn, title="_k$e$y", **options)
    assert [text.get_text() for text in legend.get_texts()] == sorted(ODD)
    assert len(legend.legend_handles) == len(ODD)
    for handle, points in zip(legend.legend_handles, axes.collections, strict=True):
        np.testing.assert_array_equal(handle.get_facecolor(), points.get_facecolor())
    found = drawn_texts(figure)
    assert {*ODD, "_k$e$y"} - {""} <= set(found)
    assert not any(found.values())
    for suffix in ("png", "svg", "pdf"):
        figure.savefig(tmp_path / f"legend.{suffix}")
    assert (tmp_path / "legend.svg").stat().st_size > 5000


def test_the_latent_space_is_drawn_with_any_labels(monkeypatch):
    kept = []
    monkeypatch.setattr(report, "png", lambda figure: kept.append(figure))
    labels = np.repeat(ODD, 2)
    z = np.random.default_rng(0).normal(size=(len(labels), 3))
    report.latent_space(z, labels, "$\\bad$", np.ones(len(labels)))
    found = drawn_texts(kept[0])
    assert {*ODD, "$\\bad$"} - {""} <= set(found) and not any(found.values())


def test_numbers_are_a_colour_bar_and_names_are_a_legend(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(report, "png", lambda figure: kept.append(figure))
    z = np.random.default_rng(0).normal(size=(60, 3))
    n_counts = np.random.default_rng(1).permutation(np.arange(60)) * 10.0
    n_counts[7] = np.nan
    report.latent_space(z, report.as_numbers(n_counts), "n$_$counts", np.ones(60))
    left, _, *bars = kept[0].axes
    assert [bar.get_ylabel() for bar in bars] == [
        "n$_$counts",
        "log10 library size (counts a cell)",
    ]
    assert left.get_legend() is None
    assert not any(drawn_texts(kept[0]).values())
    without, dots = left.collections
    assert len(without.get_offsets()) == 1
    shown = np.asarray(dots.get_array())
    np.testing.assert_array_equal(shown, np.delete(n_counts, 7))


MEASURED = {
    "counts": np.arange(50) * 3,
    "fractions": np.linspace(0, 1, 4),
    "with missing ones": np.array([0.5, np.nan, 2.0]),
    "objects with missing ones": np.array([*range(40), None], object),
}
NAMES = {
    "text": np.array(["1.5", "2.5"]),
    "numbers of clusters": np.arange(30),
    "clusters as floats": np.array([0.0, 1.0, 2.0, np.nan]),
    "truth values": np.array([True, False]),
    "text with missing ones": np.array(["B", None], object),
}


@pytest.mark.parametrize("case", {**MEASURED, **NAMES})
def test_what_is_taken_for_a_number(case):
    found = report.as_numbers({**MEASURED, **NAMES}[case])
    assert (found is not None) == (case in MEASURED)
    if found is not None:
        assert found.dtype == np.float64


def table_of(genes):
    """A table of differential expression with these names of genes."""
    n = len(genes)
    numbers = np.linspace(1.0, 2.0, n)
    columns = {"gene": np.array(genes)}
    for name in ("lfc_mean", "bayes_factor"):
        columns[name] = numbers
    columns["is_de"] = np.ones(n, bool)
    return DifferentialExpression(columns, mode="change", n_samples=9, delta=0.25, fdr=0.05)


def test_a_table_names_its_groups(tmp_path):
    named = table_of(["a", "b"]).named("$T$ cells", "rest")
    named.to_csv(tmp_path / "t.csv")
    first, *rows = (tmp_path / "t.csv").read_text().splitlines()
    assert first.startswith("gene,group,comparison,lfc_mean")
    assert [row.split(",")[:3] for row in rows] == [
        ["a", "$T$ cells", "rest"],
        ["b", "$T$ cells", "rest"],
    ]
    named.volcano(tmp_path / "t.svg")
    table_of(["a", "b"]).volcano(tmp_path / "u.svg")
    texts = [(tmp_path / name).read_text() for name in ("t.svg", "u.svg")]
    assert "means, $T$ cells over rest -->" in texts[0] and "a over b -->" in texts[1]


def test_a_volcano_names_genes_as_they_are(tmp_path, monkeypatch):
    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), savefig(f, *a, **k)))
    table_of(ODD).volcano(tmp_path / "volcano.svg")
    found = drawn_texts(kept[0])
    assert set(ODD) - {""} <= set(found)
    assert not any(found[name] for name in ODD if name)


def test_a_history_is_drawn_with_any_names(tmp_path):
    history = History({"epoch": [1, 2], "train_loss": [2.0, 1.0], "validation_$\\x$": [2.0, 1.0]})
    history.plot(tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 5000


def test_the_page_tells_how_well_batches_mix():
    rng = np.random.default_rng(0)
    batch = np.array(["a", "b"])[np.arange(120) % 2]
    kind = np.array(["T", "<B>"])[np.arange(120) // 60]
    z = rng.standard_normal((120, 3)) + 50 * (kind == "T")[:, None]
    page = report.integration_table(z, batch, kind, "kind")
    assert page.count("<tr>") == 6
    assert "one kind in a neighbourhood (cLISI)<td>1.00" in page
    assert report.integration_table(z, batch, None, "cluster").count("<tr>") == 2
    assert report.integration_table(z, batch, batch, "batch").count("<tr>") == 2
    apart = report.integration_table(z + 900 * (batch == "b")[:, None], batch, kind, "kind")
    assert "(iLISI)<td>0.00" in apart and "(kBET)<td>0.00" in apart
    assert report.integration_table(z, None, kind, "kind") == ""
    assert report.integration_table(z, np.repeat("a", 120), kind, "kind") == ""
    assert report.integration_table(z[:80], batch[:80], kind[:80], "kind") == ""
