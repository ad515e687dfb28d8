"""Two processes against one: the same bytes, every sample once, and noise that stays with its owner."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import write_fake_npz
from processes import (
    Patch,
    after,
    before,
    combine,
    files,
    final_state,
    kill_at,
    noise_by_index,
    record_calls,
    recorded,
    run,
    same,
)

from salm_lightning.data import DatasetInfo, NpzDataModule, Task
from salm_lightning.main import main
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.release.parts import Parts
from salm_lightning.runs.victims import RESULTS

INFO = DatasetInfo("tiny", Task.MULTI_CLASS, ("a", "b", "c"), channels=3, size=28)
TRAIN, VAL, TEST = 150, 13, 17
BATCH, CHUNK, STEPS = 30, 64, 10
"""Chunks of 64, 64 and 22 images; an epoch of 5 steps; splits that two ranks cannot share evenly."""


def arguments(folder: Path, subcommand: str, model: str, chunk: int = CHUNK) -> list[str]:
    fit = ["--trainer.max_steps", str(STEPS), "--trainer.val_check_interval", "5", "--trainer.log_every_n_steps", "5",
           "--trainer.callbacks", "RunCheckpoint", "--trainer.callbacks.every_n_steps", "4"]  # fmt: skip
    generator = ["--model.method", "SALM", "--model.updates_per_visit", "1", "--model.last_pass_steps", "2"]
    return [
        subcommand, "--data", "NpzDataModule", "--data.path", str(folder / "tiny.npz"), "--data.batch_size", str(BATCH),
        "--data.chunk_size", str(chunk), "--model", model, "--model.width", "0.125", "--trainer.accelerator", "cpu",
        "--trainer.default_root_dir", str(folder), *(generator if model == "NoiseGeneratorModule" else []),
        *(fit if subcommand == "fit" else []),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    write_fake_npz(folder / "tiny.npz", INFO, (TRAIN, VAL, TEST))
    return folder


@pytest.fixture(scope="module")
def pair(folder: Path) -> Path:
    """A persistent generator trained, and released, by two processes."""
    patch = combine(record_calls(folder / "pair.calls"), keep_models(folder))
    codes = run([*arguments(folder, "fit", "NoiseGeneratorModule"), "--run", "pair"], folder / "pair", ranks=2, patch=patch)
    assert codes == [0, 0], logs(folder / "pair")
    return folder / "lightning_logs" / "pair"


def keep_models(folder: Path) -> Patch:
    """Save each rank's source model after each step of training."""

    def patch(rank: int) -> None:
        def save(module: NoiseGeneratorModule) -> None:
            torch.save(module.source.state_dict(), folder / f"step={module.global_step}.{rank}.pt")

        with_module("training_step", save)

    return patch


def with_module(name: str, action: Callable[[NoiseGeneratorModule], None]) -> None:
    """Make a hook of the generator call ``action`` last."""
    original = getattr(NoiseGeneratorModule, name)

    def changed(self: NoiseGeneratorModule, *args: Any) -> None:
        original(self, *args)
        action(self)

    setattr(NoiseGeneratorModule, name, changed)


def logs(stem: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(stem.parent.glob(f"{stem.name}.[0-9]")))


def shards(folder: Path) -> list[set[int]]:
    data = NpzDataModule(folder / "tiny.npz")
    return [set(data.shard(rank, 2).tolist()) for rank in (0, 1)]


def test_noise_stays_on_its_owner_and_covers_every_sample(folder: Path, pair: Path) -> None:
    owned = shards(folder)
    assert owned[0] | owned[1] == set(range(TRAIN))
    assert not owned[0] & owned[1]
    for rank, _, indices in recorded(folder / "pair.calls", "train"):
        assert set(indices) <= owned[rank]
        assert len(indices) == BATCH // 2
    snapshot = pair / "checkpoints" / "noise" / f"step={STEPS}"
    for rank in (0, 1):
        assert set(np.load(snapshot / f"rank={rank}.indices.npy").tolist()) == owned[rank]
    noise = noise_by_index(snapshot)
    assert sorted(noise) == list(range(TRAIN))
    assert len(set(noise.values())) == TRAIN


def test_ranks_have_one_source_model_with_one_set_of_statistics(folder: Path, pair: Path) -> None:
    states = {
        (step, rank): torch.load(folder / f"step={step}.{rank}.pt", weights_only=True)
        for step in range(1, STEPS + 1)
        for rank in (0, 1)
    }
    for step in range(1, STEPS + 1):
        assert same(states[step, 0], states[step, 1]), step
    assert not any(torch.equal(states[1, 0][name], states[2, 0][name]) for name in states[1, 0])
    saved = final_state(pair)["state_dict"]
    assert all(torch.equal(saved[f"source.{name}"], value) for name, value in states[STEPS, 1].items())


def test_two_processes_leave_these_files_and_a_release_that_verifies(folder: Path, pair: Path) -> None:
    snapshot = {f"checkpoints/noise/step={STEPS}/rank={rank}.{part}.npy" for rank in (0, 1) for part in ("noise", "indices")}
    release = {".protected.parts/announced", *(f"protected/{name}" for name in ("tiny.npz", "manifest.json", "datamodule.yaml"))}
    found = {name for name in files(pair) if "tfevents" not in name and name != "hparams.yaml" and not name.endswith(".lock")}
    assert found == {"config.yaml", f"checkpoints/step={STEPS}.ckpt"} | snapshot | release
    chunks = recorded(folder / "pair.calls", "chunk")
    assert sorted((indices[0] // CHUNK, rank) for rank, _, indices in chunks) == [(0, 0), (1, 1), (2, 0)]
    assert main(["verify", str(pair / "protected"), "--source", str(folder / "tiny.npz")]) == 0


def test_last_pass_of_one_and_of_two_processes_gives_the_same_bytes(folder: Path, pair: Path) -> None:
    args = [*arguments(folder, "predict", "NoiseGeneratorModule"), "--ckpt_path", str(pair)]
    assert run([*args, "--release", str(folder / "single")], folder / "single-log") == [0], logs(folder / "single-log")
    for name in ("tiny.npz", "manifest.json"):
        assert (folder / "single" / name).read_bytes() == (pair / "protected" / name).read_bytes(), name


def test_a_rank_without_a_chunk_waits_for_the_others(folder: Path, pair: Path) -> None:
    args = [*arguments(folder, "predict", "NoiseGeneratorModule", chunk=TRAIN), "--ckpt_path", str(pair)]
    args += ["--release", str(folder / "one-chunk")]
    calls = folder / "one-chunk.calls"
    assert run(args, folder / "one-chunk-log", ranks=2, patch=record_calls(calls)) == [0, 0], logs(folder / "one-chunk-log")
    assert [rank for rank, _, _ in recorded(calls, "chunk")] == [0]
    assert main(["verify", str(folder / "one-chunk"), "--source", str(folder / "tiny.npz")]) == 0


def test_sigterm_to_one_rank_stops_both_and_the_resumed_pair_equals_the_uninterrupted_one(folder: Path, pair: Path) -> None:
    args, run_folder = arguments(folder, "fit", "NoiseGeneratorModule"), folder / "lightning_logs" / "stopped"

    def patch(rank: int) -> None:
        if rank == 1:
            before(NoiseGeneratorModule, "training_step", kill_at(6, signal.SIGTERM))

    assert run([*args, "--run", "stopped"], folder / "stopped", ranks=2, patch=patch) == [143, 143], logs(folder / "stopped")
    assert "checkpoints/step=6.ckpt" in files(run_folder)
    calls = folder / "resumed.calls"
    codes = run([*args, "--ckpt_path", str(run_folder)], folder / "resumed", ranks=2, patch=record_calls(calls))
    assert codes == [0, 0], logs(folder / "resumed")
    whole = recorded(folder / "pair.calls", "train")
    assert sorted(recorded(calls, "train")) == sorted(call for call in whole if call[1] >= 6)
    left, right = final_state(run_folder), final_state(pair)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "noise"):
        assert same(left[key], right[key]), key
    for name in ("tiny.npz", "manifest.json"):
        assert (run_folder / "protected" / name).read_bytes() == (pair / "protected" / name).read_bytes(), name


@pytest.mark.slow
def test_sigterm_to_the_launching_process_stops_the_launched_one(folder: Path, pair: Path) -> None:
    fit = arguments(folder, "fit", "NoiseGeneratorModule")
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    run_folder = folder / "lightning_logs" / "launched"
    codes = []
    for rest, stop in ((["--run", "launched"], True), (["--ckpt_path", str(run_folder)], False)):
        command = [sys.executable, "-m", "salm_lightning", *fit, *ddp, *rest]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
            assert process.stdout is not None
            for line in process.stdout:  # ends when both processes have closed it
                if stop and line.startswith("step 5/"):
                    process.send_signal(signal.SIGTERM)
            codes.append(process.wait())
    assert codes == [143, 0]
    assert (run_folder / "protected" / "tiny.npz").read_bytes() == (pair / "protected" / "tiny.npz").read_bytes()


@pytest.mark.slow
def test_killed_in_the_last_pass_of_two_a_single_process_makes_the_missing_chunks(folder: Path, pair: Path) -> None:
    args, out = [*arguments(folder, "predict", "NoiseGeneratorModule"), "--ckpt_path", str(pair)], folder / "cut"

    def patch(rank: int) -> None:
        after(Parts, "save", kill_at(1, signal.SIGTERM))

    codes = run([*args, "--release", str(out)], folder / "cut-log", ranks=2, patch=patch)
    assert codes[0] == 143, logs(folder / "cut-log")
    assert not out.exists()
    calls = folder / "cut.calls"
    assert run([*args, "--release", str(out)], folder / "cut-log", patch=record_calls(calls)) == [0], logs(folder / "cut-log")
    assert [indices[0] // CHUNK for _, _, indices in recorded(calls, "chunk")] == [2]
    assert (out / "tiny.npz").read_bytes() == (pair / "protected" / "tiny.npz").read_bytes()


def test_a_pair_goes_on_as_a_single_process(folder: Path, pair: Path) -> None:
    args, run_folder = arguments(folder, "fit", "NoiseGeneratorModule"), folder / "lightning_logs" / "shrunk"

    def stop(rank: int) -> None:
        before(NoiseGeneratorModule, "training_step", kill_at(7))

    def keep_noise(rank: int) -> None:
        def save(module: NoiseGeneratorModule) -> None:
            assert module.noise.store is not None
            np.save(folder / "taken-over.npy", module.noise.store._noise.numpy())

        with_module("on_train_start", save)

    assert run([*args, "--run", "shrunk"], folder / "shrunk", ranks=2, patch=stop) == [-9, -9], logs(folder / "shrunk")
    saved = noise_by_index(run_folder / "checkpoints" / "noise" / "step=4")
    calls = folder / "shrunk.calls"
    codes = run([*args, "--ckpt_path", str(run_folder)], folder / "shrunk", patch=combine(record_calls(calls), keep_noise))
    assert codes == [0], logs(folder / "shrunk")
    taken = np.load(folder / "taken-over.npy")
    assert len(saved) == 4 * BATCH
    assert all(taken[index].tobytes() == noise for index, noise in saved.items())
    trained = recorded(calls, "train")
    assert [step for _, step, _ in trained] == list(range(4, STEPS))
    # another number of ranks begins at the boundary of an epoch
    assert sorted(index for _, _, indices in trained[:5] for index in indices) == list(range(TRAIN))
    assert files(run_folder / "checkpoints") == {
        f"step={STEPS}.ckpt", f"noise/step={STEPS}/rank=0.noise.npy", f"noise/step={STEPS}/rank=0.indices.npy"
    }  # fmt: skip
    assert main(["verify", str(run_folder / "protected"), "--source", str(folder / "tiny.npz")]) == 0


def test_predictions_of_two_processes_are_written_once_and_in_order(folder: Path) -> None:
    fit = [*arguments(folder, "fit", "VictimModule"), "--run", "predicted", "--trainer.val_check_interval", "4"]
    assert run(fit, folder / "predicted", ranks=2) == [0, 0], logs(folder / "predicted")
    run_folder = folder / "lightning_logs" / "predicted"
    results = json.loads((run_folder / RESULTS).read_text())
    last = results["history"]["last"]  # all ranks measure the model that the checkpoint holds
    assert (last["step"], last["acc"], last["auc"]) == (STEPS, results["test"]["acc"], results["test"]["auc"])

    found = {}
    for ranks in (1, 2):
        batches = ["--data.batch_size", "8"]  # two ranks take 4 at a time: not in the order of the indices
        args = [*arguments(folder, "predict", "VictimModule"), *batches, "--ckpt_path", str(run_folder)]
        assert run(args, folder / f"predict-{ranks}", ranks) == [0] * ranks, logs(folder / f"predict-{ranks}")
        assert logs(folder / f"predict-{ranks}").count("Predictions on the test split") == 1
        with np.load(run_folder / "predictions.npz", allow_pickle=False) as archive:
            found[ranks] = dict(archive)
        (run_folder / "predictions.npz").unlink()
    with np.load(folder / "tiny.npz", allow_pickle=False) as archive:
        labels = archive["test_labels"][:, 0]
    for arrays in found.values():
        np.testing.assert_array_equal(arrays["indices"], np.arange(TEST))
        np.testing.assert_array_equal(arrays["labels"], labels)
        np.testing.assert_allclose(arrays["probabilities"], found[1]["probabilities"], atol=1e-5)
    assert (found[2]["probabilities"].argmax(axis=1) == labels).mean() == pytest.approx(results["test"]["acc"])


def test_metrics_of_two_processes_count_each_sample_once(folder: Path) -> None:
    fit = [*arguments(folder, "fit", "VictimModule"), "--run", "victim"]
    assert run(fit, folder / "victim") == [0], logs(folder / "victim")
    results = {}
    for ranks in (1, 2):
        args = [*arguments(folder, "test", "VictimModule"), "--ckpt_path", str(folder / "lightning_logs" / "victim")]
        (folder / "lightning_logs" / "victim" / RESULTS).unlink()
        assert run(args, folder / f"test-{ranks}", ranks) == [0] * ranks, logs(folder / f"test-{ranks}")
        results[ranks] = json.loads((folder / "lightning_logs" / "victim" / RESULTS).read_text())["test"]
    assert np.sum(results[1]["confusion"]) == TEST
    assert results[1] == results[2]
