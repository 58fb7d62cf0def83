"""Public names say what they are: intent, shapes, units, errors and sources (DESIGN, section 8, "Style").

The rules look for words, not for truth; they are simple, so that whoever writes a docstring can foresee them. Public is what
a module of minigrad or models defines under a name without underscore: functions, kernels (see kernels.fused), classes
and their methods; not the fields of dataclasses and NamedTuples, nor dunder methods. Of each:

intent   there is a docstring, and its first paragraph is a sentence: it ends with a full stop or a colon.
shapes   where an argument or the result is an array (annotated Array, ndarray, csr_array or Tensor), the docstring gives a
         shape such as (n, n_genes), or says "shape", "scalar", "elementwise", "a row", "number" or the like. A method may
         leave it to the docstring of its class.
units    a log-probability, divergence or loss (by its name) is in "nats", "counts", "squared" units, or so.
sources  a likelihood, divergence, bound, optimiser, schedule, layer that initialises, or model has an equation ("=", "log("
         ...) or a year; the mathematics of CHAPTER cites a section of the course chapter, and paper and equation.
errors   what a function raises itself is named in its docstring: its class or a base of it, or "errors". What __init__ raises,
         in the class's.
hints    a function says what it returns.
"""

import ast
import builtins
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = [
    f"{p.parent.name}.{p.stem}"
    for package in ("minigrad", "models")
    for p in sorted((ROOT / package).glob("[!_]*.py"))
]
ARRAYS = re.compile(r"\b(Array|ndarray|csr_array|Tensor)\b")
SHAPE = re.compile(
    r"\((n|[a-z]+_\w+|[a-zA-Z0-9]+|\.\.\.),.*?\)|\b(shapes?|scalars?|elementwise|matrix)\b", re.S
)
UNITS = re.compile(r"\b(nats|counts|squared|units|seconds)\b")
EQUATION = re.compile(r"=|log\(|max\(|\b(1[89]|20)\d\d\b")
MEASURED = re.compile(
    r"(^|_)(log_prob|log_likelihood|elbo|kl|kl_divergence|loss|mse|cross_entropy|log_mean_exp|terms)$"
)
MODELS = re.compile(
    r"Module|Optimizer|Schedule|FeatureModel|Saved|Adam"
)  # the bases of what has to have a source
PAPER = re.compile(
    r"\b(1[89]|20)\d\d\b[^)]*?\b(eqs?\.|section|appendix|Methods|algorithm|proposition)", re.S
)

CHAPTER = {  # the mathematics of the chapter: each cites its section by name, and the paper's equation
    "minigrad.distributions.Normal",
    "minigrad.distributions.Normal.rsample",
    "minigrad.distributions.Bernoulli",
    "minigrad.distributions.Categorical",
    "minigrad.distributions.Poisson",
    "minigrad.distributions.NegativeBinomial",
    "minigrad.distributions.ZeroInflatedNegativeBinomial",
    "minigrad.distributions.kl_divergence",
    "models.vae.VAE",
    "models.vae.VAE.terms",
    "models.vae.VAE.elbo",
    "models.scvi.SCVI",
    "models.scvi.SCVI.terms",
    "models.posterior.AnswersByDraws.elbo",
}
EXEMPT = {  # (name, rule): why
    ("minigrad.derived", "*"): "each is NumPy's function of that name, which documents it",
    ("minigrad.matrices", "*"): "the same",
    ("minigrad.samples", "*"): "the same",
    ("minigrad.einsum", "*"): "the same",
    ("minigrad.nn.Module", "sources"): "the base class, without a formula of its own",
    ("minigrad.nn.Sequential", "sources"): "only calls its layers",
    (
        "minigrad.optim.Optimizer",
        "sources",
    ): "the base class: the arena, without an update of its own",
    ("minigrad.checkpoint.Saved", "sources"): "writes and reads files",
    (
        "models.feature_model.FeatureModel",
        "sources",
    ): "the base of Autoencoder and VAE, which have the equations",
}


def names():
    """(dotted name, object, class that holds it or None) of all that is public."""
    for path in MODULES:
        module = importlib.import_module(path)
        for name, thing in vars(module).items():
            kernel = getattr(thing, "twin", None) is not None and kernel_of(module, name)
            if name.startswith("_") or not kernel and getattr(thing, "__module__", None) != path:
                continue
            if inspect.isclass(thing) or inspect.isfunction(thing) or kernel:
                yield f"{path}.{name}", thing, None
            if inspect.isclass(thing):
                yield from (
                    (f"{path}.{name}.{key}", member, thing) for key, member in methods(thing)
                )


def kernel_of(module, name):
    """Whether a module makes this kernel, rather than imports it: it assigns the name."""
    return re.search(rf"^{name} = ", inspect.getsource(module), re.M)


def methods(cls):
    """(name, function) of the public methods, class methods and properties that a class defines itself."""
    for name, member in vars(cls).items():
        member = getattr(member, "__func__", member)  # of static and class methods
        member = member.fget if isinstance(member, property) else member
        if (
            not name.startswith("_")
            and inspect.isfunction(member)
            and member.__name__ != "<lambda>"
            and member.__qualname__.startswith(f"{cls.__name__}.")
        ):
            yield name, member


def raised(function):
    """The exceptions that a function raises itself; a class's are those of its __init__."""
    function = function.__init__ if inspect.isclass(function) else function
    if (
        not inspect.isfunction(function)
        or "<lambda>" in function.__qualname__
        or getattr(function, "twin", None)
    ):
        return set()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except OSError:  # what dataclass and NamedTuple wrote
        return set()
    raises = [
        node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc is not None
    ]
    called = [ast.unparse(e.func if isinstance(e, ast.Call) else e).split(".")[-1] for e in raises]
    known = {**vars(builtins), **function.__globals__}
    return {known[name] for name in called if inspect.isclass(known.get(name))}


def annotations(thing):
    """The annotations of a function, or of how a class is made, as one text; and whether the result has one."""
    function = thing.__init__ if inspect.isclass(thing) else thing
    found = getattr(function, "__annotations__", {})
    return " ".join(map(str, found.values())), "return" in found


def prose(thing):
    """A docstring without its examples, which prove nothing here."""
    return re.sub(r"^ *>>> .*?(\n *\n|\Z)", "", thing.__doc__ or "", flags=re.M | re.S)


def complaints(name, thing, owner):
    """(rule, what is missing) for one public name."""
    doc, last = prose(thing), name.rpartition(".")[2]
    around = doc + (prose(owner) if owner else "")
    if not doc.strip():
        yield "intent", "has no docstring"
        return
    if not re.search(r"[.:)]$", inspect.cleandoc(doc).split("\n\n")[0].strip()):
        yield "intent", "its first paragraph is no sentence"
    kernel = getattr(thing, "twin", None) is not None
    types, returns = annotations(thing)
    if (kernel or ARRAYS.search(types)) and not SHAPE.search(around):
        yield "shapes", "takes or returns arrays, and gives no shape"
    if MEASURED.search(last) and not inspect.isclass(thing) and not UNITS.search(around):
        yield "units", "returns a log-probability or loss, and gives no unit"
    a_model = inspect.isclass(thing) and any(MODELS.search(base.__name__) for base in thing.__mro__)
    if (a_model or MEASURED.search(last)) and not EQUATION.search(around):
        yield "sources", "has neither an equation nor a source"
    if name in CHAPTER and not (re.search(r"chapter, [\"']", doc) and PAPER.search(doc)):
        yield (
            "sources",
            "does not cite the chapter's section (chapter, \"...\") and the paper's equation (year, eq.)",
        )
    for error in sorted(raised(thing), key=str):
        said = [
            base.__name__
            for base in error.__mro__
            if base not in (Exception, BaseException, object)
        ]
        if not re.search(rf"\b({'|'.join(said)}|[Ee]rrors?)\b", doc):
            yield "errors", f"raises {error.__name__}, and does not say so"
    if not kernel and not inspect.isclass(thing) and not returns:
        yield "hints", "has no return annotation"


def exempt(name, rule):
    module = ".".join(name.split(".")[:2])
    return (name, rule) in EXEMPT or (module, "*") in EXEMPT and rule != "hints"


def test_what_is_public_is_found():
    found = {name for name, _, _ in names()}
    assert CHAPTER <= found and len(found) > 250
    assert {
        "minigrad.tensor.grad",
        "minigrad.functional.softmax",
        "minigrad.nn.Module.to",
        "models.scvi.SCVI.fit",
    } <= found
    assert {name for name, _ in EXEMPT} <= found | set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_say_what_the_design_asks_for(module):
    wrong = [
        f"{name}: {text}"
        for name, thing, owner in names()
        if name.startswith(f"{module}.")
        for rule, text in complaints(name, thing, owner)
        if not exempt(name, rule)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_no_exemption_is_left_over():
    needed = {
        (name, rule) for name, thing, owner in names() for rule, _ in complaints(name, thing, owner)
    }
    for name, rule in EXEMPT:
        assert any(n.startswith(name) and rule in ("*", r) for n, r in needed), (name, rule)


def _bare():
    pass


def _fragment() -> None:
    """a title

    And more.
    """


def _array(x: "np.ndarray") -> float:  # noqa: F821
    """What is it."""


def _loss(x) -> float:
    """A scalar = 1."""


def _elbo(x) -> float:
    """A scalar, in nats."""


def _raising() -> None:
    """Something else."""
    raise ValueError("no")


def _unhinted():
    """Something else."""


@pytest.mark.parametrize(
    "function, name, rule",
    [
        (_bare, "f", "intent"),
        (_fragment, "f", "intent"),
        (_array, "f", "shapes"),
        (_loss, "mse", "units"),
        (_elbo, "elbo", "sources"),
        (_raising, "f", "errors"),
        (_unhinted, "f", "hints"),
        (_elbo, "models.posterior.AnswersByDraws.elbo", "sources"),
    ],
)
def test_a_docstring_that_lacks_something_is_seen(function, name, rule):
    assert rule in dict(complaints(name, function, None))


def test_a_whole_docstring_is_let_through():
    def mse(x: "np.ndarray") -> float:  # noqa: F821
        """The mean of x^2 = x x, a scalar in squared units of x, (n,). ValueError for none."""
        raise ValueError("x is empty")

    assert list(complaints("mse", mse, None)) == []
