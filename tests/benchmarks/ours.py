"""The trainings as a user of this project writes them: the public API, everything that `fit` does included.

Know before reading: work.py. What is timed is a whole call of fit: checks, starting values, finite-value guard, history.
"""

from __future__ import annotations

import time

import numpy as np
import scipy

from models import SCVI, VAE, Autoencoder
from tests.benchmarks import work


def job(name: str, n: int):
    """What `worker` calls again and again: trains a new model for n epochs, returns seconds an epoch."""
    if name.startswith("scvi"):
        _, likelihood, data = name.split("-")
        x = work.counts(data)

        def model():
            return SCVI(
                x.shape[1],
                n_latent=work.N_LATENT,
                n_hidden=work.N_HIDDEN,
                dropout=work.DROPOUT,
                likelihood=likelihood,
            )
    else:
        x, (n_features, *hidden, n_latent) = (
            work.rows(),
            {"ae": work.AE_WIDTHS, "vae": work.VAE_WIDTHS}[name],
        )

        def model():
            return {"ae": Autoencoder, "vae": VAE}[name](
                n_features, hidden=hidden, n_latent=n_latent
            )

    def run():
        made = model()
        started = time.perf_counter()
        made.fit(
            x,
            epochs=n,
            batch_size=work.BATCH,
            validation=0,
            learning_rate=work.RATE,
            progress=False,
        )
        return (time.perf_counter() - started) / n

    return run


def version() -> str:
    on = "CuPy" if work.ON_GPU else f"SciPy {scipy.__version__}"
    return f"NumPy {np.__version__}, {on}"
