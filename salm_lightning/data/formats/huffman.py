"""The quantised coefficients of a sequential JPEG: read from its scans exactly, and written as one scan, without a pixel in between.

Pillow hands out pixels alone, and from pixels a block does not come back as it was. Only the walk from code to code is Python's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

ZIGZAG = np.array(sorted(range(64), key=lambda n: (n // 8 + n % 8, n // 8 if (n // 8 + n % 8) % 2 else n % 8)))
"""Where the coefficients, in the order of the file, are in a block."""

_AT_A_TIME = 2**19
"""Symbols whose values are read together."""
_ENDED, _WRONG = 2**7, 2**10
"""Steps behind the last coefficient: at the end of a block, and where there is no such code."""
_DC = 2**12
"""Stands in the place of the step of DC, which has none."""
_SIXTEEN = 0xF0
"""Symbol of sixteen zeros."""

Coefficients = NDArray[np.int32]
"""Quantised, in the order of the file: ``[block rows, block columns, 64]``."""


@dataclass
class Component:
    """One plane of the frame.

    Attributes:
        number: Its name in the file.
        across: Blocks of an MCU side by side; 1 where it is the only plane.
        down: Blocks of an MCU above each other; 1 where it is the only plane.
        table: Number of its quantisation table.
        shown: Rows and columns of blocks that hold pixels.
        blocks: Its coefficients, up to whole MCUs.
    """

    number: int
    across: int
    down: int
    table: int
    shown: tuple[int, int]
    blocks: Coefficients = field(repr=False)


@dataclass(frozen=True, eq=False)
class Table:
    """One Huffman table.

    Attributes:
        source: Its number of codes by length, and its symbols, as in the file.
        codes: Code and length by symbol.
        dc: For each 16 bits that may follow, the length of code and value together, of the code, and of the value; 0 for no code.
        ac: The same, with the step to the coefficient in the higher bits.
        plain: The length of the code in the higher bits, and its symbol.
    """

    source: bytes
    codes: dict[int, tuple[int, int]]
    dc: array[int]
    ac: array[int]
    plain: array[int]


def tables(segment: bytes) -> Iterator[tuple[int, Table]]:
    """Yield the tables of a DHT segment by class and number.

    Raises:
        ValueError: They are none.
    """
    at = 0
    while at < len(segment):
        source = segment[at + 1 : at + 17 + sum(segment[at + 1 : at + 17])]
        if len(source) < 16 or len(source) < 16 + sum(source[:16]):
            raise ValueError("a Huffman table is cut off")
        yield segment[at], table(source)
        at += 1 + len(source)


@lru_cache(maxsize=64)
def table(source: bytes) -> Table:
    """Return a table of a number of codes by length, and symbols."""
    lengths, values = np.zeros(2**16, np.int64), np.zeros(2**16, np.int64)
    codes: dict[int, tuple[int, int]] = {}
    code, symbols = 0, iter(source[16:])
    for length, count in enumerate(source[:16], start=1):
        for _ in range(count):
            if code >> length:
                raise ValueError("a Huffman table has too many codes")
            first, beyond = code << (16 - length), (code + 1) << (16 - length)
            symbol = next(symbols)
            lengths[first:beyond], values[first:beyond] = length, symbol
            codes.setdefault(symbol, (code, length))
            code += 1
        code <<= 1
    size, run = values & 15, values >> 4
    step = np.where(size > 0, run + 1, np.where(run == 15, 16, np.where(run == 0, _ENDED, _WRONG)))
    step = np.where(lengths > 0, step, _WRONG)
    plain = array("I", (lengths << 8 | values).astype(np.uint32).tobytes())
    return Table(source, codes, _packed(lengths, values, _DC), _packed(lengths, size, step), plain)


def _packed(lengths: NDArray[np.int64], sizes: NDArray[np.int64], steps: NDArray[np.int64] | int) -> array[int]:
    sizes = np.minimum(sizes, 16)  # more is none that a value of 8-bit pixels has
    return array("I", (steps * 2**16 + sizes * 2**11 + lengths * 2**6 + sizes + lengths).astype(np.uint32).tobytes())


def read_scan(data: bytes, components: Sequence[Component], pairs: Sequence[tuple[Table, Table]], interval: int) -> None:
    """Read a scan's coefficients into its components.

    Args:
        data: What follows the scan's header.
        components: The components of the scan.
        pairs: Table of DC and table of AC of each.
        interval: MCUs from one restart marker to the next; 0 without.

    Raises:
        ValueError: The data is not such a scan.
    """
    views, kinds = by_scan(components)
    values = np.zeros((views[0].shape[0] * views[0].shape[1], len(kinds), 64), np.int32)
    parts, step = parts_between_restarts(data, interval), interval or len(values)
    if len(parts) < -(-len(values) // step):
        raise ValueError("the pixels are cut off")
    for number, begin in enumerate(range(0, len(values), step)):
        _read_part(parts[number], values[begin : begin + step], kinds, pairs)
    for kind, view in enumerate(views):
        mine = values[:, [place for place, owner in enumerate(kinds) if owner == kind]]
        view[...] = mine.reshape(view.shape)


def by_mcu(component: Component) -> Coefficients:
    """Return a view of a component's blocks, ``[rows of MCUs, columns of MCUs, down, across, 64]``."""
    height, width, _ = component.blocks.shape
    down, across = component.down, component.across
    return component.blocks.reshape(height // down, down, width // across, across, 64).swapaxes(1, 2)


def by_scan(components: Sequence[Component]) -> tuple[list[Coefficients], list[int]]:
    """Return views by MCU of the blocks that a scan of these components holds, and the component of each block of an MCU."""
    if len(components) == 1:  # it leaves out blocks without pixels
        rows, columns = components[0].shown
        return [components[0].blocks[:rows, :columns, None, None]], [0]
    kinds = [kind for kind, component in enumerate(components) for _ in range(component.down * component.across)]
    return [by_mcu(component) for component in components], kinds


def parts_between_restarts(data: bytes, interval: int) -> list[bytes]:
    """Return what stands between restart markers, if there are any, with the zeros behind 255 taken out."""
    parts, last, at = [], 0, data.find(b"\xff") if interval else -1
    while 0 <= at < len(data) - 1:
        if 0xD0 <= data[at + 1] <= 0xD7:
            parts.append(data[last:at])
            last = at + 2
        at = data.find(b"\xff", at + 2)
    return [part.replace(b"\xff\x00", b"\xff") for part in (*parts, data[last:])]


def _read_part(data: bytes, values: NDArray[np.int32], kinds: Sequence[int], pairs: Sequence[tuple[Table, Table]]) -> None:
    """Read MCUs ``[n, blocks, 64]`` whose codes follow each other."""
    end = len(data) * 8
    padded = np.frombuffer(data + bytes(2**9), np.uint8).astype(np.uint32)
    words = array("I", ((padded[:-2] << 16) | (padded[1:-1] << 8) | padded[2:]).tobytes())
    walk = [(pairs[kind][0].dc, pairs[kind][1].ac) for kind in kinds]
    flat, at, first = values.reshape(-1, 64), 0, 0
    codes: list[int] = []
    begin, push = at, codes.append
    for mcu in range(1, len(values) + 1):
        for dc, ac in walk:
            code = dc[(words[at >> 3] >> (8 - (at & 7))) & 65535]
            push(code)
            at += code & 63
            k = 0
            while k < 63:
                code = ac[(words[at >> 3] >> (8 - (at & 7))) & 65535]
                push(code)
                k += code >> 16
                at += code & 63
            if not (k == 63 or _ENDED <= k < 2 * _ENDED) or at > end:
                raise ValueError("the pixels are cut off" if at > end else "a block is damaged")
        if len(codes) > _AT_A_TIME or mcu == len(values):
            _place(flat[first : mcu * len(kinds)].reshape(-1), words, codes, begin)
            codes.clear()
            begin, first = at, mcu * len(kinds)
    for kind in range(len(pairs)):  # DC is told as a difference
        mine = [place for place, owner in enumerate(kinds) if owner == kind]
        values[:, mine, 0] = np.cumsum(values[:, mine, 0]).reshape(len(values), len(mine))


def _place(flat: NDArray[np.int32], words: array[int], codes: list[int], begin: int) -> None:
    """Read the values behind the codes of whole blocks, the first of which is at ``begin``, and put them where they belong."""
    code = np.array(codes)
    length, size, step = (code >> 6) & 31, (code >> 11) & 31, (code >> 16) & (_DC - 1)
    if (length == 0).any() or (size > 15).any():
        raise ValueError("a block is damaged")
    at = begin + np.cumsum(code & 63) - (code & 63) + length
    (starts,) = np.nonzero(code >> 16 == _DC)
    block = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(code)))
    steps = np.cumsum(step)
    place = block * 64 + steps - steps[starts][block]
    some = size > 0
    at, size, place = at[some], size[some], place[some]
    value = (np.frombuffer(words, np.uint32)[at >> 3].astype(np.int64) >> (24 - (at & 7) - size)) & ((1 << size) - 1)
    flat[place] = np.where(value >> (size - 1), value, value - (1 << size) + 1)


def write_scan(components: Sequence[Component], pairs: Sequence[tuple[Table, Table]]) -> bytes | None:
    """Return the data of one scan of all components without restarts; ``None`` where a table lacks a symbol that it needs."""
    views, kinds = by_scan(components)
    blocks = []
    for view in views:
        mine = view.reshape(-1, 64).astype(np.int32)
        mine[1:, 0] -= view.reshape(-1, 64)[:-1, 0]
        blocks.append(mine.reshape(view.shape[0] * view.shape[1], -1, 64))
    values = np.concatenate(blocks, axis=1).reshape(-1, 64)
    owner = np.tile(kinds, len(blocks[0]))
    order, symbols, extras = _symbols(values)
    packed = symbols.astype(np.int64) | ((order & 511 != 0) << 8) | (owner[order >> 9] << 9)
    code_of, length_of = np.zeros(2**11, np.int64), np.zeros(2**11, np.int64)
    for kind, pair in enumerate(pairs):
        for is_ac, its_table in enumerate(pair):
            for symbol, (code, length) in its_table.codes.items():
                code_of[kind << 9 | is_ac << 8 | symbol], length_of[kind << 9 | is_ac << 8 | symbol] = code, length
    lengths, size = length_of[packed], symbols & 15
    size = np.where(order & 511 == 0, symbols, size)
    return _bits(code_of[packed] << size | extras, lengths + size).replace(b"\xff", b"\xff\x00") if lengths.all() else None


def _symbols(values: Coefficients) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return where each symbol of blocks stands (its block times 512, plus an order within it, 0 for DC), it, and the bits behind it."""
    block, k = np.nonzero(values[:, 1:])
    k += 1
    value = values[block, k].astype(np.int64)
    before = np.where(np.diff(block, prepend=-1) == 0, np.roll(k, 1), 0)
    zeros = k - before - 1
    sixteens = zeros >> 4
    which = np.repeat(np.arange(len(k)), sixteens)
    nth = np.arange(len(which)) - np.repeat(np.cumsum(sixteens) - sixteens, sixteens)
    dc = values[:, 0].astype(np.int64)
    size, size_dc = _size(value), _size(dc)
    ended = np.ones(len(values), np.bool_)
    ended[block[k == 63]] = False
    (ended_at,) = np.nonzero(ended)
    order = np.concatenate([
        np.arange(len(values)) << 9, (block << 9) + 7 * k + 4, (block[which] << 9) + 7 * k[which] + nth, (ended_at << 9) + 511
    ])  # fmt: skip
    nothing = np.zeros(len(which) + len(ended_at), np.int64)
    symbols = np.concatenate(
        [size_dc, (zeros & 15) << 4 | size, np.full(len(which), _SIXTEEN), np.zeros(len(ended_at), np.int64)]
    )
    extras = np.concatenate([_behind(dc, size_dc), _behind(value, size), nothing])
    sort = np.argsort(order, kind="stable")
    return order[sort], symbols[sort], extras[sort]


def _size(values: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.frexp(np.abs(values).astype(np.float64))[1].astype(np.int64)


def _behind(values: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.where(values < 0, values + (1 << size) - 1, values)


def _bits(values: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    """Return numbers of so many bits one behind the other, filled up with ones."""
    behind = np.cumsum(lengths)
    at, total = behind - lengths, int(behind[-1]) if len(behind) else 0
    words = values.astype(np.uint64) << (48 - (at & 7) - lengths).astype(np.uint64)
    made = np.zeros(total // 8 + 8)
    for byte in range(6):
        made += np.bincount(
            (at >> 3) + byte, ((words >> np.uint64(40 - 8 * byte)) & np.uint64(255)).astype(np.float64), len(made)
        )
    content = bytearray(made[: -(-total // 8)].astype(np.uint8).tobytes())
    if total % 8:
        content[-1] |= (1 << (8 - total % 8)) - 1
    return bytes(content)
