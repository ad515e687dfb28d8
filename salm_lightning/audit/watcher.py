"""What hears how an audit gets on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback


class Watcher:
    """Hears how an audit gets on; this one keeps quiet."""

    def line(self, text: str) -> None:
        """Take a line on what is at work, and for how long."""

    def bars(self) -> list[Callback]:
        """Return the display of one victim's training."""
        return []

    def comparing(self) -> AbstractContextManager[Callable[[int, int], None]]:
        """Return what takes, while images are compared, how many are done, and of how many."""
        return nullcontext(lambda done, total: None)
