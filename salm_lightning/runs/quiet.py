"""Messages that tell a user of this package nothing, most of them Lightning's; each is named, so that all others are still shown."""

from __future__ import annotations

import itertools
import logging
import threading
import warnings

_MESSAGES = (
    "Tip: ",
    "`weights_only` was not set",
    *("GPU available: ", "TPU available: ", "HPU available: ", "LOCAL_RANK: ", "Automatic Mixed Precision (AMP)", "Seed set to"),
    "`Trainer(val_check_interval=1)` was configured",
    "`Trainer.fit` stopped: `max_steps=",
    *("Restoring states from the checkpoint path", "Loaded model weights from the checkpoint"),
)
_PACKAGES = ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
"""Lightning is installed twice. Both log through the one that was imported last, which can be any other package's doing."""
_LOGGERS = ("utilities.rank_zero", "utilities.seed", "accelerators.cuda", "trainer.connectors.checkpoint_connector")
_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",  # Lightning's own code on new versions of torch
    ".*NumPy array is not writable.*",  # nothing writes into what is read from files
    "LightningCLI's args parameter.*",
    "The `srun` command is available on your system but is not used.*",  # nor meant to be, by a fit of one process
    # Metrics come from all ranks already.
    r"It is recommended to use `self\.log\('(val|test|test_curve|test_recall)/.*sync_dist=True",
    "The number of training batches .* is smaller than the logging interval.*",
)


def quieten() -> None:
    """Stop the named messages; calling it again changes nothing."""
    for name in itertools.product(_PACKAGES, _LOGGERS):
        logging.getLogger(".".join(name)).addFilter(_tells_something)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    threading.excepthook = _end_of_thread


def _end_of_thread(end: threading.ExceptHookArgs) -> None:
    """Say nothing of a disk that TensorBoard's thread cannot write to: the run, whose error that is, hears of it and says so."""
    if isinstance(end.exc_value, OSError):
        end.exc_value.filename = end.exc_value.filename or "TensorBoard's events"
    else:
        threading.__excepthook__(end)


def _tells_something(record: logging.LogRecord) -> bool:
    return not any(text in record.getMessage() for text in _MESSAGES)
