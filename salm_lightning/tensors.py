"""``Tensor`` for annotations alone, and ``torch`` loaded when it is first used: ``--help`` and a mistake wait for neither.

A block under ``TYPE_CHECKING`` in the modules themselves would not do: jsonargparse runs those of the modules that it reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    Tensor = Any

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # jsonargparse asks everything that a module holds for its ``__args__``
                raise AttributeError(name)
            import torch

            return getattr(torch, name)

    torch = _Torch()

__all__ = ["Tensor", "torch"]
