"""Finding configuration files: a path as it stands, or the bare name of one that the package ships."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import yaml

from salm_lightning.checked import load_yaml
from salm_lightning.errors import ConfigurationError, did_you_mean
from salm_lightning.files import expanded
from salm_lightning.release.manifest import DATAMODULE, MANIFEST, datamodule_fault


def shipped_configs() -> Path:
    """Return the folder of the shipped configs: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def resolve_config(name: str) -> str:
    """Return the path of a config file.

    Args:
        name: A path, or a name below the shipped configs, such as ``salm_pathmnist.yaml`` or ``method/em.yaml``.

    Raises:
        ConfigurationError: There is no such file; the message suggests a shipped one and lists them.
    """
    if (path := expanded(name)).is_file():
        return str(path)
    root = shipped_configs()
    relative = name.removeprefix("configs/")
    if not Path(relative).is_absolute() and ".." not in Path(relative).parts and (root / relative).is_file():
        return str(root / relative)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    raise ConfigurationError(
        f"--config {name} is neither a file nor a shipped config{did_you_mean(relative, names) or '.'} "
        f"Shipped: {', '.join(names)}."
    )


def resolve_checkpoint(name: str) -> str:
    """Return the path of a checkpoint file, for the file itself, a run's folder or its ``checkpoints`` folder.

    Raises:
        ConfigurationError: There is no checkpoint.
    """
    from salm_lightning.callbacks.saved import latest_checkpoint  # which loads torch

    path = Path(name)
    if path.is_dir():
        found = latest_checkpoint(path / "checkpoints") or latest_checkpoint(path)
        problem = "is a folder without checkpoints/step=N.ckpt"
    else:
        found = path if path.is_file() and zipfile.is_zipfile(path) else None
        problem = "is not a checkpoint, or only part of one" if path.is_file() else "does not exist"
    if found is None:
        raise ConfigurationError(f"--ckpt_path {name} {problem}; name a run's folder or another .ckpt file.")
    return str(found)


def read_config(path: str) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        ConfigurationError: It cannot be read, is not YAML, or holds no options.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        values = load_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--config {path} cannot be read as text ({error}); name a YAML file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error)
        raise ConfigurationError(f"--config {path} is not valid YAML{where}: {reason}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(
            f"--config {path} holds a {type(values).__name__}; it has to hold options, such as 'seed_everything: 0'."
        )
    file = Path(path)
    if file.name == DATAMODULE and (file.parent / MANIFEST).exists():
        if fault := datamodule_fault(file):
            raise ConfigurationError(f"--config {path} is not what a release holds: {fault}.")
        values["data"]["init_args"]["root"] = str(file.parent)
    return values
