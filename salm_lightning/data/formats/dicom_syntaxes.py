"""The ways in which DICOM codes pixels (PS3.5, A): which are taken, what decodes each, and the lossless one that it is written back in."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.formats.base import Pixels, UnsupportedImage
from salm_lightning.data.formats.dicom_elements import BIG, EXPLICIT, IMPLICIT

_JPEG_LS, _JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"


class Syntax(NamedTuple):
    """A way to code pixels.

    Attributes:
        name: In words.
        becomes: UID of the transfer syntax that an image is written in.
        plugin: Which of pydicom's decoders is asked, always the same one: lossy images decode to other values with another.
        modules: What has to be installed for that, and for writing.
        lossy: What LossyImageCompressionMethod says of it; empty for a lossless one.
        most_bits: Bits a value that the decoder reads.
    """

    name: str
    becomes: str
    plugin: str = ""
    modules: tuple[str, ...] = ("pydicom",)
    lossy: str = ""
    most_bits: int = 16

    @property
    def native(self) -> bool:
        """Whether pixels are not compressed."""
        return not self.plugin

    def missing(self) -> bool:
        """Return whether something is not installed that it needs."""
        return any(find_spec(module) is None for module in self.modules)


_LS, _GDCM, _OPENJPEG = ("pydicom", "jpeg_ls"), ("pydicom", "gdcm", "jpeg_ls"), ("pydicom", "pylibjpeg", "openjpeg")
SYNTAXES = {
    IMPLICIT: Syntax("implicit, little endian", IMPLICIT),
    EXPLICIT: Syntax("explicit, little endian", EXPLICIT),
    BIG: Syntax("explicit, big endian", BIG),
    "1.2.840.10008.1.2.5": Syntax("RLE", "1.2.840.10008.1.2.5", "pydicom"),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG baseline", _JPEG_LS, "pillow", _LS, "ISO_10918_1", 8),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG extended", _JPEG_LS, "pillow", _LS, "ISO_10918_1", 8),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG lossless", _JPEG_LS, "gdcm", _GDCM),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG lossless, selection value 1", _JPEG_LS, "gdcm", _GDCM),
    _JPEG_LS: Syntax("JPEG-LS lossless", _JPEG_LS, "pyjpegls", _LS),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS near-lossless", _JPEG_LS, "pyjpegls", _LS, "ISO_14495_1"),
    _JPEG_2000: Syntax("JPEG 2000 lossless", _JPEG_2000, "pylibjpeg", _OPENJPEG),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", _JPEG_2000, "pylibjpeg", _OPENJPEG, "ISO_15444_1"),
    "1.2.840.10008.1.2.4.201": Syntax("high-throughput JPEG 2000 lossless", _JPEG_2000, "pylibjpeg", _OPENJPEG),
    "1.2.840.10008.1.2.4.202": Syntax("high-throughput JPEG 2000 lossless (RPCL)", _JPEG_2000, "pylibjpeg", _OPENJPEG),
    "1.2.840.10008.1.2.4.203": Syntax("high-throughput JPEG 2000", _JPEG_2000, "pylibjpeg", _OPENJPEG, "ISO_15444_15"),
}
"""By UID."""
_UIDS = {syntax: uid for uid, syntax in SYNTAXES.items()}


@dataclass(frozen=True)
class Layout:
    """How pixels lie in a file: the elements of group 28, and the byte order (``words``: a byte of 8 bits lies in one of 16)."""

    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    bits: int
    signed: bool
    photometric: str
    planar: int
    big: bool
    words: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of a stored integer here."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the decoded pixels."""
        return (self.frames, self.rows, self.columns, self.samples)

    @property
    def length(self) -> int:
        """Bytes of the pixels where they are not compressed."""
        values = self.frames * self.rows * self.columns * self.samples
        return (values * 2 // 3 if self.photometric == "YBR_FULL_422" else values) * self.allocated // 8

    def becomes(self, syntax: Syntax) -> str:
        """Return the photometric interpretation of what is written: colours are decoded to RGB, and JPEG 2000 has its own name for that."""
        if not self.photometric.startswith("YBR"):
            return self.photometric
        return "YBR_RCT" if syntax.becomes == _JPEG_2000 else "RGB"


def decoded(value: bytes, syntax: Syntax, layout: Layout) -> tuple[Pixels, NDArray[Any]]:
    """Return the pixels, and the words that hold them: the bits that are not stored may say something, too.

    Both are ``[frames, H, W, C]``.
    """
    options = _options(layout, layout.photometric) | {"allow_excess_frames": False}
    options |= {"correct_unused_bits": False} if syntax.native else {"decoding_plugin": syntax.plugin}
    if layout.big and layout.allocated == 8 and layout.words:
        options["pixel_vr"] = "OW"
    with _quiet():
        from pydicom.pixels.decoders.base import get_decoder

        array, now = get_decoder(_UIDS[syntax]).as_array(value, **options)
    if array.size != np.prod(layout.shape) or str(now["photometric_interpretation"]).startswith("YBR_F"):
        raise UnsupportedImage("is damaged (its pixels are others than it says)", "copy it again")
    words = array.reshape(layout.shape).astype(layout.dtype)
    unused = layout.allocated - layout.bits
    return (words << unused) >> unused, words


def encoded(pixels: Pixels, before: bytes, syntax: Syntax, layout: Layout) -> bytes:
    """Return the value of the element that holds pixels ``[frames, H, W, C]``, coded as their file is to be written.

    ``before`` is the value that they replace, whose unused bits stay where pixels are not compressed.
    """
    if syntax.native:
        _, words = decoded(before, syntax, layout)
        unused = layout.allocated - layout.bits
        full = pixels ^ words ^ ((words << unused) >> unused)
        if layout.planar and layout.samples > 1:
            full = np.moveaxis(full, -1, 1)
        value: bytes = full.astype(layout.dtype.newbyteorder(">" if layout.big else "<")).tobytes()
        if layout.big and layout.allocated == 8 and layout.words:
            value = np.frombuffer(value + bytes(len(value) % 2), np.uint16).byteswap().tobytes()
        return value
    with _quiet():
        from pydicom.encaps import encapsulate
        from pydicom.pixels.encoders.base import get_encoder

        array = pixels[..., 0] if layout.samples == 1 else pixels
        options = _options(layout, layout.becomes(syntax))
        if _UIDS[syntax] != syntax.becomes:
            options["planar_configuration"] = 0
        encoder = get_encoder(syntax.becomes)
        try:
            frames = list(encoder.iter_encode(array if layout.frames > 1 else array[0], **options))
        except RuntimeError as error:
            raise UnsupportedImage(
                f"cannot be coded as {SYNTAXES[syntax.becomes].name}, as very small images", "write it uncompressed"
            ) from error
        return bytes(encapsulate(frames))


def _options(layout: Layout, photometric: str) -> dict[str, Any]:
    return {
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "number_of_frames": layout.frames,
        "bits_allocated": layout.allocated,
        "bits_stored": layout.bits,
        "pixel_representation": int(layout.signed),
        "photometric_interpretation": photometric,
        "pixel_keyword": "PixelData",
        **({"planar_configuration": layout.planar} if layout.samples > 1 else {}),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep pydicom from speaking of what is checked here, or raised."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before
