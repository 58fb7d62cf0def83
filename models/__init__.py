"""Autoencoders, variational autoencoders and scVI on minigrad."""
from models.scvi import SCVI

__all__ = ["SCVI"]
