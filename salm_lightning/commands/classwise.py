"""``salm-cli classwise``: classes protected one after another, each known to its owner alone."""

from __future__ import annotations

from pathlib import Path

from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release.manifest import Publish
from salm_lightning.runs.effort import Training


def classwise(
    data: str,
    support: str,
    classes: list[int | str] | None = None,
    num_support: int | None = None,
    out: Path | None = None,
    size: int | None = None,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    training: Training = Training(),  # noqa: B008 (frozen)
    proof: bool = True,
    publish: Publish = "all",
    batch_size: int | None = None,
    yes: bool = False,
    overwrite: bool = False,
) -> None:
    """Protect a dataset class by class, each among support classes from another dataset (paper: Section 7.1).

    For every class a noise generator is trained on that class's images and the support classes; only the noise of the class is kept.
    Finished classes are not made again when the command is repeated.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic``; with one class per image.
        support: Where the support classes come from: the same, or a folder with one subfolder of images per class.
        classes: Names or numbers of the classes to protect; all by default.
        num_support: Number of support classes, drawn with the seed; all by default.
        out: Folder of the result; ``lightning_logs/<name>-<method>-classwise`` by default. The release is in ``protected``.
        size: Height and width for a name, 28 by default; MedMNIST has 28, 64, 128 and 224.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made; SALM with K = 10 by default.
        training: How noise generators and victims are trained.
        proof: Train a clean and a protected victim and compare them.
        publish: What goes into the release: ``all`` is MedMNIST's layout, with the clean val and test images; ``train`` leaves these out.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        yes: Begin what takes more than a day without asking.
        overwrite: Replace a release that stands at ``out``; finished classes that were made with the same settings are used again.

    Raises:
        SalmError: An argument is wrong, or another result stands at ``out``.
    """
    from salm_lightning.runs.protection import loaded  # not with this module, which --help needs
    from salm_lightning.scenarios.classwise import ClassWise, Support, numbers_of

    with loaded(data, size, root, batch_size, training) as images:
        numbers = numbers_of(classes, images)
        among = Support.named(support, images, root, num_support, training.seed)
        folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}-classwise"
        ClassWise(images, folder, method, training, proof, publish, numbers=numbers, support=among).run(yes, overwrite)
