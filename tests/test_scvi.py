"""SCVI as a user meets it: what it takes, what it refuses, how it trains, what it keeps.

Parity with the reference implementation: test_scvi_parity.py.
"""

import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse, stats

from models import SCVI, VAE, integration, recipe, scvi
from models.counts import Counts
from tests.benchmarks import recovery
from tests.copies import WAYS, check_copies

QUIET = {"progress": False, "weight_decay": 0.0}


def counts_of(n_cells=150, n_genes=15, seed=0):
    """Overdispersed counts with a gradient along cells, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    slope = rng.normal(0.0, 1.2, n_genes)
    mu = np.exp(1.0 + np.linspace(-1.0, 1.0, n_cells)[:, None] * slope)
    return rng.poisson(mu * rng.gamma(5.0, 0.2, mu.shape)).astype(np.float32)


def small(n_genes=15, n_batches=1, **config):
    return SCVI(n_genes, n_batches, **{"n_latent": 3, "n_hidden": 8, **config})


def fitted(x, batch=None, *, epochs=2, n_batches=1, model=None, **options):
    model = model or small(x.shape[1], n_batches)
    model.fit(x, batch, epochs=epochs, **{**QUIET, **options})
    return model


# ---------------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("library", ["observed", "latent"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("likelihood", ["poisson", "nb", "zinb"])
def test_every_kind_trains(likelihood, dispersion, library):
    x, batch = counts_of(), np.arange(150) % 2
    model = small(n_batches=2, likelihood=likelihood, dispersion=dispersion, library=library)
    history = model.fit(x, batch, epochs=3, batch_size=30, kl_warmup=0.0, **QUIET)
    assert len(history) == 3 and np.all(np.isfinite(history["train_loss"]))
    assert history["train_loss"][2] < history["train_loss"][0] - 0.3
    assert all(np.all(np.isfinite(a)) for a in model.state_dict().values())
    names = set(dict(model.named_parameters()))
    assert ("log_theta" in names) == (likelihood != "poisson" and dispersion != "gene-cell")
    assert ("decoder.zi.weight" in names) == (likelihood == "zinb")
    assert ("l_encoder.mean.weight" in names) == (library == "latent")
    assert np.all(np.isfinite(model.log_likelihood(x, batch, n_samples=3)))
    assert model.latent(x, batch).shape == (150, 3)


def test_the_sizes_by_default():
    """z of 30 dimensions, a hidden layer of 128 units in each network, zeros besides the NB."""
    shapes = {name: p.shape for name, p in SCVI(11).named_parameters()}
    weights = {name: shape for name, shape in shapes.items() if "norms" not in name}
    assert {name: shape for name, shape in weights.items() if "bias" not in name} == {
        "z_encoder.layers.linears.0.weight": (128, 11),
        "z_encoder.mean.weight": (30, 128),
        "z_encoder.log_var.weight": (30, 128),
        "decoder.layers.linears.0.weight": (128, 30),
        "decoder.rho.weight": (11, 128),
        "decoder.zi.weight": (11, 128),
        "log_theta": (11,),
    }


def test_several_batches_get_a_layer_more_where_none_is_asked_for(tmp_path):
    assert SCVI(10).config["n_layers"] == SCVI(10, 2, n_layers=1).config["n_layers"] == 1
    assert SCVI(10, columns=dict(categorical={"sex": ["f", "m"]})).config["n_layers"] == 2
    model = SCVI(10, 2)
    assert model.config["n_layers"] == len(model.decoder.layers.linears) == 2
    model.save(tmp_path / "model.npz")
    assert SCVI.load(tmp_path / "model.npz").config == model.config
    with pytest.raises(ValueError, match="n_layers must be a whole number"):
        SCVI(10, 2, n_layers=0)


def test_every_weight_is_trained():
    """No head is left out of the objective: each parameter moves, but the biases that batch norm takes away, and the
    scales of the decoder's last batch norm, which `fit` fixes."""
    for config in (dict(library="latent", dispersion="gene-batch"), dict(dispersion="gene-cell")):
        model, x, batch = small(n_batches=2, **config), counts_of(), np.arange(150) % 2
        fitted(x, batch, model=model, epochs=1)
        before = model.state_dict()
        fitted(x, batch, model=model, epochs=1)
        still = [n for n, p in model.named_parameters() if np.array_equal(p.data, before[n])]
        assert "decoder.layers.norms.1.weight" in still
        still.remove("decoder.layers.norms.1.weight")
        assert all(".linears." in n and n.endswith("bias") for n in still)


# ------------------------------------------------------------------------- what keeps cells from being learnt by heart
def test_only_training_thins_and_drops():
    """The encoder's q(z) changes with the generator where counts are thinned or units dropped, and nowhere else."""
    x = counts_of()

    def differs(model, seeds):
        first, second = (
            model.inference(x, seed if seed is None else np.random.default_rng(seed))[0].loc.data
            for seed in seeds
        )
        return not np.array_equal(first, second)

    assert differs(small().train(), (0, 1))
    assert not differs(small().train(), (None, None))
    assert not differs(small().eval(), (0, 1))
    assert not differs(small(thinning=False).train(), (0, 1))
    assert not differs(small(dropout=0.0, thinning=False).train(), (0, 1))
    assert differs(small(dropout=0.3, thinning=False).train(), (0, 1))


def test_dropout_is_chosen_by_the_first_training(tmp_path):
    """From the mean count of the training cells; a number given stays; a file holds what is in use; a failure leaves none."""
    x = np.full((40, 15), 2.0, np.float32)
    x[:, 0] = 32.0  # 4 on average
    model = small(library="latent")
    assert model.config["dropout"] is None
    model.save(tmp_path / "new.npz")
    assert SCVI.load(tmp_path / "new.npz").config["dropout"] is None
    with pytest.raises(ValueError, match="leaves 0 to train on"):
        fitted(x, model=model, validation=0.99)
    assert model.config["dropout"] is None and model.z_encoder.layers.dropout.p == 0.0
    fitted(x, model=model)
    assert model.config["dropout"] == pytest.approx(0.3 * 15 / 40 / 4)
    assert model.z_encoder.layers.dropout.p == model.l_encoder.layers.dropout.p
    fitted(2 * x, model=model)
    assert model.config["dropout"] == pytest.approx(0.3 * 15 / 40 / 4)
    model.save(tmp_path / "run.npz")
    loaded = SCVI.load(tmp_path / "run.npz")
    assert loaded.config == model.config
    assert loaded.z_encoder.layers.dropout.p == model.config["dropout"]
    assert fitted(x, model=small(dropout=0.2)).config["dropout"] == 0.2


@pytest.mark.parametrize(
    "n_cells, validation, n_hidden, precision",
    [(150, 0.1, 8, 8 / 135), (150, 0.0, 16, 16 / 150), (40, 0.5, 8, 8 / 20)],
)
def test_the_prior_of_a_training(n_cells, validation, n_hidden, precision, monkeypatch):
    """Precision n_hidden of the whole, as a part of one cell's loss, on the heads alone; 0 takes it away."""
    made = []
    with_prior = recipe.AdamForCounts

    def remember(*arguments):
        made.append(with_prior(*arguments))
        return made[-1]

    monkeypatch.setattr(recipe, "AdamForCounts", remember)
    model = small(n_hidden=n_hidden)
    model.fit(counts_of(n_cells), epochs=1, validation=validation, progress=False)
    assert made[0].weight_decay == pytest.approx(precision, rel=1e-12)
    assert [p.shape for p in made[0].decayed] == [(15, n_hidden)] * 2
    assert made[0].decayed[0] is model.decoder.rho.weight
    assert made[0].decayed[1] is model.decoder.zi.weight
    assert made[0].further == {
        model.log_theta: pytest.approx(4.0 * precision / n_hidden, rel=1e-12)
    }
    assert made[0].quick is model.log_theta
    for n_layers in (1, 2):
        batches = small(n_batches=2, n_layers=n_layers)
        batches.fit(counts_of(n_cells), np.arange(n_cells) % 2, epochs=1, progress=False)
        # With one layer, whatever speeds up theta lets z say the batch.
        assert made.pop().quick is (batches.log_theta if n_layers == 2 else None)
    fitted(counts_of(n_cells), model=small())
    assert made[1].weight_decay == 0.0 and list(made[1].further.values()) == [0.0]
    fitted(counts_of(n_cells), model=small(likelihood="poisson", dispersion="gene-cell"))


def test_a_checkpoint_of_an_older_recipe_is_refused(tmp_path, monkeypatch):
    """By the name of its optimiser: gone on with by this one, it would come to other numbers than it was to."""
    options = {"epochs": 2, "checkpoint": tmp_path / "run.npz", "progress": False}
    older = type("AdamWithPrior", (recipe.AdamForCounts,), {})
    with monkeypatch.context() as earlier:
        earlier.setattr(recipe, "AdamForCounts", older)
        small().fit(counts_of(40), **options)
    with pytest.raises(ValueError, match="checkpoint of a run with .*'AdamWithPrior'"):
        small().fit(counts_of(40), resume=True, **options)


@pytest.mark.parametrize(
    "n_cells, validation, batch_size, epochs",
    [(150, 0.1, 128, 500), (150, 0.0, 30, 200), (250, 0.1, 128, 250), (250, 0.6, 128, 500)]
    + [(150, 0.5, 30, 250), (150, 0.1, 70, 250), (3, 0.34, 128, 500)],
)
def test_a_training_has_500_steps_or_200_epochs(
    n_cells, validation, batch_size, epochs, monkeypatch
):
    """Its steps are those over the cells that are trained on, not over those held out."""
    asked = []
    monkeypatch.setattr(scvi, "fit", lambda *_, **options: asked.append(options["epochs"]))
    options = {"validation": validation, "batch_size": batch_size, "progress": False}
    small().fit(counts_of(n_cells), **options)
    small().fit(counts_of(n_cells), epochs=7, **options)
    assert asked == [epochs, 7]


def auroc(scores, is_positive) -> float:
    return stats.mannwhitneyu(scores[is_positive], scores[~is_positive]).statistic / (
        is_positive.sum() * (~is_positive).sum()
    )


def test_a_small_group_is_visible_in_z():
    """20 of 1,000 cells have 40 of 200 genes changed by a factor of 1.7, and lie on their side of z.

    Each half of the group shows the direction in which the other half is looked for.
    """
    rng = np.random.default_rng([0, 77])
    rho = rng.gamma(0.7, size=200)
    rho = np.tile(rho / rho.sum(), (1000, 1))
    changed = rng.choice(200, 40, replace=False)
    rho[:20, changed] *= np.where(rng.random(40) < 0.5, 1.7, 1 / 1.7)
    mu = 1000 * rng.lognormal(0.0, 0.35, (1000, 1)) * rho / rho.sum(axis=1, keepdims=True)
    x = rng.negative_binomial(5.0, 5.0 / (5.0 + mu)).astype(np.float32)
    model = SCVI(200)
    model.fit(x, progress=False)
    z, is_group, half = model.latent(x), np.arange(1000) < 20, np.arange(1000) % 2
    scores = np.zeros(1000)
    for side in (0, 1):
        known = half != side
        direction = z[known & is_group].mean(axis=0) - z[known & ~is_group].mean(axis=0)
        scores[half == side] = z[half == side] @ direction
    assert auroc(scores, is_group) > 0.9


def test_training_learns_what_there_is_to_learn():
    x = counts_of()
    model = fitted(x, epochs=40, batch_size=30)
    position, z = np.linspace(-1, 1, 150), model.latent(x)
    fit = np.linalg.lstsq(np.column_stack([z, np.ones(150)]), position, rcond=None)
    assert fit[1][0] < 0.3 * 150 * position.var()
    assert (
        model.log_likelihood(x, n_samples=50).mean()
        > fitted(x, epochs=1).log_likelihood(x, n_samples=50).mean() + 1
    )


def test_one_seed_gives_the_same_bits_and_another_does_not():
    x = counts_of()
    runs = [fitted(x, model=small(seed=s)).latent(x) for s in (0, 0, 1)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    order = [fitted(x, seed=s).latent(x) for s in (0, 5)]
    assert np.array_equal(order[0], runs[0]) and not np.array_equal(order[0], order[1])


def test_the_kl_weight_reaches_one_and_stays_for_at_least_half():
    x, batch = counts_of(), np.zeros(150, int)
    for kl_warmup, steps in (
        (0.25, {0.0: 0.0, 0.125: 0.5, 0.25: 1.0, 0.6: 1.0, 1.0: 1.0}),
        (0.0, {0.0: 1.0, 0.7: 1.0}),
        (0.5, {0.0: 0.0, 0.25: 0.5, 0.5: 1.0}),
    ):
        model = fitted(x, kl_warmup=kl_warmup)
        _, kl_z, _ = model.terms(x, batch, np.random.default_rng(0))
        for progress, weight in steps.items():
            loss, full = [
                model.loss(x, batch, progress=p, rng=np.random.default_rng(0)).item()
                for p in (progress, 1.0)
            ]
            assert loss == pytest.approx(full - (1 - weight) * np.mean(kl_z.data), rel=1e-5)
    for wrong in (0.51, 1.0, -0.1, np.nan):
        with pytest.raises(ValueError, match="kl_warmup must be in"):
            fitted(x, kl_warmup=wrong)


def two_batches_of_types(is_same_in_all, n_cells=400, n_genes=150, seed=1):
    """Counts of five types, whose cells vary in four directions, from two batches; types, batches, log changes by type.

    The second batch changes two genes in five by a factor exp(Normal(0, 1)): the same, or others, in each type.
    """
    rng = np.random.default_rng(seed)
    types, batch = rng.integers(5, size=n_cells), np.arange(n_cells) % 2
    log_rho = rng.normal(0.0, 1.0, n_genes) + rng.normal(0.0, 0.7, (5, n_genes))[types]
    log_rho += rng.standard_normal((n_cells, 4)) @ rng.normal(0.0, 0.3, (4, n_genes))
    answer = rng.normal(0.0, 1.0, (5, n_genes)) * (rng.random((5, n_genes)) < 0.4)
    if is_same_in_all:
        answer[:] = answer[0]
    log_rho += batch[:, None] * answer[types]
    rho = np.exp(log_rho) / np.exp(log_rho).sum(axis=1, keepdims=True)
    mu = rng.lognormal(np.log(400.0), 0.3, (n_cells, 1)) * rho
    return rng.negative_binomial(5.0, 5.0 / (5.0 + mu)).astype(np.float32), types, batch, answer


@pytest.mark.parametrize("told_as", ["batch", "categorical"])
def test_batches_mix_in_z_where_each_type_answers_in_its_own_way(told_as):
    """One layer comes to iLISI 0.83 and kBET 0.76 here, and with a KL weight that rises from 0 to 0.63 and 0.47; now 0.91, 0.92."""
    x, types, batch, _ = two_batches_of_types(is_same_in_all=False)
    donor = np.array(["a", "b"])[batch]
    counts = Counts(x, np.arange(150).astype(str), np.arange(len(x)).astype(str), {"donor": donor})
    known = {"batch": "donor"} if told_as == "batch" else {"categorical": ["donor"]}
    model = SCVI.for_data(counts, likelihood="nb", **known)
    model.fit(counts, epochs=150, progress=False)
    z = model.latent(counts)
    assert integration.ilisi(z, batch) > 0.86 and integration.kbet(z, batch, types) > 0.85
    assert integration.clisi(z, types) > 0.95


def test_what_a_batch_does_to_genes_is_found_again():
    """log rho of all cells decoded in the one batch, less that in the other, beside the truth."""
    x, _, batch, answer = two_batches_of_types(is_same_in_all=True)
    model = SCVI(150, 2, likelihood="nb")
    model.fit(x, batch, epochs=150, progress=False)
    first, second = [
        np.log(model.expression_fraction(x, batch, transform_batch=b)) for b in model.batches
    ]
    found = np.mean(second - first, axis=0)
    assert np.corrcoef(answer[0], found)[0, 1] > 0.9
    assert 0.75 < np.polyfit(answer[0], found, 1)[0] < 1.25


def test_the_kl_weight_rises_where_there_is_one_batch():
    assert fitted(counts_of()).kl_warmup == 0.25
    assert fitted(counts_of(), np.arange(150) % 2, n_batches=2).kl_warmup == 0.0
    assert fitted(counts_of(), np.arange(150) % 2, n_batches=2, kl_warmup=0.1).kl_warmup == 0.1


def test_progress_runs_from_zero_to_one_over_a_training(monkeypatch):
    seen, loss = [], SCVI.loss
    monkeypatch.setattr(
        SCVI,
        "loss",
        lambda self, *a, progress, rng: (
            seen.append(progress) or loss(self, *a, progress=progress, rng=rng)
        ),
    )
    fitted(counts_of(), epochs=8, batch_size=30)
    assert seen[0] == 0.0 and 0.95 < seen[-1] < 1.0 and np.all(np.diff(seen) > 0)
    assert np.mean(np.array(seen) >= SCVI.kl_warmup) >= 0.5


# --------------------------------------------------------------------------- recovery of the truth
# ELBO of the 500 new cells of recovery's simulation "small", seed 0, in nats a cell, of a training
# with scvi-tools 1.4.2 (400 epochs, defaults): python -m tests.benchmarks.recovery small --seeds 1
ELBO_OF_SCVI_TOOLS = {"observed": -79.5, "latent": -88.5}


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_a_simulation_is_recovered_as_well_as_by_scvi_tools(library):
    train, new = recovery.train_and_new("small")
    found = recovery.recovery(recovery.ours(train, library), new)
    assert found.elbo > ELBO_OF_SCVI_TOOLS[library] + 0.5
    assert 0.95 < found.totals < 1.1
    assert (
        found.library < 0.18
    )  # the noise of counts: the totals themselves are 0.148 from the truth
    assert found.rho > 0.8 and found.theta_rank > 0.55 and found.theta_error < 0.5


def test_latent_libraries_of_batches_of_different_depth():
    """The encoder does not see the batch, and starts between the depths: counts must tell it."""
    cells = recovery.simulate(400, 30, (100.0, 2000.0))
    model = SCVI(30, 2, likelihood="nb", library="latent", n_latent=3, n_hidden=32)
    model.fit(cells.x, cells.batch, epochs=100, batch_size=50, progress=False)
    sizes = model.denoise(cells.x, cells.batch, n_samples=25).sum(axis=1)
    for b in range(2):
        error = np.log(sizes / cells.library)[cells.batch == b]
        assert abs(np.median(error)) < 0.15 and np.median(np.abs(error)) < 0.2


def at_its_start(x, batch=None, n_batches=1, **config):
    """A model as it is before its first step, but for rounding."""
    model = small(x.shape[1], n_batches, dtype=np.float64, **config)
    return fitted(x, batch, model=model, epochs=1, learning_rate=1e-12, validation=0.0)


@pytest.mark.parametrize("likelihood", ["nb", "zinb"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_theta_starts_at_the_moments(likelihood, dispersion):
    """Moments of a gene in cells that differ in their totals alone: var x = mu + mu^2 / theta."""
    rng = np.random.default_rng(4)
    truth = np.geomspace(0.5, 8.0, 12)
    rho = np.append(rng.dirichlet(np.full(12, 20.0)), [0.01, 0.0, 0.0])
    mu = 200 * rng.lognormal(0.0, 0.4, (4000, 1)) * rho
    x = np.round(mu)  # the last three are more even than Poisson, in few cells, and in none
    x[:, :12] = rng.negative_binomial(truth, truth / (truth + mu[:, :12]))
    x[:, 13] = 400 * (rng.random(4000) < 0.01)
    batch = np.arange(4000) % 2
    model = at_its_start(x, batch, 2, likelihood=likelihood, dispersion=dispersion)
    if dispersion == "gene-cell":
        theta = np.exp(model.decoder.theta.bias.data)
    else:
        theta = np.exp(model.log_theta.data)
    assert theta.shape == ((15, 2) if dispersion == "gene-batch" else (15,))
    theta = theta.reshape(15, -1)
    mean = x.sum(axis=1, keepdims=True) * (x.sum(axis=0) + 0.5) / (x.sum() + 7.5)
    extra = np.sum((x - mean) ** 2 - x, axis=0)
    by_moments = np.sum(mean**2, axis=0)[:12] / extra[:12]
    for column in theta.T:
        np.testing.assert_allclose(column[:12], by_moments, rtol=1e-7)
        np.testing.assert_allclose(column[12:14], [100.0, 0.05], rtol=1e-7)


def test_theta_of_a_simulation_is_where_it_starts():
    """Where no gene is so common that it makes the totals, moments find the theta of the truth."""
    rng = np.random.default_rng(5)
    truth = np.geomspace(0.5, 8.0, 100)
    mu = 1000 * rng.lognormal(0.0, 0.4, (3000, 1)) * rng.dirichlet(np.full(100, 20.0))
    x = rng.negative_binomial(truth, truth / (truth + mu)).astype(float)
    theta = np.exp(at_its_start(x).log_theta.data)
    assert np.median(np.abs(np.log(theta / truth))) < 0.1
    assert np.abs(np.log(theta / truth)).max() < 0.4


def test_rho_and_the_extra_zeros_start_at_the_data():
    x = counts_of()
    x[:, 3] = 0.0
    model = at_its_start(x)
    share = np.exp(model.decoder.rho.bias.data)
    expected = (x.sum(axis=0) + 0.5) / (x.sum() + 7.5)
    np.testing.assert_allclose(share / share.sum(), expected, rtol=1e-6)
    assert np.prod(share) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(model.decoder.zi.bias.data, -2.0, rtol=1e-9)


def test_the_library_encoder_starts_at_the_totals_of_the_cells():
    """At log l = 0 the first epochs of a training would go into finding the scale of the counts."""
    x, batch = counts_of(n_genes=60), np.repeat([0, 1], [120, 30])
    log_totals = np.log(x.sum(axis=1))
    within = 0.8 * log_totals[:120].var() + 0.2 * log_totals[120:].var()
    model = small(60, n_batches=2, library="latent", dtype=np.float64)
    fitted(x, batch, model=model, epochs=1, learning_rate=1e-9)
    head = model.l_encoder
    assert head.mean.bias.data[0] == pytest.approx(log_totals.mean(), abs=1e-6)
    assert np.exp(head.log_var.bias.data[0]) == pytest.approx(within, rel=1e-6)


# -------------------------------------------------------------------------------------------------------- what it takes
def variants(x):
    """The same counts in every form in which users have them."""
    at = np.tile(np.nonzero(x), 2)
    doubled = sparse.coo_array((np.r_[x[x > 0] - 1, np.ones(np.sum(x > 0))], tuple(at)), x.shape)
    once = sparse.csr_array(x)
    twice = sparse.csr_array(
        (
            np.column_stack([once.data - 1, np.ones(once.nnz)]).ravel(),
            np.repeat(once.indices, 2),
            2 * once.indptr,
        ),
        x.shape,
    )
    unsorted = sparse.csr_array(x)
    for i in range(len(x)):
        row = slice(unsorted.indptr[i], unsorted.indptr[i + 1])
        unsorted.indices[row], unsorted.data[row] = (
            unsorted.indices[row][::-1].copy(),
            unsorted.data[row][::-1].copy(),
        )
    every = np.tile(np.arange(x.shape[1]), len(x))
    stored = sparse.csr_array((x.ravel(), every, np.arange(0, x.size + 1, x.shape[1])), x.shape)
    names = [f"g{i}" for i in range(x.shape[1])]
    return {
        "float64": x.astype(np.float64),
        "int64": x.astype(int),
        "uint16": x.astype(np.uint16),
        "list": x.tolist(),
        "Fortran": np.asfortranarray(x),
        "every other": np.repeat(x, 2, axis=1)[:, ::2],
        "CSR": sparse.csr_array(x),
        "CSR matrix of int": sparse.csr_matrix(x.astype(int)),
        "CSC": sparse.csc_array(x),
        "COO twice": doubled,
        "CSR twice": twice,
        "unsorted CSR": unsorted,
        "stored zeros": stored,
        "Counts": Counts(sparse.csr_array(x), names, range(len(x))),
    }


def test_all_forms_of_the_same_counts_give_the_same_model():
    x = counts_of()
    expected = fitted(x)
    for name, same in variants(x).items():
        model = fitted(np.asarray(same) if name == "list" else same, model=small())
        np.testing.assert_allclose(
            model.latent(same), expected.latent(x), rtol=1e-4, atol=1e-5, err_msg=name
        )
        np.testing.assert_allclose(model.elbo(same), expected.elbo(x), rtol=1e-5, err_msg=name)
    present = x > 3
    present[:, 0] = True
    whole = present.astype(int)
    np.testing.assert_array_equal(fitted(present).latent(present), fitted(whole).latent(whole))


def test_what_is_passed_is_not_changed():
    x = counts_of()
    dense, csr = x.copy(), sparse.csr_array(x)
    before = [a.copy() for a in (csr.data, csr.indices, csr.indptr)]
    fitted(dense), fitted(csr)
    assert np.array_equal(dense, x)
    assert all(np.array_equal(a, b) for a, b in zip((csr.data, csr.indices, csr.indptr), before))


def test_anndata_its_layers_and_its_columns():
    anndata = pytest.importorskip("anndata")
    x, donors = counts_of(), np.array(["b", "a"] * 75)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = anndata.AnnData(
            np.log1p(x), obs={"donor": donors}, layers={"counts": sparse.csr_matrix(x)}
        )
    data.var_names = [f"gene{i}" for i in range(15)]
    model = small(n_batches=2)
    model.fit(data, "donor", epochs=2, layer="counts", **QUIET)
    assert model.genes == [f"gene{i}" for i in range(15)] and model.batches == ["a", "b"]
    plain = fitted(x, donors, n_batches=2)
    found = model.latent(data, "donor", layer="counts")
    np.testing.assert_allclose(found, plain.latent(x, donors), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="layer=.counts."):
        fitted(data, "donor", n_batches=2)


@pytest.mark.parametrize("labels", [[3, 10], ["left", "right"], [np.int8(0), np.int8(1)]])
def test_batches_are_ints_or_strings_or_an_obs_column(labels):
    x = counts_of()
    batch = np.array([labels[i % 2] for i in range(150)])
    model = fitted(x, batch, n_batches=2)
    assert model.batches == [str(b) for b in labels]
    data = Counts(sparse.csr_array(x), range(15), range(150), {"lane": batch})
    by_column = fitted(data, "lane", n_batches=2)
    expected = model.denoise(x, batch, seed=3)
    for same in (
        by_column.denoise(data, "lane", seed=3),
        model.denoise(x, batch.astype(str), seed=3),
        model.denoise(x, batch.tolist(), seed=3),
    ):
        np.testing.assert_allclose(same, expected, rtol=1e-4)
    assert np.max(np.abs(model.denoise(x, batch[::-1], seed=3) - expected)) > 1e-3
    moved = model.denoise(x, batch, transform_batch=labels[1], seed=3)
    np.testing.assert_allclose(moved[1::2], expected[1::2], rtol=1e-5)


def test_unknown_batches_are_an_error_that_lists_the_known():
    x, batch = counts_of(), np.array(["a", "b", "c"] * 50)
    model = fitted(x, batch, n_batches=3)
    for ask in (
        model.latent,
        model.elbo,
        model.log_likelihood,
        model.denoise,
        model.expression_fraction,
        model.sample_posterior,
        lambda x, b: model.differential_expression(x, [0], batch=b),
    ):
        with pytest.raises(ValueError, match="d, e unknown; the model knows a, b, c"):
            ask(x[:3], ["a", "d", "e"])
    with pytest.raises(
        ValueError, match="say which batch each cell is from; the model knows a, b, c"
    ):
        model.denoise(x)
    with pytest.raises(ValueError, match="no obs column 'donor'"):
        model.latent(x, "donor")
    with pytest.raises(ValueError, match="must be one label for each of 150 cells"):
        model.latent(x, batch[:-1])


def test_more_batches_than_the_model_was_made_for():
    x, model = counts_of(), small(n_batches=2)
    with pytest.raises(
        ValueError, match="3 different labels, but the model was made for n_batches=2"
    ):
        model.fit(x, np.arange(150) % 3, epochs=1, **QUIET)
    assert model.batches == [0, 1] and not model.trained  # as if nothing had been
    fitted(x, np.array(["x", "y"] * 75), model=model)
    assert model.batches == ["x", "y"]


@pytest.mark.parametrize(
    "labels, are_odd",
    [
        (np.arange(150), True),
        ([f"cell {i}" for i in range(150)], True),
        (np.arange(150) % 20, False),
        (np.arange(150) % 40, True),
        (np.arange(150) % 2, False),
    ],
)
def test_labels_that_are_no_batches_are_a_warning(labels, are_odd, recwarn):
    fitted(counts_of(), labels, n_batches=len(set(labels)), epochs=1)
    said = [str(warning.message) for warning in recwarn.list if "batch" in str(warning.message)]
    assert len(said) == are_odd
    if are_odd:
        assert re.match(r"batch: \d+ different labels for 150 cells, such as ", said[0])
        assert recwarn.list[0].filename == __file__


def test_training_on_keeps_what_batches_mean():
    x, batch = counts_of(), np.array(["a", "b"] * 75)
    model = fitted(x, batch, n_batches=2)
    only_b = fitted(x[1::2], batch[1::2], model=model)
    assert only_b.batches == ["a", "b"]
    with pytest.raises(ValueError, match="c unknown; the model knows a, b"):
        fitted(x, np.array(["b", "c"] * 75), model=model)


def test_cells_without_counts_are_left_out_and_reported():
    x = counts_of()
    x[[0, 70, 149]] = 0
    full = x.sum(axis=1) > 0
    with pytest.warns(UserWarning, match="3 cells without counts are left out of training"):
        model = fitted(x, np.arange(150) % 2, n_batches=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without = fitted(x[full], (np.arange(150) % 2)[full], n_batches=2)
    for name, weights in without.state_dict().items():
        np.testing.assert_array_equal(model.state_dict()[name], weights, err_msg=name)
    mean, std = model.latent(x, np.zeros(150, int), return_std=True)
    assert np.all(np.isfinite(mean)) and np.all(np.isfinite(std)) and np.all(std > 0)
    np.testing.assert_array_equal(mean[0], mean[149])


@pytest.mark.parametrize(
    "x, message",
    [
        (np.ones((1, 15)), "1 cell with counts of 1; training needs at least 2"),
        (np.eye(40, 15) * (np.arange(40) == 3)[:, None], "1 cell with counts of 40"),
        (np.zeros((40, 15)), "0 cells with counts of 40"),
        (np.ones((40, 14)), "counts have 14 genes, the model was made for n_genes=15"),
        (np.ones(15), "must be \\(n_cells, n_genes\\)"),
        (np.ones((0, 15)), "no cells"),
        (np.full((40, 15), 0.5), "0.5; counts are whole numbers"),
        (np.full((40, 15), -1.0), "-1.0, which is negative; counts are whole numbers"),
        (np.full((40, 15), np.nan), "nan; counts are finite"),
        (np.full((40, 15), np.inf), "inf; counts are finite"),
        (sparse.csr_array(np.full((40, 15), 2.5)), "2.5; counts are whole numbers"),
        (np.full((40, 15), 2.0**25), "33554432.0, above 16,777,216"),
        (np.full((40, 15), "a"), "must be numbers"),
    ],
)
def test_what_is_no_count_matrix_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        small().fit(x, epochs=1, **QUIET)
    if (
        " with counts of" not in message
    ):  # a trained model answers about a single cell, and about empty ones
        with pytest.raises(ValueError, match=message):
            small().latent(x)


@pytest.mark.parametrize("n_genes, likelihood", [(1, "zinb"), (1, "nb"), (2, "poisson")])
def test_one_gene(n_genes, likelihood):
    x = counts_of(n_genes=n_genes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # cells without counts
        model = fitted(x, model=small(n_genes, likelihood=likelihood))
    assert np.all(np.isfinite(model.latent(x))) and np.all(
        np.isfinite(model.log_likelihood(x, n_samples=5))
    )
    np.testing.assert_allclose(model.expression_fraction(x).sum(axis=1), 1.0, rtol=1e-6)


def test_genes_without_counts_and_two_cells_only():
    x = counts_of()
    x[:, [0, 7]] = 0
    model = fitted(x)
    assert all(np.all(np.isfinite(a)) for a in model.state_dict().values())
    assert np.all(model.expression_fraction(x)[:, [0, 7]].mean(axis=0) < 0.02)
    assert np.all(np.isfinite(fitted(x[:2]).latent(x[:2])))


def test_a_batch_of_one_cell_with_a_latent_library():
    x, batch = counts_of(), np.array(["rest"] * 149 + ["alone"])
    model = fitted(x, batch, model=small(n_batches=2, library="latent"))
    assert model.batches == ["alone", "rest"]
    totals = np.log(x.sum(axis=1).astype(np.float64))
    np.testing.assert_allclose(model.library_log_mean, [totals[-1], totals[:-1].mean()], rtol=1e-6)
    np.testing.assert_allclose(model.library_log_var, [1e-4, totals[:-1].var()], rtol=1e-5)
    np.testing.assert_allclose(model.batch_fraction, [1 / 150, 149 / 150], rtol=1e-6)
    assert np.all(np.isfinite(model.log_likelihood(x, batch, n_samples=5)))
    assert np.all(np.isfinite(model.generate(5, batch="alone")))


def test_a_library_prior_that_is_given_stays():
    given = dict(library="latent", library_log_mean=[2.0, 3.0], library_log_var=[0.5, 0.25])
    model = fitted(counts_of(), np.arange(150) % 2, model=small(n_batches=2, **given))
    assert model.library_log_mean.tolist() == [2.0, 3.0] and model.library_log_var.tolist() == [
        0.5,
        0.25,
    ]


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(likelihood="gaussian"), "likelihood must be one of"),
        (dict(dispersion="cell"), "dispersion must be one of"),
        (dict(library="given"), "library must be one of"),
        (dict(n_latent=0), "n_latent must be a whole number"),
        (dict(n_hidden=2.5), "n_hidden must be a whole number"),
        (dict(n_batches=0), "n_batches must be a whole number"),
    ],
)
def test_wrong_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        SCVI(15, **config)


# -------------------------------------------------------------------------------------------------------- what it keeps
@pytest.mark.parametrize(
    "config",
    [
        dict(likelihood="zinb", dispersion="gene-batch", library="latent"),
        dict(likelihood="nb", dispersion="gene-cell"),
        dict(likelihood="poisson", dtype=np.float64, n_layers=2),
    ],
)
def test_a_saved_model_is_the_same_to_the_last_bit(config, tmp_path):
    x, batch = counts_of(), np.array(["u", "v"] * 75)
    data = Counts(sparse.csr_array(x), [f"g{i}" for i in range(15)], range(150), {"lane": batch})
    model = fitted(data, "lane", model=small(n_batches=2, **config))
    model.save(tmp_path / "model.npz")
    loaded = SCVI.load(tmp_path / "model.npz")
    assert loaded.genes == model.genes == [f"g{i}" for i in range(15)]
    assert loaded.batches == ["u", "v"] and loaded.trained
    assert loaded.config == model.config and loaded.dtype == np.dtype(
        config.get("dtype", np.float32)
    )
    for ask in (
        lambda m: m.latent(x, batch),
        lambda m: m.elbo(x, batch),
        lambda m: m.sample_posterior(x, batch),
        lambda m: m.log_likelihood(x, batch, n_samples=3),
        lambda m: m.denoise(x, batch, transform_batch="v"),
        lambda m: m.generate(20),
        lambda m: m.differential_expression(x, [0, 1], batch=batch, n_samples=50)["lfc_mean"],
    ):
        np.testing.assert_array_equal(ask(loaded), ask(model))
    again = [fitted(data, "lane", model=m, epochs=1).latent(x, batch) for m in (model, loaded)]
    np.testing.assert_array_equal(*again)


def test_genes_are_stored_only_where_they_have_names():
    x = counts_of()
    assert fitted(x).genes is None
    assert fitted(Counts(sparse.csr_array(x), range(15), range(150))).genes == [
        str(i) for i in range(15)
    ]


@pytest.mark.parametrize("library", ["observed", "latent"])
def test_a_run_that_was_stopped_and_resumed_ends_like_one_that_was_not(
    library, tmp_path, monkeypatch
):
    x, batch, path = counts_of(), np.arange(150) % 2, tmp_path / "run.npz"
    whole = fitted(x, batch, model=small(n_batches=2, library=library), epochs=6, batch_size=40)
    step, steps = SCVI.loss, []

    def stopping(self, *minibatch, **keywords):
        steps.append(1)
        if len(steps) == 9:  # in the third epoch
            raise KeyboardInterrupt
        return step(self, *minibatch, **keywords)

    monkeypatch.setattr(SCVI, "loss", stopping)
    fitted(
        x,
        batch,
        model=small(n_batches=2, library=library),
        epochs=6,
        batch_size=40,
        checkpoint=path,
    )
    assert len(steps) == 9
    resumed = small(n_batches=2, library=library, seed=123)
    fitted(x, batch, model=resumed, epochs=6, batch_size=40, checkpoint=path, resume=True, seed=0)
    assert len(steps) < 9 + 6 * 4
    for name, weights in whole.state_dict().items():
        np.testing.assert_array_equal(resumed.state_dict()[name], weights, err_msg=name)
    np.testing.assert_array_equal(SCVI.load(path).latent(x, batch), whole.latent(x, batch))


def test_asking_changes_nothing():
    x, batch = counts_of(), np.arange(150) % 2
    model = fitted(x, batch, n_batches=2)
    before = model.state_dict()
    for training in (True, False):
        model.train(training)
        for ask in ("latent", "elbo", "denoise", "expression_fraction", "sample_posterior"):
            first = getattr(model, ask)(x, batch)
            np.testing.assert_array_equal(getattr(model, ask)(x, batch), first)
        model.log_likelihood(x, batch, n_samples=2), model.generate(3)
        assert model.training == training
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(weights, before[name])


def test_latent_is_deterministic_and_one_cell_at_a_time_is_the_same():
    x = counts_of()
    model = fitted(x)
    mean, std = model.latent(x, return_std=True)
    assert mean.shape == std.shape == (150, 3) and mean.dtype == std.dtype == np.float32
    np.testing.assert_array_equal(model.latent(x), mean)
    alone = np.concatenate([model.latent(x[i : i + 1]) for i in range(5)])
    np.testing.assert_allclose(alone, mean[:5], rtol=1e-4, atol=1e-6)


def test_arguments_of_fit_that_make_no_sense():
    x = np.random.default_rng(0).poisson(2.0, (30, 6))
    for wrong in (dict(epochs=0), dict(epochs=2.5), dict(batch_size=0), dict(learning_rate=0.0)):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            SCVI(6).fit(x, progress=False, **wrong)
    with pytest.raises(ValueError, match="batch is missing"):
        SCVI(6, n_batches=2).fit(x, progress=False)


def test_a_failed_fit_leaves_a_new_model(tmp_path):
    model = SCVI(6)
    with pytest.raises(OSError):
        model.fit(
            np.ones((30, 6)), epochs=1, progress=False, checkpoint=tmp_path / "missing" / "run.npz"
        )
    assert not model.trained


def test_genes_in_another_order_are_refused():
    x = np.random.default_rng(0).poisson(2.0, (30, 6)).astype(np.float32)
    counts = Counts(sparse.csr_array(x), list("abcdef"), range(30))
    model = SCVI(6)
    model.fit(counts, epochs=1, progress=False)
    assert model.latent(counts).shape == (30, 30)
    before = model.state_dict()
    turned = counts.select_genes(np.arange(6)[::-1])
    others = Counts(counts.X, list("abcdeg"), range(30))
    for strange in (turned, others):
        for ask in (model.latent, lambda c: model.fit(c, epochs=1, progress=False)):
            with pytest.raises(ValueError, match="genes differ, or stand in another order"):
                ask(strange)
    assert model.genes == list("abcdef") and model.trained
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(weights, before[name], err_msg=name)


def test_training_on_keeps_the_names_of_genes():
    """Counts without names are taken, as for predictions; the model's names stay."""
    x = np.random.default_rng(0).poisson(2.0, (30, 6)).astype(np.float32)
    named = Counts(sparse.csr_array(x), list("abcdef"), range(30))
    model = fitted(named, model=small(6))
    fitted(x, model=model)
    assert model.genes == list("abcdef")
    nameless = fitted(x, model=small(6))
    fitted(named, model=nameless)
    assert nameless.genes is None


@pytest.mark.parametrize(
    "other, says",
    [
        ("genes", "data|genes"),
        ("names", "other genes"),
        ("cells", "data"),
        ("batches", "data|batches"),
        ("labels", "other batches"),
    ],
)
def test_a_run_does_not_resume_on_what_only_looks_alike(other, says, tmp_path):
    """Genes, cells or batches in another order have the same sizes and the same total."""
    rng = np.random.default_rng(0)
    x, batch, names = (
        rng.poisson(2.0, (40, 6)),
        np.array(["a", "b"])[np.arange(40) % 2],
        [f"G{i}" for i in range(6)],
    )

    def train(x, batch, names, resume):
        counts = Counts(
            sparse.csr_array(x.astype(np.float32)), names, [f"c{i}" for i in range(40)], {}
        )
        SCVI(6, 2, n_latent=2, n_hidden=4).fit(
            counts, batch, epochs=2, checkpoint=tmp_path / "run.npz", resume=resume, progress=False
        )

    train(x, batch, names, False)
    train(x, batch, names, True)
    changed = {
        "genes": (x[:, ::-1], batch, names[::-1]),
        "names": (x, batch, names[::-1]),
        "cells": (x[::-1], batch, names),
        "batches": (x, batch[::-1], names),
        "labels": (x, np.char.add(batch, "2"), names),
    }[other]
    with pytest.raises(ValueError, match=says):
        train(*changed, True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(bad, tmp_path):
    vae = VAE(5, hidden=(4,), n_latent=2)
    for model, weight in (
        (small(), "decoder.rho.weight"),
        (small(), "z_encoder.layers.norms.0.running_var"),
        (vae, next(name for name, _ in vae.named_parameters())),
    ):
        state = model.state_dict()
        state[weight].flat[[0, 2]] = bad
        model.load_state_dict(state)
        path = tmp_path / "model.npz"
        model.save(path)
        says = f"{path}: cannot be loaded: 2 of {state[weight].size} numbers of the weight {weight}"
        with pytest.raises(ValueError, match=re.escape(says)):
            type(model).load(path)


def test_weights_of_scvi_tools_that_are_not_finite_are_refused():
    reference = np.load(Path(__file__).parent / "data" / "scvi_nb_observed.npz")
    state = {k[6:]: reference[k] for k in reference.files if k.startswith("param/")}
    SCVI.from_scvi_tools(state, n_batches=2, likelihood="nb")
    state["px_r"] = np.where(np.arange(len(state["px_r"])) == 1, np.nan, state["px_r"])
    with pytest.raises(ValueError, match="state: cannot be used: 1 of .* of the weight px_r are"):
        SCVI.from_scvi_tools(state, n_batches=2, likelihood="nb")


@pytest.mark.parametrize(
    "sizes",
    [
        dict(n_genes=4000, n_hidden=8),
        dict(n_latent=900, n_hidden=8),
        dict(n_layers=2, n_hidden=300),
        dict(n_layers=5, n_hidden=150, n_batches=2),
        dict(n_batches=3000, n_hidden=20, n_layers=1),
        dict(n_batches=3000, n_hidden=4, n_layers=3),
        dict(n_batches=300, n_genes=200, n_hidden=2, n_layers=1, dispersion="gene-batch"),
        dict(n_batches=300, n_genes=200, n_hidden=2, n_layers=1, dispersion="gene"),
    ],
)
def test_the_least_size_of_a_file_is_close_to_its_size(sizes):
    """Never more than the weights are, or `load` would refuse them; and enough to find a lie by."""
    smallest = dict(n_genes=3, n_latent=2, likelihood="nb")
    model = SCVI(**{**smallest, **sizes})
    weights = model.state_dict().values()
    n_arrays, size = SCVI.least_size(model.config)
    assert n_arrays == sizes.get("n_layers", 1) <= len(weights)
    assert size <= sum(w.size for w in weights) < 4 * size


COVARIATES = dict(categorical={"sex": ["f", "m"], "site": ["s", "t"]}, continuous=["age"])


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
@pytest.mark.parametrize("library", ["observed", "latent"])
def test_models_of_all_settings_are_loaded(likelihood, dispersion, library, tmp_path):
    """Of many batches, each: a file is as large as its model says, whatever it has of each batch."""
    config = dict(likelihood=likelihood, dispersion=dispersion, library=library, n_latent=2)
    several = dict(n_hidden=[1, 8], n_layers=[1, 2], encode_covariates=[False, True])
    several |= dict(columns=[None, COVARIATES], n_before=[None, 1, 40])
    for values in itertools.product(*several.values()):
        varied = dict(zip(several, values))
        n_before = varied.pop("n_before")
        if n_before is not None:
            n_labels = {"sex": 1, "site": 2} if varied["columns"] else {}
            varied["reference"] = {"n_batches": n_before, "n_labels": n_labels}
        model = SCVI(12, 60, **config, **varied)
        n_arrays, size = SCVI.least_size(model.config)
        weights = model.state_dict().values()
        assert n_arrays <= len(weights) and size <= sum(w.size for w in weights), varied
    model = SCVI(50, 100, n_hidden=8, **config)
    model.save(tmp_path / "model.npz")
    loaded = SCVI.load(tmp_path / "model.npz")
    for name, weight in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], weight)


# ----------------------------------------------------------- copies, frozen weights, half precision
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("library", ["observed", "latent"])
def test_copies_train_alike(way, library):
    x, batch = counts_of(24), np.arange(24) % 2
    model = small(n_batches=2, library=library, dropout=0.2)

    def loss(model, step):
        return model.loss(x, batch, rng=np.random.default_rng(step))

    def make(parameters):  # as `fit` makes it: the copy's must know the copy's weights
        model_of_these = next(m for m in models if m.parameters()[0] is parameters[0])
        return recipe.optimizer_of(model_of_these, parameters, 1e-2, 0.1, 100)

    models = [model]
    check_copies(model, loss, way)
    optimizer = make(model.parameters())
    copied, its_optimizer = WAYS[way]((model, optimizer))
    for each, one in ((copied, its_optimizer), (model, optimizer)):
        for step in range(3):
            one.zero_grad()
            loss(each, step).backward()
            one.step()
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(copied.state_dict()[name], weights, err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_a_trained_model_says_the_same_and_trains_on(way):
    x = counts_of(60)
    model = fitted(x)
    copied = WAYS[way](model)
    np.testing.assert_array_equal(copied.latent(x), model.latent(x))
    before = model.state_dict()
    for each in (copied, model):
        fitted(x, model=each)
        if each is copied:
            assert all(np.array_equal(a, before[n]) for n, a in model.state_dict().items())
    assert np.any(model.log_theta.data != before["log_theta"])
    for name, weights in model.state_dict().items():
        np.testing.assert_array_equal(copied.state_dict()[name], weights, err_msg=name)


@pytest.mark.parametrize("dispersion", ["gene", "gene-cell"])
def test_frozen_weights_stay_are_saved_and_loaded(tmp_path, dispersion):
    """A decoder from elsewhere: `fit` neither starts its biases anew nor trains them."""
    model = small(dispersion=dispersion, library="latent")
    frozen = [p for name, p in model.named_parameters() if not name.startswith("z_encoder")]
    for p in frozen:
        p.data += 0.25
        p.requires_grad = False
    before = model.state_dict()
    fitted(counts_of(), model=model)
    after = model.state_dict()
    for name, p in model.named_parameters():
        assert np.array_equal(after[name], before[name]) == (not p.requires_grad), name
    model.save(tmp_path / "model.npz")
    loaded = SCVI.load(tmp_path / "model.npz")
    for name, weights in after.items():
        np.testing.assert_array_equal(loaded.state_dict()[name], weights, err_msg=name)


def test_half_precision_is_no_dtype_of_a_model():
    with pytest.raises(ValueError, match="dtype must be numpy.float32 or numpy.float64"):
        SCVI(5, dtype=np.float16)


def test_counts_of_halves_are_computed_in_single_precision():
    """Totals of cells are beyond float16 here, which also has no odd number above 2,048."""
    x = 512 * counts_of(60, n_genes=40)
    assert x.sum(axis=1).max() > np.finfo(np.float16).max
    ends = [fitted(x.astype(dtype)) for dtype in (np.float16, np.float32)]
    for name, weights in ends[1].state_dict().items():
        np.testing.assert_array_equal(ends[0].state_dict()[name], weights, err_msg=name)
        assert weights.dtype == np.float32 and np.all(np.isfinite(weights))
    np.testing.assert_array_equal(ends[0].latent(x.astype(np.float16)), ends[1].latent(x))


def test_weights_of_scvi_tools_in_halves_are_computed_in_single_precision():
    reference = np.load(Path(__file__).parent / "data" / "scvi_nb_observed.npz")
    state = {k[6:]: reference[k] for k in reference.files if k.startswith("param/")}
    halves = {name: a.astype(np.float16) for name, a in state.items()}
    model = SCVI.from_scvi_tools(halves, n_batches=2, likelihood="nb")
    assert model.dtype == np.float32 and all(p.dtype == np.float32 for p in model.parameters())
    np.testing.assert_array_equal(model.log_theta.data, halves["px_r"])


def test_numpys_numbers_train_as_pythons_do():
    x = counts_of()
    weights = []
    for number in (np.float32, float):
        options = dict(kl_warmup=0.25, learning_rate=1 / 256, weight_decay=0.125)
        numbers = {name: number(value) for name, value in options.items()}
        model = fitted(x, validation=0.0, **numbers)
        weights.append(model.state_dict())
    ours, theirs = weights
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
