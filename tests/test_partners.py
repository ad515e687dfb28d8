"""Patches for partners: the originals byte for byte or nothing, whatever was done to the patch on its way."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
import struct
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import crypt4gh.lib
import numpy as np
import pytest
from PIL import Image

from salm_lightning.data import FolderDataModule
from salm_lightning.data.medmnist import NpzDataModule
from salm_lightning.errors import SalmError
from salm_lightning.files import write_bytes
from salm_lightning.main import main
from salm_lightning.partners.archive import SEGMENT, write_archive
from salm_lightning.partners.keys import PASSPHRASE, new_key, public_key, public_of, secret_key
from salm_lightning.partners.patch import Contents, Original, add_partners, restore, write_patch
from salm_lightning.release.folder import write_folder
from salm_lightning.release.writer import write_release

RNG = np.random.default_rng(0)
BOUND = {"norm": "linf", "radius": 8.0}
SETTINGS = {"method": {"name": "em"}}
OWNER, ANNA, BERT, EVE = (bytes([number]) * 32 for number in range(1, 5))
WHOLE = SEGMENT + 28
BEGINNING = struct.Struct("<13s32s32sQ")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several segments, and files that are published as they are: an empty one, and one whose name is not UTF-8."""
    root = tmp_path_factory.mktemp("originals") / "scans"
    for number in range(4):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (200, 200 + number, 3), np.uint8)).save(path)
    (root / "empty.txt").touch()
    (root / os.fsdecode(b"\xff.txt")).write_bytes(b"x" * SEGMENT)
    return root


@pytest.fixture(scope="module")
def result(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protected") / "result"
    data = FolderDataModule(scans, size=16, protects="all").load()
    images = data.working.images[data.rows("train")].astype(np.int16)
    noisy = np.clip(images + RNG.choice([-8, 8], images.shape), 0, 255).astype(np.uint8)
    write_folder(folder, data, [noisy], SETTINGS, BOUND, "first")
    return folder


@pytest.fixture(scope="module")
def patch(scans: Path, result: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patch") / "patch.c4gh"
    made = write_patch(result, scans, path, OWNER, [public_of(ANNA), public_of(BERT), public_of(OWNER)])
    assert (made.files, made.carried) == (6, 4)
    return path


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A folder with the key pairs of an owner and of Anna."""
    monkeypatch.setenv(PASSPHRASE, "correct horse")
    for name in ("owner", "anna"):
        assert main(["key", "new", str(tmp_path / "keys" / name)]) == 0
    capsys.readouterr()
    return tmp_path / "keys"


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refused(result: Path, patch: Path, out: Path, key: bytes = ANNA) -> str:
    """Return the one line in which a patch is refused; nothing is written."""
    before = set(out.parent.iterdir())
    with pytest.raises(SalmError) as error:
        restore(result, patch, key, out)
    assert set(out.parent.iterdir()) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def altered(patch: Path, tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "altered.c4gh"
    path.write_bytes(content)
    assert content != patch.read_bytes()
    return path


def header_length(content: bytes) -> int:
    """Return the length of a header as the standard lays it out, section 2.2: magic, version, number of packets, packets."""
    assert content[:12] == b"crypt4gh\x01\x00\x00\x00"
    at = 16
    for _ in range(int.from_bytes(content[12:16], "little")):
        at += int.from_bytes(content[at : at + 4], "little")
    return at


def split(content: bytes) -> tuple[bytes, list[bytes]]:
    """Return header and segments."""
    at = header_length(content)
    return content[:at], [content[start : start + WHOLE] for start in range(at, len(content), WHOLE)]


@pytest.mark.parametrize("key", [OWNER, ANNA, BERT])
def test_every_reader_gets_all_files_byte_for_byte(key: bytes, scans: Path, result: Path, patch: Path, tmp_path: Path) -> None:
    for place in (result, result / "protected"):  # the owner's, and what a partner has of it
        restore(place, patch, key, tmp_path / place.name)
        assert tree(tmp_path / place.name) == tree(scans)


def test_the_reference_implementation_decrypts_a_patch(scans: Path, patch: Path) -> None:
    clear = io.BytesIO()
    with patch.open("rb") as stream:
        crypt4gh.lib.decrypt([(0, BERT, None)], stream, clear)
    magic, header, total, length = BEGINNING.unpack_from(clear.getvalue())
    rest = clear.getvalue()[BEGINNING.size :]
    assert magic == b"salm-patch-1\n"
    assert header == sha256(split(patch.read_bytes())[0]).digest()
    assert total == sha256(rest[:length]).digest()
    names = [one["file"] for one in json.loads(rest[:length])["originals"] if one["before"] != one["after"]]
    assert names == [f"{'ab'[number % 2]}/{number}.png" for number in (0, 2, 1, 3)]
    assert rest[length:] == b"".join((scans / name).read_bytes() for name in names)


def test_a_partner_is_added_without_encrypting_the_originals_again(
    scans: Path, result: Path, patch: Path, tmp_path: Path
) -> None:
    more = tmp_path / "patch.c4gh"
    shutil.copy(patch, more)
    assert "does not open" in refused(result, more, tmp_path / "out", EVE)
    add_partners(more, OWNER, [public_of(EVE)])
    for name, key in (("eve", EVE), ("anna", ANNA), ("owner", OWNER)):
        assert restore(result, more, key, tmp_path / name).sum == restore(result, patch, BERT, tmp_path / f"{name}-before").sum
        assert tree(tmp_path / name) == tree(scans)
    before, after = split(patch.read_bytes())[1], split(more.read_bytes())[1]
    assert before[1:] == after[1:]
    assert before[0] != after[0]
    with pytest.raises(SalmError, match="does not open"):
        add_partners(more, b"z" * 32, [public_of(EVE)])


def test_200_changes_of_a_byte_are_refused(result: Path, patch: Path, tmp_path: Path) -> None:
    content = patch.read_bytes()
    places = RNG.integers(0, len(content), 200).tolist()
    for place in [*places, *range(0, header_length(content), 9), len(content) - 1]:  # also where other readers' packets are
        changed = bytearray(content)
        changed[place] ^= int(RNG.integers(1, 256))
        refused(result, altered(patch, tmp_path, bytes(changed)), tmp_path / "out")


def test_what_is_cut_off_left_out_doubled_or_in_another_order_is_refused(result: Path, patch: Path, tmp_path: Path) -> None:
    header, segments = split(patch.read_bytes())
    assert len(segments) > 6
    assert len(segments[-1]) < WHOLE
    orders = [
        *([*segments[:count]] for count in range(len(segments))),
        [*segments[:-1], segments[-1][:-1]],
        [*segments[:-1], segments[-1][:20]],
        [*segments, b"more"],
        [*segments, segments[-1]],
        [segments[0], segments[2], segments[1], *segments[3:]],
        [segments[1], segments[0], *segments[2:]],
        [*segments[:2], *segments[1:]],
        [segments[0], *segments[2:]],
        [*segments[:3], segments[2], *segments[4:]],
    ]
    for order in orders:
        said = refused(result, altered(patch, tmp_path, header + b"".join(order)), tmp_path / "out")
        assert "get " in said
    for length in (0, 5, 16, 100):
        refused(result, altered(patch, tmp_path, header[:length]), tmp_path / "out")


@pytest.mark.parametrize("more", [b"1234567890123456789012345678", b""])
def test_bytes_behind_a_last_segment_that_is_full_are_refused(more: bytes, result: Path, tmp_path: Path) -> None:
    manifest = json.dumps(asdict(Contents("patch-1", (Original("a", "b", "0" * 64, "1" * 64, 1000),)))).encode()
    filled = forged(tmp_path, manifest, b"x" * (SEGMENT - BEGINNING.size - len(manifest)))
    (segment,) = split(filled.read_bytes())[1]
    assert len(segment) == WHOLE
    with filled.open("ab") as stream:
        stream.write(more or segment)
    assert "cut off" in refused(result, filled, tmp_path / "out")


def test_a_list_of_which_a_segment_was_left_out_is_refused(result: Path, tmp_path: Path) -> None:
    """One that would read as a shorter list."""
    total = sha256((result / "protected/a/0.png").read_bytes()).hexdigest()
    one = json.dumps(asdict(Original("a/0.png", "a/0.png", total, total)))
    parts = ('{"format": "patch-1", "originals": [', "", one, "]}")
    manifest = "".join(part.ljust(SEGMENT - (0 if number else BEGINNING.size)) for number, part in enumerate(parts)).encode()
    whole = forged(tmp_path, manifest, b"")
    assert restore(result, whole, ANNA, tmp_path / "whole").files == 1
    header, segments = split(whole.read_bytes())
    shorter = altered(whole, tmp_path, header + b"".join(segments[number] for number in (0, 1, 1, 3)))
    assert "was changed" in refused(result, shorter, tmp_path / "out")


def test_a_patch_of_another_result_is_refused(result: Path, patch: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(result / "protected", other)
    path = other / "a/2.png"
    path.write_bytes(path.read_bytes() + b"x")
    assert f"of another result, or {other} was changed: a/2.png has other bytes" in refused(other, patch, tmp_path / "out")
    path.unlink()
    assert "a/2.png is missing" in refused(other, patch, tmp_path / "out")


def forged(tmp_path: Path, manifest: bytes, content: bytes) -> Path:
    """Return a patch as anybody can make it for Anna's public key."""
    path = tmp_path / "forged.c4gh"
    with path.open("wb") as stream:
        write_archive(stream, manifest, [content], EVE, [public_of(ANNA)])
    return path


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["../evil"], "leads out of a folder"),
        (["/tmp/evil"], "leads out of a folder"),
        (["a/../../evil"], "leads out of a folder"),
        (["a/./evil"], "leads out of a folder"),
        (["a//evil"], "leads out of a folder"),
        ([""], "leads out of a folder"),
        (["evil\0"], "leads out of a folder"),
        (["evil", "evil"], "the same file twice"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(names: list[str], said: str, result: Path, tmp_path: Path) -> None:
    content = b"evil"
    originals = [
        Original(name, f"{number}", sha256(content).hexdigest(), "0" * 64, len(content)) for number, name in enumerate(names)
    ]
    manifest = json.dumps(asdict(Contents("patch-1", tuple(originals)))).encode()
    assert said in refused(result, forged(tmp_path, manifest, content * len(names)), tmp_path / "out")
    outward = [Original("evil", name, "1" * 64, "1" * 64) for name in names]
    manifest = json.dumps(asdict(Contents("patch-1", tuple(outward)))).encode()
    assert "do not trust" in refused(result, forged(tmp_path, manifest, b""), tmp_path / "out")


@pytest.mark.parametrize("size", [0, 10**15, -1, "4"])
def test_sizes_that_are_not_those_of_the_patch_are_refused(size: object, result: Path, tmp_path: Path) -> None:
    one = {"file": "bomb", "published": "a/0.png", "before": "0" * 64, "after": "1" * 64, "size": size}
    manifest = json.dumps({"format": "patch-1", "originals": [one]}).encode()
    refused(result, forged(tmp_path, manifest, b"bomb"), tmp_path / "out")


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b"[" * 10**5, b'{"format": "patch-2", "originals": []}', b"\xff"])
def test_what_is_no_list_of_files_is_refused(manifest: bytes, result: Path, tmp_path: Path) -> None:
    refused(result, forged(tmp_path, manifest, b""), tmp_path / "out")


def test_a_list_longer_than_the_patch_is_refused(
    result: Path, patch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "salm_lightning.partners.archive._beginning",
        lambda header, manifest: BEGINNING.pack(b"salm-patch-1\n", sha256(header).digest(), sha256(b"").digest(), 2**60),
    )
    assert "was changed or cut off" in refused(result, forged(tmp_path, b"{}", b""), tmp_path / "out")
    monkeypatch.setattr("salm_lightning.partners.archive.LONGEST_MANIFEST", 100)  # nor is one read that memory might not hold
    assert "was changed or cut off" in refused(result, patch, tmp_path / "out")


def test_what_a_patch_makes_has_to_be_the_original(result: Path, tmp_path: Path) -> None:
    after = sha256((result / "protected/a/0.png").read_bytes()).hexdigest()
    manifest = json.dumps(asdict(Contents("patch-1", (Original("a/0.png", "a/0.png", "0" * 64, after, 4),)))).encode()
    assert "a/0.png is not the original" in refused(result, forged(tmp_path, manifest, b"evil"), tmp_path / "out")


def test_nothing_is_replaced_and_nothing_original_lands_in_what_is_published(
    scans: Path, result: Path, patch: Path, tmp_path: Path
) -> None:
    with pytest.raises(SalmError, match="exists"):
        restore(result, patch, ANNA, tmp_path)
    with pytest.raises(SalmError, match="which is published"):
        restore(result, patch, ANNA, result / "protected/originals")
    with pytest.raises(SalmError, match="exists"):
        write_patch(result, scans, patch, OWNER, [public_of(ANNA)])
    with pytest.raises(SalmError, match="which is published"):
        write_patch(result, scans, result / "protected/patch.c4gh", OWNER, [public_of(ANNA)])


def test_only_the_originals_that_were_protected_go_into_a_patch(scans: Path, result: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "scans", tmp_path / "patch.c4gh"
    shutil.copytree(scans, source)
    path = source / "a/0.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(SalmError, match=r"a/0\.png is not what was protected"):
        write_patch(result, source, out, OWNER, [public_of(ANNA)])
    path.unlink()
    with pytest.raises(SalmError, match=r"a/0\.png is missing"):
        write_patch(result, source, out, OWNER, [public_of(ANNA)])
    other = tmp_path / "result"
    shutil.copytree(result, other)
    (other / "protected/a/0.png").write_bytes(b"x")
    with pytest.raises(SalmError, match="is not what was released"):
        write_patch(other, scans, out, OWNER, [public_of(ANNA)])
    assert {entry.name for entry in tmp_path.iterdir()} == {"scans", "result"}


def test_an_npz_is_restored_to_its_very_bytes(tmp_path: Path) -> None:
    images = {f"{split}_images": RNG.integers(0, 256, (12, 28, 28), np.uint8) for split in ("train", "val", "test")}
    labels = {f"{split}_labels": np.arange(12).reshape(12, 1) % 2 for split in ("train", "val", "test")}
    source, release = tmp_path / "my scans.npz", tmp_path / "result/protected"
    np.savez_compressed(source, **images, **labels)
    data = NpzDataModule(source).load()
    noisy = np.clip(images["train_images"].astype(int) + 4, 0, 255).astype(np.uint8)
    write_release(release, data, [noisy], SETTINGS, BOUND)
    patch = tmp_path / "patch.c4gh"
    assert write_patch(tmp_path / "result", source, patch, OWNER, [public_of(ANNA)]).files == 1
    restore(release, patch, ANNA, tmp_path / "out")
    assert tree(tmp_path / "out") == {"my scans.npz": source.read_bytes()}
    with pytest.raises(SalmError, match=r"patches are for \.npz files"):
        write_patch(release, tmp_path, tmp_path / "more.c4gh", OWNER, [public_of(ANNA)])


def test_the_command_line(
    scans: Path, result: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stat.S_IMODE((keys / "anna").stat().st_mode) == 0o600
    shutil.copytree(result, tmp_path / "result")
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        code = main(list(words))
        said = capsys.readouterr()
        assert code == (2 if said.err else 0)
        assert len(said.err.splitlines()) == bool(said.err)
        return said.err or said.out

    assert run("key", "new", "keys/bert").startswith("Secret key:")
    written = run(
        "patch", "result", "--source", str(scans), "--for", "keys/anna.pub", "--for", "keys/bert.pub", "--key", "keys/owner"
    )
    assert "2 partners, and your own key" in written
    assert "exists" in run("patch", "result", "--source", str(scans), "--for", "keys/anna.pub")
    for name in ("anna", "bert", "owner"):
        done = run("restore", "result/protected", "result/patch.c4gh", "--key", f"keys/{name}", "--out", name)
        assert written.split("Contents:")[1].split()[0].rstrip(";") in done
        assert tree(tmp_path / name) == tree(scans)
    assert run("key", "new", "keys/eve").startswith("Secret key:")
    assert "1 more partner" in run("patch", "result", "--add", "keys/eve.pub", "--key", "keys/owner")
    run("restore", "result", "result/patch.c4gh", "--key", "keys/eve", "--out", "eve")
    assert tree(tmp_path / "eve") == tree(scans)
    for words, said in (
        (("patch", "result", "--source", "x"), "either with --for"),
        (("patch", "result", "--for", "keys/anna.pub"), "needs --source"),
        (("patch", "result", "--add", "keys/anna.pub"), "needs --key"),
        (("patch", "result", "--source", "x", "--for", "keys/anna"), "is no public key"),
        (("patch", "result", "--source", "x", "--for", "nowhere.pub"), "is no public key"),
        (("restore", "result", "result/patch.c4gh", "--key", "keys/anna.pub", "--out", "new"), "is no secret key"),
        (("restore", "result", "result/patch.c4gh", "--key", "nowhere", "--out", "new"), "key=nowhere is no file"),
        (("restore", "result", "nowhere", "--key", "keys/anna", "--out", "new"), "patch=nowhere is no file"),
        (("restore", "result", "result/patch.c4gh", "--out", "new"), "--key is missing"),
        (("restore", "result", "result/patch.c4gh", "--key", "keys/anna"), "--out is missing"),
        (("key", "new", "keys/anna"), "is never replaced"),
    ):
        assert said in run(*words), words
    monkeypatch.setenv(PASSPHRASE, "wrong")
    said = run("restore", "result", "result/patch.c4gh", "--key", "keys/anna", "--out", "new")
    assert "key=keys/anna: the passphrase is wrong" in said
    assert "has 5 characters" in run("key", "new", "keys/short")
    monkeypatch.delenv(PASSPHRASE)
    assert f"set {PASSPHRASE}" in run("key", "new", "keys/nobody")
    assert not (tmp_path / "new").exists()
    monkeypatch.setitem(sys.modules, "crypt4gh.header", None)
    assert "pip install 'salm-lightning[keys]'" in run("patch", "result", "--source", "x", "--for", "keys/anna.pub")


def test_a_passphrase_is_asked_for_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["correct horse", "battery staple", "correct horse", "correct horse", "correct horse"])
    monkeypatch.setattr("getpass.getpass", lambda question: next(answers))
    assert main(["key", "new", str(tmp_path / "key")]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["key", "new", str(tmp_path / "key")]) == 0
    assert public_of(secret_key(tmp_path / "key")) == public_key(tmp_path / "key.pub")


@pytest.mark.parametrize("broken", ["key", "key.pub"])
def test_no_key_stands_without_the_other(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes, private: bool = False) -> None:
        if path.name == broken:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_bytes(path, content, private)

    monkeypatch.setattr("salm_lightning.partners.keys.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        new_key(tmp_path / "key", "correct horse")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("salm_lightning.partners.keys.write_bytes", write_bytes)
    new_key(tmp_path / "key", "correct horse")


def test_keys_are_those_of_the_reference_implementation(keys: Path) -> None:
    from crypt4gh.keys import c4gh, get_private_key, get_public_key

    secret = get_private_key(str(keys / "anna"), lambda: "correct horse")
    assert (secret, get_public_key(str(keys / "anna.pub"))) == (secret_key(keys / "anna"), public_of(secret))
    c4gh.generate(str(keys / "theirs"), str(keys / "theirs.pub"), b"correct horse", None)
    assert public_of(secret_key(keys / "theirs")) == public_key(keys / "theirs.pub")


def test_a_public_key_with_which_anybody_could_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "zero.pub"
    path.write_text(f"-----BEGIN CRYPT4GH PUBLIC KEY-----\n{'A' * 43}=\n-----END CRYPT4GH PUBLIC KEY-----\n")
    with pytest.raises(SalmError, match="is no public key"):
        public_key(path)
