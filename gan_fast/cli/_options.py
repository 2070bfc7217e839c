"""The names that an option has in every command that takes it: ours first, which names the attribute too, then those
that other GAN programs use."""

from __future__ import annotations

__all__ = ["BATCH_SIZE", "DATA", "DATA_DIR", "LATENT_DIM"]

BATCH_SIZE = ("--batch-size", "--batch_size", "--batch", "--batchSize")
DATA = ("--data", "--dataroot")
DATA_DIR = ("--data-dir", "--data_dir")
LATENT_DIM = ("--latent-dim", "--latent_dim", "--nz", "--z_dim")
