"""``salm-cli``: the command line, and the only place that knows the commands."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from salm_lightning import commands
from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint, latest_checkpoint
from salm_lightning.config_files import is_given, resolve_paths
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import ConfigurationError, OutputExistsError, SalmError
from salm_lightning.generation import generate
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.modules.run_folder import checkpoint_folder, run_folder
from salm_lightning.parser import SalmArgumentParser
from salm_lightning.release import check_destination
from salm_lightning.summary import print_release, print_victim, save_predictions

FROM_DATA = ("num_classes", "channels", "image_size", "task")
"""Arguments of a module that the command line takes from the data."""
INTERRUPTED = 128 + 15
"""Exit code of a run that saved its state on SIGTERM, as a shell reports it."""

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_steps": 5000,
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "val_check_interval": 250,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,
}
"""Training is counted in steps, as in the paper; the loaders shard by themselves."""


class SalmCLI(LightningCLI):
    """LightningCLI over the two modules and all DataModules."""

    def __init__(self, args: Sequence[str]) -> None:
        self._args = args
        super().__init__(
            LightningModule,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=SalmArgumentParser,
            parser_kwargs={"prog": "salm-cli", "description": commands.overview()},
            save_config_kwargs={"overwrite": True},
            args=list(args),
        )

    # Parsing ------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the Trainer's subcommands with the arguments that the command line settles itself."""
        return {name: skipped | {"weights_only", "return_predictions"} for name, skipped in LightningCLI.subcommands().items()}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the one seed that settles everything."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, shards, batches and every draw.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and place, and hand the data's facts and the seed to the module."""
        parser.add_argument("--run", type=str | None, default=None, help="Folder name under lightning_logs; version_N by default.")
        parser.add_argument(
            "--release", type=str | None, default=None, help="Where the protected dataset goes; <run>/protected by default."
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace a run or a release that stands there.")
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        """Let the command line win over a checkpoint; the modules compare the settings and say what differs."""

    # Building -----------------------------------------------------------------------------------------------------------------

    def before_instantiate_classes(self) -> None:
        """Refuse values that the data settles, and a run's folder that is in use."""
        for name in FROM_DATA:
            if is_given(self._args, "model", name):
                raise ConfigurationError(f"model.{name} cannot be set: it is taken from the data. Remove it, or choose other data.")
        folder = self._run_path()
        if folder is not None and not self._resumes() and self.subcommand == "fit" and folder.is_dir() and any(folder.iterdir()):
            if not self._get(self.config, "overwrite"):
                raise OutputExistsError(
                    f"run={folder.name}: {folder} is in use. Go on with --ckpt_path {folder}, choose another --run, or replace it "
                    "with --overwrite true."
                )
            _clear_run(folder)

    def _resumes(self) -> bool:
        return bool(self._get(self.config, "ckpt_path"))

    def _run_path(self) -> Path | None:
        """Return the folder of a named or resumed run; ``None`` lets the logger choose the next version."""
        checkpoint, run = self._get(self.config, "ckpt_path"), self._get(self.config, "run")
        if checkpoint and Path(checkpoint).parent.name == "checkpoints":
            return Path(checkpoint).parent.parent
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or ".") / "lightning_logs"
        return root / run if run else None

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        config["callbacks"] = _with_default_callbacks(config, self.model)
        steps, interval = config["max_steps"], config["val_check_interval"]
        if isinstance(interval, int) and 0 < steps < interval:
            config["val_check_interval"] = steps  # else a short run would end without a single validation
        if config["logger"] in (None, True) and not config["fast_dev_run"]:
            folder = self._run_path()
            root = Path(config["default_root_dir"] or ".") / "lightning_logs"
            config["logger"] = TensorBoardLogger(folder.parent if folder else root, name="", version=folder.name if folder else None)
        config["enable_model_summary"] = bool(config["enable_model_summary"])
        return super()._instantiate_trainer(config, callbacks)

    # Running ------------------------------------------------------------------------------------------------------------------

    def before_fit(self) -> None:
        """Look at the data and the place of the release before any long work."""
        self.datamodule.setup("fit")
        if isinstance(self.model, NoiseGeneratorModule) and not self.trainer.fast_dev_run:
            check_destination(self._release_folder(), self._overwrites_release())

    def fit(self, **kwargs: Any) -> None:
        """Train; a method without a source model has nothing to train."""
        if not (isinstance(self.model, NoiseGeneratorModule) and not self.model.method.trains_source):
            self.trainer.fit(**kwargs, weights_only=True)

    def after_fit(self) -> None:
        """Make the release, or measure the victim, and say what to do next."""
        if self.trainer.fast_dev_run:
            return
        if isinstance(self.model, NoiseGeneratorModule):
            self._generate(latest_checkpoint(checkpoint_folder(self.trainer)))
        elif isinstance(self.model, VictimModule):
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Save and show what a victim's test found."""
        if isinstance(self.model, VictimModule) and self.trainer.is_global_zero and not self.trainer.fast_dev_run:
            print_victim(self.model, self.datamodule, run_folder(self.trainer))

    def validate(self, **kwargs: Any) -> None:
        """Measure on the clean validation split."""
        self.trainer.validate(**kwargs, weights_only=True)

    def test(self, **kwargs: Any) -> None:
        """Measure on the clean test split."""
        self.trainer.test(**kwargs, weights_only=True)

    def predict(self, **kwargs: Any) -> None:
        """Make a release from a generator's checkpoint, or write a victim's test predictions."""
        checkpoint = kwargs.get("ckpt_path")
        if isinstance(self.model, NoiseGeneratorModule):
            if checkpoint is None and self.model.method.trains_source:
                raise ConfigurationError("predict needs --ckpt_path: the run (or .ckpt file) whose noise generator makes the release.")
            self._generate(Path(checkpoint) if checkpoint else None)
            return
        self.datamodule.trainer = self.trainer
        batches = self.trainer.predict(self.model, self.datamodule.test_dataloader(), ckpt_path=checkpoint, weights_only=True)
        save_predictions(batches or [], run_folder(self.trainer) / "predictions.npz")

    def _generate(self, checkpoint: Path | None) -> None:
        folder = generate(
            self.trainer, self.model, self.datamodule, self._release_folder(), checkpoint, self._overwrites_release()
        )
        if self.trainer.is_global_zero:
            print_release(folder, run_folder(self.trainer), self.datamodule)

    def _release_folder(self) -> Path:
        chosen = self._get(self.config, "release")
        return Path(chosen) if chosen else run_folder(self.trainer) / "protected"

    def _overwrites_release(self) -> bool:
        return bool(self._get(self.config, "overwrite"))


def _with_default_callbacks(config: dict[str, Any], model: LightningModule) -> list[Callback]:
    """Return the configured callbacks and those that every run has unless one of their kind is configured."""
    given = config["callbacks"] or []
    callbacks: list[Callback] = list(given) if isinstance(given, list) else [given]
    defaults: list[tuple[type, Any]] = [(Throughput, Throughput)]
    if isinstance(model, NoiseGeneratorModule):
        defaults.append((NoisePictures, NoisePictures))
    if config["enable_checkpointing"] is not False:
        defaults.append((Checkpoint, RunCheckpoint))
    if config["enable_progress_bar"] is not False:
        defaults.append((ProgressBar, progress_bar))
    return callbacks + [build() for kind, build in defaults if not any(isinstance(callback, kind) for callback in callbacks)]


def _clear_run(folder: Path) -> None:
    """Remove a run that is to be replaced; only what looks like one."""
    if not (folder / "config.yaml").is_file():
        raise OutputExistsError(f"{folder} does not look like a run (it has no config.yaml) and is left alone; choose another --run.")
    shutil.rmtree(folder)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``salm-cli``.

    Args:
        args: Command-line arguments; ``None`` takes them from the process.

    Returns:
        Exit code: 0 on success, 1 when ``verify`` finds a fault, 2 for a user's mistake, 130 after Ctrl-C, 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    torch.set_float32_matmul_precision("high")
    try:
        resolved = resolve_paths(arguments)
        if resolved and resolved[0] in commands.COMMANDS:
            return commands.run(resolved[0], resolved[1:])
        SalmCLI(resolved)
    except SalmError as error:
        sys.stderr.write(f"salm-cli: error: {error}\n")
        return 2
    except SIGTERMException:
        sys.stderr.write("salm-cli: interrupted; the state is saved. Go on with --ckpt_path and the run's folder.\n")
        return INTERRUPTED
    except KeyboardInterrupt:
        return 130
    return 0
