"""models/query.py: cells of new batches, mapped onto a model that is trained."""

import copy
import warnings

import numpy as np
import pytest
from scipy import sparse

from minigrad import checkpoint, optim
from minigrad.fit import evaluating
from minigrad.nn import Parameter
from models import SCVI
from models.counts import Counts
from models.covariates import ObsColumns
from models.query import (
    AdamOfColumns,
    NewWeights,
    Parts,
    Reference,
    extended,
    map_cells,
    parts_of,
    reference_from,
    share_genes,
)
from models.recipe import optimizer_of
from models.transfer import transfer_labels

pytestmark = pytest.mark.filterwarnings("ignore:.*have other means")  # of models hardly trained
TYPES = np.array(["B", "NK", "T"])
N_GENES = 60


def simulated(n, donors, effects, seed):
    """n cells of three types from these donors; effects: donor -> factor of each gene."""
    rng = np.random.default_rng(seed)
    programs = np.random.default_rng(7).gamma(0.6, 5.0, (len(TYPES), N_GENES)) + 0.3
    kind = rng.permutation(n) % len(TYPES)
    donor = np.array(donors)[rng.permutation(n) % len(donors)]
    rates = programs[kind] * np.stack([effects[d] for d in donor])
    x = rng.poisson(rng.gamma(5.0, rates / 5.0))
    return Counts(
        sparse.csr_array(x.astype(np.float32)),
        [f"g{i}" for i in range(N_GENES)],
        [f"c{i}" for i in range(n)],
        {"donor": donor, "kind": TYPES[kind]},
    )


@pytest.fixture(scope="module")
def effects():
    """Two donors of the reference, that are nearly alike, and a new one, which is not."""
    rng = np.random.default_rng(3)
    spread = {"d1": 0.1, "d2": 0.1, "new": 0.5}
    return {donor: np.exp(rng.normal(0.0, s, N_GENES)) for donor, s in spread.items()}


@pytest.fixture(scope="module")
def reference(effects):
    return simulated(500, ["d1", "d2"], effects, seed=0)


@pytest.fixture(scope="module")
def new_cells(effects):
    return simulated(300, ["new"], effects, seed=1)


@pytest.fixture(scope="module")
def held_out(effects):
    return simulated(150, ["new"], effects, seed=2)


def trained_on(counts, **config):
    sizes = dict(n_latent=5, n_hidden=32, n_layers=1)
    model = SCVI.for_data(counts, "donor", **sizes, likelihood="nb", **config)
    model.fit(counts, epochs=60, progress=False)
    return model


@pytest.fixture(scope="module")
def model(reference):
    return trained_on(reference)


@pytest.fixture(scope="module")
def query(model, new_cells):
    return model.map_query(new_cells, progress=False)


# ------------------------------------------------------------------------------- to the last bit
def told_cells(n=60, seed=0, **labels):
    """Few counts, with a batch, two categories and a number for each cell."""
    rng = np.random.default_rng(seed)
    obs = {
        name: np.array(values)[rng.permutation(n) % len(values)] for name, values in labels.items()
    }
    obs["age"] = rng.normal(40.0, 12.0, n)
    x = sparse.csr_array(rng.poisson(1.0, (n, 20)).astype(np.float32))
    return Counts(x, [f"g{i}" for i in range(20)], [f"c{i}" for i in range(n)], obs)


OLD = told_cells(donor=["d1", "d2"], sex=["f", "m"], site=["s"])
NEW = told_cells(50, 1, donor=["d3", "d4"], sex=["f", "x"], site=["s", "t"])
NEWER = told_cells(40, 2, donor=["d5"], sex=["m"], site=["u"])
ALL = dict(batch="donor", categorical=["sex", "site"], continuous=["age"])
ASK = (
    lambda m, x, **b: m.latent(x, **b),
    lambda m, x, **b: m.elbo(x, **b),
    lambda m, x, **b: m.log_likelihood(x, n_samples=4, **b),
    lambda m, x, **b: m.denoise(x, **b),
)


@pytest.mark.parametrize(
    "told, config",
    [
        (ALL, dict(encode_covariates=True, n_layers=2, library="latent")),
        (ALL, dict(dispersion="gene-batch", likelihood="zinb")),
        (dict(batch="donor"), dict(encode_covariates=True, dispersion="gene-cell")),
        (dict(batch="donor"), dict(library="latent")),
        ({}, dict(encode_covariates=True)),
        ({}, dict(dispersion="gene-batch", n_layers=2)),
        (dict(categorical=["site"]), dict(encode_covariates=True)),
    ],
)
def test_old_cells_stay_to_the_bit_through_two_mappings(told, config, tmp_path):
    model = SCVI.for_data(
        OLD, **told, **{"n_latent": 3, "n_hidden": 16, "likelihood": "nb", **config}
    )
    model.fit(OLD, epochs=2, progress=False)
    before = model.state_dict()
    is_told = "batch" in told
    once = model.map_query(NEW, name="first", epochs=2, progress=False)
    twice = once.map_query(NEWER, name="second", epochs=2, progress=False)
    of_old = {} if is_told else {"batch": ["0"] * len(OLD)}
    of_new = {} if is_told else {"batch": ["first"] * len(NEW)}
    for ask in ASK:
        old = ask(model, OLD)
        np.testing.assert_array_equal(ask(once, OLD, **of_old), old)
        np.testing.assert_array_equal(ask(twice, OLD, **of_old), old)
        np.testing.assert_array_equal(ask(twice, NEW, **of_new), ask(once, NEW, **of_new))
    after = model.state_dict()
    for name, weight in before.items():
        np.testing.assert_array_equal(after[name], weight)
    twice.save(tmp_path / "twice.npz")
    loaded = SCVI.load(tmp_path / "twice.npz")
    for ask in ASK:
        np.testing.assert_array_equal(ask(loaded, NEW, **of_new), ask(once, NEW, **of_new))
    assert loaded.batches == twice.batches


def test_weights_of_the_reference_and_running_statistics_do_not_move(model, query):
    before, after = model.state_dict(), query.state_dict()
    of_batches = ("library_log_mean", "library_log_var", "batch_fraction")
    added = set(after) - set(before)
    assert added == {"decoder.layers.linears.0.new.weight", "decoder.offsets.weight"}
    assert any("running_mean" in name for name in before)
    for name in set(before) - set(of_batches):
        np.testing.assert_array_equal(after[name], before[name])
    for name in of_batches[:2]:
        np.testing.assert_array_equal(after[name][:2], before[name])


def test_the_mapped_model_trains_on_afterwards(model, new_cells, query):
    assert [p.requires_grad for p in query.parameters()] == [True] * len(query.parameters())
    again = model.map_query(new_cells, epochs=1, progress=False)
    weight = again.decoder.rho.weight.numpy().copy()
    again.fit(new_cells, ["new"] * len(new_cells), epochs=1, progress=False)
    assert np.any(again.decoder.rho.weight.numpy() != weight)


def test_frozen_weights_of_the_reference_stay_frozen(reference, new_cells):
    model = SCVI.for_data(reference, "donor", n_latent=2, n_hidden=8)
    model.fit(reference, epochs=1, progress=False)
    model.decoder.rho.weight.requires_grad = False
    query = model.map_query(new_cells, epochs=1, progress=False)
    frozen = [name for name, p in query.named_parameters() if not p.requires_grad]
    assert frozen == ["decoder.rho.weight"]


# ------------------------------------------------------------------------------- what is learnt
def log_p(model, counts, label):
    return model.log_likelihood(counts, [label] * len(counts), n_samples=50)


def test_held_out_cells_of_the_new_batch_become_likelier(model, query, held_out):
    nearest = max(log_p(model, held_out, label).mean() for label in model.batches)
    gain = log_p(query, held_out, "new") - nearest
    error = gain.std() / np.sqrt(len(gain))
    assert gain.mean() > 5.0 and gain.mean() > 5 * error


def test_the_new_weights_have_learnt_what_was_simulated(query, held_out, effects):
    """The same cells as if of either batch: the ratio is the effect of the one over the other."""
    as_of = {
        label: query.expression_fraction(held_out, ["new"] * 150, transform_batch=label).mean(
            axis=0
        )
        for label in query.batches
    }
    found = np.log(as_of["new"] / as_of["d1"])
    truth = np.log(effects["new"] / effects["d1"])
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def accuracy(model, reference, held_out, old, new):
    z = model.latent(reference, old)
    found = transfer_labels(z, reference.obs["kind"], model.latent(held_out, new))
    return np.mean(found.labels == held_out.obs["kind"])


def test_labels_are_transferred_no_worse_than_without_mapping(model, query, reference, held_out):
    old = reference.obs["donor"]
    without = accuracy(model, reference, held_out, old, ["d1"] * len(held_out))
    assert without > 0.9
    assert accuracy(query, reference, held_out, old, ["new"] * len(held_out)) == without


def test_encoders_that_are_told_the_batch_learn_it(reference, new_cells, held_out):
    """Then z of new cells moves, towards old cells of the same type."""
    model = trained_on(reference, encode_covariates=True)
    query = model.map_query(new_cells, progress=False)
    old, new = reference.obs["donor"], ["new"] * len(held_out)
    z_old = query.latent(reference, old)
    distances = []
    for one, labels in ((model, ["d1"] * len(held_out)), (query, new)):
        z = one.latent(held_out, labels)
        gaps = [
            np.linalg.norm(
                z[held_out.obs["kind"] == kind].mean(axis=0)
                - z_old[reference.obs["kind"] == kind].mean(axis=0)
            )
            for kind in TYPES
        ]
        distances.append(np.mean(gaps))
    assert distances[1] < 0.9 * distances[0]  # 0.68 to 0.84 by the seed of the reference
    without = accuracy(model, reference, held_out, old, ["d1"] * len(held_out))
    assert accuracy(query, reference, held_out, old, new) >= without


def test_without_the_batch_the_encoder_says_what_it_said(model, query, held_out):
    np.testing.assert_array_equal(query.latent(held_out), model.latent(held_out))


def test_a_reference_of_one_batch_learns_a_second(reference, new_cells, held_out):
    model = SCVI.for_data(reference, n_latent=5, n_hidden=32, likelihood="nb")
    model.fit(reference, epochs=60, progress=False)
    query = model.map_query(new_cells, name="day 2", progress=False)
    assert query.batches == ["0", "day 2"]
    gain = (
        log_p(query, held_out, "day 2").mean() - model.log_likelihood(held_out, n_samples=50).mean()
    )
    assert gain > 5.0
    with pytest.raises(ValueError, match="the model knows 0, day 2"):
        query.elbo(held_out)


def test_library_sizes_of_new_batches_have_moments_of_their_own(new_cells, query):
    log_totals = np.log(new_cells.X.sum(axis=1))
    np.testing.assert_allclose(query.library_log_mean[2], log_totals.mean(), rtol=1e-5)
    np.testing.assert_allclose(query.library_log_var[2], log_totals.var(), rtol=1e-4)
    totals = query.generate(500, batch="new").sum(axis=1)
    np.testing.assert_allclose(np.log(totals).mean(), log_totals.mean(), atol=0.05)


@pytest.mark.parametrize("of_reference, of_query", [(0.1, 0.1), (0.5, 0.0)])
def test_fractions_are_of_all_cells_whatever_was_held_out(of_reference, of_query, tmp_path):
    """60 cells and 50, and then 40, in every count; trained on are fewer."""
    model = SCVI.for_data(OLD, **ALL, n_hidden=4, n_latent=2, likelihood="nb")
    model.fit(OLD, epochs=1, validation=of_reference, progress=False)
    kinds = np.array([[np.sum(cells.obs["sex"] == sex) for sex in "fmx"] for cells in (OLD, NEW)])
    options = dict(epochs=1, validation=of_query, progress=False)
    query = model.map_query(NEW, **options)
    np.testing.assert_allclose(query.batch_fraction[2:].sum(), 50 / 110, rtol=1e-6)
    np.testing.assert_allclose(query.batch_fraction.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(query.covariate_mean[:3], kinds.sum(axis=0) / 110, rtol=1e-6)
    n_trained = 60 - round(60 * of_reference) + 50 - round(50 * of_query)
    assert query.trained_on == {"rows": n_trained, "epochs": 1}
    query.save(tmp_path / "query.npz")
    twice = SCVI.load(tmp_path / "query.npz").map_query(NEWER, **options)
    np.testing.assert_allclose(twice.batch_fraction[4], 40 / 150, rtol=1e-6)


def test_a_file_that_does_not_say_how_many_cells_there_were_is_mapped(tmp_path):
    """As files of earlier versions: 54 cells were trained on, of 60."""
    model = SCVI.for_data(OLD, "donor", n_hidden=4, n_latent=2, likelihood="nb")
    model.fit(OLD, epochs=1, progress=False)
    model.save(tmp_path / "model.npz")
    arrays, meta = checkpoint.load(tmp_path / "model.npz")
    meta.pop("n_cells", None)
    checkpoint.save(tmp_path / "model.npz", arrays, meta)
    query = SCVI.load(tmp_path / "model.npz").map_query(NEW, epochs=1, progress=False)
    np.testing.assert_allclose(query.batch_fraction[2:].sum(), 50 / 104, rtol=1e-6)


def test_what_is_new_starts_at_the_mean_of_what_is_known():
    model = SCVI.for_data(OLD, **ALL, n_hidden=4, n_latent=3, dispersion="gene-batch")
    model.fit(OLD, epochs=1, progress=False)
    query = extended(model, NEW, ["d3", "d4"])
    weight = model.decoder.layers.linears[0].weight.numpy()[:, 3:]  # d1, d2, f, m, age
    share = np.mean(model.batch_fraction), model.covariate_mean[:2]
    np.testing.assert_allclose(model.batch_fraction, 0.5, atol=0.05)
    added = query.decoder.layers.linears[
        0
    ].new.weight.numpy()  # d3, d4, x, s, t without weights before
    assert added.shape == (4, 4)
    np.testing.assert_allclose(added[:, 0], weight[:, :2] @ model.batch_fraction, rtol=1e-5)
    np.testing.assert_array_equal(added[:, 1], added[:, 0])
    np.testing.assert_allclose(added[:, 2], weight[:, 2:4] @ share[1], rtol=1e-5)
    np.testing.assert_array_equal(added[:, 3], 0)  # t: a single site was told of by nothing
    log_theta = model.log_theta.numpy()
    np.testing.assert_array_equal(query.log_theta.numpy()[:, :2], log_theta)
    np.testing.assert_allclose(
        query.log_theta.numpy()[:, 2], log_theta @ model.batch_fraction, rtol=1e-5
    )


def test_offsets_start_at_zero():
    model = SCVI.for_data(OLD, "donor", n_hidden=4, n_latent=2)
    model.fit(OLD, epochs=1, progress=False)
    once = model.map_query(NEW, epochs=1, progress=False)
    learnt = once.decoder.offsets.weight.numpy()
    assert learnt.any(axis=0).all()
    offsets = extended(once, NEWER, ["d5"]).decoder.offsets.weight.numpy()
    np.testing.assert_array_equal(offsets, np.column_stack([learnt, np.zeros(20)]))


class WithRates(SCVI):
    """A model with a further number for each batch."""

    def __init__(self, *sizes, **config):
        super().__init__(*sizes, **config)
        self.rates = Parameter(np.ones(self.n_batches), self.dtype)


def test_what_else_there_is_for_each_batch_does_not_start_anywhere():
    """There it would keep the random numbers that it was made with."""
    model = WithRates.for_data(OLD, "donor", n_hidden=4, n_latent=2)
    model.trained = True
    assert extended(model, OLD, ["d1"]).rates.shape == (2,)
    with pytest.raises(RuntimeError, match=r"map_query: rates has shape \(4,\) .* \(2,\)"):
        extended(model, NEW, ["d3", "d4"])


def test_the_loss_is_minus_the_elbo_from_the_first_step(model, new_cells):
    """Without a warm-up of the divergence, which is as large here as no noise of the draws."""
    start = extended(model, new_cells, ["new"])
    elbo = start.elbo(new_cells, "donor", n_samples=20).mean()
    log_p = log_p_of_draws(start, new_cells)
    found = map_cells(model, new_cells, epochs=1, batch_size=300, validation=0.0, progress=False)
    loss = found.history["train_loss"][0]
    assert abs(-loss - elbo) < 0.2 * abs(log_p - elbo)


def log_p_of_draws(model, counts):
    """The mean over cells of log p(x | z) of a draw: the ELBO without its divergence."""
    found = NewWeights(model).validation(
        counts.X, np.full(len(counts), 2), rng=np.random.default_rng(0)
    )
    return found["reconstruction"].mean()


def test_offsets_have_a_prior_and_known_columns_do_not_move():
    """Adam on the same loss, with the prior written out, and on the new column alone."""
    rng = np.random.default_rng(0)
    start, slope = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    w, plain = Parameter(start), Parameter(start[:, 2:])
    ours = AdamOfColumns({w: np.array([0.0, 0.0, 1.0])}, 0.1, weight_decay=2.5, decayed=w)
    adam = optim.Adam([plain], 0.1)
    for _ in range(5):
        ours.zero_grad()
        np.sum(slope * w**2).backward()
        ours.step()
        adam.zero_grad()
        (np.sum(slope[:, 2:] * plain**2) + 2.5 / 2 * np.sum(plain**2)).backward()
        adam.step()
    np.testing.assert_array_equal(w.numpy()[:, :2], start[:, :2])
    np.testing.assert_allclose(w.numpy()[:, 2:], plain.numpy(), rtol=1e-12)


@pytest.mark.parametrize("slope, moved", [(0.0, -0.1), (-4.0 / 100, 0.0), (-4.1 / 100, 0.1)])
def test_offsets_keep_their_prior_when_all_is_trained_further(query, slope, moved):
    """At offsets of 1, a prior of precision 4 has slope 4, of 100 cells 4 / 100 for each of them."""
    again = copy.deepcopy(query)
    optimizer = optimizer_of(again, again.parameters(), 0.1, 0.0, 100)
    offsets = again.decoder.offsets.weight
    offsets.data[...] = 1.0
    for p in again.parameters():
        p.grad = np.zeros_like(p.data)
    offsets.grad[...] = slope
    optimizer.step()
    np.testing.assert_allclose(offsets.numpy(), 1.0 + moved, atol=2e-5)


# ------------------------------------------------------------------------------- genes
def with_genes(counts, columns):
    return counts.select_genes(np.asarray(columns))


def test_genes_are_found_by_name_whatever_their_order(model, query, new_cells):
    order = np.random.default_rng(0).permutation(N_GENES)
    wider = Counts(
        sparse.hstack([new_cells.X[:, order], np.ones((300, 2))], format="csr"),
        [*new_cells.genes[order], "other", "more"],
        new_cells.cells,
        new_cells.obs,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = model.map_query(wider, progress=False)
    for name, weight in query.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[name], weight)
    np.testing.assert_array_equal(again.latent(again.align_genes(wider)), query.latent(new_cells))


def test_missing_genes_are_zero_above_the_overlap_and_an_error_below(reference, new_cells):
    model = SCVI.for_data(reference, "donor", n_latent=2, n_hidden=8)
    model.fit(reference, epochs=1, progress=False)
    kept = np.random.default_rng(1).permutation(N_GENES)
    enough, few = with_genes(new_cells, kept[:48]), with_genes(new_cells, kept[:47])
    with pytest.warns(UserWarning, match=r"48 of the 60 genes of the model are there \(80.0%\)"):
        query = model.map_query(enough, epochs=1, progress=False)
    zeros = new_cells.X.toarray()
    zeros[:, kept[48:]] = 0
    plain = model.map_query(zeros, epochs=1, progress=False)
    for name, weight in plain.state_dict().items():
        np.testing.assert_array_equal(query.state_dict()[name], weight)
    first = [f"g{i}" for i in range(N_GENES) if i in kept[47:]][0]
    with pytest.raises(ValueError, match=f"13 of the 60 genes .* 47 of the counts: {first}, .*80%"):
        model.map_query(few, epochs=1, progress=False)
    with pytest.warns(UserWarning, match="the other 13"):
        model.map_query(few, epochs=1, min_overlap=0.78, progress=False)


@pytest.mark.parametrize("n_found, is_enough", [(79, False), (81, True)])
def test_the_overlap_is_counted_in_genes_of_the_model(n_found, is_enough):
    names = [f"g{i}" for i in range(n_found)] + [f"h{i}" for i in range(400)]
    counts = Counts(sparse.csr_array((3, len(names))), names, ["a", "b", "c"])
    genes = [f"g{i}" for i in range(100)]
    if is_enough:
        with pytest.warns(UserWarning, match=r"\(81.0%\); the other 19 .*: g81, g82, g83"):
            found = share_genes(counts, genes, 0.8)
        assert found.genes.tolist() == genes and found.X.shape == (3, 100)
    else:
        with pytest.raises(ValueError, match=r"21 of the 100 genes .*g79, g80.*79.0% are there"):
            share_genes(counts, genes, 0.8)


def test_columns_land_where_their_genes_are():
    x = np.arange(12.0).reshape(3, 4)
    for X in (x, sparse.csr_array(x)):
        counts = Counts(X, ["d", "b", "e", "a"], ["1", "2", "3"])
        with pytest.warns(UserWarning, match="the other 1 are taken for 0 in all cells: c"):
            found = share_genes(counts, ["a", "b", "c", "d"], 0.5).X
        found = found.toarray() if sparse.issparse(found) else found
        np.testing.assert_array_equal(
            found, np.stack([x[:, 3], x[:, 1], 0 * x[:, 0], x[:, 0]], axis=1)
        )


def test_genes_of_one_name_are_told_apart_by_their_order():
    x = np.arange(12.0).reshape(2, 6)
    counts = Counts(x, ["a", "a", "b", "c", "c", "d"], ["1", "2"])
    assert share_genes(counts, ["a", "a", "b", "c", "c", "d"], 0.8) is counts
    unique = ["a", "a-1", "b", "c", "c-1", "d"]  # as AnnData calls them
    for genes, columns in (
        (["a", "a", "b", "d"], [0, 1, 2, 5]),
        (["a-1", "c", "c-1"], [1, 3, 4]),
        (unique, list(range(6))),
    ):
        found = share_genes(counts, genes, 1.0)
        assert found.genes.tolist() == genes
        np.testing.assert_array_equal(found.X, x[:, columns])
    named_apart = Counts(x, unique, ["1", "2"])
    np.testing.assert_array_equal(share_genes(named_apart, ["a", "a", "d"], 1).X, x[:, [0, 1, 5]])
    with pytest.warns(UserWarning, match="the other 1 .* taken for 0 in all cells: b"):
        found = share_genes(Counts(x[:, :2], ["a", "a"], ["1", "2"]), ["a", "b", "a"], 0.6)
    np.testing.assert_array_equal(found.X, [[0, 0, 1], [6, 0, 7]])


def test_genes_of_one_name_are_refused_in_another_order():
    counts = Counts(sparse.csr_array((2, 3)), ["a", "a", "b"], ["1", "2"])
    with pytest.raises(ValueError, match="'a' is the name of several genes of the counts"):
        share_genes(counts, ["b", "a"], 0.8)
    with pytest.raises(ValueError, match="'a' is the name of several genes of the counts"):
        share_genes(counts, ["b", "a-1"], 0.8)
    one = Counts(sparse.csr_array((2, 2)), ["b", "a"], ["1", "2"])
    with pytest.raises(ValueError, match="'a' is the name of several genes of the model"):
        share_genes(one, ["a", "a", "b"], 0.5)


def test_more_genes_of_a_name_than_the_model_has_are_warned_of():
    x = np.arange(6.0).reshape(2, 3)
    counts = Counts(x, ["a", "a", "b"], ["1", "2"])
    with pytest.warns(UserWarning, match="'a' is the name of 2 genes of the counts, and of 1 of"):
        found = share_genes(counts, ["a", "b"], 0.8)
    np.testing.assert_array_equal(found.X, x[:, [0, 2]])


def test_a_folder_with_genes_of_one_name_is_asked_about_and_mapped(reference, new_cells, tmp_path):
    """Every reference genome has some; AnnData numbers them, and no panel has the others'."""
    twice = ["TBCE", "TBCE", *reference.genes[2:]]
    old = Counts(reference.X, twice, reference.cells, reference.obs)
    model = SCVI.for_data(old, "donor", n_latent=3, n_hidden=8, likelihood="nb")
    model.fit(old, epochs=2, progress=False)
    z = model.latent(old)
    numbered = old.to_anndata()
    assert numbered.var_names[1] == "TBCE-1"
    np.testing.assert_array_equal(model.latent(numbered), z)
    panel = Counts(new_cells.X, twice, new_cells.cells, new_cells.obs).select_genes(slice(0, 57))
    with pytest.warns(UserWarning, match="57 of the 60 genes of the model are there"):
        query = model.map_query(panel, epochs=2, progress=False)
    assert query.batches == ["d1", "d2", "new"]
    for counts in (panel, numbered[:, ::-1]):  # what was mapped, too, is aligned to be asked about
        with pytest.raises(ValueError, match=r"; model\.align_genes\(counts\) finds those of the"):
            query.latent(counts)
    model.save(tmp_path / "model.npz")
    np.testing.assert_array_equal(SCVI.load(tmp_path / "model.npz").latent(numbered), z)


@pytest.mark.parametrize("min_overlap", [0, 1.1, -1])
def test_an_overlap_is_a_fraction(model, new_cells, min_overlap):
    with pytest.raises(ValueError, match="min_overlap must be above 0"):
        model.map_query(new_cells, min_overlap=min_overlap)


def test_a_file_that_stays_on_the_disk_is_mapped_alike(model, new_cells, tmp_path):
    anndata = pytest.importorskip("anndata")
    from models.counts import read

    with_genes(new_cells, np.arange(N_GENES)[::-1][:50]).to_anndata().write_h5ad(
        tmp_path / "q.h5ad"
    )
    found = []
    for backed in (False, True):
        with pytest.warns(UserWarning, match="50 of the 60 genes"):
            counts = model.align_genes(read(tmp_path / "q.h5ad", backed=backed))
        query = model.map_query(counts, epochs=1, progress=False)
        found.append(query.denoise(counts, ["new"] * 300))
    np.testing.assert_allclose(*found, rtol=2e-3)  # on the disk, minibatches are drawn otherwise
    adata = anndata.read_h5ad(tmp_path / "q.h5ad")
    with pytest.warns(UserWarning, match="50 of the 60 genes"):
        query = model.map_query(adata, epochs=1, progress=False)
    np.testing.assert_array_equal(query.denoise(counts, ["new"] * 300), found[0])


def test_layers_and_raw_of_an_anndata_object_have_their_own_genes(model, new_cells):
    anndata = pytest.importorskip("anndata")
    whole = new_cells.to_anndata()
    part = whole[:, ::-1][:, :50].copy()
    part.layers["counts"] = part.X.copy()
    part.X = part.X * 0.5
    part.raw = whole
    assert isinstance(part, anndata.AnnData)
    found = model.align_genes(part, layer="raw")
    np.testing.assert_array_equal(found.X.toarray(), new_cells.X.toarray())
    with pytest.warns(UserWarning, match="50 of the 60 genes"):
        found = model.align_genes(part, layer="counts")
    expected = new_cells.X.toarray()
    expected[:, :10] = 0
    np.testing.assert_array_equal(found.X.toarray(), expected)
    assert found.obs["donor"].tolist() == ["new"] * 300


def test_a_frame_is_taken_by_its_columns(model, new_cells):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        new_cells.X.toarray(), index=new_cells.cells, columns=new_cells.genes
    ).iloc[:, ::-1]
    np.testing.assert_array_equal(model.align_genes(frame).X, new_cells.X.toarray())


# ------------------------------------------------------------------------------- batches
def relabelled(counts, labels):
    return Counts(counts.X, counts.genes, counts.cells, {**counts.obs, "donor": np.array(labels)})


def test_the_column_of_the_reference_is_found_in_the_query(model, new_cells):
    renamed = relabelled(new_cells, ["x", "y"] * 150)
    query = model.map_query(renamed, epochs=1, progress=False)
    assert query.batches == ["d1", "d2", "x", "y"]
    assert query.columns == ObsColumns(batch="donor")
    np.testing.assert_array_equal(query.elbo(renamed), query.elbo(renamed.X, renamed.obs["donor"]))


def in_lanes(counts, donors=None):
    """The same cells, of two lanes; donors: other labels, None: as they are."""
    n = len(counts)
    obs = {"lane": np.array(["l1", "l2"])[np.arange(n) % 2], "donor": counts.obs["donor"]}
    if donors is not None:
        obs["donor"] = np.array(donors)[np.arange(n) % len(donors)]
    return Counts(counts.X, counts.genes, counts.cells, obs)


def test_old_cells_stay_of_their_batches_when_another_column_is_named(model, reference, new_cells):
    old, new = in_lanes(reference), in_lanes(new_cells)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        query = model.map_query(new, "lane", epochs=1, progress=False)
    assert query.batches == ["d1", "d2", "l1", "l2"]
    np.testing.assert_array_equal(query.elbo(old), model.elbo(reference))
    with pytest.raises(ValueError, match="batch: new unknown; the model knows d1, d2, l1, l2"):
        query.elbo(new)
    assert np.isfinite(query.elbo(new, "lane")).all()


@pytest.mark.parametrize("batch", ["lane", ["again"] * 300])
def test_new_cells_of_old_donors_are_not_taken_for_old_ones(model, new_cells, batch):
    """Cells of d1 and d3, in new batches: by the column `donor` those of d1 would be old ones."""
    new = in_lanes(new_cells, ["d1", "d3"])
    said = "obs column 'donor', where 150 of these cells are of another batch than here, the first"
    with pytest.warns(UserWarning, match=f"{said} of d1 instead of .* pass batch="):
        query = model.map_query(new, batch, epochs=1, progress=False)
    with pytest.raises(ValueError, match="say which batch each cell is from"):
        query.elbo(new)
    assert np.isfinite(query.elbo(new, batch)).all()


def test_a_reference_without_a_column_does_not_look_for_its_batch_in_one(reference, new_cells):
    model = SCVI(N_GENES, n_latent=2, n_hidden=8, likelihood="nb")
    model.fit(reference, epochs=1, progress=False)
    query = model.map_query(in_lanes(new_cells), "lane", epochs=1, progress=False)
    with pytest.raises(ValueError, match="say which batch each cell is from"):
        query.elbo(in_lanes(reference))


def test_a_query_without_a_batch_is_one_batch_by_a_name(model, new_cells):
    bare = Counts(new_cells.X, new_cells.genes, new_cells.cells)
    query = model.map_query(bare, name="visit 2", epochs=1, progress=False)
    assert query.batches == ["d1", "d2", "visit 2"]


def test_a_known_label_is_that_batch_and_nothing_is_learnt_for_it(model, new_cells):
    labels = ["d1"] * 100 + ["new"] * 200
    with pytest.warns(UserWarning, match="batch: d1 is known to the model: 100 cells"):
        query = model.map_query(relabelled(new_cells, labels), epochs=2, progress=False)
    assert query.batches == ["d1", "d2", "new"]
    alone = model.map_query(new_cells[100:], epochs=2, progress=False)
    np.testing.assert_array_equal(
        query.decoder.layers.linears[0].new.weight.numpy(),
        alone.decoder.layers.linears[0].new.weight.numpy(),
    )


def test_a_series_is_put_in_the_order_of_the_cells(model, new_cells):
    pandas = pytest.importorskip("pandas")
    labels = np.array(["x", "y"] * 150)
    order = np.random.default_rng(0).permutation(300)
    series = pandas.Series(labels[order], index=new_cells.cells[order])
    one = model.map_query(new_cells, series, epochs=1, progress=False)
    other = model.map_query(new_cells, labels, epochs=1, progress=False)
    for name, weight in one.state_dict().items():
        np.testing.assert_array_equal(other.state_dict()[name], weight)


IDS = [f"ENSG{i:011d}" for i in range(20)]


@pytest.mark.parametrize(
    "known, here, says",
    [
        (None, str.capitalize, "differ in upper and lower case only .*orthologues"),
        (IDS, [f"{name}.7" for name in IDS], "in the version behind the dot only .ENSG0+.7 for E"),
        ([f"{name}.2" for name in IDS], IDS, "in the version behind the dot only"),
        (None, IDS, "by Ensembl ids .ENSG0+., and symbols are asked for: read them with gene_nam"),
        (IDS, None, "by symbols .ABC0., and Ensembl ids are asked for: .*there are: score"),
        (None, [f"other {i}" for i in range(20)], "pass counts with the same gene names$"),
    ],
)
def test_names_of_genes_in_another_form_are_told_apart(known, here, says):
    symbols = [f"ABC{i}" for i in range(20)]
    if callable(here):
        here = [here(name) for name in symbols]
    counts = Counts(NEW.X, here or symbols, NEW.cells, var={"score": np.arange(20.0)})
    with pytest.raises(ValueError, match=says) as error:
        share_genes(counts, known or symbols, 0.8)
    assert "min_overlap" not in str(error.value)


def test_no_column_is_named_that_has_no_more_of_the_genes_than_their_names():
    symbols = [f"ABC{i}" for i in range(20)]
    here = symbols[:18] + ["other 0", "other 1"]  # as where a folder has symbols in both columns
    counts = Counts(NEW.X, here, NEW.cells, var={"gene_ids": np.array(here)})
    with pytest.raises(ValueError, match="pass counts with the same gene names, or take") as error:
        share_genes(counts, symbols, 1)
    assert "gene_ids" not in str(error.value)
    counts = Counts(NEW.X, here, NEW.cells, var={"gene_ids": np.array(here), "id": symbols})
    with pytest.raises(ValueError, match="they stand in its column 'id'"):
        share_genes(counts, symbols, 1)


# ------------------------------------------------------------------------------- covariates
def test_new_labels_get_weights_and_numbers_are_standardised_as_before():
    model = SCVI.for_data(OLD, **ALL, n_hidden=8, n_latent=3, likelihood="nb")
    model.fit(OLD, epochs=2, progress=False)
    query = model.map_query(NEW, epochs=2, progress=False)
    assert query.columns.categorical == {"sex": ["f", "m", "x"], "site": ["s", "t"]}
    assert query.columns.continuous == model.columns.continuous
    table = query.columns.table(NEW.obs, len(NEW), np.float64)
    mean, std = model.columns.continuous["age"]
    np.testing.assert_allclose(table[:, 5], (NEW.obs["age"] - mean) / std)
    shares = np.concatenate([model.covariate_mean[:2], [0, 1, 0]])
    expected = (60 * shares + 50 * table[:, :5].mean(axis=0)) / 110
    np.testing.assert_allclose(query.covariate_mean[:5], expected, rtol=1e-5)
    assert query.generate(20, batch="d3", covariates={"sex": "x"}).shape == (20, 20)
    n_new = np.sum(NEW.obs["sex"] == "x")
    says = f"'sex': x unknown; the model knows f, m: {n_new} cells get weights of their own"
    with pytest.warns(UserWarning, match=says):
        model.map_query(NEW, epochs=1, progress=False)
    known = NEW.obs | {"sex": np.full(len(NEW), "f"), "site": np.full(len(NEW), "s")}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "categorical")
        model.map_query(Counts(NEW.X, NEW.genes, NEW.cells, known), epochs=1, progress=False)
    with pytest.raises(ValueError, match="no obs column 'sex'"):
        model.map_query(Counts(NEW.X, NEW.genes, NEW.cells, {"donor": NEW.obs["donor"]}))


def test_known_batches_with_a_new_label_are_mapped():
    model = SCVI.for_data(
        OLD, **ALL, n_hidden=8, n_latent=3, likelihood="nb", dispersion="gene-batch"
    )
    model.fit(OLD, epochs=2, progress=False)
    cells = Counts(NEW.X, NEW.genes, NEW.cells, {**NEW.obs, "donor": np.array(["d1"] * 50)})
    with pytest.warns(UserWarning, match="d1 is known"):
        query = model.map_query(cells, epochs=2, progress=False)
    np.testing.assert_array_equal(query.log_theta.numpy(), model.log_theta.numpy())
    np.testing.assert_array_equal(query.elbo(OLD), model.elbo(OLD))


def test_which_columns_are_known_and_which_are_new():
    columns = ObsColumns(
        None, {"sex": ["f", "m"], "site": ["s", "t"], "kit": ["v2"]}, {"age": [0, 1]}
    )
    before = Reference(2, {"sex": 2, "site": 1, "kit": 1})
    # d1 d2 d3 | f m | s t | (kit is not told) | age
    assert parts_of(3, columns, before) == Parts(
        [slice(0, 2), slice(3, 5), slice(7, 8)], [slice(2, 3), slice(6, 7)]
    )
    assert parts_of(3, columns, None).new == []
    assert reference_from(before.described(), 3, columns) == before


@pytest.mark.parametrize(
    "description",
    [{}, {"n_batches": 4, "n_labels": {}}, {"n_batches": 0, "n_labels": {}}, {"n_batches": "x"}, 3],
)
def test_a_reference_that_cannot_be_is_refused(description):
    with pytest.raises(ValueError, match="reference"):
        SCVI(5, 3, reference=description)


# ------------------------------------------------------------------------------- a full SCVI
def test_the_mapped_model_answers_all_questions(query, new_cells, tmp_path):
    labels = ["new"] * 300
    query.save(tmp_path / "query.npz")
    loaded = SCVI.load(tmp_path / "query.npz")
    with evaluating(query):
        for name, weight in query.state_dict().items():
            np.testing.assert_array_equal(loaded.state_dict()[name], weight)
    np.testing.assert_array_equal(loaded.elbo(new_cells, labels), query.elbo(new_cells, labels))
    is_b = new_cells.obs["kind"] == "B"
    table = query.differential_expression(new_cells, is_b, batch=labels, n_samples=200)
    assert len(table["gene"]) == N_GENES and table["is_de"].any()
    rho = query.expression_fraction(new_cells, labels, transform_batch=["d1", "d2"])
    np.testing.assert_allclose(rho.sum(axis=1), 1.0, rtol=1e-4)
    assert query.sample_posterior(new_cells, labels).shape == (300, N_GENES)
    assert "reference={'n_batches': 2" in repr(query)


# ------------------------------------------------------------------------------- errors
def test_a_model_that_is_not_trained_is_refused(reference):
    with pytest.raises(ValueError, match="map_query: the model is not trained"):
        SCVI.for_data(reference, "donor").map_query(reference)


def test_counts_that_cannot_be_are_refused(model, new_cells):
    with pytest.raises(ValueError, match="that is no cells"):
        model.map_query(new_cells[np.array([], int)])
    with pytest.raises(ValueError, match="1 cell with counts of 1; training needs at least 2"):
        model.map_query(new_cells[:1])
    x = new_cells.X.toarray()
    x[3, 4] = np.nan
    with pytest.raises(ValueError, match="row 3, column 4 .* is nan"):
        model.map_query(x)


def test_genes_without_names_are_taken_as_they_stand_if_they_are_as_many(model, query, new_cells):
    again = model.map_query(new_cells.X, progress=False)
    np.testing.assert_array_equal(again.latent(new_cells), query.latent(new_cells))
    with pytest.raises(ValueError, match="50 genes for a model of 60, and counts have no names"):
        model.map_query(new_cells.X[:, :50])
    nameless = SCVI(N_GENES, n_latent=2, n_hidden=8)
    nameless.fit(new_cells.X, epochs=1, progress=False)
    with pytest.raises(ValueError, match="50 genes for a model of 60, and the model has no names"):
        nameless.map_query(with_genes(new_cells, np.arange(50)))


def test_cells_of_known_batches_only_are_refused(model, reference):
    with pytest.raises(
        ValueError, match=r"all cells are of batches that the model knows \(d1, d2\)"
    ):
        model.map_query(reference)


@pytest.mark.parametrize(
    "argument, words",
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"validation": 1.0}, "validation must be a fraction"),
        ({"batch": "lane"}, "no obs column 'lane'"),
        ({"batch": ["x"] * 5}, "must be one label for each of 300 cells"),
    ],
)
def test_arguments_that_cannot_be_are_refused(model, new_cells, argument, words):
    with pytest.raises(ValueError, match=words):
        model.map_query(new_cells, progress=False, **argument)
    assert model.trained
