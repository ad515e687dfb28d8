"""Finding configuration files: a path as it stands, or the bare name of one that the package ships."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from salm_lightning.callbacks.checkpoint import latest_checkpoint
from salm_lightning.errors import ConfigurationError, did_you_mean


def shipped_configs() -> Path:
    """Return the folder of the shipped configs: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def resolve_config(name: str) -> str:
    """Return the path of a config file.

    Args:
        name: A path, or a name below the shipped configs, such as ``salm_pathmnist.yaml`` or ``method/em.yaml``.

    Raises:
        ConfigurationError: There is no such file; the message suggests a shipped one and lists them.
    """
    if Path(name).is_file():
        return name
    root = shipped_configs()
    relative = name.removeprefix("configs/")
    if not Path(relative).is_absolute() and ".." not in Path(relative).parts and (root / relative).is_file():
        return str(root / relative)
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    raise ConfigurationError(
        f"--config {name} is neither a file nor a shipped config{did_you_mean(relative, names) or '.'} Shipped: {', '.join(names)}."
    )


def resolve_checkpoint(name: str) -> str:
    """Return the path of a checkpoint file, for the file itself, a run's folder or its ``checkpoints`` folder.

    Raises:
        ConfigurationError: There is no checkpoint.
    """
    path = Path(name)
    if path.is_dir():
        found = latest_checkpoint(path / "checkpoints") or latest_checkpoint(path)
        if found is None:
            raise ConfigurationError(f"--ckpt_path {name} is a folder without checkpoints/step=N.ckpt; name a run's folder or a .ckpt file.")
        return str(found)
    if not path.is_file():
        raise ConfigurationError(f"--ckpt_path {name} does not exist; name a run's folder or a .ckpt file.")
    return name


def is_given(args: Sequence[str], group: str, name: str) -> bool:
    """Return whether the user sets ``name`` of ``group`` (``model`` or ``data``), as an option or in a config file."""
    options = {f"--{group}.{name}", f"--{group}.init_args.{name}"}
    if any(arg.partition("=")[0] in options for arg in args):
        return True
    for path in _config_paths(args):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        section = values.get(group) if isinstance(values, dict) else None
        if isinstance(section, dict) and name in {**section, **(section.get("init_args") or {})}:
            return True
    return False


def _config_paths(args: Sequence[str]) -> Iterator[Path]:
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if option in ("--config", "-c"):
            yield Path(value if equals else args[position + 1])


def resolve_paths(args: list[str]) -> list[str]:
    """Return command-line arguments with the values of ``--config`` and ``--ckpt_path`` resolved."""
    resolvers = {"--config": resolve_config, "-c": resolve_config, "--ckpt_path": resolve_checkpoint}
    resolved: list[str] = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        before = args[position - 1] if position else ""
        if equals and option in resolvers:
            resolved.append(f"{option}={resolvers[option](value)}")
        elif before in resolvers and not before.count("="):
            resolved.append(resolvers[before](arg))
        else:
            resolved.append(arg)
    return resolved
