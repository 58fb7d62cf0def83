"""Autoencoders, variational autoencoders and scVI on minigrad.

This is a reference: the names that `import models` offers. README says where to begin reading.
"""

from models import integration
from models.autoencoder import Autoencoder, TiedLinearAutoencoder
from models.comparison import compare
from models.scvi import SCVI
from models.transfer import transfer_labels
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
