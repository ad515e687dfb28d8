"""DICOM: all elements carried over verbatim but for those that say what the image is, with new pixels among them.

The written file is a derived image in the sense of PS3.3, C.7.6.1.1.2 and C.12.4.1: it has an identifier of its own, and says so.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import Any, BinaryIO, Literal, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.formats.base import Codec, Facts, Pixels, differing
from salm_lightning.data.formats.dicom_elements import Element, Elements, Tag, named
from salm_lightning.data.formats.dicom_facts import facts_of, layout_of, syntax_of, uids_of, without_pictures
from salm_lightning.data.formats.dicom_syntaxes import decoded, encoded
from salm_lightning.data.formats.tags import Lazy

BARE = tuple(bytes.fromhex(start) for start in ("02000000", "02001000", "08000000", "08000500", "08000800", "08001600"))
"""How a DICOM file begins that has lost its preamble."""
_DROPPED = (
    *(Tag.LengthToEnd, Tag.IconImageSequence, Tag.MACParametersSequence, Tag.DigitalSignaturesSequence),
    *(Tag.ExtendedOffsetTable, Tag.ExtendedOffsetTableLengths),
)
"""Elements that show the original, or are no longer true."""
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""A preamble that shows the pixels to readers of TIFF; their place changes, and so it becomes zeros."""
_ENHANCED = tuple(f"1.2.840.10008.5.1.4.1.1.{tail}" for tail in ("2.1", "4.1", "4.3", "130"))
"""Enhanced CT, MR, MR in colour, and PET."""
_SAID = b"Protected by salm-lightning: bounded noise was added to the pixels."


class Dicom(Codec):
    """Images with one or more frames, 8 to 16 bits with or without sign, grey or colour without palette."""

    container = "DICOM"
    endings = (".dcm", ".dicom")
    signatures = (b"DICM",)
    starts_at = 128

    def facts(self, stream: BinaryIO) -> Facts:
        """Walk over the elements."""
        elements = Elements(Lazy(stream))
        return facts_of(elements, syntax_of(elements), layout_of(elements))

    def decode(self, content: bytes, facts: Facts) -> tuple[Pixels, Pixels | None]:
        """Decode the pixels, and say which of them are no padding, and inside of ultrasound regions, if there are any."""
        elements = Elements(content)
        pixels, words = decoded(elements.raw(elements.data[Tag.PixelData]), syntax_of(elements), layout_of(elements))
        return pixels, _inside(elements, facts, words)

    def encode(self, content: bytes, facts: Facts, pixels: Pixels, radius: int, secret: bytes = b"") -> bytes:
        """Code the pixels as they were, losslessly, and say in the elements that the image is another one."""
        elements = Elements(content)
        syntax, layout, before = syntax_of(elements), layout_of(elements), elements.data[Tag.PixelData]
        value = encoded(pixels, elements.raw(before), syntax, layout)
        kind = before.kind if syntax.native else b"OB"
        made = elements.made(Tag.PixelData, kind, value, undefined=not syntax.native)
        uid, series = uids_of(elements)
        own = _fresh(
            uid, secret, sha256(value).digest()
        )  # of a copy with other noise, or another release of the file, it is another one
        return _assembled(elements, _New(own, _fresh(series, secret), *_extremes(facts, pixels)), made)

    def parts(self, content: bytes, *, blank: bool) -> list[tuple[str, bytes]]:
        """Return the elements but the pixels, as they are; what :meth:`encode` changes depends on the pixels, too."""
        elements = Elements(content)
        found = [*elements.meta.values(), *elements.data.values()]
        return [
            ("preamble", content[:128]),
            *(
                (_called(elements, one.tag), b"" if one.tag == Tag.PixelData else content[one.start : one.end])
                for one in found
                if one.tag & 0xFFFF  # not lengths of groups, which change with what is in them
            ),
        ]

    def unexplained(self, original: bytes, other: bytes) -> tuple[str, ...]:
        """Make anew what :meth:`encode` makes of the original, from the pixels and the identifiers of the other file."""
        before, after = Elements(original), Elements(other)
        pixels, _ = decoded(after.raw(after.data[Tag.PixelData]), syntax_of(after), layout_of(after))
        facts = facts_of(before, syntax_of(before), layout_of(before))
        uids, element = uids_of(after), after.data[Tag.PixelData]
        strange = [
            f"identifier {new} is none that could have been given"
            for old, new in zip(uids_of(before), uids, strict=True)
            if new != old and not re.fullmatch(r"2\.25\.[1-9]\d{0,38}", new)
        ]
        made = _assembled(before, _New(*uids, *_extremes(facts, pixels)), other[element.start : element.end])
        parts = (self.parts(one, blank=False) for one in (made, other))
        return (*strange, *(() if made == other else differing(*parts) or ("length of a group differs",)))


def _called(elements: Elements, tag: int) -> str:
    """Return what an element is called where files are compared; the transfer syntax with its value, which people look for."""
    return f"{named(tag)} {syntax_of(elements).name}" if tag == Tag.TransferSyntaxUID else named(tag)


class _New(NamedTuple):
    """What a written file has for its own: identifiers, and its smallest and largest value."""

    uid: str
    series: str
    smallest: int
    largest: int


def _inside(elements: Elements, facts: Facts, words: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Return 0 where a pixel is padding or outside of all ultrasound regions, else 255; ``None`` where no file says so."""
    instance = facts.instance
    if instance is None or not facts.alpha:
        return None
    inside = np.full(facts.shape[:3], 255, np.uint8)
    if instance.padding is not None:
        low, high = instance.padding
        inside[((words >= low) & (words <= high)).all(axis=-1)] = 0
    if instance.regions:
        region = np.zeros(facts.shape[1:3], bool)
        for item in elements.items(elements.data[Tag.SequenceOfUltrasoundRegions]):
            left, top, right, bottom = (
                elements.numbers(item.get(tag), "L")[0]
                for tag in (Tag.RegionLocationMinX0, Tag.RegionLocationMinY0, Tag.RegionLocationMaxX1, Tag.RegionLocationMaxY1)
            )
            region[top : bottom + 1, left : right + 1] = True
        inside[:, ~region] = 0
    return inside


def _extremes(facts: Facts, pixels: Pixels) -> tuple[int, int]:
    """Return the smallest and largest value of an image that are no padding, as an element holds them."""
    image = pixels
    if facts.instance is not None and facts.instance.padding is not None:
        low, high = facts.instance.padding
        image = pixels[(pixels < low) | (pixels > high)]
    return (int(image.min(initial=facts.limits[1])), int(image.max(initial=facts.limits[0])))


def _fresh(uid: str, secret: bytes, content: bytes = b"") -> str:
    """Return what an identifier becomes: always the same with one secret and content, and not to be guessed without it (PS3.5, B.2)."""
    if not uid or not secret:
        return uid
    return f"2.25.{UUID(bytes=hmac.digest(secret, uid.encode() + content, 'sha256')[:16], version=4).int}"


def _assembled(elements: Elements, new: _New, pixels: bytes) -> bytes:
    """Return the file with other pixels, and the elements that follow from that."""
    content, written = elements.content, {**_changed(elements, new), Tag.PixelData: pixels}
    groups: dict[int, list[bytes]] = {}
    lengths: dict[int, Element] = {}
    known = {**elements.meta, **elements.data}
    for tag in sorted({*known, *written}):
        if tag in written:
            piece = written[tag]
        elif tag & 0xFFFF == 0:
            lengths[tag >> 16] = known[tag]
            continue
        else:
            piece = without_pictures(elements, known[tag])[0]
        if tag not in _DROPPED:
            groups.setdefault(tag >> 16, []).append(piece)
    made = [(bytes(128) if content[:4] in _TIFF else content[:128]) + content[128:132]]
    for group, pieces in groups.items():
        body = b"".join(pieces)
        if group in lengths:  # retired, but for group 2; it counts the bytes of its group
            order: Literal["little", "big"] = "little" if group == 2 or elements.order == "<" else "big"
            made.append(elements.made(group << 16, b"UL", len(body).to_bytes(4, order)))
        made.append(body)
    return b"".join(made)


def _changed(elements: Elements, new: _New) -> dict[int, bytes]:
    """Return the elements that say of the image what it is now."""
    data, syntax, layout = elements.data, syntax_of(elements), layout_of(elements)
    written: dict[int, bytes] = {}

    def write(tag: int, kind: bytes, value: bytes) -> None:
        known = data.get(tag) or elements.meta.get(tag)
        value += (b"\0" if kind == b"UI" else b" ") * (len(value) % 2)
        kind = known.kind if known is not None and known.kind else kind
        written[tag] = elements.made(tag, kind, value)

    own = {Tag.MediaStorageSOPInstanceUID: new.uid, Tag.SOPInstanceUID: new.uid, Tag.SeriesInstanceUID: new.series}
    for tag, uid in own.items():
        if tag in data or tag in elements.meta:
            write(tag, b"UI", uid.encode())
    if syntax.becomes != elements.syntax:
        write(Tag.TransferSyntaxUID, b"UI", syntax.becomes.encode())
    write(Tag.ImageType, b"CS", _derived(elements))
    before = elements.raw(data[Tag.DerivationDescription]).rstrip(b" \0") if Tag.DerivationDescription in data else b""
    said = b"; ".join(filter(None, (before, _SAID)))
    write(Tag.DerivationDescription, b"ST", said if len(said) <= 1024 else before)
    if layout.becomes(syntax) != layout.photometric:
        write(Tag.PhotometricInterpretation, b"CS", layout.becomes(syntax).encode())
    if Tag.PlanarConfiguration in data and syntax.becomes != elements.syntax:
        write(Tag.PlanarConfiguration, b"US", bytes(2))
    for tag, value in ((Tag.SmallestImagePixelValue, new.smallest), (Tag.LargestImagePixelValue, new.largest)):
        if tag in data:
            write(tag, b"US", (value % 2**16).to_bytes(2, "little" if elements.order == "<" else "big"))
    if syntax.lossy:
        write(Tag.LossyImageCompression, b"CS", b"01")
        if Tag.LossyImageCompressionRatio not in data and Tag.LossyImageCompressionMethod not in data:
            ratio = layout.length / max(1, data[Tag.PixelData].end - data[Tag.PixelData].at)
            write(Tag.LossyImageCompressionRatio, b"DS", f"{ratio:.2f}".encode())
            write(Tag.LossyImageCompressionMethod, b"CS", syntax.lossy.encode())
    return written


def _derived(elements: Elements) -> bytes:
    """Return ImageType that does not say ORIGINAL.

    A derived image of the enhanced classes may not have what says how it was acquired (such as PS3.3, C.8.13.4), and that is carried over;
    a MIXED one may.
    """
    if Tag.ImageType not in elements.data:
        return b"DERIVED\\PRIMARY"
    before = elements.raw(elements.data[Tag.ImageType])
    first, divided, rest = before.partition(b"\\")
    if first.strip() != b"ORIGINAL":
        return before
    new = b"MIXED" if elements.text(elements.meta.get(Tag.MediaStorageSOPClassUID)) in _ENHANCED else b"DERIVED"
    return (new + divided + rest).rstrip(b" \0")
