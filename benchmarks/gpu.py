"""Spend ten minutes of a GPU: tests, precision, speed, then the paper's experiments at full width and length, what tells most first.

Each part is written as a line of JSON to ``OUT/results.jsonl`` and to the screen as soon as it is done. What no longer fits the time is
skipped and said; what is running at its end is stopped. The same command goes on with what has not been done. In this order:

1. the tests that are marked ``gpu``;
2. ``parity``: 20 steps in 16-mixed and bf16-mixed beside the same in fp32;
3. ``speed``: images per second and the share of the measured matmul peak at full width, in fp32, bf16, with contiguous memory, compiled,
   and with CUDA graphs;
4. noise and victims, several at once, because a step on images of 28 px is short and waits for launches: BloodMNIST (clean, EM, SALM),
   BreastMNIST and RetinaMNIST, K = 30, SP, TAP, the other architectures, then grey, JPEG and adversarial training against SALM and EM.

A machine without packages or network gets all it needs in one folder (with the three datasets less than 60 MB)::

    python benchmarks/gpu.py --data FOLDER_OF_MEDMNIST --pack packed
    cd packed && PYTHONPATH=.:site python3 benchmarks/gpu.py --data data --out out --minutes 9
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import shutil
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from gpu_speed import VARIANTS, parity, speed

from salm_lightning.countermeasures import JPEG, AdversarialTraining, Countermeasure, Grey
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import named_images
from salm_lightning.files import write_json
from salm_lightning.noise.methods import EM, SALM, SP, TAP, Method
from salm_lightning.release import PoisonedDataModule
from salm_lightning.runs.effort import Training
from salm_lightning.runs.protection import Protection
from salm_lightning.runs.victims import VictimSettings, train_victim

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ("bloodmnist", "breastmnist", "retinamnist")
CARRIED = ("medmnist", "jsonargparse", "typeshed-client", "docstring-parser")
"""Packages, none of them compiled, that a machine with PyTorch and Lightning may lack."""
METHODS: dict[str, Method] = {"em": EM(), "salm10": SALM(10), "salm30": SALM(30), "sp": SP(), "tap": TAP()}
COUNTERMEASURES: dict[str, Countermeasure] = {"grey": Grey(), "jpeg10": JPEG(10), "at4": AdversarialTraining(4.0)}
ARCHITECTURES = {"resnet18": 1.0, "vgg11": 0.6, "resnet50": 2.5, "densenet121": 4.0}
"""Networks, and about how many times longer a step of each takes than one of the first."""
FIRST_PACE = 5e-4
"""Seconds of a pass (forward or back) of ResNet-18 over a batch, until a job has shown its own."""
Line = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Noise for a dataset, or where ``arch`` is given, a victim on it.

    Attributes:
        dataset: A name of MedMNIST.
        method: Name of the noise; "clean" for none.
        arch: Architecture of the victim.
        countermeasure: What it does against the noise.
    """

    dataset: str
    method: str
    arch: str = ""
    countermeasure: str = ""

    @property
    def name(self) -> str:
        """What it is called in files."""
        return "-".join(filter(None, (self.dataset, self.method, self.arch, self.countermeasure)))

    @property
    def needs(self) -> str:
        """Name of the job that has to be done before."""
        return "" if self.method == "clean" or not self.arch else f"{self.dataset}-{self.method}"

    def passes(self, options: argparse.Namespace) -> float:
        """Return about how many passes of ResNet-18 over a batch it takes."""
        if self.arch:
            return options.victim_steps * ARCHITECTURES[self.arch] * (17 if self.countermeasure == "at4" else 3)
        last = METHODS[self.method].last_pass_steps * 100 * 2  # of a hundred batches
        return options.steps * {"sp": 0, "tap": 3}.get(self.method, 5) + last


def jobs(datasets: Sequence[str]) -> Iterator[Job]:
    """Yield all noise and victims, what tells most first."""
    first = datasets[0]
    for dataset in datasets:
        yield Job(dataset, "clean", "resnet18")
        for method in ("em", "salm10"):
            yield from (Job(dataset, method), Job(dataset, method, "resnet18"))
    for method in ("salm30", "sp", "tap"):
        yield from (Job(first, method), Job(first, method, "resnet18"))
    for arch in list(ARCHITECTURES)[1:]:
        yield from (Job(first, method, arch) for method in ("clean", "salm10", "em"))
    for countermeasure in COUNTERMEASURES:
        yield from (Job(first, method, "resnet18", countermeasure) for method in ("salm10", "em", "clean"))


def perform(job: Job, options: argparse.Namespace) -> None:
    """Do a job in a process of its own, and write what it has shown, and a log, beside its files."""
    folder = options.out / "jobs" / job.name
    folder.mkdir(parents=True, exist_ok=True)
    _quieten()
    torch.set_num_threads(1)
    with (folder / "log").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        begin = time.monotonic()
        shown = _work(job, folder, options)
        write_json(folder / "shown.json", {**shown, "seconds": round(time.monotonic() - begin, 1)})


def _work(job: Job, folder: Path, options: argparse.Namespace) -> Line:
    data = named_images(job.dataset, root=options.data).load()
    if job.arch:
        return _victim(job, data, folder, options)
    training = Training(
        source_model="resnet18", width=options.width, steps=options.steps, victim_steps=options.victim_steps,
        accelerator=options.accelerator, precision=options.precision,
    )  # fmt: skip
    protection = Protection(data, folder, METHODS[job.method], training, proof=False)
    protection.run(yes=True, overwrite=True)
    manifest = json.loads(protection.manifest_path.read_text(encoding="utf-8"))
    return {"updates_per_visit": manifest["settings"].get("training", {}).get("updates_per_visit")}


def _victim(job: Job, data: ImageDataModule, folder: Path, options: argparse.Namespace) -> Line:
    trained_on: ImageDataModule = data
    if job.needs:
        trained_on = PoisonedDataModule(options.out / "jobs" / job.needs / "protected")
        trained_on.measure_on(data)
    settings = VictimSettings(
        job.arch,
        options.width,
        options.victim_steps,
        options.precision,
        COUNTERMEASURES.get(job.countermeasure, Countermeasure()),
    )
    results = train_victim(settings, trained_on, folder, "victim", folder / "victim", accelerator=options.accelerator).results
    return {"majority": results["majority"], **{name: results["test"][name] for name in ("acc", "balanced_acc", "auc")}}


def run_jobs(
    wanted: Sequence[Job],
    options: argparse.Namespace,
    say: Callable[[Line], None],
    end: float,
    start: Callable[[Job], BaseProcess],
) -> None:
    """Do jobs in processes that ``start`` makes, several at a time, until ``time.monotonic()`` is ``end``.

    A job waits for the one that it needs, and those after it do not wait for it; what would last beyond the end is skipped.
    """
    waiting, pace = list(wanted), FIRST_PACE
    running: dict[Job, tuple[BaseProcess, float]] = {}
    finished = {path.parent.name for path in options.out.glob("jobs/*/shown.json")}
    while waiting or running:
        for job, (process, begin) in list(running.items()):
            late = time.monotonic() >= end
            if process.exitcode is None and not late:
                continue
            process.kill()
            process.join()
            del running[job]
            if process.exitcode == 0:
                finished.add(job.name)
                pace = max(pace / 2, (time.monotonic() - begin) / max(1.0, job.passes(options)))
                say({"part": job.name, **asdict(job), **_shown(job, options)})
            else:
                say({"part": job.name, "stopped" if late else "failed": f"exit code {process.exitcode}"})
        unfinished = {job.name for job in (*waiting, *running)}
        for job in [job for job in waiting if job.needs not in unfinished]:
            if len(running) == options.at_once:
                break
            waiting.remove(job)
            needed, left = pace * job.passes(options), end - time.monotonic()
            if job.needs and job.needs not in finished:
                say({"part": job.name, "skipped": f"there is no {job.needs}"})
            elif needed > left:
                say({"part": job.name, "skipped": f"takes about {needed:.0f} s, {max(0.0, left):.0f} s are left"})
            else:
                process = start(job)
                process.start()
                running[job] = process, time.monotonic()
        time.sleep(0.05)


def _shown(job: Job, options: argparse.Namespace) -> Line:
    return json.loads((options.out / "jobs" / job.name / "shown.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def gpu_tests(options: argparse.Namespace) -> Line:
    """Run the tests that need a GPU."""
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20 * options.minutes)
    told = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return {"part": "tests", "failed" if done.returncode else "passed": told[-1] if told else f"exit code {done.returncode}"}


def measurements(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Iterator[Line]]]]:
    """Yield the parts before the noise: what they are called, and what measures them."""
    data = named_images(options.datasets[0], root=options.data).load()
    if options.tests:
        yield "tests", lambda: iter([gpu_tests(options)])
    yield "parity", lambda: parity(data, options)
    for variant in options.variants:
        yield f"speed-{variant}", lambda variant=variant: iter([speed(data, options, variant)])  # type: ignore[misc]


def pack(folder: Path, data: Path, datasets: Sequence[str]) -> None:
    """Copy all that a run needs, and say how large it is."""
    for name in ("salm_lightning", "benchmarks", "tests", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "data").mkdir()
    for name in datasets:
        shutil.copy(data / f"{name}.npz", folder / "data")
    for name in CARRIED:
        for file in metadata.files(name) or ():
            if ".." not in file.parts:
                (folder / "site" / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file.locate(), folder / "site" / file)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


def finished(lines: Sequence[Line]) -> set[str]:
    """Return the parts that need not be done again; one that failed halfway ends with the line that says so."""
    last = {line["group"]: line for line in lines}
    return {group for group, line in last.items() if not {"failed", "skipped", "stopped"} & line.keys()}


def _quieten() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of MedMNIST's files.")
    parser.add_argument("--pack", type=Path, help="Copy all that is needed into this new folder, and do nothing else.")
    parser.add_argument("--out", type=Path, default=Path("lightning_logs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), help="The first one gets all that follows, too.")
    parser.add_argument("--accelerator", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--precision", default="bf16-mixed", help="That of noise and victims.")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=5000, help="Steps of the noise generator.")
    parser.add_argument("--victim-steps", type=int, default=20000)
    parser.add_argument("--at-once", type=int, default=4, help="Noise and victims that are made at a time.")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), help="Those whose speed is measured.")
    parser.add_argument("--low", nargs="*", default=["16-mixed", "bf16-mixed"], help="Precisions to compare with fp32.")
    parser.add_argument("--batch-size", type=int, default=128, help="That of parity and speed.")
    parser.add_argument("--parity-steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help="Calls per timing.")
    parser.add_argument("--matmul", type=int, default=8192, help="Side of the matrices whose product is the peak.")
    parser.add_argument("--tests", default=True, action=argparse.BooleanOptionalAction)
    return parser.parse_args()


def main() -> None:
    """Do what has not been done, and end with 1 if any of it failed."""
    options, begin = _options(), time.monotonic()
    if options.pack:
        return pack(options.pack, options.data, options.datasets)
    _quieten()
    torch.backends.cudnn.allow_tf32 = False  # what is called fp32 is fp32
    options.device = "cuda" if options.accelerator == "gpu" else "cpu"
    options.out, options.data = options.out.resolve(), options.data.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    file, end, failed = options.out / "results.jsonl", begin + 60 * options.minutes, []
    before = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    done = finished(before)

    def say(line: Line, group: str = "") -> None:
        line = {"group": group or line["part"], "at": round(time.monotonic() - begin, 1), **line}
        failed.extend([line["part"]] if "failed" in line else [])
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    for group, measure in measurements(options):
        if group not in done and time.monotonic() < end:
            try:
                for line in measure():
                    say(line, group)
            except Exception as error:  # one way to make a step faster may not work here: the others are still of use
                traceback.print_exc()
                say({"part": group, "failed": f"{type(error).__name__}: {error}"[:300]})
    context = multiprocessing.get_context("forkserver")  # which loads Lightning once for all
    undone = [job for job in jobs(options.datasets) if job.name not in done]
    run_jobs(undone, options, say, end, lambda job: context.Process(target=perform, args=(job, options)))
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
