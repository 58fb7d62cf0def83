"""Makes scvi_folder/: what scvi-tools' `save` writes of two small models, and what these models say.

    python tests/data/make_scvi_folder.py        (with scvi-tools; last run with 1.4.2, PyTorch 2.13)

In each folder lies model.pt, as SCVI.save wrote it after two epochs, and expected.npz: counts of 12
cells with what was known of them, the means and standard deviations of q(z | x) and of q(log l | x),
and log p(x | z, l) at those means.
"""

import shutil
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas
import scvi
import torch

FOLDER = Path(__file__).parent / "scvi_folder"
N_GENES, N_CELLS = 20, 60
MODELS = {
    "nb_covariates": (
        dict(
            batch_key="donor",
            categorical_covariate_keys=["sex", "site"],
            continuous_covariate_keys=["age", "mito"],
        ),
        dict(n_hidden=6, n_latent=3, n_layers=2, gene_likelihood="nb", dropout_rate=0.2),
    ),
    "zinb_latent_library": (
        dict(batch_key="donor"),
        dict(
            n_hidden=6,
            n_latent=2,
            dispersion="gene-batch",
            use_observed_lib_size=False,
            encode_covariates=True,
        ),
    ),
    "default": ({}, dict(n_hidden=6, n_latent=2)),
}


def cells():
    """Counts of cells from two donors, with covariates, as AnnData."""
    rng = np.random.default_rng(0)
    obs = pandas.DataFrame(
        {
            "donor": pandas.Categorical(np.array(["d2", "d10"])[np.arange(N_CELLS) % 2]),
            "sex": np.array(["f", "m"])[rng.integers(2, size=N_CELLS)],
            "site": np.array(["a", "b", "c"])[rng.integers(3, size=N_CELLS)],
            "age": rng.uniform(20.0, 60.0, N_CELLS),
            "mito": rng.uniform(0.0, 0.2, N_CELLS),
        },
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    rates = rng.gamma(2.0, 2.0, (1, N_GENES)) * rng.gamma(3.0, 1 / 3.0, (N_CELLS, N_GENES))
    x = rng.poisson(rates).astype(np.float32)
    return anndata.AnnData(
        x, obs=obs, var=pandas.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    )


def expected(model, data):
    """What the model says of cells: see above."""
    module = model.module.eval()
    with torch.no_grad():
        (tensors,) = model._make_data_loader(adata=data, batch_size=len(data))
        inference = module.inference(**module._get_inference_input(tensors))
        inference["z"] = inference["qz"].loc
        arrays = {"z_mean": inference["qz"].loc, "z_std": inference["qz"].scale}
        if inference["ql"] is not None:
            inference["library"] = inference["ql"].loc
            arrays |= {"l_mean": inference["ql"].loc, "l_std": inference["ql"].scale}
        generative = module.generative(**module._get_generative_input(tensors, inference))
        arrays["log_p"] = generative["px"].log_prob(tensors["X"]).sum(axis=1)
    return {name: array.numpy() for name, array in arrays.items()}


def main():
    scvi.settings.seed = 0
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, (setup, config) in MODELS.items():
        data = cells()
        scvi.model.SCVI.setup_anndata(data, **setup)
        model = scvi.model.SCVI(data, **config)
        model.train(2, accelerator="cpu", batch_size=16, enable_progress_bar=False)
        some = data[:12].copy()
        found = expected(model, some)
        model.save(FOLDER / name)
        obs = {key: some.obs[key].astype(str).to_numpy(str) for key in ("donor", "sex", "site")}
        obs |= {key: some.obs[key].to_numpy() for key in ("age", "mito")}
        np.savez_compressed(FOLDER / name / "expected.npz", x=some.X, **obs, **found)
        print(name, (FOLDER / name / "model.pt").stat().st_size, file=sys.stderr)


if __name__ == "__main__":
    main()
