"""Autoencoders, variational autoencoders and scVI on minigrad.

This is a reference: the names that `import models` offers. README says where to begin reading.
"""

import importlib
from typing import Any

from models.autoencoder import Autoencoder, TiedLinearAutoencoder
from models.scvi import SCVI
from models.vae import VAE

__all__ = [
    "Autoencoder",
    "TiedLinearAutoencoder",
    "VAE",
    "SCVI",
    "compare",
    "integration",
    "transfer_labels",
]


def __getattr__(name: str) -> Any:
    """`compare`, `integration` and `transfer_labels`, imported when they are first asked for.

    They load scipy.spatial, which nothing else here needs: with it `import models` would take 16 MB
    and a quarter longer. AttributeError for any other name.
    """
    if name == "integration":
        return importlib.import_module("models.integration")
    if name == "compare":
        return importlib.import_module("models.comparison").compare
    if name == "transfer_labels":
        return importlib.import_module("models.transfer").transfer_labels
    raise AttributeError(f"module 'models' has no attribute {name!r}")
