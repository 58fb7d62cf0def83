from minigrad import derived  # noqa: F401
from minigrad.tensor import Tensor, grad, no_grad, primitive, PRIMITIVES
