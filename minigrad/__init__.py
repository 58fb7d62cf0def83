"""minigrad: reverse-mode automatic differentiation on plain NumPy.

This is a reference: the names that `import minigrad` offers. README says where to begin reading.
"""

from minigrad import (
    backend,
    derived,
    distributions,
    einsum,
    functional,
    matrices,
    nn,
    optim,
    samples,
    special_functions,
    trace,
)
from minigrad.table import PRIMITIVES, primitive
from minigrad.tensor import Tensor, grad, no_grad

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
    "einsum",
    "matrices",
    "samples",
    "special_functions",
]


def __getattr__(name):
    """gradcheck and GradientError, imported when first asked for.

    `python -m minigrad.checking` must find its module not yet imported.
    """
    if name in ("gradcheck", "GradientError"):
        from minigrad import checking

        return getattr(checking, name)
    raise AttributeError(f"module 'minigrad' has no attribute {name!r}")
