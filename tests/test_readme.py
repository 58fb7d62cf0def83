"""The README and the pages that it links to do what they say: commands, Python examples, links, pictures."""

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from models.__main__ import COMMANDS, parser

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "README.md",
        "demos/README.md",
        "demos/lessons/README.md",
        "models/README.md",
        "tests/benchmarks/README.md",
    )
}


def test_exactly_two_fenced_blocks_of_one_line():
    blocks = re.findall(r"^```\n(.*?)^```$", TEXT, flags=re.M | re.S)
    assert len(blocks) == 2 and TEXT.count("```") == 4
    assert all(block.count("\n") == 1 for block in blocks)
    assert "-m demos scvi" in blocks[0] and "pytest" in blocks[1]


def test_ci_runs_the_second_block():
    script = (ROOT / ".ci" / "run").read_text()
    found = re.search(r"awk '(.*?)' README.md", script).group(1)
    printed = subprocess.run(
        ["awk", found, ROOT / "README.md"], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip().endswith("pytest -q") and printed.count("\n") == 1


def test_examples_print_what_they_claim():
    failures, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert attempted >= 14 and failures == 0


@pytest.mark.parametrize("page", PAGES)
def test_pictures_are_there_and_are_no_thumbnails(page):
    for path in re.findall(r"!\[.*?\]\((.*?)\)", PAGES[page]):
        assert max(imread((ROOT / page).parent / path).shape[:2]) >= 450, path


def anchors(text):
    """The names by which the web links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]*)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_a_page_that_is_linked_is_tested():
    linked = set(re.findall(r"\]\(([^)#]*\.md)", TEXT))
    assert linked <= set(PAGES)


@pytest.mark.parametrize("page", ["README.md", "models/README.md"])
def test_the_command_line_takes_the_commands_that_are_shown(page):
    lines = re.findall(r"^    (?:.*/)?python -m models (.*)", PAGES[page], flags=re.M)
    assert len(lines) >= 3
    for line in lines:
        parser().parse_args(shlex.split(line, comments=True))


def test_every_option_that_is_named_is_one(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            parser().parse_args([command, "--help"])
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    in_code = " ".join(re.findall(r"`[^`]*`", PAGES["models/README.md"], flags=re.S))
    named = set(re.findall(r"--[a-z][\w-]*", in_code))
    assert len(named) > 20 and named <= known | {"--help"}


def test_list_of_demos_matches_what_runs():
    listed = set(re.findall(r"^## `(\w+)`", PAGES["demos/README.md"], flags=re.M))
    out = subprocess.run(
        [sys.executable, "-m", "demos"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert listed == set(re.findall(r"^  (\w+)  ", out, flags=re.M))


def test_the_vae_beside_pytorch_trains():
    """The right column of the table, put together and run: the loss falls."""
    import numpy as np

    from minigrad import nn, optim
    from minigrad.distributions import Normal, kl_divergence

    first, *lines = (
        re.search(r"^    # PyTorch .*?(?=\n\n)", TEXT, flags=re.M | re.S).group().splitlines()
    )
    lines = [line[first.index("# here") :] for line in lines]
    assert len(lines) > 15
    rng = np.random.default_rng(0)
    losses, data = (
        [],
        (rng.standard_normal((256, 2)) @ rng.standard_normal((2, 20))).astype(np.float32),
    )

    def minibatches():
        for _ in range(300):
            yield data
            losses.append(float(names["model"].loss(data, np.random.default_rng(1)).item()))

    names = dict(
        np=np,
        nn=nn,
        optim=optim,
        Normal=Normal,
        kl_divergence=kl_divergence,
        rng=rng,
        minibatches=minibatches(),
    )
    exec("\n".join(lines), names)
    assert losses[-1] < 0.8 * losses[0]
