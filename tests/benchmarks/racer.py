"""One training of the race, in a process of its own: see race.py.

Run as `python -m tests.benchmarks.racer SIDE COUNTS LIKELIHOOD SEED EPOCHS`. Prints a line of JSON
for each number of epochs that it was looked at after: epochs, seconds since the process started,
and the held-out log p, which is computed when all training is over.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy import sparse

from models import SCVI
from models.counts import read
from tests.benchmarks.work import MISSING, split

LOOKS = (25, 50, 100, 200, 300, 400)  # epochs after which scvi-tools' recipe is looked at
N_SAMPLES = 300  # draws of the importance-weighted likelihood


def process_age() -> float:
    """Seconds since this process was started (Linux; elsewhere since this file was imported)."""
    try:
        with (
            open("/proc/self/stat", encoding="ascii") as stat,
            open("/proc/uptime", encoding="ascii") as up,
        ):
            started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
            return float(up.read().split()[0]) - started
    except OSError:
        return time.perf_counter() - IMPORTED


IMPORTED = time.perf_counter()


def ours(x, likelihood: str, seed: int, epochs: int, look: Callable) -> None:
    """All defaults, for this number of epochs."""
    model = SCVI(x.shape[1], likelihood=likelihood, seed=seed)
    model.fit(x, epochs=epochs, progress=False)
    look(epochs, lambda: model)


def scvi_tools(x, likelihood: str, seed: int, epochs: int, look: Callable) -> None:
    """scvi-tools with all defaults."""
    import anndata
    import scvi
    from lightning.pytorch.callbacks import Callback

    class Look(Callback):
        """Keeps a copy of the weights after the epochs of LOOKS."""

        def on_train_epoch_end(self, trainer, plan):
            done = trainer.current_epoch + 1
            if done in LOOKS:
                state = {
                    name: w.detach().numpy().copy() for name, w in plan.module.state_dict().items()
                }
                look(done, lambda: SCVI.from_scvi_tools(state, likelihood=likelihood))

    scvi.settings.verbosity = logging.ERROR
    scvi.settings.seed = seed
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    adata = anndata.AnnData(sparse.csr_matrix(x, dtype=np.float32))
    scvi.model.SCVI.setup_anndata(adata)
    model = scvi.model.SCVI(adata, gene_likelihood=likelihood)
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, callbacks=[Look()])


def pytorch(x, likelihood: str, seed: int, epochs: int, look: Callable) -> None:
    """scvi-tools' recipe in a bare loop: nine tenths of the cells, Adam, the KL weight rising."""
    import torch

    from tests.benchmarks.pytorch import BareSCVI

    torch.manual_seed(seed)
    x = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    x = x[torch.randperm(len(x))[: round(0.9 * len(x))]]
    model = BareSCVI(x.shape[1], likelihood == "zinb")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            loss = model.loss(x[rows], kl_weight=min(1.0, epoch / 400))
            loss.backward()
            optimizer.step()
        if epoch + 1 in LOOKS:
            state = {name: w.detach().numpy().copy() for name, w in model.state_dict().items()}
            look(epoch + 1, lambda state=state: of_bare(state, likelihood))


def of_bare(state: dict, likelihood: str) -> SCVI:
    """The weights of tests/benchmarks/pytorch.py's BareSCVI, as a model here."""
    names = {
        "z_encoder.layers.linears.0": "encoder.0",
        "z_encoder.layers.norms.0": "encoder.1",
        "z_encoder.mean": "mean",
        "z_encoder.log_var": "log_var",
        "decoder.layers.linears.0": "decoder.0",
        "decoder.layers.norms.0": "decoder.1",
        "decoder.rho": "rho",
        "decoder.zi": "zi",
        "log_theta": "log_theta",
    }
    n_latent, n_hidden = state["mean.weight"].shape
    model = SCVI(
        state["encoder.0.weight"].shape[1],
        n_latent=n_latent,
        n_hidden=n_hidden,
        likelihood=likelihood,
    )
    found = dict(model.state_dict())
    for name in found:
        owner, _, last = name.rpartition(".")
        theirs = names.get(name) or (f"{names[owner]}.{last}" if owner in names else None)
        if theirs is not None:
            found[name] = state[theirs].reshape(found[name].shape)
    model.load_state_dict(found)
    model.trained = True
    return model.eval()


def main(side: str, path: str, likelihood: str, seed: str, epochs: str) -> int:
    """Train, then judge what was looked at on the way."""
    needed = {"ours": (), "scvi_tools": ("scvi", "anndata"), "pytorch": ("torch",)}
    if any(importlib.util.find_spec(name) is None for name in needed[side]):
        return MISSING
    warnings.simplefilter("ignore")
    counts = read(path)
    test, rest = split(len(counts), int(seed))
    x = counts.X[rest]
    dense = x.toarray() if sparse.issparse(x) else np.asarray(x)
    looks = []
    train = {"ours": ours, "scvi_tools": scvi_tools, "pytorch": pytorch}[side]
    train(
        x if side == "ours" else dense,
        likelihood,
        int(seed),
        int(epochs),
        lambda done, model: looks.append((done, process_age(), model)),
    )
    for done, seconds, model in looks:
        log_p = np.mean(model().log_likelihood(counts.X[test], n_samples=N_SAMPLES))
        print(json.dumps({"epochs": done, "seconds": seconds, "log_p": float(log_p)}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
