"""One image file as pixels: formats, depth, transparency, orientation, colour, and what is refused."""

from __future__ import annotations

import io
import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import image_files
from support.image_files import Image, picture, save

from advfeat.datasets import image_file, sources
from advfeat.datasets.folder import FolderSource
from advfeat.datasets.image_file import read_header, read_pixels


def _rgb(file: Path) -> np.ndarray:
    return read_pixels(file, 3).permute(1, 2, 0).numpy()


# --- what is opened


@pytest.mark.parametrize("suffix", image_file.SUFFIXES)
def test_every_suffix_is_a_format_that_is_opened(tmp_path, suffix):
    grey = suffix in (".pgm", ".pbm")
    file = tmp_path / f"x{suffix}"
    image = Image.fromarray(picture(0)).convert("1" if suffix == ".pbm" else "L" if grey else "RGB")
    image.save(file, format={".jfif": "JPEG", ".jpe": "JPEG", ".pnm": "PPM"}.get(suffix))
    with Image.open(file) as opened:
        assert opened.format in image_file.FORMATS
        expected = np.asarray(opened.convert("RGB"))
    assert np.array_equal(_rgb(file), expected)
    header = read_header(file)
    assert (header.height, header.width) == (6, 6)


def test_the_content_decides_not_the_suffix(tmp_path):
    """As in ImageNet, where a PNG is called .JPEG."""
    file = save(tmp_path / "x.png", picture(0)).rename(tmp_path / "x.JPEG")
    assert np.array_equal(_rgb(file), picture(0))


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"%!PS-Adobe-3.0 EPSF-3.0", b"\xc5\xd0\xd3\xc6"], ids=["text", "with a preview"])
def test_postscript_runs_no_program_whatever_it_is_called(tmp_path, start):
    for name in ("a/0.png", "b/0.jpg"):
        file = tmp_path / "train" / name
        file.parent.mkdir(parents=True)
        file.write_bytes(start + b"\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(a program) pop\nshowpage\n" + bytes(64))
    mark, gs = tmp_path / "was-run", tmp_path / "bin" / "gs"
    gs.parent.mkdir()
    gs.write_text(f"#!/bin/sh\ntouch {mark}\n")
    gs.chmod(0o755)
    code = f"from advfeat.datasets import sources; sources.load('folder', root={str(tmp_path)!r}).images()"
    environment = {**os.environ, "PATH": f"{gs.parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "cannot be read as an image: its format is none of PNG, JPEG" in done.stderr
    assert not mark.exists()


@pytest.mark.parametrize("format", ["ICO", "PCX", "TGA", "SGI", "EPS", "PDF", "MSP"])
def test_other_formats_are_refused_under_any_name(tmp_path, format):
    file = tmp_path / "x.png"
    mode = "1" if format == "MSP" else "RGB"
    Image.new(mode, (16, 16)).save(file, format=format)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
        read_header(file)


# --- depth

DEEP = {
    "png grey": image_files.png16(0, 1),
    "png rgb": image_files.png16(2, 3),
    "png grey alpha": image_files.png16(4, 2),
    "png rgba": image_files.png16(6, 4),
    "ppm": b"P6\n4 4\n65535\n" + bytes(96),
    "ppm of 10 bits": b"P6\n4 4\n1023\n" + bytes(96),
    "pgm": b"P5\n4 4\n65535\n" + bytes(32),
    "pfm": b"Pf\n4 4\n-1.0\n" + bytes(64),
    "tiff grey": image_files.tiff(16, 1, 1),
    "tiff rgb": image_files.tiff(16, 3, 2),
    "tiff cmyk": image_files.tiff(16, 4, 5),
}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_a_channel_are_refused_grey_or_colour(tmp_path, kind):
    """Pillow cuts 16-bit colour to 8 bits without a word."""
    file = tmp_path / "x.png"
    file.write_bytes(DEEP[kind])
    for read in (read_header, lambda f: read_pixels(f, 3)):
        with pytest.raises(ValueError, match=r"x\.png should have at most 8 bits .*, got (PNG|PPM|TIFF) of mode"):
            read(file)


def test_colours_that_are_not_read_are_named(tmp_path):
    Image.new("LAB", (4, 4)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"x\.tif should be grey, RGB, CMYK, YCbCr or a palette image, got mode LAB"):
        read_header(tmp_path / "x.tif")


def test_fewer_bits_fill_the_range(tmp_path):
    bits = np.array([[True, False], [False, True]])
    Image.fromarray((bits * 255).astype(np.uint8)).convert("1").save(tmp_path / "x.png")
    (tmp_path / "x.ppm").write_bytes(b"P5\n2 2\n15\n" + bytes([15, 0, 0, 15]))
    for name in ("x.png", "x.ppm"):
        assert np.array_equal(read_pixels(tmp_path / name, 1)[0].numpy(), bits * 255)
    assert read_header(tmp_path / "x.png").grey
    for bits_a_channel in (image_files.tiff(8, 1, 1), image_files.tiff(8, 3, 2)):
        (tmp_path / "x.tif").write_bytes(bits_a_channel)
        assert read_pixels(tmp_path / "x.tif", 3).shape == (3, 4, 4)


# --- transparency, palettes, CMYK


def test_transparent_pixels_are_white(tmp_path):
    colour = picture(3, 2, 2)
    alpha = np.array([[0, 255], [128, 255]], dtype=np.uint8)
    expected = np.round(colour * (alpha / 255)[..., None] + 255 * (1 - alpha / 255)[..., None])
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "rgba.tif")
    for name in ("rgba.png", "rgba.webp", "rgba.tif"):
        assert np.abs(_rgb(tmp_path / name) - expected).max() <= 1, name
        assert np.array_equal(_rgb(tmp_path / name)[:, 1], colour[:, 1])  # opaque: untouched
    Image.fromarray(np.dstack([colour[..., 0], alpha])).save(tmp_path / "la.png")
    assert np.abs(read_pixels(tmp_path / "la.png", 1)[0].numpy() - expected[..., 0]).max() <= 1
    assert read_header(tmp_path / "la.png").grey


def test_a_transparent_colour_or_palette_entry_is_white(tmp_path):
    colour = np.array([[[255, 0, 0], [0, 255, 0]]], dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "rgb.png", transparency=(255, 0, 0))
    Image.fromarray(np.array([[7, 9]], dtype=np.uint8)).save(tmp_path / "grey.png", transparency=7)
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    of_red = int(np.asarray(palette)[0, 0])
    palette.save(tmp_path / "index.png", transparency=of_red)
    palette.save(tmp_path / "index.gif", transparency=of_red)
    palette.save(tmp_path / "bytes.png", transparency=bytes(0 if i == of_red else 255 for i in range(2)))
    palette.save(tmp_path / "opaque.png")
    for name in ("rgb.png", "index.png", "index.gif", "bytes.png"):
        assert _rgb(tmp_path / name).tolist() == [[[255, 255, 255], [0, 255, 0]]], name
    assert _rgb(tmp_path / "opaque.png").tolist() == colour.tolist()
    assert read_pixels(tmp_path / "grey.png", 1).tolist() == [[[255, 9]]]
    assert not read_header(tmp_path / "opaque.png").grey


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_grey_of_a_png_is_the_one_of_its_bits(tmp_path, bits):
    values = range(min(2**bits, 8))
    row = int("".join(f"{value:0{bits}b}" for value in values).ljust(8 * bits, "0"), 2).to_bytes(bits, "big")
    shades = [value * 255 // (2**bits - 1) for value in values]
    for clear in values:
        before = [(b"tRNS", struct.pack(">H", clear))]
        (tmp_path / "x.png").write_bytes(image_files.png(len(values), 1, b"\0" + row, bits=bits, before=before))
        expected = [255 if value == clear else shade for value, shade in zip(values, shades, strict=True)]
        assert read_pixels(tmp_path / "x.png", 1).flatten().tolist() == expected


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_cmyk_and_ycbcr_are_read_as_colour(tmp_path, mode):
    file = tmp_path / "x.tif"
    Image.fromarray(picture(1)).convert(mode).save(file)
    with Image.open(file) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(_rgb(file), expected) and not read_header(file).grey


# --- orientation and frames


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_as_viewers_do(tmp_path, suffix, orientation):
    ops = pytest.importorskip("PIL.ImageOps")
    file, exif = tmp_path / f"x{suffix}", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture(0, 8, 16)).save(file, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    with Image.open(file) as image:
        image.load()
        expected = np.asarray(ops.exif_transpose(image).convert("RGB"))
    header = read_header(file)
    assert (header.height, header.width) == expected.shape[:2] == ((8, 16) if orientation < 5 else (16, 8))
    assert np.array_equal(_rgb(file), expected)


_SIDEWAYS = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
_HEX = (b"Exif\0\0" + _SIDEWAYS).hex().encode()
_XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", _SIDEWAYS),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + _XMP),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n%s\n" % (32, _HEX))),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["before", "behind"])
def test_an_orientation_is_seen_before_and_behind_the_pixels_of_a_png(tmp_path, chunk, place):
    file = tmp_path / "x.png"
    file.write_bytes(image_files.png(2, 1, bytes([0, 10, 200]), **{place: [(b"tEXt", b"note\0x"), chunk]}))
    header = read_header(file)
    assert (header.height, header.width) == (2, 1)
    assert read_pixels(file, 1).tolist() == [[[10], [200]]]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_data_does_not_make_an_image_unreadable(tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert np.array_equal(_rgb(tmp_path / "x.png"), picture(0))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_frames_the_first_one_is_read(tmp_path, suffix):
    first, second = Image.new("RGB", (4, 4), (255, 255, 255)), Image.new("RGB", (4, 4))
    first.save(tmp_path / f"x{suffix}", save_all=True, append_images=[second])
    assert (_rgb(tmp_path / f"x{suffix}") == 255).all()


# --- damage, and what is no regular file


def test_whatever_is_wrong_with_an_image_names_the_file(tmp_path):
    whole = save(tmp_path / "x.png", picture(0)).read_bytes()
    bomb = struct.pack(">I", 4) + b"zTXt"  # claims more than there is
    starts = (b"", b"text", b"GIF89a", b"II*\0")
    for content in (*starts, whole[:20], whole[:60], whole[:40] + bytes(30), whole[:33] + bomb):
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.png cannot be read as an image"):
            read_pixels(tmp_path / "x.png", 3)
    with pytest.raises(FileNotFoundError):
        read_pixels(tmp_path / "none.png", 3)


@settings(max_examples=150)
@given(format=st.sampled_from(image_file.FORMATS), data=st.data())
def test_damaged_bytes_are_an_image_or_a_sentence(tmp_path_factory, format, data):
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, format)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("x") / "x.png"
    file.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own
        for read in (read_header, lambda f: read_pixels(f, 3, (4, 8))):
            try:
                read(file)
            except ValueError as error:
                assert str(file) in str(error)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    for side in (100_000, 13_000):  # the second one is taken by Pillow, with a warning
        (tmp_path / "x.png").write_bytes(image_files.png(side, side, b"\0", colour_type=2))
        for read in (read_header, lambda file: read_pixels(file, 3)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with pytest.raises(
                    ValueError, match=r"x\.png is too large to be decoded.* The limit of 89,478,485 pixels"
                ):
                    read(tmp_path / "x.png")
    file = save(tmp_path / "train" / "a" / "long.png", np.zeros((1, 60_000), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"long\.png is 60000x1: too long and narrow to be resized to 224x224"):
        FolderSource(tmp_path, size=224).images()
    assert file.exists()


def test_a_text_chunk_that_unpacks_to_much_is_named(tmp_path):
    info = pytest.importorskip("PIL.PngImagePlugin").PngInfo()
    info.add_text("note", "a" * (2 << 20), zip=True)
    Image.fromarray(picture(0)).save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(ValueError, match=r"x\.png cannot be read as an image: Decompressed data too large"):
        read_header(tmp_path / "x.png")


def test_only_regular_files_are_read(tmp_path):
    def refused(kind: str) -> None:
        with pytest.raises(ValueError, match=rf"0\.png should be a regular file, got {kind}"):
            sources.load("folder", root=tmp_path)
        with pytest.raises(ValueError, match=rf"0\.png should be a regular file, got {kind}"):
            read_header(file)
        file.unlink()

    file = tmp_path / "train" / "a" / "0.png"
    file.parent.mkdir(parents=True)
    os.mkfifo(file)
    refused("a FIFO")  # and is not waited for
    with socket.socket(socket.AF_UNIX) as s:
        here = os.getcwd()
        os.chdir(file.parent)  # such names are short
        try:
            s.bind(file.name)
        finally:
            os.chdir(here)
        refused("a socket")
    file.symlink_to("/dev/zero")
    refused("a device")


def test_a_fifo_put_in_the_place_of_an_image_is_not_waited_for(tmp_path):
    image_files.folders(tmp_path / "train", "a", "b")
    source = sources.load("folder", root=tmp_path)
    source.file(0).unlink()
    os.mkfifo(source.file(0))
    for use in (source.images, lambda: source.fingerprint):
        raised: list[BaseException] = []

        def run(use=use, raised=raised) -> None:
            try:
                use()
            except ValueError as error:
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(10)
        assert not thread.is_alive() and "regular file, got a FIFO" in str(raised[0])


# --- size


@pytest.mark.parametrize("size", [(8, 32), (32, 8), (5, 5)])
def test_images_are_brought_to_a_size_without_stretching(tmp_path, size):
    """A disc stays a disc: what is left of it is as high as it is wide."""
    y, x = np.mgrid[:60, :80]
    disc = (((y - 29.5) ** 2 + (x - 39.5) ** 2) < 6**2).astype(np.uint8) * 255
    file = save(tmp_path / "x.png", disc)
    out = read_pixels(file, 1, size)[0]
    assert out.shape == size
    scale = max(round(size[0] * 8 / 7) / 60, round(size[1] * 8 / 7) / 80)
    high, wide = (out[:, size[1] // 2] > 127).sum(), (out[size[0] // 2] > 127).sum()
    for found, limit in ((high, size[0]), (wide, size[1])):
        assert abs(int(found) - min(limit, 12 * scale)) <= 2
    same = save(tmp_path / "same.png", picture(0, *size))
    assert np.array_equal(read_pixels(same, 3, size).permute(1, 2, 0).numpy(), picture(0, *size))


def test_pixels_do_not_depend_on_how_a_file_is_opened(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(2)).save(buffer, "PNG")
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    expected = torch.from_numpy(picture(2)).permute(2, 0, 1)
    assert torch.equal(read_pixels(tmp_path / "x.png", 3), expected)
