"""Patches: what makes the originals again of a protected result, byte for byte, for partners whose public keys are known.

Originals are carried as they are: both they and the protected files are compressed already, and a difference between them is hardly smaller
(``benchmarks/patch.py``). So nothing is ever unpacked, and what a patch writes is no larger than itself and the result together.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from salm_lightning.checked import Count, parse, refuse_constant
from salm_lightning.errors import ConfigurationError, DataError, OutputExistsError, ReleaseError
from salm_lightning.files import building, file_sha256, flush, replacing, writing
from salm_lightning.partners.archive import Archive, add_readers, write_archive
from salm_lightning.release.folder_manifest import PROTECTED, read_records
from salm_lightning.release.manifest import Manifest, is_folder_result
from salm_lightning.release.verify import refuse_failed, verify_release
from salm_lightning.release.verify_folder import original_tree, verify_folder

_BLOCK = 2**20
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Original:
    """One file that is restored.

    Attributes:
        file: Its path in what is restored, with ``/``.
        published: Path of the file in the published tree that stands for it.
        before: SHA-256 of the original.
        after: SHA-256 of the published file. Where both are the same it is copied, and not in the patch.
        size: Bytes of it in the patch.
    """

    file: str
    published: str
    before: str
    after: str
    size: Count = 0

    @property
    def carried(self) -> bool:
        """Whether the patch holds it."""
        return self.before != self.after


@dataclass(frozen=True)
class Contents:
    """The manifest of a patch: the originals in the order in which they follow."""

    format: Literal["patch-1"]
    originals: tuple[Original, ...]


@dataclass(frozen=True)
class Summary:
    """What a patch makes.

    Attributes:
        files: Number of originals.
        carried: Those of them that the patch holds; the others are published as they are.
        size: Bytes of these.
        sum: SHA-256 of the patch's list of files and sums: the same for all readers, and after others were added.
    """

    files: int
    carried: int
    size: int
    sum: str

    @classmethod
    def of(cls, originals: Sequence[Original], total: str) -> Summary:
        """Count originals."""
        carried = [one for one in originals if one.carried]
        return cls(len(originals), len(carried), sum(one.size for one in carried), total)


def write_patch(
    result: Path,
    source: Path,
    target: Path,
    writer: bytes,
    readers: Sequence[bytes],
    on_progress: OnProgress = lambda done, total: None,
) -> Summary:
    """Write a patch, completely or not at all.

    Args:
        result: Result of a folder, or of an ``.npz``; the published folder in it will do.
        source: The folder, or the ``.npz``, that it was made from.
        target: Where the patch goes.
        writer: Secret key of who writes it; any will do.
        readers: Public keys of those who may read it.
        on_progress: Takes how many files are done, and of how many.

    Raises:
        OutputExistsError: ``target`` exists.
        ConfigurationError: ``target`` lies in what is published.
        ReleaseError: The result is not what was released.
        DataError: It was made from something else than ``source``.
    """
    folder = _folder_result(result)
    tree = published(folder or result)
    _check_place("out", target, tree, "move it away to replace it, or let others read it with --add")
    if folder is not None:
        originals = _of_folder(folder, source)
    else:
        originals, source = _of_archive(tree, source), source.parent
    originals = [replace(one, size=_size(source / one.file)) if one.carried else one for one in originals]
    manifest = json.dumps(asdict(Contents("patch-1", tuple(originals)))).encode()
    with replacing(target) as temporary, temporary.open("xb") as stream:
        write_archive(stream, manifest, _carried(source, originals, on_progress), writer, readers)
    return Summary.of(originals, hashlib.sha256(manifest).hexdigest())


def add_partners(patch: Path, secret: bytes, readers: Sequence[bytes]) -> None:
    """Let further partners read a patch, without encrypting the originals again; it is replaced when that is done.

    Raises:
        SalmError: The key does not open it, or it was changed.
    """
    _check_present(patch)
    with replacing(patch) as temporary, temporary.open("xb") as stream:
        add_readers(patch, stream, secret, readers)


def restore(result: Path, patch: Path, secret: bytes, out: Path, on_progress: OnProgress = lambda done, total: None) -> Summary:
    """Write the originals, each compared with its sum, or nothing.

    Args:
        result: The result, or its published folder alone.
        patch: The patch.
        secret: Secret key of one of its readers.
        out: Folder that is made for them.
        on_progress: Takes how many files are done, and of how many.

    Raises:
        OutputExistsError: ``out`` exists.
        ConfigurationError: The key does not open the patch, or ``out`` lies in what is published.
        ReleaseError: The patch is damaged, or of another result.
    """
    _check_present(patch)
    tree = published(result)
    _check_place("out", out, tree, "name another folder")
    with patch.open("rb") as stream:
        archive = Archive(stream, patch, secret)
        originals = _originals(archive, patch)
        _check_tree(tree, originals, patch)
        with building(out) as made:
            for done, one in enumerate(originals, 1):
                blocks = archive.read(one.size) if one.carried else _blocks(tree / one.published)
                if _write(made / one.file, blocks) != one.before:
                    raise ReleaseError(f"{patch}: what it makes of {one.file} is not the original; get the patch again.")
                on_progress(done, len(originals))
            made.rename(out)
            flush(out.absolute().parent)
    return Summary.of(originals, archive.manifest_sum)


def default_patch(result: Path) -> Path:
    """Return where the patch of a result is: beside what is published, never in it."""
    tree = published(_folder_result(result) or result)
    return (tree if tree.name else tree.absolute()).parent / "patch.c4gh"


def _folder_result(result: Path) -> Path | None:
    """Return the result of a folder, which may have been named by what is published of it."""
    return next((path for path in (result, result.absolute().parent) if is_folder_result(path)), None)


def published(result: Path) -> Path:
    """Return what is published of a result, or that itself."""
    return result / PROTECTED if (result / PROTECTED).is_dir() else result


def _check_place(argument: str, place: Path, tree: Path, way_out: str) -> None:
    if os.path.lexists(place):
        raise OutputExistsError(f"{argument}={place} exists; {way_out}.")
    if place.resolve().is_relative_to(tree.resolve()):
        raise ConfigurationError(f"{argument}={place} lies in {tree}, which is published; name another place.")


def _check_present(patch: Path) -> None:
    if not patch.is_file():
        raise ReleaseError(f"patch={patch} is no file; name what salm-cli patch has written.")


def _of_folder(result: Path, source: Path) -> list[Original]:
    original_tree(str(source))
    refuse_failed(str(result), verify_folder(result))
    return [Original(record.file, record.file, record.before, record.after) for record in read_records(result)]


def _of_archive(release: Path, source: Path) -> list[Original]:
    manifest = Manifest.read(release)
    if manifest.source is None or not source.is_file():
        raise DataError(
            f"source={source} is no file that {release} was made from; patches are for .npz files and for protected folders."
        )
    refuse_failed(str(release), verify_release(release))
    return [Original(source.name, manifest.archive.name, manifest.source.sha256, manifest.archive.sha256)]


def _size(path: Path) -> int:
    if not path.is_file():
        raise DataError(f"source: {path} is missing, which was protected; give what the result was made from.")
    return path.stat().st_size


def _carried(source: Path, originals: Sequence[Original], on_progress: OnProgress) -> Iterator[bytes]:
    """Yield the bytes of the originals that a patch holds, each compared with what was protected."""
    for done, one in enumerate(originals, 1):
        if one.carried:
            total, size = hashlib.sha256(), 0
            for block in _blocks(source / one.file):
                total.update(block)
                size += len(block)
                yield block
            if (total.hexdigest(), size) != (one.before, one.size):
                raise DataError(f"source: {source / one.file} is not what was protected; give what the result was made from.")
        on_progress(done, len(originals))


def _originals(archive: Archive, patch: Path) -> tuple[Original, ...]:
    """Return what a patch says that it makes, once none of it can do harm: anybody may have made one for a public key."""
    try:
        raw = json.loads(archive.manifest, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{patch} holds no list of files ({error}); get it again.") from error
    contents: Contents = parse(Contents, raw, f"{patch}: files")
    found = contents.originals
    for names in ([one.file for one in found], [one.published for one in found]):
        strange = next((name for name in names if not _is_below(name)), None)
        if strange is not None or len(set(names)) < len(names):
            which = "the same file twice" if strange is None else f"{strange!r}, which leads out of a folder"
            raise ReleaseError(f"{patch} names {which}; do not trust who made it.")
    if sum(one.size for one in found) != archive.left or any(one.size and not one.carried for one in found):
        raise ReleaseError(f"{patch} was cut off on its way, or is longer than it says; get it again.")
    return found


def _is_below(path: str) -> bool:
    """Return whether a path that somebody has written can only mean a file below a folder."""
    return "\0" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def _check_tree(tree: Path, originals: Iterable[Original], patch: Path) -> None:
    """Refuse a patch of another result."""
    for one in originals:
        path = tree / one.published
        if not path.is_file() or file_sha256(path) != one.after:
            state = "has other bytes" if path.is_file() else "is missing"
            raise ReleaseError(f"{patch} is of another result, or {tree} was changed: {one.published} {state} there.")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            yield block


def _write(path: Path, blocks: Iterable[bytes]) -> str:
    """Write a new file and return its sum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    total = hashlib.sha256()
    with writing(path), path.open("xb") as file:
        for block in blocks:
            total.update(block)
            file.write(block)
    flush(path)
    return total.hexdigest()
