"""Posteriors on disk: saved and restored whole or not at all, and read out of training states."""

from l2m_optax.checkpoint._directory import Pending, restore, save, save_async
from l2m_optax.checkpoint._exchange import load_safetensors, save_safetensors
from l2m_optax.checkpoint._training import from_training_state

__all__ = [
    "Pending",
    "from_training_state",
    "load_safetensors",
    "restore",
    "save",
    "save_async",
    "save_safetensors",
]
