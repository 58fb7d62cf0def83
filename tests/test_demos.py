"""Every demo runs, small, and leaves a page that shows all pictures with their captions."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "demos", "all", "--quick", "--out", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder


def test_every_demo_leaves_a_picture_with_a_caption_and_its_numbers(out):
    from demos.__main__ import available

    for name in available():
        assert (out / f"{name}.txt").stat().st_size > 100
        assert (out / f"{name}.png").stat().st_size > 5_000
        assert len((out / f"{name}.caption").read_text()) > 30


def test_the_page_holds_all_of_it_and_needs_no_network(out):
    from demos.__main__ import available

    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= len(available())
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_the_page_wraps_the_lessons_and_leaves_tables_as_they_are(out):
    from demos import page

    assert page.as_paragraphs("Two.\n\n    a <  b\n    c\n\nThree\nlines.\n") == (
        "<p>Two.</p><pre>    a &lt;  b\n    c</pre><p>Three\nlines.</p>"
    )
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "<meta name=viewport" in text and "prefers-color-scheme: dark" in text
    assert text.count("<div class=wide>") == text.count("<figcaption>") > 10
    assert "picture pca.png" not in text


def test_the_page_in_the_repository_has_the_captions_that_the_demos_write(out):
    """But for numbers, which are others in a quick run."""
    from demos.__main__ import available

    def words(path):  # the walk has t-SNE where UMAP is not installed
        text = path.read_text(encoding="utf-8").lower().replace("umap", "t-sne")
        return " ".join(re.findall("[a-z]+", text))

    shown = words(ROOT / "demos" / "README.md")
    for name in available():
        assert words(out / f"{name}.caption") in shown, name


def test_a_quick_picture_says_so(out, tmp_path):
    from demos import show
    from demos.__main__ import available

    f, axes = show.figure()
    axes[0, 0].plot([0, 1])
    show.save(f, tmp_path, "any", "A line.")
    before = imread(tmp_path / "any.png")
    show.mark_quick(tmp_path / "any.png")
    after = imread(tmp_path / "any.png")
    n_more = after.shape[0] - before.shape[0]
    assert after.shape[1] == before.shape[1] and 20 < n_more < 60
    inside = (slice(8, -8), slice(8, -8))  # without the frame
    np.testing.assert_allclose(after[n_more:][inside][..., :3], before[inside][..., :3], atol=0.01)
    assert np.mean(after[8 : n_more - 4, 8:-8, 2] < 0.5) > 0.01  # letters
    frame = np.array([0xD5, 0x5E, 0x00]) / 255
    np.testing.assert_allclose(after[2, 2, :3], frame, atol=0.02)
    assert len(list(out.glob("*.png"))) >= len(available())
    for path in out.glob("*.png"):
        np.testing.assert_allclose(imread(path)[2, 2, :3], frame, atol=0.02, err_msg=path.name)


def test_main_job_leaves_its_files(out):
    from models import SCVI

    lines = (out / "scvi_latent.csv").read_text().splitlines()
    assert len(lines) == 601 and len(lines[0].split(",")) == 31
    assert SCVI.load(out / "scvi_model.npz").n_genes == 558
    assert "held-out ELBO" in (out / "scvi.txt").read_text()


@pytest.mark.parametrize("words", [[], ["list"], ["help"], ["--help"], ["-h"]])
def test_a_question_for_help_lists_the_demos(words, capsys):
    from demos.__main__ import available, main

    assert main(words) == 0
    said = capsys.readouterr()
    assert not said.err
    assert re.findall(r"^  (\w+)  ", said.out, flags=re.M) == available()
    assert "--quick" in said.out and "python -m demos NAME --help" in said.out
    assert "A demo is a module" not in said.out  # that is for who writes one


def test_options_before_the_name_are_an_error_that_says_where_they_belong(capsys):
    from demos.__main__ import main

    assert main(["--quick", "scvi"]) == 2
    assert "the name comes first" in capsys.readouterr().err


def test_cells_drawn_from_a_categorical_decoder_have_the_molecules_of_real_ones():
    """And not one each, as the decoder itself draws."""
    from demos.vae import draws
    from models import VAE

    x = np.random.default_rng(0).poisson(3.0, (40, 6)).astype(np.float32)
    new = draws(VAE(6, hidden=(4,), n_latent=2, decoder="categorical"), x)
    np.testing.assert_array_equal(new.sum(axis=1), x.sum(axis=1))
    assert draws(VAE(6, hidden=(4,), n_latent=2), x).shape == x.shape


def test_the_folder_of_a_demo_may_be_a_variable(tmp_path, monkeypatch):
    from demos.__main__ import main

    folder = tmp_path / "elsewhere"
    monkeypatch.setenv("MINIGRAD_OUT", str(folder))
    monkeypatch.chdir(tmp_path)
    assert main(["elbo", "--quick"]) == 0
    assert list(folder.glob("elbo*.png")) and not (tmp_path / "out").exists()


def test_unknown_demo_is_an_error_that_lists_them():
    run = subprocess.run(
        [sys.executable, "-m", "demos", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2 and "scvi" in run.stderr
