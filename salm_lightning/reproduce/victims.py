"""Numbers of victims: the sweep behind a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from salm_lightning.reproduce.cells import CLEAN, Cell, Experiment, tested
from salm_lightning.reproduce.settings import Dataset, Settings
from salm_lightning.runs.record import Run
from salm_lightning.sweep.job import Job
from salm_lightning.sweep.plan import Planner
from salm_lightning.sweep.results import record
from salm_lightning.sweep.run import all_jobs, run_sweep, show_plan
from salm_lightning.sweep.runners import Local

_DEFAULTS = {"victim.model.arch": "resnet18", "victim.data.part": "all"}
"""Values of options that a cell does not name and another one does; of all others ``None``."""


class Victims(Experiment):
    """Cells whose numbers are those of ``victims``: of each cell one for each seed, or none if its dataset is missing."""

    def __init__(self, cells: Sequence[Cell], settings: Settings) -> None:
        super().__init__(cells, settings)
        self._keys = sorted({key for cell in cells for key in cell.recipe.options})
        self._planners: dict[Dataset, Planner] = {}
        self.victims = [[] if self.missing(cell) else self._plan(cell) for cell in cells]

    def _plan(self, cell: Cell) -> list[Job]:
        settings, dataset, recipe = self.settings, cell.dataset, cell.recipe
        if dataset not in self._planners:
            sections = (settings.generator(dataset), settings.victim())
            self._planners[dataset] = Planner(*sections, settings.out, settings.download)
        # Size, which the name of a dataset lacks, and every option that varies in the table: its cells have the same columns.
        grid = {"generator.data.size": [dataset.size], "generator.model.method": [recipe.method]}
        grid |= {key: [recipe.options.get(key, _DEFAULTS.get(key))] for key in self._keys}
        victims = self._planners[dataset].victims(grid | {"seed": list(settings.seeds)}, recipe.clean)
        return [victim for victim in victims if (victim.values["trained_on"] == CLEAN) is recipe.clean]

    def jobs(self, victims: Iterable[Job]) -> list[Job]:
        """Return what has to run for some victims, each once."""
        return all_jobs(list(victims))

    def show_plan(self) -> None:
        """Print releases and victims in the order in which they run."""
        show_plan(self.jobs(chain(*self.victims)), self.settings.workers)

    def run(self) -> int:
        """Run the sweep."""
        victims = list({victim.name: victim for victim in chain(*self.victims)}.values())
        return run_sweep(victims, Local(self.settings.workers), self.settings.out) if victims else 0

    def found(self, cell: Cell) -> list[Run]:
        """Return what became of a cell's victims, with what their test found."""
        victims = self.victims[self.cells.index(cell)]
        found = [(record(victim), victim.product) for victim in victims]
        return [tested(Run({}, values["status"], values["error"]), results) for values, results in found]
