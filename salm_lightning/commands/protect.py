"""``salm-cli protect``: the data owner's one command, from images to a protected copy with a first proof."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from salm_lightning.data.tables import FolderOptions
from salm_lightning.errors import ConfigurationError
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release.manifest import Publish
from salm_lightning.runs.effort import FolderTraining, Training


def protect(
    data: str,
    out: Path | None = None,
    size: int | None = None,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    proof: bool = True,
    publish: Publish = "all",
    protect: Literal["all", "train"] = "all",
    uids: Literal["new", "keep"] = "new",
    generator: Path | None = None,
    batch_size: int | None = None,
    yes: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> None:
    """Protect a dataset: train the noise, write the protected copy, and prove it on a victim.

    How long it takes is said first. The same command goes on with what was interrupted.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, a folder of images, or ``synthetic`` for the embedded data.
        out: Folder of the result; ``lightning_logs/<name>-<method>`` by default. The release is in its subfolder ``protected``.
        size: Height and width for a name, 28 by default; MedMNIST has 28, 64, 128 and 224. For a folder those at which models see its
            images, by default 64, or less for smaller ones.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made, such as ``SALM``, ``EM``, ``TAP``, ``SP`` or ``Random``; SALM with K = 10 by default.
        proof: Train a clean and a protected victim and compare them.
        publish: What goes into the release: ``all`` is MedMNIST's layout, with the clean val and test images; ``train`` leaves these out.
        protect: Which images of a folder get noise: ``all`` that are published, or those of the training split alone.
        uids: Whether DICOM files get new identifiers, as derived images have, or ``keep`` theirs, for sets that no archive of images (PACS)
            ever holds beside the originals.
        generator: Result of an earlier ``protect`` whose noise generator protects these images, too, without a training; they have to be of
            the same classes, channels and range. How well, docs/owners.md says.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        yes: Begin what takes more than a day without asking.
        overwrite: Replace a result that stands at ``out``.
        **options: How noise generators and victims are trained: those of :class:`~salm_lightning.runs.effort.Training`. How a folder is
            read: those of :class:`~salm_lightning.data.tables.FolderOptions`.

    Raises:
        SalmError: An argument is wrong, or a result stands at ``out``.
    """
    given = FolderTraining(**options)
    training = Training(**{field.name: getattr(given, field.name) for field in fields(Training)})
    reading = FolderOptions(**{field.name: getattr(given, field.name) for field in fields(FolderOptions)})
    from salm_lightning.data import FolderDataModule  # not with this module, which --help needs
    from salm_lightning.data.original import kind_of
    from salm_lightning.runs.folder_protection import FolderProtection
    from salm_lightning.runs.protection import Protection, loaded
    from salm_lightning.runs.stored_generator import StoredGenerator

    kind = kind_of(data)
    protects = {"protects": protect} if kind is FolderDataModule else {}
    for name, value, usual in (("protect", protect, "all"), ("uids", uids, "new")):
        if kind is not FolderDataModule and value != usual:
            raise ConfigurationError(f"{name}={value} is for folders of images, and data={data} is none.")
    stored = None if generator is None else StoredGenerator.read(generator)
    with ExitStack() as held:
        if stored is not None:
            method, training = stored.method(method), stored.training(training)
            size, reading = stored.reading(kind, size, reading)
        with nullcontext() if stored is None else stored.explaining():
            images = held.enter_context(loaded(data, size, root, batch_size, training, reading, **protects))
        if stored is not None:
            stored.check(images)
        folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}"
        protection: Any = partial(FolderProtection, uids=uids) if protects else Protection
        protection(images, folder, method, training, proof, publish, stored).run(yes, overwrite)
