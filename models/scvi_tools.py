"""Models that were trained with scvi-tools, taken over. This is engineering.

scvi.py has the architecture of scvi-tools, so that weights trained there can be used here. They
have other names:

    >>> our_name("z_encoder.encoder.fc_layers.Layer 0.0.weight")
    'z_encoder.layers.linears.0.weight'

What is read is a mapping of names to arrays, `{k: v.numpy() for k, v in module.state_dict()
.items()}` in PyTorch; no file of theirs is opened here, for these are pickles.

Know before reading: scvi.py.

Know after: which weight of the reference implementation is which of ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from minigrad.checkpoint import refuse_nonfinite

# Parts of names, theirs and ours. The number of a layer follows "layers.", and then 0 for its
# Linear or 1 for its batch norm.
PARTS = {
    "encoder.fc_layers.Layer ": "layers.",
    "px_decoder.fc_layers.Layer ": "layers.",
    "mean_encoder": "mean",
    "var_encoder": "log_var",
    "px_scale_decoder.0": "rho",
    "px_r_decoder": "theta",
    "px_dropout_decoder": "zi",
    "library_log_vars": "library_log_var",
    "library_log_means": "library_log_mean",
}


def model_of(cls: Any, state: Mapping[str, Any], config: dict[str, Any]) -> Any:
    """What `SCVI.from_scvi_tools` says, for the class cls = SCVI. Arrays are of any shapes."""
    refuse_nonfinite(state, "state: cannot be used")
    first_layer = np.asarray(state["z_encoder.encoder.fc_layers.Layer 0.0.weight"])
    n_hidden, n_genes = first_layer.shape
    n_latent = np.asarray(state["z_encoder.mean_encoder.weight"]).shape[0]
    dtype = np.promote_types(first_layer.dtype, np.float32)  # halves are computed in float32
    found = dict(n_genes=n_genes, n_hidden=n_hidden, n_latent=n_latent, dtype=dtype)
    model = cls(**{**found, **config})
    targets = model.state_dict()
    weights = {name: targets[name] for name in cls.buffers}  # what the state may not have
    model.ignored = []
    for theirs, array in state.items():
        ours = our_name(theirs)
        if ours in targets:
            weights[ours] = np.asarray(array).reshape(targets[ours].shape)
        else:
            model.ignored.append(theirs)
    model.load_state_dict(weights)
    model.trained = True
    return model.eval()


def our_name(name: str) -> str:
    """The name here of a weight in scvi-tools' state dict."""
    if name == "px_r":
        return "log_theta"
    for theirs, ours in PARTS.items():
        name = name.replace(theirs, ours)
    owner, _, of_layer = name.partition("layers.")
    if not of_layer:
        return name
    i, kind, attribute = of_layer.split(".", 2)
    kinds = "linears" if kind == "0" else "norms"
    return f"{owner}layers.{kinds}.{i}.{attribute}"
