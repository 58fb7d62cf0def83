"""The lesson of scVI, simplified: its 70 lines are SCVI's, number by number, and its check is right."""

import contextlib
import io
import re

import numpy as np
import pytest
from scipy import stats

from minigrad import grad
from minigrad.optim import Adam
from models import SCVI
from tests import lessons

NAME = "scvi_simplified"
N_CELLS = 20  # of the tests' own


def code_by_section():
    """Heading -> the cells of code below it."""
    found = {}
    heading = ""
    for cell in lessons.cells(NAME):
        if cell.is_code:
            found.setdefault(heading, []).append(cell.text)
        else:
            heading = ([heading] + re.findall("^## (.*)", cell.text, flags=re.M))[-1]
    return found


SECTIONS = code_by_section()
TRAINING = SECTIONS["3. Training"]
MODEL = [*SECTIONS["2. The whole model"], TRAINING[0], TRAINING[2]]


def run(texts, names):
    with contextlib.redirect_stdout(io.StringIO()):
        for text in texts:
            exec(compile(text, "<lesson>", "exec"), names)
    return names


@pytest.fixture(autouse=True, scope="module")
def no_window():
    import matplotlib
    import matplotlib.pyplot as plt

    plt.switch_backend("Agg")
    with matplotlib.rc_context(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGRAD_QUICK", "1")
        yield
    plt.close("all")


@pytest.fixture
def by_hand():
    """The names of the lesson's model, in float64, with weights that were not trained."""
    names = run(SECTIONS[""], {"__name__": "lesson", "n_genes": 30})
    loop = TRAINING[0]
    run([*SECTIONS["2. The whole model"], loop.replace("np.float32", "np.float64")], names)
    for p in names["weights"]:
        p.data = p.data + 0.1 * np.random.default_rng(p.data.size).standard_normal(p.shape)
    names["means"][:] = [np.zeros(p.shape) for p in names["weights"]]
    names["squares"][:] = [np.zeros(p.shape) for p in names["weights"]]
    return names


@pytest.fixture
def library(by_hand):
    """SCVI with the same weights; beside it, the parameters in the lesson's order."""
    model = SCVI(30, n_latent=10, likelihood="nb", thinning=False, dropout=0.0, dtype=np.float64)
    encoder = model.z_encoder
    decoder = model.decoder
    theirs = [encoder.layers.linears[0], encoder.layers.norms[0], encoder.mean, encoder.log_var]
    theirs += [decoder.layers.linears[0], decoder.layers.norms[0], decoder.rho]
    parameters = [p for layer in theirs for p in layer.parameters()] + [model.log_theta]
    assert len(parameters) == len(model.parameters()) == len(by_hand["weights"])
    for p, own in zip(parameters, by_hand["weights"]):
        p.data[...] = own.data
    model.trained = True
    return model, parameters


@pytest.fixture
def counts():
    rng = np.random.default_rng(3)
    means = rng.gamma(0.5, 4.0, (N_CELLS, 30)) + 0.05
    return rng.poisson(means).astype(np.float64)


def test_the_model_and_its_loop_are_some_70_lines():
    lines = [
        line
        for text in MODEL
        for line in text.splitlines()
        if line.strip() and not line.strip().startswith(("#", '"""'))
    ]
    assert 60 < len(lines) < 80
    used = set(
        re.findall(r"\b(?:SCVI|Adam|Module|Normal|NegativeBinomial|Sequential)\b", "\n".join(MODEL))
    )
    assert not used  # no class of ours but Linear and BatchNorm1d


def test_loss_and_all_gradients_are_those_of_scvi(by_hand, library, counts):
    model, parameters = library
    eps = np.random.default_rng(5).standard_normal((N_CELLS, 10))
    loss = -np.mean(by_hand["elbo"](counts, eps))
    gradients = grad(loss, by_hand["weights"])
    batch = np.zeros(N_CELLS, int)
    theirs = model.train().loss(counts, batch, rng=np.random.default_rng(5))  # draws the same eps
    np.testing.assert_allclose(loss.data, theirs.data, rtol=1e-12)
    for own, other in zip(gradients, grad(theirs, parameters)):
        assert np.any(other)
        np.testing.assert_allclose(own, other, rtol=1e-8, atol=1e-10)


def test_without_training_it_is_scvi_in_evaluation(by_hand, library, counts):
    model, _ = library
    for norm in (by_hand["hidden_norm"], by_hand["back_norm"]):
        norm.running_mean = norm.running_mean.astype(np.float64)
        norm.running_var = norm.running_var.astype(np.float64)
    by_hand["use"](training=True)
    by_hand["encode"](counts)  # moves the running means
    model.train().inference(counts)
    by_hand["use"](training=False)
    mean, std = by_hand["encode"](counts)
    for own, other in zip((mean, std), model.latent(counts, return_std=True)):
        np.testing.assert_allclose(own.data, other, rtol=1e-10)


def test_the_loop_steps_as_adam_does(by_hand, library, counts):
    model, parameters = library
    noise = np.random.default_rng()
    noise.bit_generator.state = by_hand["rng"].bit_generator.state
    optimizers = [
        Adam(parameters[:-1], 0.002),
        Adam(parameters[-1:], 0.05),
    ]  # log theta is the last
    for _ in range(3):
        by_hand["step"](counts)
        for optimizer in optimizers:
            optimizer.zero_grad()
        model.train().loss(counts, np.zeros(N_CELLS, int), rng=noise).backward()
        for optimizer in optimizers:
            optimizer.step()
    # A bias before a batch norm has the gradient 0, up to rounding, of which Adam makes a step.
    without_effect = {by_hand["hidden"].bias, by_hand["back"].bias}
    for own, other in zip(by_hand["weights"], parameters):
        if own not in without_effect:
            np.testing.assert_allclose(own.data, other.data, rtol=1e-7, atol=1e-9)


def test_theta_is_learned_in_the_steps_that_there_are(by_hand):
    """Counts of theta 0.3 and of theta 8, alike in all else: 200 steps tell them apart."""
    rng = np.random.default_rng(6)
    truth = np.where(np.arange(30) % 2, 0.3, 8.0)
    train = rng.poisson(rng.gamma(truth, 20 / truth, (500, 30))).astype(np.float64)
    by_hand["log_theta"].data[...] = 0.0
    by_hand["to_rho"].bias.data[...] = np.log(train.sum(axis=0))
    for _ in range(40):
        for start in range(0, 500, 100):
            by_hand["step"](train[start : start + 100])
    found = np.exp(by_hand["log_theta"].data)
    for theta in (0.3, 8.0):
        assert abs(np.log(np.median(found[truth == theta]) / theta)) < 0.5, found


def test_the_negative_binomial_is_scipys(by_hand):
    x = np.arange(30.0)
    for mu, theta in ((0.01, 0.3), (4.0, 2.0), (25.0, 40.0)):
        expected = stats.nbinom.logpmf(x, theta, theta / (theta + mu))
        found = by_hand["log_nb"](x, np.log(mu), np.log(theta))
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.fixture(scope="module")
def whole(no_window):
    """The names of the whole lesson, quickly trained."""
    return run(lessons.code(NAME), {"__name__": "lesson"})


@pytest.mark.filterwarnings("ignore:group_:UserWarning")  # trained in three epochs
def test_the_bayes_factors_are_those_of_differential_expression(whole):
    error = np.maximum(whole["error"], 1 / 5000)
    z_score = (whole["p_ours"] - whole["p_theirs"]) / error
    assert np.max(np.abs(z_score)) < 5
    assert np.std(z_score) < 1.5
    assert np.ptp(whole["p_theirs"]) > 0.3  # there is something to agree upon


def test_a_group_against_itself_has_bayes_factors_near_zero(whole):
    half = whole["counts"][whole["is_b"]]
    bayes_factor, _, _ = whole["bayes_factors"](half, half, n=2000)
    assert np.max(np.abs(bayes_factor)) < 0.25  # 5 standard errors of 2 / sqrt(n)


def answer(formula):
    return f"def probability_of_change(rho_a, rho_b, delta):\n    return {formula}\n"


LFC = "np.log2(rho_a) - np.log2(rho_b)"
RATIO = "np.maximum(rho_a / rho_b, rho_b / rho_a)"
ANSWERS = {
    f"np.mean(np.abs({LFC}) > delta, axis=0)": "right. \\d+ genes have a sure direction",
    f"np.mean(np.abs({LFC}) > delta)": "wrong: of 5 genes the answer has the shape",
    f"np.mean({LFC} > delta, axis=0)": "wrong: a gene that is down 8-fold has changed, too",
    "np.mean(np.abs(rho_a - rho_b) > delta, axis=0)": "wrong: a gene that is up 8-fold .* ratios",
    "np.mean(np.abs(np.log(rho_a / rho_b)) > delta / 2, axis=0)": "wrong: .* take log2",
    "np.mean(np.abs(np.log(rho_a / rho_b)) > delta, axis=0)": "wrong: up by 2.5 .* log2, not log",
    f"np.mean(np.abs({LFC}) > 1, axis=0)": "wrong: right for delta = 1, but delta = 3",
    f"np.mean({RATIO} > 2 * delta, axis=0)": "wrong: right for delta = 1, but delta = 3",
    f"np.mean({RATIO} > 1 + delta, axis=0)": "wrong: right for delta = 1, but delta = 3",
    f"np.mean({RATIO} > 2**delta, axis=0)": "right",
    f"np.abs(np.mean({LFC}, axis=0)) > delta": "wrong: the probabilities are 1, 1, 0, 1 and 0.25",
    "None": "not yet",
}


def test_the_check_says_what_is_wrong():
    said = lessons.verdicts(NAME, [answer(formula) for formula in ANSWERS])
    for (formula, expected), text in zip(ANSWERS.items(), said):
        assert re.match(expected, text), (formula, text)


def test_the_solution_counts_the_pairs_of_a_known_distribution():
    """A log2 fold change of Normal(0, 1) lies beyond 1 with probability 2 * 0.1587."""
    names = run([lessons.solution(NAME)], {"np": np})
    lfc = np.random.default_rng(0).standard_normal((40_000, 2))
    found = names["probability_of_change"](0.01 * 2.0**lfc, np.full_like(lfc, 0.01), 1.0)
    np.testing.assert_allclose(found, 2 * stats.norm.sf(1.0), atol=0.01)


def test_the_text_is_true_of_what_the_notebook_printed():
    text = lessons.printed(NAME)
    trained_on, held_out = lessons.numbers(r"before: (\S+) trained on, (\S+) held out", text)
    assert trained_on > 3 and abs(held_out) < 1.5  # the one rises, the other only wavers
    went, could = lessons.numbers(r"went at most (\S+); \d+ steps of \S+ are (\S+)\n", text)
    assert went < 0.7 * could  # its rate would have let it go further
    ratios = lessons.numbers(r"mean is (\S+) times a Poisson's", text)
    assert ratios[0] > 2 and ratios[1] < 1.2  # of like mean, and quite unlike
    before, after = lessons.numbers(
        r"in the middle: (\S+) after .* training, (\S+) at its end", text
    )
    assert after > 1.1 * before  # theta goes on growing
    ours, pca = lessons.numbers(r"adjusted Rand index (\S+)\n", text)
    assert abs(ours - pca) < 0.05  # about as well
    found = re.findall(r"^([A-Z0-9-]+) +[+-]\S+ +([+-]\S+)$", text, flags=re.M)
    factor = {gene: float(value) for gene, value in found}
    assert all(factor[gene] > 0 for gene in ("CD79A", "CD79B", "MS4A1", "HLA-DQA1"))
    assert all(factor[gene] < -3 for gene in ("LYZ", "S100A8", "S100A9", "FCN1"))
    assert abs(factor["PTPRC"]) < 3 and 0 < factor["HLA-DQA1"] < 3  # not each comes out beyond 3
    (by_chance,) = lessons.numbers(r"in (\d+)% of such comparisons", text)
    assert by_chance >= 1
