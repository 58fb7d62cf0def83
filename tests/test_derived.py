"""What follows from the table: every function of derived.py is NumPy's on the raw array, and its derivatives are right.

A case is a plain NumPy expression. It is run on arrays, which is the truth, then on Tensors,
and gradcheck does the rest.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from minigrad import functional
from minigrad.checking import gradcheck
from minigrad.derived import PLAIN
from minigrad.table import PRIMITIVES
from minigrad.tensor import IMPLEMENTATIONS, Tensor, grad


def draw(*shape, seed=0):
    """Normal numbers without ties, float64."""
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def leaf(x):
    return Tensor(np.asarray(x, dtype=float), requires_grad=True)


def check(f, *arrays, order=2, seed=0):
    """f on Tensors: NumPy's value, shape and dtype, float32 kept, inputs as they were, and right derivatives."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 1e-4)):
            cast = [x.astype(dtype) for x in arrays]
            expected = f(*cast)
            for x in cast:
                x.flags.writeable = False
            got = f(*[Tensor(x) for x in cast])
            assert type(got) is Tensor and got.dtype == dtype and got.shape == np.shape(expected)
            np.testing.assert_allclose(got.data, expected, rtol=tolerance, atol=tolerance)
        gradcheck(f, *arrays, order=order, seed=seed)


def gradient(f, *arrays):
    """The gradients of the sum of f."""
    xs = [leaf(x) for x in arrays]
    y = f(*xs)
    return [g.tolist() for g in grad(y, xs, np.ones(y.shape))]


X, CUBE, V, W = draw(3, 4), draw(2, 3, 4), draw(4), draw(3)
AXES = [None, 0, 1, 2, -1, -2, -3, (0, 1), (0, -1), (-1, 1), (0, 1, 2), ()]


# ---------------------------------------------------------------------------------------------------------- statistics
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "prod", "max", "min"])
def test_reductions(name, axis, keepdims):
    if name == "std" and axis == ():
        pytest.skip("the square root of 0")
    check(lambda x: getattr(np, name)(x, axis=axis, keepdims=keepdims), CUBE)
    check(lambda x: getattr(x, name)(axis=axis, keepdims=keepdims), CUBE, order=1)


@settings(max_examples=40)
@given(
    data=st.data(),
    x=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
        elements=st.floats(-2.0, 2.0, width=16),
    ),
)
def test_reductions_of_any_shape(data, x):
    axis = data.draw(
        st.none() | hnp.valid_tuple_axes(x.ndim) | st.integers(-x.ndim, x.ndim - 1)
        if x.ndim
        else st.none()
    )
    keepdims = data.draw(st.booleans())
    for function in (np.sum, np.prod):
        check(lambda x: function(x, axis=axis, keepdims=keepdims), x)
    if x.size:
        check(lambda x: np.mean(x, axis=axis, keepdims=keepdims), x)
        check(lambda x: np.var(x, axis=axis, keepdims=keepdims), x)


def test_the_mean_of_nothing_is_nan_as_in_numpy():
    assert np.isnan(np.mean(leaf(np.zeros(0))).data) and np.isnan(
        np.var(leaf(np.ones(1)), ddof=1).data
    )
    assert np.prod(leaf(np.zeros(0))).item() == 1.0
    assert np.prod(leaf(np.zeros((0, 2))), axis=0).data.tolist() == [1.0, 1.0]
    assert grad(np.prod(leaf(np.zeros(0))), x := leaf(np.zeros(0)))[0].shape == x.shape


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_var_and_std_with_ddof(ddof):
    check(lambda x: np.var(x, axis=1, ddof=ddof), X)
    check(lambda x: np.std(x, ddof=ddof), X)


@pytest.mark.parametrize(
    "x",
    [[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.0] * 4, [1.5], [1.0, -2.0, 0.0, 4.0, 5.0], [-0.0, 1.0]],
)
def test_prod_with_zeros_to_second_order(x):
    check(np.prod, np.array(x))
    check(lambda a: np.prod(a, axis=0), np.array([x, x[::-1]]).T)
    for i, g in enumerate(gradient(np.prod, x)[0]):
        assert g == np.prod(np.delete(x, i))


def test_prod_of_many():
    check(np.prod, 1.0 + 0.1 * draw(37))
    check(lambda x: np.prod(x, axis=(0, 2)), draw(3, 2, 5))


@pytest.mark.parametrize(
    "f",
    [
        np.cumprod,
        lambda x: np.cumprod(x, axis=0),
        lambda x: np.cumprod(x, -1),
        lambda x: np.cumprod(x[:1, 0]),
        lambda x: np.cumprod(x[:, :0], axis=1),
        np.ptp,
        lambda x: np.ptp(x, axis=1, keepdims=True),
        lambda x: np.ptp(x, 0),
        np.average,
        lambda x: np.average(x, axis=1),
        lambda x: np.average(x, (0, 1), keepdims=True),
        lambda x: np.average(x, 1, np.arange(1, 5)),
        lambda x: np.average(x, axis=0, weights=np.exp(x)),
        lambda x: np.average(x, axis=(1, 0), weights=np.exp(x.T), keepdims=True),
        lambda x: np.average(np.arange(4), weights=np.square(x[0])),
        lambda x: np.sum(x, where=np.array([True, False, True, True])),
        lambda x: np.sum(x, axis=1, where=np.eye(3, 4, dtype=bool), keepdims=True),
        lambda x: x.sum(0, where=np.zeros((3, 4), bool)),
    ],
)
def test_products_and_weighted_means(f):
    check(f, X)


@pytest.mark.parametrize(
    "x", [[0.0, 2.0, 3.0], [2.0, 0.0, 0.0, 3.0], [0.0] * 3, [1.5], [2.0, 5.0, 0.0]]
)
def test_cumprod_with_zeros_to_second_order(x):
    check(np.cumprod, np.array(x))
    check(lambda a: np.cumprod(a, axis=0), np.array([x, x[::-1]]).T)
    expected = [
        sum(np.prod(np.delete(x[: i + 1], j)) for i in range(j, len(x))) for j in range(len(x))
    ]
    assert gradient(np.cumprod, x)[0] == expected


def test_cumprod_beyond_the_range_of_its_factors():
    """Products of 1e-300, 1e200 and 1e200 that are taken in another order overflow."""
    assert gradient(np.cumprod, [1e-300, 1e200, 1e100]) == [[1e300, 1e-200, 1e-100]]
    x = np.array([1e-300, 1e200, 1e200, 1e200])
    np.testing.assert_array_equal(np.cumprod(leaf(x)).data, np.cumprod(x))


def test_sum_in_another_dtype():
    x = leaf(np.float32([1.0, 2.0]))
    x = Tensor(np.float32([1.0, 2.0]), requires_grad=True)
    y = np.sum(x, dtype=np.float64)
    assert y.dtype == np.float64 and np.sum(x, 0, np.float64).dtype == np.float64
    (g,) = grad(y, x)
    assert g.dtype == np.float32 and g.tolist() == [1.0, 1.0]
    assert x.sum(dtype=None).dtype == np.float32


NAN = np.array([[1.0, np.nan, 3.0, 0.5], [np.nan, 2.0, -1.0, np.nan], [0.2, 0.4, 0.6, -2.0]])


@pytest.mark.parametrize(
    "name",
    [
        "nansum",
        "nanmean",
        "nanvar",
        "nanstd",
        "nanmax",
        "nanmin",
        "nanprod",
        "nancumsum",
        "nancumprod",
    ],
)
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_what_is_nan_is_left_out(name, axis):
    """The derivatives are those of the function of the other entries; where there is NaN they are 0."""
    function = getattr(np, name)
    check(lambda x: function(x, axis=axis), X)
    is_nan = np.isnan(NAN)

    def of_the_others(x):
        at = np.cumsum(~is_nan).reshape(is_nan.shape) - 1
        return function(np.where(is_nan, np.nan, x[np.maximum(at, 0)]), axis=axis)

    check(of_the_others, NAN[~is_nan])
    (g,) = gradient(lambda x: function(x, axis=axis), NAN)
    assert np.all(np.array(g)[is_nan] == 0.0)


def test_means_of_nothing_but_nan_are_nan():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(np.nanmax(leaf([np.nan])).data)
        assert np.nanmin(leaf([np.nan, np.inf])).item() == np.inf
        assert np.isnan(np.nanmean(leaf([np.nan])).data) and np.isnan(
            np.nanvar(leaf([1.0]), ddof=1).data
        )
        assert np.nanvar(leaf(X), ddof=1, axis=0, keepdims=True).shape == (1, 4)
        assert np.nanstd(leaf(X), ddof=1).item() == np.std(leaf(X), ddof=1).item()


def test_nan_to_num_has_slope_0_where_it_replaced_something():
    x = np.array([1.0, np.nan, np.inf, -np.inf])
    for keywords in ({}, {"nan": 2.0}, {"posinf": 3.0, "neginf": -3.0}):
        y = np.nan_to_num(leaf(x), **keywords)
        np.testing.assert_array_equal(y.data, np.nan_to_num(x, **keywords))
        (g,) = gradient(lambda x: np.nan_to_num(x, **keywords) * [1.0, 2.0, 3.0, 4.0][0], x)
        assert g == [1.0, 0.0, 0.0, 0.0]
    assert np.isnan(x[1])


def test_std_and_norm_have_slope_0_where_all_is_equal():
    """As PyTorch's torch.std and torch.linalg.norm (2.13); numpy.sqrt(numpy.var(x)) would have NaN."""
    assert gradient(np.std, np.ones(3)) == [[0.0] * 3] and gradient(
        np.linalg.norm, np.zeros(2)
    ) == [[0.0] * 2]
    assert np.std(leaf(np.ones(3))).item() == 0.0


@pytest.mark.parametrize(
    "f",
    [
        np.linalg.norm,
        lambda x: np.linalg.norm(x, axis=1),
        lambda x: np.linalg.norm(x, axis=-2, keepdims=True),
        lambda x: np.linalg.norm(x, "fro"),
        lambda x: np.linalg.norm(x[0], 2),
        lambda x: np.linalg.norm(x, 2, axis=0),
        lambda x: np.linalg.norm(x, axis=(0, 1)),
        lambda x: np.linalg.norm(x, keepdims=True),
    ],
)
def test_norm(f):
    check(f, X)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.cumsum(x),
        lambda x: np.cumsum(x, axis=0),
        lambda x: np.cumsum(x, -1),
        lambda x: x.cumsum(axis=-2),
    ],
)
def test_cumsum(f):
    check(f, X)


# ---------------------------------------------------------------------------------------------------------------- ties
# Measured with PyTorch 2.13. It documents that amax and amin share evenly among ties, maximum and minimum too.
def test_ties_share_as_in_pytorch():
    assert gradient(np.max, [1.0, 3.0, 3.0]) == [
        [0.0, 0.5, 0.5]
    ]  # torch.amax; so also torch.max(x)
    assert gradient(np.min, [3.0, 1.0, 1.0]) == [[0.0, 0.5, 0.5]]
    assert gradient(lambda x: np.max(x, axis=1), [[2.0, 2.0], [1.0, 0.0]]) == [
        [[0.5, 0.5], [1.0, 0.0]]
    ]
    assert gradient(lambda x: np.max(x, axis=(0, 1)), np.full((2, 2), 7.0)) == [[[0.25, 0.25]] * 2]
    assert gradient(np.maximum, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == [
        [0.5, 0.0, 1.0],
        [0.5, 1.0, 0.0],
    ]
    assert gradient(np.minimum, [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]) == [
        [0.5, 1.0, 0.0],
        [0.5, 0.0, 1.0],
    ]
    assert gradient(lambda x: np.sort(x) * np.arange(1.0, 5.0), [2.0, 1.0, 2.0, 1.0]) == [
        [3.0, 1.0, 4.0, 2.0]
    ]
    assert gradient(np.absolute, [0.0]) == [[0.0]]
    assert gradient(functional.relu, [0.0, 1.0, -1.0]) == [[0.0, 1.0, 0.0]]
    assert gradient(np.power, [0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 2.0, 0.0]) == [
        [0.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, np.log(2.0)],
    ]


def test_sort_of_many_ties_is_stable():
    x, weights = np.arange(60.0) % 3, np.arange(60.0)
    assert (
        gradient(lambda x: np.sort(x) * weights, x)[0]
        == weights[np.argsort(np.argsort(x, kind="stable"))].tolist()
    )


def test_clip_on_its_bounds_as_in_pytorch():
    x = [-1.0, 1.0, 0.0, 2.0, -3.0]
    assert gradient(lambda x: np.clip(x, -1.0, 1.0), x) == [
        [1.0, 1.0, 1.0, 0.0, 0.0]
    ]  # torch.clamp
    assert gradient(np.clip, x, [-1.0] * 5, [1.0] * 5) == [
        [1.0, 1.0, 1.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 0.0, 0.0, 1.0, 0.0],
    ]


def test_ties_of_choices_that_leave_out_nan():
    nan = np.nan
    a, b = [1.0, nan, nan, 2.0, 3.0], [nan, 1.0, nan, 2.0, 1.0]
    to_a, to_b = gradient(np.fmax, a, b)
    assert to_a[:2] == [1.0, 0.0] and to_b[:2] == [0.0, 1.0]
    assert (to_a[3:], to_b[3:]) == ([0.5, 1.0], [0.5, 0.0])
    to_a, to_b = gradient(np.fmin, a, b)
    assert to_a[:2] == [1.0, 0.0] and to_b[:2] == [0.0, 1.0]
    assert (to_a[3:], to_b[3:]) == ([0.5, 0.0], [0.5, 1.0])
    for f in (np.fmax, np.fmin):
        np.testing.assert_array_equal(f(leaf(a), leaf(b)).data, f(np.array(a), np.array(b)))


def test_clip_to_a_bound_that_is_nan():
    for bounds in (
        (np.nan, 1.0),
        (0.0, np.nan),
        (np.nan, np.nan),
        (np.array([np.nan, 0.0, 0.0]), 1),
    ):
        x = np.array([-0.5, 0.5, np.nan])
        np.testing.assert_array_equal(np.clip(leaf(x), *bounds).data, np.clip(x, *bounds))
    np.testing.assert_array_equal(np.clip(leaf([0.5]), leaf(np.nan), 1.0).data, [np.nan])


def test_tensors_by_keyword_in_what_is_a_formula():
    """They used to be refused, as a keyword of an entry of the table is no part of the graph."""
    low, weights = leaf([0.5, -2.0, 0.0]), leaf([1.0, 2.0, 5.0])
    (g,) = grad(np.sum(np.clip(np.array([0.0, 1.0, -1.0]), a_min=low, a_max=None)), low)
    assert g.tolist() == [1.0, 0.0, 1.0]
    check(lambda x, w: np.average(x, axis=1, weights=w), X, np.exp(draw(4)))
    check(lambda x, w: np.average(x, 0, weights=w), X, np.exp(draw(3, 4, seed=1)))
    (g,) = grad(np.average(np.array([1.0, 2.0, 3.0]), weights=weights), weights)
    np.testing.assert_allclose(g, (np.array([1.0, 2.0, 3.0]) - 20.0 / 8.0) / 8.0)


# --------------------------------------------------------------------------------------------------------- elementwise
def test_values_are_those_of_numpy_to_the_bit():
    """log2(8) used to be 2.9999999999999996, and exp2 was off by up to 359 units in the last place."""
    x = np.concatenate(
        [
            draw(2000) * 10.0 ** draw(2000, seed=1),
            2.0 ** np.arange(-40, 40),
            10.0 ** np.arange(-20, 20),
        ]
    )
    names = """exp2 log2 log10 tan arcsin arccos arcsinh arccosh arctanh cbrt fabs floor ceil rint trunc fix around sinc
        deg2rad rad2deg radians degrees nan_to_num"""
    with np.errstate(all="ignore"):
        for dtype in (np.float32, np.float64):
            for name in names.split():
                function, cast = getattr(np, name), x.astype(dtype)
                expected, got = function(cast), function(Tensor(cast)).data
                assert got.dtype == expected.dtype == dtype
                np.testing.assert_array_equal(got, expected, err_msg=name)
            for name in "arctan2 hypot fmod remainder floor_divide fmax fmin logaddexp2".split():
                function, a = getattr(np, name), x.astype(dtype)
                np.testing.assert_array_equal(
                    function(Tensor(a), a[::-1]).data, function(a, a[::-1]), err_msg=name
                )
    assert np.log2(leaf(8.0)).item() == 3.0 and np.log10(leaf(1000.0)).item() == 3.0


def test_slopes_beyond_the_square_root_of_the_largest_number():
    big = 1e200
    assert gradient(np.arcsinh, big) == [1e-200]
    assert gradient(np.arccosh, big) == [pytest.approx(1e-200, rel=1e-15)]
    np.testing.assert_allclose(gradient(np.hypot, 3e200, 4e200), [0.6, 0.8], rtol=1e-15)
    np.testing.assert_allclose(
        gradient(np.arctan2, 3e200, 4e200), [1.6e-201, -1.2e-201], rtol=1e-15
    )
    np.testing.assert_allclose(gradient(np.hypot, 3e-200, 4e-200), [0.6, 0.8], rtol=1e-15)
    np.testing.assert_allclose(
        gradient(np.arctan2, 3e-200, 4e-200), [1.6e199, -1.2e199], rtol=1e-15
    )
    assert gradient(np.arcsin, 1.0 - 2.0**-53) == [
        2.0**26
    ]  # 1 - x * x would have lost half of its digits


def second(f, x):
    """The second derivative of a function of one number."""
    x = leaf(x)
    (slope,) = grad(f(x), x, create_graph=True)
    return grad(slope, x)[0].item()


def test_corners_of_elementary_functions():
    assert gradient(np.hypot, 0.0, 0.0) == [0.0, 0.0]
    assert gradient(np.hypot, [0.0, 3.0], [2.0, 0.0]) == [[0.0, 1.0], [1.0, 0.0]]
    with np.errstate(all="ignore"):
        assert np.isnan(
            second(lambda x: np.hypot(x, 0.0) ** 2, 0.0)
        )  # 2 on paper; 0 would be wrong
        assert np.isnan(gradient(np.arctan2, 0.0, 0.0)).all()  # no angle is there
        assert gradient(np.cbrt, 0.0) == [np.inf]
    assert gradient(np.cbrt, -8.0) == [1.0 / 12.0]
    assert gradient(np.arctan2, 0.0, -2.0) == [-0.5, 0.0]
    assert gradient(np.fabs, [0.0, -2.0]) == [[0.0, -1.0]]
    # Of fmod the quotient is rounded towards 0, of remainder down.
    assert gradient(np.fmod, [-5.0, 5.0, -5.0, 0.5], [3.0, -3.0, -3.0, 0.7])[1] == [
        1.0,
        1.0,
        -1.0,
        0.0,
    ]
    assert gradient(np.remainder, [-5.0, 5.0, -5.0], [3.0, -3.0, -3.0])[1] == [2.0, 2.0, -1.0]
    # 0.3 / 0.1 rounds to 3, but 0.1 goes into 0.3 twice.
    assert gradient(np.fmod, 0.3, 0.1)[1] == gradient(np.remainder, 0.3, 0.1)[1] == -2.0
    for name in ("floor", "ceil", "rint", "trunc", "round", "sign", "imag"):
        assert gradient(getattr(np, name), [0.5, -1.0, 3.0]) == [[0.0] * 3]
    assert gradient(np.floor_divide, [5.0, -5.0], [2.0, 2.0]) == [[0.0, 0.0]] * 2


def test_sinc_near_0():
    """Against the integral: sinc is the mean of cos(pi x t) over t from 0 to 1."""
    t, weights = np.polynomial.legendre.leggauss(40)
    t, weights = np.pi * (t + 1.0) / 2.0, weights / 2.0
    assert gradient(np.sinc, 0.0) == [0.0]
    assert second(np.sinc, 0.0) == pytest.approx(-(np.pi**2) / 3.0, rel=1e-15)
    for x in [1e-300, 1e-9, 1e-3, 0.1, 0.31, 0.318, 0.319, 0.5, 1.0, 3.0]:
        assert gradient(np.sinc, x)[0] == pytest.approx(weights @ (-t * np.sin(x * t)), rel=1e-13)
        assert second(np.sinc, x) == pytest.approx(weights @ (-t * t * np.cos(x * t)), rel=1e-12)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.clip(x, -0.5, 0.5),
        lambda x: np.clip(x, None, 0.5),
        lambda x: np.clip(x, -0.5, None),
        lambda x: x.clip(0.1),
        lambda x: np.clip(x, min=-0.3),
        lambda x: np.clip(x, max=0.3),
        lambda x: np.clip(x, np.float64(-1), 1),
        lambda x: np.clip(x, np.array([-1, 0, -1, 0]), 2),
        lambda x: np.clip(x, 0.5, -0.5) + x,
        np.positive,
        np.real,
        np.conjugate,
        lambda x: x % 2,
        lambda x: 2.0 % x,
        lambda x: x * (x // 0.3),
        lambda x: x * (7 // x),
        lambda x: divmod(x, 0.7)[1],
        lambda x: divmod(2, x)[1] + x * np.divmod(x, 0.4)[0],
        lambda x: np.mod(x, np.array([1, -2, 3, 1], np.int8)),
        lambda x: x * np.fix(3.0 * x),
        lambda x: x * np.around(x, 1) + x * x.round() + np.round(10.0 * x, decimals=-1) * x,
        lambda x: np.select([x > 0.5, x > 0.0], [x, 2.0 * x * x], 3.0),
        lambda x: np.select([x > 0.5, x > 0.0], [x, 2.0]),
        lambda x: np.select((x > 0.5, x[0] > 0.0), (np.arange(4), x)),
        np.copy,
        lambda x: +x,
        lambda x: -x,
        abs,
        lambda x: np.log2(x * x),
        lambda x: np.log10(x * x),
        lambda x: x**2,
        lambda x: x**3,
        lambda x: 2**x,
        lambda x: 1.0 / x,
        lambda x: 3 - x,
        lambda x: x / np.prod((2, 3)),
        lambda x: x * np.log(2),
        lambda x: special.expm1(x) + special.log1p(x * x),
        lambda x: np.where(x > 0.1, x, 0.5 * x * x),
        lambda x: np.where(x > 0.1, np.exp(x), 1.0),
        lambda x: np.where(True, 2, x),
    ],
)
def test_elementwise(f):
    check(f, X)


@pytest.mark.parametrize(
    "f",
    [
        np.clip,
        lambda x, low, high: np.where(x > low, x * high, low),
        lambda x, low, high: (x - low) / (high - low),
    ],
)
def test_elementwise_of_three(f):
    check(f, X, draw(4) - 1.0, np.array(0.8))


# -------------------------------------------------------------------------------------------------------------- shapes
@pytest.mark.parametrize(
    "f",
    [
        np.ravel,
        lambda x: x.ravel(),
        lambda x: x.flatten(),
        lambda x: np.reshape(x, (4, -1)),
        lambda x: x.reshape(4, 6),
        lambda x: x.reshape((2, 12)),
        lambda x: x.reshape(-1),
        lambda x: np.reshape(x, -1),
        np.transpose,
        lambda x: x.T,
        lambda x: x.transpose(),
        lambda x: x.transpose(2, 0, 1),
        lambda x: x.transpose((1, 0, 2)),
        np.matrix_transpose,
        lambda x: np.transpose(x, (0, -1, 1)),
        lambda x: np.swapaxes(x, 0, -1),
        lambda x: x.swapaxes(1, 1),
        lambda x: np.moveaxis(x, 0, -1),
        lambda x: np.moveaxis(x, (0, 1), (1, 0)),
        lambda x: np.moveaxis(x, (0, 1), (2, 0)),
        lambda x: np.moveaxis(x, [2, 0], [0, 1]),
        lambda x: np.moveaxis(x, -1, 0),
        lambda x: np.rollaxis(x, 2),
        lambda x: np.rollaxis(x, 0, 3),
        lambda x: np.rollaxis(x, -1, 1),
        lambda x: np.rollaxis(x, 0, -1),
        lambda x: np.rollaxis(x, 1, 1) + 1.0,
        np.real_if_close,
        lambda x: np.broadcast_arrays(x[:, :1], x[0])[0],
        lambda x: np.broadcast_arrays(np.arange(4), x[0, 0, 0])[1],
        lambda x: np.meshgrid(x[0, 0], x[1, :, 0])[0],
        lambda x: np.meshgrid(x[0, 0], x[1, :, 0], np.arange(2))[1],
        lambda x: np.meshgrid(x[0, 0], x[1, :, 0], x[:, 0, 0], indexing="ij")[1],
        lambda x: np.meshgrid(x[0, 0])[0],
        lambda x: np.expand_dims(x, 0),
        lambda x: np.expand_dims(x, -1),
        lambda x: np.expand_dims(x, (0, 2)),
        lambda x: np.expand_dims(x, [-1, 0]),
        lambda x: np.squeeze(x[:1, :, :1]),
        lambda x: np.squeeze(x[:1], 0),
        lambda x: np.squeeze(x[:, :1, :1], (-1, 1)),
        lambda x: np.squeeze(x),
        lambda x: x[:1].squeeze(axis=0),
        lambda x: np.broadcast_to(x, (2, 2, 3, 4)),
        lambda x: np.broadcast_to(x[:, :1], (2, 5, 4)),
        np.atleast_1d,
        np.atleast_2d,
        np.atleast_3d,
        lambda x: np.atleast_1d(x[0, 0, 0]),
        lambda x: np.atleast_2d(x[0, 0, 0]),
        lambda x: np.atleast_2d(x[0, 0]),
        lambda x: np.atleast_3d(x[0, 0, 0]),
        lambda x: np.atleast_3d(x[0, 0]),
        lambda x: np.atleast_3d(x[0]),
        lambda x: np.atleast_1d(np.ones(2), x)[1],
        lambda x: np.flip(x, [0, 2]),
        np.flipud,
        np.fliplr,
        np.rot90,
        lambda x: np.rot90(x, 2),
        lambda x: np.rot90(x, -1, axes=(2, 1)),
        lambda x: np.rot90(x, 4, (0, 2)) + 1.0,
        lambda x: np.rot90(x, 7, (0, -1)),
        lambda x: np.repeat(x, 2),
        lambda x: np.repeat(x, [0, 2, 1], axis=1),
        lambda x: np.repeat(x, 3, axis=-1),
        lambda x: np.repeat(x, [2], axis=0),
        lambda x: np.repeat(x, [True, False, True], axis=1),
        lambda x: np.repeat(x[0, 0, 0], 3),
        lambda x: np.tile(x, 2),
        lambda x: np.tile(x, (2, 1, 3)),
        lambda x: np.tile(x, (2, 1, 1, 2)),
        lambda x: np.tile(x, [0, 2]),
        lambda x: np.tile(x[0, 0, 0], (2, 2)),
        lambda x: np.tile(x, ()) + 1.0,
        lambda x: np.pad(x, 1),
        lambda x: np.pad(x, 0) + 1.0,
        lambda x: np.pad(x[0, 0], (2, 1), constant_values=(3, -1)),
        lambda x: np.pad(x, [(1, 0), (0, 2), (1, 1)], "constant", constant_values=((1, 2),)),
        lambda x: np.pad(x, ((1,), (0,), (2,)), "edge"),
        lambda x: np.pad(x, 1, "reflect"),
        lambda x: np.pad(x, 5, mode="reflect"),
        lambda x: np.pad(x[:1], 2, mode="reflect"),
        lambda x: np.pad(x, (2, 7), "symmetric"),
        lambda x: np.pad(x, (5, 3), "wrap"),
        lambda x: np.pad(x[:0], 1),
        lambda x: np.array_split(x, 3, axis=2)[0],
        lambda x: np.array_split(x, 3, axis=-1)[2],
        lambda x: np.array_split(x, 5)[4],
        lambda x: np.array_split(x, [1, 2], axis=1)[1],
        lambda x: np.vsplit(x, 2)[1],
        lambda x: np.hsplit(x, 3)[1],
        lambda x: np.hsplit(x[0, 0], [1])[1],
        lambda x: np.dsplit(x, 2)[1],
        lambda x: np.unstack(x, axis=1)[2],
        lambda x: np.delete(x, 1, axis=2),
        lambda x: np.delete(x, [0, -1], 1),
        lambda x: np.delete(x, slice(3)),
        lambda x: np.delete(x, [True, False, True], 1),
        np.flip,
        lambda x: np.flip(x, 0),
        lambda x: np.flip(x, (0, -1)),
        lambda x: np.flip(x, -2),
        lambda x: np.roll(x, 1),
        lambda x: np.roll(x, -7),
        lambda x: np.roll(x, 5, axis=1),
        lambda x: np.roll(x, 0, axis=-1),
        lambda x: np.roll(x, (1, -1), axis=(0, 2)),
        lambda x: np.roll(x, 1, axis=(0, 1)),
        lambda x: np.split(x, 2)[1],
        lambda x: np.split(x, 2, axis=-1)[0],
        lambda x: np.split(x, [1, 3], axis=2)[1],
        lambda x: np.split(x, [1, 1], axis=1)[1],
        lambda x: np.split(x, np.array([2]), axis=1)[1],
        lambda x: np.concatenate(np.split(x, 3, axis=1)[::-1], axis=1),
    ],
)
def test_shapes(f):
    check(f, CUBE)


@pytest.mark.parametrize(
    "cuts, axis",
    [(1, 0), (2, 0), (3, 1), (4, -1), (np.int64(2), 2), ([1, 3], 2), ([], 1), ([1, 1], 1)],
)
def test_split_makes_as_many_pieces_as_numpy(cuts, axis):
    pieces = np.split(Tensor(CUBE), cuts, axis=axis)
    expected = np.split(CUBE, cuts, axis=axis)
    assert len(pieces) == len(expected)
    for piece, same in zip(pieces, expected):
        np.testing.assert_array_equal(piece.data, same)


@pytest.mark.parametrize(
    "f",
    [
        lambda a, b: np.concatenate([a, b]),
        lambda a, b: np.concatenate((a, b, a), axis=1),
        lambda a, b: np.concatenate([a, b], axis=-2),
        lambda a, b: np.concatenate([a, b], axis=None),
        lambda a, b: np.stack([a, b]),
        lambda a, b: np.stack((a, b), axis=1),
        lambda a, b: np.stack([a, b], axis=-1),
        lambda a, b: np.vstack([a, b]),
        lambda a, b: np.hstack([a, b]),
        lambda a, b: np.dstack([a, b]),
        lambda a, b: np.dstack([a[0], b[0]]),
        lambda a, b: np.column_stack([a, b[:, 0]]),
        lambda a, b: np.column_stack((a[0], b[0])),
        lambda a, b: np.append(a, b),
        lambda a, b: np.append(a, b[:, :1], axis=1),
        lambda a, b: np.append(a, b[0, 0]),
        lambda a, b: np.append(a, values=b, axis=0),
        lambda a, b: np.vstack([a[0], b]),
        lambda a, b: np.hstack([a[0], b[1], a[0, 0]]),
        lambda a, b: np.concatenate([a[:0], b]),
        lambda a, b: np.stack([a[0, 0], b[0, 0]]),
        lambda a, b: np.stack([*a, *b]),
    ],
)
def test_joining(f):
    check(f, X, draw(3, 4, seed=1))


def test_joining_with_plain_arrays_and_numbers():
    ones, counts = np.ones((3, 4), np.float32), np.arange(12).reshape(3, 4)
    x = Tensor(X.astype(np.float32), requires_grad=True)
    for f in (
        lambda x: np.concatenate([x, ones]),
        lambda x: np.stack([counts, x]),
        lambda x: np.vstack([counts, x]),
        lambda x: np.hstack([x, counts]),
        lambda x: np.stack([x[0, 0], 2.0, np.float64(3.0)]),
    ):
        y = f(x)
        assert y.dtype == np.float32
        np.testing.assert_allclose(y.data, f(x.data))
        assert grad(np.sum(y), x)[0].sum() in (12.0, 1.0)


@settings(max_examples=40)
@given(
    data=st.data(),
    x=hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
        elements=st.floats(-2.0, 2.0, width=16),
    ),
)
def test_moving_axes_of_any_shape(data, x):
    order = tuple(data.draw(st.permutations(range(x.ndim))))
    check(lambda x: np.transpose(x, order), x)
    check(lambda x: np.reshape(x, x.shape[::-1]), x)
    axis = data.draw(st.integers(-x.ndim - 1, x.ndim))
    check(lambda x: np.squeeze(np.expand_dims(x, axis), axis), x)
    if x.ndim:
        a, b = data.draw(st.tuples(*[st.integers(-x.ndim, x.ndim - 1)] * 2))
        check(lambda x: np.moveaxis(x, a, b) + 1.0, x)
        check(lambda x: np.flip(np.swapaxes(x, a, b), a), x)
        shift = data.draw(st.integers(-5, 5))
        check(lambda x: np.roll(x, shift, a), x)


# ------------------------------------------------------------------------------------------------------------- reading
ANY_SHAPE = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


@settings(max_examples=60)
@given(data=st.data(), shape=ANY_SHAPE)
def test_reading_by_basic_indices(data, shape):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    check(lambda x: x[index], draw(*shape))


@settings(max_examples=60)
@given(data=st.data(), shape=ANY_SHAPE)
def test_reading_by_integer_arrays_accumulates_repeats(data, shape):
    result_shape = hnp.array_shapes(min_dims=0, max_dims=2, max_side=5)
    index = data.draw(hnp.integer_array_indices(shape, result_shape=result_shape))
    check(lambda x: x[index], draw(*shape))
    read = np.zeros(shape)
    np.add.at(read, index, 1.0)
    assert np.array_equal(gradient(lambda x: x[index], draw(*shape))[0], read)


@settings(max_examples=30)
@given(data=st.data(), shape=ANY_SHAPE)
def test_reading_by_masks(data, shape):
    mask = data.draw(hnp.arrays(bool, shape[: data.draw(st.integers(1, len(shape)))]))
    check(lambda x: x[mask], draw(*shape))


@pytest.mark.parametrize(
    "index",
    [
        0,
        -1,
        np.int64(1),
        (0, 1),
        (Ellipsis, 1),
        slice(None, None, -2),
        (slice(None), None, [0, 0, 2]),
        [1, 1, 0],
        ([0, 1], [1, 1]),
        (np.array([[0, 1], [1, 1]]), slice(1, None)),
        (1, [2, 2], slice(None)),
        ([0, 0, 1], slice(None), [3, 3, 0]),
        (0, [1, 1], None),
        (slice(None), np.array([True, False, True])),
        (np.array(1),),
        (),
        None,
        Ellipsis,
        True,
        [],
        (1, 2, 3),
        (Ellipsis, [0, 0], [1, 1]),
        np.ix_([0, 0], [2, 1], [3, 3, 3]),
        (np.array([0, 0]), None, np.array([1, 1])),
    ],
)
def test_reading(index):
    check(lambda x: x[index], CUBE)


def test_reading_in_a_loop():
    check(lambda x: sum(row * i for i, row in enumerate(x)), X)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.take(x, [0, 5, 5, -1]),
        lambda x: np.take(x, 3),
        lambda x: np.take(x, (0, 0)),
        lambda x: x.take([1, 1], axis=0),
        lambda x: np.take(x, np.array([[0, 1], [1, 1]]), axis=1),
        lambda x: np.take(x, 2, axis=-1),
        lambda x: np.take(x, (3, 3), axis=2),
        lambda x: np.take(x, [True, False, True]),
        lambda x: np.take(x, (True, True), axis=1),
        lambda x: np.take(x, np.array([True, False, False]), axis=1),
        lambda x: np.take(x, np.array([[False, True]]), axis=2),
        lambda x: np.take(x, True, axis=1),
        lambda x: np.take(x, np.True_),
        lambda x: x.take([False] * 24),
        lambda x: np.compress([True, False, True], x, axis=1),
        lambda x: np.compress([False, True], x),
        lambda x: np.extract(x > 0.0, x),
        lambda x: (
            np.take(x, [], axis=0)
            if isinstance(x, Tensor)
            else np.take(x, np.array([], int), axis=0)
        ),
        np.sort,
        lambda x: np.sort(x, axis=0),
        lambda x: np.sort(x, axis=None),
        lambda x: np.sort(x, axis=-2),
        lambda x: np.take_along_axis(x, np.argsort(x, axis=1), axis=1),
        lambda x: np.take_along_axis(x, np.argsort(x), axis=-1),
        lambda x: np.take_along_axis(x, np.array([[[0], [0], [2]], [[1], [1], [1]]]), 2),
        lambda x: np.take_along_axis(x, np.array([3, 3]), None),
        lambda x: np.take_along_axis(x, np.argmax(x, axis=0)[None], 0),
        np.diagonal,
        lambda x: np.diagonal(x, 1),
        lambda x: np.diagonal(x, -1, 1, 2),
        lambda x: x.diagonal(2, axis1=-1, axis2=0),
        lambda x: np.diagonal(x, 9),
        lambda x: np.diag(x[0, 0]),
        lambda x: np.diag(x[0, 0], -2),
        lambda x: np.diag(x[0, 0], k=1),
        lambda x: np.diag(x[0, 0, :0]),
        lambda x: np.diag(x[0]),
        lambda x: np.diag(x[1], -1),
        lambda x: np.diagflat(x[0], 1),
        np.trace,
        lambda x: np.trace(x, 1, 2, 1),
        lambda x: x.trace(axis1=1, axis2=2),
        np.tril,
        lambda x: np.tril(x, 1),
        lambda x: np.triu(x),
        lambda x: np.triu(x, -1),
        lambda x: np.tril(x[0, 0]),
        np.diff,
        lambda x: np.diff(x, axis=0),
        lambda x: np.diff(x, 2),
        lambda x: np.diff(x, n=2, axis=1),
        lambda x: np.diff(x, 0),
    ],
)
def test_taking_and_sorting(f):
    check(f, CUBE)


# ------------------------------------------------------------------------------------------------------ linear algebra
MATMUL = [
    ((4,), (4,)),
    ((3, 4), (4,)),
    ((4,), (4, 2)),
    ((3, 4), (4, 2)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 3, 4), (4, 2)),
    ((3, 4), (2, 4, 3)),
    ((2, 3, 4), (2, 4, 3)),
    ((2, 3, 4), (1, 4, 3)),
    ((1, 3, 4), (2, 4, 1)),
    ((5, 1, 3, 4), (2, 4, 3)),
    ((2, 1, 4), (4, 1)),
    ((1,), (1,)),
    ((1, 1), (1, 1)),
    ((0,), (0,)),
    ((3, 0), (0, 2)),
    ((0, 4), (4,)),
    ((2, 0, 4), (4, 3)),
]


@pytest.mark.parametrize("a, b", MATMUL)
def test_matmul(a, b):
    check(lambda a, b: a @ b, draw(*a), draw(*b, seed=1))
    check(np.matmul, draw(*a), draw(*b, seed=1))


@settings(max_examples=60)
@given(
    shapes=hnp.mutually_broadcastable_shapes(
        signature=np.matmul.signature, max_dims=2, min_side=0, max_side=3
    )
)
def test_matmul_of_any_shapes(shapes):
    a, b = shapes.input_shapes
    check(np.matmul, draw(*a), draw(*b, seed=1))


@pytest.mark.parametrize(
    "a, b",
    [
        *MATMUL[:5],
        ((2, 3, 4), (4, 2)),
        ((3, 4), (2, 4, 3)),
        ((2, 3, 4), (5, 4, 2)),
        ((), (3, 4)),
        ((3,), ()),
        ((), ()),
    ],
)
def test_dot(a, b):
    check(np.dot, draw(*a), draw(*b, seed=1))
    check(lambda a, b: a.dot(b), draw(*a), draw(*b, seed=1), order=1)


@pytest.mark.parametrize(
    "f, shapes",
    [
        (np.inner, [(4,), (4,)]),
        (np.inner, [(3, 4), (2, 4)]),
        (np.inner, [(2, 3, 4), (4,)]),
        (np.inner, [(), (3,)]),
        (np.outer, [(3,), (4,)]),
        (np.outer, [(2, 2), (3,)]),
        (np.outer, [(), (3,)]),
        (np.outer, [(0,), (3,)]),
        (np.vdot, [(4,), (4,)]),
        (np.vdot, [(2, 3), (6,)]),
        (np.kron, [(3,), (2,)]),
        (np.kron, [(2, 3), (3, 2)]),
        (np.kron, [(2, 3), (2,)]),
        (np.kron, [(2,), (2, 1, 3)]),
        (np.kron, [(), (3,)]),
        (np.kron, [(2, 0), (3, 2)]),
        (np.cross, [(3,), (3,)]),
        (np.cross, [(2, 3), (3,)]),
        (np.cross, [(4, 1, 3), (2, 3)]),
        (lambda a, b: np.cross(a, b, axis=0), [(3, 2), (3, 2)]),
        (lambda a, b: np.cross(a, b, 0, -1, 0), [(3, 2), (2, 3)]),
        (np.cross, [(0, 3), (3,)]),
        (lambda a, b, c: np.linalg.multi_dot([a, b, c]), [(2, 3), (3, 4), (4,)]),
    ],
)
def test_products(f, shapes):
    check(f, *[draw(*shape, seed=i) for i, shape in enumerate(shapes)])


@pytest.mark.parametrize(
    "a, b, axes",
    [
        ((2, 3, 4), (3, 4, 2), 2),
        ((3, 4), (4, 2), 1),
        ((3,), (2,), 0),
        ((2, 3), (2, 3), 2),
        ((2, 3, 4), (4, 3), ((1, 2), (1, 0))),
        ((2, 3, 4), (4, 5), ((-1,), (0,))),
        ((3, 4), (3, 2), (0, 0)),
        ((3, 4), (3, 2), ([0], [0])),
        ((3, 4), (2,), ((), ())),
        ((), (), 0),
        ((2, 3), (3, 2), ((0, 1), (1, 0))),
        ((0, 3), (3, 2), 1),
        ((2, 0), (0, 3), 1),
        ((2, 3), (3, 2), (-1, -2)),
    ],
)
def test_tensordot(a, b, axes):
    check(lambda a, b: np.tensordot(a, b, axes), draw(*a), draw(*b, seed=1))
    check(lambda a, b: np.tensordot(a, b, axes=axes), draw(*a), draw(*b, seed=1), order=1)


@pytest.mark.parametrize(
    "subscripts, shapes",
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ij,kj->ki", [(2, 3), (4, 3)]),
        ("i,i->", [(3,), (3,)]),
        ("i,i", [(3,), (3,)]),
        ("i,j->ij", [(3,), (2,)]),
        ("ij->ji", [(2, 3)]),
        ("ba", [(2, 3)]),
        ("ij->", [(2, 3)]),
        ("ij->j", [(2, 3)]),
        ("ii", [(3, 3)]),
        ("ii->i", [(3, 3)]),
        ("iij->j", [(2, 2, 3)]),
        ("iii->i", [(2, 2, 2)]),
        ("iijj->ij", [(2, 2, 3, 3)]),
        ("ijij->", [(2, 3, 2, 3)]),
        ("ij,ij->ij", [(2, 3), (2, 3)]),
        ("ij,ij->i", [(2, 3), (2, 3)]),
        ("ij,k->k", [(2, 3), (4,)]),
        ("ij,k->ikj", [(2, 3), (4,)]),
        ("ii,ij->j", [(3, 3), (3, 2)]),
        ("ii,ii->", [(3, 3), (3, 3)]),
        ("i,ii->i", [(3,), (3, 3)]),
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 3)]),
        ("bij,jk->bik", [(2, 3, 4), (4, 2)]),
        ("bi,ij,bj->b", [(3, 2), (2, 4), (3, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 4)]),
        ("i,j,k->ijk", [(2,), (3,), (2,)]),
        ("i,i,i->i", [(3,)] * 3),
        ("a,ab,abc->abc", [(2,), (2, 3), (2, 3, 2)]),
        ("ab,bc,cd,de->ae", [(2, 3), (3, 2), (2, 3), (3, 2)]),
        ("ij,jk,lm->im", [(2, 3), (3, 2), (2, 2)]),
        ("...ij,...jk->...ik", [(2, 3, 4), (2, 4, 3)]),
        ("...ij,jk->...ik", [(2, 3, 4), (4, 2)]),
        ("...ij,...jk", [(5, 1, 2, 3), (4, 3, 2)]),
        ("i...->...i", [(2, 3, 4)]),
        ("...", [(2, 3)]),
        ("...->...", [(2, 3)]),
        ("...i->...", [(2, 3)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("i...i", [(3, 2, 3)]),
        ("...i,...i->...", [(2, 1, 3), (1, 4, 3)]),
        ("...i,i...", [(2, 3), (3, 4, 2)]),
        ("i...j,j->...i", [(2, 4, 3), (3,)]),
        ("...,...", [(2, 3), (3,)]),
        ("...a,...b->ab...", [(3, 2), (3, 4)]),
        ("ij...,jk...->ik...", [(3, 2), (2, 3)]),
        ("ij,...", [(2, 3), (4,)]),
        ("i,i->i", [(1,), (3,)]),
        ("ij,ij->ij", [(1, 3), (2, 1)]),
        ("ij,jk->ik", [(2, 1), (3, 2)]),
        ("ii,i", [(1, 1), (3,)]),
        ("i,->i", [(3,), ()]),
        (",", [(), ()]),
        ("->", [()]),
        ("", [()]),
        (",i->i", [(), (3,)]),
        ("ij,jk->ik", [(0, 3), (3, 2)]),
        ("ij,jk->ik", [(2, 0), (0, 3)]),
        ("ij->i", [(2, 0)]),
        (" i j , j k -> i k ", [(2, 3), (3, 4)]),
        ("AB,Bc->Ac", [(2, 3), (3, 4)]),
        ("aB,Bc", [(2, 3), (3, 4)]),
        ("...A,A->...", [(2, 3), (3,)]),
    ],
)
def test_einsum(subscripts, shapes):
    check(
        lambda *xs: np.einsum(subscripts, *xs),
        *[draw(*shape, seed=i) for i, shape in enumerate(shapes)],
    )


@settings(max_examples=60)
@given(data=st.data())
def test_einsum_of_any_subscripts(data):
    sizes = dict(zip("abcd", data.draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))))
    terms = data.draw(st.lists(st.text("abcd", max_size=3), min_size=1, max_size=3))
    used = sorted(set("".join(terms)))
    out = "".join(data.draw(st.permutations(used)))[: data.draw(st.integers(0, len(used)))]
    arrow = f"->{out}" if data.draw(st.booleans()) else ""
    arrays = [draw(*[sizes[c] for c in term], seed=i) for i, term in enumerate(terms)]
    check(lambda *xs: np.einsum(",".join(terms) + arrow, *xs), *arrays)


def far_from_singular(*shape):
    return draw(*shape) + 4.0 * np.eye(shape[-1])


@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 3), (3,)),
        ((3, 3), (3, 2)),
        ((2, 3, 3), (2, 3, 1)),
        ((2, 3, 3), (3,)),
        ((2, 3, 3), (3, 2)),
        ((3, 3), (2, 3, 1)),
        ((1, 1), (1,)),
        ((2, 1, 2, 2), (3, 2, 2)),
    ],
)
def test_solve(a, b):
    check(np.linalg.solve, far_from_singular(*a), draw(*b))


@pytest.mark.parametrize(
    "f",
    [
        np.linalg.inv,
        np.linalg.det,
        lambda x: np.linalg.slogdet(x)[1],
        lambda x: np.linalg.slogdet(x).logabsdet,
        lambda x: np.linalg.cholesky(x @ np.swapaxes(x, -1, -2)),
        np.trace,
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (2, 3, 3), (2, 1, 2, 2)])
def test_square_matrices(f, shape):
    check(f, far_from_singular(*shape))


def test_the_sign_of_slogdet_is_plain():
    sign, logabsdet = np.linalg.slogdet(leaf(np.diag([1.0, -2.0])))
    assert not isinstance(sign, Tensor) and sign == -1.0 and logabsdet.item() == np.log(2.0)


@pytest.mark.parametrize(
    "f",
    [
        lambda t, a: t @ a,
        lambda t, a: a @ t,
        np.matmul,
        np.dot,
        lambda t, a: np.dot(a, t),
        np.inner,
        np.outer,
        lambda t, a: np.outer(a, t),
        np.tensordot,
        lambda t, a: np.tensordot(a, t, 1),
        lambda t, a: np.einsum("ij,jk->ik", t, a),
        lambda t, a: np.einsum("ij,jk->ik", a, t),
        lambda t, a: np.linalg.solve(t + 9.0 * np.eye(2, dtype=t.dtype), a),
        lambda t, a: np.linalg.solve(a, t),
        np.vdot,
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int8])
def test_plain_arrays_beside_a_tensor(f, dtype):
    t, a = (
        Tensor(np.float32([[1.0, 2.0], [0.5, -1.0]]), requires_grad=True),
        np.array([[5, 2], [1, 4]], dtype),
    )
    y = f(t, a)
    assert type(y) is Tensor and y.dtype == np.float32 and grad(np.sum(y), t)[0].dtype == np.float32
    np.testing.assert_allclose(y.data, f(t.data, a.astype(np.float32)), rtol=1e-6)


@pytest.mark.parametrize(
    "f",
    [np.dot, lambda t, a: np.dot(a, t), np.inner, np.outer, lambda t, a: np.einsum("i,->i", t, a)],
)
@pytest.mark.parametrize(
    "number", [2, 2.0, np.float64(2.0), np.int32(2), np.array(2.0, np.float32)]
)
def test_numbers_beside_a_tensor(f, number):
    y = f(Tensor(np.float32([1.0, 3.0])), number)
    assert type(y) is Tensor and y.dtype == np.float32 and np.ravel(y.data).tolist() == [2.0, 6.0]


# ----------------------------------------------------------------------------------------- functions without derivative
def arguments_of(function):
    x = np.array([[1.5, -0.25, np.nan], [0.0, np.inf, 2.5]])
    sort = np.array([0.0, 1.0, 2.0])
    two = getattr(function, "nin", 1) == 2 or function in (np.isclose, np.allclose, np.array_equal)
    return {
        np.searchsorted: (sort, x),
        np.full_like: (x, 3.0),
        np.argmax: (x[0, :2],),
        np.argmin: (x, 1),
        np.argpartition: (x, 1),
    }.get(function, (x, x[0]) if two else (x,))


@pytest.mark.parametrize("function", PLAIN, ids=lambda f: f.__name__)
def test_functions_without_derivative_give_plain_arrays(function):
    arguments = arguments_of(function)
    with np.errstate(all="ignore"):
        expected = function(*arguments)
        for which in (range(len(arguments)), [0], [len(arguments) - 1]):
            which = [i for i in which if isinstance(arguments[i], np.ndarray)]
            got = function(*[leaf(x) if i in which else x for i, x in enumerate(arguments)])
            assert type(got) is type(expected)
            if function is not np.empty_like:
                np.testing.assert_array_equal(got, expected)


def test_comparisons_and_methods_give_plain_arrays():
    x, y = leaf(X), leaf(X[::-1].copy())
    for got, expected in (
        (x < y, X < X[::-1]),
        (x <= 0.0, X <= 0.0),
        (0.0 > x, 0.0 > X),
        (x == x, X == X),
        (x != y, X != X[::-1]),
        (x >= X, X >= X),
        (x.argmax(axis=1), X.argmax(axis=1)),
        (x.argmin(), X.argmin()),
        (x.argsort(), X.argsort()),
        (x.any(), X.any()),
        (x.all(axis=0), X.all(axis=0)),
        (x.nonzero(), X.nonzero()),
    ):
        assert type(got) is type(expected)
        np.testing.assert_array_equal(got, expected)


def test_python_reads_a_tensor():
    x = leaf([[2.5]])
    assert (
        len(leaf(X)) == 3
        and bool(x)
        and x[0, 0].item() == 2.5
        and f"{x:.1f}" == "2.5"
        and "Tensor" in f"{x}"
    )
    assert (
        repr(np.exp(leaf(0.0))) == "Tensor(1., from exp)"
        and "requires_grad=True" in repr(x)
        and hash(x) == hash(x)
    )
    with pytest.raises(ValueError, match="ambiguous"):
        bool(leaf(X))


# --------------------------------------------------------------------------------------------------------------- errors
T = leaf(np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    "f, error, message",
    [
        (lambda: np.unwrap(T), TypeError, "numpy.unwrap is not in minigrad's table"),
        (lambda: np.fft.fft(T), TypeError, "fft is not in minigrad's table"),
        (lambda: np.mean(T, dtype=np.float32), TypeError, "numpy.mean: dtype= is not supported"),
        (lambda: T.sum(initial=1.0), TypeError, "sum: initial= is not supported"),
        (lambda: np.sum(T, 0, None, None, True), TypeError, "sum: out= does not take Tensors"),
        (
            lambda: np.sum(T, dtype=int),
            TypeError,
            r"sum\(float64\[2, 3\]\): dtype.*int64",
        ),
        (
            lambda: np.astype(T, int),
            TypeError,
            "astype.*int64.*floating",
        ),
        (lambda: np.mean(T, 0, np.float32), TypeError, "mean"),
        (lambda: np.mean(T, out=np.zeros(())), TypeError, "numpy.mean: out= does not take Tensors"),
        (lambda: np.where(T), TypeError, "where: 1 arguments"),
        (lambda: np.sum(T, where=T), TypeError, "where= is a Tensor"),
        (lambda: np.cumprod(T, dtype=np.float32), TypeError, "cumprod: dtype= is not supported"),
        (lambda: np.nan_to_num(T, copy=False), TypeError, "nan_to_num: copy= is not supported"),
        (lambda: np.median(T, overwrite_input=True), TypeError, "median: overwrite_input= is not"),
        (lambda: np.quantile(T, 0.5, weights=X), TypeError, "quantile: weights= is not supported"),
        (lambda: np.average(T, returned=True), TypeError, "average: returned= is not supported"),
        (lambda: np.average(T, 0, X[0]), ValueError, r"average: weights of shape \(4,\) beside"),
        (lambda: np.average(T, 0, np.zeros(2)), ZeroDivisionError, "average: weights sum to 0"),
        (lambda: np.partition(T, 1, kind="introselect"), TypeError, "partition: kind= is not"),
        (lambda: np.pad(T, 1, "linear_ramp"), ValueError, "pad: mode='linear_ramp' is not offered"),
        (
            lambda: np.pad(T, 1, "reflect", reflect_type="odd"),
            TypeError,
            "pad: reflect_type= is not",
        ),
        (lambda: np.pad(T, -1), ValueError, "pad: pad_width=-1; give whole numbers from 0 up"),
        (lambda: np.pad(T, 0.5), ValueError, "pad: pad_width=0.5; give whole numbers"),
        (lambda: np.pad(T, 1, "edge", constant_values=2), ValueError, "pad: constant_values= goes"),
        (lambda: np.pad(T, 1, constant_values=T[0, 0]), TypeError, "does not turn into an array"),
        (lambda: np.pad(T[:0], 1, "edge"), ValueError, "can't extend empty axis 0"),
        (lambda: np.repeat(T, [1, 2], axis=1), ValueError, "broadcast"),
        (lambda: np.repeat(T, 2, axis=2), IndexError, "repeat: axis 2 is out of bounds"),
        (
            lambda: np.array_split(T, 0),
            ValueError,
            "array_split: 0 sections; give a number above 0",
        ),
        (lambda: np.vsplit(T[0], 1), ValueError, r"vsplit: shape \(3,\); pass an array of 2 axes"),
        (lambda: np.dsplit(T, 1), ValueError, "dsplit: .* pass an array of 3 axes or more"),
        (lambda: np.hsplit(T[0, 0], 1), ValueError, "hsplit: .* pass an array of 1 axes or more"),
        (lambda: np.rot90(T, axes=(1, 1)), ValueError, "rot90: axes=.* must be two"),
        (lambda: np.fliplr(T[0]), IndexError, "fliplr: axis 1 is out of bounds"),
        (lambda: np.diag(T[None]), ValueError, "diag: a vector or a matrix, not an array of shape"),
        (lambda: np.append(T, [1.0]), TypeError, "append: an operand is a list"),
        (lambda: np.select([T > 0], [T, T]), ValueError, "select: 1 conditions for 2 choices"),
        (
            lambda: np.meshgrid(T[0], indexing="yx"),
            ValueError,
            "meshgrid: indexing='yx'; take 'xy'",
        ),
        (lambda: np.meshgrid(T[0], sparse=True), TypeError, "meshgrid: sparse= is not supported"),
        (lambda: np.cross(T[:, :2], T), ValueError, "cross: vectors of 2 and of 3 numbers"),
        (lambda: np.linalg.norm(T, 3), ValueError, "matrices have no norm of order 3"),
        (lambda: np.sum(T, axis=5), IndexError, r"sum\(float64\[2, 3\]\): axis 5 is out of bounds"),
        (lambda: np.mean(T, axis=5), IndexError, "axis 5 is out of bounds"),
        (lambda: np.prod(T, axis=-3), IndexError, "prod: axis -3 is out of bounds"),
        (lambda: np.diff(T, axis=2), IndexError, "diff: axis 2 is out of bounds"),
        (lambda: np.roll(T, 1, axis=2), IndexError, "roll: axis 2 is out of bounds"),
        (lambda: np.take(T, [0], axis=2), IndexError, "take: axis 2 is out of bounds"),
        (lambda: np.take(T, [9], axis=1), IndexError, "getitem.*index 9 is out of bounds"),
        (
            lambda: np.take_along_axis(T, np.zeros((2, 1), int), axis=2),
            IndexError,
            "take_along_axis: axis 2 is out of bounds",
        ),
        (lambda: np.split(T, 2, axis=2), IndexError, "split: axis 2 is out of bounds"),
        (
            lambda: np.split(T, 4, axis=1),
            ValueError,
            "3 entries along axis 1 do not make 4 equal sections",
        ),
        (lambda: np.rollaxis(T, 0, 3), IndexError, "rollaxis: axis 3 is out of bounds"),
        (lambda: np.flip(T, 2), IndexError, "flip: axis 2 is out of bounds"),
        (lambda: np.sort(T, axis=2), IndexError, "axis 2 is out of bounds"),
        (lambda: np.stack([T, T], axis=4), IndexError, "axis 4 is out of bounds"),
        (
            lambda: np.stack([T, T[:1]]),
            ValueError,
            r"concatenate\(float64\[1, 2, 3\], float64\[1, 1, 3\]\)",
        ),
        (lambda: np.concatenate([T, T[0]]), ValueError, "concatenate"),
        (
            lambda: np.concatenate([T, [[1.0, 2.0, 3.0]]]),
            TypeError,
            "concatenate: an operand is a list",
        ),
        (lambda: np.vstack([T, [1.0, 2.0, 3.0]]), TypeError, "vstack: an operand is a list"),
        (lambda: np.expand_dims(T, (0, 0)), ValueError, "expand_dims: an axis is repeated"),
        (
            lambda: np.squeeze(T, 0),
            ValueError,
            r"squeeze: axis 0 of shape \(2, 3\) is not of length 1",
        ),
        (lambda: np.moveaxis(T, 0, (0, 1)), ValueError, "moveaxis: 1 axes to move, 2 places"),
        (lambda: np.swapaxes(T, 0, 2), IndexError, "swapaxes: axis 2 is out of bounds"),
        (lambda: np.reshape(T, (4, 2)), ValueError, r"reshape\(float64\[2, 3\]\): cannot reshape"),
        (lambda: T.reshape(4, -1), ValueError, "reshape"),
        (lambda: np.diagonal(T[0]), IndexError, "diagonal: axis 1 is out of bounds"),
        (lambda: T @ T, ValueError, r"matmul\(float64\[2, 3\], float64\[2, 3\]\)"),
        (lambda: T @ np.ones((2, 2)), ValueError, r"matmul\(float64\[2, 3\], float64\[2, 2\]\)"),
        (lambda: T @ 2.0, ValueError, "matmul"),
        (lambda: T @ [1.0, 2.0, 3.0], TypeError, "matmul: an operand is a list"),
        (lambda: np.dot(T, T), ValueError, "matmul"),
        (
            lambda: np.tensordot(T, T, 1),
            ValueError,
            r"tensordot: axis 1 of shape \(2, 3\) and axis 0 of shape .* differ",
        ),
        (
            lambda: np.tensordot(T, T, ((0, 1), (0,))),
            ValueError,
            "tensordot: 2 axes of the one operand against 1",
        ),
        (
            lambda: np.tensordot(T, T, ((0,), (2,))),
            IndexError,
            "tensordot: axis 2 is out of bounds",
        ),
        (
            lambda: np.einsum("ij,jk->ik", T, T),
            ValueError,
            "einsum: label 'j' is 3 long in one operand and 2 in another",
        ),
        (lambda: np.einsum("ij,jk->ik", T), ValueError, "names 2 operands, 1 were given"),
        (
            lambda: np.einsum("ijk->i", T),
            ValueError,
            r"einsum: 'ijk->i' names 3 axes of an operand of shape \(2, 3\)",
        ),
        (lambda: np.einsum("i->i", T), ValueError, r"names 1 axes of an operand of shape \(2, 3\)"),
        (
            lambda: np.einsum("ij->ik", T),
            ValueError,
            "einsum: the output of 'ij->ik' must have labels",
        ),
        (lambda: np.einsum("ij->ii", T), ValueError, "einsum: the output"),
        (lambda: np.einsum("...j->j", T), ValueError, "einsum: the output"),
        (
            lambda: np.einsum("ii->i", T),
            ValueError,
            "einsum: label 'i' is 2 long in one operand and 3 in another",
        ),
        (
            lambda: np.einsum("ii->i", T[:1]),
            ValueError,
            "einsum: label 'i' is 1 long in one place and 3 in another",
        ),
        (lambda: np.einsum(T, T), TypeError, "the subscripts are a string"),
        (lambda: np.einsum("ij,j", T, [1, 2, 3]), TypeError, "einsum: an operand is a list"),
        (lambda: np.linalg.solve(T, T), np.linalg.LinAlgError, r"solve\(float64\[2, 3\]"),
        (lambda: np.linalg.inv(T), np.linalg.LinAlgError, "inv"),
        (
            lambda: np.linalg.inv(np.zeros((2, 2)) * T[:, :2]),
            np.linalg.LinAlgError,
            r"inv\(float64\[2, 2\]\): Singular",
        ),
        (
            lambda: np.linalg.cholesky(-1.0 - T[:, 1:]),
            np.linalg.LinAlgError,
            "cholesky.*positive definite",
        ),
        (lambda: np.max(leaf(np.zeros(0))), ValueError, r"max\(float64\[0\]\): zero-size"),
        (lambda: T[5], IndexError, r"getitem\(float64\[2, 3\]\): index 5 is out of bounds"),
        (lambda: T["a"], IndexError, "getitem"),
        (lambda: T + "a", TypeError, "add: an operand is a str"),
        (lambda: len(leaf(1.0)), TypeError, "unsized"),
    ],
)
def test_errors_name_the_operation_and_the_shapes(f, error, message):
    with pytest.raises(error, match=message):
        f()


# ----------------------------------------------------------------------------------------------------------- functional
@pytest.mark.parametrize(
    "f",
    [
        functional.logsumexp,
        lambda x: functional.logsumexp(x, axis=1),
        lambda x: functional.logsumexp(x, axis=(0, -1), keepdims=True),
        lambda x: functional.softmax(x, axis=1),
        functional.log_softmax,
        functional.softplus,
        functional.relu,
        lambda x: functional.polygamma(2, x * x + 0.5),
    ],
)
def test_what_scipy_does_not_dispatch(f):
    check(f, CUBE)


def test_every_function_here_has_been_tried():
    """Names in IMPLEMENTATIONS that no test here, of samples.py, of matrices.py or of the table mentions."""
    here = Path(__file__)
    files = [here, here.with_name("test_samples.py"), here.with_name("test_matrices.py")]
    text = "".join(file.read_text("utf-8") for file in files)
    for function, call in IMPLEMENTATIONS.items():
        name = function.__name__
        mentioned = f".{name}" in text or f'"{name}"' in text
        assert mentioned or call in PRIMITIVES.values() or function in PLAIN, name
