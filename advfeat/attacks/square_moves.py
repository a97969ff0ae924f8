"""The moves of Square: random starts, and what a query puts into a random window of each image.

A move depends on uniform numbers, of which each sample has its own. What follows from them alone, and not from the
iterate, is computed for many queries at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from advfeat.threat import L1, L2, Linf, Threat


@dataclass(frozen=True)
class Centre:
    """What is searched around.

    Attributes:
        x0: the images [B, C, H, W].
        eps: [B, 1, 1, 1], in units of ``unit``.
        unit: of perturbations, [1 or C, 1, 1]; None for that of the images.
    """

    x0: Tensor
    eps: Tensor
    unit: Tensor | None


class Choices:
    """The random choices of queries in a row, whose windows have one side.

    Args:
        side: of the windows, in pixels.
        count: the number of queries.
        **values: tensors [B, count, ...] by name.
    """

    def __init__(self, side: int, count: int, **values: Tensor) -> None:
        self.side, self.count, self._values = side, count, values

    def of(self, name: str, query: int) -> Tensor:
        """The choice of a query, [B, ...]."""
        return self._values[name][:, query]

    def keep(self, rows: Tensor) -> None:
        """Goes on with some of the samples, int64 indices."""
        self._values = {name: value[rows] for name, value in self._values.items()}


class Windows:
    """Square windows of one side in images of one shape; each is given by the number of its first pixel.

    Args:
        side: in pixels.
        shape: [C, H, W] of the images.
        device: of the images.
    """

    def __init__(self, side: int, shape: tuple[int, int, int], device: torch.device) -> None:
        self.side, (self.channels, self.height, self.width) = side, shape
        steps = torch.arange(side, device=device)
        self._down = steps.repeat_interleave(side)
        self._across = steps.repeat(side)
        self._offsets = self._down * self.width + self._across

    def corner(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """The row and the column at random, int64, from numbers [..., 2] in (0, 1)."""
        down, across = self.height - self.side, self.width - self.side
        top = (uniform[..., 0] * (down + 1)).long().clamp(max=down)
        return top, (uniform[..., 1] * (across + 1)).long().clamp(max=across)

    def pixels(self, first: Tensor) -> Tensor:
        """The numbers of the pixels, [B, C, side * side], from those of the first ones, [B]."""
        return (first[:, None] + self._offsets)[:, None].expand(-1, self.channels, -1)

    def outside(self, down: Tensor, across: Tensor) -> Tensor:
        """Which pixels are not in another window, so many pixels [B] up and left of this: bool [B, 1, side * side]."""
        row, column = down[:, None] + self._down, across[:, None] + self._across
        inside = (row >= 0) & (row < self.side) & (column >= 0) & (column < self.side)
        return ~inside[:, None]


class Stripes:
    """L-inf: stripes at first, then windows of one sign per channel.

    Args:
        shape: [B, C, H, W] of the images.

    Attributes:
        start_words: uniform numbers that a start takes of each sample.
        words: uniform numbers that a query takes of each sample.
    """

    def __init__(self, shape: torch.Size) -> None:
        _, self.channels, self.height, self.width = shape
        self.windows: dict[int, Windows] = {}  # by side
        self.start_words, self.words = self.channels * self.width, 2 + self.channels

    def windows_of(self, side: int, device: torch.device) -> Windows:
        """Those of a side; kept."""
        if side not in self.windows:
            self.windows[side] = Windows(side, (self.channels, self.height, self.width), device)
        return self.windows[side]

    def start(self, centre: Centre, uniform: Tensor) -> Tensor:
        """The start.

        Args:
            centre: what is searched around.
            uniform: numbers in (0, 1), [B, start_words].

        Returns:
            Images, perhaps outside of ball and box.
        """
        signs = _signs(uniform).reshape(-1, self.channels, 1, self.width).to(centre.x0.dtype)
        return centre.x0 + _times(centre.eps * signs, centre.unit)

    def block(self, centre: Centre, uniform: Tensor, side: int) -> Choices:
        """The choices of some queries.

        Args:
            centre: what is searched around.
            uniform: numbers in (0, 1), [B, count, words].
            side: of the windows.

        Returns:
            The choices.
        """
        top, left = self.windows_of(side, uniform.device).corner(uniform[..., :2])
        signs = _signs(uniform[..., 2:]).to(centre.x0.dtype)
        # Beyond the ball on the side of the sign: the projection clips it.
        beyond = 2 * centre.eps[..., 0]
        if centre.unit is not None:
            beyond = beyond * centre.unit[..., 0, 0]
        return Choices(side, uniform.shape[1], first=top * self.width + left, beyond=beyond * signs)

    def query(self, centre: Centre, x: Tensor, block: Choices, query: int) -> Tensor:
        """The candidates of a query.

        Args:
            centre: what is searched around.
            x: the best points so far, contiguous [B, C, H, W].
            block: choices of queries.
            query: the number of one of them in the block.

        Returns:
            New images, perhaps outside of ball and box.
        """
        pixels = self.windows_of(block.side, x.device).pixels(block.of("first", query))
        values = centre.x0.flatten(2).gather(2, pixels) + block.of("beyond", query)[..., None]
        candidate = x.clone(memory_format=torch.contiguous_format)
        candidate.flatten(2).scatter_(2, pixels, values)
        return candidate


class Bumps(Stripes):
    """L2: bumps in tiles at first, then windows whose mass moves into others."""

    order, decay = 2, 2

    def __init__(self, shape: torch.Size) -> None:
        super().__init__(shape)
        self.tile = max(min(self.height, self.width) // 5, 1)
        self.tiles = self.height // self.tile, self.width // self.tile
        self.start_words = self.tiles[0] * self.tiles[1] * (1 + self.channels)
        self.words = 5 + self.channels  # two corners, a direction, and a sign per channel
        self.bumps: dict[int, Tensor] = {}  # by side

    def _norm(self, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
        return torch.linalg.vector_norm(delta, self.order, dim=dims, keepdim=True)

    def start(self, centre: Centre, uniform: Tensor) -> Tensor:
        """See :meth:`Stripes.start`."""
        n, tile, (down, across) = len(centre.x0), self.tile, self.tiles
        uniform = uniform.reshape(n, down, across, 1 + self.channels)
        bumps = self._turned(tile, uniform[..., 0] > 0.5, centre.x0)  # [n, down, across, tile, tile]
        signs = _signs(uniform[..., 1:]).to(bumps.dtype).movedim(-1, 1)  # [n, C, down, across]
        grid = signs[..., None, None] * bumps[:, None]
        grid = grid.transpose(3, 4).reshape(n, self.channels, down * tile, across * tile)
        delta = torch.zeros_like(centre.x0)
        top, left = (self.height % tile) // 2, (self.width % tile) // 2
        delta[:, :, top : top + down * tile, left : left + across * tile] = grid
        return centre.x0 + _times(self._scaled(delta, centre), centre.unit)

    def block(self, centre: Centre, uniform: Tensor, side: int) -> Choices:
        """See :meth:`Stripes.block`."""
        windows = self.windows_of(side, uniform.device)
        (top, left), (from_top, from_left) = windows.corner(uniform[..., :2]), windows.corner(uniform[..., 2:4])
        return Choices(
            side,
            uniform.shape[1],
            into=top * self.width + left,
            source=from_top * self.width + from_left,
            down=from_top - top,
            across=from_left - left,
            turned=uniform[..., 4] > 0.5,
            signs=_signs(uniform[..., 5:, None]).to(centre.x0.dtype),
        )

    def query(self, centre: Centre, x: Tensor, block: Choices, query: int) -> Tensor:
        """See :meth:`Stripes.query`."""
        windows = self.windows_of(block.side, x.device)
        into, source = (windows.pixels(block.of(name, query)) for name in ("into", "source"))
        delta = x - centre.x0
        if centre.unit is not None:
            delta = delta / centre.unit
        flat = delta.flatten(2)
        unspent = self._unspent(centre.eps, self._norm(delta, (1, 2, 3)))[..., 0]
        there = flat.gather(2, into)
        elsewhere = flat.gather(2, source) * windows.outside(block.of("down", query), block.of("across", query))
        both = self._norm(torch.cat([there, elsewhere], dim=2), (2,))
        bump = self._turned(block.side, block.of("turned", query), x).flatten(1)[:, None] * block.of("signs", query)
        placed = bump + there / (self._norm(there, (2,)) + 1e-12)
        placed = placed / (self._norm(placed, (2,)) + 1e-12) * self._amplitude(unspent, both)
        flat.scatter_(2, source, 0.0)
        flat.scatter_(2, into, placed)
        return centre.x0 + _times(self._bounded(delta, centre), centre.unit)

    def _unspent(self, eps: Tensor, length: Tensor) -> Tensor:
        return (eps.square() - length.square()).clamp(min=0)

    def _amplitude(self, unspent: Tensor, union: Tensor) -> Tensor:
        return (unspent / self.channels + union.square()).sqrt()

    def _scaled(self, delta: Tensor, centre: Centre) -> Tensor:
        length = self._norm(delta, (1, 2, 3))
        return delta * (centre.eps / torch.where(length > 0, length, torch.ones_like(length)))

    _bounded = _scaled

    def _turned(self, side: int, turned: Tensor, like: Tensor) -> Tensor:
        """The bump, or its transpose where ``turned``: [..., side, side]."""
        if side not in self.bumps:
            self.bumps[side] = self._bump(side).to(like)
        bump = self.bumps[side]
        return torch.where(turned[..., None, None], bump.T, bump)

    def _bump(self, side: int) -> Tensor:
        """A bump upwards in the upper half of a window and one downwards in the lower half, of norm 1; float64."""
        half = side // 2
        bump = torch.cat([self._hill(half, side), -self._hill(side - half, side)])
        return bump / torch.linalg.vector_norm(bump, self.order).clamp(min=1e-300)

    def _hill(self, height: int, width: int) -> Tensor:
        """Squares around the middle, the smaller ones on top of the larger, of norm 1; float64 [height, width]."""
        hill = torch.zeros(height, width, dtype=torch.float64)
        if height == 0:
            return hill
        for k in range(max(height // 2, width // 2) + 1):
            top, left = height // 2 - k, width // 2 - k
            hill[max(top, 0) : top + 2 * k + 1, max(left, 0) : left + 2 * k + 1] += (k + 1.0) ** -self.decay
        return hill / torch.linalg.vector_norm(hill, self.order)


class SharpBumps(Bumps):
    """L1: narrower bumps, and lengths in L1. The projection onto ball and box takes the place of scaling."""

    order, decay = 1, 4

    def _unspent(self, eps: Tensor, length: Tensor) -> Tensor:
        return (eps - length).clamp(min=0)

    def _amplitude(self, unspent: Tensor, union: Tensor) -> Tensor:
        return (unspent / self.channels + union) * self.channels

    def _bounded(self, delta: Tensor, centre: Centre) -> Tensor:
        return delta


def moves_of(threat: Threat, shape: torch.Size) -> Stripes:
    """The moves in a ball.

    Args:
        threat: Linf, L2 or L1.
        shape: [B, C, H, W] of the images.

    Returns:
        The moves.
    """
    return _KINDS[type(threat)](shape)


_KINDS: dict[type[Threat], type[Stripes]] = {Linf: Stripes, L2: Bumps, L1: SharpBumps}


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)


def _times(values: Tensor, unit: Tensor | None) -> Tensor:
    return values if unit is None else values * unit
