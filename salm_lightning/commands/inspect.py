"""``salm-cli inspect``: say what a folder of images is taken for, before anything is done with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from textwrap import wrap
from typing import Any

from salm_lightning.console import progress, say, visible
from salm_lightning.data.folder import ImageFolder, read_folder
from salm_lightning.data.survey import Survey, survey, window_of
from salm_lightning.data.tables import NONE, Reading
from salm_lightning.data.walk import Kind, Problem
from salm_lightning.files import write_csv

_WIDTH, _NAMES = 80, 13
_MOST = 10
"""Files of a kind that are shown."""
_CLASSES = 30
"""Classes that are shown; of more, the most frequent ones."""
_INSTANCE = ("modality", "photometric", "units", "slope", "intercept", "window", "padding", "burned_in")
"""What only DICOM files say."""
_COLUMNS = (
    *("file", "split", "labels", "group", "container", "height", "width", "channels", "bits", "pages", "orientation"),
    *("embedded_pictures", "detail", *_INSTANCE, "problem", "more", "way_out"),
)


def inspect(folder: Path, out: Path | None = None, **options: Any) -> int:
    """Say what a folder of images is taken for, and what stands in the way of protecting it.

    The headers of all images are read, and the pixels of some; nothing in the folder is changed.

    Args:
        folder: The folder.
        out: CSV file to write, with a line for each image and each problem.
        **options: How it is read: those of :class:`~salm_lightning.data.tables.Reading`.

    Returns:
        Exit code: 0 if nothing stands in the way, else 2.
    """
    reading = Reading(**options)
    with progress("looking at images") as on_progress:
        found = survey(read_folder(folder, reading, "folder"), reading.allow_leak, on_progress, reading.group_column != NONE)
    if out is not None:
        _write(out, found)
    for line in _report(found):
        say(visible(line))
    return 2 if found.problems else 0


def _report(found: Survey) -> Iterator[str]:
    """Yield what is printed, in lines of 80 columns where names leave room for that."""
    folder, several = found.folder, " with any number of labels each" if found.folder.multi_label else ""
    yield f"{folder.root}: {_count(len(folder.images), 'image')}{several}, {len(folder.class_names)} classes"
    yield ""
    for name, text in _facts(found):
        yield from _item(name, text)
    yield ""
    yield from _classes(folder)
    for note in found.notes:
        yield from wrap(f"Note: {note}.", _WIDTH, subsequent_indent="      ")
    if found.notes:
        yield ""
    if not found.problems:
        yield "Nothing stands in the way of protecting it."
        return
    kinds: dict[Kind, list[Problem]] = {}
    for problem in found.problems:
        kinds.setdefault(problem.kind, []).append(problem)
    yield "In the way:"
    for kind, problems in kinds.items():
        yield from _problems(kind, problems)
    yield ""
    yield "It cannot be protected as it is."


def _facts(found: Survey) -> Iterator[tuple[str, str]]:
    folder, facts, table = found.folder, found.facts, found.folder.table
    yield "Layout", folder.layout
    if table is not None:
        columns = table.columns
        labels = table.detail if len(columns.labels) > 1 else ", ".join(columns.labels)
        known = {"files": columns.file, "labels": labels, "splits": columns.split, "groups": columns.group}
        yield "Columns", ", ".join(f"{name} ({role})" for role, name in known.items() if name)
        unused = [name for name in table.headings if name not in (columns.file, *columns.labels, columns.split, columns.group)]
        if unused:
            yield "Not used", ", ".join(unused)
    splits = Counter(image.split for image in folder.images)
    given = ", ".join(f"{split} {splits[split]:,}" for split in folder.splits)
    yield "Splits", given or "none given: a part is drawn to measure on"
    if folder.groups:
        alone = sum(not image.group for image in folder.images)
        yield "Groups", f"{len(folder.groups):,}" + (f", and {alone:,} images of none" if alone else "")
    if facts:
        containers = Counter(fact.container for fact in facts)
        yield "Format", "; ".join(f"{name} {count:,} ({_details(name, found)})" for name, count in containers.most_common())
        yield "Size", _sizes(found)
        yield (
            "Depth",
            ", ".join(f"{bits} bits" + _of(count, facts) for bits, count in Counter(fact.bits for fact in facts).most_common()),
        )
        yield "Colour", _colour(found)
        yield from _values(found)
        yield from _instances(found)
        extras = {
            "with several pages": sum(fact.pages > 1 for fact in facts),
            "turned by EXIF": sum(fact.orientation > 1 for fact in facts),
            "with embedded small pictures, which a result leaves out": sum(fact.thumbnails > 0 for fact in facts),
            "with another ending than their content": sum(fact.misnamed for fact in facts),
        }
        if any(extras.values()):
            yield "Special", "; ".join(f"{count:,} {what}" for what, count in extras.items() if count)
    if folder.others:
        endings = Counter(PurePosixPath(path).suffix.lower() or "no ending" for path in folder.others)
        shown = ", ".join(f"{count:,} {ending}" for ending, count in endings.most_common(6))
        yield "Other files", f"{shown}; published as they are"


def _details(container: str, found: Survey) -> str:
    details = Counter(fact.detail for fact in found.facts if fact.container == container)
    shown = ", ".join(detail + (f" {count:,}" if len(details) > 1 else "") for detail, count in details.most_common(4))
    return shown + (", ..." if len(details) > 4 else "")


def _sizes(found: Survey) -> str:
    sizes = Counter((fact.width, fact.height) for fact in found.facts)
    (most, count), *rest = sizes.most_common()
    text = f"{most[0]} x {most[1]}"
    if not rest:
        return text
    small, large = (edge(sizes, key=lambda size: size[0] * size[1]) for edge in (min, max))
    return f"{small[0]} x {small[1]} to {large[0]} x {large[1]}, most often {text}{_of(count, found.facts)}"


def _colour(found: Survey) -> str:
    channels, sample = Counter(fact.channels for fact in found.facts), found.sample
    if channels[3] and sample is not None and not sample.coloured:
        return f"stored in RGB, but grey in all {sample.decoded:,} that were decoded: noise is grey, too"
    if len(channels) > 1:
        return f"RGB {channels[3]:,}, grey {channels[1]:,}: a model sees all in RGB, noise for the grey ones is grey"
    return "RGB" if channels[3] else "grey"


def _instances(found: Survey) -> Iterator[tuple[str, str]]:
    """Yield what DICOM files say of their images."""
    instances = [fact.instance for fact in found.facts if fact.instance is not None]
    if not instances:
        return

    def each(values: Iterable[object]) -> str:
        counts = Counter(map(str, values)).most_common()
        more = f", and {len(counts) - 4} others" if len(counts) > 4 else ""
        return ", ".join(f"{value or 'none'}" + _of(count, instances) for value, count in counts[:4]) + more

    yield "Modality", each(one.modality for one in instances)
    yield "Stored as", each(one.photometric for one in instances)
    units = each(f"{one.slope:g} {one.units} a level".replace("  ", " ") + f" from {one.intercept:g}" for one in instances)
    yield "Rescaled", units
    windows = each("{:g} to {:g}".format(*one.window) if one.window else "" for one in instances)
    chosen = window_of(found)
    yield "Windows", f"{windows}; a model sees " + ("{:g} to {:g}".format(*chosen) if chosen else "the range of the values")
    yield "Padding", each("{} to {}".format(*one.padding) if one.padding else "" for one in instances)
    yield "Patients", f"{len({one.patient for one in instances if one.patient}):,}"
    yield "Burned in", each(one.burned_in or "not said" for one in instances)


def _values(found: Survey) -> Iterator[tuple[str, str]]:
    bits, sample = max(fact.bits for fact in found.facts), found.sample
    if bits > 8 and sample is not None:
        low, high = sample.tails
        yield (
            "Values",
            f"{sample.low:,.10g} to {sample.high:,.10g} in the {sample.decoded:,} that were decoded, of {2**bits:,}; 99 % of them "
            f"{low:,.10g} to {high:,.10g}",
        )


def _classes(folder: ImageFolder) -> Iterator[str]:
    """Yield a table of how many images each class has, by split."""
    splits = folder.splits
    counts = Counter((label, image.split) for image in folder.images for label in image.labels)
    totals = Counter(label for image in folder.images for label in image.labels)
    rows = [
        (name, [*(counts[number, split] for split in splits), totals[number]]) for number, name in enumerate(folder.class_names)
    ]
    if folder.multi_label:
        none = Counter(image.split for image in folder.images if not image.labels)
        rows.append(("(no label)", [*(none[split] for split in splits), none.total()]))
    shown = sorted(sorted(rows, key=lambda row: -row[1][-1])[:_CLASSES]) if len(rows) > _CLASSES + 1 else rows
    width = min(40, max(len(name) for name, _ in shown) + 2)
    last = 0 if len(splits) > 1 else -1
    yield f"  {'class':{width}}" + "".join(f"{heading:>9}" for heading in (*splits, "all")[last:])
    for name, numbers in shown:
        short = name if len(name) < width else name[: width - 2] + "…"
        yield f"  {short:{width}}" + "".join(f"{number:9,}" for number in numbers[last:])
    if len(shown) < len(rows):
        yield f"  and {len(rows) - len(shown):,} rarer ones"
    yield ""


def _problems(kind: Kind, problems: Sequence[Problem]) -> Iterator[str]:
    yield ""
    yield from wrap(
        f"{kind.what[:1].upper()}{kind.what[1:]}: {len(problems):,}", _WIDTH, initial_indent="  ", subsequent_indent="  "
    )
    yield from wrap(kind.way_out, _WIDTH, initial_indent="    ", subsequent_indent="    ")
    for problem in problems[:_MOST]:
        yield f"      {problem.path}" + (f" ({problem.why})" if problem.why else "")
    if len(problems) > _MOST:
        yield f"      and {len(problems) - _MOST:,} more; --out FILE.csv lists all"


def _item(name: str, text: str) -> Iterable[str]:
    lines = wrap(text, _WIDTH - _NAMES - 2, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"  {name if number == 0 else '':{_NAMES}}{line}" for number, line in enumerate(lines)]


def _of(count: int, facts: Sequence[object]) -> str:
    return "" if count == len(facts) else f" ({count:,})"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _write(path: Path, found: Survey) -> None:
    """Write a line for each image, and for each problem that is none of an image."""
    folder, of_path = found.folder, dict[str, Problem]()
    for problem in found.problems:
        of_path.setdefault(problem.path, problem)
    lines = []
    for image, header in zip(folder.images, found.headers, strict=True):
        labels = "|".join(folder.class_names[label] for label in image.labels)
        line: dict[str, Any] = {"file": image.path, "split": image.split, "labels": labels, "group": image.group}
        if header.facts is not None:
            line |= {name: getattr(header.facts, name) for name in _COLUMNS if hasattr(header.facts, name)}
            line["embedded_pictures"] = header.facts.thumbnails
            line |= {name: getattr(header.facts.instance, name) for name in _INSTANCE if header.facts.instance}
        lines.append(line | _said(of_path.get(image.path)))
    known = {image.path for image in folder.images}
    lines += [{"file": problem.path} | _said(problem) for problem in found.problems if problem.path not in known]
    write_csv(path, _COLUMNS, ({name: _plain(value) for name, value in line.items()} for line in lines))


def _said(problem: Problem | None) -> dict[str, str]:
    return {} if problem is None else {"problem": problem.kind.what, "more": problem.why, "way_out": problem.kind.way_out}


def _plain(value: object) -> object:
    return value.encode("utf-8", errors="backslashreplace").decode() if isinstance(value, str) else value
