"""The scans of a progressive JPEG, each of which adds bits to some of the coefficients."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from salm_lightning.data.formats.huffman import Component, Table, by_scan, parts_between_restarts


class _Bits:
    """Bits of a part between restarts, read one after the other."""

    def __init__(self, data: bytes) -> None:
        self._end = len(data) * 8
        padded = np.frombuffer(data + bytes(8), np.uint8).astype(np.uint32)
        self._words = array("I", ((padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]).tobytes())
        self._at = 0

    def take(self, number: int) -> int:
        """Return the next bits, 16 at most, as a number."""
        at = self._at
        self._at = at + number
        if self._at > self._end:
            raise ValueError("the pixels are cut off")
        return (self._words[at >> 3] >> (24 - (at & 7) - number)) & ((1 << number) - 1)

    def value(self, size: int) -> int:
        """Return a signed number of so many bits."""
        bits = self.take(size)
        return bits if bits >> (size - 1) else bits - (1 << size) + 1

    def symbol(self, lookup: array[int]) -> int:
        """Return the symbol of the next code."""
        code = lookup[(self._words[self._at >> 3] >> (8 - (self._at & 7))) & 65535]
        self._at += code >> 8
        if not code or self._at > self._end:
            raise ValueError("there is no such Huffman code" if not code else "the pixels are cut off")
        return code & 255


def read_scan(
    data: bytes,
    components: Sequence[Component],
    pairs: Sequence[tuple[Table | None, Table | None]],
    interval: int,
    selection: bytes,
) -> None:
    """Add a scan to the coefficients of its components.

    Args:
        data: What follows the scan's header.
        components: The components of the scan.
        pairs: Table of DC and table of AC of each, as far as the scan needs them.
        interval: MCUs from one restart marker to the next; 0 without.
        selection: End of the scan's header: first and last coefficient, and the bits that are told already and that are left out.

    Raises:
        ValueError: The data is not such a scan.
    """
    first, last, told, left = selection[0], selection[1], selection[2] >> 4, selection[2] & 15
    if not (first == last == 0 or (0 < first <= last < 64 and len(components) == 1)) or left > 13 or told not in (0, left + 1):
        raise ValueError("a scan selects coefficients that cannot be")
    views, kinds = by_scan(components)
    flat = [view.ravel().tolist() for view in views]
    mcus = views[0].shape[0] * views[0].shape[1]
    parts = parts_between_restarts(data, interval)
    step = interval or mcus
    if len(parts) < -(-mcus // step):
        raise ValueError("the pixels are cut off")
    for number, begin in enumerate(range(0, mcus, step)):
        bits, end = _Bits(parts[number]), min(begin + step, mcus)
        if first == 0:
            _read_dc(bits, flat, kinds, pairs, range(begin, end), told, left)
        else:
            _read_ac(bits, flat[0], pairs[0][1], range(begin * 64, end * 64, 64), (first, last, told, left))
    for view, values in zip(views, flat, strict=True):
        view[...] = np.array(values, np.int32).reshape(view.shape)


def _read_dc(
    bits: _Bits,
    flat: list[list[int]],
    kinds: Sequence[int],
    pairs: Sequence[tuple[Table | None, Table | None]],
    mcus: range,
    told: int,
    left: int,
) -> None:
    before = [0] * len(flat)
    width = [64 * kinds.count(kind) for kind in range(len(flat))]
    for mcu in mcus:
        place = [mcu * one for one in width]
        for kind in kinds:
            if told:
                flat[kind][place[kind]] |= bits.take(1) << left
            else:
                size = bits.symbol(_symbols(pairs[kind][0]))
                if size > 15:
                    raise ValueError("a block is damaged")
                before[kind] += bits.value(size) if size else 0
                flat[kind][place[kind]] = before[kind] << left
            place[kind] += 64


def _read_ac(bits: _Bits, flat: list[int], table: Table | None, blocks: range, selection: tuple[int, int, int, int]) -> None:
    first, last, told, left = selection
    lookup, one, ended = _symbols(table), 1 << left, 0
    for block in blocks:
        k, beyond = block + first, block + last + 1
        while k < beyond and not ended:
            symbol = bits.symbol(lookup)
            zeros, size = symbol >> 4, symbol & 15
            if size == 0 and zeros < 15:
                ended = (1 << zeros) + (bits.take(zeros) if zeros else 0)
                break
            value = 0
            if size:
                value = (bits.value(size) << left) if not told else one if bits.take(1) else -one
            if told:
                k = _refined(bits, flat, k, beyond, one, zeros)
            else:
                k += zeros
            if value:
                if k >= beyond:
                    raise ValueError("a block is damaged")
                flat[k] = value
            k += 1
        if ended:
            if told:
                _refined(bits, flat, k, beyond, one, 64)
            ended -= 1


def _refined(bits: _Bits, flat: list[int], k: int, beyond: int, one: int, zeros: int) -> int:
    """Give coefficients that are no zeros their next bit, until there were so many zeros and one more, and return where that is."""
    while k < beyond:
        value = flat[k]
        if value:
            if bits.take(1) and not abs(value) & one:
                flat[k] = value + one if value > 0 else value - one
        elif zeros == 0:
            break
        else:
            zeros -= 1
        k += 1
    return k


def _symbols(table: Table | None) -> array[int]:
    if table is None:
        raise ValueError("a Huffman table is missing")
    return table.plain
