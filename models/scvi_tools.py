"""Models that were trained with scvi-tools, taken over. This is engineering.

scvi.py has the architecture of scvi-tools, so that weights trained there can be used here. They
have other names:

    >>> our_name("z_encoder.encoder.fc_layers.Layer 0.0.weight")
    'z_encoder.layers.linears.0.weight'

What is read is a mapping of names to arrays, `{k: v.numpy() for k, v in module.state_dict()
.items()}` in PyTorch, or the folder that scvi-tools' `save` wrote, of which no code is run
(torch_files.py). The folder also says how the model was made, and what genes and batches are
called.

Know before reading: scvi.py.

Know after: which weight of the reference implementation is which of ours, and which of its models
are not ours.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigrad.checkpoint import refuse_nonfinite
from models.files import Refused
from models.torch_files import Torch, number

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


# Arguments of scvi-tools' SCVI that make another model than ours, and the one value that does not.
ONLY = {
    "latent_distribution": "normal",
    "log_variational": True,
    "deeply_inject_covariates": True,
    "use_batch_norm": "both",
    "use_layer_norm": "none",
    "batch_representation": "one-hot",
    "var_activation": None,
    "use_size_factor_key": False,
}
USED = ("z_encoder.", "decoder.px_decoder.", "decoder.px_scale_decoder.")  # by all models
AS_IN_TRAINING = (
    "give n_batches, n_layers, likelihood, dispersion, library, columns and encode_covariates as "
    "in its training"
)
FIRST_LAYER = "z_encoder.encoder.fc_layers.Layer 0.0.weight"


class FolderContent(NamedTuple):
    """What a folder of scvi-tools holds."""

    state: dict[str, np.ndarray]  # weights by their names there
    config: dict[str, Any]  # arguments of SCVI
    genes: list[str]
    batches: list[str]  # in the order of their codes


def model_of(cls: Any, state: Any, config: dict[str, Any]) -> Any:
    """What `SCVI.from_scvi_tools` says, for the class cls = SCVI. Arrays are of any shapes."""
    if not isinstance(state, (str, os.PathLike)):
        return _with_weights(cls, state, config)
    saved = saved_model(state)
    model = _with_weights(cls, saved.state, {**saved.config, **config})
    model.genes = saved.genes
    model.batches = saved.batches
    return model


def _with_weights(cls: Any, state: Mapping[str, Any], config: dict[str, Any]) -> Any:
    """A model with these weights, by their names there; config: arguments of SCVI."""
    for name in (FIRST_LAYER, "decoder.px_scale_decoder.0.bias", "z_encoder.mean_encoder.weight"):
        if name not in state:
            raise ValueError(
                f"state: has no {name!r}; pass the state dict of an SCVI of scvi-tools"
            )
    refuse_nonfinite(state, "state: cannot be used")
    first_layer = np.asarray(state[FIRST_LAYER])
    n_hidden = len(first_layer)
    n_genes = len(np.asarray(state["decoder.px_scale_decoder.0.bias"]))
    mean_encoder = np.asarray(state["z_encoder.mean_encoder.weight"])
    # A model is made in these sizes before its weights are compared, so they must be real.
    if first_layer.ndim != 2 or first_layer.shape[1] < n_genes:
        raise ValueError(
            f"state: {FIRST_LAYER!r} has shape {first_layer.shape}, for {n_genes} genes of the "
            "decoder: it is no encoder of their counts"
        )
    if mean_encoder.ndim != 2 or mean_encoder.shape[1] != n_hidden:
        raise ValueError(
            f"state: 'z_encoder.mean_encoder.weight' has shape {mean_encoder.shape}, for "
            f"{n_hidden} hidden units of {FIRST_LAYER!r}"
        )
    n_latent = mean_encoder.shape[0]
    dtype = np.promote_types(first_layer.dtype, np.float32)  # halves are computed in float32
    n_layers = sum(f"z_encoder.encoder.fc_layers.Layer {i}.0.weight" in state for i in range(100))
    if config.get("n_layers", n_layers) != n_layers:
        raise ValueError(
            f"state: has weights of {n_layers} hidden layers, where n_layers is "
            f"{config['n_layers']}; {AS_IN_TRAINING}"
        )
    found = dict(
        n_genes=n_genes, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, dtype=dtype
    )
    model = cls(**{**found, **config})
    targets = model.state_dict()
    weights = {name: targets[name] for name in model.buffers}  # what the state may not have
    model.ignored = []
    has_prior = model.library_log_mean_given and model.library_log_var_given
    for theirs, array in state.items():
        ours = our_name(theirs)
        if ours not in targets:
            model.ignored.append(theirs)
            continue
        array = in_our_order(np.asarray(array), ours, model)
        if np.squeeze(array).shape != np.squeeze(targets[ours]).shape:  # one row stands for a list
            raise ValueError(
                f"state: {theirs!r} has shape {array.shape}, where a model of these arguments has "
                f"{targets[ours].shape}; {AS_IN_TRAINING}"
            )
        has_prior |= ours == "library_log_mean"
        weights[ours] = array.reshape(targets[ours].shape)
    beyond = [name for name in model.ignored if name.startswith(USED) and "num_b" not in name]
    missing = [name for name in targets if name not in weights]
    if beyond or missing:
        found_wrong = f"{beyond[0]!r} has no place" if beyond else f"has nothing for {missing[0]!r}"
        raise ValueError(f"state: {found_wrong} in a model of these arguments; {AS_IN_TRAINING}")
    if model.library == "latent" and not has_prior:
        raise ValueError(
            "state: has no library_log_means and library_log_vars, the prior of a latent library; "
            "give library_log_mean= and library_log_var=, those of the log totals of each batch"
        )
    model.load_state_dict(weights)
    model.trained = True
    return model.eval()


# ----------------------------------------------------------------------------------- a saved folder
def saved_model(path: Any) -> FolderContent:
    """What scvi-tools' `save` wrote to a folder, or to the model.pt in it; nothing of it is run.

    FileNotFoundError; ValueError for models of other kinds than SCVI, for what SCVI here does not
    have, and for a file that is damaged.
    """
    path = Path(path)
    file = _file_in(path) if path.is_dir() else path
    try:
        return _saved_model(Torch(file))
    except FileNotFoundError:
        raise
    except Refused as error:
        raise ValueError(f"{file}: {error}") from None
    except Exception as error:  # a damaged file can make zipfile and pickletools raise anything
        said = " ".join(str(error).split())[:100]
        raise ValueError(
            f"{file}: damaged, or no model that scvi-tools saved ({type(error).__name__}: {said})"
        ) from error


def _file_in(folder: Path) -> Path:
    """The one model.pt of a folder, which may have a prefix."""
    found = sorted(folder.glob("*model.pt"))
    if len(found) == 1:
        return found[0]
    if list(folder.glob("*model_params.pt")):
        raise ValueError(
            f"{folder}: saved by scvi-tools before 0.15; write it again there, with "
            "SCVI.convert_legacy_save"
        )
    names = ", ".join(file.name for file in found) or "none"
    raise FileNotFoundError(
        f"{folder}: a folder that scvi-tools saved holds one model.pt; there are: {names}; give "
        "the path of the file"
    )


def _saved_model(torch: Torch) -> FolderContent:
    """What is in a model.pt."""
    content = torch.content
    if not isinstance(content, dict) or "model_state_dict" not in content:
        raise Refused("a file of torch.save, but not of scvi-tools: it has no model_state_dict")
    about = content["attr_dict"]
    registry = about["registry_"]
    kind = registry.get("model_name", "SCVI")
    if kind != "SCVI":
        raise Refused(f"holds a {kind}; only SCVI is read")
    asked = dict(about["init_params_"]["non_kwargs"])
    for more in about["init_params_"]["kwargs"].values():
        asked.update(more)
    fields = registry["field_registries"]
    batches = [str(name) for name in torch.array(_state_of(fields, "batch")["categorical_mapping"])]
    config = _config(asked, registry, torch)
    state = {
        name: torch.array(value)
        for name, value in content["model_state_dict"].items()
        if name != "pyro_param_store"
    }
    genes = [str(number(name)) for name in torch.array(content["var_names"]).tolist()]
    return FolderContent(state, {**config, "n_batches": len(batches)}, genes, batches)


def _config(asked: dict[str, Any], registry: dict, torch: Torch) -> dict[str, Any]:
    """Arguments of SCVI here from those there; registry: what is known of the cells."""
    for name, value in ONLY.items():
        if asked.get(name, value) != value:
            found = asked[name]
            told = repr(found)[:60] if isinstance(found, (str, int, float)) else "another value"
            raise Refused(f"was made with {name}={told}, which SCVI here does not have")
    fields = registry["field_registries"]
    setup = registry["setup_args"]
    if setup.get("size_factor_key") is not None:
        raise Refused("was told size factors, which SCVI here does not have")
    categories = _state_of(fields, "extra_categorical_covs")
    numbers = _state_of(fields, "extra_continuous_covs")
    columns = {
        "batch": setup.get("batch_key"),
        "categorical": {
            str(key): [str(label) for label in torch.array(labels)]
            for key, labels in categories.get("mappings", {}).items()
        },
        "continuous": [str(name) for name in torch.array(numbers["columns"])] if numbers else [],
    }
    return dict(
        n_layers=int(number(asked.get("n_layers", 1))),
        dropout=float(number(asked.get("dropout_rate", 0.1))),
        likelihood=str(asked.get("gene_likelihood", "zinb")),
        dispersion=str(asked.get("dispersion", "gene")),
        library="observed" if asked.get("use_observed_lib_size", True) else "latent",
        encode_covariates=bool(asked.get("encode_covariates", False)),
        columns=columns,
    )


def _state_of(fields: dict, name: str) -> dict:
    """What the registry remembers of a field of the cells; nothing where it was not set up."""
    return fields.get(name, {}).get("state_registry", {})


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
