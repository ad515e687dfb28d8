"""The argument parser: no abbreviations, and errors that suggest what was meant and list the choices."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from salm_lightning.errors import did_you_mean

_UNKNOWN_KEY = re.compile(r"(?:Unrecognized arguments: |Key ['\"]|option ['\"]|--)-*(?P<key>[\w.]+)")


class SalmArgumentParser(LightningArgumentParser):
    """LightningCLI's parser with exact option names and helpful errors."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, with the closest known name, and exit with 2."""
        super().error(message + self._suggestion(message), ex)

    def _suggestion(self, message: str) -> str:
        found = _UNKNOWN_KEY.search(message)
        if found is None:
            return ""
        return did_you_mean(found["key"], self._known_keys())

    def _known_keys(self) -> Iterable[str]:
        return [action.dest for action in self._actions]
