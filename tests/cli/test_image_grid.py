"""Grids of sample images, whatever their shape."""

from __future__ import annotations

import io

import pytest
import torch
from support.image_files import Image

from advfeat.plots import sample_grid


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 64), (3, 64, 8), (2, 8, 8), (5, 8, 24)], ids=str)
def test_images_of_any_shape_are_shown(shape):
    x = torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))
    png = sample_grid([("x", x), ("y", x.flip(0))], ["a", "b", "c"], ("difference", x - 0.5))
    width, height = Image.open(io.BytesIO(png), formats=["PNG"]).size
    _, rows, columns = shape
    # A cell is at least 100 pixels high and wide, and a wide image's is wide.
    assert height > 300 and width > 300
    assert (width > 2 * height) == (columns > 2 * rows) and (height > 1.5 * width) == (rows > 2 * columns)
