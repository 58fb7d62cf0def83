"""minigrad: reverse-mode automatic differentiation on plain NumPy, small enough to read in one sitting."""
from minigrad import backend, derived, distributions, functional, nn, optim, trace
from minigrad.checking import GradientError, gradcheck
from minigrad.tensor import PRIMITIVES, Tensor, grad, no_grad, primitive

__all__ = ["Tensor", "grad", "no_grad", "gradcheck", "primitive", "PRIMITIVES", "GradientError",
           "nn", "optim", "distributions", "functional", "trace", "backend", "derived"]
