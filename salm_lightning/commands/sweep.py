"""``salm-cli sweep``: a grid over any options of ``fit``, as separate runs, and one table of what came out."""

from __future__ import annotations

from pathlib import Path

from salm_lightning.errors import ConfigurationError, require


# A plain dict: what a dict[str, Any] holds, jsonargparse would take for classes to build.
def sweep(
    generator: dict | None = None,  # type: ignore[type-arg]
    victim: dict | None = None,  # type: ignore[type-arg]
    grid: dict | None = None,  # type: ignore[type-arg]
    clean: bool = True,
    out: Path = Path("lightning_logs/sweep"),
    workers: int | None = None,
    cluster: dict | None = None,  # type: ignore[type-arg]
    dry_run: bool = False,
) -> int:
    """Make releases and train victims for every combination of settings, and put the results into one table.

    Finished runs are kept and not made again; what failed is tried again when the sweep is started again.

    Args:
        generator: Options of ``fit`` for the noise generators, and ``config``, config files that they start from.
        victim: The same for the victims; their data are the releases and the generators' clean data.
        grid: Lists of values by option, such as ``generator.model.method`` and ``victim.model.arch``, and ``seed``.
        clean: Train victims on the clean images too.
        out: Folder of all runs and of ``results.csv``.
        workers: Runs at a time: 1 by default, on a cluster as many as it takes.
        cluster: Parameters of ``submitit`` for jobs on a SLURM cluster, such as ``slurm_partition``.
        dry_run: Print the runs, what has become of them and an estimate of time and disk, and stop.

    Returns:
        Exit code: 0 if all runs are done, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        SalmError: A setting of any run cannot work, or another sweep is running in ``out``.
    """
    # Not with this module, or every other command would load them too.
    from salm_lightning.sweep.plan import Planner
    from salm_lightning.sweep.run import all_jobs, run_sweep, show_plan
    from salm_lightning.sweep.runners import Cluster, Local, Runner

    if not generator or not victim:
        missing = "victim" if generator else "generator"
        raise ConfigurationError(f"{missing} is missing: give its options of fit in a config file, as sweep/methods.yaml does.")
    require("workers", workers, workers is None or workers >= 1, "give 1 or more")
    victims = Planner(generator, victim, out, download=not dry_run).victims(grid or {}, clean)
    if dry_run:
        show_plan(all_jobs(victims), workers or 1)
        return 0
    runner: Runner = Local(workers or 1) if cluster is None else Cluster(cluster, out / "submitit", workers)
    return run_sweep(victims, runner, out)
