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
from minigrad.example_inputs import ELEMENTWISE, Drawn, elementwise, real
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
    for twin in (lambda x: 1.001 * x**3, lambda x: x**3 + x, lambda x: Tensor(x.data**3)):
        with pytest.raises(GradientError, match="input 0"):
            gradcheck(kernel(twin), A)


def test_one_wrong_entry_of_many_is_noticed(table):
    def rule(g, y, x):
        return g * np.where(np.arange(len(x)) == 7, 2.002, 2.0)

    with pytest.raises(GradientError):
        gradcheck(primitive(lambda x: 2.0 * x, rule, name="double"), np.linspace(1.0, 2.0, 50))


# Rules that these changes leave right: sign is flat, and the derivative of cholesky is symmetric.
HARMLESS = {
    ("scaled", "sign"),
    ("zero", "sign"),
    ("swapped", "add"),
    ("transposed", "sign"),
    ("transposed", "cholesky"),
}


def spoilt(call, how):
    """What to set on a primitive to change one of its rules: (attribute, value) for each rule."""
    changed = CHANGES[how]
    if isinstance(call, Fused):
        wanted = {
            i
            for e in EXAMPLES[call.__name__]
            for i, x in enumerate(e.inputs)
            if isinstance(x, Drawn)
        }

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
        if chosen
    ]


CHANGES = {
    "scaled": lambda g: 1.001 * g,
    "zero": lambda g: 0.0 * g,
    "swapped": None,
    "transposed": lambda g: np.transpose(g) if g.ndim > 1 else np.flip(g),
}


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
def test_the_message_names_input_direction_and_both_values(table):
    wrong = primitive(
        lambda a, b: a + b, lambda g, y, a, b: g, lambda g, y, a, b: 1.5 * g, name="wrong +"
    )
    with pytest.raises(GradientError) as caught:
        gradcheck(lambda a, b: np.sum(wrong(a, b)), np.array([1.0, 2.0]), np.array([0.25, 0.5]))
    message = str(caught.value)
    assert isinstance(caught.value, AssertionError)
    assert "first derivative with respect to input 1 (shape (2,))" in message
    direction = [float(x) for x in re.search(r"direction \[(.*?)\]", message)[1].split(",")]
    numeric, analytic = [
        float(re.search(rf"{who} give (-?[\d.e-]+)", message)[1]) for who in ("quotients", "rules")
    ]
    assert analytic == pytest.approx(1.5 * numeric)
    assert abs(numeric) == pytest.approx(abs(sum(direction)) * abs(numeric / sum(direction)))
    assert 0.5 <= abs(numeric / sum(direction)) <= 1.5  # the cotangent


def test_another_seed_is_another_direction(table):
    wrong = primitive(lambda a: a * 1.0, lambda g, y, a: 2.0 * g, name="wrong 1")
    messages = []
    for seed in (0, 0, 1):
        with pytest.raises(GradientError) as caught:
            gradcheck(wrong, A, seed=seed)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] != messages[2]


# ------------------------------------------------------------------------ points without derivative
@pytest.mark.parametrize(
    "f, x",
    [
        (np.abs, np.zeros(3)),
        (np.abs, np.array([1.0, 0.0, -2.0])),
        (lambda x: np.maximum(x, 1.0), np.array([0.0, 1.0, 2.0])),
        (np.max, np.array([2.0, 2.0, 1.0])),
        (np.sort, np.array([1.0, 1.0, 3.0])),
        (np.linalg.norm, np.zeros(2)),
        (lambda x: np.clip(x, -1.0, 1.0), np.array([-1.0, 0.5])),
        (np.sign, np.array([0.0, 1.0])),
        (np.std, np.ones(3)),
        (lambda x: np.sqrt(x), np.array([0.0, 1.0])),
        (lambda x: x**0.5, np.array([0.0])),
        (lambda x: np.where(x > 0.0, x, 2.0 * x), np.array([1e-9])),
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


def test_difference_quotients_that_do_not_settle_judge_nothing():
    rng = np.random.default_rng(0)
    line = checking.Line(
        lambda xs: xs[0] + 0.01 * rng.normal(size=3), [np.ones(3)], 0, np.ones(3), "first", 1.0
    )
    with pytest.raises(
        GradientError,
        match="input 0 .*cannot be judged along the direction .*settle no better than",
    ):
        checking.measured_slope(line, np.ones(3), np.ones(3, bool))


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
    assert "all are right" in text


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


def test_python_m_ends_with_the_status(table, monkeypatch):
    for name in set(PRIMITIVES) - {"exp"}:
        del PRIMITIVES[name]
    monkeypatch.delitem(sys.modules, "minigrad.checking")
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("minigrad.checking", run_name="__main__")
    assert caught.value.code == 0
