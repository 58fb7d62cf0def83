"""Copies of a model and its optimiser, in memory, for the tests of the engine and of each model."""

import copy
import pickle

import numpy as np

from minigrad import optim

WAYS = {"deepcopy": copy.deepcopy, "pickle": lambda things: pickle.loads(pickle.dumps(things))}


def base(a):
    """The array that owns the memory of a view."""
    while a.base is not None:
        a = a.base
    return a


def check_copies(model, loss, way, make=optim.Adam):
    """A copy of (model, optimiser) trains to the bits of its original, each without moving the other.

    model: any Module, untrained. loss: a function of (model, step), a scalar Tensor. way: of WAYS.
    """

    def train(model, optimizer, steps):
        for step in steps:
            optimizer.zero_grad()
            loss(model, step).backward()
            optimizer.step()
        return model.state_dict()

    def assert_same(found, expected):
        for name in expected:
            assert np.array_equal(found[name], expected[name]), name

    def assert_all_moved(model, before):
        """Each parameter that has a gradient."""
        for name, p in model.named_parameters():
            moved = np.any(p.data != before[name])
            assert moved == (p.grad is not None and np.any(p.grad)), name

    optimizer = make(model.parameters())
    start = train(model, optimizer, range(3))
    (copied, its_optimizer), (other_optimizer, other) = (
        WAYS[way]((model, optimizer)),
        WAYS[way]((optimizer, model)),  # in another order
    )
    alone = WAYS[way](model)
    end = train(copied, its_optimizer, range(3, 6))
    assert_all_moved(copied, start)
    assert_same(model.state_dict(), start)
    assert_same(train(other, other_optimizer, range(3, 6)), end)
    assert_same(model.state_dict(), start)
    assert_same(train(model, optimizer, range(3, 6)), end)
    assert_same(copied.state_dict(), end)
    for p in copied.parameters():
        assert base(p.data) is its_optimizer.weights
        assert p.grad is None or base(p.grad) is its_optimizer.gradients

    # A model that was copied alone is one like the original, with no optimiser.
    assert_same(alone.state_dict(), start)
    train(alone, make(alone.parameters()), range(1))
    assert_all_moved(alone, start)
    assert_same(model.state_dict(), end)
