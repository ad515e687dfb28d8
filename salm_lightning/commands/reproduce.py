"""``salm-cli reproduce``: the runs behind a table or figure of the paper, and ours beside its numbers."""

from __future__ import annotations

from pathlib import Path

from salm_lightning.errors import look_up, require
from salm_lightning.runs.effort import Precision


def reproduce(
    target: str,
    datasets: list[str] | str | None = None,
    methods: list[str] | str | None = None,
    seeds: list[int] | int | None = None,
    scale: float = 1.0,
    width: float = 1.0,
    general: Path | None = None,
    out: Path = Path("lightning_logs/reproduce"),
    root: Path | None = None,
    workers: int = 1,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    dry_run: bool = False,
) -> int:
    """Run a table, figure or case study of the paper at its settings, and show ours beside its numbers.

    Finished runs are kept in ``out`` and shared by all tables and figures; the same command goes on where it stopped.

    Args:
        target: ``table1`` to ``table6``, ``table8``, ``fig2``, ``fig3``, ``fig5``, ``fig6``, ``fig7``, ``case7.1`` or ``cased2``.
        datasets: MedMNIST names, with ``_224`` for that size; the paper's by default. Others have no number of the paper beside them.
        methods: Of ``tap``, ``em``, ``sp`` and ``salm``; by default all that the paper has there. Clean victims are always trained.
        seeds: Seeds of releases and victims; 0 by default.
        scale: Factor on the training steps of generators and victims.
        width: Width factor of all models.
        general: Folder with one subfolder of general images per class, for case7.1 (ImageNet) and cased2 (CIFAR-10).
        out: Folder of all runs, and of ``reproduce.csv`` and ``reproduce.md``.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``. What is not there is downloaded.
        workers: Runs at a time.
        accelerator: Lightning's accelerator: ``auto``, ``cpu`` or ``gpu``.
        precision: Numerical precision.
        dry_run: Show the runs with an estimate of time and disk, from a few timed steps on this machine, and stop.

    Returns:
        Exit code: 0 if there is a number for every cell, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SalmError: An argument is wrong, or another sweep is running in ``out``.
    """
    # Not with this module, or every other command would load them too.
    from salm_lightning.reproduce.pages import run
    from salm_lightning.reproduce.settings import Settings
    from salm_lightning.reproduce.targets import TARGETS
    from salm_lightning.runs.trainers import check_accelerator

    chosen = TARGETS[look_up("target", target, TARGETS)]
    require("workers", workers, workers >= 1, "give 1 or more")
    check_accelerator(accelerator)
    named, tried = ([given] if isinstance(given, str) else given for given in (datasets, methods))
    numbers = (seeds,) if isinstance(seeds, int) else (0,) if seeds is None else tuple(seeds)
    settings = Settings(scale, width, numbers, root, accelerator, precision, out, workers, general, download=not dry_run)
    experiment = chosen.experiment(chosen.choose(named, tried), settings)
    if dry_run:
        experiment.show_plan()
        return 0
    return run(target, experiment)
