"""ProtectedWriter: each finished chunk of the last pass goes to disk at once, so that an interrupted pass can go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from salm_lightning.callbacks.interruption import Interruption
from salm_lightning.modules.noise_generator import ProtectedChunk
from salm_lightning.release.parts import Parts


class ProtectedWriter(BasePredictionWriter):
    """Store what the last pass returns, chunk by chunk.

    Args:
        parts: Where the chunks go; shared by all ranks, each of which writes the chunks that it made.
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__(write_interval="batch")
        self.parts = parts
        self._interruption = Interruption()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM and Ctrl-C wait until the chunk at hand is stored."""
        super().on_predict_start(trainer, pl_module)
        self._interruption.listen(trainer)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: ProtectedChunk,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Store one chunk, and stop after it if the run was asked to.

        Ranks share nothing in the last pass, so each stops by itself.
        """
        chunk = int(prediction.indices[0]) // self.parts.chunk_size
        self.parts.save(chunk, prediction.images)
        if self._interruption.noted:
            self._interruption.stop(trainer)
