"""Running a target, and putting together what came out."""

from __future__ import annotations

from salm_lightning.audit.album import Album
from salm_lightning.console import say
from salm_lightning.reproduce.experiment import Experiment
from salm_lightning.reproduce.pages import CSV, MARKDOWN, picture_folder, save
from salm_lightning.reproduce.targets import Target
from salm_lightning.runs.record import DONE


def run(name: str, target: Target, experiment: Experiment) -> int:
    """Run an experiment, draw its figure, and save and show ours beside the paper's.

    Returns:
        Exit code: 0 if there is a number for every cell, 1 if not, above 1 after a stop.
    """
    code, settings, out = experiment.run(), experiment.setup.settings, experiment.setup.out
    results = target.derive([experiment.result(cell) for cell in experiment.cells])
    if target.draw is not None:
        album = Album(out / picture_folder(settings.labels.values()))
        target.draw(experiment, album)
        album.show()
    say(save(name, results, settings, out))
    say(f"Saved: {out / CSV}, {out / MARKDOWN}")
    undone = [result for result in results if result.status != DONE]
    if undone:
        say(f"{len(undone)} of {len(results)} cells have no number, or not of all seeds. The same command tries them again.")
    return code if code > 1 else int(bool(undone))
