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
    n_hidden = len(first_layer)
    n_genes = len(np.asarray(state["decoder.px_scale_decoder.0.bias"]))
    n_latent = np.asarray(state["z_encoder.mean_encoder.weight"]).shape[0]
    dtype = np.promote_types(first_layer.dtype, np.float32)  # halves are computed in float32
    found = dict(n_genes=n_genes, n_hidden=n_hidden, n_latent=n_latent, dtype=dtype)
    model = cls(**{**found, **config})
    targets = model.state_dict()
    weights = {name: targets[name] for name in model.buffers}  # what the state may not have
    model.ignored = []
    for theirs, array in state.items():
        ours = our_name(theirs)
        if ours in targets:
            array = in_our_order(np.asarray(array), ours, model)
            weights[ours] = array.reshape(targets[ours].shape)
        else:
            model.ignored.append(theirs)
    model.load_state_dict(weights)
    model.trained = True
    return model.eval()


def in_our_order(weight: np.ndarray, name: str, model: Any) -> np.ndarray:
    """An array of any shape by its name here; the columns of a hidden layer's weight, (n_hidden,
    n_in), in our order.

    Continuous covariates stand before the batch and the categories there, and join the first layer
    alone; here they stand at the end, and join every layer: with weights of 0, where they do not
    there.
    """
    owner, _, layer = name.removesuffix(".weight").partition(".layers.linears.")
    n_numbers = len(model.columns.continuous)
    is_told = owner == "decoder" or model.config["encode_covariates"]
    if n_numbers == 0 or not layer.isdecimal() or not is_told:
        return weight
    n_hidden = len(weight)
    if layer != "0":
        return np.concatenate([weight, np.zeros((n_hidden, n_numbers), weight.dtype)], axis=1)
    n_before = model.n_latent if owner == "decoder" else model.n_genes
    before, numbers, one_hot = np.split(weight, [n_before, n_before + n_numbers], axis=1)
    return np.concatenate([before, one_hot, numbers], axis=1)


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
