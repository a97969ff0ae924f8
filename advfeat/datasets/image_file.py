"""One image file as pixels: which formats are opened, and what becomes of depth, transparency and orientation."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import torch
from torch import Tensor

from advfeat._names import printable
from advfeat.datasets.reading import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

# What is opened, whatever the file is called. Only these: left to itself Pillow opens PostScript, under any name, with
# Ghostscript, which carries out the program that the file is.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff",
)  # fmt: skip
_GREY = {"1", "L", "LA", "La"}
_MODES = _GREY | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa"}
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF, and of the EXIF data of the others
# How chunks of a PNG begin that may hold EXIF data, or stand for it: what Pillow reads an orientation from.
_EXIF_CHUNKS = (b"eXIf", b"iTXtXML:com.adobe.xmp\0", b"tEXtRaw profile type ", b"zTXtRaw profile type ")


class _Refused(ValueError):
    """An image that can be read and is not taken."""


@dataclass(frozen=True)
class Header:
    """What a file says of its image.

    Attributes:
        height: In pixels, as the image is shown.
        width: The same.
        grey: By its format, not by its values.
    """

    height: int
    width: int
    grey: bool


def read_header(file: Path) -> Header:
    """What a file says of its image, without decoding it.

    Args:
        file: The image.

    Raises:
        FileNotFoundError: Where there is none.
        ValueError: Naming the file, for what is no image, has more than 8 bits a channel, or more pixels than Pillow's
            ``PIL.Image.MAX_IMAGE_PIXELS`` (89 million; a script may set another limit, or None).
    """
    with _opened(file) as image:
        if image.format == "PNG" and image.fp is not None and _exif_behind_pixels(image.fp):
            image.load()  # which reads it
        width, height = image.size
        # Pillow turns a TIFF itself, its size included.
        if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        return Header(height, width, image.mode in _GREY)


def read_pixels(file: Path, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """The pixels of an image file.

    Args:
        file: The image.
        channels: 1 or 3; a grey image is read as colour, too.
        size: (H, W) to which it is brought; None for its own.

    Returns:
        uint8 [channels, H, W], on the CPU.

    Raises:
        FileNotFoundError: Where there is none.
        ValueError: As :func:`read_header`, and for a file that is damaged, or has colour where channels is 1.
    """
    with _opened(file) as opened:
        if channels == 1 and opened.mode not in _GREY:
            raise _Refused(f"{printable(file)} has colour (mode {opened.mode}), and the images of this set are grey")
        _scale_transparency(opened)
        opened.load()
        image = _on_white(_upright(opened)).convert("L" if channels == 1 else "RGB")
        if size is not None:
            image = _resize_and_crop(image, *size, file)
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, -1).permute(2, 0, 1)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ImageFile]:
    """The opened image, of 8 bits a channel; whatever goes wrong names the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"reading image folders needs Pillow (pip install pillow): {error}") from error
    with open_regular(file) as stream:
        try:
            with Image.open(stream, formats=FORMATS) as image:
                if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels")
                if _deep(image) or image.mode.startswith(("I", "F")):
                    raise _Refused(
                        f"{printable(file)} should have 8 bits a channel, got {image.format} of mode {image.mode} "
                        "with more: convert it, at the brightness that you want"
                    )
                if image.mode not in _MODES:
                    raise _Refused(
                        f"{printable(file)} should be grey, RGB, CMYK, YCbCr or of a palette, got mode {image.mode}"
                    )
                yield image
        except (_Refused, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{printable(file)} is too large to be decoded, for a small file may hold an image that fills the "
                f"memory: {error}. Up to {Image.MAX_IMAGE_PIXELS:,} pixels are; for images of your own, set "
                "PIL.Image.MAX_IMAGE_PIXELS higher"
            ) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{printable(file)} cannot be read as an image: it is none of {', '.join(FORMATS)}"
            ) from error
        except Exception as error:  # the readers are Python, and a damaged file fails in as many ways as Python has
            raise ValueError(f"{printable(file)} cannot be read as an image: {error or repr(error)}") from error


def _deep(image: ImageFile) -> bool:
    """Whether a channel has more than 8 bits. The mode does not tell: Pillow cuts 16-bit colour to 8 bits."""
    if image.format == "TIFF":
        return max(cast("TiffImageFile", image).tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    for tile in image.tile:
        decoder = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if isinstance(decoder[0], str) and "16" in decoder[0] and not decoder[0].startswith("BGR;"):  # a whole pixel
            return True
        if image.format == "PPM" and isinstance(decoder[-1], int) and decoder[-1] > 255:  # the highest value
            return True
    return False


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 .. 8; 1 where there is none or the EXIF data cannot be read."""
    from PIL import Image as pillow

    try:
        # Not the PNG reader's own, which decodes the image in search of EXIF data behind it.
        value = pillow.Image.getexif(image).get(_ORIENTATION, 1)
    except (OSError, SyntaxError, EOFError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1


def _exif_behind_pixels(stream: IO[bytes]) -> bool:
    """Whether a PNG has an orientation behind its pixels, perhaps: found without reading these."""
    handle, place, seen = stream.fileno(), 8, False
    while len(head := os.pread(handle, 8 + 21, place)) >= 8 and head[4:8] != b"IEND":
        if seen and head[4:].startswith(_EXIF_CHUNKS):
            return True
        seen = seen or head[4:8] == b"IDAT"
        place += 12 + int.from_bytes(head[:4], "big")
    return False


def _scale_transparency(image: ImageFile) -> None:
    """The transparent grey of a PNG of 2 or 4 bits as the pixels will have it, which Pillow spreads over 0 .. 255."""
    if image.format != "PNG" or image.mode != "L" or not isinstance(image.info.get("transparency"), int):
        return
    highest: dict[object, int] = {"L;2": 3, "L;4": 15}
    steps = highest.get(image.tile[0][3] if image.tile else "", 255)
    # The lower bits count, and of a value that is spread already they are the ones before.
    image.info["transparency"] = (image.info["transparency"] & steps) * (255 // steps)


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    turn = None if image.format == "TIFF" else turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image) -> Image:
    """The image without transparency: laid on white, the page that such images are made for."""
    from PIL import Image as pillow

    palette = getattr(image.palette, "mode", "") if image.mode == "P" else ""
    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and palette != "RGBA":
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)


def _resize_and_crop(image: Image, height: int, width: int, file: Path) -> Image:
    """As is usual for ImageNet: scaled until it just covers 8/7 of both sides, and the middle cut out."""
    from PIL import Image as pillow

    if image.size == (width, height):
        return image
    cover_height, cover_width = round(height * 8 / 7), round(width * 8 / 7)
    if image.width * cover_height <= image.height * cover_width:
        new = (cover_width, cover_width * image.height // image.width)  # cut off, as torchvision does
    else:
        new = (cover_height * image.width // image.height, cover_height)
    if pillow.MAX_IMAGE_PIXELS is not None and new[0] * new[1] > 2 * pillow.MAX_IMAGE_PIXELS:
        raise _Refused(
            f"{printable(file)} is {image.width}x{image.height}: too long and narrow to be brought to {width}x{height}"
        )
    image = image.resize(new, resample=pillow.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
