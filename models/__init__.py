"""Autoencoders, variational autoencoders and scVI on minigrad."""

from models.autoencoder import Autoencoder, TiedLinearAutoencoder
from models.comparison import compare
from models.scvi import SCVI
from models.vae import VAE

__all__ = ["Autoencoder", "TiedLinearAutoencoder", "VAE", "SCVI", "compare"]
