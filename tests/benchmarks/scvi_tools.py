"""The same scVI trained with scvi-tools: its own data loader, training plan and progress, nothing logged or written."""

from __future__ import annotations

import logging
import time
import warnings

import anndata
import scvi
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from tests.benchmarks import work


def job(name: str, n: int):
    """What `worker` calls again and again: trains a new model for n epochs, returns seconds an epoch."""
    _, likelihood, data = name.split("-")
    warnings.simplefilter("ignore")
    scvi.settings.verbosity = logging.ERROR
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(sparse.csr_matrix(work.counts(data)))
    scvi.model.SCVI.setup_anndata(adata)

    def run():
        model = scvi.model.SCVI(
            adata,
            n_latent=work.N_LATENT,
            n_hidden=work.N_HIDDEN,
            n_layers=1,
            gene_likelihood=likelihood,
            dropout_rate=work.DROPOUT,
        )
        watch = _watch()
        model.train(
            max_epochs=n,
            accelerator="cpu",
            train_size=1.0,
            batch_size=work.BATCH,
            callbacks=[watch],
            plan_kwargs={"lr": work.RATE},
            enable_progress_bar=False,
        )
        return (watch.stopped - watch.started) / n

    return run


def _watch():
    """A callback that notes when the first epoch starts and the last one ends: setting up is not held against it."""

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, module):
            self.started = getattr(self, "started", time.perf_counter())

        def on_train_epoch_end(self, trainer, module):
            self.stopped = time.perf_counter()

    return Watch()


def version() -> str:
    return f"scvi-tools {scvi.__version__}, PyTorch {torch.__version__}"
