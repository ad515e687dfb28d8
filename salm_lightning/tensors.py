"""``Tensor`` for annotations alone: jsonargparse runs the ``TYPE_CHECKING`` blocks of modules that it reads, and would load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any

__all__ = ["Tensor"]
