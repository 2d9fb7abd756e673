"""Image classes written as formulas: strokes, contours, fractals and textures.

A class is one draw of a formula's parameters; an instance jitters them and places the shape by a random affine map.
No image, font or data set is read anywhere. After Kataoka et al. 2020, "Pre-training without Natural Images"
(fractals), and Kataoka et al. 2022, "Replacing Labeled Real-image Datasets with Auto-generated Contours"
(radial contours); strokes are our own addition.

Coordinates run over [-1, 1] in x and y. Every family maps labels `(n,)` to grey images `(n, side, side)` in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

SIDE = 32


class Family(Protocol):
    """A set of image classes that share one formula."""

    classes: int

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        """Draws one instance per label: `(n,)` int64 to `(n, SIDE, SIDE)` float32 in 0..1."""
        ...


class Strokes:
    """Glyph-like drawings: one to three strokes, each a path of straight and curved pieces with corners between."""

    PIECES, STEPS, STROKES = 3, 8, 3

    def __init__(self, classes: int, generator: Generator) -> None:
        self.classes = classes
        shape = (classes, self.STROKES, self.PIECES)
        self.count = 1 + torch.multinomial(torch.tensor([0.55, 0.3, 0.15]), classes, True, generator=generator)
        self.start = _uniform((*shape[:2], 2), -0.9, 0.9, generator)
        self.heading = _uniform(shape[:2], 0, 2 * math.pi, generator)
        self.length = _uniform(shape, 0.25, 1.1, generator)
        curved = _coin(shape, 0.65, generator)
        self.turn = curved * _sign(shape, generator) * _uniform(shape, 0.6, 4.5, generator)
        cornered = _coin(shape, 0.4, generator)
        self.corner = cornered * _sign(shape, generator) * _uniform(shape, 0.7, 2.6, generator)

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        n, g = len(labels), generator
        shape = (n, self.STROKES, self.PIECES)
        turn = self.turn[labels] * (1 + 0.15 * _normal(shape, g)) + 0.12 * _normal(shape, g)
        corner = self.corner[labels] * (1 + 0.1 * _normal(shape, g))
        length = self.length[labels] * (0.15 * _normal(shape, g)).exp()
        start = self.start[labels] + 0.07 * _normal((*shape[:2], 2), g)
        heading = self.heading[labels] + 0.1 * _normal(shape[:2], g)

        bend = (turn / self.STEPS).repeat_interleave(self.STEPS, dim=2)
        bend[:, :, :: self.STEPS] += corner
        angle = heading[..., None] + bend.cumsum(dim=2)
        step = (length / self.STEPS).repeat_interleave(self.STEPS, dim=2)
        path = torch.stack([angle.cos(), angle.sin()], dim=-1) * step[..., None]
        path = start[:, :, None] + path.cumsum(dim=2)
        unused = torch.arange(self.STROKES) >= self.count[labels][:, None]
        path = torch.where(unused[:, :, None, None], path[:, :1], path).flatten(1, 2)

        points = _place(_fit_box(path), *_affine(n, g))
        thickness = _uniform((n, 1), 0.05, 0.17, g)
        distance = torch.cdist(_pixels().expand(n, -1, -1), points).amin(dim=2)
        return ((thickness - distance) * SIDE / 2 + 0.5).clamp(0, 1).view(n, SIDE, SIDE)


class Contours:
    """Closed curves around a centre whose radius is a sum of harmonics: outlines, nested outlines or filled shapes."""

    HARMONICS = 8

    def __init__(self, classes: int, generator: Generator) -> None:
        self.classes = classes
        shape = (classes, self.HARMONICS)
        decay = 1 / torch.arange(1, self.HARMONICS + 1).float().sqrt()
        self.amplitude = _uniform(shape, 0, 0.35, generator) * _coin(shape, 0.4, generator) * decay
        self.phase = _uniform(shape, 0, 2 * math.pi, generator)
        self.rings = torch.randint(1, 4, (classes,), generator=generator)
        self.spacing = _uniform((classes,), 0.45, 0.75, generator)
        self.filled = _coin((classes,), 0.3, generator)

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        n, g = len(labels), generator
        grid = _place(_pixels().expand(n, -1, -1), *_affine(n, g))
        radius, angle = grid.norm(dim=2), torch.atan2(grid[..., 1], grid[..., 0])
        amplitude = self.amplitude[labels] * (1 + 0.15 * _normal((n, self.HARMONICS), g))
        phase = self.phase[labels] + 0.12 * _normal((n, self.HARMONICS), g)
        order = torch.arange(1, self.HARMONICS + 1)
        wave = (angle[..., None] * order + phase[:, None]).cos() @ amplitude[..., None]
        outline = 0.7 * (1 + wave.squeeze(2)).clamp(min=0.1)

        scales = self.spacing[labels][:, None] ** torch.arange(3)
        absent = torch.arange(3) >= self.rings[labels][:, None]
        gaps = (radius[..., None] - outline[..., None] * scales[:, None]).abs() + 9.0 * absent[:, None]
        inside = (outline - radius) * self.filled[labels][:, None]
        thickness = _uniform((n, 1), 0.05, 0.17, g)
        line = (thickness - gaps.amin(dim=2)) * SIDE / 2 + 0.5
        return torch.maximum(line, inside * SIDE / 2).clamp(0, 1).view(n, SIDE, SIDE)


class Fractals:
    """Attractors of iterated function systems of two to four contractions, drawn by the chaos game."""

    MAPS, CHAINS, BURN_IN, KEPT = 4, 96, 8, 16

    def __init__(self, classes: int, generator: Generator) -> None:
        self.classes = classes
        shape = (classes, self.MAPS)
        left = _rotation(_uniform(shape, 0, 2 * math.pi, generator))
        right = _rotation(_uniform(shape, 0, 2 * math.pi, generator))
        first = _uniform(shape, 0.4, 0.85, generator)
        second = first * _uniform(shape, 0.2, 1.0, generator) * _sign(shape, generator)
        self.matrix = left @ torch.diag_embed(torch.stack([first, second], dim=-1)) @ right
        self.offset = _uniform((*shape, 2), -1, 1, generator)
        count = torch.randint(2, self.MAPS + 1, (classes, 1), generator=generator)
        self.weight = ((first * second).abs() + 0.05) * (torch.arange(self.MAPS) < count)

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        n, g = len(labels), generator
        matrix = self.matrix[labels] * (1 + 0.06 * _normal((n, self.MAPS, 1, 1), g))
        offset = self.offset[labels] + 0.05 * _normal((n, self.MAPS, 2), g)
        moves = torch.multinomial(self.weight[labels], self.CHAINS * (self.BURN_IN + self.KEPT), True, generator=g)
        rows = torch.arange(n)[:, None]
        point, trail = torch.zeros(n, self.CHAINS, 2), []
        for move in moves.view(n, self.CHAINS, -1).unbind(2):
            point = (matrix[rows, move] @ point[..., None]).squeeze(3) + offset[rows, move]
            trail.append(point)
        points = _place(_fit_box(torch.cat(trail[self.BURN_IN :], dim=1)), *_affine(n, g))

        column_row = ((points + 1) * SIDE / 2).floor().long()
        seen = ((column_row >= 0) & (column_row < SIDE)).all(dim=2)
        cell = (column_row[..., 1] * SIDE + column_row[..., 0]).clamp(0, SIDE * SIDE - 1)
        hits = torch.zeros(n, SIDE * SIDE).scatter_add_(1, cell, seen.float())
        return (hits / 4).sqrt().clamp(0, 1).view(n, SIDE, SIDE)


class Textures:
    """Sums of gratings, from smooth to hard-edged. Where the pattern begins is left to chance."""

    WAVES = 3

    def __init__(self, classes: int, generator: Generator) -> None:
        self.classes = classes
        shape = (classes, self.WAVES)
        direction = _uniform(shape, 0, math.pi, generator)
        frequency = _uniform(shape, math.log(0.5), math.log(4.5), generator).exp()
        self.wave = torch.stack([direction.cos(), direction.sin()], dim=-1) * frequency[..., None]
        self.weight = _uniform(shape, 0.3, 1, generator)
        self.weight[:, 1:] *= _coin((classes, self.WAVES - 1), 0.6, generator)
        self.sharpness = _uniform((classes,), 0, 2.5, generator).exp()

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        n, g = len(labels), generator
        grid = _place(_pixels().expand(n, -1, -1), *_affine(n, g))
        phase = _uniform((n, 1, self.WAVES), 0, 2 * math.pi, g)
        waves = (2 * math.pi * grid @ self.wave[labels].mT + phase).sin() @ self.weight[labels][..., None]
        return ((self.sharpness[labels][:, None] * waves.squeeze(2)).tanh() / 2 + 0.5).view(n, SIDE, SIDE)


class Mixture:
    """Several families under one numbering of classes, in the order given."""

    def __init__(self, families: Sequence[Family]) -> None:
        self.families = tuple(families)
        self.classes = sum(family.classes for family in families)

    def draw(self, labels: Tensor, generator: Generator) -> Tensor:
        images, first = torch.empty(len(labels), SIDE, SIDE), 0
        for family in self.families:
            mine = ((labels >= first) & (labels < first + family.classes)).nonzero().squeeze(1)
            if len(mine):
                images[mine] = family.draw(labels[mine] - first, generator)
            first += family.classes
        return images


def mixture(strokes: int, contours: int, fractals: int, textures: int, seed: int) -> Mixture:
    """Draws the parameters of so many classes of each family."""
    g = torch.Generator().manual_seed(seed)
    return Mixture([Strokes(strokes, g), Contours(contours, g), Fractals(fractals, g), Textures(textures, g)])


def _pixels() -> Tensor:
    """Pixel centres, row by row: `(1, SIDE * SIDE, 2)` as (x, y)."""
    axis = (torch.arange(SIDE) + 0.5) * 2 / SIDE - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x, y], dim=-1).view(1, -1, 2)


def _fit_box(points: Tensor) -> Tensor:
    """Centres points `(n, p, 2)` and scales them, keeping their proportions, into [-0.75, 0.75]."""
    low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    return 1.5 * (points - (low + high) / 2) / (high - low).amax(dim=2, keepdim=True).clamp(min=0.1)


def _affine(n: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Mild rotation, shear, scale and shift: matrices `(n, 2, 2)` and offsets `(n, 1, 2)`."""
    scale = torch.diag_embed(_uniform((n, 1), 0.75, 1.15, generator) * _uniform((n, 2), 0.8, 1.15, generator))
    shear = torch.eye(2).repeat(n, 1, 1)
    shear[:, 0, 1] = 0.22 * _normal((n,), generator)
    return _rotation(0.18 * _normal((n,), generator)) @ shear @ scale, 0.08 * _normal((n, 1, 2), generator)


def _place(points: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    return points @ matrix.mT + offset


def _rotation(angle: Tensor) -> Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=-1), torch.stack([sin, cos], dim=-1)], dim=-2)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _normal(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _coin(shape: tuple[int, ...], probability: float, generator: Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) < probability).float()


def _sign(shape: tuple[int, ...], generator: Generator) -> Tensor:
    return 2 * _coin(shape, 0.5, generator) - 1
