"""Interrupted runs, resumed, against uninterrupted ones: the same bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import training_batches, write_fake_npz
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from processes import Patch, after, before, combine, files, final_state, kill_at, record_calls, recorded, run, same

from salm_lightning.callbacks import checkpoint
from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.callbacks.saved import latest_checkpoint
from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.data.base import Batch
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.noise import store
from salm_lightning.release import writer
from salm_lightning.release.parts import Parts
from salm_lightning.runs.victims import RESULTS

INFO = DatasetInfo("tiny", Task.MULTI_CLASS, ("a", "b", "c"), channels=3, size=28)
SAMPLES, BATCH, CHUNK = 100, 20, 32
STEPS, EVERY, VALIDATE = 12, 5, 3
"""An epoch has 5 steps: checkpoints come at the end of one (5, 10), validations within one (3, 6, 9) and at the last step, 12."""


@dataclass
class Runs:
    """A folder with a data file, in which runs are made; uninterrupted ones are made once."""

    folder: Path
    made: set[str] = field(default_factory=set)

    def path(self, name: str) -> Path:
        return self.folder / "lightning_logs" / name

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.0").read_text()

    def calls(self, name: str) -> Path:
        return self.folder / f"{name}.calls"

    def start(self, name: str, args: list[str], patch: Patch | None = None) -> int:
        """Start a run and note its calls; returns the exit code."""
        return self._go(name, [*args, "--run", name], patch)

    def resume(self, name: str, args: list[str], patch: Patch | None = None) -> int:
        """Resume a run; returns the exit code."""
        self.calls(name).unlink(missing_ok=True)
        return self._go(name, [*args, "--ckpt_path", str(self.path(name))], patch)

    def whole(self, kind: str) -> Path:
        """Return the folder of the uninterrupted run of a kind."""
        name = f"whole-{kind}"
        if name not in self.made:
            assert self.start(name, self.args(kind)) == 0, self.log(name)
            self.made.add(name)
        return self.path(name)

    def args(self, kind: str) -> list[str]:
        """Return the command line of a kind of run: ``victim``, ``persistent`` or ``fresh``."""
        model = ["VictimModule"] if kind == "victim" else ["NoiseGeneratorModule", "--model.method", "SALM", "--model.loop", kind,
            "--model.updates_per_visit", "2", "--model.pgd_steps", "2", "--model.last_pass_steps", "2"]  # fmt: skip
        return [
            "fit", "--data", "NpzDataModule", "--data.path", str(self.folder / "tiny.npz"), "--data.batch_size", str(BATCH),
            "--data.chunk_size", str(CHUNK), "--model", *model, "--model.width", "0.125", "--trainer.accelerator", "cpu",
            "--trainer.default_root_dir", str(self.folder), "--trainer.max_steps", str(STEPS), "--trainer.log_every_n_steps", "4",
            "--trainer.val_check_interval", str(VALIDATE), "--trainer.callbacks", "RunCheckpoint",
            "--trainer.callbacks.every_n_steps", str(EVERY),
        ]  # fmt: skip

    def _go(self, name: str, args: list[str], patch: Patch | None) -> int:
        noted = record_calls(self.calls(name))
        (code,) = run(args, self.folder / name, patch=noted if patch is None else combine(noted, patch))
        return code


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("resume")
    write_fake_npz(folder / "tiny.npz", INFO, (SAMPLES, 12, 16))
    return Runs(folder)


class Linear(LightningModule):
    """A model of two lines, which notes what it is trained and validated on."""

    def __init__(self, manual: bool) -> None:
        super().__init__()
        self.automatic_optimization = not manual
        self.layer = torch.nn.Linear(3 * 28 * 28, 3)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []
        self.stop_after = -1
        self.stop_by = signal.SIGTERM

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trained.append((self.global_step, batch.indices.tolist()))
        if self.global_step + 1 == self.stop_after:
            os.kill(os.getpid(), self.stop_by)
        loss = torch.nn.functional.cross_entropy(self.layer(batch.images.flatten(1)), batch.labels)
        self.log("loss", loss)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.validated.append(self.global_step)


def fit_linear(
    folder: Path, module: Linear, data: Path, resume: bool = False, validate: int = VALIDATE, batch_size: int = BATCH
) -> int:
    """Train; returns the exit code."""
    trainer = Trainer(
        accelerator="cpu", max_steps=STEPS, max_epochs=-1, check_val_every_n_epoch=None, val_check_interval=validate,
        num_sanity_val_steps=0, default_root_dir=folder, logger=False, callbacks=[RunCheckpoint(1000)],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    path = latest_checkpoint(folder / "checkpoints") if resume else None
    try:
        trainer.fit(module, datamodule=NpzDataModule(data, batch_size=batch_size), ckpt_path=path, weights_only=True)
    except SIGTERMException as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("manual", [False, True])
def test_sigterm_at_any_step_repeats_and_skips_neither_a_batch_nor_a_validation(runs: Runs, tmp_path: Path, manual: bool) -> None:
    whole = Linear(manual)
    assert fit_linear(tmp_path / "whole", whole, runs.folder / "tiny.npz") == 0
    assert [step for step, _ in whole.trained] == list(range(STEPS))
    assert whole.validated == [3, 6, 9, 12]
    for stop in range(1, STEPS):
        folder = tmp_path / f"stopped-{stop}"
        first, second = Linear(manual), Linear(manual)
        first.stop_after = stop
        assert fit_linear(folder, first, runs.folder / "tiny.npz") == 143
        assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"step={stop}.ckpt"]
        assert fit_linear(folder, second, runs.folder / "tiny.npz", resume=True) == 0
        assert first.trained + second.trained == whole.trained, stop
        assert first.validated + second.validated == whole.validated, stop
        assert same(second.state_dict(), whole.state_dict()), stop


@pytest.mark.parametrize("validate", [1, 5])
def test_stopped_after_every_step(runs: Runs, tmp_path: Path, validate: int) -> None:
    whole, trained, validated = Linear(manual=True), [], []
    assert fit_linear(tmp_path / "whole", whole, runs.folder / "tiny.npz", validate=validate) == 0
    for step in range(1, STEPS + 1):
        part = Linear(manual=True)
        part.stop_after = step
        assert fit_linear(tmp_path / "parts", part, runs.folder / "tiny.npz", resume=step > 1, validate=validate) == 143
        trained += part.trained
        validated += part.validated
    assert trained == whole.trained
    assert validated == whole.validated
    assert same(part.state_dict(), whole.state_dict())


@pytest.mark.timeout(60)
@pytest.mark.parametrize("batch_size", [10, 50, 100])
def test_resumed_with_another_batch_size_goes_on_at_the_next_epoch(runs: Runs, tmp_path: Path, batch_size: int) -> None:
    first, second = Linear(manual=True), Linear(manual=True)
    first.stop_after = 4
    assert fit_linear(tmp_path, first, runs.folder / "tiny.npz") == 143
    assert fit_linear(tmp_path, second, runs.folder / "tiny.npz", resume=True, batch_size=batch_size) == 0
    assert [step for step, _ in second.trained] == list(range(4, STEPS))
    order = training_batches(NpzDataModule(runs.folder / "tiny.npz", batch_size=batch_size), 2 * SAMPLES // batch_size)
    of_next_epoch = [indices.tolist() for _, _, indices in order][SAMPLES // batch_size :]
    assert [indices for _, indices in second.trained][: len(of_next_epoch)] == of_next_epoch[: STEPS - 4]


def test_ctrl_c_is_saved_like_sigterm(runs: Runs, tmp_path: Path) -> None:
    module, handlers = Linear(manual=True), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    module.stop_after, module.stop_by = 4, signal.SIGINT
    assert fit_linear(tmp_path, module, runs.folder / "tiny.npz") == 130
    assert files(tmp_path) == {"checkpoints/step=4.ckpt"}
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


# Where a run is struck: calls are counted from 1 ------------------------------------------------------------------------------


def at_step(count: int, number: signal.Signals = signal.SIGKILL) -> Patch:
    def patch(rank: int) -> None:
        strike = kill_at(count, number)
        for module in (NoiseGeneratorModule, VictimModule):
            before(module, "training_step", strike)

    return patch


def between_optimizer_and_noise(rank: int) -> None:
    """In step 8, when the source model has moved and the noise is not stored yet."""
    after(torch.optim.SGD, "step", kill_at(8))


def in_snapshot(rank: int) -> None:
    """In the second checkpoint, when one of the two files of its noise stands."""
    after(store, "_save_array", kill_at(3))


def before_rename(rank: int) -> None:
    """In the second checkpoint, when it is written under its temporary name."""
    after(checkpoint, "seal", kill_at(2))


def before_clearing(rank: int) -> None:
    """When the second checkpoint stands beside the first."""
    before(checkpoint, "clear_checkpoints", kill_at(4))


def at_end_of_training(rank: int) -> None:
    """When the final checkpoint stands."""
    after(RunCheckpoint, "on_train_end", kill_at(1))


def at_chunk(count: int, number: signal.Signals = signal.SIGKILL) -> Patch:
    """In the last pass, when so many chunks are stored."""
    return lambda rank: after(Parts, "save", kill_at(count, number))


def in_archive(rank: int) -> None:
    """In the release, when two of its six arrays are written."""
    after(writer, "write_array", kill_at(2))


def before_publishing(rank: int) -> None:
    """When the release is complete under its temporary name."""
    before(writer, "_publish", kill_at(1))


@pytest.mark.parametrize(
    ("kind", "patch", "exit_code", "stands", "chunks"),
    [
        # the step that stands, and the chunks that the resumed run has to make
        pytest.param("persistent", at_step(8, signal.SIGTERM), 143, 8, 4, id="SIGTERM"),
        pytest.param("fresh", at_step(6, signal.SIGTERM), 143, 6, 4, id="fresh-SIGTERM"),
        pytest.param("persistent", at_step(12, signal.SIGTERM), 143, 12, 4, id="SIGTERM-in-last-step", marks=pytest.mark.slow),
        pytest.param("fresh", at_step(8), -9, 5, 4, id="fresh-step", marks=pytest.mark.slow),
        pytest.param("persistent", between_optimizer_and_noise, -9, 5, 4, id="within-a-step"),
        pytest.param("persistent", in_snapshot, -9, 5, 4, id="in-snapshot"),
        pytest.param("persistent", before_rename, -9, 5, 4, id="in-checkpoint"),
        pytest.param("persistent", before_clearing, -9, 10, 4, id="before-clearing", marks=pytest.mark.slow),
        pytest.param("persistent", at_end_of_training, -9, 12, 4, id="end-of-training", marks=pytest.mark.slow),
        pytest.param("persistent", at_chunk(3), -9, 12, 1, id="last-pass"),
        pytest.param("fresh", at_chunk(1, signal.SIGTERM), 143, 12, 3, id="fresh-last-pass-SIGTERM"),
        pytest.param("fresh", in_archive, -9, 12, 0, id="in-release"),
        pytest.param("persistent", before_publishing, -9, 12, 0, id="before-publishing", marks=pytest.mark.slow),
    ],
)
def test_interrupted_generator_equals_an_uninterrupted_one(
    runs: Runs, request: pytest.FixtureRequest, kind: str, patch: Patch, exit_code: int, stands: int, chunks: int
) -> None:
    whole, name = runs.whole(kind), request.node.callspec.id
    folder = runs.path(name)
    assert runs.start(name, runs.args(kind), patch) == exit_code, runs.log(name)
    assert f"checkpoints/step={stands}.ckpt" in files(folder)
    assert not (folder / "protected").exists()
    assert ("the state is saved" in runs.log(name)) == (exit_code == 143)
    assert runs.resume(name, runs.args(kind)) == 0, runs.log(name)
    assert [step for _, step, _ in recorded(runs.calls(name), "train")] == list(range(stands, STEPS))
    assert len(recorded(runs.calls(name), "chunk")) == chunks
    assert_same_end(folder, whole)
    assert_same_release(folder, whole)
    assert run_files(folder) == GENERATOR_FILES[kind]


@pytest.mark.parametrize(
    ("patch", "exit_code", "stands"),
    [
        pytest.param(at_step(6, signal.SIGTERM), 143, 6, id="victim-SIGTERM-at-validation"),
        pytest.param(at_step(8), -9, 5, id="victim-step"),
        pytest.param(before_rename, -9, 5, id="victim-in-checkpoint", marks=pytest.mark.slow),
        pytest.param(at_end_of_training, -9, 12, id="victim-end-of-training"),
    ],
)
def test_interrupted_victim_equals_an_uninterrupted_one(
    runs: Runs, request: pytest.FixtureRequest, patch: Patch, exit_code: int, stands: int
) -> None:
    whole, name = runs.whole("victim"), request.node.callspec.id
    folder = runs.path(name)
    assert runs.start(name, runs.args("victim"), patch) == exit_code, runs.log(name)
    assert f"checkpoints/step={stands}.ckpt" in files(folder)
    assert not (folder / RESULTS).exists()
    validated = [step for _, step in recorded(runs.calls(name), "val") if step <= stands]
    assert runs.resume(name, runs.args("victim")) == 0, runs.log(name)
    assert [step for _, step, _ in recorded(runs.calls(name), "train")] == list(range(stands, STEPS))
    validated += [step for _, step in recorded(runs.calls(name), "val")]
    assert validated == [3, 6, 9, 12]
    assert_same_end(folder, whole)
    assert (folder / RESULTS).read_bytes() == (whole / RESULTS).read_bytes()
    assert run_files(folder) == {"config.yaml", "checkpoints/step=12.ckpt", RESULTS}
    assert json.loads((whole / RESULTS).read_text())["history"]["last"]["step"] == STEPS


@pytest.mark.parametrize("strike", [at_step(12, signal.SIGTERM), at_end_of_training], ids=["SIGTERM", "killed"])
def test_the_final_model_is_validated_once_over_an_interruption(
    runs: Runs, request: pytest.FixtureRequest, strike: Patch
) -> None:
    name, args = request.node.callspec.id + "-at-the-end", [*runs.args("victim"), "--trainer.val_check_interval", "5"]
    assert runs.start(name, args, strike) in (143, -9), runs.log(name)
    assert [step for _, step in recorded(runs.calls(name), "val")] == [5, 10, 12]
    assert runs.resume(name, args) == 0, runs.log(name)
    assert not recorded(runs.calls(name), "val")
    results = json.loads((runs.path(name) / RESULTS).read_text())
    assert results["history"]["last"]["step"] == results["steps"] == STEPS
    assert results["history"]["last"]["acc"] == results["test"]["acc"]


def test_killed_between_publishing_and_cleaning_up(runs: Runs) -> None:
    whole, name, args = runs.whole("fresh"), "published", runs.args("fresh")
    folder = runs.path(name)
    assert runs.start(name, args, lambda rank: before(Parts, "remove", kill_at(1))) == -9, runs.log(name)
    assert any((folder / ".protected.parts").rglob("chunk-*.npy"))
    archive, manifest = folder / "protected" / "tiny.npz", folder / "protected" / "manifest.json"
    published = archive.stat()

    # a release that is not the one that was announced, and a resumed run that is to make another one
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed": 0', '"seed": 1'))
    assert runs.resume(name, args) == 2
    assert "protected exists" in runs.log(name)
    manifest.write_text(text)
    assert runs.resume(name, [*args, "--trainer.max_steps", str(STEPS + 1)]) == 2
    assert "protected exists" in runs.log(name)
    assert not recorded(runs.calls(name), "train")

    def within_the_removal(rank: int) -> None:
        original = shutil.rmtree

        def strike(path: Path, **kwargs: object) -> None:
            original(path, **kwargs)  # type: ignore[arg-type]
            if Path(path).parent.name == ".protected.parts":
                os.kill(os.getpid(), signal.SIGKILL)

        shutil.rmtree = strike  # type: ignore[assignment]

    assert runs.resume(name, args, within_the_removal) == -9, runs.log(name)
    assert not any((folder / ".protected.parts").rglob("chunk-*.npy"))
    assert runs.resume(name, args) == 0, runs.log(name)
    assert not recorded(runs.calls(name), "train")
    assert not recorded(runs.calls(name), "chunk")
    assert "Protected dataset:" in runs.log(name)
    assert (archive.stat().st_ino, archive.stat().st_mtime_ns) == (published.st_ino, published.st_mtime_ns)
    assert_same_release(folder, whole)
    assert run_files(folder) == GENERATOR_FILES["fresh"]


def test_command_line_exits_143_on_sigterm_and_writes_no_release(runs: Runs) -> None:
    whole, name = runs.whole("persistent"), "command"
    command = [sys.executable, "-m", "salm_lightning", *runs.args("persistent"), "--run", name]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if line.startswith(f"step {VALIDATE}/"):
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 143, "".join(seen)
    (stands,) = (runs.path(name) / "checkpoints").glob("*.ckpt")
    assert VALIDATE < int(stands.stem.partition("=")[2]) < STEPS
    assert not (runs.path(name) / "protected").exists()
    assert runs.resume(name, runs.args("persistent")) == 0, runs.log(name)
    assert_same_end(runs.path(name), whole)
    assert_same_release(runs.path(name), whole)


def test_killed_before_the_first_checkpoint_says_so(runs: Runs) -> None:
    assert runs.start("early", runs.args("persistent"), at_step(2)) == -9
    assert runs.resume("early", runs.args("persistent")) == 2
    assert f"--ckpt_path {runs.path('early')} is a folder without checkpoints" in runs.log("early")


@pytest.mark.parametrize(("damage", "message"), [("delete", "is missing"), ("change", "SHA-256 differs")])
def test_a_damaged_snapshot_is_refused(runs: Runs, damage: str, message: str) -> None:
    whole = runs.whole("persistent")
    copy = shutil.copytree(whole, runs.path(f"damaged-{damage}"), ignore=shutil.ignore_patterns("protected"))
    (noise,) = copy.rglob("rank=0.noise.npy")
    if damage == "delete":
        noise.unlink()
    else:
        noise.write_bytes(noise.read_bytes()[:-1] + b"x")
    assert runs.resume(copy.name, runs.args("persistent")) == 2
    assert message in runs.log(copy.name)


@pytest.mark.parametrize("kind", ["victim", "persistent"])
@pytest.mark.parametrize("change", ["labels", "images"])
def test_other_images_or_labels_are_refused(runs: Runs, tmp_path: Path, kind: str, change: str) -> None:
    copy = shutil.copytree(runs.whole(kind), runs.path(f"other-{change}-{kind}"), ignore=shutil.ignore_patterns("protected"))
    with np.load(runs.folder / "tiny.npz") as archive:
        arrays = dict(archive)
    changed = 2 - arrays["train_labels"] if change == "labels" else 255 - arrays["train_images"]
    np.savez(tmp_path / "tiny.npz", **(arrays | {f"train_{change}": changed}))
    args = [*runs.args(kind), "--data.path", str(tmp_path / "tiny.npz"), "--trainer.max_steps", "14"]
    assert runs.resume(copy.name, args) == 2
    assert "was trained on other images than" in runs.log(copy.name)
    assert not recorded(runs.calls(copy.name), "train")


def damage(path: Path) -> None:
    """Change one byte in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("part", ["step=10.ckpt", "noise/step=10/rank=0.noise.npy"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(runs: Runs, part: str) -> None:
    whole, name = runs.whole("persistent"), f"damaged-newest-{len(Path(part).parts)}"
    assert runs.start(name, runs.args("persistent"), at_step(12)) == -9
    saved = runs.path(name) / "checkpoints"
    assert {path.name for path in saved.glob("*.ckpt")} == {"step=5.ckpt", "step=10.ckpt"}
    damage(saved / part)
    assert runs.resume(name, runs.args("persistent")) == 0, runs.log(name)
    assert "goes on from step=5.ckpt, the one before" in runs.log(name)
    assert [step for _, step, _ in recorded(runs.calls(name), "train")] == list(range(5, STEPS))
    assert_same_end(runs.path(name), whole)
    assert_same_release(runs.path(name), whole)
    assert run_files(runs.path(name)) == GENERATOR_FILES["persistent"]


def test_a_damaged_checkpoint_without_another_is_refused(runs: Runs) -> None:
    whole = runs.whole("fresh")
    copy = shutil.copytree(whole, runs.path("damaged-only"), ignore=shutil.ignore_patterns("protected"))
    (path,) = (copy / "checkpoints").glob("*.ckpt")
    damage(path)
    for given in (copy, path):
        runs._go(copy.name, [*runs.args("fresh"), "--ckpt_path", str(given)], None)
        assert f"{path} is damaged" in runs.log(copy.name)
        assert "Traceback" not in runs.log(copy.name)
    assert not (copy / "protected").exists()


def run_files(folder: Path) -> set[str]:
    """Return the files of a run but for its logs and locks."""
    return {name for name in files(folder) if not re.search(r"tfevents|^hparams\.yaml$|\.lock$", name)}


RELEASE = {"protected/tiny.npz", "protected/manifest.json", "protected/datamodule.yaml", ".protected.parts/announced"}
SNAPSHOT = {f"checkpoints/noise/step={STEPS}/rank=0.{part}.npy" for part in ("noise", "indices")}
GENERATOR_FILES = {
    "fresh": {"config.yaml", f"checkpoints/step={STEPS}.ckpt"} | RELEASE,
    "persistent": {"config.yaml", f"checkpoints/step={STEPS}.ckpt"} | RELEASE | SNAPSHOT,
}
"""What a run leaves: one checkpoint, its snapshot, the release and what tells which checkpoint it is of; nothing older or unfinished."""


@pytest.mark.parametrize("kind", ["persistent", "fresh"])
def test_a_run_leaves_exactly_these_files(runs: Runs, kind: str) -> None:
    assert run_files(runs.whole(kind)) == GENERATOR_FILES[kind]


def assert_same_release(found: Path, expected: Path) -> None:
    for name in ("tiny.npz", "manifest.json"):
        assert (found / "protected" / name).read_bytes() == (expected / "protected" / name).read_bytes(), name


def assert_same_end(found: Path, expected: Path) -> None:
    """Weights, optimiser, schedule, noise, results, progress and loader in the final checkpoints are equal, bit by bit."""
    left, right = final_state(found), final_state(expected)
    for state in (left, right):
        # Lightning counts an epoch less when it resumes from the last batch of one, and counts a step for the loggers only after its
        # validation; nothing here depends on these numbers.
        del state["epoch"], state["loops"]["fit_loop"]["epoch_progress"], state["loops"]["fit_loop"]["epoch_loop.state_dict"]
    assert left.keys() == right.keys()
    for key in left:
        assert same(left[key], right[key]), key
