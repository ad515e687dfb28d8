"""The state of an audit as its files tell it: ``audit.json``, ``audit.csv`` and ``audit.md``, valid at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from pathlib import Path

from salm_lightning.audit.battery import Battery
from salm_lightning.audit.choices import text_of, untried
from salm_lightning.audit.findings import attempts_of, confusion_of, curve_of
from salm_lightning.audit.results import AuditedRelease, AuditResult, Unfinished
from salm_lightning.audit.tables import markdown, write_victims
from salm_lightning.audit.trials import Trial, length_of, name_of
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
        preset: Preset that they come from.
        out: Folder of the results.
        command: Arguments of ``salm-cli audit`` but for countermeasures, architectures, seeds, preset and budget.
    """

    release: PoisonedDataModule
    battery: Battery
    preset: str
    out: Path
    command: Sequence[str]

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
        open_countermeasures = untried((settings["name"] for settings in tried.values()), data.info)
        open_archs = [arch for arch in ARCHITECTURES if arch not in networks]
        main = self.battery.trials[0]
        not_covered = limits(open_countermeasures, open_archs, len(seeds), main.victim, len(skipped), len(labels))
        return AuditResult(
            release=AuditedRelease(
                data.info.name, manifest.method_name, manifest.archive.sha256, manifest.source.sha256 if manifest.source else None
            ),
            settings={
                **length_of(main),
                "preset": self.preset,
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
        stores, trials = self.battery.stores, self.battery.trials
        own = [self.battery.records[name] for trial in trials if (name := name_of(trial.identity)) in self.battery.records]
        alike = ("version", "trained_on", "images", *length_of(trials[0]))
        known = {name_of(record.identity) for record in own}
        others = [
            record
            for record in stores["protected"].all()
            if all(record.identity.get(key) == trials[0].identity[key] for key in alike) and name_of(record.identity) not in known
        ]
        clean = next((trial.identity["images"] for trial in trials if trial.trained_on == "clean"), None)
        identities = [{**record.identity, "trained_on": "clean", "images": clean} for record in others] if clean else []
        twins = [twin for identity in identities if (twin := stores["clean"].read(identity)) and name_of(identity) not in known]
        return [*own, *others, *twins]

    def _skipped(self) -> list[Unfinished]:
        """Return the victims of this audit that have not finished, with status, reason, and the command that trains them."""
        found = []
        for trial in self.battery.trials:
            status, reason = self.battery.status(trial)
            if status != DONE:
                arch, title = trial.kind
                found.append(Unfinished(title, arch, trial.victim.seed, trial.trained_on, reason, self._command(trial), status))
        return found

    def _command(self, trial: Trial) -> str:
        victim, network = trial.victim, trial.victim.architecture.settings()
        options = {
            **{
                "width": victim.width,
                "victim_steps": victim.steps,
                "batch_size": trial.batch_size,
                "precision": victim.precision,
            },
            "countermeasures": f"[{text_of(victim.countermeasure)}]",
            "archs": f"[{network if isinstance(network, str) else dumps(network)}]",
            "seeds": f"[{victim.seed}]",
        }
        words = (word for name, value in options.items() for word in (f"--{name}", str(value)))
        return command("salm-cli", "audit", *self.command, *words)
