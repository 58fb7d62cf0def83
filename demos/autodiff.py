"""How a gradient is found: a small expression, its tape and graph, backward by hand and by engine.

The chapter's "standard backpropagation". Every operation on a Tensor leaves a step on the tape.
Backwards along it, each step multiplies the gradient of its output by its own slope. `x` is used
twice below, so two gradients arrive at it, and the derivative is their sum: whoever overwrites
instead of adding gets it wrong. The gradient is itself made of operations, so it can be
differentiated again. And a rule with a small fault in it does not get past the gradient check.
"""

from __future__ import annotations

import numpy as np

from demos import show  # noqa: F401 (its folder is where pictures go)
from minigrad import GradientError, Tensor, grad, gradcheck, primitive, trace
from minigrad.table import PRIMITIVES
from minigrad.tensor import IMPLEMENTATIONS
from models import SCVI


def by_hand(x: float, w: float) -> tuple[float, float]:
    """dL/dx and dL/dw of L = log(1 + exp(w x)) * x, step by step, as on paper."""
    a = w * x  # forward
    e = np.exp(a)
    s = np.log(1 + e)
    d_s, d_x = x, s  # L = s x: x is used here ...
    d_a = d_s * e / (1 + e)
    return d_x + d_a * w, d_a * x  # ... and in a = w x: what arrives by the two ways adds up


def draw_scvi(out) -> None:
    """The graph of a whole model: the loss of scVI on a minibatch, a box for each of its
    networks.
    """
    rng = np.random.default_rng(0)
    model = SCVI(n_genes=100)
    loss = model.loss(rng.poisson(1.0, (128, 100)).astype(np.float32), np.zeros(128, int), rng=rng)
    print(
        f"\na whole model is no different: the loss of scVI has {len(trace.table(loss))} steps, "
        "see autodiff_scvi.png"
    )
    trace.draw(loss, out / "autodiff_scvi.png", names=model)
    (out / "autodiff_scvi.caption").write_text(
        "The graph of scVI's loss, minus the evidence lower bound; what belongs to one network is "
        "listed in one box.\n"
    )


def run(options) -> None:
    x, w = Tensor(1.5, requires_grad=True), Tensor(-0.5, requires_grad=True)
    loss = np.log(1.0 + np.exp(w * x)) * x
    names = {x: "x", w: "w"}
    print("the tape of  log(1 + exp(w x)) * x\n")
    print(trace.table(loss, names=names))
    trace.draw(loss, options.out / "autodiff.png", names=names)
    (options.out / "autodiff.caption").write_text(
        "The graph of log(1 + exp(w x)) * x with values and gradients; two arrows leave x, so its "
        "gradient is a sum of two.\n"
    )

    (slope_x,) = grad(loss, x, create_graph=True)
    (curvature,) = grad(slope_x, x)
    loss.backward()
    print(
        f"\nby hand:   dL/dx = {by_hand(1.5, -0.5)[0]:.12f}   dL/dw = {by_hand(1.5, -0.5)[1]:.12f}"
    )
    print(f"by engine: dL/dx = {x.grad:.12f}   dL/dw = {w.grad:.12f}")
    h = 1e-4
    numeric = (by_hand(1.5 + h, -0.5)[0] - by_hand(1.5 - h, -0.5)[0]) / (2 * h)
    print(
        f"second derivative d2L/dx2: {curvature:.8f} by engine, {numeric:.8f} by a difference of "
        "hand-made gradients"
    )

    errors = gradcheck(lambda a: np.log(1.0 + np.exp(a)) * a, np.linspace(-2, 2, 5))
    print(
        f"\ngradient check of the right rules: relative errors {errors[0]:.0e} (first) and "
        f"{errors[1]:.0e} (second order)"
    )
    wrong = primitive(
        lambda a: np.sinh(a), lambda g, y, a: 1.001 * g * np.cosh(a), name="sinh_with_a_fault"
    )
    try:
        gradcheck(wrong, np.linspace(-1, 1, 3))
    except GradientError as error:
        print(
            "gradient check of a rule that is wrong by a factor of 1.001:\n  GradientError: "
            f"{error}"
        )
    finally:
        PRIMITIVES.pop("sinh_with_a_fault")
        IMPLEMENTATIONS.pop(next(f for f, p in IMPLEMENTATIONS.items() if p is wrong))
    draw_scvi(options.out)
