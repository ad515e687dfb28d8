"""One encrypted archive for several readers: a Crypt4GH file of which every byte is checked.

Crypt4GH (GA4GH's standard, version 1) has a header with a packet for each reader, which holds the session key, and then segments of 64
KiB, each encrypted and authenticated by itself (ChaCha20-Poly1305). What it leaves open is closed here: segments that are left out, doubled
or in another order, and packets of other readers. The clear text begins with the sum of the header, and length and sum of a manifest, which
says how long each part is that follows, and its sum. Any tool for Crypt4GH decrypts the archive to that.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from salm_lightning.errors import ConfigurationError, ReleaseError
from salm_lightning.partners.keys import crypt4gh, public_of

SEGMENT = 2**16
"""Bytes of a segment's clear text; the last one may have fewer."""
_NONCE, _TAG = 12, 16
_WHOLE = SEGMENT + _NONCE + _TAG
_MAGIC = b"salm-patch-1\n"
_BEGINNING = struct.Struct("<13s32s32sQ")
"""Magic, sum of the header, sum and length of the manifest."""
_LONGEST_HEADER = 2**20
"""Bytes; a packet has 112."""
LONGEST_MANIFEST = 2**28
"""Bytes, of about a million files."""


class Header(NamedTuple):
    """The header of an archive."""

    content: bytes
    packets: list[bytes]
    session: bytes


def write_archive(stream: BinaryIO, manifest: bytes, contents: Iterable[bytes], writer: bytes, readers: Iterable[bytes]) -> None:
    """Write an archive.

    Args:
        stream: Where it goes.
        manifest: Says what the contents are, with lengths and sums.
        contents: What follows the manifest, in blocks of any length.
        writer: Secret key of who writes; any will do.
        readers: Public keys of those who may read.

    Raises:
        ConfigurationError: The manifest is too long.
    """
    if len(manifest) > LONGEST_MANIFEST:
        raise ConfigurationError(
            f"these are too many files for one patch, whose list has {len(manifest)} bytes; split the folder."
        )
    session = os.urandom(32)
    header = crypt4gh().header
    content = header.serialize(_packets(session, writer, readers))
    stream.write(content)
    for segment in _segments(chain([_beginning(content, manifest), manifest], contents)):
        stream.write(_encrypted(session, segment))


def add_readers(archive: Path, target: BinaryIO, secret: bytes, readers: Iterable[bytes]) -> None:
    """Write an archive anew for further readers: its header, and its first segment, which holds the header's sum; the rest is copied.

    Raises:
        ConfigurationError: The key does not open it.
        ReleaseError: It is no archive, or was changed.
    """
    with archive.open("rb") as source:
        header = read_header(source, archive, secret)
        first = _decrypted(header.session, source.read(_WHOLE), archive)
        _check_beginning(first, header, archive)
        content = crypt4gh().header.serialize([*header.packets, *_packets(header.session, secret, readers)])
        magic, _, *rest = _BEGINNING.unpack_from(first)
        target.write(content)
        beginning = _BEGINNING.pack(magic, hashlib.sha256(content).digest(), *rest)
        target.write(_encrypted(header.session, beginning + first[_BEGINNING.size :]))
        shutil.copyfileobj(source, target, SEGMENT)


class Archive:
    """An archive that is being read from its beginning to its end.

    Args:
        stream: The file, opened for reading.
        path: What it is called.
        secret: Secret key of one of its readers.

    Attributes:
        manifest: Its manifest, whose sum is checked.
        manifest_sum: That sum in hexadecimal; it stands for all contents.
        left: Bytes of the contents, which nothing has been compared with yet.

    Raises:
        ConfigurationError: The key does not open it.
        ReleaseError: It is no archive, or was changed.
    """

    def __init__(self, stream: BinaryIO, path: Path, secret: bytes) -> None:
        self._stream, self._path = stream, path
        header = read_header(stream, path, secret)
        self._session = header.session
        whole, rest = divmod(path.stat().st_size - len(header.content), _WHOLE)
        if 0 < rest <= _NONCE + _TAG:  # no segment is that short
            raise _changed(path)
        clear = whole * SEGMENT + max(0, rest - _NONCE - _TAG)
        self._clear = self._next()
        total, length = _check_beginning(self._clear, header, path)
        self._clear = self._clear[_BEGINNING.size :]
        self.left = clear - _BEGINNING.size - length
        if length > LONGEST_MANIFEST or self.left < 0:
            raise _changed(path)
        self.manifest = b"".join(self.read(length))
        self.manifest_sum = total.hex()
        if hashlib.sha256(self.manifest).digest() != total:
            raise _changed(path)

    def read(self, length: int) -> Iterator[bytes]:
        """Yield the next bytes, in blocks.

        Raises:
            ReleaseError: They were changed, or are not there.
        """
        while length > 0:
            self._clear = self._clear or self._next()
            block, self._clear = self._clear[:length], self._clear[length:]
            length -= len(block)
            yield block

    def _next(self) -> bytes:
        return _decrypted(self._session, self._stream.read(_WHOLE), self._path)


def read_header(stream: BinaryIO, path: Path, secret: bytes) -> Header:
    """Read the header of an archive, and leave the stream behind it.

    Raises:
        ConfigurationError: The key does not open it.
        ReleaseError: It is no archive.
    """
    library = crypt4gh().header
    content = io.BytesIO(stream.read(_LONGEST_HEADER))
    try:
        packets = list(library.parse(content))
    except ValueError as error:
        raise ReleaseError(f"{path} is no patch, or was changed on its way ({error}); get it again.") from error
    opened, _ = library.decrypt(packets, [(0, secret, public_of(secret))])
    try:
        session = bytes(library.parse_enc_packet(library.partition_packets(opened)[0][0]))
    except (ValueError, IndexError) as error:
        raise ConfigurationError(
            f"the key does not open patch={path}: it was made for other keys, or changed on its way. Ask its owner for one."
        ) from error
    stream.seek(content.tell())
    return Header(content.getvalue()[: content.tell()], packets, session)


def _packets(session: bytes, writer: bytes, readers: Iterable[bytes]) -> list[bytes]:
    """Return what tells each reader the session key."""
    library: Any = crypt4gh().header
    return list(library.encrypt(library.make_packet_data_enc(0, session), [(0, writer, reader) for reader in readers]))


def _beginning(header: bytes, manifest: bytes) -> bytes:
    return _BEGINNING.pack(_MAGIC, hashlib.sha256(header).digest(), hashlib.sha256(manifest).digest(), len(manifest))


def _check_beginning(clear: bytes, header: Header, path: Path) -> tuple[bytes, int]:
    """Return sum and length of the manifest."""
    if len(clear) < _BEGINNING.size:
        raise _changed(path)
    magic, header_sum, manifest_sum, length = _BEGINNING.unpack_from(clear)
    if magic != _MAGIC:
        raise ReleaseError(f"{path} holds no patch that this version reads; get it again.")
    if header_sum != hashlib.sha256(header.content).digest():
        raise _changed(path)
    return manifest_sum, length


def _segments(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield blocks of any length as segments."""
    waiting = bytearray()
    for block in blocks:
        waiting += block
        while len(waiting) >= SEGMENT:
            yield bytes(waiting[:SEGMENT])
            del waiting[:SEGMENT]
    if waiting:
        yield bytes(waiting)


def _encrypted(session: bytes, clear: bytes) -> bytes:
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = os.urandom(_NONCE)
    return nonce + ChaCha20Poly1305(session).encrypt(nonce, clear, None)


def _decrypted(session: bytes, segment: bytes, path: Path) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return ChaCha20Poly1305(session).decrypt(segment[:_NONCE], segment[_NONCE:], None)
    except (InvalidTag, ValueError) as error:  # one cut short has too few bytes for a nonce
        raise _changed(path) from error


def _changed(path: Path) -> ReleaseError:
    return ReleaseError(f"{path} was changed or cut off on its way; get it again.")
