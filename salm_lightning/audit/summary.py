"""The state of an audit as its files tell it: ``audit.json``, ``audit.csv`` and ``audit.md``, valid at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from salm_lightning.audit.battery import DONE, Battery
from salm_lightning.audit.choices import Choice, untried
from salm_lightning.audit.findings import attempts_of, confusion_of, curve_of
from salm_lightning.audit.results import AuditedRelease, AuditResult, Unfinished
from salm_lightning.audit.tables import markdown, write_victims
from salm_lightning.audit.trials import Length, Record, Trial, name_of, title_of
from salm_lightning.audit.verdict import judge, limits
from salm_lightning.console import command
from salm_lightning.files import write_text
from salm_lightning.metrics import majority_baseline
from salm_lightning.metrics.learned import floors_of
from salm_lightning.models import ARCHITECTURES
from salm_lightning.release import PoisonedDataModule


@dataclass(frozen=True)
class Summary:
    """Puts together what is known of a release.

    Attributes:
        release: The release, loaded.
        battery: The victims of this audit.
        choices: Their countermeasures.
        length: How long and wide they are.
        preset: Preset that they come from.
        out: Folder of the results.
        command: Arguments of ``salm-cli audit`` but for countermeasures, architectures, seeds, preset and budget.
    """

    release: PoisonedDataModule
    battery: Battery
    choices: Sequence[Choice]
    length: Length
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

    def _result(self, records: Sequence[Record], skipped: Sequence[Unfinished]) -> AuditResult:
        data, manifest = self.release, self.release.manifest
        labels = data.split("test").labels
        majority = majority_baseline(labels, data.task, data.num_classes)
        floors = floors_of(data.task, data.num_classes, majority)
        rows = attempts_of(records, floors)
        archs = list(dict.fromkeys(record.identity["arch"] for record in records))
        seeds = sorted({record.identity["seed"] for record in records})
        tried = {record.title: record.identity["countermeasure"] for record in records}
        open_countermeasures = untried((settings["name"] for settings in tried.values()), data.info)
        open_archs = [arch for arch in ARCHITECTURES if arch not in archs]
        not_covered = limits(open_countermeasures, open_archs, len(seeds), self.length, len(skipped), len(labels))
        main = self.battery.trials[0]
        return AuditResult(
            release=AuditedRelease(
                data.info.name, manifest.method_name, manifest.archive.sha256, manifest.source.sha256 if manifest.source else None
            ),
            settings={
                **asdict(self.length),
                "preset": self.preset,
                "seeds": seeds,
                "countermeasures": list(tried.values()),
                "archs": archs,
            },
            majority=majority,
            chance_balanced=floors.get("balanced_acc", 0.5),
            rows=tuple(rows),
            skipped=tuple(skipped),
            verdict=judge(rows, floors, not_covered),
            confusion=confusion_of(records, main.arch, main.seed),
            curves=tuple(map(curve_of, records)),
            seconds=round(sum(record.seconds for record in records), 1),
        )

    def _records(self) -> list[Record]:
        """Return the finished victims of this audit, then those of earlier ones of the same release, length and width."""
        stores, trials = self.battery.stores, self.battery.trials
        own = [self.battery.records[name] for trial in trials if (name := name_of(trial.identity)) in self.battery.records]
        alike = ("version", "trained_on", "images", *asdict(self.length))
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
        texts = {title_of(choice.countermeasure): choice.text for choice in self.choices}
        found = []
        for trial in self.battery.trials:
            status, reason = self.battery.status(trial)
            if status != DONE:
                title = title_of(trial.countermeasure)
                line = self._command(trial, texts[title])
                found.append(Unfinished(title, trial.arch, trial.seed, trial.trained_on, reason, line, status))
        return found

    def _command(self, trial: Trial, countermeasure: str) -> str:
        length = {name: str(value) for name, value in asdict(self.length).items()}
        options = {**length, "countermeasures": f"[{countermeasure}]", "archs": f"[{trial.arch}]", "seeds": f"[{trial.seed}]"}
        return command(
            "salm-cli", "audit", *self.command, *(part for name, value in options.items() for part in (f"--{name}", value))
        )
