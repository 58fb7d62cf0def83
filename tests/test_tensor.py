"""minigrad/tensor.py: what DESIGN section 5 promises of the graph, of precision and of errors, a test a promise.

The derivatives of single functions are not tested here (test_ops.py walks the table) but what is done with them.
"""

import copy
import gc
import inspect
import math
import operator
import os
import pickle
import pydoc
import re
import subprocess
import sys
import threading
import weakref
from array import array as array_of_python
from contextlib import contextmanager

import numpy as np
import pytest
from scipy import sparse, special

from minigrad import backend, backward, derived, functional, nn, ops, optim
from minigrad.fused import fuse
from minigrad.table import PRIMITIVES, primitive
from minigrad.tensor import IMPLEMENTATIONS, Tensor, grad, no_grad


@contextmanager
def without_collector():
    """Reference counting alone: what lies in a cycle stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def table_as_it_was():
    """Primitives that are made within are taken out of the table afterwards."""
    primitives, implementations = dict(PRIMITIVES), dict(IMPLEMENTATIONS)
    try:
        yield
    finally:
        for now, before in ((PRIMITIVES, primitives), (IMPLEMENTATIONS, implementations)):
            now.clear()
            now.update(before)


def leaf(*shape, dtype=np.float64, seed=0):
    """A leaf with entries in (0.5, 1.5)."""
    return Tensor(
        (0.5 + np.random.default_rng(seed).random(shape)).astype(dtype), requires_grad=True
    )


def raises(kind, *words):
    """pytest.raises, the message holding all of these words in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(words))


# ------------------------------------------------------------------------------------------------------------- graph
def test_a_graph_20000_deep_is_swept_and_freed():
    x = leaf(4)
    with without_collector():
        y = x
        for _ in range(20_000):
            y = y * 0.9999
        bottom = weakref.ref(y.origin.inputs[0])
        assert np.allclose(grad(y.sum(), [x])[0], 0.9999**20_000, rtol=1e-9)
        y.sum().backward()
        assert np.allclose(x.grad, 0.9999**20_000, rtol=1e-9)
        del y
        assert bottom() is None


def test_a_graph_20000_deep_that_was_never_swept_is_freed():
    with without_collector():
        y = leaf(2)
        refs = []
        for i in range(20_000):
            y = y + 1.0
            if i % 1000 == 0:
                refs.append(weakref.ref(y))
        del y
        assert [r() for r in refs] == [None] * 20


def test_8000_wide():
    leaves = [Tensor(float(i), requires_grad=True) for i in range(8000)]
    y = np.sum(np.stack(leaves) * np.arange(8000.0))
    assert y.item() == sum(i * i for i in range(8000))
    found = grad(y, leaves)
    assert [g.item() for g in found] == list(range(8000))
    y.backward()
    assert [t.grad.item() for t in leaves] == list(range(8000))


def test_one_leaf_used_8000_times():
    x = leaf(3)
    total = 0.0
    for i in range(8000):
        total = total + x * float(i)
    total.sum().backward()
    assert np.array_equal(x.grad, np.full(3, 7999 * 8000 / 2.0))


def test_a_diamond_of_2_to_the_60_paths_is_visited_once_a_node():
    x = Tensor(1.0, requires_grad=True)
    y = x
    for _ in range(60):
        y = y + y
    assert grad(y, x)[0] == 2.0**60


def test_gradients_are_complete_before_they_are_handed_on():
    x = Tensor(2.0, requires_grad=True)
    a = x * 3.0
    late = a * a  # a is used by an old and by a young operation
    y = np.exp(a * 0.0) * late + a
    calls = []
    with table_as_it_was():
        once = primitive(lambda v: v * 1.0, lambda g, y, v: calls.append(1) or g * 1.0, name="once")
        b = once(a)
        y = y + b * b + b
        assert grad(y, x)[0] == pytest.approx(3 * (2 * 6 + 1 + 2 * 6 + 1))
    assert len(calls) == 1


@pytest.mark.parametrize("after", ["forward", "grad", "create_graph", "backward"])
def test_graphs_are_freed_without_the_collector(after):
    x = leaf(3, 3)
    with without_collector():
        a = np.exp(x)
        b = (a @ a.T + x[0, [1, 1, 2]]).sum(axis=0)
        y = np.log(b).sum() + np.concatenate([a, x]).mean()
        refs = [weakref.ref(t) for t in (a, b, y)]
        arrays = [weakref.ref(t.data) for t in (a, b)]
        if after == "grad":
            grad(y, [x, a])
        if after == "create_graph":
            g = grad(y, [x], create_graph=True)[0]
            refs.append(weakref.ref(g))
            grad(g.sum(), [x])
            del g
        if after == "backward":
            y.backward()
        del a, b, y
        assert [r() for r in refs + arrays] == [None] * len(refs + arrays)


def test_backward_frees_the_graph_while_the_output_lives():
    x = leaf(5)
    with without_collector():
        a = np.exp(x)
        y = a.sum()
        inside = weakref.ref(a)
        del a
        y.backward()
        assert inside() is None and y.data.shape == ()


def test_an_error_keeps_no_graph_alive():
    with without_collector():
        a = np.exp(leaf(3))
        inside = weakref.ref(a)
        try:
            a.reshape(7)
        except ValueError:
            pass
        del a
        assert inside() is None


def test_backward_fills_leaves_only_and_adds_up():
    x, w, data = leaf(3), leaf(3, seed=1), Tensor(np.ones(3))
    hidden = x * w * data
    hidden.sum().backward()
    assert np.array_equal(x.grad, w.data) and np.array_equal(w.grad, x.data)
    assert hidden.grad is None and data.grad is None
    before = x.grad
    (x * 2.0).sum().backward()
    assert x.grad is before and np.array_equal(x.grad, w.data + 2.0)


def test_backward_of_a_leaf_itself():
    x = leaf(2)
    x.backward(np.array([3.0, 4.0]))
    assert np.array_equal(x.grad, [3.0, 4.0])


def test_backward_writes_where_an_optimiser_wants_it():
    x, arena = leaf(3), np.full(5, 7.0)
    x.grad_storage = arena[1:4]
    (x * 2.0).sum().backward()
    assert x.grad is x.grad_storage and np.array_equal(arena, [7.0, 2.0, 2.0, 2.0, 7.0])


def test_backward_uses_the_graph_up():
    x = leaf(3)
    y = np.exp(x).sum()
    y.backward()
    with raises(RuntimeError, "used up by an earlier backward", "forward", "minigrad.grad"):
        y.backward()
    with raises(RuntimeError, "used up"):
        grad(y, [x])


def test_a_used_up_part_inside_a_new_graph_says_so_too():
    x = leaf(3)
    a = np.exp(x)
    a.sum().backward()
    with raises(RuntimeError, "used up"):
        (a * 2.0).sum().backward()
    assert np.array_equal(
        grad((a * 2.0).sum(), a)[0], np.full(3, 2.0)
    )  # as far as a, nothing is missing


def test_grad_leaves_graph_and_grad_alone():
    x = leaf(3)
    y = np.exp(x).sum()
    first, again = grad(y, [x])[0], grad(y, [x])[0]
    assert np.array_equal(first, np.exp(x.data)) and np.array_equal(first, again) and x.grad is None
    y.backward()
    assert np.array_equal(x.grad, first)


def test_grad_takes_one_tensor_or_a_list_and_repeats():
    x = leaf(3)
    y = (x * x).sum()
    (one,) = grad(y, x)
    a, b = grad(y, (x, x))
    assert np.array_equal(one, a) and np.array_equal(a, b) and not np.shares_memory(a, b)
    assert grad(y, []) == []


@pytest.mark.parametrize("create_graph", [False, True])
def test_zeros_for_an_input_without_influence(create_graph):
    x, other = leaf(3), leaf(2, 4, dtype=np.float32)
    gx, zeros = grad(x.sum(), [x, other], create_graph=create_graph)
    assert zeros.shape == (2, 4) and zeros.dtype == np.float32 and not np.any(zeros)
    assert isinstance(zeros, Tensor) == create_graph


@pytest.mark.parametrize("create_graph", [False, True])
def test_grad_of_what_was_not_recorded_is_refused(create_graph):
    """d(x * x)/dx is 6 at x = 3: zeros would be wrong, and backward() refuses as well."""
    x = Tensor(3.0, requires_grad=True)
    with no_grad():
        within = np.sum(x * x)
    for output in (within, within * 2.0, (x * x).detach(), Tensor(1.0)):
        with raises(RuntimeError, r"grad\(\): nothing to differentiate", "no_grad"):
            grad(output, x, create_graph=create_graph)
        with raises(RuntimeError, r"backward\(\): nothing to differentiate", "no_grad"):
            output.backward()


def test_constant_slopes_have_slopes_of_0():
    x = leaf(3)
    (slope,) = grad(np.sum(2.0 * x), x, create_graph=True)  # 2 everywhere
    assert not np.any(grad(slope, x, gradient=np.ones(3))[0])
    y = Tensor(3.0, requires_grad=True)
    derivative = y**2
    for expected in (6.0, 2.0, 0.0, 0.0):  # the derivatives of y^2 at 3
        (derivative,) = grad(derivative, y, create_graph=True)
        assert derivative.item() == expected
    one = Tensor(1.0)
    (slope,) = grad(y + 1.0, y, gradient=one, create_graph=True)
    assert slope.item() == 1.0 and not one.requires_grad  # what the user gave stays as it is


def test_jacobian_rows_by_repeated_grad():
    x, m = leaf(3), np.random.default_rng(1).random((4, 3))
    y = np.tanh(m @ x)
    jacobian = np.array([grad(y, x, gradient=row)[0] for row in np.eye(4)])
    assert np.allclose(jacobian, (1.0 - y.data[:, None] ** 2) * m, rtol=1e-12)


def test_grad_with_respect_to_an_intermediate():
    x = leaf(3)
    a = np.exp(x)
    b = a * a
    of_x, of_a, of_b = grad(b.sum(), [x, a, b])
    assert (
        np.allclose(of_b, 1.0)
        and np.allclose(of_a, 2.0 * a.data)
        and np.allclose(of_x, 2.0 * a.data**2)
    )


# -------------------------------------------------------------------------------------------------- broadcasting
def test_broadcasting_is_undone_once_and_for_all_rules():
    """Rules return the shape that broadcasting made; the sweep sums it back, for every input and shape."""
    shapes = [(), (1,), (3,), (1, 3), (2, 1), (2, 3), (4, 1, 1), (4, 2, 3), (0, 1, 3)]
    for left in shapes:
        for right in shapes:
            if 4 in left and 0 in right or 0 in left and 4 in right:
                continue
            a, b = (
                Tensor(np.full(left, 2.0), requires_grad=True),
                Tensor(np.full(right, 3.0), requires_grad=True),
            )
            y = a * b
            ga, gb = grad(y, [a, b], gradient=np.ones(y.shape))
            assert ga.shape == left and gb.shape == right
            assert np.allclose(ga, 3.0 * (y.size / max(a.size, 1)))
            assert np.allclose(gb, 2.0 * (y.size / max(b.size, 1)))


def test_unbroadcast_is_called_once_for_each_stretched_input(monkeypatch):
    calls, undo = [], backward.unbroadcast
    monkeypatch.setattr(
        backward, "unbroadcast", lambda g, shape: calls.append(shape) or undo(g, shape)
    )
    a, b = leaf(2, 1), leaf(2, 3)
    grad((a + b).sum(), [a, b])
    assert calls == [(2, 1)]


# -------------------------------------------------------------------------------------- rules that are not called
def counted():
    """A primitive a * b, and the list of which rules were called."""
    called = []
    product = primitive(
        lambda a, b: a * b,
        lambda g, y, a, b: called.append("a") or g * b,
        lambda g, y, a, b: called.append("b") or g * a,
        name="counted_product",
    )
    return product, called


@pytest.mark.parametrize("create_graph", [False, True])
def test_rules_of_inputs_that_need_no_gradient_are_never_called(create_graph):
    with table_as_it_was():
        product, called = counted()
        x, constant = leaf(3), Tensor(np.ones(3))
        for other in (constant, np.ones(3), 2.0, np.float32(2.0)):
            called.clear()
            grad(product(x, other).sum(), x, create_graph=create_graph)
            assert called == ["a"]
            called.clear()
            grad(product(other, x).sum(), x, create_graph=create_graph)
            assert called == ["b"]
        called.clear()
        product(constant, constant)
        product(x, x)
        assert called == []
    assert "counted_product" not in PRIMITIVES


def test_nothing_is_computed_beyond_what_grad_is_asked_for():
    with table_as_it_was():
        product, called = counted()
        x = leaf(3)
        a = product(x, 2.0)
        b = np.exp(a)
        grad(b.sum(), [a])
        assert called == []
        grad(b.sum(), [x])
        assert called == ["a"]


def test_joint_rules_are_told_what_is_needed():
    told = []

    def forward(needs, a, b):
        told.append(tuple(needs))
        return a * b, None

    def backward(g, y, saved, needs, a, b):
        told.append(tuple(needs))
        return g * b if needs[0] else None, g * a if needs[1] else None

    with table_as_it_was():
        kernel = fuse(lambda a, b: a * b, forward, backward, "kernel")
        x = leaf(2)
        kernel(x, np.ones(2)).sum().backward()
        assert told == [(True, False), (True, False)]
        with no_grad():
            kernel(x, x)
        assert told[-1] == (False, False)


# ------------------------------------------------------------------------------------------------ own gradients
def test_gradients_are_owned_writable_and_not_shared():
    for make in (
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: np.concatenate([a, b]),
        lambda a, b: np.stack([a, b]),
        lambda a, b: np.broadcast_to(a, (5, 2, 3)) + b,
        lambda a, b: a.reshape(3, 2) + b.reshape(3, 2),
        lambda a, b: a[:] + b[::-1],
        lambda a, b: a.T + b.T,
        lambda a, b: np.sum(a + b),
    ):
        a, b = leaf(2, 3), leaf(2, 3, seed=1)
        y = make(a, b)
        seed = np.ones(y.shape)
        for ga, gb in (grad(y, [a, b], gradient=seed), (y.backward(seed), (a.grad, b.grad))[1]):
            for g in (ga, gb):
                assert g.flags.writeable and g.flags.owndata and g.shape == (2, 3)
                g += 1.0
            assert not np.shares_memory(ga, gb)
            assert not any(
                np.shares_memory(g, other)
                for g in (ga, gb)
                for other in (seed, y.data, a.data, b.data)
            )
        assert np.array_equal(seed, np.ones(y.shape))


def test_the_same_leaf_twice():
    a = leaf(3)
    (a + a).sum().backward()
    assert np.array_equal(a.grad, [2.0, 2.0, 2.0])
    a.grad = None
    (a - a + a * a).sum().backward()
    assert np.allclose(a.grad, 2.0 * a.data)


def test_gradients_of_numbers_are_arrays():
    x = Tensor(2.0, requires_grad=True)
    (x * x).backward()
    assert type(x.grad) is np.ndarray and x.grad.shape == () and x.grad == 4.0
    assert type((x * x).data) is np.ndarray and type(np.sum(x * np.ones(3)).data) is np.ndarray
    assert type(grad(x * x, x)[0]) is np.ndarray


# ------------------------------------------------------------------------------------------------------- no_grad
def test_no_grad_nested_and_after_exceptions():
    x = leaf(2)
    with no_grad():
        assert not (x * 2.0).requires_grad
        with no_grad():
            pass
        assert not (x * 2.0).requires_grad and (x * 2.0).origin is None
    assert (x * 2.0).requires_grad
    with pytest.raises(ZeroDivisionError), no_grad():
        1 / 0
    assert (x * 2.0).requires_grad


def test_no_grad_is_of_one_thread():
    x, seen = leaf(2), {}

    def other(name):
        seen[name] = (x * 2.0).requires_grad

    def inside():
        with no_grad():
            seen["mine"] = (x * 2.0).requires_grad
            entered.set()
            leave.wait(10)

    with no_grad():
        thread = threading.Thread(target=other, args=("begun within",))
        thread.start()
        thread.join()
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=inside)
    thread.start()
    assert entered.wait(10)
    other("while another is within")
    leave.set()
    thread.join()
    assert seen == {"begun within": True, "mine": False, "while another is within": True}


def test_no_grad_as_a_decorator_and_backward_within():
    x = leaf(2)
    assert not no_grad()(lambda: x * 2.0)().requires_grad
    y = (x * x).sum()
    with no_grad():
        y.backward()
        with raises(RuntimeError, "nothing to differentiate"):
            (x * 2.0).sum().backward()
    assert np.allclose(x.grad, 2.0 * x.data)


# ------------------------------------------------------------------------------------------------------- precision
def float32_operations():
    t, a64 = leaf(2, 3, dtype=np.float32), np.arange(1, 4)
    yield from {
        "t * np.log(2)": t * np.log(2),
        "np.log(2) * t": np.log(2) * t,
        "t / np.prod(shape)": t / np.prod(t.shape),
        "t * 2": t * 2,
        "2.5 - t": 2.5 - t,
        "t ** 2": t**2,
        "t ** 2.5": t**2.5,
        "2 ** t": 2**t,
        "t * True": t * True,
        "t + ints": t + a64,
        "ints * t": a64 * t,
        "ints @ t": np.arange(2) @ t,
        "t @ ints": t @ a64,
        "t + booleans": t + (a64 > 2),
        "np.float64 / t": np.float64(3.0) / t,
        "np.int32": t * np.int32(3),
        "uint8": t * np.uint8(200),
        "longdouble": t * np.longdouble(2),
        "maximum": np.maximum(t, 1),
        "clip": np.clip(t, 0, 1),
        "where": np.where(a64 > 2, t, 0.0),
        "where, NumPy scalar": np.where(a64 > 2, np.float64(1.0), t),
        "xlogy of int": special.xlogy(2, t),
        "xlogy of float": special.xlogy(t, 2.5),
        "xlogy of NumPy scalar": special.xlogy(np.float64(2), t),
        "xlogy of ints": special.xlogy(a64, t),
        "betaln of int": special.betaln(t, 2),
        "betaln of float": special.betaln(2.5, t),
        "betaln of NumPy scalar": special.betaln(t, np.float64(2.5)),
        "betaln of ints": special.betaln(a64, t),
        "mean": t.mean(axis=0),
        "var": t.var(),
        "std": np.std(t),
        "sum": t.sum(),
        "norm": np.linalg.norm(t),
        "logaddexp": np.logaddexp(t, 1.0),
        "power of ints": np.power(t, a64),
        "concatenate": np.concatenate([t, a64[None]]),
        "gammaln": special.gammaln(t),
        "expit": special.expit(t),
    }.items()


@pytest.mark.parametrize("name", [name for name, _ in float32_operations()])
def test_float32_stays_float32(name):
    y = dict(float32_operations())[name]
    assert y.dtype == np.float32, name
    x = next(t for t in tensor_inputs(y) if t.requires_grad)
    assert grad(y.sum(), x)[0].dtype == np.float32
    assert grad(y.sum(), x, create_graph=True)[0].dtype == np.float32
    y.sum().backward()
    assert x.grad.dtype == np.float32


def steps(y):
    """y and all Tensors below it."""
    return [y] + [
        step
        for x in (y.origin.inputs if y.origin else ())
        if isinstance(x, Tensor)
        for step in steps(x)
    ]


@pytest.mark.parametrize(
    "f",
    [
        lambda t: t**1.5,
        lambda t: 2.0**t,
        lambda t: np.maximum(t, 1.5),
        lambda t: 1.0 / t - 0.3,
        lambda t: np.logaddexp(0.5, t),
        lambda t: np.where(t.data > 1, t, 2.5),
    ],
)
def test_python_floats_leave_every_step_of_a_gradient_in_float32(f):
    t = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    (first,) = grad(f(t), t, np.ones(2, np.float32), create_graph=True)
    assert {str(step.dtype) for step in steps(first)} == {"float32"}


def test_a_function_of_the_users_stays_in_float32_beside_a_python_float():
    with table_as_it_was():
        product = primitive(np.polymul, lambda g, y, a, b: g, lambda g, y, a, b: g)
        assert product(Tensor(np.ones(2, np.float32)), 0.25).dtype == np.float32


def tensor_inputs(y):
    """The leaves below y."""
    if y.origin is None:
        return [y]
    return [leaf for x in y.origin.inputs if isinstance(x, Tensor) for leaf in tensor_inputs(x)]


def test_values_with_scalars_are_those_of_numpy():
    x = leaf(4, dtype=np.float32)
    assert np.array_equal((x * np.log(2)).data, x.data * np.float32(np.log(2)))
    assert np.array_equal((x / np.prod((2, 3))).data, x.data / np.float32(6))
    assert np.array_equal(special.xlogy(2, x).data, special.xlogy(np.float32(2), x.data))


def test_mixed_precision_promotes_as_numpy_and_each_leaf_keeps_its_own():
    a, b = leaf(3, dtype=np.float32), leaf(3, dtype=np.float64)
    y = a * b
    assert y.dtype == np.float64
    ga, gb = grad(y.sum(), [a, b])
    assert ga.dtype == np.float32 and gb.dtype == np.float64
    assert (a * np.ones(3)).dtype == np.float64  # a floating array keeps its dtype


def test_tensor_keeps_floating_data_and_makes_numbers_float64():
    for dtype in (np.float32, np.float64):
        data = np.ones(3, dtype)
        assert Tensor(data).data is data
    assert Tensor(np.float32(1)).dtype == np.float32
    assert [Tensor(x).dtype.name for x in (1, 2.0, [1, 2], np.arange(3), True)] == ["float64"] * 5
    assert Tensor([1, 2], dtype="float32").dtype == np.float32
    assert type(Tensor(np.ones(3).view(np.recarray)).data) is np.ndarray


def test_gradient_of_another_dtype_is_cast():
    x = leaf(3, dtype=np.float32)
    (x * 1.0).backward(np.ones(3))
    assert x.grad.dtype == np.float32
    assert grad(x * 1.0, x, gradient=[1, 2, 3])[0].tolist() == [1.0, 2.0, 3.0]
    y = leaf(3, dtype=np.float32)
    y.backward(np.ones(3))
    assert y.grad.dtype == np.float32


def test_a_gradient_may_be_a_tensor():
    x, v = leaf(3), Tensor(np.arange(3.0))
    (x * 2.0).backward(v)
    assert np.array_equal(x.grad, [0.0, 2.0, 4.0]) and type(x.grad) is np.ndarray
    assert type(grad(x * 2.0, x, gradient=v)[0]) is np.ndarray


# ------------------------------------------------------------------------------------------------------------ errors
def test_no_silent_conversion_to_an_array():
    x = leaf(2, 3)
    for convert in (
        np.asarray,
        np.array,
        lambda t: np.asarray([t, t]),
        lambda t: np.asarray(t, dtype=float),
        lambda t: np.random.default_rng(0).normal(t),
        special.logsumexp,
    ):
        with raises(TypeError, "silently", r"\.data", "numpy|NumPy"):
            convert(x)
    target = np.zeros((2, 3))
    with raises(TypeError, "silently"):
        target[0] = x[0]
    with raises(TypeError, "silently"):
        Tensor([x, x])
    with raises(TypeError, "Tensor already", "detach"):
        Tensor(x)


def test_out():
    x, target = leaf(3), np.zeros(3)
    for call in (
        lambda: np.exp(x, out=target),
        lambda: np.add(target, target, out=x),
        lambda: np.sum(x, out=target),
        lambda: x.sum(out=target),
        lambda: np.sum(target, out=x),
        lambda: ops.sum_(x, out=target),
    ):
        with raises(TypeError, "(exp|add|sum): out="):
            call()
    assert not target.any()


def test_array_plus_equals_tensor():
    x, target = leaf(3), np.zeros(3)
    for symbol in ("+=", "-=", "*=", "/=", "**="):
        with raises(TypeError, "array \\+= Tensor", "a = a \\+ t"):
            exec(f"target {symbol} x")
    assert not target.any()
    y = x * 1.0
    y += target  # but a Tensor on the left is a new Tensor
    assert isinstance(y, Tensor) and y.origin.primitive.__name__ == "add"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: np.exp(x, where=np.ones(3, bool)), ("numpy.exp: where= is not supported",)),
        (
            lambda x: np.max(x, where=np.ones(3, bool)),
            ("numpy.max: where= is not supported", "axis"),
        ),
        (lambda x: np.cumsum(x, dtype=np.float32), ("numpy.cumsum: dtype= is not supported",)),
        (lambda x: np.cumsum(x, 0, np.float32), ("cumsum: dtype= is not supported",)),
        (lambda x: x.max(initial=1.0), ("max.*initial",)),
        (lambda x: np.mean(x, dtype=np.float32), ("numpy.mean: dtype= is not supported",)),
        (lambda x: np.round(x, decimals=x), ("numpy.round: decimals= is a Tensor", "by position")),
        (lambda x: x[x], ("getitem", "Tensor")),
        (lambda x: np.where(x), ("where: 1 arguments", "3 arrays")),
        (lambda x: ops.sum_(x, 0, None, None, True, 0, True, 5), ("sum: 8 arguments", "axis")),
        (lambda x: ops.add(x), ("add: 1 arguments", "2 arrays")),
        (lambda x: np.add.reduce(x), ("numpy.add.reduce", "numpy.sum")),
        (lambda x: np.multiply.outer(x, x), ("numpy.multiply.outer",)),
        (lambda x: x + "a", ("add: an operand is a str",)),
        (lambda x: x + [1, 2, 3], ("add: an operand is a list", "array")),
        (lambda x: x + None, ("add: an operand is None",)),
        (lambda x: x * 1j, ("multiply: an operand is a complex",)),
        (lambda x: x * np.complex64(1j), ("multiply: an operand is a complex64",)),
        (
            lambda x: x * np.array([1j, 0, 0]),
            ("multiply: an operand is an array of complex128", "real"),
        ),
        (lambda x: x * np.datetime64("2020"), ("multiply: an operand is a datetime64",)),
        (lambda x: x * np.array(["a", "b", "c"]), ("multiply: an operand is an array of <U1",)),
        (lambda x: x * np.ma.array(np.ones(3)), ("masked",)),
        (lambda x: Tensor(1j), ("complex128", "real")),
        (lambda x: Tensor("text"), ("<U4", "real")),
        (lambda x: Tensor([1.0], dtype=int), ("dtype=int", "float32 or numpy.float64")),
    ],
)
def test_what_is_not_supported_says_so_at_the_call(call, words):
    with raises(TypeError, *words):
        call(leaf(3))


def test_errors_of_numpy_name_the_operation_and_the_shapes():
    x = leaf(2, 3)
    with raises(
        ValueError, r"add\(float64\[2, 3\], float32\[4\]\): operands could not be broadcast"
    ):
        x + np.ones(4, np.float32)
    with raises(ValueError, r"matmul\(float64\[2, 3\], float64\[2, 3\]\)"):
        x @ x
    with raises(IndexError, r"getitem\(float64\[2, 3\]\): index 5 is out of bounds"):
        x[5]
    with raises(ValueError, r"reshape\(float64\[2, 3\]\)"):
        x.reshape(7)
    with raises(np.linalg.LinAlgError, r"inv\(float64\[2, 3\]\)"):
        np.linalg.inv(x)


def test_truth_of_several_entries():
    with pytest.raises(ValueError, match="more than one element"):
        bool(leaf(2))
    with pytest.raises(ValueError, match="more than one element"):
        assert leaf(2) > 0.0
    assert bool(Tensor(1.0)) and not Tensor([0.0])


@pytest.mark.parametrize(
    "make", [sparse.csr_matrix, sparse.csr_array, sparse.csc_matrix, sparse.coo_array]
)
def test_sparse_at_tensor_points_to_linear(make):
    a, x = make(np.eye(2)), leaf(2, 2)
    for call in (
        lambda: a @ x,
        lambda: x @ a,
        lambda: a * x,
        lambda: x * a,
        lambda: x + a,
        lambda: a + x,
        lambda: a.dot(x),
    ):
        with raises(TypeError, r"minigrad\.functional\.linear\(sparse, weight, bias\)"):
            call()


def test_backward_needs_one_entry_or_a_gradient():
    x = leaf(2, 3)
    with raises(ValueError, r"backward\(\): an output of shape \(2, 3\) needs gradient="):
        (x * 2.0).backward()
    with raises(ValueError, r"grad\(\): an output of shape \(2, 3\) needs gradient="):
        grad(x * 2.0, x)
    with raises(ValueError, r"backward\(\): gradient has shape \(3,\), the output \(2, 3\)"):
        (x * 2.0).backward(np.ones(3))
    (x[:1, :1] * 2.0).backward()
    assert x.grad.sum() == 2.0


def test_backward_and_grad_of_what_is_not_recorded():
    with raises(RuntimeError, "nothing to differentiate", "requires_grad=True"):
        (Tensor(1.0) * 2.0).backward()
    with raises(TypeError, r"grad\(\): the output is a float, not a Tensor"):
        grad(5.0, [leaf(2)])
    for wrong in (np.ones(2), Tensor(np.ones(2))):
        with raises(TypeError, r"grad\(\): input 1 is not a Tensor with requires_grad=True"):
            grad(leaf(2).sum(), [leaf(2), wrong])


def test_a_function_outside_the_table_is_named():
    for function, name in (
        (np.fft.fft, "numpy.fft.fft"),
        (np.angle, "numpy.angle"),
        (special.spence, "scipy.special.*spence|numpy.spence"),
        (np.copysign, "numpy.copysign"),
    ):
        with raises(
            TypeError, name, "is not in minigrad's table", r"minigrad\.primitive", r"\.data"
        ):
            function(leaf(3), *[2.0] * (function is np.copysign))


def test_assignment():
    x = leaf(3)
    for index in (0, slice(None), x.data > 1.0):
        with raises(TypeError, "cannot be assigned into", "numpy.where"):
            x[index] = 1.0
    with raises(TypeError, "cannot be assigned into"):
        x[0] += 1.0


class Elsewhere:
    """An array of another library: its functions refuse NumPy's arrays, as CuPy's do."""

    dtype, shape, ndim, size = np.dtype(np.float64), (3,), 1, 3

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")

    def __array_function__(self, *_):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")


def test_mixed_devices_are_named():
    Elsewhere.__module__ = "cupy"
    assert backend.device_of(Elsewhere()) == "cupy"
    with raises(
        TypeError,
        r"add\(float64\[3\], float64\[3\] on cupy\)",
        "cupy and numpy",
        r"backend\.to_device",
    ):
        leaf(3) + Tensor(Elsewhere())


def test_scipy_array_api_is_named():
    """With that variable SciPy wraps its ufuncs, and they no longer dispatch on Tensors."""
    code = """
import numpy as np
from scipy import special
from minigrad import Tensor
t = Tensor(np.ones(3), requires_grad=True)
print(np.exp(t).sum().item())
for call in (lambda: special.gammaln(t), lambda: special.xlogy(2.0, t)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, error)
"""
    path = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=path,
        env={**os.environ, "SCIPY_ARRAY_API": "1", "PYTHONPATH": path},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3 and lines[0].startswith("8.15"), done.stdout + done.stderr
    assert all(
        "SCIPY_ARRAY_API" in line and "scipy.special" in line and "Unset" in line
        for line in lines[1:]
    )


# --------------------------------------------------------------------------------------------- being a Tensor
def test_comparisons_are_plain_boolean_arrays():
    x = Tensor([1.0, 2.0, 3.0], requires_grad=True)
    for mask, expected in (
        (x > 2, [0, 0, 1]),
        (x >= 2, [0, 1, 1]),
        (x < 2, [1, 0, 0]),
        (x <= 2, [1, 1, 0]),
        (x == 2, [0, 1, 0]),
        (x != 2, [1, 0, 1]),
        (2 < x, [0, 0, 1]),
        (x == x, [1, 1, 1]),
        (np.float64(2) >= x, [1, 1, 0]),
        (np.ones(3) == x, [1, 0, 0]),
    ):
        assert (
            type(mask) is np.ndarray
            and mask.dtype == bool
            and mask.tolist() == [bool(e) for e in expected]
        )


def test_hash_is_identity():
    a, b = Tensor([1.0, 2.0]), Tensor([1.0, 2.0])
    assert hash(a) != hash(b) and {a: "a", b: "b"}[a] == "a" and len({a, b, a}) == 2


def test_reading_by_index_and_repeats():
    x = leaf(4, 3)
    for index in (
        0,
        -1,
        slice(1, 3),
        (slice(None), 1),
        (..., 0),
        None,
        [0, 0, 2],
        (np.array([1, 1]), np.array([2, 2])),
        x.data > 1.0,
        (slice(None, None, -1), [2, 0]),
        np.array([[0, 1], [1, 0]]),
        (1, 2),
    ):
        y = x[index]
        assert np.array_equal(y.data, x.data[index])
        v = np.random.default_rng(0).random(y.shape)
        expected = np.zeros((4, 3))
        np.add.at(expected, index, v)
        assert np.allclose(grad(y, x, gradient=v)[0], expected)
    assert grad(x[[0, 0, 0], [1, 1, 1]].sum(), x)[0][0, 1] == 3.0


def test_square_by_operator_and_function():
    x = Tensor([-2.0, 0.0, 3.0], requires_grad=True)
    for y in (x**2, x**2.0, np.square(x), x ** np.int64(2), x * x):
        assert y.data.tolist() == [4.0, 0.0, 9.0]
        assert grad(y.sum(), x)[0].tolist() == [-4.0, 0.0, 6.0]
    assert (x**2).origin.primitive.__name__ == "square"


def test_repr_format_iteration_length():
    x = Tensor(np.array([1.0, 2.5]), requires_grad=True)
    assert repr(x) == "Tensor([1. , 2.5], requires_grad=True)" and repr(Tensor(2.0)) == "Tensor(2.)"
    assert "from multiply" in repr(x * 2.0)
    assert f"{x[1]:.3f}" == "2.500" and f"{x}" == str(x) == repr(x)
    with pytest.raises(ValueError, match="size 1|size-1"):
        f"{x:.3f}"
    first, second = x
    assert first.item() == 1.0 and second.requires_grad and len(x) == 2
    assert grad(sum(x), x)[0].tolist() == [1.0, 1.0]
    with pytest.raises(TypeError):
        len(Tensor(1.0))


def test_numpy_detach_item():
    x = leaf(2, 3)
    assert x.numpy() is x.data
    d = x.detach()
    assert d.data is x.data and not d.requires_grad and d.origin is None
    assert type(x.sum().item()) is float and x.sum().item() == pytest.approx(x.data.sum())
    with pytest.raises(ValueError):
        x.item()
    assert (x.shape, x.ndim, x.size, x.dtype) == ((2, 3), 2, 6, np.float64)
    assert x.T.shape == (3, 2)


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_copies_are_leaves_of_their_own(duplicate):
    """A copy with its original's number would have its gradient added to the original's."""
    a = Tensor([2.0, 3.0], requires_grad=True)
    b = duplicate(a)
    assert b.requires_grad and b.number != a.number and np.array_equal(a.data, b.data)
    (a * b * b).sum().backward()
    assert a.grad.tolist() == [4.0, 9.0] and b.grad.tolist() == [8.0, 18.0]
    c = duplicate(a * 2.0)
    assert not c.requires_grad and c.origin is None


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))]
)
def test_a_copy_has_no_part_in_the_gradient_of_its_original(duplicate):
    """A deep copy has a gradient of its own, a shallow one none: what it collects is its alone."""
    a = Tensor([2.0, 3.0], requires_grad=True)
    (a * a).sum().backward()
    b = duplicate(a)
    before = [0.0, 0.0] if duplicate is copy.copy else [4.0, 6.0]
    assert (b.grad is None) if duplicate is copy.copy else (b.grad.tolist() == before)
    (b * 10.0).sum().backward()
    assert a.grad.tolist() == [4.0, 6.0] and b.grad.tolist() == [g + 10 for g in before]


def test_operators_reach_the_table():
    x, a = leaf(2, 2), np.random.default_rng(1).random((2, 2))
    for y, expected in (
        (x + a, x.data + a),
        (a + x, a + x.data),
        (x - a, x.data - a),
        (a - x, a - x.data),
        (x * a, x.data * a),
        (a * x, a * x.data),
        (x / a, x.data / a),
        (a / x, a / x.data),
        (x @ a, x.data @ a),
        (a @ x, a @ x.data),
        (x**a, x.data**a),
        (a**x, a**x.data),
        (-x, -x.data),
        (abs(-x), x.data),
        (2 - x, 2 - x.data),
        (2 / x, 2 / x.data),
    ):
        assert isinstance(y, Tensor) and y.requires_grad and np.array_equal(y.data, expected)


def test_arrays_stay_arrays():
    """The table's primitives and derived functions on plain arrays give plain arrays."""
    a = np.arange(1.0, 4.0)
    assert type(ops.exp(a)) is np.ndarray and type(derived.var(a)) in (np.ndarray, np.float64)
    assert type(ops.sum_(a)) is np.float64


# ------------------------------------------------------------------------------------------------- create_graph
def test_third_derivatives():
    x = Tensor(np.array([0.3, 0.7, 1.1]), requires_grad=True)
    y = np.sin(x) * np.exp(2.0 * x)
    for order in range(1, 5):
        (y,) = grad(y.sum(), x, create_graph=True)
        exact = ((2 + 1j) ** order * np.exp((2 + 1j) * x.data)).imag
        assert np.allclose(y.data, exact, rtol=1e-12), order


def test_hessian_of_log_sum_exp():
    x = Tensor(np.array([0.1, 1.2, -0.4]), requires_grad=True)
    (g,) = grad(np.log(np.sum(np.exp(x))), x, create_graph=True)
    hessian = np.array([grad(g[i], x)[0] for i in range(3)])
    p = special.softmax(x.data)
    assert np.allclose(g.data, p, rtol=1e-14)
    assert np.allclose(hessian, np.diag(p) - np.outer(p, p), rtol=1e-12, atol=1e-15)


def test_gradient_of_a_gradient_with_respect_to_an_intermediate():
    x = Tensor(np.array([0.5, 1.5]), requires_grad=True)
    a = x * x
    (g,) = grad((a**3).sum(), a, create_graph=True)  # 3 a^2
    of_a, of_x = grad(g.sum(), [a, x])  # 6 a, and 6 a * 2 x
    assert np.allclose(of_a, 6.0 * a.data) and np.allclose(of_x, 12.0 * a.data * x.data)


def test_the_gradient_given_is_differentiated_too():
    x, v = leaf(3), leaf(3, seed=1)
    (product,) = grad(np.exp(x), x, gradient=v, create_graph=True)  # v exp(x)
    of_x, of_v = grad(product.sum(), [x, v])
    assert np.allclose(of_x, v.data * np.exp(x.data)) and np.allclose(of_v, np.exp(x.data))


def test_without_create_graph_gradients_are_arrays_and_nothing_is_recorded():
    x = leaf(3)
    (g,) = grad(np.exp(x).sum(), x)
    assert type(g) is np.ndarray
    (h,) = grad(np.exp(x).sum(), x, create_graph=True)
    assert isinstance(h, Tensor) and h.requires_grad


def test_gradient_penalty_trains():
    """backward() through a gradient: d/dw of |d(w x^2)/dx|^2 = 8 w x^2."""
    w, x = Tensor(1.5, requires_grad=True), Tensor(0.7, requires_grad=True)
    (g,) = grad(w * x * x, x, create_graph=True)
    (g * g).backward()
    assert w.grad == pytest.approx(8 * 1.5 * 0.49) and x.grad == pytest.approx(8 * 1.5**2 * 0.7)


# ------------------------------------------------------------------------------------------ primitives of a user
def test_a_primitive_of_a_user():
    with table_as_it_was():
        dawsn = primitive(special.dawsn, lambda g, y, x: g * (1.0 - 2.0 * x * y))
        x = leaf(3)
        assert PRIMITIVES["dawsn"] is dawsn
        y = special.dawsn(x)
        (g,) = grad(y.sum(), x, create_graph=True)
        slope = 1.0 - 2.0 * x.data * y.data
        assert np.allclose(g.data, slope)
        assert np.allclose(grad(g.sum(), x)[0], -2.0 * (y.data + x.data * slope))
        assert type(dawsn(x.data)) is np.ndarray
    with raises(TypeError, "dawsn is not in minigrad's table"):
        special.dawsn(x)


def test_a_primitive_with_keywords_and_an_input_without_a_rule():
    with table_as_it_was():

        def scaled(x, mask, factor=2.0):
            return np.where(mask, x * factor, 0.0)

        scaled = primitive(
            scaled, lambda g, y, x, mask, factor=2.0: np.where(mask, g * factor, 0.0), None
        )
        x, mask = leaf(3), np.array([True, False, True])
        for y, factor in (
            (scaled(x, mask), 2.0),
            (scaled(x, mask, factor=3.0), 3.0),
            (scaled(x, mask, 4.0), 4.0),
        ):
            assert np.array_equal(y.data, np.where(mask, x.data * factor, 0.0))
            assert np.array_equal(grad(y.sum(), x)[0], mask * factor)
        with raises(TypeError, "scaled: colour= is not supported", "factor"):
            scaled(x, mask, colour=1)


def test_a_twin_is_what_is_differentiated_twice():
    with table_as_it_was():
        kernel = fuse(
            lambda x: x * x * x,
            lambda needs, x: (x**3, None),
            lambda g, y, saved, needs, x: [np.multiply(g, 3.0 * x**2, out=np.empty(3))],
            "cube",
        )
        x = leaf(3)
        (g,) = grad(kernel(x).sum(), x, create_graph=True)
        assert np.allclose(g.data, 3.0 * x.data**2)
        assert np.allclose(grad(g.sum(), x)[0], 6.0 * x.data)
        assert math.isclose(grad(kernel(x * 2.0).sum(), x)[0][0], 24.0 * x.data[0] ** 2)


# ------------------------------------------------------------------------------------------------- found by readers
def test_no_subclasses():
    with raises(TypeError, "Tensor has no subclasses", "exact type"):
        type("Special", (Tensor,), {})


@pytest.mark.parametrize("dtype", [int, bool, np.uint8])
def test_a_tensor_does_not_become_integers(dtype):
    """Their derivative would be 0, and constants beside them would be cut off."""
    with raises(TypeError, "astype", "floating", ".data.astype"):
        leaf(3).astype(dtype)


def test_create_graph_records_within_no_grad():
    x = leaf(3)
    y = np.sum(functional.softmax(x) * np.arange(3.0))
    expected = grad(np.sum(grad(y, x, create_graph=True)[0] ** 2), x)[0]
    with no_grad():
        slope = grad(y, x, create_graph=True)[0]
        assert slope.requires_grad and not np.exp(x).requires_grad
    np.testing.assert_allclose(grad(np.sum(slope**2), x)[0], expected)


def test_a_float_result_becomes_an_array():
    half = primitive(
        lambda x: float(x.sum()) / 2, lambda g, y, x: np.full(x.shape, 0.5) * g, name="half_the_sum"
    )
    try:
        y = half(leaf(4))
        assert y.shape == () and y.size == 1
    finally:
        del PRIMITIVES["half_the_sum"]


def test_the_gradient_of_max_stays_float32():
    x = Tensor(np.array([1, 3, 3], np.float32), requires_grad=True)
    rule = PRIMITIVES["max"].rules[0]
    g = rule(np.float32(1.0), np.float32(3.0), x.data)
    assert g.dtype == np.float32 and g.tolist() == [0.0, 0.5, 0.5]


# ------------------------------------------------------------------------------------------ a number
TO_NUMBERS = {
    "array[i] = t": lambda array, t: operator.setitem(array, 0, t),
    "integers[i] = t": lambda array, t: operator.setitem(np.zeros(2, int), 0, t),
    "complex[i] = t": lambda array, t: operator.setitem(np.zeros(2, complex), 0, t),
    "fill": lambda array, t: array.fill(t),
    "fromiter": lambda array, t: np.fromiter([t, t], float),
    "sum(initial=)": lambda array, t: np.sum(array, initial=t),
    "array.array": lambda array, t: array_of_python("d", [t]),
    "math.exp": lambda array, t: math.exp(t),
    "math.floor": lambda array, t: math.floor(t),
    "float": lambda array, t: float(t),
    "int": lambda array, t: int(t),
    "complex": lambda array, t: complex(t),
    "%": lambda array, t: operator.mod("%.3f", t),
}


def in_words(error):
    """The message of an error and of those it came from."""
    return "" if error is None else f"{error} {in_words(error.__cause__)}"


@pytest.mark.parametrize("name", TO_NUMBERS)
@pytest.mark.parametrize("make", [leaf, lambda: leaf() * 2.0, lambda: leaf(3)[0]])
def test_a_tensor_that_needs_a_gradient_does_not_become_a_number(name, make):
    array = np.zeros(3)
    with pytest.raises((TypeError, ValueError)) as caught:
        TO_NUMBERS[name](array, make())
    message = in_words(caught.value)
    assert "needs a gradient" in message and ".item()" in message and "numpy.stack" in message
    assert not array.any()


def test_an_array_keeps_its_entry_where_numpy_says_less():
    array = np.zeros(3)
    with pytest.raises(ValueError):
        array.flat[0] = leaf()
    with raises(TypeError, "silently"):
        np.float64(leaf())
    with raises(TypeError, "Tensor.*__round__"):
        round(leaf())
    with raises(TypeError, "Tensor.*integer"):
        range(leaf())
    assert not array.any()


@pytest.mark.parametrize("name", TO_NUMBERS)
def test_a_constant_becomes_a_number(name):
    array = np.zeros(3)
    with no_grad():
        total = np.sum(leaf(2))
    for constant in (Tensor(1.5), total, leaf().detach()):
        TO_NUMBERS[name](array, constant)
    assert float(Tensor(1.5)) == 1.5 and int(Tensor(-1.5)) == -1 and math.exp(Tensor(0.0)) == 1.0
    with pytest.raises(TypeError):
        float(Tensor([1.0, 2.0]))


def test_a_number_by_item_and_in_print():
    x = Tensor(0.1234, requires_grad=True)
    assert x.item() == 0.1234 and f"{x * 2.0:.3f}" == "0.247" and bool(x) and not x > 1.0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_full_like_keeps_the_derivative_of_what_it_fills_with(dtype):
    x, s = leaf(2, 3, dtype=dtype), leaf()
    y = np.full_like(x, s * s)
    assert y.shape == (2, 3) and y.dtype == dtype and np.all(y.data == dtype(s.data**2))
    assert grad(y.sum(), s)[0] == pytest.approx(6 * 2 * s.item(), rel=1e-6)
    assert np.full_like(x, s, shape=(4,)).shape == (4,)
    plain = np.full_like(x, 7, dtype=int)
    assert type(plain) is np.ndarray and plain.dtype == int and plain.tolist() == [[7] * 3] * 2
    with raises(TypeError, "copyto"):
        np.full_like(np.zeros(3), s)


def test_lists_of_tensors_and_functions_that_are_elsewhere_are_pointed_to():
    x = leaf(3)
    for call in (
        lambda: np.array([x, x]),
        lambda: np.asarray([x[0], x[1]]),
        lambda: np.array([x[0], 1.0], dtype=float),
        lambda: Tensor([x, x]),
    ):
        with raises(TypeError, r"list of Tensors.*numpy\.stack"):
            call()
    for function in (special.logsumexp, special.softmax, special.log_softmax):
        with raises(TypeError, function.__name__, r"minigrad\.functional"):
            function(x)
    with raises(TypeError, "polygamma", r"minigrad\.functional"):
        special.polygamma(1, x)


def test_python_operators_without_a_rule_name_themselves():
    x = leaf(3)
    for symbol in ("&", "|", "^", "<<", ">>"):
        for text in (f"x {symbol} 2", f"2 {symbol} x"):
            with raises(TypeError, re.escape(symbol), "Tensor"):
                eval(text, {"x": x})
        with raises(TypeError, re.escape(f"{symbol}="), "Tensor"):
            exec(f"x {symbol}= 2", {"x": x})
    with raises(TypeError, "~", "Tensor"):
        ~x
    for call in (
        lambda: np.frexp(x),
        lambda: np.bitwise_and(x, x),
        lambda: np.spacing(x),
        lambda: np.ones(3) @ np.frexp(x),
    ):
        with raises(TypeError, "numpy.(frexp|bitwise_and|spacing) is not in minigrad's table"):
            call()


# ----------------------------------------------------------------------------- changes in place
AUGMENTED = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "**=": operator.ipow,
    "//=": operator.ifloordiv,
}
PLAINLY = {
    "+=": operator.add,
    "-=": operator.sub,
    "*=": operator.mul,
    "/=": operator.truediv,
    "**=": operator.pow,
    "//=": operator.floordiv,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "other",
    [2, 0.5, np.float64(3.0), np.arange(1.0, 4.0), np.arange(1, 4), Tensor([0.5, 1.0, 2.0])],
    ids=["int", "float", "NumPy scalar", "array", "integers", "Tensor"],
)
@pytest.mark.parametrize("symbol", AUGMENTED)
def test_under_no_grad_a_leaf_changes_in_place(symbol, other, dtype):
    weights = np.zeros(5, dtype)
    weights[1:4] = [1.0, 2.0, 3.0]
    w = Tensor(weights[1:4], requires_grad=True)
    before, data = w, w.data
    plain = getattr(other, "data", other) if isinstance(other, Tensor) else other
    expected = PLAINLY[symbol](weights[1:4].astype(np.float64), np.asarray(plain, np.float64))
    with no_grad():
        w = AUGMENTED[symbol](w, other)
    assert w is before and w.data is data and w.dtype == dtype and w.requires_grad
    assert w.origin is None and weights[0] == weights[4] == 0.0
    np.testing.assert_allclose(weights[1:4], expected, rtol=1e-6)


def test_matrix_product_in_place():
    w, a = leaf(3, 3), np.random.default_rng(1).random((3, 3))
    before, data, expected = w, w.data, w.data @ a
    with no_grad():
        w @= a
    assert w is before and w.data is data
    np.testing.assert_allclose(w.data, expected, rtol=1e-14)


def test_numbers_of_no_axes_change_in_place():
    w = Tensor(2.0, requires_grad=True)
    before, data = w, w.data
    with no_grad():
        w -= 0.5
        w *= w
    assert w is before and w.data is data and w.item() == 2.25


def test_gradient_descent_as_the_book_has_it():
    """A leaf under no_grad goes downhill; that of (w - 3)^2 by half of the way each time."""
    w = Tensor([1.0, 5.0], requires_grad=True)
    for _ in range(40):
        w.grad = None
        np.sum(np.square(w - 3.0)).backward()
        with no_grad():
            w -= 0.25 * w.grad
    np.testing.assert_allclose(w.data, [3.0, 3.0], rtol=1e-10)


def test_a_leaf_keeps_its_shape_and_what_fails_changes_nothing():
    w = leaf(3)
    before = w.data.copy()
    with no_grad():
        with raises(ValueError, r"w \+= \.\.\.: w has shape \(3,\)", r"\(2, 3\)", r"w = w \+"):
            w += np.ones((2, 3))
        with raises(ValueError, r"add\(float64\[3\], float64\[4\]\)"):
            w += np.ones(4)
        with raises(TypeError, "add: an operand is a str"):
            w += "a"
        with raises(TypeError, "w|remainder|complex"):
            w *= 1j
    assert np.array_equal(w.data, before)
    fixed = Tensor(np.broadcast_to(1.0, 3), requires_grad=True)
    with no_grad(), raises(ValueError, r"w \*= \.\.\.\(float64\[3\]", "read-only"):
        fixed *= 2.0


@pytest.mark.parametrize("symbol", [*AUGMENTED, "@=", "%="])
def test_a_leaf_does_not_change_while_operations_are_recorded(symbol):
    w = leaf(3, 3)
    before, data = w, w.data.copy()
    with raises(RuntimeError, rf"w {re.escape(symbol)}", "leaf", r"no_grad\(\)", "w = w "):
        exec(f"w {symbol} np.ones((3, 3))", {"w": w, "np": np})
    assert w is before and np.array_equal(w.data, data)


def test_other_tensors_are_values():
    """a -= b is a = a - b: recorded if b is, and nobody else's a changes."""
    x = leaf(3)
    for a in (x * 2.0, Tensor(np.ones(3))):
        other_name, data = a, a.data.copy()
        a -= x
        assert a is not other_name and np.array_equal(other_name.data, data)
        assert a.origin.primitive.__name__ == "subtract"
        with no_grad():
            a *= 2.0
            other_name -= x
        assert not a.requires_grad and np.array_equal(a.data, 2.0 * (data - x.data))
        assert not np.shares_memory(other_name.data, data)
    total = 0.0
    total += x.sum()
    assert grad(total, x)[0].tolist() == [1.0, 1.0, 1.0]


def test_a_modules_parameter_is_not_lost():
    layer = nn.Linear(2, 1)
    optimizer = optim.SGD(layer.parameters(), learning_rate=1.0)
    weight = layer.weight
    with raises(RuntimeError, "leaf that needs a gradient"):
        layer.weight += 1.0
    before = weight.data.copy()
    with no_grad():
        layer.weight += 1.0
    assert layer.weight is weight and [name for name, _ in layer.named_parameters()] == [
        "weight",
        "bias",
    ]
    np.testing.assert_allclose(optimizer.weights[:2], before[0] + 1.0)
    layer(np.ones((1, 2), np.float32)).backward()
    optimizer.step()
    np.testing.assert_allclose(layer.weight.data, before, atol=1e-6)


def test_a_frozen_parameter_is_not_lost_either():
    layer = nn.Linear(2, 1)
    bias, data = layer.bias, layer.bias.data
    layer.bias.requires_grad = False
    before = bias.data.copy()
    with raises(RuntimeError, "frozen parameter", "no_grad"):
        layer.bias += 1.0
    with no_grad():
        layer.bias += 1.0
    assert layer.bias is bias and bias.data is data and not bias.requires_grad
    np.testing.assert_allclose(layer.state_dict()["bias"], before + 1.0, rtol=1e-6)


def test_a_graph_over_a_leaf_that_has_changed_since_is_refused():
    """The rule of w * w would look at the new w: its slope would be 2 * 5 and not 2 * 3."""
    for call in (
        lambda a, w: a.backward(),
        lambda a, w: (a * w).backward(),
        lambda a, w: grad(a * 1.0, w),
        lambda a, w: grad(a, w, create_graph=True),
    ):
        w = Tensor(3.0, requires_grad=True)
        a = w * w
        with no_grad():
            w += 2.0
        with raises(RuntimeError, "an input of multiply was changed in place", "forward again"):
            call(a, w)
        assert w.grad is None
    assert grad(a * w, a)[0] == 5.0  # as far as a, all is as it was
    (w * w).backward()
    assert w.grad == 10.0


# ----------------------------------------------------------------------------------------- copies
@pytest.mark.parametrize(
    "duplicate",
    [np.copy, np.positive, operator.pos, Tensor.copy, Tensor.flatten, copy.copy, copy.deepcopy],
)
def test_what_promises_a_copy_copies(duplicate):
    x = leaf(3)
    y = duplicate(x)
    assert y is not x and np.array_equal(y.data, x.data)
    assert not np.shares_memory(y.data, x.data)
    with no_grad():
        x += 1.0
    assert np.array_equal(y.data + 1.0, x.data)


@pytest.mark.parametrize("duplicate", [np.copy, operator.pos, Tensor.copy])
def test_the_derivative_passes_through_a_copy(duplicate):
    x = leaf(3)
    (g,) = grad(np.sum(duplicate(x) ** 3), x, create_graph=True)
    np.testing.assert_allclose(g.data, 3.0 * x.data**2, rtol=1e-14)
    np.testing.assert_allclose(grad(g.sum(), x)[0], 6.0 * x.data, rtol=1e-14)


# ----------------------------------------------------------------------------------------- dtypes
@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_float32_and_float64_are_what_is_computed_in(dtype):
    if np.dtype(dtype).char in "fd":
        pytest.skip("here a long double is a double")
    name = np.dtype(dtype).name
    for call in (
        lambda: Tensor(np.ones(3, dtype)),
        lambda: Tensor(dtype(1.0)),
        lambda: Tensor([1.0, 2.0], dtype=dtype),
        lambda: leaf(3).astype(dtype),
        lambda: np.astype(leaf(3), dtype),
        lambda: nn.Parameter(np.ones(3, dtype)),
        lambda: nn.Linear(2, 2, dtype=dtype),
    ):
        with raises(TypeError, name, r"numpy\.float32 or numpy\.float64"):
            call()
    assert Tensor(np.ones(3, dtype), dtype=np.float32).dtype == np.float32


def test_halves_beside_a_tensor_follow_its_dtype():
    """b - 1 in float16 would be off by 1e-4, and x * x would overflow at 256."""
    half = np.array([1.7, 2.3, 300.0], np.float16)
    for dtype in (np.float32, np.float64):
        x = Tensor(np.array([0.3, 0.7, 1.01], dtype), requires_grad=True)
        y = x**half
        assert y.dtype == dtype
        b, v = half.astype(np.float64), x.data.astype(np.float64)
        np.testing.assert_allclose(grad(y.sum(), x)[0], b * v ** (b - 1.0), rtol=1e-4)
        assert np.array_equal((x * half).data, x.data * half.astype(dtype))
        assert np.array_equal((half + x).data, half.astype(dtype) + x.data)
    if np.dtype(np.longdouble).char not in "fd":
        with raises(TypeError, "multiply: an operand is an array of", "float32 or float64"):
            x * np.ones(3, np.longdouble)


@pytest.mark.parametrize("dtype", [int, bool, complex])
def test_the_function_astype_refuses_what_the_method_refuses(dtype):
    with raises(TypeError, "astype", "floating", ".data.astype"):
        np.astype(leaf(3), dtype)


def test_a_gradient_of_complex_numbers_is_refused():
    x = leaf(3)
    for call in (x.backward, lambda g: grad(x * 1.0, x, g)):
        with raises(TypeError, "gradient is of complex128", "real"):
            call(np.ones(3, complex))
    assert x.grad is None


# ------------------------------------------------------------------------------------ wrong rules
WRONG = {  # what a rule returns -> what the error says of it
    "a float": (lambda g, x: 2.0, "float 2.0"),
    "None": (lambda g, x: None, "returned None"),
    "a list": (lambda g, x: [1.0, 1.0], r"list \[1.0, 1.0\]"),
    "integers": (lambda g, x: np.ones((2, 3), int), r"ndarray int64\[2, 3\]"),
    "truths": (lambda g, x: x > 0, r"ndarray bool\[2, 3\]"),
    "complex": (lambda g, x: g * 1j, r"ndarray complex128\[2, 3\]"),
    "text": (lambda g, x: np.full((2, 3), "a"), r"ndarray <U1\[2, 3\]"),
    "transposed": (lambda g, x: g.T, r"ndarray float64\[3, 2\]"),
    "flat": (lambda g, x: np.ravel(g), r"ndarray float64\[6\]"),
    "a part": (lambda g, x: g[:1], r"ndarray float64\[1, 3\]"),
    "a sum": (lambda g, x: np.sum(g), r"float64 float64\[\]"),
}


@pytest.mark.parametrize("release", [False, True], ids=["grad", "backward"])
@pytest.mark.parametrize("kind", ["primitive", "fuse"])
@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_returns_no_gradient_is_named(name, kind, release):
    wrong, found = WRONG[name]
    with table_as_it_was():
        if kind == "primitive":
            twice = primitive(
                lambda c, x: 2.0 * x + 0.0 * c,
                lambda g, y, c, x: g,
                lambda g, y, c, x: wrong(g, x),
                name="twice",
            )
        else:
            twice = fuse(
                None,
                lambda needs, c, x: (2.0 * x + 0.0 * c, None),
                lambda g, y, saved, needs, c, x: [g, wrong(g, x)],
                "twice",
            )
        x = leaf(2, 3)
        y = twice(np.ones((2, 3)), x)
        with raises((TypeError, ValueError), "the rule of twice", "input 1", found):
            if release:
                y.backward(np.ones((2, 3)))
            else:
                grad(y, x, np.ones((2, 3)))
        assert x.grad is None


def test_a_joint_rule_that_forgets_an_input_is_named():
    with table_as_it_was():
        forgetful = fuse(
            None,
            lambda needs, a, b: (a * b, None),
            lambda g, y, saved, needs, a, b: [g * b],
            "forgetful",
        )
        a, b = leaf(3), leaf(3)
        with raises(TypeError, "the rule of forgetful", "1 gradients for 2 inputs"):
            forgetful(a, b).sum().backward()


def test_an_error_within_a_rule_names_the_operation_and_its_inputs():
    with table_as_it_was():
        for error in (ValueError, TypeError, IndexError, np.linalg.LinAlgError):

            def rule(g, y, x, error=error):
                raise error("what happened")

            broken = primitive(lambda x: x * 1.0, rule, name="broken")
            with raises(error, r"the rule of broken\(float64\[3\]\): what happened"):
                broken(leaf(3)).sum().backward()


def test_what_rules_may_return():
    """Wider shapes are summed, other floating dtypes are cast, numbers of NumPy are arrays."""
    with table_as_it_was():
        wide = primitive(
            lambda x: np.float32(2.0) * x,
            lambda g, y, x: np.full((5, 2, 3), 2.0),
            name="wide",
        )
        x = leaf(1, 3, dtype=np.float32)
        g = grad(wide(x), x, np.ones((1, 3)))[0]
        assert g.dtype == np.float32 and g.tolist() == [[20.0] * 3]
        one = primitive(lambda x: x * 2.0, lambda g, y, x: np.float64(2.0), name="one")
        x = leaf()
        assert grad(one(x), x)[0] == 2.0


def test_a_constant_slope_is_a_tensor_where_a_graph_is_asked_for():
    with table_as_it_was():
        step = primitive(np.heaviside, lambda g, y, x, h: np.zeros(x.shape), None)
        x = leaf(3)
        (slope,) = grad(step(x, 0.5), x, np.ones(3), create_graph=True)
        assert isinstance(slope, Tensor) and not slope.data.any()


# ------------------------------------------------------------------------------------------- help
def test_help_says_what_every_method_operator_and_attribute_does():
    without = {
        "__hash__",
        "__doc__",
        "__module__",
        "__annotations__",
        "__array_priority__",
        "__weakref__",
    }
    for name in vars(Tensor).keys() - without - {"__slots__"}:
        text = inspect.getdoc(getattr(Tensor, name))
        of_python = getattr(getattr(object, name, None), "__doc__", None)
        assert text and text != of_python and text.split("\n\n")[0].endswith((".", ")")), name
    for name in dir(Tensor):
        assert inspect.getdoc(getattr(Tensor, name)), name
    page = pydoc.plain(pydoc.render_doc(Tensor))
    for words in ("Whether a gradient may be asked for", "self ** other", "see no_grad"):
        assert words in page, words
