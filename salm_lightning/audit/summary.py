"""The state of an audit as its files tell it: ``audit.json``, ``audit.csv`` and ``audit.md``, valid at any moment."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from salm_lightning.audit.battery import DONE, Battery
from salm_lightning.audit.choices import Choice, untried
from salm_lightning.audit.results import confusion_of, curves_of, make_rows, markdown, write_csv
from salm_lightning.audit.trials import Length, Record, Trial, name_of, title_of
from salm_lightning.audit.verdict import floors_of, judge, limits
from salm_lightning.errors import ConfigurationError
from salm_lightning.files import replacing, write_json
from salm_lightning.metrics import majority_baseline
from salm_lightning.models import ARCHITECTURES
from salm_lightning.release import PoisonedDataModule

AUDIT = "audit.json"
_FORMAT_VERSION = 1


def beside(release: Path) -> Path:
    """Return the folder that a release lies in."""
    return release.parent if release.name else release.absolute().parent  # the parent of "." is "."


def audit_folder(release: Path, out: Path | None) -> Path:
    """Return the folder of what is found out about a release: ``out``, or ``audit`` beside the release.

    Raises:
        ConfigurationError: ``out`` lies in the release, where a foreign file is taken for tampering.
    """
    if out is None:
        return beside(release) / "audit"
    if out.absolute().is_relative_to(release.absolute()):
        raise ConfigurationError(f"out={out} lies in the release, which must hold nothing else; give a folder outside of it.")
    return out


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

    def write(self) -> dict[str, Any]:
        """Write the files, and return what ``audit.json`` holds."""
        records, skipped = self._records(), self._skipped()
        audit = self._audit(records, skipped)
        write_json(self.out / AUDIT, audit)
        write_csv(records, skipped, self.out / "audit.csv")
        with replacing(self.out / "audit.md") as temporary:
            temporary.write_text(markdown(audit), encoding="utf-8")
        return audit

    def _audit(self, records: Sequence[Record], skipped: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        data, manifest = self.release, self.release.manifest
        labels = data.split("test").labels
        majority = majority_baseline(labels, data.task, data.num_classes)
        floors = floors_of(data.task, data.num_classes, majority)
        rows = make_rows(records, floors)
        archs = list(dict.fromkeys(record.identity["arch"] for record in records))
        seeds = sorted({record.identity["seed"] for record in records})
        countermeasures = {record.title: record.identity["countermeasure"] for record in records}
        main = self.battery.cells[0]
        return {
            "format_version": _FORMAT_VERSION,
            "release": {
                "name": data.info.name,
                "method": manifest.method_name,
                "archive_sha256": manifest.archive.sha256,
                "source_sha256": None if manifest.source is None else manifest.source.sha256,
            },
            "settings": {
                **asdict(self.length),
                "preset": self.preset,
                "seeds": seeds,
                "countermeasures": list(countermeasures.values()),
                "archs": archs,
            },
            "majority": majority,
            "chance_balanced": floors.get("balanced_acc", 0.5),
            "rows": rows,
            "skipped": [{key: value for key, value in victim.items() if key != "status"} for victim in skipped],
            "verdict": judge(
                rows,
                floors,
                limits(
                    untried((countermeasure["name"] for countermeasure in countermeasures.values()), data.info),
                    [arch for arch in ARCHITECTURES if arch not in archs],
                    len(seeds),
                    self.length,
                    len(skipped),
                    len(labels),
                ),
            ),
            "confusion": confusion_of(records, main.arch, main.seed),
            "curves": curves_of(records),
            "seconds": round(sum(record.seconds for record in records), 1),
        }

    def _records(self) -> list[Record]:
        """Return the finished victims of this audit, then those of earlier ones of the same release, length and width."""
        stores, first = self.battery.stores, self.battery.cells[0]
        own = [
            self.battery.records[name] for cell in self.battery.cells if (name := name_of(cell.identity)) in self.battery.records
        ]
        alike = ("version", "trained_on", "images", *asdict(self.length))
        known = {name_of(record.identity) for record in own}
        others = [
            record
            for record in stores["protected"].all()
            if all(record.identity.get(key) == first.identity[key] for key in alike) and name_of(record.identity) not in known
        ]
        clean = next((cell.identity["images"] for cell in self.battery.cells if cell.trained_on == "clean"), None)
        identities = [{**record.identity, "trained_on": "clean", "images": clean} for record in others] if clean else []
        twins = [twin for identity in identities if (twin := stores["clean"].read(identity)) and name_of(identity) not in known]
        return [*own, *others, *twins]

    def _skipped(self) -> list[dict[str, Any]]:
        """Return the victims of this audit that have not finished, with status, reason, and the command that trains them."""
        texts = {title_of(choice.countermeasure): choice.text for choice in self.choices}
        found = []
        for cell in self.battery.cells:
            status, reason = self.battery.status(cell)
            if status != DONE:
                title = title_of(cell.countermeasure)
                found.append(
                    {
                        **{"countermeasure": title, "arch": cell.arch, "seed": cell.seed, "trained_on": cell.trained_on},
                        **{"status": status, "reason": reason, "command": self._command(cell, texts[title])},
                    }
                )
        return found

    def _command(self, cell: Trial, countermeasure: str) -> str:
        length = {name: str(value) for name, value in asdict(self.length).items()}
        options = {**length, "countermeasures": f"[{countermeasure}]", "archs": f"[{cell.arch}]", "seeds": f"[{cell.seed}]"}
        return shlex.join(
            ["salm-cli", "audit", *self.command, *(part for name, value in options.items() for part in (f"--{name}", value))]
        )
