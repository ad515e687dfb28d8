"""What a DICOM file says of its image, from its elements alone, and what of it is refused."""

from __future__ import annotations

import numpy as np

from salm_lightning.data.formats import embedded
from salm_lightning.data.formats.base import Facts, Instance, UnsupportedImage, check_size
from salm_lightning.data.formats.dicom_elements import Element, Elements, Tag, named
from salm_lightning.data.formats.dicom_syntaxes import SYNTAXES, Layout, Syntax

_DIRECTORY = "1.2.840.10008.1.3.10"
_MOST_UNITS = 1e12
"""No slope, intercept or window of an image is larger, and no slope smaller than its inverse; beyond that, bounds would overflow."""
_TAKEN = "MONOCHROME1, MONOCHROME2, RGB, YBR_FULL, YBR_FULL_422, YBR_ICT and YBR_RCT"


def syntax_of(elements: Elements) -> Syntax:
    """Return how the pixels are coded, and refuse what is not taken, or cannot be decoded with what is installed."""
    kind = elements.text(elements.meta.get(Tag.MediaStorageSOPClassUID))
    if kind == _DIRECTORY or Tag.DirectoryRecordSequence in elements.data:
        raise UnsupportedImage(
            "is a DICOMDIR, an index of other files", "take it out of the folder, and make a new one of the result"
        )
    for tag in (Tag.FloatPixelData, Tag.DoubleFloatPixelData):
        if tag in elements.data:
            raise UnsupportedImage("holds floating-point numbers", "store it with 8 to 16 bits, rescaled")
    if Tag.PixelData not in elements.data:
        raise UnsupportedImage("is a DICOM file without pixels", "take it out of the folder")
    syntax = SYNTAXES.get(elements.syntax)
    if syntax is None:
        raise UnsupportedImage(
            f"is coded in a way that is not taken (transfer syntax {elements.syntax[:64]})",
            "write it uncompressed, or as RLE, JPEG-LS or JPEG 2000, such as with dcmconv or gdcmconv",
        )
    if syntax.missing():
        raise UnsupportedImage(
            f"is coded as {syntax.name}, for which a decoder is missing",
            "run pip install 'salm-lightning[dicom]', which brings it",
        )
    return syntax


def layout_of(elements: Elements) -> Layout:
    """Return how the pixels lie, and refuse what is not taken."""

    def number(tag: int, default: int | None = None) -> int:
        values = elements.numbers(elements.data.get(tag))
        if not values and default is None:
            raise UnsupportedImage(f"is damaged (it has no {named(tag)})", "copy it again")
        return values[0] if values else int(default or 0)

    bits, allocated = number(Tag.BitsStored), number(Tag.BitsAllocated)
    photometric, samples = elements.text(elements.data.get(Tag.PhotometricInterpretation)), number(Tag.SamplesPerPixel, 1)
    if photometric == "PALETTE COLOR":
        raise UnsupportedImage("has a palette, in which noise has no place", "convert it to RGB")
    if allocated not in (8, 16):
        raise UnsupportedImage(f"has {allocated} bits a value", "store it with 8 or 16 bits, rescaled")
    if bits < 8:
        raise UnsupportedImage(f"has {2**bits} levels, too few for noise that is hard to see", "store it with 8 bits or more")
    if photometric not in _TAKEN.replace(" and", ",").split(", ") or samples != (1 if photometric.startswith("MONO") else 3):
        raise UnsupportedImage(
            f"has colours that are {photometric or 'not named'} with {samples} values a pixel", f"convert it to one of {_TAKEN}"
        )
    if elements.order == ">" and allocated == 16 and elements.data[Tag.PixelData].kind == b"OB":
        raise UnsupportedImage("stores 16 bits byte by byte, which readers take in two orders", "write it in little endian")
    if bits > allocated or number(Tag.HighBit, bits - 1) != bits - 1 or number(Tag.PixelRepresentation, 0) > 1:
        raise UnsupportedImage("has bits at a rare place", "write it again with HighBit = BitsStored - 1")
    frames = elements.text(elements.data.get(Tag.NumberOfFrames)) or "1"
    if not frames.isdecimal() or len(frames) > 9:
        raise UnsupportedImage(f"is damaged ({frames!r} is no number of frames)", "copy it again")
    return Layout(
        *(int(frames) or 1, number(Tag.Rows), number(Tag.Columns), samples),
        *(allocated, bits, number(Tag.PixelRepresentation, 0) == 1, photometric),
        planar=number(Tag.PlanarConfiguration, 0),
        big=elements.order == ">",
        words=elements.data[Tag.PixelData].kind == b"OW",
    )


def uids_of(elements: Elements) -> tuple[str, str]:
    """Return SOPInstanceUID and SeriesInstanceUID; empty where there is none."""
    uid = elements.text(elements.data.get(Tag.SOPInstanceUID)) or elements.text(elements.meta.get(Tag.MediaStorageSOPInstanceUID))
    return uid, elements.text(elements.data.get(Tag.SeriesInstanceUID))


def facts_of(elements: Elements, syntax: Syntax, layout: Layout) -> Facts:
    """Return what is known of the image, and refuse pixels of another length than the elements say."""
    data = elements.data
    if layout.bits > syntax.most_bits:
        raise UnsupportedImage(
            f"is coded as {syntax.name} with {layout.bits} bits, which no decoder here reads",
            "write it uncompressed, such as with dcmdjpeg",
        )
    check_size(Facts("DICOM", layout.rows, layout.columns, layout.samples, layout.bits, layout.frames))
    if syntax.native:
        _check_length(elements, layout)
    elif not data[Tag.PixelData].undefined:
        raise UnsupportedImage("is damaged (its pixels are compressed, and not in fragments)", "copy it again")
    deep = layout.bits > 8 or layout.signed
    slope, intercept = _rescale(elements) if deep else (1.0, 0.0)
    padding = _padding(elements, layout)
    modality = elements.text(data.get(Tag.Modality))
    units = elements.text(data.get(Tag.RescaleType)).replace("US", "") or elements.text(data.get(Tag.Units))  # US: unspecified
    uid, series = uids_of(elements)
    instance = Instance(
        modality=modality,
        photometric=layout.photometric,
        syntax=syntax.name,
        patient=elements.text(data.get(Tag.PatientID)),
        uid=uid,
        series=series,
        burned_in=elements.text(data.get(Tag.BurnedInAnnotation)),
        slope=slope,
        intercept=intercept,
        units=units or ("HU" if modality == "CT" else ""),
        window=_window(elements) if deep and Tag.ModalityLUTSequence not in data else None,
        padding=padding,
        regions=bool(elements.items(data.get(Tag.SequenceOfUltrasoundRegions))),  # an empty list keeps nothing out
    )
    return Facts(
        *("DICOM", layout.rows, layout.columns, layout.samples, layout.bits, layout.frames),
        alpha=padding is not None or instance.regions,
        thumbnails=sum(without_pictures(elements, one)[1] for one in data.values() if one.tag != Tag.PixelData),
        detail=syntax.name,
        signed=layout.signed,
        instance=instance,
    )


def _check_length(elements: Elements, layout: Layout) -> None:
    element = elements.data[Tag.PixelData]
    found, needed = element.end - element.at, layout.length
    if element.undefined or found < needed:
        raise UnsupportedImage(
            f"is cut off, or has another size than it says (it has {found:,} bytes of pixels and needs {needed:,})",
            "copy it again",
        )
    if found > needed + needed % 2:
        raise UnsupportedImage(f"has more pixels than it says (it has {found:,} bytes of them, not {needed:,})", "copy it again")


def _rescale(elements: Elements) -> tuple[float, float]:
    """Return slope and intercept, which all frames share; a table in their place says nothing that noise could be measured in."""
    if Tag.ModalityLUTSequence in elements.data:
        return 1.0, 0.0
    found = {
        (_decimal(elements, item.get(Tag.RescaleSlope), 1.0), _decimal(elements, item.get(Tag.RescaleIntercept), 0.0))
        for item in _frame_groups(elements, Tag.PixelValueTransformationSequence) or [elements.data]
    }
    if len(found) > 1:
        raise UnsupportedImage("rescales its frames in several ways", "store each frame as a file of its own")
    slope, intercept = found.pop()
    if not (1 / _MOST_UNITS <= abs(slope) <= _MOST_UNITS and abs(intercept) <= _MOST_UNITS):
        raise UnsupportedImage(f"is damaged (its rescale slope is {slope:g}, its intercept {intercept:g})", "copy it again")
    return slope, intercept


def _decimal(elements: Elements, element: Element | None, default: float) -> float:
    texts = elements.texts(element)
    return float(texts[0]) if texts else default


def _window(elements: Elements) -> tuple[float, float] | None:
    """Return the widest window that the file has (PS3.3, C.11.2.1.2 and C.11.2.1.3); ``None`` without one."""
    found = []
    for item in [elements.data, *_frame_groups(elements, Tag.FrameVOILUTSequence)]:
        centers, widths = elements.texts(item.get(Tag.WindowCenter)), elements.texts(item.get(Tag.WindowWidth))
        linear = elements.text(item.get(Tag.VOILUTFunction)) in ("", "LINEAR")
        for center, width in zip(centers, widths, strict=False):
            middle, across = float(center), float(width)
            if abs(middle) <= _MOST_UNITS and 1 < across <= _MOST_UNITS:
                low = middle - across / 2
                found.append((across, low, low + across - linear))
    return max(found)[1:] if found else None


def _frame_groups(elements: Elements, tag: int) -> list[dict[int, Element]]:
    """Return the items of a sequence in the functional groups that frames share, or have each for itself."""
    groups = [
        *elements.items(elements.data.get(Tag.SharedFunctionalGroupsSequence)),
        *elements.items(elements.data.get(Tag.PerFrameFunctionalGroupsSequence)),
    ]
    return [item for group in groups for item in elements.items(group.get(tag))]


def _padding(elements: Elements, layout: Layout) -> tuple[int, int] | None:
    """Return the lowest and highest stored integer that is padding: 63536 in a file of signed ones is -2000."""
    tags = (Tag.PixelPaddingValue, Tag.PixelPaddingRangeLimit)
    values = [number for tag in tags for number in elements.numbers(elements.data.get(tag))[:1]]
    if not elements.numbers(elements.data.get(Tag.PixelPaddingValue)):
        return None
    found = np.array(values, np.uint16).astype(f"u{layout.allocated // 8}").view(layout.dtype)
    return int(found.min()), int(found.max())


def without_pictures(elements: Elements, element: Element) -> tuple[bytes, int]:
    """Return an element without pictures in it, and their number: pixels in sequences, such as icons, and files in makers' own elements."""
    whole, found = elements.content[element.start : element.end], 0
    if elements.packed(Tag.PixelData) in whole:
        made = bytearray(whole)
        for first, beyond in elements.nested_pixels(element):
            made[first - element.start : beyond - element.start] = bytes(beyond - first)
            found += 1
        whole = bytes(made)
    blanked, more = embedded.blank(whole) if element.tag >> 16 & 1 else (whole, 0)
    return blanked, found + more
