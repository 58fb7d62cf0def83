"""Makes scvi_covariates*.npz, beside this file, with scvi-tools 1.4.2 (pip install scvi-tools==1.4.2).

Random weights, counts, covariates and noise, all in float64; then what scvi-tools computes of them:
posteriors, parameters, losses, and the gradient of every weight. Usage, from the top of the
project: python tests/data/make_scvi_covariates.py

Know before reading: scvi.module.VAE of scvi-tools. Know after: where the reference numbers of
tests/test_scvi_parity.py come from.
"""

from pathlib import Path

import numpy as np
import torch
from scvi.module import VAE

N_CELLS, N_GENES, N_LATENT, N_HIDDEN, N_BATCHES = 40, 30, 4, 16, 2
N_CATEGORIES = [3, 2]
N_NUMBERS = 2
KL_WEIGHT = 0.3
CASES = {
    "scvi_covariates": dict(gene_likelihood="nb", n_layers=2, use_observed_lib_size=True),
    "scvi_covariates_encoded": dict(
        gene_likelihood="zinb",
        n_layers=2,
        dispersion="gene-batch",
        encode_covariates=True,
        use_observed_lib_size=False,
    ),
}


# scvi-tools makes its one-hot codes with .float(), which float64 weights do not take.
torch.Tensor.float = torch.Tensor.double


def main():
    for number, (name, config) in enumerate(CASES.items()):
        rng = np.random.default_rng(number)
        torch.manual_seed(number)
        arrays = dict(
            x=rng.poisson(rng.gamma(0.5, 4.0, (N_CELLS, N_GENES))).astype(float),
            batch=rng.integers(0, N_BATCHES, N_CELLS),
            categories=np.stack([rng.integers(0, n, N_CELLS) for n in N_CATEGORIES], axis=1),
            numbers=rng.normal(0.5, 2.0, (N_CELLS, N_NUMBERS)),
            eps_z=rng.standard_normal((N_CELLS, N_LATENT)),
            eps_l=rng.standard_normal((N_CELLS, 1)),
            kl_weight=np.array(KL_WEIGHT),
        )
        if not config["use_observed_lib_size"]:
            config["library_log_means"] = rng.normal(4.0, 0.3, (1, N_BATCHES))
            config["library_log_vars"] = rng.uniform(0.2, 0.6, (1, N_BATCHES))
        module = VAE(
            N_GENES,
            n_batch=N_BATCHES,
            n_hidden=N_HIDDEN,
            n_latent=N_LATENT,
            n_continuous_cov=N_NUMBERS,
            n_cats_per_cov=N_CATEGORIES,
            dropout_rate=0.0,
            **config,
        ).double()
        for weight in module.state_dict().values():  # batch norm's, too, which start at 0 and 1
            if weight.dtype == torch.float64 and weight.ndim == 1:
                weight += torch.as_tensor(rng.uniform(0.0, 0.3, weight.shape))
        if not config["use_observed_lib_size"]:
            # Libraries of some 60 counts: beside means of 1e-3 an epsilon of 1e-8 is a part in 1e5.
            module.l_encoder.mean_encoder.bias.data += 4.0
        arrays |= {f"param/{key}": array(w) for key, w in module.state_dict().items()}
        if not config["use_observed_lib_size"]:
            arrays["library_log_means"] = array(module.library_log_means)
            arrays["library_log_vars"] = array(module.library_log_vars)
        for mode in ("eval", "train"):
            module.train(mode == "train")
            arrays |= {f"{mode}/{key}": a for key, a in step(module, arrays).items()}
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)


def step(module, arrays) -> dict:
    """What one step computes, with the noise of `arrays` in the draws from q."""
    module.zero_grad()
    x, numbers, eps_z, eps_l = (
        torch.as_tensor(arrays[key]) for key in ("x", "numbers", "eps_z", "eps_l")
    )
    batch = torch.as_tensor(arrays["batch"])[:, None]
    categories = torch.as_tensor(arrays["categories"])
    told = dict(cont_covs=numbers, cat_covs=categories)
    inferred = module.inference(x, batch, **told)
    q_z, q_l = inferred["qz"], inferred["ql"]
    inferred["z"] = q_z.loc + q_z.scale * eps_z
    if q_l is not None:
        inferred["library"] = q_l.loc + q_l.scale * eps_l
    generated = module.generative(inferred["z"], inferred["library"], batch, **told)
    p = generated["px"]
    out = module.loss({"X": x, "batch": batch}, inferred, generated, kl_weight=KL_WEIGHT)
    out.loss.backward()
    found = dict(
        qz_mean=q_z.loc,
        qz_std=q_z.scale,
        px_scale=p.scale,
        px_rate=p.mu,
        px_theta=p.theta.expand(x.shape),
        reconstruction=out.reconstruction_loss["reconstruction_loss"],
        kl_z=out.kl_local["kl_divergence_z"],
        kl_l=out.kl_local["kl_divergence_l"],
        loss=out.loss,
    )
    if q_l is not None:
        found |= dict(ql_mean=q_l.loc, ql_std=q_l.scale, px_dropout_logits=p.zi_logits)
    for key, weight in module.named_parameters():
        if weight.grad is not None:
            found[f"grad/{key}"] = weight.grad
    if module.training:
        for key, buffer in module.state_dict().items():
            if "running" in key:
                found[f"after/{key}"] = buffer
    return {key: array(value) for key, value in found.items()}


def array(tensor) -> np.ndarray:
    """A copy as a NumPy array."""
    return tensor.detach().numpy().copy()


if __name__ == "__main__":
    main()
