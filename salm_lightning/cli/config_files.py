"""Finding configuration files: a path as it stands, or the bare name of one that the package ships."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from salm_lightning.errors import ConfigurationError, did_you_mean

CONFIG_OPTIONS = ("-c", "--config")


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
    if Path(name).is_file():
        return name
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
    from salm_lightning.callbacks.checkpoint import latest_checkpoint  # which loads Lightning

    path = Path(name)
    if path.is_dir():
        found = latest_checkpoint(path / "checkpoints") or latest_checkpoint(path)
        if found is None:
            raise ConfigurationError(
                f"--ckpt_path {name} is a folder without checkpoints/step=N.ckpt; name a run's folder or a .ckpt file."
            )
        return str(found)
    if not path.is_file():
        raise ConfigurationError(f"--ckpt_path {name} does not exist; name a run's folder or a .ckpt file.")
    if not zipfile.is_zipfile(path):
        raise ConfigurationError(
            f"--ckpt_path {name} is not a checkpoint, or only part of one; name a run's folder or another .ckpt file."
        )
    return name


def read_config(path: str) -> dict[str, Any]:
    """Return the content of a config file.

    Raises:
        ConfigurationError: It cannot be read, is not YAML, or holds no options.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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
    return values


@dataclass
class Setting:
    """An option as the user gave it, on the command line or in a config file, and the options below it.

    ``class_path`` and ``init_args`` are resolved: the setting ``model`` has the class's name as value, its options as children.

    Attributes:
        origin: Where and how it was given, such as ``--model.width`` or ``my.yaml: model.width``.
        value: Its value as it stands; ``None`` where only options below it are given.
        order: Position among all settings.
        from_option: Whether it comes from the command line.
        children: Options below it by name.
    """

    origin: str = ""
    value: Any = None
    order: int = -1
    from_option: bool = False
    children: dict[str, Setting] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any, origin: str) -> Setting:
        """Return a setting for a value that may itself hold options."""
        setting = cls(origin)
        setting.put(value, origin, 0, False)
        return setting

    def find(self, path: str) -> Setting | None:
        """Return the setting at a dotted path below this one, or ``None``."""
        found: Setting | None = self
        for name in path.split("."):
            found = found.children.get(name) if found else None
        return found

    def origins(self) -> Iterator[str]:
        """Yield where this setting, or those below it, were given."""
        if self.origin:
            yield self.origin
        for child in self.children.values():
            yield from child.origins()

    def put(self, value: Any, origin: str, order: int, from_option: bool) -> None:
        """Take a value over; an earlier one is replaced, options below it stay."""
        if not isinstance(value, dict):
            self.value, self.origin, self.order, self.from_option = value, origin, order, from_option
            return
        for name, below in value.items():
            if name in _WRAPPERS:
                self.put(below, origin, order, from_option)
            else:
                child = self.children.setdefault(str(name), Setting())
                child.put(below, f"{origin}.{name}" if self.order != _ROOT else f"{origin}{name}", order, from_option)


_WRAPPERS = ("class_path", "init_args", "dict_kwargs")
_ROOT = -2


def read_settings(args: Sequence[str]) -> Setting:
    """Return all settings that arguments and their config files make, the later of two winning."""
    root = Setting(order=_ROOT)
    for order, (option, value) in enumerate(_options(args)):
        if option in CONFIG_OPTIONS:
            if value is not None and Path(value).is_file():
                root.put(read_config(value), f"{value}: ", order, False)
            continue
        below: Any = _structure(value)
        for name in reversed([part.rstrip("+") for part in option.lstrip("-").split(".")]):
            below = {name: below}
        root.put(below, "--", order, True)
    return root


def _structure(value: str | None) -> Any:
    """Return an option's value, read as YAML if it looks like a list or a mapping."""
    return value if value is None or value[:1] not in ("{", "[") else parse_value(value)


def parse_value(value: str) -> Any:
    """Return what an option's text says as YAML; the text itself where it is none."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _options(args: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Yield option and value; positional arguments are left out."""
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if not option.startswith("-"):
            continue
        following = args[position + 1] if position + 1 < len(args) else None
        if equals:
            yield option, value
        else:
            yield option, None if following is None or following.startswith("--") else following


def resolve_configs(args: Sequence[str]) -> list[str]:
    """Return command-line arguments with the values of ``--config`` resolved."""
    resolved: list[str] = []
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if equals and option in CONFIG_OPTIONS:
            resolved.append(f"{option}={resolve_config(value)}")
        elif position and args[position - 1] in CONFIG_OPTIONS:
            resolved.append(resolve_config(arg))
        else:
            resolved.append(arg)
    return resolved
