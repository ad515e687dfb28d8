"""The state of an audit as its files tell it: ``audit.json``, ``audit.csv`` and ``audit.md``, valid at any moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import Any

from salm_lightning.audit.battery import Battery
from salm_lightning.audit.choices import text_of, untried
from salm_lightning.audit.findings import attempts_of, confusion_of, curve_of
from salm_lightning.audit.results import AuditedRelease, AuditResult, Unfinished
from salm_lightning.audit.tables import markdown, write_victims
from salm_lightning.audit.trials import Trial
from salm_lightning.audit.verdict import judge, limits
from salm_lightning.console import command
from salm_lightning.files import write_text
from salm_lightning.metrics import majority_baseline
from salm_lightning.metrics.learned import floors_of
from salm_lightning.models import ARCHITECTURES
from salm_lightning.release import PoisonedDataModule
from salm_lightning.runs.record import DONE, Run


@dataclass(frozen=True)
class Summary:
    """Puts together what is known of a release.

    Attributes:
        release: The release, loaded.
        battery: The victims of this audit.
        out: Folder of the results.
        options: Of ``salm-cli audit`` beside what differs between the victims; None stands for the default.
    """

    release: PoisonedDataModule
    battery: Battery
    out: Path
    options: Mapping[str, Any]

    def write(self) -> AuditResult:
        """Write the files, and return what ``audit.json`` holds."""
        records, skipped = self._records(), self._skipped()
        result = self._result(records, skipped)
        result.write(self.out)
        write_victims(records, skipped, self.out / "audit.csv")
        write_text(self.out / "audit.md", markdown(result))
        return result

    def _result(self, records: Sequence[Run], skipped: Sequence[Unfinished]) -> AuditResult:
        data, manifest = self.release, self.release.manifest
        labels = data.split("test").labels
        majority = majority_baseline(labels, data.task, data.num_classes)
        floors = floors_of(data.task, data.num_classes, majority)
        rows = attempts_of(records, floors)
        networks = {record.identity["arch"]: record.identity["network"] for record in records}
        seeds = sorted({record.identity["seed"] for record in records})
        tried = {record.results["title"]: record.identity["countermeasure"] for record in records}
        main = self.battery.trials[0]
        not_covered = limits(
            untried((settings["name"] for settings in tried.values()), data.info),
            [arch for arch in ARCHITECTURES if arch not in networks],
            len(seeds),
            main.victim,
            len(skipped),
            len(labels),
        )
        return AuditResult(
            release=AuditedRelease(
                data.info.name, manifest.method_name, manifest.archive.sha256, manifest.source.sha256 if manifest.source else None
            ),
            settings={
                **main.length,
                "preset": self.options["preset"],
                "seeds": seeds,
                "countermeasures": list(tried.values()),
                "archs": list(networks.values()),
            },
            majority=majority,
            chance_balanced=floors.get("balanced_acc", 0.5),
            rows=tuple(rows),
            skipped=tuple(skipped),
            verdict=judge(rows, floors, not_covered),
            confusion=confusion_of(records, main),
            curves=tuple(map(curve_of, records)),
            seconds=round(sum(record.seconds for record in records), 1),
        )

    def _records(self) -> list[Run]:
        """Return the finished victims of this audit, then those of earlier ones of the same release, length and width."""
        stores, trials, done = self.battery.stores, self.battery.trials, self.battery.records
        own = [done[trial.name] for trial in trials if trial.name in done]
        alike = {name: trials[0].identity[name] for name in ("version", "trained_on", "images", *trials[0].length)}
        others = [run for run in stores["protected"].all() if alike.items() <= run.identity.items()]
        clean = next((trial.identity["images"] for trial in trials if trial.trained_on == "clean"), None)
        twins = [stores["clean"].read(run.identity | {"trained_on": "clean", "images": clean}) for run in others if clean]
        return list({run.key: run for run in (*own, *others, *twins) if run is not None}.values())

    def _skipped(self) -> list[Unfinished]:
        """Return the victims of this audit that have not finished, with status, reason, and the command that trains them."""
        states = [(trial, *self.battery.status(trial)) for trial in self.battery.trials]
        return [
            Unfinished(trial.kind[1], trial.kind[0], trial.victim.seed, trial.trained_on, reason, self._command(trial), status)
            for trial, status, reason in states
            if status != DONE
        ]

    def _command(self, trial: Trial) -> str:
        victim, length, network = trial.victim, trial.length, trial.victim.architecture.settings()
        options = {
            **self.options,
            **{"victim_steps" if name == "steps" else name: value for name, value in length.items()},
            "countermeasures": f"[{text_of(victim.countermeasure)}]",
            "archs": f"[{network if isinstance(network, str) else dumps(network)}]",
            "seeds": f"[{victim.seed}]",
        }
        words = (word for name, value in options.items() if value is not None for word in (f"--{name}", str(value)))
        return command("salm-cli", "audit", self.release.root, *words)
