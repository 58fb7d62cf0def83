"""The lesson on the VAE: its terms and densities against SciPy, PyTorch's version, its check."""

import re

import numpy as np
import pytest
from scipy import integrate, stats

from minigrad import grad
from tests import lessons

NAME = "vae_for_expression"
WRONG = {
    "np.sum(np.logaddexp(0, f) - x * f, axis=1)": "The sign",
    "np.sum(x * f + np.logaddexp(0, f), axis=1)": "cannot be positive",
    "x * f - np.logaddexp(0, f)": "shape (6,)",
    "np.sum(x * -np.logaddexp(0, -f), axis=1)": "Zeros count too",
    "np.mean(x * f - np.logaddexp(0, f), axis=1)": "first row has log-probability",
    "np.sum(x * f - np.log(1 + np.exp(f)), axis=1)": "log odds of 1,000",
    "np.sum(x * np.log(p(f)) + (1 - x) * np.log(1 - p(f)), axis=1)": "log odds of 1,000",
    "np.sum(x * f - np.logaddexp(0, np.asarray(f)), axis=1)": "cannot be differentiated",
    "np.sum(x * f - np.logaddexp(0, data_of(f)), axis=1)": "derivative is not x - p",
}
ANSWER = """
from minigrad.functional import data_of
def p(f):
    return 1 / (1 + np.exp(-f))
def bernoulli_log_p(x, f):
    return {log_p}
"""


@pytest.fixture(scope="module")
def said():
    """What the check says: answer -> text."""
    answers = {log_p: ANSWER.format(log_p=log_p) for log_p in WRONG}
    answers["right"] = lessons.solution(NAME)
    return dict(zip(answers, lessons.verdicts(NAME, answers.values())))


def test_the_solution_is_right_and_trains_a_model(said):
    printed = said["right"].splitlines()
    assert printed[0] == "Right." and printed[-1].startswith("With the VAE")


@pytest.mark.parametrize("log_p", WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(said, log_p):
    assert WRONG[log_p] in said[log_p]


@pytest.fixture(scope="module")
def names():
    return lessons.definitions(NAME)


def test_the_terms_of_the_elbo(names):
    rng = np.random.default_rng(0)
    model = names["VAE"](np.zeros(5), n_hidden=7, n_latent=2, sigma=0.8)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    eps = rng.normal(size=(3, 2)).astype(np.float32)
    log_p, kl = model.terms(x, eps)
    mean, std = (part.data for part in model.encode(x))
    mu = model.decode(mean + std * eps).data
    np.testing.assert_allclose(log_p.data, stats.norm(mu, 0.8).logpdf(x).sum(axis=1), rtol=1e-5)

    def divergence(m, s):
        q, p = stats.norm(m, s), stats.norm(0, 1)
        return integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -9, 9)[0]

    by_quadrature = [sum(map(divergence, m, s)) for m, s in zip(mean, std)]
    np.testing.assert_allclose(kl.data, by_quadrature, rtol=1e-4)


def test_the_exact_density_is_the_integral_and_importance_weights_find_it(names):
    model = names["LinearVAE"](np.array([0.3, -0.2, 0.5]), n_latent=1, sigma=0.6)
    W = model.out.weight.data.astype(float)
    b = model.out.bias.data.astype(float)
    x = np.array([[0.1, 0.7, -0.4], [1.0, 0.2, 0.3]])

    def integral(row):
        def joint(z):
            return stats.norm(0, 1).pdf(z) * np.prod(stats.norm(W[:, 0] * z + b, 0.6).pdf(row))

        return np.log(integrate.quad(joint, -9, 9)[0])

    truth = [integral(row) for row in x]
    exact = names["exact_log_density"](x, W, b, 0.6)
    np.testing.assert_allclose(exact, truth, rtol=1e-8)
    rng = np.random.default_rng(1)
    estimate = names["log_density"](model, x.astype(np.float32), 4000, rng)
    np.testing.assert_allclose(estimate, truth, atol=0.05)


def test_drawn_counts_have_the_cells_totals_and_the_decoders_fractions(names):
    model = names["CategoricalVAE"](np.log([0.5, 0.3, 0.2]), n_hidden=4, n_latent=2)
    z = np.tile([0.4, -1.0], (2000, 1))
    drawn = names["draw_counts"](model, z, np.full(2000, 30), np.random.default_rng(2))
    assert np.all(drawn.sum(axis=1) == 30)
    f = model.decode(z[:1].astype(np.float32)).data[0]
    expected = np.exp(f) / np.exp(f).sum()
    np.testing.assert_allclose(drawn.mean(axis=0) / 30, expected, atol=0.01)


def test_the_version_in_pytorch_computes_the_same(names):
    torch = pytest.importorskip("torch")
    (text,) = (cell.text for cell in lessons.cells(NAME) if "import torch" in cell.text)
    code = text.split("```python\n")[1].split("```")[0]
    shown = {}
    exec(code, shown)
    start = np.linspace(-1, 1, 6, dtype=np.float32)
    ours = names["VAE"](start, n_hidden=5, n_latent=2, sigma=0.7)
    theirs = shown["VAE"](start, n_hidden=5, n_latent=2, sigma=0.7)
    np.testing.assert_array_equal(theirs.out.bias.detach(), start)
    theirs.load_state_dict({name: torch.tensor(p) for name, p in ours.state_dict().items()})
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 6)).astype(np.float32)
    eps = rng.normal(size=(4, 2)).astype(np.float32)
    found = ours.terms(x, eps)
    expected = theirs.terms(torch.tensor(x), torch.tensor(eps))
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a.data, b.detach(), rtol=1e-5)
    gradients = grad(np.mean(found[0] - found[1]), ours.parameters())
    torch.mean(expected[0] - expected[1]).backward()
    named = dict(theirs.named_parameters())
    for (name, _), g in zip(ours.named_parameters(), gradients):
        np.testing.assert_allclose(g, named[name].grad, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_loop_in_pytorch_differs_by_what_is_said_and_trains_the_same(names):
    torch = pytest.importorskip("torch")
    script = (lessons.FOLDER / f"{NAME}.py").read_text(encoding="utf-8")
    (loop,) = re.findall(r"^def fit\(.*?\n    return .*?\n", script, flags=re.S | re.M)
    for ours, theirs in (
        ("np.mean(", "torch.mean("),
        ("(batch, noise(rng, model, batch))", "(*map(torch.as_tensor, (batch, noise(rng, model, batch))))"),
        ("(held_out, noise(rng, model, held_out))", "(*map(torch.as_tensor, (held_out, noise(rng, model, held_out))))"),
        ("optimizer.learning_rate =", 'optimizer.param_groups[0]["lr"] ='),
        (".data.mean()", ".detach().numpy().mean()"),
    ):  # fmt: skip
        assert ours in loop
        loop = loop.replace(ours, theirs)
    (text,) = (cell.text for cell in lessons.cells(NAME) if "import torch" in cell.text)
    shown = {"np": np, "noise": names["noise"], "Adam": torch.optim.Adam}
    exec(text.split("```python\n")[1].split("```")[0] + loop, shown)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 6)).astype(np.float32)
    start = np.zeros(6, np.float32)
    model = names["VAE"](start, n_hidden=5, n_latent=2)
    other = shown["VAE"](start, n_hidden=5, n_latent=2)
    other.load_state_dict({name: torch.tensor(p) for name, p in model.state_dict().items()})
    history = names["fit"](model, x[60:], x[:60], 4)
    assert np.ptp(history[:, 0]) > 0.01
    np.testing.assert_allclose(
        shown["fit"](other, x[60:], x[:60], 4), history, rtol=1e-4, atol=1e-5
    )


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed(NAME)
    rows = lessons.numbers(
        r"sigma (\S+): ELBO +(\S+), KL +(\S+), root mean squared error (\S+)", text
    )
    sigma, elbo, kl, error = np.reshape(rows, (6, 4)).T
    best = np.argmax(elbo)
    assert 0 < best < 5 and abs(sigma[best] - error[best]) < 0.06
    assert 2.5 < kl[0] / kl[-1] < 3.5 and error[-1] < 1.06 * error[0]  # three times; hardly falls
    assert np.argmin(error) == 0
    cells, draws, own = lessons.numbers(
        r"cells (\S+), draws (\S+), draws without .*, draws with the cells' own z (\S+)\n", text
    )
    assert draws < 0.9 * cells and abs(own - cells) < 0.03 * cells
    left, between, right = lessons.numbers(r"draws +(\d+)% +(\d+)% +(\d+)%", text)
    assert between > 80 and left < 10 and right < 10  # most lie between, and the arms are bare
    (short,) = lessons.numbers(r"Adam stopped (\S+) nats short", text)
    weighted, exact = lessons.numbers(r"100 cells: (\S+) from 1000 draws, exactly (\S+)", text)
    assert abs(weighted - exact) < 0.2
    (network,) = lessons.numbers(r"the network's VAE: (\S+) from 1 draw", text)
    assert network > exact + short
    (of_counts,) = lessons.numbers(r"-29\S+ - KL (\S+)\n", text)
    assert of_counts > max(kl)
    of_cells, prior, own = lessons.numbers(r"zeros among .*: (\S+)%\n", text)
    assert prior < own < of_cells  # fewer zeros, and fewer still
    everywhere, low, high, drawn = lessons.numbers(
        r"is zero in (\d+)% .* (\d+)% to (\d+)%\), and in (\d+)% of their draws", text
    )
    assert 40 < low < everywhere < high < 60 and drawn < 10  # about half the cells of every type
