"""Messages of Lightning that tell a user of this package nothing; each is named, so that all others are still shown."""

from __future__ import annotations

import logging
import warnings

_MESSAGES = ("litlogger", "`weights_only` was not set", "TPU available", "HPU available", "Seed set to")
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.fabric.utilities.seed",
)
_WARNINGS = (
    ".*does not have many workers.*",
    ".*LeafSpec.*",  # Lightning's own code on new versions of torch
    "LightningCLI's args parameter.*",
    "The number of training batches .* is smaller than the logging interval.*",
)


class _Named(logging.Filter):
    """Drop the named messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in _MESSAGES)


_FILTER = _Named()


def quieten() -> None:
    """Stop the named messages; calling it again changes nothing."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_FILTER)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
