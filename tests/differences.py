"""Difference quotients of a whole model, for the tests of autoencoders and VAEs."""

import numpy as np
import pytest


def check_gradients(model, loss, h=1e-6, abs=1e-8):
    """The gradient of every parameter, in three random directions, against central differences. All in float64."""
    for p in model.parameters():
        p.grad = None
    loss().backward()
    rng = np.random.default_rng(7)
    for name, p in model.named_parameters():
        start = p.data.copy()
        for _ in range(3):
            direction = rng.standard_normal(p.shape)
            values = []
            for side in (h, -h):
                p.data[...] = start + side * direction
                values.append(loss().item())
            p.data[...] = start
            slope, expected = np.sum(p.grad * direction), (values[0] - values[1]) / (2 * h)
            assert slope == pytest.approx(expected, rel=1e-6, abs=abs), name
