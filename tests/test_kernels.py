"""minigrad/kernels.py: what `fused` makes of a kernel and its twin. The kernels themselves are held
against their twins and other oracles in test_functional, test_distributions and test_table."""

import inspect

import numpy as np
import pytest

from minigrad import (
    PRIMITIVES,
    Tensor,
    count_likelihoods,
    distributions,
    functional,
    grad,
    no_grad,
)
from minigrad.kernels import fused

pytestmark = pytest.mark.usefixtures("table_as_it_was")


def recording_kernel(calls):
    """x * scale as a kernel that writes down what was asked of it."""

    def forward(needs, x, *, scale):
        calls.append(("forward", list(needs)))
        return x * scale, "kept"

    def backward(g, y, saved, needs, x, *, scale):
        calls.append(("backward", saved))
        return [g * scale]

    @fused(forward, backward)
    def scaled(x, *, scale):
        """x times scale."""
        calls.append("twin")
        return x * scale

    return scaled


def test_the_kernel_runs_on_arrays_and_for_gradients():
    calls = []
    scaled = recording_kernel(calls)
    np.testing.assert_array_equal(scaled(np.array([1.0, 2.0]), scale=3.0), [3.0, 6.0])
    assert calls == [("forward", [False])]
    x = Tensor([1.0, 2.0], requires_grad=True)
    np.testing.assert_array_equal(grad(scaled(x, scale=3.0), x, np.ones(2))[0], [3.0, 3.0])
    assert calls[1:] == [("forward", [True]), ("backward", "kept")]
    with no_grad():
        assert not scaled(x, scale=3.0).requires_grad
    assert calls[3:] == [("forward", [False])]


def test_the_twin_runs_where_the_gradient_is_to_be_differentiated():
    calls = []
    scaled = recording_kernel(calls)
    x = Tensor([1.0, 2.0], requires_grad=True)
    (g,) = grad(scaled(x, scale=3.0), x, np.ones(2), create_graph=True)
    assert calls == [("forward", [True]), "twin"]
    np.testing.assert_array_equal(g.data, [3.0, 3.0])


def test_only_what_the_twin_takes_by_keyword_is_a_keyword():
    scaled = recording_kernel([])
    with pytest.raises(TypeError, match="scaled: factor= is not supported"):
        scaled(Tensor([1.0]), factor=2.0)


def test_the_function_is_known_by_its_twin():
    """Its documentation and its arguments are the twin's, so help() shows them."""
    softmax = functional.softmax
    assert softmax.__doc__ == softmax.twin.__doc__ and "sum to 1" in softmax.__doc__
    assert list(inspect.signature(softmax).parameters) == ["x", "axis"]
    assert softmax.__module__ == "minigrad.functional" and softmax.__name__ == "softmax"
    assert PRIMITIVES["softmax"].twin is softmax.twin


def test_an_operation_may_have_another_name_than_its_twin():
    y, _, _ = functional.batch_norm(Tensor(np.eye(2), requires_grad=True), np.ones(2), np.zeros(2))
    assert "from batch_norm" in repr(y)


@pytest.mark.parametrize("of", [np.array, lambda x: Tensor(x, requires_grad=True)])
def test_numpys_numbers_beside_arrays_count_as_pythons(of):
    """np.float64 neither makes float32 arrays float64 nor changes a digit."""
    x = np.linspace(0.5, 2.0, 4, dtype=np.float32)
    calls = (
        lambda a, number: distributions.normal_kl(a, a, number(0.0), number(1.0)),
        lambda a, number: distributions.normal_kl(number(0.0), number(1.0), a, a),
        lambda a, number: distributions.bernoulli_log_prob(number(1.0), a),
        lambda a, number: count_likelihoods.poisson_log_prob(number(2.0), a),
        lambda a, number: count_likelihoods.nb_log_prob(number(2.0), a, number(1.0)),
        lambda a, number: count_likelihoods.nb_log_prob(x, number(1.0), a),
        lambda a, number: count_likelihoods.zinb_log_prob(number(2.0), a, number(1.0), number(0.5)),
    )
    for call in calls:
        found = call(of(x), np.float64)
        expected = call(of(x), float)
        assert found.dtype == expected.dtype == np.float32
        np.testing.assert_array_equal(
            getattr(found, "data", found), getattr(expected, "data", expected)
        )
