"""Protecting a folder of images: noise at the working size, files like the originals, and a proof on the files as they are stored."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from salm_lightning.console import command, progress, say
from salm_lightning.data import ImageDataModule
from salm_lightning.data.folder_images import FolderDataModule
from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.files import overlap
from salm_lightning.release.folder import check_place, cost_of_files, write_folder
from salm_lightning.release.folder_manifest import COPIED, FolderManifest, Uids, read_records, stored_bound
from salm_lightning.release.manifest import FILES, MANIFEST, RELEASE, Publish
from salm_lightning.release.parts import clear_parts, parts_folder
from salm_lightning.release.protected_folder import StoredFolder
from salm_lightning.runs.estimate import Files
from salm_lightning.runs.generation import fingerprint_of, last_pass, promise
from salm_lightning.runs.protection import Protection
from salm_lightning.runs.stored_generator import GENERATOR
from salm_lightning.sealed import read_sealed, write_sealed

IDENTIFIERS = "identifiers.json"
"""File in the generator's folder of what new identifiers are made of."""


@dataclass
class FolderProtection(Protection):
    """A result of a folder: ``images`` are protected as their ``protects`` says."""

    images: FolderDataModule
    uids: Uids = "new"

    def __post_init__(self) -> None:
        super().__post_init__()
        out, source = self.folder.resolve(), self.images.path.resolve()
        if overlap(out, source):
            inside = "the result would lie in the folder" if out.is_relative_to(source) else "the folder would lie in the result"
            raise ConfigurationError(f"out={self.folder}: {inside} {self.images.path}; name another folder with --out.")
        if self.method.norm != "linf":
            raise ConfigurationError(
                f"method={self.method.name} is bound in {self.method.norm}; folders take --method.norm linf."
            )
        self._refuse_too_little_noise()
        if self.publish != "all":
            raise ConfigurationError(f"publish={self.publish} is for .npz files; a folder is published with all its files.")

    def run(self, yes: bool = False, overwrite: bool = False) -> None:
        """Say what of the folder is protected and measured on, and do it; see :meth:`Protection.run`."""
        images = self.images
        carrying, every, measured = int(images.carries_noise.sum()), len(images.carries_noise), len(images.rows("test"))
        drawn = "" if images.survey.folder.splits else ", drawn"
        say(
            f"{images.path}: {images.survey.folder.layout}; {images.num_classes} classes. {carrying} of {every} images get noise, "
            f"made at {images.image_size} pixels; models are measured on {measured} originals{drawn}."
        )
        super().run(yes, overwrite)

    def identity(self) -> dict[str, Any]:
        """Return all that the result depends on; see :meth:`Protection.identity`."""
        return {**super().identity(), "uids": self.uids}

    def _refuse_too_little_noise(self) -> None:
        """Refuse a bound that is less than a stored integer of a file."""
        radius, values = self.method.radius, self.images.working.values
        for header in self.images.survey.headers:
            slope = header.facts.scale[0] if header.facts else 1.0
            if stored_bound(radius, values, slope) < 1:
                raise ConfigurationError(
                    f"range={values.low:g}:{values.high:g} leaves no noise in {header.path}: {radius:g}/255 of it are less than one of its "
                    f"levels, which is {abs(slope):g}; give a wider one with --range, or a larger --method.radius."
                )

    def _secret(self) -> bytes:
        """Return what new identifiers are made of: kept with the generator, so that later images of a series get the same one."""
        if self.uids == "keep" or not any(facts.instance for facts in self.images.survey.facts):
            return b""
        own = self.folder / GENERATOR / IDENTIFIERS
        earlier = [] if self.generator is None else [self.generator.result / GENERATOR / IDENTIFIERS]
        for path in (*earlier, own):
            if known := _secret_in(path):
                return known
        made = secrets.token_hex(32)
        write_sealed(own, {"secret": made}, private=True)
        return bytes.fromhex(made)

    @property
    def manifest_path(self) -> Path:
        """Where the manifest is."""
        return self.folder / RELEASE / MANIFEST

    @property
    def is_released(self) -> bool:
        """Whether the tree stands that belongs to the result."""
        return super().is_released and self.release.is_dir()

    def check_place(self, overwrite: bool) -> None:
        """Refuse a tree that stands, unless it may be replaced."""
        check_place(self.folder, overwrite)

    def files_to_write(self) -> Files:
        """Return what it takes to write the files with noise, unless that is done."""
        return Files(0, 0) if self.is_released else Files(*cost_of_files(self.images, self.method.radius))

    def make_release(self, images: ImageDataModule, folder: Path, overwrite: bool = False, publish: Publish = "all") -> None:
        """Train a noise generator, and write the files."""
        trainer, module, saved = self.train_generator(images, folder)
        name = fingerprint_of(module, images, saved)
        parts = last_pass(trainer, module, images, parts_folder(self.release), saved, name)
        say(f"writing {int(self.images.carries_noise.sum())} files with noise, each read back and compared")
        with progress("writing files") as on_progress:
            settings, bound = promise(module)
            write_folder(folder, self.images, parts, settings, bound, name, on_progress=on_progress, secret=self._secret())
        clear_parts(self.release)

    def victims_images(self) -> tuple[ImageDataModule, ImageDataModule]:
        """Return what victims are trained on: the originals of the training split, and the same files as they are stored."""
        images = self.images if self.images.protects == "train" else self.images.only_train()
        stored = StoredFolder(self.folder, images, batch_size=images.batch_size, seed=images.seed)
        return images, stored

    def summarise(self, said: str) -> None:
        """Show what was measured, where the files are, and the next commands."""
        manifest = FolderManifest.read(self.folder)
        table = Table(title="Measured on the decoded pixels of the stored files", show_header=False)
        low, high = manifest.range
        units = f" {manifest.units}".rstrip()
        table.add_row(
            "largest change",
            f"{manifest.largest} levels (bound {manifest.bound}: {manifest.radius:g}/255 of {low:g} to {high:g}{units})",
        )
        table.add_row("changed pixels per image", f"{manifest.changed_share:.1%}")
        table.add_row("noise that the files have kept", f"{manifest.noise_kept:.1%}")
        table.add_row("files with noise", f"{manifest.images}")
        unchanged = sum(record.format != COPIED and record.largest == 0 for record in read_records(self.folder))
        if unchanged:
            table.add_row("of them without a changed pixel", f"{unchanged}: all of it is kept, or too little noise; see {FILES}")
        table.add_row("files copied as they are", f"{manifest.copied}")
        regions = self.images.reading.keep_out
        source = ("--source", self.images.path)
        against: tuple[str | Path, ...] = (*source, *(() if regions is None else ("--keep_out", regions)))
        console = Console()
        console.print(table)
        if said:
            console.print(said, highlight=False, markup=False)
        for line in (
            f"Protected files:   {self.release}",
            f"What each became:  {self.folder / RELEASE / FILES}",
            f"Its noise:         {manifest.settings.get('method', {}).get('name')}, made at {manifest.dataset['size']} pixels",
            *self._published(),
            f"Check it:          {command('salm-cli', 'verify', self.folder, *against)}",
            f"Attack it:         {command('salm-cli', 'audit', self.folder, *source)}",
            f"Report on it:      {command('salm-cli', 'report', self.folder, *against)}",
            f"Publish:           {self.release} alone; {self.folder / 'generator'} and {self.folder / RELEASE} stay with you",
        ):
            say(line)

    def _published(self) -> list[str]:
        carrying, unlabelled = self.images.carries_noise, len(self.images.survey.folder.unlabelled)
        clean = len(carrying) - int(carrying.sum())
        others = f"It publishes:      {clean} images as they are, too; --protect all gives all of them noise"
        without = f"It publishes:      {unlabelled} images without a label as they are, too; --unlabelled skip leaves them out"
        return [*([others] if clean else []), *([without] if unlabelled else [])]


def _secret_in(path: Path) -> bytes:
    """Return the secret in a file; empty where there is none, or one that others wrote and know."""
    try:
        values, ours = read_sealed(path)
    except ReleaseError:
        return b""
    if ours:
        return bytes.fromhex(values["secret"])
    say(
        f"{path} was written elsewhere, and is not used: DICOM files get identifiers of a new secret, and series other ones than before."
    )
    return b""
