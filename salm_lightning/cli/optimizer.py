"""The optimiser that belongs to what the user chose."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

from salm_lightning import countermeasures
from salm_lightning.cli.config_files import Setting, parse_value
from salm_lightning.models import ARCHITECTURES, Architecture


def own_optimizer(settings: Setting) -> list[str]:
    """Return, as options, the optimiser of the architecture or the countermeasure with what was given for it; none if one is named."""
    given, arch, source, countermeasure = (
        settings.find(f"model.{name}") or Setting() for name in ("optimizer", "arch", "source", "countermeasure")
    )
    if given.value is not None:
        return []
    own = _optimizer(arch.value or source.value) or getattr(_countermeasure(countermeasure.value), "optimizer", None)
    if own is None:
        return []
    changed = {name: parse_value(str(child.value)) for name, child in given.children.items()}
    return ["--model.optimizer", json.dumps({**own, "init_args": own["init_args"] | changed})]


def _optimizer(arch: Any) -> Any:
    known = arch in ARCHITECTURES or "." in str(arch)
    return Architecture(arch).optimizer if known else None


def _countermeasure(name: Any) -> Any:
    """Return a countermeasure's class; what is wrong with its name is said later."""
    try:
        return pkgutil.resolve_name(name) if "." in str(name) else getattr(countermeasures, str(name), None)
    except (ImportError, AttributeError):
        return None
