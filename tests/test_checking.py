"""The tester tested: gradcheck must let right rules pass, and notice every kind of wrong one."""

import re
import runpy
import sys
import warnings

import numpy as np
import pytest

from minigrad import backward, checking, functional
from minigrad.checking import EXAMPLES, GradientError, check_primitive, gradcheck, main
from minigrad.count_likelihoods import nb_cell_log_prob
from minigrad.example_inputs import ELEMENTWISE, Domain, Drawn, Example, elementwise, real
from minigrad.fused import Fused, fuse
from minigrad.table import PRIMITIVES, primitive
from minigrad.tensor import IMPLEMENTATIONS, Tensor

A = np.array([[0.5, -1.2, 2.0], [1.5, 0.3, -0.7]])
B = np.array([[1.1, 0.4, -0.6], [-0.9, 2.0, 0.8]])
SQUARE = np.array([[0.5, -1.2], [1.5, 0.3]])


@pytest.fixture
def table():
    """Primitives made in a test are gone after it."""
    before = [(d, dict(d)) for d in (PRIMITIVES, IMPLEMENTATIONS, EXAMPLES, ELEMENTWISE)]
    yield
    for d, kept in before:
        d.clear()
        d.update(kept)


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_right_rules_pass_and_the_errors_are_told():
    errors = gradcheck(lambda a, b: np.exp(a) * np.sin(b) / (2.0 + np.cos(a @ b.T @ a)), A, B)
    assert len(errors) == 2 and all(0.0 < error < 1e-8 for error in errors)
    assert len(gradcheck(np.exp, A, order=1)) == 1


def test_tensors_numbers_lists_and_integers_are_inputs_too():
    gradcheck(
        lambda a, b, c, d: a * b + c * d,
        Tensor(A, requires_grad=True),
        2,
        [1, 2, 3],
        Tensor(np.float32([1.0])),
    )
    with pytest.raises(ValueError, match="order"):
        gradcheck(np.exp, A, order=3)
    with pytest.raises(ValueError, match="no inputs"):
        gradcheck(lambda: Tensor(1.0))


def test_empty_and_0_d():
    assert gradcheck(lambda a, b: a * b, np.zeros((0, 3)), np.ones(3)) == [0.0, 0.0]
    gradcheck(lambda a: a**3, np.array(1.5))


@pytest.mark.parametrize("x", [np.array([1e-6, 1.0, 1e5]), np.array([1e-4]), np.array([1e6, 1e8])])
def test_very_small_and_large_inputs(x):
    gradcheck(np.log, x)
    gradcheck(lambda x: x**1.5, x)


@pytest.mark.parametrize(
    "f",
    [np.square, lambda x: x**3, np.prod, lambda x: x - x, lambda x: np.where(x > 0, x, 0.0) ** 3],
)
def test_slopes_of_0_are_slopes(f):
    gradcheck(f, np.zeros(4), order=1)


@pytest.mark.parametrize(
    "f",
    [
        lambda x: np.sum(functional.softmax(x)),
        lambda x: 1.0 + np.sum(x - np.mean(x)),
        lambda x: np.log(np.exp(x)) - x + 1.0,
        lambda x: np.sum(
            functional.batch_norm(x + np.mean(x, axis=0), np.ones(3), np.ones(3))[0] ** 2
        ),
    ],
)
def test_gradients_of_which_only_rounding_is_left(f):
    gradcheck(f, A)


def test_a_whole_model():
    """Linear, batch norm (which makes the first bias idle), ReLU, softmax, likelihood of counts."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (12, 6)).astype(float)
    log_library = np.log(counts.sum(axis=1, keepdims=True))

    def loss(weight_1, bias_1, scale, shift, weight_2, bias_2, log_theta):
        hidden = functional.linear(np.log1p(counts), weight_1, bias_1)
        hidden = functional.relu(functional.batch_norm(hidden, scale, shift)[0])
        log_rho = functional.log_softmax(functional.linear(hidden, weight_2, bias_2))
        return -np.mean(nb_cell_log_prob(counts, log_rho + log_library, log_theta))

    gradcheck(loss, *[rng.normal(size=shape) for shape in ((8, 6), 8, 8, 8, (6, 8), 6, 6)])


# -------------------------------------------------------------------------------------- wrong rules
def product(a, b):
    return a * b


def wrong_product(rule_a, rule_b):
    return primitive(lambda a, b: a * b, rule_a, rule_b, name="wrong product")


def test_the_right_product_passes(table):
    gradcheck(wrong_product(lambda g, y, a, b: g * b, lambda g, y, a, b: g * a), A, B[0])


@pytest.mark.parametrize("factor", [1.001, 0.999, 0.0, -1.0, 2.0, 1.0 + 1e-5])
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("b", [B, B[0], B[:, :1], np.array(0.7)])
def test_a_scaled_or_zero_rule_is_noticed_and_the_input_named(table, factor, at, b):
    rules = [lambda g, y, a, b: g * b, lambda g, y, a, b: g * a]
    right = rules[at]
    rules[at] = lambda g, y, a, b: factor * right(g, y, a, b)
    with pytest.raises(GradientError, match=f"first derivative with respect to input {at} "):
        gradcheck(wrong_product(*rules), A, b)


def test_swapped_rules_are_noticed(table):
    with pytest.raises(GradientError, match="input 0"):
        gradcheck(wrong_product(lambda g, y, a, b: g * a, lambda g, y, a, b: g * b), A, B)


def test_a_transposed_rule_is_noticed(table):
    wrong = primitive(
        lambda a, b: a @ b,
        lambda g, y, a, b: g @ b,
        lambda g, y, a, b: np.swapaxes(a, 0, 1) @ g,
        name="wrong @",
    )
    with pytest.raises(GradientError, match="input 0"):
        gradcheck(wrong, SQUARE, SQUARE + 1.0)
    wrong = primitive(lambda a: a * 2.0, lambda g, y, a: np.transpose(g) * 2.0, name="wrong shape")
    for x in (A, SQUARE):
        with pytest.raises(GradientError, match="input 0"):
            gradcheck(wrong, x)
    wrong = primitive(lambda a: a * 2.0, lambda g, y, a: g[:1] * 2.0, name="half a gradient")
    with pytest.raises(GradientError, match="input 0 .*could not be computed: ValueError"):
        gradcheck(wrong, A)


@pytest.mark.parametrize("shapes", [((3,), (2, 3)), ((2, 1), (2, 3)), ((), (2, 3))])
def test_broadcasting_not_undone_is_noticed(monkeypatch, shapes):
    arrays = [np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape) for shape in shapes]
    gradcheck(product, *arrays)
    monkeypatch.setattr(backward, "unbroadcast", lambda g, shape: g)
    with pytest.raises(
        GradientError, match=r"input 0 .*shape \(2, 3\), the input is float64 of shape"
    ):
        gradcheck(product, *arrays)


def test_broadcasting_undone_over_the_wrong_axis_is_noticed(monkeypatch):
    monkeypatch.setattr(backward, "unbroadcast", lambda g, shape: np.sum(g, axis=-1))
    with pytest.raises(GradientError, match="input 0"):
        gradcheck(product, SQUARE[0], SQUARE)


def test_a_rule_that_is_right_once_but_not_twice_is_noticed(table):
    def plain(x):
        return x.data if isinstance(x, Tensor) else x

    wrong = primitive(lambda x: x**3, lambda g, y, x: g * 3.0 * plain(x) ** 2, name="wrong cube")
    gradcheck(wrong, A, order=1)
    with pytest.raises(GradientError, match="second derivative with respect to input 0"):
        gradcheck(wrong, A)


def test_a_twin_that_differs_is_noticed(table):
    def kernel(twin):
        return fuse(
            twin,
            lambda needs, x: (x**3, None),
            lambda g, y, saved, needs, x: [3.0 * g * x * x],
            "kernel",
        )

    gradcheck(kernel(lambda x: x**3), A)
    for twin in (lambda x: 1.001 * x**3, lambda x: x**3 + x):
        with pytest.raises(GradientError, match="input 0"):
            gradcheck(kernel(twin), A)
    with pytest.raises(GradientError, match="the rule of kernel.*its twin cuts the graph"):
        gradcheck(kernel(lambda x: Tensor(x.data**3)), A)


def test_one_wrong_entry_of_many_is_noticed(table):
    def rule(g, y, x):
        return g * np.where(np.arange(len(x)) == 7, 2.002, 2.0)

    with pytest.raises(GradientError):
        gradcheck(primitive(lambda x: 2.0 * x, rule, name="double"), np.linspace(1.0, 2.0, 50))


def test_a_rule_wrong_on_small_entries_beside_large_ones_is_noticed(table):
    wrong = primitive(
        lambda x: x**2, lambda g, y, x: g * np.where(np.abs(x) < 1.0, 0.0, 2.0 * x), name="wrong"
    )
    x = np.array([1000.0, 0.1])
    for f in (wrong, lambda x: np.sum(wrong(x))):
        with pytest.raises(GradientError, match=r"at entry \(1,\) of the input.* rules give 0 "):
            gradcheck(f, x)
        gradcheck(f, x[:1])


def test_a_rule_wrong_on_a_small_output_is_noticed(table):
    scale = np.array([1.0, 1e-6])
    right = primitive(lambda x: x * scale, lambda g, y, x: g * scale, name="right")
    gradcheck(right, np.ones(2))
    wrong = primitive(
        lambda x: x * scale, lambda g, y, x: g * scale * np.array([1.0, 1.001]), name="wrong"
    )
    with pytest.raises(
        GradientError, match=r"for entry \(1,\) of the output.*quotients give 1e-06"
    ):
        gradcheck(wrong, np.ones(2))


@pytest.mark.parametrize("x", [1e-10, 1e-100, 1e-3])
def test_a_wrong_rule_at_a_tiny_input_is_noticed(table, x):
    gradcheck(np.log, np.array([x]))
    wrong = primitive(np.log, lambda g, y, x: 2.0 * g / x, name="wrong log")
    with pytest.raises(GradientError, match="relative error 5.0e-01"):
        gradcheck(wrong, np.array([x]))


@pytest.mark.parametrize("x", [0.0, 1e-9, 1e-8, 1e-7, 1e-6])
def test_a_wrong_rule_of_a_steep_function_is_noticed(table, x):
    def f(x):
        return np.tanh(1e7 * x)

    gradcheck(f, np.array([x]))
    with pytest.raises(GradientError, match="relative error 1.0e.00"):
        gradcheck(primitive(f, lambda g, y, x: 0.0 * g, name="wrong"), np.array([x]))


@pytest.mark.parametrize("f", [lambda x: 1.0 / x, lambda x: x * np.log(x), lambda x: x**3])
@pytest.mark.parametrize("n", [3, 12, 50])
def test_right_rules_over_12_decades_pass(f, n):
    assert max(gradcheck(f, np.logspace(-6.0, 5.0, n))) < 1e-8


def test_what_drowns_in_rounding_is_told(table):
    """exp(-25) beside exp(0): its slope changes the sum by 1e-11 of it."""
    with pytest.warns(UserWarning, match="could not be judged in 1 of 2 slopes"):
        gradcheck(lambda x: np.sum(np.exp(x)), np.array([0.0, -25.0]), order=1)


def test_small_terms_of_a_sum_are_seen_by_longer_steps(table):
    """The slope of 1e-10 in 1000 + 1e-10 is 1: a step of 1e-12 would show nothing."""
    x = np.array([1000.0, 1e-10])
    gradcheck(np.sum, x)
    wrong = primitive(
        np.sum, lambda g, y, x, axis=None: g * np.array([1.0, 1.001]), name="wrong sum"
    )
    with pytest.raises(GradientError, match=r"at entry \(1,\) of the input"):
        gradcheck(wrong, x)


@pytest.mark.parametrize("what", ["g", "y", "x"])
@pytest.mark.parametrize("around", [lambda f: f, lambda f: lambda x: np.sum(3.0 * f(np.sin(x)))])
def test_a_rule_that_writes_into_what_it_is_given_is_noticed(table, what, around):
    def rule(g, y, x):
        into = {"g": g, "y": y, "x": x}[what]
        into *= 1.0
        return 2.0 * g * x

    square = primitive(lambda x: x**2, rule, name="spoiler")
    with pytest.raises(GradientError, match="rule of spoiler writes into an array"):
        gradcheck(around(square), A, order=1)


def test_a_kernel_that_spoils_what_it_kept_is_noticed(table):
    def joint(g, y, saved, needs, x):
        found = 2.0 * g * saved
        saved *= 3.0
        return [found]

    kernel = fuse(lambda x: x**2, lambda needs, x: (x**2, x.copy()), joint, "spoiler")
    for f in (kernel, lambda x: np.sum(kernel(x))):
        with pytest.raises(GradientError, match="input 0"):
            gradcheck(f, A, order=1)


def test_what_gradcheck_is_given_stays_as_it_is(table):
    """The arrays of the user are neither changed nor made read-only."""
    x, b = A.copy(), B.copy()
    gradcheck(lambda x: x * b + np.sin(b) @ np.transpose(b) @ x, x)
    assert x.flags.writeable and b.flags.writeable
    assert np.array_equal(x, A) and np.array_equal(b, B)


# Rules that these changes leave right: steps are flat, and the derivative of cholesky is symmetric.
STEPS = (
    "sign",
    "floor",
    "ceil",
    "trunc",
    "rint",
    "round",
    "floor_divide",
    "imag",
    "slope_of_absolute",
)
HARMLESS = {
    ("swapped", "add"),
    ("transposed", "cholesky"),
    *((how, name) for how in ("scaled", "zero", "swapped", "transposed") for name in STEPS),
}


def spoilt(call, how):
    """What to set on a primitive to change one of its rules: (attribute, value) for each rule."""
    changed = CHANGES[how]
    wanted = {
        i for e in EXAMPLES[call.__name__] for i, x in enumerate(e.inputs) if isinstance(x, Drawn)
    }
    if isinstance(call, Fused):

        def joint(i, right=call.joint):
            def whole(g):
                return g(None) if callable(g) else g

            return lambda *a, **k: [
                changed(whole(g)) if i == j and g is not None else g
                for j, g in enumerate(right(*a, **k))
            ]

        return [("joint", joint(i)) for i in sorted(wanted)] if changed else []
    if how == "swapped":
        return (
            [("rules", call.rules[::-1])] if len(call.rules) == 2 and None not in call.rules else []
        )
    return [
        (
            "rules",
            tuple(
                (lambda *a, right=rule, **k: changed(right(*a, **k))) if i == j else rule
                for j, rule in enumerate(call.rules)
            ),
        )
        for i, chosen in enumerate(call.rules)
        if chosen and i in wanted
    ]


CHANGES = {
    "scaled": lambda g: 1.001 * g,
    "zero": lambda g: 0.0 * g,
    "swapped": None,
    "transposed": lambda g: np.transpose(g) if g.ndim > 1 else np.flip(g),
}


# ------------------------------------------------------------------------------- mixed scales
SCALES = [(-6, 3), (-3, -3), (-2, 2)]  # of inputs: powers of ten, drawn between these


def mixed_inputs(name, rng):
    """A function of the table, and inputs of it whose entries differ by many powers of ten."""
    example = EXAMPLES[name][rng.integers(len(EXAMPLES[name]))]
    arrays = example.drawn(rng.random)
    lowest, highest = SCALES[rng.integers(len(SCALES))]
    arrays = [x * 10.0 ** rng.uniform(lowest, highest, x.shape) for x in arrays]
    return example.function(PRIMITIVES[name]), arrays


MIXED = ["multiply", "divide", "matmul", "sum", "cumsum", "square", "log", "sin", "concatenate"]
SPOILS = {
    "scaled": lambda g, at: np.where(at, 1.001 * g, g),
    "zero": lambda g, at: np.where(at, 0.0, g),
    "negative": lambda g, at: np.where(at, -g, g),
}


@pytest.mark.parametrize("name", MIXED)
def test_right_rules_pass_and_one_wrong_entry_is_noticed_at_mixed_scales(name, monkeypatch):
    """One entry of one gradient is spoilt, at random: by whatever it is small beside others."""
    rng = np.random.default_rng([7, *name.encode()])
    call = PRIMITIVES[name]
    n_checked = 0
    while n_checked < 6:
        f, arrays = mixed_inputs(name, rng)
        if not min(f(*[Tensor(x) for x in arrays]).size, *(x.size for x in arrays)):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a few slopes may drown in rounding
            gradcheck(f, *arrays)
        how = list(SPOILS)[n_checked % 3]
        n_checked += 1
        which = rng.random()

        def spoilt(self, node, g, record, right=call.gradients, how=how, which=which):
            found = right(node, g, record)
            i = next(i for i, dx in enumerate(found) if dx is not None)
            dx = np.asarray(found[i])
            at = np.arange(dx.size).reshape(dx.shape) == int(which * dx.size)
            return [*found[:i], SPOILS[how](dx, at), *found[i + 1 :]]

        with monkeypatch.context() as patch:
            patch.setattr(type(call), "gradients", spoilt)
            with pytest.raises(GradientError, match="is wrong"):
                gradcheck(f, *arrays, order=1)


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_a_wrong_rule_anywhere_in_the_table_is_noticed(name, how, monkeypatch):
    """Each rule of each primitive, spoilt: the walk over the table must notice."""
    call = PRIMITIVES[name]
    for attribute, value in spoilt(call, how) if (how, name) not in HARMLESS else []:
        with monkeypatch.context() as patch:
            patch.setattr(call, attribute, value)
            with pytest.raises(GradientError, match=re.escape(name)):
                check_primitive(name)


# ----------------------------------------------------------------------------------------- messages
def test_the_message_names_input_entries_and_both_values(table):
    wrong = primitive(
        lambda a, b: a * b, lambda g, y, a, b: g * b, lambda g, y, a, b: 1.5 * g * a, name="wrong *"
    )
    with pytest.raises(GradientError) as caught:
        gradcheck(lambda a, b: np.sum(wrong(a, b)), np.array([2.0]), np.array([[0.25]]))
    message = str(caught.value)
    assert isinstance(caught.value, AssertionError)
    assert "first derivative with respect to input 1 (shape (1, 1)) is wrong" in message
    assert "at entry (0, 0) of the input, for entry () of the output" in message
    assert "difference quotients give 2, the rules give 3 (relative error 3.3e-01" in message


def test_the_message_of_second_order_names_the_entry_of_the_gradient(table):
    """a b, with d/da of the gradient for b doubled."""
    wrong = primitive(
        lambda a, b: a * b,
        lambda g, y, a, b: g * b,
        lambda g, y, a, b: g * (2.0 * a - Tensor(a.data)) if isinstance(a, Tensor) else g * a,
        name="wrong *",
    )
    with pytest.raises(
        GradientError,
        match=r"second derivative with respect to input 0 \(shape \(2,\)\) is wrong at entry "
        r"\((.),\) of the input, for entry \(\1,\) of the gradient for input 1: ",
    ):
        gradcheck(wrong, A[0, :2], B[0, :2])


def test_another_seed_is_another_combination_of_many_entries(table):
    wrong = primitive(lambda a: a * 1.0, lambda g, y, a: 2.0 * g, name="wrong 1")
    messages = []
    for seed in (0, 0, 1):
        with pytest.raises(GradientError) as caught:
            gradcheck(wrong, np.linspace(1.0, 2.0, 50), seed=seed)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] != messages[2]
    assert re.search(r"at entry \(\d+,\) of the input and [56] more, for entry", messages[0])


# ------------------------------------------------------------------------ points without derivative
@pytest.mark.parametrize(
    "f, x",
    [
        (np.abs, np.array([1.0, 0.0, -2.0])),
        (functional.relu, np.array([0.0, 1.0])),
        (lambda x: np.maximum(x, 1.0), np.array([0.0, 1.0, 2.0])),
        (np.sort, np.array([1.0, 1.0, 3.0])),
        (lambda x: np.clip(x, -1.0, 1.0), np.array([-1.0, 0.5])),
        (np.sign, np.array([0.0, 1.0])),
        (lambda x: np.where(x > 1.0, x, 2.0 * x - 1.0), np.array([1.0 + 1e-12, 3.0])),
    ],
)
def test_kinks_and_ends_are_a_warning_that_names_the_input(f, x):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gradcheck(lambda a, b: a * f(b), np.array(1.5), x)
    assert all(each.category is UserWarning and each.filename == __file__ for each in caught)
    assert re.search(
        "first derivative with respect to input 1 .*does not exist here", str(caught[0].message)
    )


@pytest.mark.parametrize(
    "f, x",
    [
        (np.abs, np.zeros(3)),
        (functional.relu, np.zeros(3)),
        (np.max, np.array([2.0, 2.0, 1.0])),
        (np.linalg.norm, np.zeros(2)),
        (np.std, np.ones(3)),
        (lambda x: x**0.5, np.array([0.0])),
        (lambda x: 1e14 + x, np.array([1.0])),
    ],
)
def test_where_nothing_can_be_judged_is_an_error(f, x):
    with pytest.raises(GradientError, match="nothing could be judged of the first .* input 1 "):
        gradcheck(lambda a, b: a * f(b), np.array(1.5), x)


def test_second_derivatives_of_which_nothing_was_judged_are_not_called_perfect():
    """The only output has a kink, so no second derivative is asked for."""
    with pytest.warns(UserWarning) as notes:
        first, second = gradcheck(lambda x: np.sum(np.abs(x)), np.array([0.0, 1.0]))
    assert first < 1e-9 and np.isnan(second)
    said = [str(note.message) for note in notes]
    assert "does not exist here" in said[0]
    assert "nothing could be judged of the second derivative" in said[1]
    assert all(note.filename == __file__ for note in notes)


def test_an_infinite_slope_is_left_out():
    with pytest.warns(UserWarning, match="1 of 2 entries of the output"):
        gradcheck(lambda a, b: a * np.sqrt(b), np.array(1.5), np.array([0.0, 1.0]), order=1)


def test_a_kink_close_by_is_no_kink(table):
    """Steps are relative to the entry: 1e-9 is far from 0."""

    def f(x):
        return np.where(x > 0.0, x, 2.0 * x)

    gradcheck(f, np.array([1e-9]))
    wrong = primitive(f, lambda g, y, x: g * 1.001, name="wrong")
    with pytest.raises(GradientError, match="is wrong"):
        gradcheck(wrong, np.array([1e-9]))


def test_the_smooth_entries_beside_a_kink_are_still_checked(table):
    wrong = primitive(
        np.abs, lambda g, y, x: g * np.where(x > 1.5, 1.001, np.sign(x)), name="wrong abs"
    )
    with (
        pytest.warns(UserWarning, match="1 of 3 entries"),
        pytest.raises(GradientError, match="is wrong"),
    ):
        gradcheck(wrong, np.array([1.0, 0.0, 2.0]))


def test_a_kink_of_the_gradient_is_seen_at_second_order():
    with pytest.warns(UserWarning, match="second derivative with respect to input 0"):
        gradcheck(lambda x: np.where(x > 0.0, x, 0.0) ** 2, np.array([0.0, 1.0]))


def test_kinks_nearby_are_stepped_around():
    gradcheck(np.abs, np.array([1e-3, -1e-5, 1.0]))
    gradcheck(lambda x: np.sum(np.maximum(x, 0.0)) ** 2, np.linspace(-1.0, 1.0, 400))


# ----------------------------------------------------------------------------- what else can be off
@pytest.mark.parametrize(
    "f, x, message",
    [
        (lambda x: x.data, A, "returned a ndarray"),
        (lambda x: x.astype(np.float32), A, "returned float32"),
        (np.log, -A, "output of f has .* entries that are not finite"),
        (np.exp, np.array([1.0, np.nan]), "input 0 has 1 of 2 entries"),
        (lambda x: np.sum(Tensor(x.data) * 2.0), A, "no graph leads"),
        (lambda x: x * 1.0 + Tensor(x.data), A, "is wrong"),
        (lambda x: x * np.random.default_rng().random(), A, "two different results"),
        (lambda x: (x.astype(np.float32) ** 2).astype(np.float64), A, "is wrong|cannot be judged"),
    ],
)
def test_other_errors_say_what_is_wrong(f, x, message):
    with (
        np.errstate(all="ignore"),
        warnings.catch_warnings(),
        pytest.raises(GradientError, match=message),
    ):
        warnings.simplefilter("ignore")  # rounding to float32 looks like kinks too
        gradcheck(f, x)


@pytest.mark.parametrize("size, speed", [(1e-2, 1e15), (1e-2, 1e7), (1e-6, 1e12)])
def test_noise_is_not_judged(size, speed):
    """A ripple that no step resolves: what is slope and what is noise cannot be told apart."""
    with pytest.raises(GradientError, match="is wrong|cannot be judged|nothing could be judged"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gradcheck(lambda x: x + Tensor(size * np.sin(speed * x.data)), np.array([1.0, 1.5]))


def test_steps_that_do_not_settle_are_an_error():
    """Where no two steps agree, and yet points close together show no noise."""

    def stairs(x):
        return x + Tensor(np.round(x.data * 2.0**20) / 2.0**20)

    with pytest.raises(GradientError, match="input 0"):
        gradcheck(stairs, np.array([1.1, 1.5]))


def test_a_gradient_that_is_not_finite_is_an_error(table):
    wrong = primitive(
        lambda x: x * x, lambda g, y, x: g * np.where(x > 1.0, np.nan, 2.0 * x), name="nan"
    )
    with pytest.raises(GradientError, match="input 0 .* entries that are not finite"):
        gradcheck(wrong, A)


def test_a_gradient_of_another_dtype_or_shape_is_an_error(monkeypatch):
    monkeypatch.setattr(
        checking, "grad", lambda y, xs, c, **_: [np.zeros(x.shape, np.float32) for x in xs]
    )
    with pytest.raises(GradientError, match="comes as float32"):
        gradcheck(np.exp, A)
    monkeypatch.setattr(
        checking, "grad", lambda y, xs, c, **_: [np.zeros((1, *x.shape)) for x in xs]
    )
    with pytest.raises(GradientError, match="shape"):
        gradcheck(np.exp, A)


def test_an_input_without_influence_is_a_warning():
    with pytest.warns(UserWarning, match="does not depend on input 1"):
        gradcheck(lambda a, b: np.exp(a), A, B)


def test_errors_of_f_itself_come_through():
    with pytest.raises(ValueError, match="matmul"):
        gradcheck(lambda a: a @ a, A)


# ---------------------------------------------------------------------------------- the whole table
def test_the_walk_says_that_all_is_right(capsys):
    assert main() == 0
    text = capsys.readouterr().out
    assert all(
        re.search(rf"^{name} +\d+ +\d\.\de.\d\d +\d\.\de.\d\d$", text, re.M) for name in PRIMITIVES
    )
    n_examples = sum(len(EXAMPLES[name]) for name in PRIMITIVES)
    assert f"{len(PRIMITIVES)} primitives, {n_examples} examples in " in text
    assert text.endswith("all are right\n") and "note" not in text


def test_the_walk_notes_what_could_not_be_judged(table, capsys):
    for name in set(PRIMITIVES) - {"absolute", "exp"}:
        del PRIMITIVES[name]
    half_at_zero = Domain(lambda u: np.arange(u.size, dtype=float).reshape(u.shape))
    EXAMPLES["absolute"] = [Example((half_at_zero(2),))]
    assert main() == 0
    assert re.search(
        "^absolute +1 .*\n    note: gradcheck: .*does not exist here: 1 of 2 ",
        capsys.readouterr().out,
        re.M,
    )


def test_a_primitive_without_an_example_is_listed(table, monkeypatch, capsys):
    primitive(lambda x: 2.0 * x, lambda g, y, x: 2.0 * g, name="unchecked")
    for name in set(PRIMITIVES) - {"exp", "unchecked"}:
        del PRIMITIVES[name]
    assert main() == 1
    text = capsys.readouterr().out
    assert re.search("^unchecked +NO EXAMPLE", text, re.M) and "1 WRONG OR UNCHECKED" in text
    elementwise("unchecked", real)  # one line
    assert main() == 0


def test_a_wrong_primitive_is_listed(table, monkeypatch, capsys):
    for name in set(PRIMITIVES) - {"exp", "log"}:
        del PRIMITIVES[name]
    monkeypatch.setattr(PRIMITIVES["exp"], "rules", (lambda g, y, x: 1.001 * g * y,))
    assert main() == 1
    text = capsys.readouterr().out
    assert re.search("^exp +.*WRONG .*input 0", text, re.M) and re.search(
        r"^log .*e-\d\d$", text, re.M
    )


def test_a_question_for_help_checks_nothing(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0 and "difference quotients" in text
    assert "examples in" not in text
    with pytest.raises(SystemExit) as caught:
        main(["exp"])
    assert caught.value.code == 2 and "examples in" not in capsys.readouterr().out


def test_python_m_ends_with_the_status(table, monkeypatch):
    for name in set(PRIMITIVES) - {"exp"}:
        del PRIMITIVES[name]
    monkeypatch.setattr(sys, "argv", ["checking.py"])
    monkeypatch.delitem(sys.modules, "minigrad.checking")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("minigrad.checking", run_name="__main__")
    assert caught.value.code == 0
