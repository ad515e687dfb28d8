"""The functions behind the subcommands of ``salm-cli`` that are not the Trainer's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jsonargparse import ActionConfigFile

from salm_lightning.commands.verify import verify
from salm_lightning.parser import SalmArgumentParser

COMMANDS: dict[str, Callable[..., int]] = {"verify": verify}
"""Subcommands by name; each function's arguments are the subcommand's options."""
