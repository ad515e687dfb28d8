"""``salm-cli protect``: the data owner's one command, from images to a protected copy with a first proof."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from salm_lightning.console import duration
from salm_lightning.noise.methods import SALM, Method
from salm_lightning.release.manifest import Publish
from salm_lightning.runs.effort import Training

RECORD = "protect.json"
"""File name of the record of a result, in its folder."""


def protect(
    data: str,
    out: Path | None = None,
    size: int | None = None,
    root: Path | None = None,
    method: Method = SALM(),  # noqa: B008 (it has no state)
    proof: bool = True,
    publish: Publish = "all",
    batch_size: int | None = None,
    yes: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> int:
    """Protect a dataset: train the noise, write the protected copy, and prove it on a victim.

    How long it takes is said first. The same command goes on with what was interrupted.

    Args:
        data: A MedMNIST name, an ``.npz`` file in MedMNIST's layout, or ``synthetic`` for the embedded data.
        out: Folder of the result; ``lightning_logs/<name>-<method>`` by default. The release is in its subfolder ``protected``.
        size: Height and width for a name, 28 by default; MedMNIST has 28, 64, 128 and 224.
        root: Folder of MedMNIST's files; ``SALM_DATA_ROOT``, else ``~/.medmnist``.
        method: How the noise is made, such as ``SALM``, ``EM``, ``TAP``, ``SP`` or ``Random``; SALM with K = 10 by default.
        proof: Train a clean and a protected victim and compare them.
        publish: What goes into the release: ``all`` is MedMNIST's layout, with the clean val and test images; ``train`` leaves these out.
        batch_size: Images per step; 128 by default, 64 at 224 pixels.
        yes: Begin what takes more than a day without asking.
        overwrite: Replace a result that stands at ``out``.
        **options: How noise generators and victims are trained: those of :class:`~salm_lightning.runs.effort.Training`.

    Returns:
        Exit code 0.

    Raises:
        SalmError: An argument is wrong, or a result stands at ``out``.
    """
    training = Training(**options)
    # Not with this module, which --help needs.
    from lightning.pytorch import seed_everything
    from rich.console import Console

    from salm_lightning.console import say
    from salm_lightning.data.original import named_images
    from salm_lightning.runs.plan import announce, generator_work, victim_work
    from salm_lightning.runs.proof import proof_table, verdict
    from salm_lightning.runs.result_folder import ResultFolder
    from salm_lightning.runs.summary import print_release
    from salm_lightning.runs.trainers import check_accelerator
    from salm_lightning.runs.training import GENERATOR, identity_of, make_release, train_victims

    check_accelerator(training.accelerator)
    seed_everything(training.seed, verbose=False)
    begin = time.perf_counter()
    images = named_images(data, size, root, batch_size=batch_size, seed=training.seed).load()
    folder = out or Path("lightning_logs") / f"{images.info.name}-{method.name}"
    identity = identity_of(method, training, images, publish)
    result = ResultFolder(folder / RECORD, identity, [folder / GENERATOR], proof)
    result.check(overwrite)
    noise = [] if result.is_released else [generator_work(training, method, images)]
    announce(training, proof, [*noise, *(victim_work(training, images) for _ in result.victims_left)], yes)
    with result.taken():
        first = f"[1/{3 if proof else 1}]"
        if result.is_released:
            say(f"{first} the noise: done before")
        else:
            needs = f", {training.lengths.steps} steps" if method.trains_source_on else ", which needs no training"
            say(f"{first} making the noise: {method.name}{needs}")
            make_release(training, method, images, folder, overwrite=True, publish=publish)
            result.note_release()
        found = train_victims(training, images, folder, ("[2/3] ", "[3/3] ")) if proof else {}
    if found:
        Console().print(proof_table(found, images))
    print_release(result.release, folder, images, verdict(found, images) if found else "")
    say(f"Time taken:        {duration(time.perf_counter() - begin)}")
    return 0
