"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI with a run's folder, checks before any work, and a release at the end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from traceback import walk_tb
from typing import Any, cast, get_args

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint, checkpoint_folder, run_folder
from salm_lightning.callbacks.saved import latest_checkpoint, read_checkpoint
from salm_lightning.cli.config_files import resolve_checkpoint
from salm_lightning.cli.fit_parser import TRAINER_DEFAULTS, FitParser
from salm_lightning.cli.parser import salm_error_behind
from salm_lightning.cli.refusals import check_monitors, check_share_of_test
from salm_lightning.console import command
from salm_lightning.data import ImageDataModule
from salm_lightning.errors import DAMAGED, ConfigurationError, OutputExistsError, SalmError, look_up
from salm_lightning.files import LOCK, locked
from salm_lightning.modules import NoiseGeneratorModule, VictimModule
from salm_lightning.modules.base import LEFT_TO_SWEEP
from salm_lightning.release import check_destination
from salm_lightning.runs.effort import Precision, check_seed
from salm_lightning.runs.folder import CONFIG, PREDICTIONS, clear_run, is_run
from salm_lightning.runs.generation import generate, is_published
from salm_lightning.runs.summary import print_release, print_victim
from salm_lightning.runs.trainers import FROM_DATA, RunTrainer
from salm_lightning.runs.victims import gather_predictions, save_predictions
from salm_lightning.version import __version__


class SalmCLI(LightningCLI):
    """LightningCLI over the two modules and all DataModules.

    Args:
        args: A command of the Trainer's and its options.
        base: Options that come before those.
        origin: What messages put before the name of one of these.
    """

    runs_here = True
    """Whether this machine needs the devices that the options name."""

    def __init__(self, args: Sequence[str], base: Mapping[str, Any] | None = None, origin: str = "") -> None:
        self._args, self._base, self._origin = args, base, origin
        self._checkpoint: str | None = None
        self._overwrites = False
        with ExitStack() as self._held:
            super().__init__(
                LightningModule,
                ImageDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                seed_everything_default=0,
                trainer_defaults=TRAINER_DEFAULTS,
                parser_class=FitParser,
                parser_kwargs={"prog": "salm-cli"},
                trainer_class=RunTrainer,
                save_config_kwargs={"overwrite": True},
                args=list(args),
            )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Return the Trainer's subcommands with the arguments that the command line settles itself.

        Only the one that is asked for: a parser takes a while to build.
        """
        found = {name: skipped | {"weights_only", "return_predictions"} for name, skipped in LightningCLI.subcommands().items()}
        return {self._args[0]: found[self._args[0]]}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the one seed that settles everything."""
        parser.add_argument("--seed_everything", type=int, default=0, help="Seed of weights, shards, batches and every draw.")

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's name and place, and hand the data's facts and the seed to the module."""
        parser.add_argument(
            "--run", type=str | None, default=None, help="Folder name under lightning_logs; version_N by default."
        )
        parser.add_argument(
            "--release", type=str | None, default=None, help="Where the protected dataset goes; <run>/protected by default."
        )
        parser.add_argument("--overwrite", type=bool, default=False, help="Replace a run or a release that stands there.")
        for name in FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        for target in ("model", "data"):
            parser.link_arguments("seed_everything", f"{target}.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Compose and parse; refuse values for linked options, and say what is wrong in the user's words."""
        command, *given = self._args
        own: Any = self._subcommand_parsers[command]
        own.runs_here = self.runs_here
        self.config = own.read(given, self._base, self._origin)
        check_seed(self.config[command]["seed_everything"], "seed_everything")

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint; the command line wins over its settings, and the modules say what differs."""
        config = self.config[self._args[0]]
        self._overwrites = config["overwrite"]
        if config["ckpt_path"]:
            self._checkpoint = config["ckpt_path"] = resolve_checkpoint(config["ckpt_path"])

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder: that of the checkpoint, the named one, or the next version; refuse one that is in use."""
        if (version := os.environ.get(LEFT_TO_SWEEP, __version__)) != __version__:
            raise ConfigurationError(
                f"this is a fit of a sweep by salm-lightning {version}, and {__version__} runs here; install that one, or start the sweep "
                "again with this one."
            )
        root = Path(self._get(self.config, "trainer").get("default_root_dir") or ".") / "lightning_logs"
        run = self._get(self.config, "run")
        if self._checkpoint and Path(self._checkpoint).parent.name == "checkpoints":
            root, run = (above := Path(self._checkpoint).parent.parent).parent, above.name
        self._logger = TensorBoardLogger(root, name="", version=run)
        self._folder = Path(self._logger.log_dir)
        self._refuse_another_run()

    def _refuse_another_run(self) -> None:
        folder = self._folder
        if not self._checkpoint and self.subcommand == "fit" and any(path.name != LOCK for path in folder.glob("*")):
            if not self._overwrites:
                raise OutputExistsError(
                    f"run={folder.name}: {folder} is in use. Go on with {command('--ckpt_path', folder)}, choose another --run, or replace "
                    "it with --overwrite true."
                )
            if rank_zero_only.rank == 0 and not is_run(folder):  # type: ignore[attr-defined]
                raise OutputExistsError(
                    f"{folder} does not look like a run (it has no {CONFIG}) and is left alone; choose another --run."
                )

    def instantiate_classes(self) -> None:
        """Build data, module and Trainer; an error of this package arrives as it is, whatever was wrapped around it.

        Raises:
            SalmError: A setting cannot work.
        """
        try:
            super().instantiate_classes()
        except (MisconfigurationException, ImportError, ValueError) as error:
            raise salm_error_behind(error) from error
        except KeyError as error:
            if "SLURM" not in str(error):
                raise
            raise ConfigurationError(
                f"SLURMEnvironment in trainer.plugins needs a SLURM job ({error} is not set): start it with srun, or use "
                "--config trainer/ddp.yaml instead."
            ) from error
        if self._checkpoint:
            _require_fit(self._checkpoint, self.model)
        elif self.subcommand != "fit" and _has_weights(self.model) and not self._rehearses:
            raise ConfigurationError(f"{self.subcommand} needs --ckpt_path: the folder of a run, or one of its .ckpt files.")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        config["callbacks"] = _with_default_callbacks(config, self.model)
        config["default_root_dir"] = self._folder
        if config["logger"] in (None, True) and not config["fast_dev_run"]:
            config["logger"] = self._logger
        if self.subcommand != "fit":
            self.save_config_callback = None  # a run's config.yaml is that of its fit
        # The saved config begins anew: by then this checkpoint may be gone, and a run must not be replaced without being asked.
        self.config[str(self.subcommand)].update(Namespace(ckpt_path=None, overwrite=False))  # type: ignore[no-untyped-call]
        config["enable_model_summary"] = bool(config["enable_model_summary"])
        on_cpu = config["accelerator"] == "cpu" or (config["accelerator"] == "auto" and not torch.cuda.is_available())
        if config["sync_batchnorm"] and on_cpu:
            config["sync_batchnorm"] = False  # it is for GPUs; the module shares the statistics
        trainer = super()._instantiate_trainer(config, callbacks)
        look_up("trainer.precision", str(trainer.precision), get_args(Precision))  # as Lightning calls it, which takes 16 too
        check_monitors(trainer, self.model)
        return trainer

    def before_fit(self) -> None:
        """Look at the data and the place of the release before any long work."""
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        check_share_of_test(self.trainer, self.model, self.datamodule)
        if isinstance(self.model, NoiseGeneratorModule) and not self._rehearses and not self._is_complete(self.model):
            check_destination(self._release_folder(), self._overwrites)
        self.before_test()
        if self._overwrites and not self._checkpoint and self.trainer.is_global_zero:
            clear_run(self._folder)

    def before_test(self) -> None:
        """Keep others out of the run's folder until this command ends."""
        if self.trainer.is_global_zero and not self._rehearses:
            self._held.enter_context(locked(self._folder, f"run={self._folder.name}"))
            self._refuse_another_run()  # which may have come and gone since this one looked

    before_validate = before_predict = before_test

    def _is_complete(self, module: NoiseGeneratorModule) -> bool:
        """Return whether a run is resumed that has nothing left to train and whose release stands already."""
        if not self._checkpoint:
            return False
        path = Path(self._checkpoint)
        trained: int = read_checkpoint(path)["global_step"]
        return trained >= self.trainer.max_steps and is_published(module, self.datamodule, self._release_folder(), path)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Return what the Trainer is called with; a victim's results get their own table."""
        given = super()._prepare_subcommand_kwargs(subcommand)
        quiet = {"verbose": False} if subcommand == "test" and isinstance(self.model, VictimModule) else {}
        return given | quiet | {"weights_only": True}

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; what a forged checkpoint does to Lightning while it takes its parts over is said in one line."""
        try:
            super()._run_subcommand(subcommand)
        except DAMAGED as error:
            taken_over = any(
                frame.f_globals["__name__"] == checkpoint_connector.__name__ for frame, _ in walk_tb(error.__traceback__)
            )
            if isinstance(error, SalmError) or not (self._checkpoint and taken_over):
                raise
            raise ConfigurationError(
                f"--ckpt_path {self._checkpoint} is damaged, or no checkpoint of this program ({type(error).__name__}: {error}); name "
                "another .ckpt file."
            ) from error

    def fit(self, **kwargs: Any) -> None:
        """Train; a method without a source model has nothing to train."""
        if _has_weights(self.model):
            self.trainer.fit(**kwargs)

    def after_fit(self) -> None:
        """Make the release, or measure the victim, and say what to do next."""
        if self._rehearses:
            return
        if isinstance(self.model, NoiseGeneratorModule):
            self._generate(latest_checkpoint(checkpoint_folder(self.trainer)))
        elif isinstance(self.model, VictimModule):
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            self.after_test()

    def after_test(self) -> None:
        """Save and show what a victim's test found."""
        if not isinstance(self.model, VictimModule) or self._rehearses:
            return
        folder = run_folder(self.trainer)  # asked of all ranks, which agree on it
        if self.trainer.is_global_zero:
            print_victim(self.model, self.datamodule, folder)

    def predict(self, **kwargs: Any) -> None:
        """Make a release from a generator's checkpoint, or write a victim's test predictions."""
        checkpoint = kwargs.get("ckpt_path")
        if isinstance(self.model, NoiseGeneratorModule):
            self._generate(Path(checkpoint) if checkpoint else None)
            return
        data = self.datamodule.variant(predicted="test")
        batches = self.trainer.predict(self.model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        predictions = gather_predictions(cast("list[dict[str, Tensor]]", batches))
        folder = run_folder(self.trainer)  # asked of all ranks, which agree on it
        if self.trainer.is_global_zero:
            save_predictions(predictions, folder / PREDICTIONS, len(data.split("test")))

    def _generate(self, checkpoint: Path | None) -> None:
        # Where none is named, the ranks agree on the run's folder once all of them are there.
        folder = generate(self.trainer, self.model, self.datamodule, self._named_release(), checkpoint, self._overwrites)
        run = run_folder(self.trainer)  # asked of all ranks, which agree on it
        if self.trainer.is_global_zero:
            print_release(folder, run, self.datamodule)

    @property
    def _rehearses(self) -> bool:
        """Whether this is a ``fast_dev_run``, which leaves nothing behind."""
        return bool(getattr(self.trainer, "fast_dev_run", False))

    def _named_release(self) -> Path | None:
        named = self._get(self.config, "release")
        return Path(named) if named else None

    def _release_folder(self) -> Path:
        return self._named_release() or run_folder(self.trainer) / "protected"


def _has_weights(module: LightningModule) -> bool:
    """Return whether a module trains a network; some methods have none."""
    return not (isinstance(module, NoiseGeneratorModule) and module.method.trains_source_on is None)


def _with_default_callbacks(config: dict[str, Any], model: LightningModule) -> list[Callback]:
    """Return the configured callbacks and those that every run has unless one of their kind is configured."""
    given = config["callbacks"] or []
    callbacks: list[Callback] = list(given) if isinstance(given, list) else [given]
    defaults: list[tuple[type, Any]] = [(Throughput, Throughput)]
    if isinstance(model, NoiseGeneratorModule):
        defaults.append((NoisePictures, NoisePictures))
    if config["enable_checkpointing"] is not False:
        defaults.append((RunCheckpoint, RunCheckpoint))
    if config["enable_progress_bar"] is not False:
        defaults.append((ProgressBar, progress_bar))
    return callbacks + [build() for kind, build in defaults if not any(isinstance(callback, kind) for callback in callbacks)]


def _require_fit(path: str, module: LightningModule) -> None:
    """Refuse, before any work, a damaged checkpoint or one whose weights differ from the module's in name or shape."""
    saved = read_checkpoint(Path(path))["state_dict"]
    now = module.state_dict()
    names = saved.keys() | now.keys()
    other = sorted(name for name in names if name not in saved or name not in now or saved[name].shape != now[name].shape)
    if other:
        raise ConfigurationError(
            f"--ckpt_path {path} does not fit this {type(module).__name__}: {len(other)} weights differ in name or shape: "
            f"{other[0]}, ... Give the architecture, width, data and image size that it was trained with, as in its run's "
            "config.yaml."
        )
