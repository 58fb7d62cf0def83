"""The lesson on autoencoders: its check tells right from wrong, and says what is wrong."""

import numpy as np
import pytest

from tests import lessons

WRONG = {
    "np.mean(np.square(decode(encode(noisy)) - noisy))": "compare with the noisy rows",
    "np.sum(np.square(decode(encode(noisy)) - x))": "a mean, not a sum",
    "np.mean(np.square(decode(encode(noisy)) - x), axis=1)": "must be one number",
    "np.mean(np.abs(decode(encode(noisy)) - x))": "the noise's variance",
    "np.mean(np.square(encode(decode(noisy)) - x))": "Compare decode(encode(noisy rows))",
    "np.mean(np.square(encode(noisy) - x))": "Compare decode(encode(noisy rows))",
    "np.mean(np.square(decode(encode(noisy) - x)))": "first decode the code, then subtract x",
    "np.mean(np.square(decode(encode(x * (1 + noisy - x))) - x))": "the noise's variance",
    "np.mean(np.square(decode(encode(x) + noisy - x) - x))": "only encode sees the noise",
    "np.mean(np.square(decode(encode(x)) - noisy))": "only encode sees the noise",
    "np.mean(np.asarray(decode(encode(noisy)) - x) ** 2)": "cannot be differentiated",
    "np.mean(np.square(data_of(decode(encode(noisy))) - x))": "must be a Tensor",
}
ANSWER = """
from minigrad.functional import data_of
def denoising_loss(encode, decode, x, noise, rng):
    noisy = x + noise * rng.standard_normal(x.shape)
    return {loss}
"""
SOLUTION = lessons.solution("autoencoders")
SAME_NOISE = SOLUTION.replace("rng.", "np.random.default_rng(2).")
WRONG_NOISE = {  # what stands in the place of "noise * rng.standard_normal(x.shape)"
    "noise * rng.standard_normal((len(x), 1))": "draw one for each entry",
    "0.5 * rng.standard_normal(x.shape)": "With noise = 0.1 a copy loses 0.01, and yours 0.2",
    "noise * np.random.standard_normal(x.shape)": "draw from rng",
    "noise * np.random.default_rng().standard_normal(x.shape)": "draw from rng",
}


@pytest.fixture(scope="module")
def said():
    """What the check says: answer -> text."""
    answers = {loss: ANSWER.format(loss=loss) for loss in WRONG}
    for drawn in WRONG_NOISE:
        answers[drawn] = SOLUTION.replace("noise * rng.standard_normal(x.shape)", drawn)
    answers.update(right=SOLUTION, same_noise=SAME_NOISE)
    return dict(zip(answers, lessons.verdicts("autoencoders", answers.values())))


def test_the_solution_is_right(said):
    assert said["right"].startswith("Right")


@pytest.mark.parametrize("loss", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(said, loss):
    assert WRONG[loss] in said[loss]


@pytest.mark.parametrize("drawn", WRONG_NOISE)
def test_noise_that_is_drawn_otherwise_is_seen(said, drawn):
    assert "noise * rng.standard_normal(x.shape)" in SOLUTION
    assert WRONG_NOISE[drawn] in said[drawn]


def test_the_same_noise_in_every_call_is_seen(said):
    assert SAME_NOISE != SOLUTION
    assert "same noise" in said["same_noise"]


def test_a_direction_loses_the_variance_across_it():
    x = np.random.default_rng(5).normal(size=(50, 2))
    lost = lessons.definitions("autoencoders")["squared_error"](x, np.array([0.6, 0.8]))
    np.testing.assert_allclose(lost, np.mean((x @ [-0.8, 0.6]) ** 2) / 2)


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed("autoencoders")
    changes = lessons.numbers(
        r"widened to (\d) numbers, the network's error changes by (\S+)%", text
    )
    change = dict(zip(changes[::2], changes[1::2]))
    assert change[2] < -50 and change[3] < -50  # it falls steeply
    assert all(-6 <= change[n] < 3 for n in (4, 6, 8))  # then by a few hundredths
    nothing, copying, denoising = lessons.numbers(
        r"nothing +(\S+)\n +copying network +(\S+)\n +denoising network +(\S+)", text
    )
    assert 0.9 * nothing < copying and denoising < 0.3 * nothing
    code_of = lessons.numbers(r"code of +(\d+): squared error (\S+) on .* with ARI (\S+)", text)
    errors, aris = code_of[1::3], code_of[2::3]
    assert max(np.abs(np.subtract(errors, 1))) < 0.03 and min(aris) > 0.99
    (by_128,) = lessons.numbers(r"PCA with 128 numbers: squared error (\S+) on", text)
    assert by_128 < 0.95  # a part of the noise came through
    error, ari = lessons.numbers(r"autoencoder, 128 .* error (\S+), ARI with .* (\S+)", text)
    of_10, ari_10 = lessons.numbers(r"PCA,  10 numbers: squared error (\S+), ARI (\S+)", text)
    of_128, ari_128 = lessons.numbers(r"PCA, 128 numbers: squared error (\S+), ARI (\S+)", text)
    assert error > 0.98 * of_10 > 1.3 * of_128  # it gives cells back no better
    assert ari > max(ari_10, ari_128) + 0.05  # the types come apart better
