"""The lesson on the ELBO: its formulas against quadrature, and its check tells right from wrong."""

import numpy as np
import pytest
from scipy import integrate, stats

from tests import lessons

SOLUTION = lessons.solution("bound")
WRONG = [  # what of the solution is replaced, by what, and what the check says then
    ("log_p - kl", "log_p + kl", "subtract it"),
    ("log_p - kl", "log_p", "KL is missing"),
    ("log_p - kl", "kl - log_p", "minus the ELBO"),
    ("log_p - kl", "log_p - np.sum(kl)", "do not sum it over the cells"),
    ("((x - w * z) ** 2)", "((x - w * mean) ** 2 + (w * std) ** 2)", "yours is averaged over q"),
    ("sigma**2) - 0.5", "sigma) - 0.5", "log p(x | z) -1.4470 less a KL of 0.4742"),
    ("log_p - kl", "np.mean(log_p - kl)", "shape (50,)"),
    ("std * eps", "std**2 * eps", "variance in the place of std"),
    ("std * eps", "eps", "has no std"),
    (" + std * eps", "", "without eps"),
    (" - 0.5 * np.log(2 * np.pi * sigma**2)", "", "constant of log p(x | z)"),
    ("np.log(std**2)", "np.log(std)", "the log of the *variance*"),
    ("mean**2 - std**2", "mean**2 - std", "The first cell has ELBO"),
    ("log_p - kl", "np.asarray(log_p - kl)", "cannot be differentiated"),
    ("mean + std * eps", "data_of(mean) + data_of(std) * eps", "not its slope in mean"),
    ("std * eps", "data_of(std) * eps", "not its slope in std"),
    ("- std**2)", "- data_of(std)**2)", "not its slope in std"),
    ("log_p - kl", "getattr(log_p - kl, 'numpy', lambda: log_p - kl)()", "must be a Tensor"),
]


@pytest.fixture(scope="module")
def said():
    """What the check says of the solution, and then of each wrong answer."""
    imported = "from minigrad.functional import data_of\n"
    wrong = [imported + SOLUTION.replace(right, instead) for right, instead, _ in WRONG]
    return lessons.verdicts("bound", [SOLUTION, *wrong])


def test_the_solution_is_right(said):
    assert said[0].startswith("Right")


@pytest.mark.parametrize("i", range(len(WRONG)))
def test_a_wrong_answer_is_told_what_is_wrong(said, i):
    right, _, sentence = WRONG[i]
    assert right in SOLUTION
    assert sentence in said[i + 1]


@pytest.fixture(scope="module")
def names():
    return lessons.definitions("bound")


def test_what_it_calls_exact_is(names):
    x, w, m, s = 0.8, 1.7, 0.3, 0.6
    sigma = names["SIGMA"]
    q = stats.norm(m, s)

    def integral(f):
        return integrate.quad(f, -12, 12, epsabs=1e-12, limit=200, points=[0, m])[0]

    def joint(z):
        return stats.norm(0, 1).pdf(z) * stats.norm(w * z, sigma).pdf(x)

    p = integral(joint)
    np.testing.assert_allclose(names["exact_log_p"](x, w), np.log(p), rtol=1e-9)
    mean = integral(lambda z: z * joint(z)) / p
    variance = integral(lambda z: (z - mean) ** 2 * joint(z)) / p
    np.testing.assert_allclose(names["posterior"](x, w), (mean, np.sqrt(variance)), 1e-9)
    of_logs = integral(
        lambda z: (
            q.pdf(z)
            * (stats.norm(0, 1).logpdf(z) + stats.norm(w * z, sigma).logpdf(x) - q.logpdf(z))
        )
    )
    np.testing.assert_allclose(names["elbo"](x, w, m, s), of_logs, rtol=1e-8)


def test_both_estimates_of_the_derivative_are_centred_on_it(names):
    for estimate in names["two_estimates"](3, 20_000):
        assert abs(estimate.mean() - 2) < 5 * estimate.std() / 20_000**0.5


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed("bound")
    before, after = lessons.numbers(r"log p goes from (\S+) to (\S+),\n", text)
    bound_before, bound_after = lessons.numbers(r"and the ELBO from (\S+) to (\S+)\n", text)
    assert after < before and bound_after > bound_before  # log p falls while the bound rises
    assert "after both" in text and lessons.numbers(r"gap (\S+);", text)[2] == 0.0
    assert (
        lessons.numbers(r"most likely w: (\S+),", text)[0]
        == lessons.numbers(r"w = (\S+)\n", text)[2]
    )
    rows = lessons.numbers(r"\n +\d+ +(\S+) ± +(\S+) +(\S+) +(\S+) ± (\S+) +(\S+)", text)
    score, its_error, its_variance, reparam, error, variance = np.reshape(rows, (5, 6)).T
    assert np.all(np.abs(score - 2) <= 2 * its_error + 0.01)  # within two standard errors
    assert np.all(np.abs(reparam - 2) <= 2 * error + 0.001)
    assert np.all(np.diff(its_variance) > 0) and np.ptp(variance) < 0.02  # noise of each dimension
