"""ProtectedWriter: each finished chunk of the last pass goes to disk at once, so that an interrupted pass can go on."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from salm_lightning.callbacks.interruption import Interruption
from salm_lightning.modules.noise_generator import ProtectedChunk
from salm_lightning.release.parts import Parts


class ProtectedWriter(Callback):
    """Store what the last pass returns, chunk by chunk.

    Lightning's ``BasePredictionWriter`` asks the loader for the indices of a batch, which only its own loaders know; here every
    batch carries them.

    Args:
        parts: Where the chunks go; shared by all ranks, each of which writes the chunks that it made.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._interruption = Interruption()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM and Ctrl-C wait until the chunk at hand is stored."""
        self._interruption.listen(trainer)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: ProtectedChunk,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Store one chunk, and stop after it if the run was asked to.

        Ranks share nothing in the last pass, so each stops by itself.
        """
        chunk = int(outputs.indices[0]) // self.parts.chunk_size
        self.parts.save(chunk, outputs.images)
        if self._interruption.noted:
            self._interruption.stop(trainer)
