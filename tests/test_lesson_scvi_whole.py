"""The lesson of scVI, whole: a knockout is one, what it simulates is so, and its check is right."""

import contextlib
import io
import re

import numpy as np
import pytest
from scipy import stats

from minigrad.functional import data_of
from tests import lessons

NAME = "scvi_whole"


@pytest.fixture(scope="module")
def whole():
    """The names of the whole lesson, quickly trained."""
    import matplotlib
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    names = {"__name__": "lesson"}
    with matplotlib.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGRAD_QUICK", "1")
        with contextlib.redirect_stdout(io.StringIO()):
            for text in lessons.code(NAME):
                exec(compile(text, "<lesson>", "exec"), names)
    plt.close("all")
    return names


def answers_of_the_networks(model, counts):
    """What the six networks of a model answer, a row for each cell."""
    q_z, q_l = model.eval().inference(counts)
    z = np.random.default_rng(0).standard_normal((len(counts), 10)).astype(np.float32)
    heads = model.heads(z, np.zeros(len(counts), int))
    found = [q_l.loc, q_l.scale, q_z.loc, q_z.scale, heads["logits"], heads["zi_logits"]]
    return {f"NN{i}": data_of(answer) for i, answer in enumerate(found, 1)}


@pytest.mark.parametrize("off", [None, "NN1", "NN2", "NN3", "NN4", "NN5", "NN6"])
def test_a_knockout_answers_all_cells_alike_and_no_other_network_does(whole, off):
    model = whole["whole"] if off is None else whole["without"][off]
    for name, answer in answers_of_the_networks(model, whole["counts"][:20]).items():
        differ = np.ptp(answer, axis=0).max()
        assert (differ < 1e-5) == (name == off), (name, differ)  # up to rounding


def test_what_a_knockout_answers_was_trained(whole):
    before = whole["SCVI"](whole["n_genes"], n_latent=10, library="latent")
    for off, (part, head, _) in whole["NETWORKS"].items():
        layer = getattr(getattr(whole["without"][off], part), head)
        assert type(layer).__name__ == "SameForAll"
        assert layer.weight.shape == getattr(getattr(before, part), head).weight.shape
        start = whole["SameForAll"](*layer.weight.shape[::-1], rng=np.random.default_rng(0))
        assert np.all(np.any(layer.weight.data != start.weight.data, axis=1))


def test_the_shallow_half_was_thinned_by_a_binomial_and_the_other_is_as_it_was(whole):
    real, counts, is_shallow = whole["real"], whole["counts"], whole["is_shallow"]
    np.testing.assert_array_equal(counts[~is_shallow], real[~is_shallow])
    assert abs(np.mean(is_shallow) - 0.5) < 0.01
    n = real[is_shallow].sum()
    assert stats.binomtest(int(counts[is_shallow].sum()), int(n), 0.2).pvalue > 1e-4


def test_nb_and_zinb_of_the_picture_have_the_same_mean(whole):
    x = np.arange(600.0)
    for p in (whole["nb"], whole["zinb"]):
        probability = np.exp(p.log_prob(x))
        np.testing.assert_allclose(np.sum(probability), 1.0)
        np.testing.assert_allclose(np.sum(x * probability), 4.0)


def test_what_a_held_out_cell_gets_does_not_depend_on_the_others_held_out(whole):
    x = whole["blood_counts"][:60]
    others = x.copy()
    others[1:20] = x[40:59]
    there = whole["held_out_log_p"](x, 20, "poisson")
    here = whole["held_out_log_p"](others, 20, "poisson")
    np.testing.assert_allclose(there[0], here[0], rtol=1e-5)
    assert not np.allclose(there[1:], here[1:], rtol=1e-5)


def answer(formula):
    return f"""
def structural_given_zero(log_mu, log_theta, zi_logits):
    theta = np.exp(log_theta)
    nb_zero = np.exp(theta * (log_theta - np.logaddexp(log_theta, log_mu)))
    pi = expit(zi_logits)
    return {formula}
"""


NB_ZERO = "(theta / (theta + np.exp(log_mu)))"  # without its exponent
ANSWERS = {
    "pi / (pi + (1 - pi) * nb_zero)": "right",
    "expit(zi_logits - np.log(nb_zero))": "right",  # by log odds
    "np.exp(zi_logits) / (np.exp(zi_logits) + (1 - np.exp(zi_logits)) * nb_zero)": (
        "wrong: .* did you use expit"
    ),
    "pi + 0 * nb_zero": "wrong: that is pi, the probability before",
    "pi + (1 - pi) * nb_zero": "wrong: that is the probability of a zero, of either kind",
    "(1 - pi) * nb_zero / (pi + (1 - pi) * nb_zero)": "wrong: that is the probability that the NB",
    "1 / (1 + nb_zero) + 0 * pi": "wrong: right for pi = 1/2, but for pi = 1/4",
    "pi / (pi + nb_zero)": "wrong: for pi = 1/2 and",
    "1 - nb_zero": "wrong: for pi = 1/2 and NB\\(0\\) = 1, 1/2, 0 it is",
    "np.mean(pi / (pi + (1 - pi) * nb_zero))": "wrong: of 4 entries the answer has the shape \\(\\)",
    f"pi / (pi + (1 - pi) * {NB_ZERO} ** np.sqrt(theta))": "wrong: with mu = 6 .* exponent",
    f"pi / (pi + (1 - pi) * {NB_ZERO})": "wrong: for pi = 1/2 and",
    f"pi / (pi + (1 - pi) * {NB_ZERO} ** np.exp(log_mu))": "wrong: with mu = 6 .* exponent",
    "None": "not yet",
}


def test_the_check_says_what_is_wrong():
    said = lessons.verdicts(NAME, [answer(formula) for formula in ANSWERS])
    for (formula, expected), text in zip(ANSWERS.items(), said):
        assert re.match(expected, text), (formula, text)


def test_the_solution_is_what_a_simulation_counts():
    """Of the zeros of a ZINB, drawn by SciPy, the proportion that were structural."""
    from scipy.special import expit

    names = {"np": np, "expit": expit}
    exec(lessons.solution(NAME), names)
    rng = np.random.default_rng(0)
    n, mu, theta, pi = 100_000, 2.0, 1.5, 0.2
    is_structural = rng.random(n) < pi
    count = stats.nbinom.rvs(theta, theta / (theta + mu), size=n, random_state=rng)
    is_zero = is_structural | (count == 0)
    expected = np.mean(is_structural[is_zero])
    logits = np.log(pi / (1 - pi))
    found = names["structural_given_zero"](np.log(mu), np.log(theta), logits)
    assert abs(found - expected) < 0.01


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed(NAME)
    nn = dict(enumerate(lessons.numbers(r"without NN\d: +(\S+) \+-", text), 1))
    assert min(nn[3], nn[5]) > nn[1] + 20 > 30  # most is lost without NN3 and NN5; NN1 comes next
    assert max(abs(nn[2]), abs(nn[4])) < 2 and abs(nn[6]) < 5  # little or nothing
    encoder, decoder = lessons.numbers(r"without NN\d and NN\d: +(\S+) \+-", text)
    assert abs(encoder - decoder) < 5 and min(encoder, decoder) > max(nn[3], nn[5]) + 20
    assert lessons.numbers(r"widths of q\(z\) agree with the types: ARI (\S+)", text)[0] > 0.25
    whole = lessons.numbers(r"whole  +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)\n", text)
    blind = lessons.numbers(r"without NN1 +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)\n", text)
    assert whole[0] > 0.55 and whole[1] > blind[1] + 0.2 and whole[2] < 0.05 < 0.15 < blind[2]
    assert whole[3] > 1.1 * whole[4]  # codes of shallow cells lie nearer to the middle
    rows = lessons.numbers(r"\d+ to \d+ +(\S+) +(\S+) +(\d+)% of cells", text)
    of_z, of_l, below = np.reshape(rows, (5, 3)).T
    assert np.all(np.diff(of_z) < 0)  # the more molecules, the surer of z
    assert np.argmax(of_l) in (1, 2, 3) and below[0] > 50 and below[-1] == 0
    cortex, blood = lessons.numbers(r"ZINB over NB +\w+ +(\S+) \+-", text)
    assert nn[6] < cortex and blood < 0 < cortex  # another sign in the other data
    assert min(lessons.numbers(r"NB over Poisson \w+ +(\S+) \+-", text)) > 5 * abs(blood)
    assert lessons.numbers(r"ZINB over NB, with dropouts: (\S+)", text)[0] > 1
    few, some, many = lessons.numbers(r"pi is (\S+) on average", text)
    assert few < 0.14 and few <= some < many < 0.3
    blind, told = np.reshape(
        lessons.numbers(r"(?:blind|told the batch) +(\S+) +(\S+) +(\S+)\n", text), (2, 3)
    )
    assert told[0] > 0.65 and blind[0] < 0.4 and told[1] >= blind[1] - 0.01 and told[2] < 0.03
