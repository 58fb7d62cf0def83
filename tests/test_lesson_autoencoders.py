"""The lesson on autoencoders: what it computes is what it says, and its exercise is checked."""

import numpy as np
import pytest
from lesson_cells import Lesson


@pytest.fixture(scope="module")
def lesson():
    return Lesson("autoencoders")


def test_unfilled_it_says_so_and_the_folded_solution_is_right(lesson):
    assert lesson.printed.splitlines()[-1].startswith("not yet: ")
    assert lesson.answer(lesson.solution).startswith("Right")


@pytest.mark.parametrize(
    "loss, hint",
    [
        ("np.mean(np.square(decode(encode(noisy)) - noisy))", "compare with the noisy rows"),
        ("np.sum(np.square(decode(encode(noisy)) - x))", "a mean, not a sum"),
        ("np.mean(np.square(decode(encode(noisy)) - x), axis=1)", "must be one number"),
        ("np.mean(np.abs(decode(encode(noisy)) - x))", "the noise's variance"),
        ("np.mean(np.square(encode(decode(noisy)) - x))", "decode(encode(...))"),
        ("np.mean(np.square(decode(encode(x) + noisy - x) - x))", "only encode sees the noise"),
        ("np.mean(np.square(decode(encode(x)) - noisy))", "only encode sees the noise"),
        ("np.mean(np.asarray(decode(encode(noisy)) - x) ** 2)", "cannot be differentiated"),
        ("np.mean(np.square(data_of(decode(encode(noisy))) - x))", "must be a Tensor"),
    ],
)
def test_a_wrong_answer_is_told_what_is_wrong(lesson, loss, hint):
    code = f"""
from minigrad.functional import data_of
def denoising_loss(encode, decode, x, noise, rng):
    noisy = x + noise * rng.standard_normal(x.shape)
    return {loss}
"""
    assert hint in lesson.answer(code)


def test_the_same_noise_in_every_call_is_seen(lesson):
    code = lesson.solution.replace("rng.", "np.random.default_rng(2).")
    assert "same noise" in lesson.answer(code)


def test_a_direction_loses_the_variance_across_it(lesson):
    x = np.random.default_rng(5).normal(size=(50, 2))
    x -= x.mean(axis=0)
    lost = lesson.names["squared_error"](x, np.array([0.6, 0.8]))
    np.testing.assert_allclose(lost, np.mean((x @ [-0.8, 0.6]) ** 2) / 2)
