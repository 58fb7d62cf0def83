"""The house (DESIGN section 4): who may import whom, what lies where, what no file does."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A file imports only from files above it.
ORDER = {
    "minigrad": [
        "notebook",
        "backend",
        "backward",
        "tensor",
        "table",
        "fused",
        "ops",
        "special_functions",
        "linalg",
        "derived",
        "matrices",
        "samples",
        "einsum",
        "kernels",
        "array_kernels",
        "functional",
        "count_kernels",
        "count_likelihoods",
        "distributions",
        "arena",
        "nn",
        "checkpoint",
        "picture",
        "tape",
        "boxes",
        "trace",
        "optim",
        "data",
        "parallel",
        "progress",
        "training",
        "fit",
        "example_inputs",
        "quotients",
        "checking",
    ],
    "models": [
        "streams",
        "locks",
        "hdf5_writing",
        "files",
        "matrix_market",
        "hdf5",
        "zarr_store",
        "orientation",
        "labels",
        "measured",
        "annotation",
        "joining",
        "fractions",
        "counts",
        "covariates",
        "guarded",
        "inputs",
        "feature_model",
        "many_draws",
        "posterior",
        "imputation",
        "autoencoder",
        "vae",
        "groups",
        "differential_table",
        "differential",
        "recipe",
        "count_inputs",
        "abundance_table",
        "abundance",
        "query",
        "torch_files",
        "scvi_tools",
        "scvi",
        "clustering",
        "integration",
        "transfer",
        "tsne",
        "latent_files",
        "colors",
        "runs",
        "report",
        "trial",
        "comparison",
        "__main__",
    ],
}
PACKAGES = ("minigrad", "models", "demos")
TOP = {
    ".github",
    "CITATION.cff",
    "minigrad",
    "models",
    "tests",
    "demos",
    "setup.cfg",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    ".gitignore",
    ".ci",
    "pyproject.toml",
}


def modules(*packages):
    """The files of packages, as paths relative to the top."""
    return sorted(
        str(p.relative_to(ROOT)) for package in packages for p in (ROOT / package).rglob("*.py")
    )


def source(path):
    return (ROOT / path).read_text(encoding="utf-8")


def at_run_time(node):
    """The nodes below a node, without the bodies of `if TYPE_CHECKING:`, which never run."""
    yield node
    is_for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    for below in node.orelse if is_for_types else ast.iter_child_nodes(node):
        yield from at_run_time(below)


def imports(path, text=None):
    """The dotted names of what a file imports, wherever in the file it does; `from package import module` is both."""
    package = path.split("/")[0]
    for node in at_run_time(ast.parse(source(path) if text is None else text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([package, base] if base else [package])
            for alias in node.names:
                inside = (
                    (ROOT / base.replace(".", "/") / f"{alias.name}.py").exists() if base else False
                )
                yield f"{base}.{alias.name}" if inside else base


def forbidden(path, text=None):
    """The imports of a file that point down, or across the house."""
    package, name = path.split("/")[0], Path(path).stem
    for target in imports(path, text):
        to, module = [*target.split("."), ""][:2]
        if to not in (*PACKAGES, "tests"):
            continue
        if (
            to == "tests"
            or to == "demos"
            and package != "demos"
            or to == "models"
            and package == "minigrad"
        ):
            yield target
        elif package == to and package in ORDER and name != "__init__":
            order = ORDER[package]
            if module not in order or order.index(module) >= order.index(name):
                yield target


def test_every_module_has_its_place_in_the_order():
    for package, order in ORDER.items():
        assert {Path(p).stem for p in modules(package)} <= {*order, "__init__"}, package


@pytest.mark.parametrize("path", modules(*PACKAGES))
def test_imports_point_upwards(path):
    assert list(forbidden(path)) == []


@pytest.mark.parametrize(
    "path, text, wrong",
    [
        ("minigrad/tensor.py", "from minigrad import backend", []),
        ("minigrad/tensor.py", "from minigrad import ops", ["minigrad.ops"]),
        ("minigrad/tensor.py", "def f():\n    from minigrad.ops import exp", ["minigrad.ops"]),
        ("minigrad/tensor.py", "import minigrad.ops as o", ["minigrad.ops"]),
        ("minigrad/tensor.py", "from . import ops", ["minigrad.ops"]),
        ("minigrad/tensor.py", "from .tensor import Tensor", ["minigrad.tensor"]),
        ("minigrad/tensor.py", "from minigrad import Tensor", ["minigrad"]),
        ("minigrad/backend.py", "if TYPE_CHECKING:\n    from minigrad.tensor import Tensor", []),
        ("minigrad/backend.py", "if here:\n    import minigrad.tensor", ["minigrad.tensor"]),
        (
            "minigrad/backend.py",
            "if TYPE_CHECKING:\n    pass\nelse:\n    import minigrad.tensor",
            ["minigrad.tensor"],
        ),
        ("minigrad/count_likelihoods.py", "from minigrad.functional import softplus", []),
        (
            "minigrad/functional.py",
            "from minigrad import count_likelihoods",
            ["minigrad.count_likelihoods"],
        ),
        ("minigrad/fit.py", "from models import scvi", ["models.scvi"]),
        ("minigrad/fit.py", "import demos", ["demos"]),
        ("minigrad/__init__.py", "from minigrad import fit", []),
        ("minigrad/__init__.py", "from models import scvi", ["models.scvi"]),
        ("models/scvi.py", "from minigrad import nn\nfrom models import counts", []),
        ("models/counts.py", "from models.scvi import SCVI", ["models.scvi"]),
        ("models/scvi.py", "import demos.scvi", ["demos.scvi"]),
        ("demos/scvi.py", "from models import scvi\nfrom demos import show", []),
        ("demos/scvi.py", "from tests import test_house", ["tests"]),
    ],
)
def test_a_wrong_arrow_is_seen(path, text, wrong):
    assert [t.removesuffix(".test_house") for t in forbidden(path, text)] == wrong


def outside(path):
    """The top-level names of the packages that a file imports."""
    return {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", modules(*PACKAGES))
def test_only_backend_imports_cupy(path):
    if path != "minigrad/backend.py":
        assert not outside(path) & {"cupy", "cupyx"}


@pytest.mark.parametrize("path", modules("minigrad", "models"))
def test_no_other_engine_is_imported(path):
    assert not outside(path) & {"torch", "autograd", "jax", "tensorflow", "scvi", "keras"}


@pytest.mark.parametrize("path", modules("minigrad", "models"))
def test_modules_say_what_to_know_before_and_after(path):
    if Path(path).stem in ("__init__", "__main__"):
        return
    words = " ".join((ast.get_docstring(ast.parse(source(path))) or "").split())
    assert "Know before" in words and "Know after" in words
    assert words.index("Know before") < words.index("Know after")


KINDS = r"This (?:file )?is (a lesson|engineering|a reference)\b"
N_FIRST_LINES = 3


def kinds(path, text=None):
    """What a file says of its kind, in the first lines of its docstring."""
    text = source(path) if text is None else text
    docstring = ast.get_docstring(ast.parse(text)) or ""
    first_lines = docstring.splitlines()[:N_FIRST_LINES]
    if Path(path).name == "__main__.py":  # its docstring is printed, as help
        first_lines = text.split('"""\n')[1].strip().splitlines()[:N_FIRST_LINES]
    return re.findall(KINDS, " ".join(first_lines))


@pytest.mark.parametrize("path", modules("minigrad", "models"))
def test_modules_say_what_kind_they_are_in_their_first_lines(path):
    assert len(kinds(path)) == 1


@pytest.mark.parametrize(
    "text, found",
    [
        ('"""Where arrays live. This is engineering.\n"""', ["engineering"]),
        ('"""How it is made.\n\nThis is a lesson.\n"""', ["a lesson"]),
        ('"""How it is made.\n"""', []),
        ('"""How it is made. A reference, perhaps.\n"""', []),
        ('"""How it is made.\n\nIt is quick.\n\nThis is a lesson.\n"""', []),
        ('"""How. This is a lesson.\n\nThis is engineering.\n"""', ["a lesson", "engineering"]),
        ("import numpy", []),
    ],
)
def test_the_kind_of_a_file_is_seen(text, found):
    assert kinds("minigrad/tensor.py", text) == found


def stops():
    """For each stop of README's reading path its heading, up to the colon, and the whole of it."""
    path = source("README.md").split("## How to read the source")[1].split("\n## ")[0]
    texts = re.split(r"^\d+\. ", path, flags=re.MULTILINE)[1:]
    return [(text.split(":")[0], text) for text in texts]


def files_in(text):
    """The files of minigrad/ and models/ that a text names."""
    return re.findall(r"`((?:minigrad|models)/\w+\.py)`", text)


def test_readme_s_path_stops_at_lessons_and_names_all_of_them():
    for heading, _ in stops():
        assert files_in(heading)
        for path in files_in(heading):
            assert kinds(path)[0] in ("a lesson", "a reference"), path
    lessons = {path for path in modules("minigrad", "models") if kinds(path) == ["a lesson"]}
    assert lessons <= {path for _, text in stops() for path in files_in(text)}


@pytest.mark.parametrize("path", modules(*PACKAGES, "tests"))
def test_files_stand_on_their_own(path):
    """No file reads what lies outside the repository."""
    if Path(path).name != Path(__file__).name:
        assert not re.search(r"\.\./shared|/work/|[\"']shared[\"'/]", source(path))


PICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


def pickles(text):
    """What in a source could read or write pickles."""
    for node in ast.walk(ast.parse(text)):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        yield from (n for n in names if n.partition(".")[0] in PICKLERS)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if given.get("allow_pickle", "False") != "False":
            yield f"{called}(allow_pickle={given['allow_pickle']})"
        elif called in ("np.load", "numpy.load") and "allow_pickle" not in given:
            yield f"{called} without allow_pickle=False"
        elif called.rpartition(".")[2] in ("read_pickle", "to_pickle"):
            yield called


@pytest.mark.parametrize("path", modules(*PACKAGES))
def test_no_pickle(path):
    assert list(pickles(source(path))) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import load",
        "import os, pickle as p",
        "def f():\n    import joblib",
        "np.load('a.npz')",
        "np.load('a.npz', allow_pickle=True)",
        "np.load(p, allow_pickle=x)",
        "f(g, allow_pickle=1)",
        "pd.read_pickle('a')",
    ],
)
def test_a_pickle_is_seen(text):
    assert len(list(pickles(text))) == 1
    assert (
        list(pickles("np.load('a.npz', allow_pickle=False); np.save('b', a, allow_pickle=False)"))
        == []
    )


def test_the_top_level_holds_only_what_the_design_allows():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [name for name in listed.split("\0") if name]
    if not files:
        pytest.skip("nothing is tracked")
    assert {name.partition("/")[0] for name in files} <= TOP


def test_every_file_of_python_can_be_read_by_python_3_10():
    for path in modules(*PACKAGES, "tests"):
        ast.parse(source(path), feature_version=(3, 10))


def test_the_project_metadata_is_in_setup_cfg():
    sections = re.findall(r"^\[+([^\[\]]+)\]+$", source("pyproject.toml"), flags=re.MULTILINE)
    assert all(name == "build-system" or name.startswith("tool.") for name in sections)
