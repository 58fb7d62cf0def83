"""Makes abundance_scvi_tools.npz: what scvi-tools says of where samples have their cells.

    pip install scvi-tools==1.4.2
    python abundance_scvi_tools.py

A small SCVI, 40 epochs, of 90 cells of two types in three samples; its densities are computed in
float64. `differential_abundance` hands the variances of q(z | x) to a distribution that takes standard
deviations (`get_latent_representation(return_dist=True)` returns variances, and
`get_aggregated_posterior` calls them qu_scale). Both are kept: `log_probs`, its own numbers; and
`log_probs_of_std`, those of the same code when it is given standard deviations.
"""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scvi

N_CELLS = 90


def cells():
    """Counts of two types, which three samples have in different proportions."""
    rng = np.random.default_rng(5)
    sample = np.repeat([0, 1, 2], [40, 30, 20])
    is_first = rng.random(N_CELLS) < np.array([0.7, 0.5, 0.2])[sample]
    rates = np.where(is_first[:, None] == (np.arange(20) < 10), 6.0, 1.5)
    obs = pd.DataFrame({"sample": np.array(["s0", "s1", "s2"])[sample]})
    obs.index = [f"cell_{i}" for i in range(N_CELLS)]
    return anndata.AnnData(rng.poisson(rates).astype(np.float32), obs=obs)


def log_probs_of(model, data):
    """(n_cells, n_samples) log density of each sample at the mean of each cell's q(z | x)."""
    model.differential_abundance(data, sample_key="sample")
    return data.obsm["da_log_probs"][["s0", "s1", "s2"]].to_numpy()


if __name__ == "__main__":
    scvi.settings.seed = 0
    data = cells()
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=4, n_hidden=16, gene_likelihood="nb")
    model.train(max_epochs=40, train_size=1.0, enable_progress_bar=False)
    latent = model.get_latent_representation

    def in_double(as_scale):
        """The same method, in float64, with as_scale(variance) in the place of the variance."""

        def answer(*args, **options):
            found = latent(*args, **options)
            if not options.get("return_dist"):
                return found.astype(np.float64)
            return found[0].astype(np.float64), as_scale(found[1].astype(np.float64))

        return answer

    mean, std = in_double(np.sqrt)(return_dist=True)
    found = dict(mean=mean, std=std, sample=data.obs["sample"].to_numpy(str))
    model.get_latent_representation = in_double(lambda variance: variance)
    found["log_probs"] = log_probs_of(model, data)
    model.get_latent_representation = in_double(np.sqrt)
    found["log_probs_of_std"] = log_probs_of(model, data)
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **found)
    for name, value in found.items():
        print(name, value.dtype, value.shape, value[0])
