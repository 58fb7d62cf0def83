"""SCVI against the reference implementation, on fixed weights, inputs and noise: tests/data/README.md says whence."""

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from models import SCVI
from models.scvi_tools import in_our_order, our_name

DATA = Path(__file__).parent / "data"
COLUMNS = dict(categorical={"sex": ["0", "1", "2"], "site": ["0", "1"]}, continuous=["age", "mito"])
CASES = {
    "scvi_nb_observed": dict(n_batches=2, likelihood="nb"),
    "scvi_zinb_latent_library": dict(
        n_batches=2, likelihood="zinb", n_layers=2, dispersion="gene-batch", library="latent"
    ),
    "scvi_covariates": dict(n_batches=2, likelihood="nb", n_layers=2, columns=COLUMNS),
    "scvi_covariates_encoded": dict(
        n_batches=2,
        likelihood="zinb",
        n_layers=2,
        dispersion="gene-batch",
        library="latent",
        columns=COLUMNS,
        encode_covariates=True,
    ),
}


def told(reference, model):
    """The reference's covariates, as the model's table has them; None if there are none."""
    if "numbers" not in reference:
        return None
    obs = dict(zip(("sex", "site"), reference["categories"].T))
    obs |= dict(zip(("age", "mito"), reference["numbers"].T))
    return model.columns.table(obs, len(reference["x"]), model.dtype)


def close(ours, theirs, what):
    """Within 1e-5, relative to each number, or to a tenth of the largest for those near 0 (the reference has epsilons)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs).reshape(np.shape(ours))
    error = np.max(
        np.abs(ours - theirs) / np.maximum(np.abs(theirs), 0.1 * np.max(np.abs(theirs)) + 1e-12)
    )
    assert error < 1e-5, f"{what}: relative error {error:.2e}"


@pytest.fixture(params=CASES)
def case(request):
    reference = np.load(DATA / f"{request.param}.npz", allow_pickle=False)
    state = {k[6:]: reference[k] for k in reference.files if k.startswith("param/")}
    config = dict(CASES[request.param], n_batches=2, dropout=0.0)
    if config.get("library") == "latent":
        config.update(
            library_log_mean=reference["library_log_means"],
            library_log_var=reference["library_log_vars"],
        )
    return reference, SCVI.from_scvi_tools(state, **config)


def test_unused_heads_are_listed(case):
    reference, model = case
    assert "decoder.px_r_decoder.weight" in model.ignored
    used = set(dict(model.named_parameters()))
    assert not any(our_name(name) in used for name in model.ignored)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_every_number_of_a_training_step(case, mode, kind):
    reference, model = case
    model.train(mode == "train")
    x, batch = kind(reference["x"]), reference["batch"]
    latent_library = model.library == "latent"

    covariates = told(reference, model)
    q_z, q_l = model.inference(x, batch=batch, covariates=covariates)
    close(q_z.loc.data, reference[f"{mode}/qz_mean"], "mean of q(z)")
    close(q_z.scale.data, reference[f"{mode}/qz_std"], "std of q(z)")
    if latent_library:
        close(q_l.loc.data, reference[f"{mode}/ql_mean"], "mean of q(l)")
        close(q_l.scale.data, reference[f"{mode}/ql_std"], "std of q(l)")
    log_library = (
        q_l.rsample(reference["eps_l"]) if latent_library else model.observed_log_library(x)
    )
    parameters = model.generative(q_z.rsample(reference["eps_z"]), log_library, batch, covariates)
    close(np.exp(parameters["log_rho"].data), reference[f"{mode}/px_scale"], "rho")
    close(np.exp(parameters["log_mu"].data), reference[f"{mode}/px_rate"], "mu")
    theta = np.exp(parameters["log_theta"].data)
    close(np.broadcast_to(theta, x.shape), reference[f"{mode}/px_theta"], "theta")
    if model.likelihood == "zinb":
        close(
            parameters["zi_logits"].data,
            reference[f"{mode}/px_dropout_logits"],
            "zero-inflation logits",
        )


def beyond_the_reference(model):
    """Weights that have columns for continuous covariates where the reference has none."""
    if not model.columns.continuous:
        return []
    owners = ["decoder", "z_encoder"] if model.config["encode_covariates"] else ["decoder"]
    return [f"{owner}.layers.linears.1.weight" for owner in owners]


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_matrix])
def test_loss_and_every_gradient(case, mode, kind):
    reference, model = case
    model.train(mode == "train")
    log_p, kl_z, kl_l = model.terms(
        kind(reference["x"]),
        reference["batch"],
        eps_z=reference["eps_z"],
        eps_l=reference["eps_l"],
        covariates=told(reference, model),
    )
    close(-log_p.data, reference[f"{mode}/reconstruction"], "reconstruction")
    close(kl_z.data, reference[f"{mode}/kl_z"], "KL of z")
    if model.library == "latent":
        close(kl_l.data, reference[f"{mode}/kl_l"], "KL of the library")
    loss = -np.mean(log_p - float(reference["kl_weight"]) * kl_z - kl_l)
    close(loss.data, reference[f"{mode}/loss"], "loss")
    loss.backward()
    gradients = {
        our_name(k.split("/grad/")[1]): in_our_order(
            reference[k], our_name(k.split("/grad/")[1]), model
        )
        for k in reference.files
        if k.startswith(f"{mode}/grad/")
    }
    assert set(gradients) == set(dict(model.named_parameters()))
    largest = max(np.max(np.abs(g)) for g in gradients.values())
    for name, p in model.named_parameters():
        if mode == "train" and ".linears." in name and name.endswith("bias"):
            # batch norm takes the mean away: a bias before it has no effect, and what both compute is rounding error
            assert np.max(np.abs(p.grad)) < 1e-12 * largest
        else:
            g = p.grad
            if name in beyond_the_reference(model):
                assert np.any(g[:, -2:])  # numbers join this layer too, here, with weights of 0
                g = g[:, :-2]
                gradients[name] = gradients[name][:, :-2]
            close(g, gradients[name], f"gradient of {name}")


def test_batch_norm_statistics_after_a_training_step(case):
    reference, model = case
    model.train()
    model.terms(
        reference["x"],
        reference["batch"],
        eps_z=reference["eps_z"],
        eps_l=reference["eps_l"],
        covariates=told(reference, model),
    )
    buffers = {
        name: getattr(module, attribute) for name, module, attribute in model.named_buffers()
    }
    compared = 0
    for key in reference.files:
        if key.startswith("train/after/") and our_name(key[12:]) in buffers:
            close(buffers[our_name(key[12:])], reference[key], key)
            compared += 1
    assert compared == sum("running" in name for name in buffers)
