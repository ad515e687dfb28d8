"""DICOM's list of elements (PS3.5, 7): where each begins and ends, so that all but a few can be carried over byte for byte."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from enum import IntEnum
from math import inf
from typing import NamedTuple

from salm_lightning.data.formats.base import UnsupportedImage
from salm_lightning.data.formats.tags import Lazy

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))
"""Transfer syntaxes whose elements are written in another way than explicitly and in little endian, and that one (PS3.5, A)."""
_ITEM, _ITEM_END, _END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Kinds of value whose length has four bytes, behind two that are reserved."""
_UNDEFINED = 2**32 - 1
_DEEPEST, _MOST = 32, 2**20
_START = 132
"""Bytes of the preamble and of ``DICM`` behind it."""


class Tag(IntEnum):
    """The elements that are looked at or written, by their keywords (PS3.6)."""

    MediaStorageSOPClassUID = 0x00020002
    MediaStorageSOPInstanceUID = 0x00020003
    TransferSyntaxUID = 0x00020010
    DirectoryRecordSequence = 0x00041220
    LengthToEnd = 0x00080001
    ImageType = 0x00080008
    SOPInstanceUID = 0x00080018
    Modality = 0x00080060
    DerivationDescription = 0x00082111
    PatientID = 0x00100020
    SequenceOfUltrasoundRegions = 0x00186011
    RegionLocationMinX0 = 0x00186018
    RegionLocationMinY0 = 0x0018601A
    RegionLocationMaxX1 = 0x0018601C
    RegionLocationMaxY1 = 0x0018601E
    SeriesInstanceUID = 0x0020000E
    SamplesPerPixel = 0x00280002
    PhotometricInterpretation = 0x00280004
    PlanarConfiguration = 0x00280006
    NumberOfFrames = 0x00280008
    Rows = 0x00280010
    Columns = 0x00280011
    BitsAllocated = 0x00280100
    BitsStored = 0x00280101
    HighBit = 0x00280102
    PixelRepresentation = 0x00280103
    SmallestImagePixelValue = 0x00280106
    LargestImagePixelValue = 0x00280107
    PixelPaddingValue = 0x00280120
    PixelPaddingRangeLimit = 0x00280121
    BurnedInAnnotation = 0x00280301
    WindowCenter = 0x00281050
    WindowWidth = 0x00281051
    RescaleIntercept = 0x00281052
    RescaleSlope = 0x00281053
    RescaleType = 0x00281054
    VOILUTFunction = 0x00281056
    LossyImageCompression = 0x00282110
    LossyImageCompressionRatio = 0x00282112
    LossyImageCompressionMethod = 0x00282114
    ModalityLUTSequence = 0x00283000
    FrameVOILUTSequence = 0x00289132
    PixelValueTransformationSequence = 0x00289145
    Units = 0x00541001
    IconImageSequence = 0x00880200
    MACParametersSequence = 0x4FFE0001
    SharedFunctionalGroupsSequence = 0x52009229
    PerFrameFunctionalGroupsSequence = 0x52009230
    ExtendedOffsetTable = 0x7FE00001
    ExtendedOffsetTableLengths = 0x7FE00002
    FloatPixelData = 0x7FE00008
    DoubleFloatPixelData = 0x7FE00009
    PixelData = 0x7FE00010
    DigitalSignaturesSequence = 0xFFFAFFFA


_KEYWORDS = {int(tag): tag.name for tag in Tag}


class Element(NamedTuple):
    """One element: its tag, its kind (empty where it is implicit), and where it, its value and what follows it begin.

    ``undefined`` says that its value ends with a delimiter, which is a part of it here.
    """

    tag: int
    kind: bytes
    start: int
    at: int
    end: int
    undefined: bool


class Elements:
    """The elements of a DICOM file, over bytes or a file.

    Attributes:
        content: The file.
        syntax: UID of its transfer syntax.
        meta: The elements of the file's own, group 2, by tag.
        data: The elements of the dataset, by tag, in the order in which they are.

    Raises:
        UnsupportedImage: It is deflated, cut off or damaged.
    """

    def __init__(self, content: bytes | Lazy) -> None:
        self.content = content
        self._left: float = _MOST
        self.order, self.explicit = "<", True
        found = []
        at = _START
        while self.content[at : at + 2] == b"\2\0":
            found.append(self._element(at, len(content), True, 0))
            at = found[-1].end
        self.meta = {element.tag: element for element in found}
        if Tag.TransferSyntaxUID not in self.meta:
            raise UnsupportedImage("does not say how it is coded (TransferSyntaxUID)", "write it anew, such as with dcmconv")
        self.syntax = self.text(self.meta[Tag.TransferSyntaxUID])
        if self.syntax == DEFLATED:
            raise UnsupportedImage("is deflated as a whole", "write it anew without that, such as with dcmconv +te")
        self.explicit, self.order = self.syntax != IMPLICIT, ">" if self.syntax == BIG else "<"
        self.data: dict[int, Element] = {}
        for element in self._run(at, len(content), self.explicit, 0):
            if element.tag in self.data:
                raise UnsupportedImage(f"is damaged ({named(element.tag)} is there twice)", "copy it again")
            self.data[element.tag] = element
        self._left = inf  # what was walked over once has an end

    def raw(self, element: Element) -> bytes:
        """Return the value of an element, without the delimiter of one of undefined length."""
        return self.content[element.at : element.end - 8 * element.undefined]

    def text(self, element: Element | None) -> str:
        """Return a value of text; empty for an element that is not there."""
        return "" if element is None else self.raw(element).decode("utf-8", errors="replace").strip(" \0")

    def texts(self, element: Element | None) -> list[str]:
        """Return the values of a text that a backslash divides; none where there is nothing."""
        text = self.text(element)
        return [part.strip() for part in text.split("\\")] if text else []

    def numbers(self, element: Element | None, code: str = "H") -> list[int]:
        """Return integers of a struct code; none for an element that is not there."""
        if element is None:
            return []
        value = self.raw(element)
        return list(struct.unpack(f"{self.order}{len(value) // struct.calcsize('=' + code)}{code}", value))

    def items(self, element: Element | None, depth: int = 1) -> list[dict[int, Element]]:
        """Return the elements of each item of a sequence; none for one that is not there."""
        if element is None:
            return []
        explicit = self.explicit and element.kind not in (b"UN", b"")  # within UN all is implicit (PS3.5, 6.2.2)
        inner = self._items(element.at, element.end, explicit, depth)
        return [{one.tag: one for one in self._run(item.at, item.end - 8 * item.undefined, explicit, depth)} for item in inner]

    def nested_pixels(self, element: Element, depth: int = 1) -> Iterator[tuple[int, int]]:
        """Yield from where to where pixels lie within a sequence, however deep: values, or fragments of compressed ones."""
        if element.kind not in (b"SQ", b"UN", b"") or self._tag(element.at) != _ITEM:
            return
        for item in self.items(element, depth):
            for one in item.values():
                if one.tag != Tag.PixelData:
                    yield from self.nested_pixels(one, depth + 1)
                elif one.undefined:
                    yield from ((fragment.at, fragment.end) for fragment in self._items(one.at, one.end, False, depth))
                else:
                    yield one.at, one.end

    def made(self, tag: int, kind: bytes, value: bytes, *, undefined: bool = False) -> bytes:
        """Return an element, filled up with a zero to an even length; ``undefined`` ends it with a delimiter and tells no length."""
        value += bytes(len(value) % 2)
        of_file = tag >> 16 == 2  # which is always explicit and in little endian
        order = "<" if of_file else self.order
        length, end = (_UNDEFINED, struct.pack(f"{order}HHL", *divmod(_END, 2**16), 0)) if undefined else (len(value), b"")
        head = self.packed(tag, order)
        if not (self.explicit or of_file):
            return head + struct.pack("<L", length) + value + end
        if kind in _LONG:
            return head + kind + struct.pack(f"{order}HL", 0, length) + value + end
        return head + kind + struct.pack(f"{order}H", length) + value + end

    def packed(self, tag: int, order: str = "") -> bytes:
        """Return the bytes of a tag, in the dataset's order if no other is given."""
        return struct.pack(f"{order or self.order}HH", *divmod(tag, 2**16))

    def _run(self, at: int, end: int, explicit: bool, depth: int) -> Iterator[Element]:
        """Yield elements that follow each other up to a place."""
        while at < end:
            element = self._element(at, end, explicit, depth)
            yield element
            at = element.end

    def _element(self, at: int, end: int, explicit: bool, depth: int) -> Element:
        """Return the element at a place, which has to end before another."""
        self._left -= 1
        if depth > _DEEPEST or self._left < 0:
            raise UnsupportedImage("is damaged (its elements have no end)", "copy it again")
        order = "<" if not depth and self.content[at : at + 2] == b"\2\0" else self.order
        head = self.content[at : min(at + 12, end)]
        if len(head) < 8:
            raise UnsupportedImage("is cut off", "copy it again")
        tag = (struct.unpack(f"{order}H", head[:2])[0] << 16) + struct.unpack(f"{order}H", head[2:4])[0]
        kind, where = b"", at + 8
        length = struct.unpack(f"{order}L", head[4:8])[0]
        if explicit and tag >> 16 != 0xFFFE:
            kind = bytes(head[4:6])
            if re.fullmatch(rb"[A-Z]{2}", kind) is None or (kind in _LONG and len(head) < 12):
                raise UnsupportedImage(f"is damaged ({named(tag)} has no kind of value)", "copy it again")
            if kind in _LONG:
                length, where = struct.unpack(f"{order}L", head[8:12])[0], at + 12
            else:
                length = struct.unpack(f"{order}H", head[6:8])[0]
        if length == _UNDEFINED:
            return Element(tag, kind, at, where, self._end(tag, kind, where, end, explicit, depth), True)
        if where + length > end:
            raise UnsupportedImage(f"is cut off ({named(tag)} goes on behind its end)", "copy it again")
        return Element(tag, kind, at, where, where + length, False)

    def _end(self, tag: int, kind: bytes, at: int, end: int, explicit: bool, depth: int) -> int:
        """Return where an element of undefined length ends, behind its delimiter."""
        if tag == _ITEM:
            for element in self._run(at, end, explicit, depth + 1):
                if element.tag == _ITEM_END:
                    return element.end
            raise UnsupportedImage("is cut off", "copy it again")
        last = at
        for item in self._items(at, end, explicit and kind != b"UN", depth + 1):
            last = item.end
        if self._tag(last) != _END:
            raise UnsupportedImage("is cut off", "copy it again")
        return last + 8

    def _items(self, at: int, end: int, explicit: bool, depth: int) -> Iterator[Element]:
        """Yield the items of a sequence, or the fragments of pixels, up to the delimiter or a place."""
        while at < end and self._tag(at) != _END:
            item = self._element(at, end, explicit, depth)
            if item.tag != _ITEM:
                raise UnsupportedImage("is damaged (a sequence holds something else than items)", "copy it again")
            yield item
            at = item.end

    def _tag(self, at: int) -> int:
        head = self.content[at : at + 4]
        group, number = struct.unpack(f"{self.order}HH", head) if len(head) == 4 else (0, 0)
        return int(group << 16 | number)


def named(tag: int) -> str:
    """Return a tag as people write it, with its keyword if it is one of ours."""
    number = f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
    return f"{number} {_KEYWORDS[tag]}" if tag in _KEYWORDS else f"element {number}"
