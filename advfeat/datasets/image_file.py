"""Reading of single image files: header and pixels, with transparency, orientation and bit depth handled."""

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

# The only formats that are opened, regardless of the suffix. By default Pillow would also open PostScript, with
# Ghostscript, which executes the program in the file.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff",
)  # fmt: skip
_GREY = {"1", "L", "LA", "La"}
_MODES = _GREY | {"P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "RGBa"}
_BITS_PER_SAMPLE, _ORIENTATION = 258, 274  # tags of TIFF, and of the EXIF data of the others
# The first bytes (type and keyword) of the PNG chunks from which Pillow may read an orientation.
_EXIF_CHUNKS = (b"eXIf", b"iTXtXML:com.adobe.xmp\0", b"tEXtRaw profile type ", b"zTXtRaw profile type ")


class _Refused(ValueError):
    """The image is readable but not supported; the message names the file."""


@dataclass(frozen=True)
class Header:
    """Size and colour of an image, from the header of its file.

    Attributes:
        height: In pixels, after the orientation is applied.
        width: In pixels, after the orientation is applied.
        grey: Whether it is stored as grey, whatever its pixels are.
    """

    height: int
    width: int
    grey: bool


def read_header(file: Path) -> Header:
    """The header of an image file, read without decoding the pixels.

    Args:
        file: The image.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not an image of a supported format, has more than 8 bits per channel, or has more
            pixels than ``PIL.Image.MAX_IMAGE_PIXELS`` (by default 89 million; None for no limit). The message names it.
    """
    with _opened(file) as image:
        if image.format == "PNG" and image.fp is not None and _may_have_exif_after_pixels(image.fp):
            image.load()  # Pillow reads these chunks only while it decodes
        width, height = image.size
        # Pillow applies the orientation of a TIFF itself, also to its size.
        if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):
            width, height = height, width
        return Header(height, width, image.mode in _GREY)


def read_pixels(file: Path, channels: int, size: tuple[int, int] | None = None) -> Tensor:
    """The pixels of an image file.

    Args:
        file: The image.
        channels: 1, or 3, which also reads a grey image as colour.
        size: (H, W) to scale and crop to; None keeps the image's own.

    Returns:
        uint8 [channels, H, W], on the CPU.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: As for :func:`read_header`, or if the file is damaged, or has colour and ``channels`` is 1.
    """
    with _opened(file) as opened:
        if channels == 1 and opened.mode not in _GREY:
            raise _Refused(f"{printable(file)} has colour (mode {opened.mode}), but the images of this set are grey")
        _scale_transparency(opened)
        opened.load()
        image = _on_white(_upright(opened)).convert("L" if channels == 1 else "RGB")
        if size is not None:
            image = _resize_and_crop(image, *size, file)
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, -1).permute(2, 0, 1)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[ImageFile]:
    """Opens an image of at most 8 bits per channel; every error, also in the block, names the file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"reading image folders needs Pillow (pip install pillow): {error}") from error
    with open_regular(file) as stream:
        try:
            with Image.open(stream, formats=FORMATS) as image:
                if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError(f"it has {image.width} x {image.height} pixels")
                if _exceeds_8_bits(image) or image.mode.startswith(("I", "F")):
                    raise _Refused(
                        f"{printable(file)} should have at most 8 bits per channel, got {image.format} of mode "
                        f"{image.mode} with more: convert it to 8 bits, with the brightness you want"
                    )
                if image.mode not in _MODES:
                    raise _Refused(
                        f"{printable(file)} should be grey, RGB, CMYK, YCbCr or a palette image, got mode {image.mode}"
                    )
                yield image
        except (_Refused, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise ValueError(
                f"{printable(file)} is too large to be decoded: {error}. The limit of {Image.MAX_IMAGE_PIXELS:,} "
                "pixels protects against small files that fill the memory; if you trust the images, raise "
                "PIL.Image.MAX_IMAGE_PIXELS"
            ) from error
        except Image.UnidentifiedImageError as error:
            raise ValueError(
                f"{printable(file)} cannot be read as an image: its format is none of {', '.join(FORMATS)}"
            ) from error
        except Exception as error:  # on damaged files Pillow's parsers raise all kinds of exceptions
            raise ValueError(f"{printable(file)} cannot be read as an image: {error or repr(error)}") from error


def _exceeds_8_bits(image: ImageFile) -> bool:
    """Whether a channel has more than 8 bits. The mode does not show it: Pillow reduces 16-bit colour to 8 bits."""
    if image.format == "TIFF":
        return max(cast("TiffImageFile", image).tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    for tile in image.tile:
        decoder = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
        if isinstance(decoder[0], str) and "16" in decoder[0] and not decoder[0].startswith("BGR;"):  # per pixel
            return True
        if image.format == "PPM" and isinstance(decoder[-1], int) and decoder[-1] > 255:  # the maximum value
            return True
    return False


def _orientation(image: Image) -> int:
    """The EXIF orientation, 1 .. 8; 1 if there is none or the EXIF data cannot be read."""
    from PIL import Image as pillow

    try:
        # Not the getexif of PNG images, which decodes the image to find EXIF data after the pixels.
        value = pillow.Image.getexif(image).get(_ORIENTATION, 1)
    except (OSError, SyntaxError, EOFError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1
    return value if value in range(1, 9) else 1


def _may_have_exif_after_pixels(stream: IO[bytes]) -> bool:
    """Whether a PNG may have an orientation after its pixels; found without reading the pixels."""
    handle, offset, pixels_seen = stream.fileno(), 8, False
    while len(head := os.pread(handle, 8 + 21, offset)) >= 8 and head[4:8] != b"IEND":
        if pixels_seen and head[4:].startswith(_EXIF_CHUNKS):
            return True
        pixels_seen = pixels_seen or head[4:8] == b"IDAT"
        offset += 12 + int.from_bytes(head[:4], "big")
    return False


def _scale_transparency(image: ImageFile) -> None:
    """Scales the transparent grey value of a PNG of 2 or 4 bits to 0 .. 255, as Pillow does with the pixels."""
    if image.format != "PNG" or image.mode != "L" or not isinstance(image.info.get("transparency"), int):
        return
    highest: dict[object, int] = {"L;2": 3, "L;4": 15}
    maximum = highest.get(image.tile[0][3] if image.tile else "", 255)
    # Only the lower bits count. Those of a value that is already scaled are the original value.
    image.info["transparency"] = (image.info["transparency"] & maximum) * (255 // maximum)


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    turn = None if image.format == "TIFF" else turns.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image) -> Image:
    """The image composited onto white, the background for which transparent images are usually made."""
    from PIL import Image as pillow

    palette = getattr(image.palette, "mode", "") if image.mode == "P" else ""
    if "transparency" not in image.info and image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and palette != "RGBA":
        return image
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    return pillow.alpha_composite(pillow.new("RGBA", image.size, "white"), image)


def _resize_and_crop(image: Image, height: int, width: int, file: Path) -> Image:
    """As is usual for ImageNet: scaled until it just covers 8/7 of both sides, then cropped at the centre."""
    from PIL import Image as pillow

    if image.size == (width, height):
        return image
    cover_height, cover_width = round(height * 8 / 7), round(width * 8 / 7)
    if image.width * cover_height <= image.height * cover_width:
        new = (cover_width, cover_width * image.height // image.width)  # rounded down, as in torchvision
    else:
        new = (cover_height * image.width // image.height, cover_height)
    if pillow.MAX_IMAGE_PIXELS is not None and new[0] * new[1] > 2 * pillow.MAX_IMAGE_PIXELS:
        raise _Refused(
            f"{printable(file)} is {image.width}x{image.height}: too long and narrow to be resized to {width}x{height}"
        )
    image = image.resize(new, resample=pillow.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
