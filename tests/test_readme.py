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
    printed = subprocess.run(["awk", found, ROOT / "README.md"], capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith("pytest -q") and printed.count("\n") == 1


def test_examples_print_what_they_claim():
    failures, attempted = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert attempted >= 5 and failures == 0


def test_pictures_are_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", TEXT):
        assert (ROOT / path).stat().st_size > 10_000


def test_list_of_demos_matches_what_runs():
    listed = set(re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.M))
    out = subprocess.run([sys.executable, "-m", "demos"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert listed == set(re.findall(r"^  (\w+)  ", out, flags=re.M))
