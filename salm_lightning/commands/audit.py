"""``salm-cli audit``: does the protection hold, whoever trains on the release and whatever they try?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salm_lightning.cli.composition import listed
from salm_lightning.console import command, say
from salm_lightning.errors import ConfigurationError

if TYPE_CHECKING:
    from salm_lightning.audit.results import AuditResult


def audit(
    release: Path,
    source: str | None = None,
    preset: Literal["quick", "paper", "full"] | None = None,
    quick: bool = False,
    countermeasures: list | str | None = None,  # type: ignore[type-arg]  # classes are built later, with names for them
    archs: list | str | None = None,  # type: ignore[type-arg]  # names, or classes with options
    seeds: list[int] | int | None = None,
    width: float | None = None,
    victim_steps: int | None = None,
    batch_size: int | None = None,
    budget: str | None = None,
    sizes: list[int] | str | int | None = None,
    quality: bool = True,
    segmenter: str = "otsu",
    out: Path | None = None,
    root: Path | None = None,
    accelerator: str = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
) -> int:
    """Train models on a release, under what a determined user would try, and say whether the protection holds.

    Finished victims are kept and not trained again; clean twins are shared by all audits of releases of the same images.

    Args:
        release: Folder of the protected dataset; of a protected folder of images the result, which holds ``protected``.
        source: What it was made from, for clean twins: a MedMNIST name, an ``.npz`` file, a folder, or ``synthetic``. A folder's result
            needs it.
        preset: ``quick`` (minutes on a CPU; the default), ``paper`` (its Tables 2 to 4) or ``full``; the options below override it.
        quick: Short for ``--preset quick``.
        countermeasures: What is tried against the noise, such as ``[none, jpeg, {class_path: JPEG, init_args: {quality: 50}}]``.
        archs: Architectures of the victims, such as ``[resnet18, {class_path: my_nets.Net, init_args: {depth: 3}}]``; the first one is
            the main one.
        seeds: Seeds of the victims.
        width: Width factor of the victims.
        victim_steps: Training steps of each victim.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        budget: Time, such as ``30m`` or ``2h``; victims that would end later are left out and listed.
        sizes: Sizes in pixels to which victims scale the files of a folder, such as ``28,64``: everything is tried at the first one, the
            others without countermeasure. By default the size that the noise was made at, and those of 28, 64 and 224 that most images
            have.
        quality: Measure whether the images are still useful, if the source is known.
        segmenter: What segments them for that: ``otsu``, ``vessels``, ``ARCH:PATH`` for a network of torchvision's, or
            ``torchscript:PATH``, which is code: it can do whatever you can.
        out: Folder of the results; ``audit`` beside the release by default.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.

    Returns:
        Exit code: 0 if no victim failed, 1 if one did, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SalmError: An argument is wrong, the release is damaged, or ``source`` is not what it was made from.
    """
    options = dict(locals())
    if options.pop("quick") and preset not in (None, "quick"):
        raise ConfigurationError(f"preset={preset} and quick=true contradict each other; give one of them.")
    options["preset"] = preset or "quick"
    from salm_lightning.audit.results import audit_folder
    from salm_lightning.audit.run import audit as run_audit
    from salm_lightning.interruption import Interrupted

    options |= {name: listed(options[name]) for name in ("archs", "seeds") if options[name] is not None}
    options["sizes"] = None if sizes is None else read_sizes(sizes)
    if countermeasures is not None:
        options["countermeasures"] = read_countermeasures(listed(countermeasures))
    try:
        result = run_audit(**options, tell=say)
    except Interrupted as interruption:
        say("Stopped; finished victims are kept. The same command goes on from there.")
        return interruption.code
    _show(result, release, audit_folder(release, out), out, source if "views" in result.settings else None)
    return int(any(victim.status == "failed" for victim in result.skipped))


def read_sizes(value: list[int] | str | int) -> list[int]:
    """Return sizes from a list, a number, or numbers with commas between.

    Raises:
        ConfigurationError: It is something else.
    """
    words = value.split(",") if isinstance(value, str) else listed(value)
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise ConfigurationError(f"sizes={value} must be numbers of pixels, with commas between, as in --sizes 28,64.") from error


def read_countermeasures(values: Sequence[Any]) -> list[Any]:
    """Return countermeasures from names in any case, such as ``jpeg``, and classes with options.

    Args:
        values: ``none``, names of :data:`~salm_lightning.countermeasures.COUNTERMEASURES`, class paths, or
            ``{class_path: JPEG, init_args: {quality: 10}}``.

    Raises:
        ConfigurationError: A name or an option is not known, or a value is out of range.
    """
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]  # its __all__ is made at run time

    from salm_lightning.audit.choices import class_of
    from salm_lightning.cli.parser import SalmArgumentParser
    from salm_lightning.countermeasures import Countermeasure

    def path(name: Any) -> Any:
        return class_of(name).__name__ if isinstance(name, str) and "." not in name else name

    entries = [
        {**value, "class_path": path(value.get("class_path"))} if isinstance(value, dict) else path(value) for value in values
    ]
    parser = SalmArgumentParser(prog="salm-cli audit")
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--countermeasures", type=list[Countermeasure])
    made: list[Any] = parser.instantiate(parser.read(["--countermeasures", json.dumps(entries)]))["countermeasures"]
    return made


def _show(result: AuditResult, release: Path, folder: Path, out: Path | None, pictured: str | None) -> None:
    """Show what was found, where it is, and how to report on it, with ``pictured``, the originals of a folder's result."""
    from rich.console import Console

    from salm_lightning.audit.results import QUALITY
    from salm_lightning.audit.summary import console_table
    from salm_lightning.release.folder_manifest import REGIONS, REGIONS_NOTE, FolderManifest

    console, verdict = Console(), result.verdict
    console.print(console_table(result, console.width))
    say(f"Verdict: {verdict.word}. {verdict.text}")
    say("\n".join(["What this does not cover:", *(f"  - {limit}" for limit in verdict.not_covered)]))
    if result.skipped:
        lists = folder / "audit.md"
        say(f"{len(result.skipped)} victims have not finished; {lists} lists each with the command that trains it.")
    regions = pictured is not None and FolderManifest.read(release).needs_regions
    given = {"--audit": out, "--source": pictured, "--keep_out": REGIONS if regions else None}
    options = [word for name, value in given.items() if value is not None for word in (name, value)]
    say(
        f"Results: {folder / 'audit.md'}, audit.csv and audit.json beside it\n"
        f"Curves:  {command('tensorboard', '--logdir', folder / 'tensorboard')}\n"
        f"Report:  {command('salm-cli', 'report', release, *options)}"
    )
    if (folder / QUALITY).exists():
        say(f"Private: pictures in {folder} show original images; they are not for publication")
    if regions:
        say(REGIONS_NOTE)
