"""What objects show in a notebook: texts of data are escaped, and nothing is left out."""

import pickle
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from scipy import sparse

from minigrad import Tensor, trace
from minigrad.checkpoint import Saved
from minigrad.fit import History
from minigrad.notebook import as_frame, as_html, for_number, is_notebook, number_of, short
from models import SCVI, VAE
from models.counts import Counts

EVIL = "<script>alert(1)</script>"


class Cells(HTMLParser):
    """The texts of the cells of a table, and the tags that there are."""

    def __init__(self, page):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)

    def handle_data(self, text):
        self.texts.append(text)


def test_a_table_shows_texts_as_they_are():
    found = Cells(as_html(["a", EVIL], [[1.23456, "x & y"], [np.float32(2e9), EVIL]], EVIL))
    assert found.tags == {"table", "caption", "tr", "th", "td"}
    assert found.texts == [EVIL, "a", EVIL, "1.235", "x & y", "2e+09", EVIL]
    assert short(7) == "7" and short(np.float64(0.1)) == "0.1" and short(None) == "None"


def test_one_thing_is_one_and_others_are_many():
    assert [number_of(n, "cell") for n in (0, 1, 2, 1000)] == [
        "0 cells",
        "1 cell",
        "2 cells",
        "1,000 cells",
    ]
    assert number_of(1, "batch", "batches") == "1 batch"
    assert number_of(np.int64(3), "batch", "batches") == "3 batches"
    assert [for_number(n, "has", "have") for n in (0, 1, 2)] == ["have", "has", "have"]
    one = Counts(sparse.csr_array(np.ones((1, 1))), ["g"], ["c"])
    assert repr(one) == "Counts(1 cell x 1 gene; obs: none)"
    assert "<caption>Counts: 1 cell x 1 gene" in one._repr_html_()


def test_a_notebook_is_where_a_kernel_is(monkeypatch):
    assert not is_notebook()
    for shell, expected in ((None, False), (object(), False), (SimpleNamespace(kernel=1), True)):
        module = SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", module)
        assert is_notebook() == expected


def test_a_missing_pandas_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_frame needs pandas: pip install pandas"):
        History({"epoch": [1]}).to_frame()


def test_histories_as_frame_and_html():
    history = History({"epoch": [*range(1, 9)], "train_loss": [0.5 * i for i in range(8)]})
    pandas.testing.assert_frame_equal(history.to_frame(), pandas.DataFrame(history.columns))
    page = history._repr_html_()
    assert "8 epochs" in page and "<td>8<td>3.5" in page and "<td>3<td>" not in page
    assert "0 epochs" in History()._repr_html_() and repr(History()) == "History(0 epochs)"
    assert repr(History({"epoch": [1]})) == "History(1 epoch; last: epoch 1)"
    with pytest.raises(ValueError, match="plot: the history has no epochs yet"):
        History().plot()
    assert as_frame({"a": [1, 2]})["a"].tolist() == [1, 2]


def test_going_through_a_history_gives_the_names_of_its_columns():
    columns = {"epoch": [1, 2, 3], "train_loss": [0.5, 0.4, 0.3]}
    history = History(columns)
    assert list(history) == list(pandas.DataFrame(columns)) == ["epoch", "train_loss"]
    assert {name: history[name] for name in history} == columns
    assert len(history) == 3


@pytest.mark.filterwarnings("ignore:group ")
def test_a_figure_is_a_picture_in_a_notebook_that_never_used_pyplot():
    """IPython asks an object for `_repr_png_` where it knows nothing of its class."""
    x = Tensor([1.0, 2.0], requires_grad=True)
    counts = np.random.default_rng(0).poisson(2.0, (40, 6)).astype(np.float32)
    model = SCVI(6, n_latent=2)
    history = model.fit(counts, epochs=2, progress=False)
    table = model.differential_expression(counts, np.arange(40) < 20, n_samples=40)
    for figure in (history.plot(), table.volcano(), trace.draw(np.sum(np.exp(x)))):
        png = figure._repr_png_()
        assert png.startswith(b"\x89PNG") and len(png) > 2000
        assert len(pickle.loads(pickle.dumps(figure)).axes) == len(figure.axes)


def test_a_tensor_says_shape_and_dtype():
    t = Tensor(np.zeros((2, 3), np.float32), requires_grad=True)
    assert Cells(t._repr_html_()).texts == ["float32, shape (2, 3)", repr(t)]


def test_a_tape_as_frame_and_html():
    x = Tensor([1.0, 2.0], requires_grad=True)
    table = trace.table(np.sum(np.exp(x)), {x: EVIL})
    assert EVIL in Cells(table._repr_html_()).texts
    assert "script" not in Cells(table._repr_html_()).tags
    frame = table.to_frame()
    assert frame["operation"].tolist() == [row.operation for row in table]
    last = table[-2:]
    assert len(last) == 2 and str(last).count("\n") == 3 and str(table[:0]) == "no steps"


def test_counts_say_what_is_known_of_their_cells():
    obs = {"kind": np.array(["T", "T", EVIL]), "age": np.array([1.5, np.nan, 30.0])}
    counts = Counts(sparse.csr_array(np.eye(3)), list("abc"), list("xyz"), obs)
    texts = Cells(counts._repr_html_()).texts
    assert "Counts: 3 cells x 3 genes" in texts and "1.5 to 30" in texts
    assert f"T (2), {EVIL} (1)" in texts
    wide = Counts(sparse.csr_array(np.eye(40)), list(range(40)), list(range(40)))
    wide.obs = {"n_counts": np.arange(7, 47), "cluster": np.arange(40) // 10}
    texts = Cells(wide._repr_html_()).texts
    assert "7 to 46" in texts and "0 (10), 1 (10), 2 (10), 3 (10)" in texts
    many = Counts(counts.X, counts.genes, counts.cells, {"n": np.array(["a", "b", "c"])})
    assert "others" not in many._repr_html_()


@pytest.mark.parametrize("kind", [SCVI, VAE])
def test_a_model_says_its_sizes_and_what_it_was_trained_on(kind, tmp_path):
    x = np.random.default_rng(0).poisson(2.0, (50, 6)).astype(np.float32)
    model = kind(6, n_latent=2)
    n_weights = sum(p.data.size for p in model.parameters())
    assert f"weights: {n_weights:,}, trained: no" in repr(model)
    assert repr(model).startswith(f"{kind.__name__}(") and "n_latent=2" in repr(model)
    model.fit(x, epochs=3, batch_size=16, validation=0.2, progress=False)
    assert repr(model).endswith("trained: 40 rows, 3 epochs")
    model.save(tmp_path / "model.npz")
    again = kind.load(tmp_path / "model.npz")
    assert repr(again) == repr(model)
    texts = Cells(again._repr_html_()).texts
    assert kind.__name__ in texts and "40 rows, 3 epochs" in texts
    assert issubclass(kind, Saved)


def test_a_resumed_training_says_all_epochs(tmp_path):
    x = np.random.default_rng(0).poisson(2.0, (50, 6)).astype(np.float32)
    path = tmp_path / "run.npz"
    asked = dict(batch_size=16, validation=0.0, progress=False, checkpoint=path)
    SCVI(6, n_latent=2).fit(x, epochs=3, **asked)
    model = SCVI(6, n_latent=2)
    model.fit(x, epochs=3, resume=True, **asked)
    assert SCVI.load(path).trained_on == {"rows": 50, "epochs": 3}


@pytest.mark.filterwarnings("ignore:.*epochs")
def test_a_model_says_its_batches_and_what_was_mapped_since(tmp_path):
    x = np.random.default_rng(0).poisson(2.0, (50, 6)).astype(np.float32)
    assert "batches" not in repr(SCVI(6, n_latent=2)).partition(")")[2]
    model = SCVI(6, 7, n_latent=2)
    batch = np.array([*"abcdefg"] * 8)[:50]
    model.fit(x, batch, epochs=1, batch_size=50, validation=0.0, progress=False)
    assert "), batches: a, b, c, d, e and 2 others, weights:" in repr(model)
    assert repr(model).endswith("trained: 50 rows, 1 epoch")
    mapped = model.map_query(x[:9], np.repeat("<new>", 9), epochs=1, progress=False)
    mapped.save(tmp_path / "mapped.npz")
    for known in (mapped, SCVI.load(tmp_path / "mapped.npz")):
        said = "batches: a, b, c, d, e and 2 others, mapped since: <new>, weights:"
        assert said in repr(known)
        assert "<new>" in Cells(known._repr_html_()).texts
