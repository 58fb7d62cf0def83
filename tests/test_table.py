"""Walks PRIMITIVES, the whole table of calculus: every primitive is held against NumPy, SciPy and difference quotients.

The inputs are those of minigrad/example_inputs.py; a new primitive needs a row there, and one in
ORACLES here unless NumPy or SciPy know it by its name.
"""

import warnings
import zlib

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse, special, stats

from minigrad.checking import gradcheck
from minigrad.example_inputs import ELEMENTWISE, EXAMPLES, Drawn, Example
from minigrad.table import PRIMITIVES
from minigrad.tensor import IMPLEMENTATIONS, Tensor, grad

NAMES = sorted(PRIMITIVES)
per_primitive = pytest.mark.parametrize("name", NAMES)


def scatter(g, index, shape):
    """Entry by entry, as the definition has it."""
    z, places = np.zeros(shape), np.arange(np.prod(shape)).reshape(shape)[index]
    for place, value in zip(np.ravel(places), np.ravel(g)):
        z.flat[place] += value
    return z


def batch_norm(x, weight, bias):
    return (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5) * weight + bias


def nb(x, log_mu, log_theta):
    mu, theta = np.exp(log_mu), np.exp(log_theta)
    return stats.nbinom.logpmf(x, theta, theta / (theta + mu))


def zinb(x, log_mu, log_theta, zi_logits):
    zero = special.expit(zi_logits)
    return np.log(zero * (np.asarray(x) == 0) + (1.0 - zero) * np.exp(nb(x, log_mu, log_theta)))


def per_cell(log_prob):
    """The sum over genes; 0 for a cell without counts."""

    def cell_log_prob(x, *parameters):
        x = dense(x)
        return np.where(x.any(axis=1), log_prob(x, *parameters).sum(axis=1), 0.0)

    return cell_log_prob


def from_logits(cell_log_prob):
    return lambda x, logits, log_library, *rest: cell_log_prob(
        x, special.log_softmax(logits, axis=1) + log_library, *rest
    )


def normal_kl(q_loc, q_scale, p_loc, p_scale):
    """The integral of q (log q - log p), from the moments of a normal q: E[(x - p_loc)^2] = q_scale^2 + (q_loc - p_loc)^2."""
    entropy = stats.norm.entropy(q_loc, q_scale)
    return -entropy - stats.norm.logpdf(q_loc, p_loc, p_scale) + 0.5 * np.square(q_scale / p_scale)


def stacked(*parts):
    """The parts of a factorisation as rows of one matrix, as the table has them."""
    return np.concatenate(parts, axis=-2)


def turned(vectors, signs_of):
    """Columns turned so that a diagonal is positive."""
    return vectors * np.sign(np.diagonal(signs_of, axis1=-2, axis2=-1))[..., None, :]


def eigh(x):
    values, vectors = scipy.linalg.eigh(0.5 * (x + np.swapaxes(x, -1, -2)))
    return stacked(values[..., None, :], turned(vectors, vectors))


def eig(x):
    values, vectors = scipy.linalg.eig(x)
    return stacked(values.real[..., None, :], turned(vectors, vectors))


def svd(x):
    u, s, vh = scipy.linalg.svd(x, full_matrices=False)
    return stacked(turned(u, u), s[..., None, :], turned(np.swapaxes(vh, -1, -2), u))


def qr(x):
    q, r = scipy.linalg.qr(x, mode="economic")
    return stacked(turned(q, r), turned(np.swapaxes(r, -1, -2), r))


def dense(x):
    return x.toarray() if sparse.issparse(x) else x


ORACLES = {  # of those that NumPy and SciPy do not know by the same name
    "alias": lambda x: x,
    "astype": lambda x, dtype: x.astype(dtype),
    "batch_norm": batch_norm,
    "concatenate": lambda *arrays, axis=0: np.concatenate(arrays, axis=axis),
    "eig": eig,
    "eigh": eigh,
    "einsum": lambda a, b, subscripts: np.einsum(subscripts, a, b),
    "getitem": lambda x, index: x[index],
    "linear": lambda x, weight, bias: dense(x) @ weight.T + bias,
    "log_softmax": lambda x, axis=-1: special.log_softmax(x, axis=axis),
    "logabsdet": lambda x: np.linalg.slogdet(x).logabsdet,
    "nb_cell_log_prob": per_cell(nb),
    "nb_cell_log_prob_from_logits": from_logits(per_cell(nb)),
    "normal_kl": normal_kl,
    "bernoulli_log_prob": lambda x, a: (
        special.xlogy(x, special.expit(a)) + special.xlog1py(1 - x, -special.expit(a))
    ),
    "weighted_log_softmax": lambda w, x: np.sum(w * special.log_softmax(x, axis=-1), axis=-1),
    "nb_log_prob": nb,
    "poisson_cell_log_prob": per_cell(
        lambda x, log_rate: stats.poisson.logpmf(x, np.exp(log_rate))
    ),
    "poisson_cell_log_prob_from_logits": from_logits(
        per_cell(lambda x, log_rate: stats.poisson.logpmf(x, np.exp(log_rate)))
    ),
    "poisson_log_prob": lambda x, log_rate: stats.poisson.logpmf(x, np.exp(log_rate)),
    "polygamma": lambda x, n: special.polygamma(n, x),
    "qr": qr,
    "quotient": lambda a, b: a / b,
    "relu": lambda x: np.maximum(x, 0.0),
    "reshape": lambda x, shape: x.reshape(shape),
    "scatter": scatter,
    "slope_of_absolute": np.sign,
    "svd": svd,
    "softmax": lambda x, axis=-1: special.softmax(x, axis=axis),
    "zinb_cell_log_prob": per_cell(zinb),
    "zinb_log_prob": zinb,
    "zinb_cell_log_prob_from_logits": from_logits(per_cell(zinb)),
}


def public(name):
    """The function of NumPy or SciPy with this name, or None."""
    return next(
        (
            getattr(m, name)
            for m in (np, np.linalg, special)
            if hasattr(m, name) and name not in ORACLES
        ),
        None,
    )


def oracle(name):
    return ORACLES[name] if name in ORACLES else public(name)


def arrays_of(example: Example, seed=0, dtype=np.float64):
    """Fresh arrays to differentiate an example with respect to."""
    rng = np.random.default_rng(seed)
    return [x.astype(dtype) for x in example.drawn(rng.random)]


def cotangent(y):
    rng = np.random.default_rng(zlib.crc32(repr(y.shape).encode()))
    return rng.normal(size=y.shape).astype(y.dtype)


def test_every_primitive_has_an_example_and_an_oracle():
    assert [name for name in NAMES if not EXAMPLES.get(name)] == []
    assert [name for name in EXAMPLES if name not in PRIMITIVES] == []
    assert [name for name in NAMES if oracle(name) is None] == []


def test_the_functions_that_the_project_promises_are_known():
    promised = """add subtract multiply divide negative power absolute sign maximum minimum clip where exp log log1p
        expm1 sqrt square reciprocal sin cos tanh sinh cosh arctan logaddexp sum mean var std prod max min cumsum
        ravel reshape transpose swapaxes moveaxis expand_dims squeeze broadcast_to concatenate stack flip take sort
        tril outer diagonal matmul dot tensordot einsum linalg.inv linalg.solve linalg.det linalg.slogdet
        linalg.cholesky linalg.norm trace"""
    for name in promised.split():
        module, _, name = name.rpartition(".")
        assert getattr(np.linalg if module else np, name) in IMPLEMENTATIONS, name
    for name in "gammaln gamma digamma betaln erf erfc expit logit log_expit ndtr xlogy".split():
        assert getattr(special, name) in IMPLEMENTATIONS, name


@per_primitive
def test_value(name):
    """As plain NumPy and SciPy, on arrays; the same NumPy function on Tensors gives a Tensor with the same value."""
    for example in EXAMPLES[name]:
        arrays = arrays_of(example)
        expected = (oracle(name) if example.by else example.function(oracle(name)))(*arrays)
        on_arrays = example.function(PRIMITIVES[name])(*arrays)
        assert not isinstance(on_arrays, Tensor) and np.shape(on_arrays) == np.shape(expected)
        np.testing.assert_allclose(
            on_arrays, expected, rtol=1e-12, atol=1e-12, err_msg=repr(example)
        )
        for call in filter(None, (PRIMITIVES[name], public(name))):
            t = example.function(call)(*[Tensor(x, requires_grad=True) for x in arrays])
            assert (
                type(t) is Tensor
                and t.requires_grad
                and t.shape == np.shape(expected)
                and t.dtype == np.float64
            )
            np.testing.assert_allclose(
                t.data, expected, rtol=1e-12, atol=1e-12, err_msg=repr(example)
            )


# ---------------------------------------------------------------------------------------------------------- derivatives
def uniforms(data):
    """A drawer of uniform numbers in [0, 1) for Example.drawn."""
    numbers = st.floats(0.0, 1.0, exclude_max=True, width=32)
    return lambda shape: data.draw(hnp.arrays(np.float64, shape, elements=numbers))


@per_primitive
@settings(max_examples=12)
@given(data=st.data())
def test_derivatives(name, data):
    """First and second order, the latter for all pairs of inputs, at random values, directions and cotangents."""
    example = data.draw(st.sampled_from(EXAMPLES[name]))
    if name in ELEMENTWISE and data.draw(st.booleans()):
        domains = ELEMENTWISE[name]
        shapes = data.draw(
            hnp.mutually_broadcastable_shapes(
                num_shapes=len(domains), min_side=0, max_side=3, max_dims=3
            )
        )
        example = Example(
            tuple(domain(*shape) for domain, shape in zip(domains, shapes.input_shapes))
        )
    gradcheck(
        example.function(PRIMITIVES[name]),
        *example.drawn(uniforms(data)),
        seed=data.draw(st.integers(0, 1000)),
    )


@per_primitive
def test_derivatives_of_examples(name):
    """Each of the examples, so that none depends on being drawn."""
    for example in EXAMPLES[name]:
        gradcheck(example.function(PRIMITIVES[name]), *arrays_of(example), seed=1)


@per_primitive
def test_third_order(name):
    """The gradient, differentiated twice more: rules of rules of rules. On the first and last example of each."""
    for example in {id(e): e for e in (EXAMPLES[name][0], EXAMPLES[name][-1])}.values():

        def slope(*xs):
            leaves = [x + Tensor(np.zeros(x.shape), requires_grad=True) for x in xs]
            y = example.function(PRIMITIVES[name])(*leaves)
            found = grad(y, leaves, cotangent(y), create_graph=True)
            return sum(
                np.sum(g * np.cos(np.arange(1.0, g.size + 1.0)).reshape(g.shape)) for g in found
            )

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # many gradients do not depend on the input
            gradcheck(slope, *arrays_of(example))


@per_primitive
def test_the_examples_exercise_the_primitive(name):
    for example in EXAMPLES[name]:
        t = example.function(PRIMITIVES[name])(
            *[Tensor(x, requires_grad=True) for x in arrays_of(example)]
        )
        made_by, before = set(), [t]
        while before:
            origin = before.pop().origin
            if origin:
                made_by.add(origin.primitive.__name__)
                before += [x for x in origin.inputs if isinstance(x, Tensor)]
        assert name in made_by, (name, example, made_by)


# -------------------------------------------------------------------------------------------------- dtypes and operands
OPERANDS = {  # what may stand beside a Tensor, made from a float64 array
    "array": lambda x: x.astype(np.float32),
    "Tensor": lambda x: Tensor(x.astype(np.float32)),
    "integer array": lambda x: np.asarray(np.rint(3.0 * x)).astype(np.int64),
    "small integer array": lambda x: np.asarray(np.rint(3.0 * x)).astype(np.int8),
    "Python scalar": lambda x: float(x),
    "Python integer": lambda x: int(np.rint(3.0 * x)),
    "NumPy scalar": lambda x: np.float64(x),
    "NumPy integer": lambda x: np.int32(np.rint(3.0 * x)),
}
SCALARS = ("Python scalar", "Python integer", "NumPy scalar", "NumPy integer")
SEVERAL = [
    name for name in NAMES if any(len(e.drawn(np.zeros)) > 1 and not e.by for e in EXAMPLES[name])
]


def in_float32(example: Example) -> Example:
    """The same with constants that are float32 arrays (integers stay)."""
    floating = [
        hasattr(x, "dtype") and x.dtype == np.float64 and np.ndim(x) > 0 for x in example.inputs
    ]
    inputs = tuple(x.astype(np.float32) if cast else x for x, cast in zip(example.inputs, floating))
    keywords = {
        key: np.float32 if key == "dtype" else value for key, value in example.keywords.items()
    }
    return Example(inputs, keywords, example.first, example.by)


def gradients(f, xs, order=1):
    """(output, its gradients) of <cotangent, f>; order 2: (sum of the squares of those, its gradients)."""
    y = f(*xs)
    found = grad(y, xs, cotangent(y), create_graph=order == 2)
    assert all(g.dtype == x.dtype and g.shape == x.shape for g, x in zip(found, xs))
    if order == 1:
        return y, found
    total = sum(np.sum(np.square(g)) for g in found)
    return total, grad(total, xs)


@per_primitive
def test_float32_stays_float32(name):
    """All inputs Tensors: value, gradients and second derivatives are float32, and near those in float64."""
    for example in map(in_float32, EXAMPLES[name]):
        for order in (1, 2):
            single, double = [
                gradients(
                    example.function(PRIMITIVES[name]),
                    [Tensor(x, requires_grad=True) for x in arrays_of(example, dtype=dtype)],
                    order,
                )
                for dtype in (np.float32, np.float64)
            ]
            assert single[0].dtype == np.float32, example
            for g32, g64 in zip(single[1], double[1]):
                assert g32.dtype == np.float32, example
                np.testing.assert_allclose(
                    g32, g64, rtol=2e-3, atol=1e-3 * np.max(np.abs(g64), initial=1.0), err_msg=name
                )


@pytest.mark.parametrize("kind", OPERANDS)
@pytest.mark.parametrize("name", SEVERAL)
def test_operand_kinds(name, kind):
    """One input a float32 Tensor, the others something else: as if they were float32 arrays, and float32 throughout."""
    tried = 0
    for example in map(in_float32, EXAMPLES[name]):
        arguments = example.function(lambda *inputs, **_: inputs)(*arrays_of(example))
        drawn = [i for i, x in enumerate(example.inputs) if isinstance(x, Drawn)]
        for at in drawn if len(drawn) > 1 and not example.by else []:
            if kind in SCALARS and any(arguments[i].ndim for i in drawn if i != at):
                continue
            x = Tensor(arguments[at].astype(np.float32), requires_grad=True)
            given, plain = list(arguments), list(arguments)
            for i in [i for i in drawn if i != at]:
                given[i] = OPERANDS[kind](arguments[i])
                plain[i] = np.asarray(
                    getattr(given[i], "data", given[i]) if kind == "Tensor" else given[i],
                    np.float32,
                )
            given[at] = plain[at] = x
            y, (g,) = gradients(lambda x: PRIMITIVES[name](*given, **example.keywords), [x])
            expected, (g_expected,) = gradients(
                lambda x: PRIMITIVES[name](*plain, **example.keywords), [x]
            )
            assert y.dtype == g.dtype == np.float32, (example, at)
            np.testing.assert_allclose(y.data, expected.data, rtol=1e-6)
            np.testing.assert_allclose(g, g_expected, rtol=1e-6)
            tried += 1
    assert tried or kind in SCALARS and name not in ELEMENTWISE


# --------------------------------------------------------------------------------------------------------------- memory
@per_primitive
def test_memory(name):
    """Inputs are not changed; the gradient of each leaf is its own writable memory, shared with nothing."""
    for example in EXAMPLES[name]:
        arrays = arrays_of(example)
        leaves = [Tensor(x, requires_grad=True) for x in arrays]
        constants = [x.copy() for x in example.inputs if isinstance(x, np.ndarray)]
        y = example.function(PRIMITIVES[name])(*leaves)
        c, value = cotangent(y), y.data.copy()
        c_before = c.copy()
        found = grad(y, leaves, c)
        grad(y, leaves, c, create_graph=True)
        y.backward(c)
        after = [x for x in example.inputs if isinstance(x, np.ndarray)]
        for x, kept in zip(
            [*arrays, *after, c, y.data], [*arrays_of(example), *constants, c_before, value]
        ):
            assert np.array_equal(x, kept), example
        owned = [*found, *(x.grad for x in leaves)]
        others = [*arrays, *after, c, y.data]
        for i, g in enumerate(owned):
            assert type(g) is np.ndarray and g.flags.writeable, example
            assert not any(
                np.shares_memory(g, other) for other in [*owned[:i], *owned[i + 1 :], *others]
            ), example
        for x, g in zip(leaves, found):
            assert (
                x.grad.shape == x.shape and x.grad.dtype == x.dtype and np.array_equal(x.grad, g)
            ), example


@pytest.mark.parametrize("name", SEVERAL)
def test_the_same_tensor_in_all_places(name):
    """f(x, x): the gradients of all places add up, in memory of their own."""
    for example in EXAMPLES[name]:
        drawn = arrays_of(example)
        if example.by or example.first or len(drawn) < 2 or len({x.shape for x in drawn}) > 1:
            continue
        x = drawn[1 if name == "normal_kl" else 0]  # a scale must be positive
        x = Tensor(x if name not in ("maximum", "minimum") else x + 0.1, requires_grad=True)
        y = example.function(PRIMITIVES[name])(*[x] * len(drawn))
        y.backward(cotangent(y))
        apart = [Tensor(x.data.copy(), requires_grad=True) for _ in drawn]
        total = sum(grad(example.function(PRIMITIVES[name])(*apart), apart, cotangent(y)))
        np.testing.assert_allclose(x.grad, total, rtol=1e-12)
        assert not np.shares_memory(x.grad, x.data)
