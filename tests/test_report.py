"""models/report.py: texts of users in pictures, as they are."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from scipy import sparse

from minigrad.fit import History
from models import SCVI, report
from models.counts import Counts
from models.differential_table import DifferentialExpression, Groups

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
    report.latent_space(z, labels, "$\\bad$", np.ones(len(labels)), labels)
    found = drawn_texts(kept[0])
    assert {*ODD, "$\\bad$"} - {""} <= set(found) and not any(found.values())
    found = drawn_texts(kept[1])
    assert {*ODD, "batch"} - {""} <= set(found) and not any(found.values())


@pytest.mark.parametrize(
    "batch, titles",
    [
        (np.array(["x", "y", "x", "z"] * 5), ["kind", "batch"]),
        (np.array([1, 2] * 10), ["kind", "batch"]),
        (np.array(["x"] * 20), ["kind"]),
        (None, ["kind"]),
    ],
)
def test_several_batches_have_a_panel(monkeypatch, batch, titles):
    kept = []
    monkeypatch.setattr(report, "png", lambda figure: kept.append(figure))
    z = np.random.default_rng(0).normal(size=(20, 3))
    report.latent_space(z, np.array(list("abcd") * 5), "kind", np.ones(20), batch)
    legends = [figure.legends[0] for figure in kept if figure.legends]
    assert [made.get_title().get_text() for made in legends] == titles
    if len(titles) > 1:
        names = [text.get_text() for text in legends[1].get_texts()]
        assert names == sorted(set(batch.astype(str)))
        dots = kept[1].axes[0].collections[0]
        # Each cell has the colour of its batch, in whatever order they are drawn.
        colours = {
            text.get_text(): to_rgba(handle.get_color())[:3]
            for text, handle in zip(legends[1].get_texts(), legends[1].legend_handles)
        }
        where = {
            tuple(point): color[:3]
            for point, color in zip(dots.get_offsets().data.tolist(), dots.get_facecolors())
        }
        x = z - z.mean(axis=0)
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        for point, label in zip((u * s)[:, :2].tolist(), batch.astype(str)):
            assert tuple(where[tuple(point)]) == pytest.approx(colours[label])


def test_up_to_twenty_labels_have_a_look_of_their_own():
    for n in (3, 10, 11, 20):
        look = report.look_of([f"{i:02d}" for i in range(n)])
        assert len({of_name["color"] for of_name in look.values()}) == n
    others = report.look_of([*(f"{i:02d}" for i in range(19)), "others"])["others"]
    assert others["color"] == "#BBBBBB"


def test_every_colour_shows_on_white():
    """The contrast of WCAG 2.1 is 2 at least, and no two colours have become one."""
    for colors in (report.COLORS, report.MANY_COLORS):
        assert len(set(colors)) == len(colors)
        for color in colors:
            linear = [
                c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)
            ]
            luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
            assert 1.05 / (luminance + 0.05) > 1.97, color


def test_a_page_fits_narrow_screens_and_dark_ones():
    page = report.page("<&>", report.figure([b"1", b"2"], "a < b"))
    assert "<meta name=viewport" in page and "prefers-color-scheme: dark" in page
    assert page.count("<img") == 2 and page.count("<figcaption>a &lt; b</figcaption>") == 1
    assert "<title>&lt;&amp;&gt;</title>" in page and "flex-wrap: wrap" in page
    assert report.figure([], "nothing") == ""


def test_numbers_are_a_colour_bar_and_names_are_a_legend(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(report, "png", lambda figure: kept.append(figure))
    z = np.random.default_rng(0).normal(size=(60, 3))
    n_counts = np.random.default_rng(1).permutation(np.arange(60)) * 10.0
    n_counts[7] = np.nan
    report.latent_space(z, report.as_numbers(n_counts), "n$_$counts", np.ones(60))
    (left, bar), (_, bar_of_depth) = [figure.axes for figure in kept]
    assert bar.get_ylabel() == "n$_$counts"
    assert bar_of_depth.get_ylabel() == "log10 library size (counts a cell)"
    assert not kept[0].legends and not kept[1].legends
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
    columns = {"gene": np.array(genes), "group": np.full(n, "$a$"), "comparison": np.full(n, "_")}
    for name in ("lfc_mean", "bayes_factor"):
        columns[name] = numbers
    columns["is_de"] = np.ones(n, bool)
    groups = [Groups("$a$", "_", 8, 9, 0.25)]
    return DifferentialExpression(columns, mode="change", n_samples=9, fdr=0.05, groups=groups)


def test_a_volcano_names_genes_as_they_are(tmp_path, monkeypatch):
    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (kept.append(f), savefig(f, *a, **k)))
    table_of(ODD).volcano(tmp_path / "volcano.svg")
    found = drawn_texts(kept[0])
    assert set(ODD) - {""} <= set(found)
    assert not any(found[name] for name in ODD if name)
    for text in ("higher in $a$ (8 genes)", "a: $a$ (8 cells)\nb: _ (9 cells)"):
        assert found[text] is False


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


def test_the_path_of_a_page_may_be_text(tmp_path):
    rng = np.random.default_rng(0)
    counts = Counts(
        sparse.csr_array(rng.poisson(2.0, (30, 8)).astype(np.float32)),
        [f"g{i}" for i in range(8)],
        [f"c{i}" for i in range(30)],
    )
    model = SCVI(8, n_latent=2, n_hidden=8, likelihood="nb")
    history = model.fit(counts, epochs=1, progress=False)
    report.write(str(tmp_path / "page.html"), model, history, counts, title="of these")
    assert "of these" in (tmp_path / "page.html").read_text(encoding="utf-8")
