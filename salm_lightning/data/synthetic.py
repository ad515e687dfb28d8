"""Embedded data: drawn pictures of stained cells on a blank background, the same bytes on every machine.

Cells differ in the shape and texture of the nucleus and in their granules; where they lie, how they are turned, how large they
are and how strongly they are stained says nothing about the class. A linear model on the pixels therefore fails where a small
convolutional network succeeds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from salm_lightning.data.base import SPLITS, DatasetInfo, Split, Task
from salm_lightning.data.batches import permutation, random_words
from salm_lightning.data.datamodule import ImageDataModule
from salm_lightning.errors import ConfigurationError, look_up

SYNTHETIC = "synthetic"
"""The data's name."""
Background = Literal["light", "dark"]
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class _Kind:
    """How a kind of cell looks; lengths in units of the cell's radius."""

    name: str
    lobes: tuple[tuple[float, float, float], ...]  # discs (x, y, radius) whose union is the nucleus
    hole: tuple[float, float, float] | None = None  # a disc that is cut out of it
    granules: int = 0
    granule_radius: float = 0.1
    clumping: float = 0.2  # how strongly the stain of the nucleus varies, from 0 to 1


_KINDS = (
    _Kind("round nucleus", ((0.0, 0.0, 0.58),)),
    _Kind("bilobed nucleus", ((-0.38, 0.0, 0.39), (0.38, 0.0, 0.39)), granules=8, granule_radius=0.15),
    _Kind("segmented nucleus", ((-0.46, -0.18, 0.30), (0.0, 0.34, 0.30), (0.46, -0.18, 0.30)), granules=10, granule_radius=0.09),
    _Kind("kidney-shaped nucleus", ((0.0, 0.0, 0.66),), hole=(0.52, 0.0, 0.42)),
    _Kind("small clumped nucleus", ((0.0, 0.0, 0.40),), clumping=0.9),
    _Kind("coarse granules", ((0.0, 0.0, 0.50),), granules=14, granule_radius=0.19),
    _Kind("no nucleus", (), granules=10, granule_radius=0.13),
    _Kind("ring-shaped nucleus", ((0.0, 0.0, 0.66),), hole=(0.0, 0.0, 0.33)),
)
_MAX_GRANULES = max(kind.granules for kind in _KINDS)
_TEXTURE = 7
_BLOCK = 256
# Stain densities of red, green and blue: the familiar pink and violet once they are taken off a white background.
_CYTOPLASM = (0.14, 0.28, 0.16)
_NUCLEUS = (0.52, 0.78, 0.36)
_GRANULE = (0.40, 0.72, 0.52)

_SHAPE_DRAWS = 10
_DRAWS = _SHAPE_DRAWS + 7 + 3 * _MAX_GRANULES + _TEXTURE**2


class SyntheticDataModule(ImageDataModule):
    """Drawn cells with a class-specific nucleus and granules; needs no file and no network.

    With ``multi_label`` an image shows up to four smaller cells, and a label says whether its kind of cell is among them.

    Args:
        num_classes: Number of classes, 2 to 8.
        size: Height and width in pixels, at least 16; the pictures scale with it.
        channels: 3 (RGB) or 1 (grey).
        train_size: Number of training images.
        val_size: Number of validation images.
        test_size: Number of test images.
        imbalance: How many times the first class is more frequent than the last one, in every split; 1 is balanced.
        multi_label: Several labels per image instead of one class.
        background: ``light`` as in bright-field microscopy, or ``dark`` as in fluorescence.
        **loading: See :class:`ImageDataModule`: ``batch_size``, ``seed``, ``resident``, ``num_workers`` and ``chunk_size``.

    Raises:
        ConfigurationError: A setting is out of range.
    """

    def __init__(
        self,
        num_classes: int = 4,
        size: int = 28,
        channels: int = 3,
        train_size: int = 2000,
        val_size: int = 500,
        test_size: int = 1000,
        imbalance: float = 1.0,
        multi_label: bool = False,
        background: Background = "light",
        **loading: Any,
    ) -> None:
        _check(num_classes, size, channels, imbalance)
        look_up("background", background, get_args(Background))
        self._sizes = {"train": train_size, "val": val_size, "test": test_size}
        for name, count in self._sizes.items():
            if count < num_classes:
                raise ConfigurationError(f"{name}_size={count} is too small; give at least num_classes={num_classes}.")
        task = Task.MULTI_LABEL if multi_label else Task.BINARY if num_classes == 2 else Task.MULTI_CLASS
        names = tuple(kind.name for kind in _KINDS[:num_classes])
        super().__init__(DatasetInfo(SYNTHETIC, task, names, channels, size), **loading)
        self.imbalance = imbalance
        self.background: Background = background

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records of the data, and what makes them other than the default ones."""
        own = {"imbalance": (self.imbalance, 1), "background": (self.background, "light")}
        return {**super().describe(), **{name: value for name, (value, default) in own.items() if value != default}}

    def load_splits(self) -> dict[str, Split]:
        """Draw all splits."""
        return {name: self._draw_split(name) for name in SPLITS}

    def _draw_split(self, name: str) -> Split:
        count = self._sizes[name]
        weights = self.imbalance ** -(np.arange(self.num_classes) / (self.num_classes - 1))
        weights /= weights.sum()
        draws = _uniform(self.seed, f"{name} cells", (count, 4 if self.task is Task.MULTI_LABEL else 1, _DRAWS))
        if self.task is Task.MULTI_LABEL:
            # a kind for every place in an image, or -1 where it stays empty, which is every second place
            places = np.searchsorted(np.cumsum(weights), 2.0 * _uniform(self.seed, f"{name} kinds", (count, 4)), side="right")
            kinds = np.where(places < len(weights), places, -1)
            labels = (kinds[:, :, None] == np.arange(self.num_classes)).any(axis=1).astype(np.uint8)
        else:
            kinds = _exact_kinds(count, weights)[permutation(count, self.seed, f"{name} labels")][:, None]
            labels = kinds.astype(np.uint8)
        images = np.empty((count, self.image_size, self.image_size, self.channels), np.uint8)
        for start in range(0, count, _BLOCK):
            part = slice(start, start + _BLOCK)
            images[part] = _draw(kinds[part], draws[part], self.image_size, self.channels, self.background)
        return Split(images[..., 0] if self.channels == 1 else images, labels)


def _check(num_classes: int, size: int, channels: int, imbalance: float) -> None:
    if not 2 <= num_classes <= len(_KINDS):
        raise ConfigurationError(f"num_classes={num_classes} cannot be drawn; give 2 to {len(_KINDS)}.")
    if size < 16:
        raise ConfigurationError(f"size={size} is too small to show a cell; give at least 16 pixels.")
    if channels not in (1, 3):
        raise ConfigurationError(f"channels={channels} is not an image format; give 1 (grey) or 3 (RGB).")
    if not 1 <= imbalance <= 100:
        raise ConfigurationError(f"imbalance={imbalance} is out of range; give 1 (balanced) to 100.")


def _uniform(seed: int, purpose: str, shape: tuple[int, ...]) -> _Floats:
    """Draw float32 in [0, 1); a longer draw begins like a shorter one."""
    words = random_words(int(np.prod(shape)), seed, purpose)
    return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)).reshape(shape)


def _exact_kinds(count: int, weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return ``count`` sorted classes whose shares are ``weights`` up to rounding, each at least once."""
    edges = np.rint(np.cumsum(weights) * (count - len(weights))).astype(np.int64)
    return np.repeat(np.arange(len(weights)), np.diff(edges, prepend=0) + 1)


def _draw(kinds: NDArray[np.int64], draws: _Floats, size: int, channels: int, background: Background) -> NDArray[np.uint8]:
    """Draw images, uint8 ``[B, size, size, channels]``, of kinds ``[B, cells]``, -1 for none, and draws ``[B, cells, _DRAWS]``."""
    # Only operations that IEEE 754 rounds exactly are used (no sine, no exponential), so the bytes are the same everywhere.
    density = np.zeros((len(kinds), size, size, channels), np.float32)
    for place in range(kinds.shape[1]):
        for kind in range(len(_KINDS)):
            chosen = kinds[:, place] == kind
            if chosen.any():
                centre = None if kinds.shape[1] == 1 else ((0.25, 0.75)[place % 2], (0.25, 0.75)[place // 2])
                density[chosen] = _draw_cells(density[chosen], _KINDS[kind], draws[chosen, place], centre)
    blank = draws[:, 0, 0, None, None, None]
    values = (0.90 + 0.07 * blank) * (1.0 - density) if background == "light" else 0.03 * blank + 0.95 * density
    return np.rint(np.clip(values, 0.0, 1.0) * 255.0).astype(np.uint8)


def _draw_cells(density: _Floats, kind: _Kind, draws: _Floats, centre: tuple[float, float] | None) -> _Floats:
    """Lay one cell over the stain ``[B, H, W, C]`` of each image, roughly at ``centre``; ``None`` is a large one in the middle."""
    size, channels = density.shape[1], density.shape[3]
    shape, rest = draws[:, 1:_SHAPE_DRAWS], draws[:, _SHAPE_DRAWS:]
    spread, radius = (0.36, 0.26 + 0.13 * shape[:, 0]) if centre is None else (0.08, 0.17 + 0.05 * shape[:, 0])
    origin = np.array(centre or (0.5, 0.5), np.float32) + np.float32(spread) * (shape[:, 1:3] - 0.5)
    x, y = _local_coordinates(size, origin, radius, shape[:, 3:5])
    edge = 1.2 / (size * radius)[:, None, None]
    stain, colours, rest = 0.55 + 0.6 * rest[:, 0], rest[:, 1:7], rest[:, 7:]
    cell = _disc(x * (0.9 + 0.25 * shape[:, 5, None, None]), y, 0.0, 0.0, 1.0, edge)
    density = _blend(density, cell, _colour(_CYTOPLASM, colours[:, 0:2], stain, channels))
    nucleus = _nucleus(kind, x, y, shape[:, 6:9], edge)
    texture = _texture(rest[:, 3 * _MAX_GRANULES :], size)
    nucleus = nucleus * (1.0 - kind.clumping * texture)
    density = _blend(density, nucleus * cell, _colour(_NUCLEUS, colours[:, 2:4], stain, channels))
    granule = _colour(_GRANULE, colours[:, 4:6], stain, channels)
    for number in range(kind.granules):
        place = rest[:, 3 * number : 3 * number + 3, None, None]
        spot = _disc(x, y, 1.5 * place[:, 0] - 0.75, 1.5 * place[:, 1] - 0.75, kind.granule_radius, edge)
        density = _blend(density, spot * cell * (0.5 + 0.5 * place[:, 2]), granule)
    return density


def _local_coordinates(size: int, origin: _Floats, radius: _Floats, direction: _Floats) -> tuple[_Floats, _Floats]:
    """Return each pixel's position in the turned frame of the cell, in units of its radius, twice ``[B, H, W]``."""
    turn = direction - np.float32(0.5) + np.float32(1e-6)
    cosine, sine = (turn / np.sqrt((turn * turn).sum(axis=1, keepdims=True))).T[:, :, None, None]
    pixels = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    across = (pixels[None, None, :] - origin[:, 0, None, None]) / radius[:, None, None]
    down = (pixels[None, :, None] - origin[:, 1, None, None]) / radius[:, None, None]
    return cosine * across + sine * down, cosine * down - sine * across


def _disc(x: _Floats, y: _Floats, x0: float | _Floats, y0: float | _Floats, radius: float | _Floats, edge: _Floats) -> _Floats:
    """Return how far each pixel lies inside a disc with a soft edge, in [0, 1]."""
    distance = np.sqrt((x - x0) ** 2 + (y - y0) ** 2)
    return np.clip((radius - distance) / edge + np.float32(0.5), 0.0, 1.0)


def _nucleus(kind: _Kind, x: _Floats, y: _Floats, draws: _Floats, edge: _Floats) -> _Floats:
    """Return the nucleus's shape ``[B, H, W]`` in [0, 1]: slightly shifted and scaled, lobes minus hole."""
    scale = (0.88 + 0.24 * draws[:, 0])[:, None, None]
    x, y = x - 0.2 * (draws[:, 1, None, None] - 0.5), y - 0.2 * (draws[:, 2, None, None] - 0.5)
    inside = np.zeros_like(x)
    for x0, y0, radius in kind.lobes:
        inside = np.maximum(inside, _disc(x, y, x0 * scale, y0 * scale, radius * scale, edge))
    if kind.hole is not None:
        x0, y0, radius = kind.hole
        inside = inside * (1.0 - _disc(x, y, x0 * scale, y0 * scale, radius * scale, edge))
    return inside


def _texture(draws: _Floats, size: int) -> _Floats:
    """Return smooth random texture ``[B, size, size]`` in [0, 1): a coarse random grid, interpolated linearly."""
    grid = draws.reshape(len(draws), _TEXTURE, _TEXTURE)
    position = np.arange(size, dtype=np.float32) * np.float32((_TEXTURE - 1) / size)
    low = position.astype(np.int64)
    share = position - low.astype(np.float32)
    rows = grid[:, low] * (1 - share)[:, None] + grid[:, low + 1] * share[:, None]
    texture: _Floats = rows[:, :, low] * (1 - share) + rows[:, :, low + 1] * share
    return texture


def _colour(base: tuple[float, float, float], draws: _Floats, stain: _Floats, channels: int) -> _Floats:
    """Vary a stain's strength and hue: ``[B, 1, 1, channels]``."""
    strength = stain * (0.8 + 0.4 * draws[:, 0])
    hue = np.array(base, np.float32) + (0.2 * (draws[:, 1, None] - 0.5)) * np.array((1.0, 0.0, -1.0), np.float32)
    colour = strength[:, None] * hue
    if channels == 1:
        colour = (colour[:, 0:1] + colour[:, 1:2] + colour[:, 2:3]) / np.float32(3.0)
    return colour[:, None, None, :]


def _blend(density: _Floats, alpha: _Floats, colour: _Floats) -> _Floats:
    return density + alpha[..., None] * (colour - density)
