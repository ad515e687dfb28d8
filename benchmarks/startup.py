"""Show how long commands take to start: user seconds of the process, the least of several runs, beside the targets.

They are those of an idle machine with two cores. A small release is made first, which ``verify`` and ``report`` read. Example::

    python benchmarks/startup.py --runs 5
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile

COMMANDS = {
    "--help": 0.6,
    "--version": 0.6,
    "fitt": 0.6,
    "protect --help": 1.5,
    "protect synthetic --widht 1": 1.5,
    "audit --help": 1.5,
    "quality --help": 1.5,
    "verify {release}": 1.5,
    "verify {release} --source synthetic": None,
    "report {release} --overwrite true": 1.5,
    "fit --help": 4.0,
}
"""Command lines and the most user seconds that each may take; ``None`` for no target."""


def user_seconds(arguments: list[str]) -> float:
    """Run ``salm-cli`` in a process of its own and return the seconds that it spent in its own code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-m", "salm_lightning", *arguments], capture_output=True, check=False)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def main() -> None:
    """Measure each command and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--runs", type=int, default=3, help="Runs of each command, the fastest of which counts.")
    runs = parser.parse_args().runs
    print("| command | user seconds | target |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        user_seconds(["protect", "synthetic", "--method", "Random", "--proof", "false", "--out", folder + "/made"])
        for command, target in COMMANDS.items():
            arguments = command.format(release=f"{folder}/made/protected").split()
            seconds = min(user_seconds(arguments) for _ in range(runs))
            shown = command.format(release="RELEASE")
            print(f"| {shown} | {seconds:.2f} | {'' if target is None else f'< {target}'} |", flush=True)


if __name__ == "__main__":
    main()
