"""Measure protection: one release per method and seed, a victim on each and on the clean images, and a Markdown table.

Every cell is an ordinary ``salm-cli fit``; finished ones are kept, so that an interrupted run goes on. Example::

    python benchmarks/protection.py --data MedMNISTDataModule --data.name bloodmnist --methods clean Random EM SALM --seeds 0 1

Options that this script does not know go to every ``salm-cli fit``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

CLEAN = "clean"


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Return this script's options, and those for ``salm-cli fit``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--methods", nargs="+", default=[CLEAN, "Random", "EM", "SALM"], help="In the order in which they run.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=2000, help="Training steps of the generator, M.")
    parser.add_argument("--victim-steps", type=int, default=1200)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--generator", nargs="*", default=[], help="Further generator settings, such as loop=fresh.")
    parser.add_argument("--victim-archs", nargs="+", default=["resnet18"])
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/protection"))
    return parser.parse_known_args()


def fit(run: Path, args: list[str]) -> float:
    """Run ``salm-cli fit`` in a run folder of its own unless it is there already; return the seconds it took, now or then."""
    done = run / "seconds.json"
    if not done.is_file():
        if run.exists():
            shutil.rmtree(run)  # an interrupted cell starts anew: these are short
        begin = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "salm_lightning",
            "fit",
            "--run",
            run.name,
            "--trainer.default_root_dir",
            str(run.parents[1]),
        ]
        subprocess.run([*command, *args], check=True)
        done.write_text(json.dumps(time.perf_counter() - begin))
    return float(json.loads(done.read_text()))


def cell(method: str, arch: str, seed: int, options: argparse.Namespace, shared: list[str]) -> dict[str, Any]:
    """Make the release of a method (unless clean), train a victim on it, and return the victim's results."""
    runs = options.out / "lightning_logs"
    data, generator_seconds = shared, 0.0
    if method != CLEAN:
        settings = [f"--model.{setting}" for setting in options.generator]
        name = "-".join([method.lower(), str(options.steps), *options.generator, f"seed{seed}"])
        generator_seconds = fit(
            runs / name,
            [*shared, "--model", "NoiseGeneratorModule", "--model.method", method, "--model.width", str(options.width), *settings,
             "--trainer.max_steps", str(options.steps), "--seed_everything", str(seed)],
        )  # fmt: skip
        data = ["--data", "PoisonedDataModule", "--data.root", str(runs / name / "protected"), *_trainer_options(shared)]
    else:
        name = f"{CLEAN}-seed{seed}"
    victim = runs / f"{name}-victim-{arch}-{options.victim_steps}"
    fit(
        victim,
        [*data, "--model", "VictimModule", "--model.arch", arch, "--model.width", str(options.width),
         "--trainer.max_steps", str(options.victim_steps), "--seed_everything", str(seed)],
    )  # fmt: skip
    return {**json.loads((victim / "results.json").read_text()), "generator_seconds": generator_seconds}


def _trainer_options(shared: list[str]) -> list[str]:
    """Return the options of the Trainer among those shared; a release settles its data by itself."""
    pairs = zip(shared[::2], shared[1::2], strict=True)
    return [part for pair in pairs if pair[0].startswith("--trainer") for part in pair]


def row(method: str, arch: str, results: list[dict[str, Any]]) -> str:
    """Return one line of the table: means over the seeds, and the spread where there are several."""

    def show(values: list[float], scale: float = 100) -> str:
        spread = f" ± {scale * stdev(values):.1f}" if len(values) > 1 else ""
        return f"{scale * mean(values):.1f}{spread}"

    last = [result["test"] for result in results]
    peak = [result["history"]["peak"]["acc"] for result in results]
    best = [result["history"]["best_on_val"]["acc"] for result in results]
    cells = [show([test[name] for test in last]) for name in ("acc", "balanced_acc", "auc")]
    minutes = mean(result["generator_seconds"] for result in results) / 60
    return f"| {method} | {arch} | {len(results)} | {' | '.join(cells)} | {show(best)} | {show(peak)} | {minutes:.0f} |"


def main() -> None:
    """Run all cells, print the table after each method."""
    options, shared = parse()
    header = "| trained on | victim | seeds | accuracy | balanced acc. | AUC x 100 | best on val | peak | generator min |"
    lines = [header, "|---" * 9 + "|"]
    majority = 0.0
    for method in options.methods:
        for arch in options.victim_archs:
            results = [cell(method, arch, seed, options, shared) for seed in options.seeds]
            majority = results[0]["majority"]
            lines.append(row(method, arch, results))
            print("\n".join(lines), flush=True)
    print(f"| majority class (no model) | | | {100 * majority:.1f} | | 50.0 | | | |")


if __name__ == "__main__":
    main()
