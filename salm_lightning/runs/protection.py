"""Protecting a dataset in a folder, from the noise to the proof: what ``protect`` and ``classwise`` do."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from rich.table import Table

from salm_lightning.callbacks import NoisePictures, Throughput, progress_bar
from salm_lightning.callbacks.checkpoint import RunCheckpoint
from salm_lightning.callbacks.saved import latest_checkpoint
from salm_lightning.console import duration, say
from salm_lightning.data import ImageDataModule
from salm_lightning.data.original import named_images
from salm_lightning.data.tables import FolderOptions
from salm_lightning.errors import ConfigurationError, OutputExistsError
from salm_lightning.files import file_sha256, locked, overlap
from salm_lightning.models import Architecture
from salm_lightning.modules import NoiseGeneratorModule
from salm_lightning.modules.schedule import default_optimizer
from salm_lightning.noise.methods import Method
from salm_lightning.release import PoisonedDataModule
from salm_lightning.release.manifest import MANIFEST, Publish
from salm_lightning.release.writer import check_destination
from salm_lightning.runs.effort import Training
from salm_lightning.runs.estimate import Files, Work
from salm_lightning.runs.folder import clear_run
from salm_lightning.runs.generation import generate
from salm_lightning.runs.plan import announce, generator_work, only_last_pass, victim_work
from salm_lightning.runs.record import DONE, FAILED, INTERRUPTED, Run, plain, read_run, resume
from salm_lightning.runs.stored_generator import GENERATOR, RECORD, StoredGenerator
from salm_lightning.runs.summary import print_release, proof_table, verdict
from salm_lightning.runs.trainers import check_accelerator, facts_of, single_device_trainer
from salm_lightning.runs.victims import RESULTS, VictimSettings, train_victim
from salm_lightning.sealed import read_sealed, write_sealed

PROTECTED = "protected"
"""Folder of the release in that of a result."""
VICTIMS = ("clean", "protected")
"""What the victims of a proof are trained on."""


def results_file(folder: Path, name: str) -> Path:
    """Return where the results of a proof's victim are."""
    return folder / f"victim-{name}" / RESULTS


@contextmanager
def loaded(
    data: str,
    size: int | None,
    root: Path | None,
    batch_size: int | None,
    training: Training,
    folder: FolderOptions = FolderOptions(),  # noqa: B008 (frozen)
    **options: Any,
) -> Iterator[ImageDataModule]:
    """Yield the images that a user names, once the machine is known to take the training, and say at the end how long all took."""
    check_accelerator(training.accelerator)
    seed_everything(training.seed, verbose=False)
    begin = time.perf_counter()
    yield named_images(data, size, root, folder=folder, batch_size=batch_size, seed=training.seed, **options).load()
    say(f"Time taken:        {duration(time.perf_counter() - begin)}")


@dataclass
class Protection:
    """A result: a release, the victims of its proof, and a record of all that they depend on.

    Args:
        images: The dataset, loaded.
        folder: Where the result goes; the release into ``protected`` there.
        method: How the noise is made.
        training: How noise generators and victims are trained.
        proof: Train a clean and a protected victim and compare them.
        publish: Which splits go into the release.
        generator: Makes the noise, without a training: that of another result, which fits the images.

    Attributes:
        goes_on: Whether what stands in the folder was made with the same settings and is used again; known once it runs.
    """

    record: ClassVar[str] = RECORD
    keeps_parts: ClassVar[bool] = False
    """Whether what was made on the way with the same settings is used again even where a result is to be replaced."""
    numbering: ClassVar[tuple[str, str]] = ("[2/3] ", "[3/3] ")
    """What stands before the lines that announce the victims."""

    images: ImageDataModule
    folder: Path
    method: Method
    training: Training
    proof: bool = True
    publish: Publish = "all"
    generator: StoredGenerator | None = None

    def __post_init__(self) -> None:
        if self.generator is not None and overlap(
            self.folder, self.generator.result
        ):  # else overwriting would delete the generator
            raise ConfigurationError(
                f"out={self.folder} and generator={self.generator.result} are the same result, or lie in each other; name another folder "
                "with --out."
            )
        self.release, self._file = self.folder / PROTECTED, self.folder / self.record
        self._run = Run(plain(self.identity()))
        self.goes_on = False

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on, as JSON values: an unfinished one only goes on with the same."""
        file = self.images.source_file
        source = {"source": None if file is None else file.sha256, "batch_size": self.images.batch_size}
        data = {"dataset": self.images.describe(), **source, "publish": self.publish}
        made_by = {} if self.generator is None else {"generator": self.generator.sum}
        return {"method": self.method.settings(), **self.training.settings(), **data, **made_by}

    def run(self, yes: bool = False, overwrite: bool = False) -> None:
        """Say what is to be done and do it; what the same settings have left goes on, if unfinished, unless it is to ``overwrite``.

        ``yes`` begins what takes more than a day without asking.

        Raises:
            OutputExistsError: A result with other settings stands there, and ``overwrite`` is off; or what stands there is no result, or
                another process is at work there.
            ConfigurationError: A person was asked and does not want to begin.
            SalmError: A training has diverged.
        """
        self._check(overwrite)
        victims = [name for name in VICTIMS if self.proof and not self._has_results(name)]
        works = [*self.noise_works(), *(victim_work(self.training, self.images) for _ in victims)]
        announce(self.training, self.proof, works, yes, self.files_to_write())
        with locked(self.folder, f"out={self.folder}"), self._taken(overwrite):
            self.make_noise()
            found = self._prove() if self.proof else {}
        for table in self.tables(found) if found else ():
            Console().print(table)
        self.summarise(verdict(found, self.images) if found else "")

    def summarise(self, said: str) -> None:
        """Show what was measured and where it is; ``said`` is what the victims have shown, in words."""
        print_release(self.release, self.folder, self.images, said)

    def parts(self) -> list[Path]:
        """Return the folders of what is made on the way to the release."""
        return [self.folder / GENERATOR]

    def noise_works(self) -> list[Work]:
        """Return the works of the noise that is still to be made."""
        if self.is_released:
            return []
        work = generator_work(self.training, self.method, self.images)
        if self.generator is None:
            return [work]
        return [only_last_pass(work, self.method.last_pass_steps * self.method.eot_samples, self.images)]

    def files_to_write(self) -> Files:
        """Return what files take that are still to be written one by one; an archive's time is lost in that of its noise."""
        return Files(0, 0)

    def make_noise(self) -> None:
        """Make the release, unless it stands."""
        first = f"[1/{3 if self.proof else 1}]"
        if self.is_released:
            say(f"{first} the noise: done before")
            return
        needs = f", {self.training.lengths.steps} steps" if self.method.trains_source_on else ", which needs no training"
        needs = needs if self.generator is None else f", with the generator of {self.generator.result}"
        say(f"{first} making the noise: {self.method.name}{needs}")
        self.make_release(self.images, self.folder, overwrite=True, publish=self.publish)
        self.note_release()

    def tables(self, found: Mapping[str, Mapping[str, Any]]) -> Iterable[Table]:
        """Yield tables of what the victims have shown."""
        yield proof_table(found, self.images)

    @property
    def manifest_path(self) -> Path:
        """Where the manifest of the release is."""
        return self.release / MANIFEST

    @property
    def is_released(self) -> bool:
        """Whether the release stands that belongs to the result; another one may be replaced."""
        known, manifest = self._run.results.get("release"), self.manifest_path
        return known is not None and manifest.is_file() and file_sha256(manifest) == known

    def note_release(self) -> None:
        """Record that the release that stands there is the result's."""
        self._run = replace(self._run, results={"release": file_sha256(self.manifest_path)})
        self._run.write(self._file)

    def make_release(self, images: ImageDataModule, folder: Path, overwrite: bool = False, publish: Publish = "all") -> None:
        """Train a noise generator, and write ``folder/protected``."""
        trainer, module, saved = self.train_generator(images, folder)
        generate(trainer, module, images, folder / PROTECTED, saved, overwrite, publish)

    def train_generator(self, images: ImageDataModule, folder: Path) -> tuple[Trainer, NoiseGeneratorModule, Path | None]:
        """Train a noise generator in ``folder/generator``, where an interrupted training goes on, or take the stored one.

        Returns:
            Its Trainer, the generator, and its last checkpoint; ``None`` for a method that needs no training.
        """
        training, lengths = self.training, self.training.lengths
        architecture, steps = Architecture.parse(lengths.source_model), lengths.steps
        module = NoiseGeneratorModule(
            self.method,
            **facts_of(images),
            source=architecture,
            width=lengths.width,
            loop=training.loop,
            updates_per_visit=lengths.updates_per_visit,
            optimizer=default_optimizer(architecture, learning_rate=lengths.source_learning_rate),
            seed=training.seed,
        )
        if self.generator is not None:
            module.made_by = self.generator.sum
            trainer = single_device_trainer(folder, GENERATOR, steps, [progress_bar()], training.accelerator, training.precision)
            return trainer, module, self.generator.checkpoint
        callbacks = [Throughput(), progress_bar(), RunCheckpoint(max(1, steps // 10)), NoisePictures()]
        trainer = single_device_trainer(folder, GENERATOR, steps, callbacks, training.accelerator, training.precision)
        saved = folder / GENERATOR / "checkpoints"
        if self.method.trains_source_on is not None:
            trainer.fit(module, datamodule=images, ckpt_path=latest_checkpoint(saved), weights_only=True)
        return trainer, module, latest_checkpoint(saved)

    def victims_images(self) -> tuple[ImageDataModule, ImageDataModule]:
        """Return what the victims of the proof are trained on, clean and protected; both are measured on clean images."""
        poisoned = PoisonedDataModule(self.release, batch_size=self.images.batch_size, seed=self.images.seed)
        poisoned.measure_on(self.images)
        return self.images, poisoned

    def _prove(self) -> dict[str, dict[str, Any]]:
        """Train the victims whose results are not there yet; return results on the clean test split by what was trained on."""
        training, results = self.training, {}
        architecture, lengths = Architecture.parse(training.victim), training.lengths
        settings = VictimSettings(
            architecture,
            lengths.width,
            lengths.victim_steps,
            training.precision,
            learning_rate=training.learning_rate,
            seed=training.seed,
        )
        for prefix, name, data in zip(self.numbering, VICTIMS, self.victims_images(), strict=True):
            path = results_file(self.folder, name)
            if before := self._results(name):
                say(f"{prefix}a victim on the {name} images: done before")
                results[name] = before
                continue
            say(f"{prefix}training a victim on the {name} images: {architecture.name}, {settings.steps} steps")
            callbacks = [Throughput(), progress_bar()]
            trained = train_victim(settings, data, self.folder, path.parent.name, path.parent, callbacks, training.accelerator)
            results[name] = trained.results
            write_sealed(path, trained.results | self._proves(name))
            del trained  # a network and its Trainer, during the next training
        return results

    def _results(self, name: str) -> dict[str, Any] | None:
        """Return the results of a victim that was trained here before, for this release."""
        path = results_file(self.folder, name)
        found, ours = read_sealed(path) if path.is_file() else ({}, False)
        return found if ours and self._proves(name).items() <= found.items() else None

    def _proves(self, name: str) -> dict[str, Any]:
        return {"trained_on": name, "release": self._run.results.get("release")}

    def _has_results(self, name: str) -> bool:
        return self.goes_on and self._results(name) is not None

    def _check(self, overwrite: bool) -> None:
        """Look whether the folder may be taken: what the same settings have left there goes on, anything else is in the way."""
        before = read_run(self._file)
        same = before is not None and before.identity == self._run.identity
        self.goes_on = same and (self.keeps_parts or not overwrite)
        if not overwrite:
            self._run = resume(self._file, self._run.identity)
            if not same and (found := [part.name for part in self._all_parts() if part.exists()]):
                raise OutputExistsError(
                    f"out={self.folder} holds {found[0]}, which no {self.record} says anything about; name another folder, or begin "
                    "anew with --overwrite true."
                )
        try:
            self.check_place(overwrite or same)
        except OutputExistsError as error:
            raise OutputExistsError(f"out={self.folder}: {error}") from error

    def check_place(self, overwrite: bool) -> None:
        """Refuse a release that stands, unless it may be replaced.

        Raises:
            OutputExistsError: It may not.
        """
        check_destination(self.release, overwrite)

    def _all_parts(self) -> list[Path]:
        return [*self.parts(), *(results_file(self.folder, name).parent for name in VICTIMS)]

    @contextmanager
    def _taken(self, overwrite: bool) -> Iterator[None]:
        """Take the folder, and record in the end what became of the result."""
        self._check(overwrite)  # again: others may have been at work there until now
        if not self.goes_on:
            for part in self._all_parts():
                clear_run(part)
        self.goes_on, begin = True, time.monotonic()
        self._run.write(self._file)
        status, why = INTERRUPTED, ""
        try:
            yield
            status = DONE
        except Exception as error:
            status, why = FAILED, str(error)
            raise
        finally:
            self._run.ended(status, time.monotonic() - begin, self._run.results, why).write(self._file)
