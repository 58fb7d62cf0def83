"""Inputs on which every primitive is checked: a table, to look up or to add to.

This is a reference. A row is one example: the name of a primitive, its inputs, and its keywords.
`real(2, 3)` is an array of shape (2, 3) whose entries are drawn between -2 and 2; the primitive is
differentiated with respect to it. Other inputs are passed as they are. So this row

    example("sum", real(2, 3), axis=1)

says: check the first and second derivatives of np.sum(x, axis=1), at a random x of shape (2, 3).
An elementwise function takes a single row, with a domain for each of its inputs, and is checked on
eight combinations of shapes. A new primitive needs one row here at least; without it,
`python -m minigrad.checking` fails, and so do the tests.

Know before reading: what a primitive is (ops.py); gradcheck (checking.py) is what the rows are for.

Know after: on which shapes, keywords and edges the rules were tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from minigrad import functional


# -------------------------------------------------------------------------------- how rows are made
class Domain(NamedTuple):
    """Where inputs are drawn from: `values` maps uniform numbers in [0, 1), any shape, into it.

    Called with a shape, `real(2, 3)`, it says: an input of this shape from here.
    """

    values: Callable[[np.ndarray], np.ndarray]

    def __call__(self, *shape: int) -> Drawn:
        return Drawn(self, shape)


class Drawn(NamedTuple):
    """An input that is drawn, and that the primitive is differentiated with respect to."""

    domain: Domain
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Example:
    """One row of the table. inputs: `Drawn`s, and others that are passed as they are.

    keywords: passed on. first: applied to the first input, where not any array will do. by: called
    in place of the primitive, where this is reached through another function.
    """

    inputs: tuple
    keywords: dict = field(default_factory=dict)
    first: Callable | None = None
    by: Callable | None = None

    def drawn(self, uniform: Callable) -> list[np.ndarray]:
        """The arrays to differentiate with respect to: float64, of the shapes that the row gives.

        uniform(shape) must return numbers in [0, 1).
        """
        found = [x for x in self.inputs if isinstance(x, Drawn)]
        return [np.asarray(x.domain.values(uniform(x.shape))) for x in found]

    def function(self, primitive: Callable) -> Callable:
        """The primitive as a function of only those inputs that are drawn."""

        def f(*drawn):
            waiting = iter(drawn)
            inputs = [next(waiting) if isinstance(x, Drawn) else x for x in self.inputs]
            if self.first is not None:
                inputs[0] = self.first(inputs[0])
            call = primitive if self.by is None else self.by
            return call(*inputs, **self.keywords)

        return f


EXAMPLES: dict[str, list[Example]] = {}  # name of a primitive -> its examples
ELEMENTWISE: dict[str, tuple[Domain, ...]] = {}  # name -> a domain for each input


def example(
    name: str,
    *inputs: Any,
    first: Callable | None = None,
    by: Callable | None = None,
    **keywords: Any,
) -> None:
    """Add a row: an example of the primitive of this name, on inputs of any shapes."""
    EXAMPLES.setdefault(name, []).append(Example(inputs, keywords, first, by))


def elementwise(name: str, *domains: Domain) -> None:
    """Add rows for an elementwise function: plain, 0-d, empty, and stretched by broadcasting."""
    ELEMENTWISE[name] = domains
    if len(domains) == 1:
        combinations: list[list[tuple]] = [[()], [(5,)], [(2, 3)], [(0, 2)]]
    else:
        combinations = [
            [(3,)],
            [()],
            [(), (2, 3)],
            [(2, 3), ()],
            [(2, 1), (3,)],
            [(1,), (3, 2), (2,)],
            [(0, 2), (1,)],
            [(1, 1), (2, 0)],
        ]
    for shapes in combinations:
        # Where there are fewer shapes than inputs, they are taken in turn.
        example(name, *[d(*shapes[k % len(shapes)]) for k, d in enumerate(domains)])


# ----------------------------------------------------------------------------------------- domains
def _distinct_values(u):
    """No two entries closer than 0.2, whatever u: no small step makes another one the largest."""
    rank = np.argsort(np.argsort(u, axis=None, kind="stable"), kind="stable").reshape(u.shape)
    return 0.3 * rank + 0.1 * u - 1.0


def _well_conditioned_values(u):
    """Square matrices (..., n, n), n up to 4: small entries, and a large diagonal."""
    return 0.3 * (4.0 * u - 2.0) + np.diag([3.0, -3.0, 4.5, 6.0][: u.shape[-1]])


def _diagonally_spread_values(u):
    """Matrices (..., m, n), n up to 3, whose singular values and eigenvalues stay apart by 1."""
    m, n = u.shape[-2:]
    return 0.2 * (2.0 * u - 1.0) + np.eye(m, n) * [2.0, 4.0, 7.0][:n]


def positive_definite(x: Any) -> Any:
    """Symmetric positive definite matrices (..., n, n) from any; for Tensors too."""
    return x @ np.swapaxes(x, -1, -2) + np.eye(x.shape[-1], dtype=x.dtype)


def symmetric(x: Any) -> Any:
    """Symmetric matrices (..., n, n) from any; for Tensors too."""
    return 0.5 * (x + np.swapaxes(x, -1, -2))


real = Domain(lambda u: 4.0 * u - 2.0)
positive = Domain(lambda u: 0.3 + 2.7 * u)
negative = Domain(lambda u: -0.9 + 0.8 * u)
fraction = Domain(lambda u: 0.1 + 0.8 * u)
away = Domain(lambda u: np.where(u < 0.5, u - 0.7, u + 0.2))  # from 0, on either side
zeros = Domain(np.zeros_like)
distinct = Domain(_distinct_values)
even = Domain(lambda u: np.floor(8.0 * u) / 2.0 - 2.0)  # multiples of 1/2, and
odd = Domain(lambda u: np.floor(8.0 * u) / 2.0 - 1.75)  # what is never closer to them than 1/4
even_positive = Domain(lambda u: np.floor(8.0 * u) / 2.0 + 0.5)
near_30 = Domain(lambda u: 28.0 + 4.0 * u)
near_minus_30 = Domain(lambda u: -32.0 + 4.0 * u)
far = Domain(lambda u: 150.0 + 10.0 * u)
diagonally_spread = Domain(_diagonally_spread_values)
inside = Domain(lambda u: 1.6 * u - 0.8)  # of -1 and 1
above_1 = Domain(lambda u: 1.2 + 2.0 * u)
divisors = Domain(lambda u: np.where(u < 0.5, -1.0, 1.0) * (np.floor(8.0 * u) % 4.0 + 1.0) / 2.0)
well_conditioned = Domain(_well_conditioned_values)

# --------------------------------------------------------------------------- elementwise functions
elementwise("absolute", away)
elementwise("add", real, real)
elementwise("alias", real)
elementwise("arccos", inside)
elementwise("arccosh", above_1)
elementwise("arcsin", inside)
elementwise("arcsinh", real)
elementwise("arctan", real)
elementwise("arctan2", away, real)
elementwise("arctanh", inside)
elementwise("bernoulli_log_prob", fraction, away)
elementwise("cbrt", away)
elementwise("ceil", odd)
elementwise("copy", real)
elementwise("cos", real)
elementwise("cosh", real)
elementwise("deg2rad", real)
elementwise("degrees", real)
elementwise("divide", real, away)
elementwise("exp", real)
elementwise("exp2", real)
elementwise("expm1", real)
elementwise("fabs", away)
elementwise("floor", odd)
elementwise("floor_divide", odd, divisors)
elementwise("fmax", even, odd)
elementwise("fmin", even, odd)
elementwise("fmod", odd, divisors)
elementwise("hypot", away, real)
elementwise("imag", real)
elementwise("log", positive)
elementwise("log10", positive)
elementwise("log1p", positive)
elementwise("log2", positive)
elementwise("logaddexp", real, real)
elementwise("logaddexp2", real, real)
elementwise("maximum", even, odd)
elementwise("minimum", even, odd)
elementwise("multiply", real, real)
elementwise("nan_to_num", real)
elementwise("negative", real)
elementwise("normal_kl", real, positive, real, positive)
elementwise("power", positive, real)
example("power", away(3), 3.0)
example("power", real(2, 2), 2)
example("power", real(3), 1)
example("power", real(), 0.0)
example("power", 0.5, real(3))
example("power", away(2, 1), np.array([-2, 0, 1]))
example("power", positive(3), zeros(3))
elementwise("quotient", real, away)
elementwise("rad2deg", real)
elementwise("radians", real)
elementwise("reciprocal", away)
elementwise("relu", away)
elementwise("remainder", odd, divisors)
elementwise("rint", odd)
elementwise("round", odd)
example("round", even(2, 3), decimals=1)
elementwise("sign", away)
elementwise("slope_of_absolute", away)
elementwise("sin", real)
elementwise("sinc", real)
example("sinc", zeros(2))
elementwise("sinh", real)
elementwise("sqrt", positive)
elementwise("square", real)
elementwise("subtract", real, real)
elementwise("tan", inside)
elementwise("tanh", real)
elementwise("trunc", odd)

example("astype", real(2, 3), dtype=np.float64)

CONDITION = np.array([[True, False, True], [False, False, True]])
example("where", CONDITION, real(2, 3), real(2, 3))
example("where", CONDITION, real(), real(3))
example("where", True, real(2), real())
example("where", CONDITION, real(2, 1), 1.0)
example("where", np.zeros((0, 3), bool), real(1, 3), real(1))

# ------------------------------------------------------------------------------- special functions
for _name in ("digamma", "gamma", "gammaln", "loggamma", "rgamma"):
    elementwise(_name, positive)
example("gammaln", negative(4))
example("rgamma", negative(4))
for _name in ("beta", "betaln"):
    elementwise(_name, positive, positive)
    example(_name, near_30(3), positive(3))
example("polygamma", positive(3), n=1)
example("polygamma", positive(), n=2)
example("polygamma", positive(2, 2), n=3)
example("polygamma", positive(0), n=1)
for _name in ("gammainc", "gammaincc"):
    example(_name, 2.5, positive(3))
    example(_name, np.array([[0.5], [1.0], [25.0]]), positive(2))
    example(_name, 30.0, near_30(2, 2))
for _name in ("gammaincinv", "gammainccinv"):
    example(_name, 2.5, fraction(3))
    example(_name, np.array([[0.5], [25.0]]), fraction(2))
for _name in ("betainc", "betaincc"):
    example(_name, 2.5, 0.5, fraction(3))
    example(_name, np.array([[0.5], [1.0]]), 3.0, fraction(2))
    example(_name, 25.0, np.array([[30.0], [3.0]]), fraction(3))
for _name in ("erf", "erfc", "erfcx", "erfi", "log_ndtr", "ndtr"):
    elementwise(_name, real)
example("erfcx", near_30(3))
example("log_ndtr", near_minus_30(3))
for _name in ("erfcinv", "erfinv", "ndtri"):
    elementwise(_name, fraction)
elementwise("ndtri_exp", negative)
elementwise("expit", real)
elementwise("log_expit", real)
elementwise("logit", fraction)
elementwise("xlogy", real, positive)
example("xlogy", 0.0, positive(3))
example("xlogy", np.array([0.0, 2.0]), positive(3, 1))
elementwise("xlog1py", real, negative)
example("xlog1py", np.array([0.0, 2.0]), positive(3, 1))
elementwise("entr", positive)
elementwise("rel_entr", positive, positive)
elementwise("kl_div", positive, positive)
for _name in ("cosm1", "exprel", "exp10", "sindg", "cosdg"):
    elementwise(_name, real)
for _name in ("tandg", "cotdg"):
    elementwise(_name, near_30)
elementwise("expi", away)
elementwise("exp1", positive)
elementwise("powm1", positive, real)
for _name in ("boxcox", "boxcox1p"):
    elementwise(_name, positive, real)
    example(_name, positive(3), zeros(3))
for _name in ("inv_boxcox", "inv_boxcox1p"):
    elementwise(_name, fraction, fraction)
    example(_name, positive(3), zeros(3))
example("hyp1f1", 1.5, 2.5, real(3))
example("hyp1f1", np.array([[1.0], [-0.5]]), 2.0, real(2))
elementwise("huber", even_positive, odd)
elementwise("pseudo_huber", positive, real)
for _name in ("j0", "j1", "i0", "i1"):
    elementwise(_name, real)
for _name in ("y0", "y1", "k0", "k1", "k0e", "k1e", "i0e", "i1e"):
    elementwise(_name, positive)
for _name in ("i0e", "i1e"):
    example(_name, near_minus_30(2))
for _name in ("yn", "kn"):
    example(_name, 2, positive(3))
    example(_name, np.array([[0.0], [1.0]]), positive(2))
for _name in ("jv", "yv", "iv", "kv", "ive", "kve"):
    example(_name, 1.5, positive(3))
    example(_name, np.array([[0.0], [1.0], [2.25]]), positive(2))
for _name in ("i0e", "i1e", "k0e", "k1e"):
    example(_name, far(3))
for _name in ("ive", "kve"):
    example(_name, np.array([[0.0], [3.0]]), far(2))

# -------------------------------------------------------------------------------------- reductions
example("sum", real(3))
example("sum", real())
example("sum", real(2, 3), axis=1)
example("sum", real(2, 3, 2), axis=(0, -1))
example("sum", real(2, 3), keepdims=True)
example("sum", real(2, 3), axis=-2, keepdims=True)
example("sum", real(0, 2), axis=0)
example("sum", real(2, 3), axis=())
for _name in ("max", "min"):
    example(_name, distinct(4))
    example(_name, distinct())
    example(_name, distinct(2, 3), axis=1)
    example(_name, distinct(2, 3, 2), axis=(0, -1))
    example(_name, distinct(0, 2), axis=1)
    example(_name, distinct(3, 2), axis=-2, keepdims=True)
example("norm", real(4))
example("norm", real(2, 3))
example("norm", real(2, 3), axis=1)
example("norm", real(2, 3), axis=0, keepdims=True)
example("norm", real(2, 3, 2), axis=(0, 2))
example("cumsum", real(4))
example("cumsum", real())
example("cumsum", real(2, 3))
example("cumsum", real(2, 3), axis=0)
example("cumsum", real(2, 3, 2), axis=-2)
example("cumsum", real(0))
example("cumprod", real(4))
example("cumprod", real())
example("cumprod", real(2, 3))
example("cumprod", real(2, 3), axis=1)
example("cumprod", real(2, 3, 2), axis=-2)
example("cumprod", zeros(3))
example("cumprod", real(0))
example("convolve", real(3), real(2))
example("convolve", real(1), real(4))

# ------------------------------------------------------------------------------ shapes and reading
example("reshape", real(2, 3), shape=(3, 2))
example("reshape", real(4), shape=(2, -1))
example("reshape", real(), shape=(1, 1))
example("reshape", real(1), shape=())
example("reshape", real(0, 2), shape=(0,))
example("reshape", real(3), shape=3)
example("transpose", real(2, 3))
example("transpose", real())
example("transpose", real(0, 2))
example("transpose", real(2, 3, 4), axes=(2, 0, 1))
example("transpose", real(2, 3, 1), axes=(-1, 0, -2))
example("broadcast_to", real(3), shape=(2, 3))
example("broadcast_to", real(), shape=(2, 2))
example("broadcast_to", real(2, 1), shape=(3, 2, 2))
example("broadcast_to", real(1), shape=(0,))
example("broadcast_to", real(2), shape=(2,))
example("concatenate", real(3), real(2))
example("concatenate", real(2, 3), real(1, 3), axis=0)
example("concatenate", real(2, 0), real(2, 1), axis=1)
example("concatenate", real(2, 1), real(2, 3), real(2, 2), axis=-1)
example("concatenate", real(2), np.ones(3))
example("concatenate", real(2))

REPEATED = np.array([2, 0, 2, -1])
example("getitem", real(3, 4), index=1)
example("getitem", real(3, 4), index=-1)
example("getitem", real(3, 4), index=slice(1, None))
example("getitem", real(3, 4), index=(slice(None, None, -2), 2))
example("getitem", real(3, 4), index=(Ellipsis, None, 1))
example("getitem", real(3, 4), index=())
example("getitem", real(3, 4), index=None)
example("getitem", real(3, 4), index=(1, 2))
example("getitem", real(3, 4), index=(0, slice(0, 0)))
example("getitem", real(3, 4), index=[0, 0])
example("getitem", real(3, 4), index=REPEATED)
example("getitem", real(3, 4), index=(REPEATED, [0, 0, 0, 1]))
example("getitem", real(3, 4), index=(REPEATED[:, None], REPEATED))
example("getitem", real(3, 4), index=(slice(None), REPEATED))
example("getitem", real(3, 4), index=(REPEATED, slice(1, 3)))
example("getitem", real(3, 4), index=(REPEATED, None, 1))
example("getitem", real(3, 4), index=np.array([], int))
example("getitem", real(3, 4), index=np.array([True, False, True]))
example("getitem", real(3, 4), index=np.array([[True, False, True, False]] * 3))
example("getitem", real(), index=())
example("getitem", real(0, 2), index=slice(1))
example("scatter", real(4, 2), index=REPEATED, shape=(3, 2))
example("scatter", real(2), index=(slice(None), 1), shape=(2, 3))
example("scatter", real(), index=(0, 1), shape=(2, 2))
example("scatter", real(4), index=(REPEATED, REPEATED), shape=(3, 3))
example("scatter", real(2), index=np.array([True, False, True]), shape=(3,))

# ---------------------------------------------------------------------------------- linear algebra
example("matmul", real(2, 3), real(3, 4))
example("matmul", real(2, 2, 3), real(2, 3, 2))
example("matmul", real(2, 3), real(4, 3, 1))
example("matmul", real(2, 1, 3, 2), real(3, 2, 2))
example("matmul", real(1, 1), real(1, 1))
example("matmul", real(2, 0), real(0, 3))
example("einsum", real(2, 3), real(3, 4), subscripts="ij,jk->ik")
example("einsum", real(3), real(3), subscripts="i,i->")
example("einsum", real(2), real(3), subscripts="i,j->ji")
example("einsum", real(), real(2), subscripts=",i->i")
example("einsum", real(2, 3, 2), real(3, 2), subscripts="bij,ij->bj")
example("tensordot", real(2, 3), real(3, 2), axes=((1,), (0,)))
example("tensordot", real(2, 3, 4), real(4, 2, 3), axes=((2, 1), (0, 2)))
example("tensordot", real(2, 3), real(2, 3), axes=((0, 1), (0, 1)))
example("tensordot", real(2), real(3), axes=((), ()))
example("tensordot", real(0, 2), real(2, 1), axes=((1,), (0,)))
for _name in ("inv", "det", "logabsdet"):
    example(_name, well_conditioned(3, 3))
    example(_name, well_conditioned(1, 1))
    example(_name, well_conditioned(2, 2, 2))
example("cholesky", real(3, 3), first=positive_definite)
example("cholesky", real(1, 1), first=positive_definite)
example("cholesky", real(2, 2, 2), first=positive_definite)
example("solve", well_conditioned(3, 3), real(3, 2))
example("solve", well_conditioned(2, 2, 2), real(2, 2, 1))
example("solve", well_conditioned(2, 2), real(3, 2, 1))
example("solve", well_conditioned(3, 2, 2), real(2, 1))
for _shape in ((3, 3), (3, 2), (2, 3), (2, 3, 2)):
    example("pinv", diagonally_spread(*_shape))


# Eigenvectors, singular vectors and the columns of q may be turned around. That a small step should
# not do so by chance, these are turned to make a diagonal positive.
def _signs(x):
    """The signs of the diagonal, as a row."""
    return np.expand_dims(np.sign(np.diagonal(x, axis1=-2, axis2=-1)), -2)


def _signed_eigh(x):
    values, vectors = np.linalg.eigh(symmetric(x))
    vectors = vectors * _signs(vectors)
    return np.concatenate([np.expand_dims(values, -2), vectors], axis=-2)


def _signed_eig(x):
    values, vectors = np.linalg.eig(x)
    vectors = vectors * _signs(vectors)
    return np.concatenate([np.expand_dims(values, -2), vectors], axis=-2)


def _signed_svd(x):
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    v = np.swapaxes(vh, -1, -2)
    return np.concatenate([u * _signs(u), np.expand_dims(s, -2), v * _signs(u)], axis=-2)


def _signed_qr(x):
    q, r = np.linalg.qr(x)
    return np.concatenate([q * _signs(r), np.swapaxes(r, -1, -2) * _signs(r)], axis=-2)


for _shape in ((3, 3), (1, 1), (2, 2, 2)):
    example("eigh", diagonally_spread(*_shape), by=_signed_eigh)
    example("eig", diagonally_spread(*_shape), by=_signed_eig)
for _shape in ((3, 3), (3, 2), (2, 3), (2, 3, 2), (1, 2, 3), (1, 1)):
    example("svd", diagonally_spread(*_shape), by=_signed_svd)
    example("qr", diagonally_spread(*_shape), by=_signed_qr)


# ------------------------------------------------------------------------ kernels of functional.py
def _normalised(x, weight, bias):
    """The first of the three results of functional.batch_norm."""
    return functional.batch_norm(x, weight, bias)[0]


example("linear", real(4, 3), real(2, 3), real(2))
example("linear", sparse.csr_matrix(np.eye(3)), real(2, 3), real(2))
example("batch_norm", real(5, 3), real(3), real(3), by=_normalised)
for _name in ("softmax", "log_softmax"):
    example(_name, real(3))
    example(_name, real(2, 3))
    example(_name, real(2, 3), axis=0)
    example(_name, real(2, 2, 2), axis=1)
    example(_name, real(0, 2))

example("weighted_log_softmax", positive(3), real(3))
example("weighted_log_softmax", positive(2, 3), real(2, 3))
example("weighted_log_softmax", positive(3), real(2, 3))
example("weighted_log_softmax", np.array([0.0, 1.0]), real(4, 2))

# ------------------------------------------------------------------------ log-likelihoods of counts
COUNTS = np.array([[0.0, 3.0, 1.0], [0.0, 0.0, 0.0], [12.0, 0.0, 1.0]])  # one cell has none
CSR_COUNTS = sparse.csr_matrix(COUNTS)
for _x in (COUNTS, CSR_COUNTS):  # log_mu, then log_theta by entry or by gene, then zi_logits
    example("poisson_cell_log_prob", _x, real(3, 3))
    example("nb_cell_log_prob", _x, real(3, 3), real(3, 3))
    example("nb_cell_log_prob", _x, real(3, 3), real(3))
    example("zinb_cell_log_prob", _x, real(3, 3), real(3, 3), real(3, 3))
    example("zinb_cell_log_prob", _x, real(3, 3), real(3), real(3, 3))
    # In place of log_mu: the logits of the expression fractions, and the log library sizes.
    example("poisson_cell_log_prob_from_logits", _x, real(3, 3), real(3, 1))
    example("nb_cell_log_prob_from_logits", _x, real(3, 3), real(3, 1), real(3, 3))
    example("nb_cell_log_prob_from_logits", _x, real(3, 3), real(3, 1), real(3))
    example("zinb_cell_log_prob_from_logits", _x, real(3, 3), real(3, 1), real(3, 3), real(3, 3))
    example("zinb_cell_log_prob_from_logits", _x, real(3, 3), real(3, 1), real(3), real(3, 3))
example("poisson_log_prob", COUNTS, real(3, 3))
example("poisson_log_prob", COUNTS[:, :1], real(2))
example("poisson_log_prob", 2.0, real())
example("nb_log_prob", COUNTS, real(3, 3), real(3, 3))
example("nb_log_prob", COUNTS, real(3, 3), real(3))
example("nb_log_prob", COUNTS[:, :1], real(2), real(2))
example("nb_log_prob", 2.0, real(), real())
example("zinb_log_prob", COUNTS, real(3, 3), real(3, 3), real(3, 3))
example("zinb_log_prob", COUNTS, real(3, 3), real(3), real(3, 3))
example("zinb_log_prob", COUNTS[:, :1], real(2), real(2), real(2))
example("zinb_log_prob", 2.0, real(), real(), real())
