"""models/report.py: texts of users in pictures, as they are."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba
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


@pytest.fixture
def kept(monkeypatch):
    """Figures that become pictures of a page, instead of these."""
    figures = []

    def keep(figure):
        figures.append(figure)
        return b"png"

    monkeypatch.setattr(report, "png", keep)
    return figures


class Page(HTMLParser):
    """What a page shows beside its pictures: names of a legend with number and colour, texts."""

    def __init__(self, page):
        super().__init__()
        self.entries, self.titles, self.texts, self.tags = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "li":
            self.entries.append([])
        if tag == "polygon":
            self.entries[-1].append(dict(attributes)["fill"])

    def handle_data(self, text):
        self.texts.append(text)
        if self.tags[-1] == "polygon":
            self.entries[-1].append(text.removesuffix(" "))
        elif self.tags[-1] == "small" and len(self.entries[-1]) == 2:
            self.entries[-1].append(text)
        elif self.tags[-1] == "strong":
            self.titles.append(text)


def test_the_latent_space_is_shown_with_any_labels(kept):
    labels = np.repeat([*ODD, "<b>"], 2)
    z = np.random.default_rng(0).normal(size=(len(labels), 3))
    seen = report.planes(z)
    made, _ = report.latent_space(seen, labels, "$\\bad$<i>", np.ones(len(labels)), labels[::-1])
    page = Page(made)
    assert {entry[1] for entry in page.entries} == {*ODD, "<b>"}
    assert page.titles == ["$\\bad$<i>", "batch"]
    assert not {"i", "b"} & set(page.tags)
    for figure in kept:
        assert not any(drawn_texts(figure).values())


@pytest.mark.parametrize(
    "batch, titles",
    [
        (np.array(["x", "y", "x", "z"] * 5), ["kind", "batch"]),
        (np.array([1, 2] * 10), ["kind", "batch"]),
        (np.array(["x"] * 20), ["kind"]),
        (None, ["kind"]),
    ],
)
def test_several_batches_have_panels(kept, batch, titles):
    z = np.random.default_rng(0).normal(size=(20, 3))
    kinds = np.array(list("abcd") * 5)
    seen = report.planes(z)
    page = Page(report.latent_space(seen, kinds, "kind", np.ones(20), batch)[0])
    assert page.titles == titles
    assert len(kept) == 2 * (len(titles) + 1)  # two planes: by names, and by library size
    if len(titles) > 1:
        texts = batch.astype(str)
        entries = [entry for entry in page.entries if entry[1] in set(texts)]
        expected = sorted((name, str(np.sum(texts == name))) for name in set(texts))
        assert [(name, n) for _, name, n in entries[-len(expected) :]] == expected
        colors = {name: to_rgba(color)[:3] for color, name, _ in entries}
        for figure, plane in zip(kept[2:4], seen, strict=True):
            (dots,) = figure.axes[0].collections
            # Each cell has the colour of its batch, in whatever order they are drawn.
            where = {
                tuple(point): color[:3]
                for point, color in zip(dots.get_offsets().data.tolist(), dots.get_facecolors())
            }
            for point, label in zip(plane.points.tolist(), texts):
                assert tuple(where[tuple(point)]) == pytest.approx(colors[label])


def test_the_legend_of_labels_has_the_colours_that_are_drawn(kept):
    labels = np.repeat(["B 10", "B 9", "T"], [3, 5, 12])
    z = np.random.default_rng(0).normal(size=(20, 3))
    seen = report.planes(z)
    made, used = report.latent_space(seen, labels, "kind", np.ones(20))
    entries = Page(made).entries
    assert [(name, n) for _, name, n in entries] == [("B 9", "5"), ("B 10", "3"), ("T", "12")]
    assert used == {name: color for color, name, _ in entries}
    for figure in kept[:2]:
        n_drawn = {to_hex(c.get_facecolor()[0, :3]).upper(): c for c in figure.axes[0].collections}
        for color, _, n in entries:
            assert len(n_drawn[color].get_offsets()) == int(n)
        rare, often = n_drawn[entries[1][0]], n_drawn[entries[2][0]]
        assert rare.get_zorder() > often.get_zorder()


def test_cells_without_a_label_are_grey_and_the_last_of_the_legend(kept):
    labels = np.repeat(["(no label)", "z", "A"], [2, 9, 9])
    seen = report.planes(np.random.default_rng(0).normal(size=(20, 3)))
    made, used = report.latent_space(seen, labels, "kind", np.ones(20))
    entries = Page(made).entries
    assert [name for _, name, _ in entries] == ["A", "z", "(no label)"]
    assert entries[2][0] == "#999999" and set(used) == {"A", "z"}


def test_numbers_in_names_are_sorted_as_numbers():
    names = ["", "10", "2", "010b", "9" * 5000, "cluster 10", "cluster 2", "others", "T", "cluster"]
    assert sorted(names, key=report.as_read) == [
        *["", "2", "10", "010b", "9" * 5000, "T", "cluster", "cluster 2", "cluster 10", "others"]
    ]


@pytest.mark.parametrize("marker", [*report.MARKERS, ".", "d"])
def test_a_marker_of_the_legend_is_whole(marker):
    svg = report.marker_of({"marker": marker, "color": "#123456"})
    box = [float(x) for x in re.search('viewBox="([^"]*)"', svg)[1].split()]
    points = re.search('points="([^"]*)"', svg)[1].split()
    corners = np.array([point.split(",") for point in points], float)
    assert box == [-1, -1, 2, 2] and np.abs(corners).max() == 1.0
    x, y = corners.T
    area = abs(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1))) / 2  # of the square around it, 4
    assert 0.7 < area <= 4.0


def test_others_are_counted(kept):
    labels = np.repeat([f"type {i:02d}" for i in range(33)], np.arange(33, 0, -1))
    seen = report.planes(np.random.default_rng(0).normal(size=(len(labels), 3)))
    made, used = report.latent_space(seen, labels, "kind", np.ones(len(labels)))
    assert "by kind. The 4 rarest of 33 are called others." in made
    assert len(used) == 29 and Page(made).entries[-1][1:] == ["others", "10"]
    fewer = np.repeat("a", len(labels))
    assert "others" not in report.latent_space(seen, fewer, "kind", np.ones(len(labels)))[0]


def test_tsne_of_many_cells_is_of_a_part_of_them_and_says_so(kept, monkeypatch):
    monkeypatch.setattr(report, "MOST_IN_TSNE", 40)
    z = np.random.default_rng(0).normal(size=(60, 3))
    labels = np.where(z[:, 0] > 0, "a", "b")
    components, near = report.planes(z)
    assert len(components.points) == 60 and near.points.shape == (40, 2)
    assert len(set(near.rows.tolist())) == 40
    made, _ = report.latent_space([components, near], labels, "kind", np.ones(60))
    assert "60 cells on the first" in made and "and a random 40 of them by t-SNE" in made
    # The cells that are drawn have labels of their own, and not of the first 40.
    drawn = {len(c.get_offsets()) for c in kept[1].axes[0].collections}
    assert drawn == {np.sum(labels[near.rows] == "a"), np.sum(labels[near.rows] == "b")}
    monkeypatch.setattr(report, "MOST_IN_TSNE", 60)
    assert "a random" not in report.latent_space(report.planes(z), labels, "k", np.ones(60))[0]
    assert len(report.planes(z[:3])) == 1


def test_a_page_fits_narrow_screens_and_dark_ones():
    page = report.page("<&>", report.figure([b"1", b"2"], "a < b"))
    assert "<meta name=viewport" in page and "prefers-color-scheme: dark" in page
    assert page.count("<img") == 2 and page.count("<figcaption>a &lt; b</figcaption>") == 1
    assert "<title>&lt;&amp;&gt;</title>" in page and "repeat(auto-fill" in page
    # The colours that tests/test_colors.py holds apart are turned so.
    assert ".legend svg { filter: invert(.93) hue-rotate(180deg) brightness(1.15) }" in page
    assert report.figure([], "nothing") == ""


def test_a_wide_picture_is_moved_sideways_where_its_letters_would_be_too_small():
    figure = Figure(figsize=(12, 1))
    picture = report.png(figure)
    assert report.pixels_across(picture) == 2400
    made = report.figure([picture], "a", is_wide=True)
    assert "<div class=wide><img style=min-width:1440px alt=" in made
    assert "min-width" not in report.figure([picture], "a")
    assert ".wide { overflow-x: auto }" in report.STYLE


def test_numbers_are_a_colour_bar_and_names_are_a_legend(kept):
    z = np.random.default_rng(0).normal(size=(60, 3))
    n_counts = np.random.default_rng(1).permutation(np.arange(60)) * 10.0
    n_counts[7] = np.nan
    seen = report.planes(z)
    made, used = report.latent_space(seen, report.as_numbers(n_counts), "n$_$counts", np.ones(60))
    assert not used and "<li>" not in made
    for figure in kept[:2]:
        cells, bar = figure.axes
        assert bar.get_ylabel() == "n$_$counts" and not figure.legends
        assert not any(drawn_texts(figure).values())
        without, dots = cells.collections
        assert len(without.get_offsets()) == 1
        np.testing.assert_array_equal(np.asarray(dots.get_array()), np.delete(n_counts, 7))
    for figure in kept[2:]:
        assert figure.axes[1].get_ylabel() == "log10 library size (counts a cell)"
    kept.clear()
    report.latent_space(seen, np.full(60, np.nan), "unknown " * 20, np.ones(60))
    assert len(kept[0].axes[1].get_ylabel().splitlines()) == 2


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


@pytest.mark.parametrize("n_panels", [1, 3])
def test_a_volcano_names_its_groups_within_the_picture(n_panels):
    """However long they are; and short ones where the genes are counted."""
    long = "natural killer cell, CD56 dim, of peripheral blood, " * 6
    table = table_of(["G1", "G2"])
    parts = []
    for name in ("NK", long, "B" * 300)[-n_panels:]:
        groups = [Groups(name, long, 8, 9, 0.25)]
        columns = table.columns | {"group": np.full(2, name), "comparison": np.full(2, long)}
        parts.append((groups[0], columns))
    columns = {key: np.concatenate([part[key] for _, part in parts]) for key in table.columns}
    many = DifferentialExpression(
        columns, mode="change", n_samples=9, fdr=0.05, groups=[groups for groups, _ in parts]
    )
    figure = many.volcano()
    figure.canvas.draw()
    width = figure.bbox.width
    titles = [axes.title for axes in figure.axes if axes.get_title()]
    assert len(titles) == n_panels
    boxes = [title.get_window_extent() for title in titles]
    for box, after in zip(boxes, [*boxes[1:], None]):
        assert box.x0 >= 0 and box.x1 <= (width if after is None else after.x0)
    for text in figure.legends[0].get_texts():
        assert text.get_window_extent().x0 >= 0 and text.get_window_extent().x1 <= width
    assert all("(8 cells)" in title.get_text() for title in titles)
    assert all("(9 cells)" in title.get_text() for title in titles)
    if n_panels > 1:
        said = [text.get_text() for text in figure.axes[0].texts]
        assert "2 genes higher in NK" in said and "0 genes higher in b" in said


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
