"""The README does what it says: its two commands, its Python examples."""

import doctest
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


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
    assert attempted >= 5 and failures == 0


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / path).stat().st_size > 4_000


def test_list_of_demos_matches_what_runs():
    listed = set(re.findall(r"^\|.*\| `(\w+)` \|", TEXT, flags=re.M))
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
