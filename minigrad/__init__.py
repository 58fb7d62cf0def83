"""minigrad: reverse-mode automatic differentiation on plain NumPy, small enough to read in one sitting."""

from minigrad import backend, derived, distributions, functional, nn, optim, trace
from minigrad.tensor import PRIMITIVES, Tensor, grad, no_grad, primitive

__all__ = [
    "Tensor",
    "grad",
    "no_grad",
    "gradcheck",
    "primitive",
    "PRIMITIVES",
    "GradientError",
    "nn",
    "optim",
    "distributions",
    "functional",
    "trace",
    "backend",
    "derived",
]


def __getattr__(name):
    """gradcheck and GradientError, imported when first asked for: `python -m minigrad.checking` must find it unimported."""
    if name in ("gradcheck", "GradientError"):
        from minigrad import checking

        return getattr(checking, name)
    raise AttributeError(f"module 'minigrad' has no attribute {name!r}")
