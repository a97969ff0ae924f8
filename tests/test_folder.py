"""Image folders: what is read, in which order and size, and what goes wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from advfeat.datasets import sources
from advfeat.datasets.folder import FolderSource

Image = pytest.importorskip("PIL.Image")


def _save(path: Path, array: np.ndarray, **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)


def _picture(seed: int, height: int = 6, width: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def pictures(tmp_path):
    """Two classes; names, formats and depths as they come."""
    for i, file in enumerate(["cat/b.png", "cat/a.bmp", "dog/deep/er/x.PNG", "dog/y.png", "dog/z.webp"]):
        _save(tmp_path / "train" / file, _picture(i), **({"lossless": True} if file.endswith("webp") else {}))
    _save(tmp_path / "val" / "cat" / "q.png", _picture(9))
    _save(tmp_path / "val" / "dog" / "r.png", _picture(10))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".hidden").mkdir()
    return tmp_path


def test_folder_reads_every_image_in_sorted_order(pictures):
    source = sources.load("folder", "train", pictures)
    assert source.classes == ("cat", "dog") and source.labels.tolist() == [0, 0, 1, 1, 1]
    assert [source.file(i).name for i in range(5)] == ["a.bmp", "b.png", "x.PNG", "y.png", "z.webp"]
    expected = torch.stack([torch.from_numpy(_picture(i)) for i in (1, 0, 2, 3, 4)]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(source.images(), expected) and source.image_shape == (3, 6, 6)
    assert torch.equal(source.subset([4, 0]).images([1]), expected[:1])
    test = sources.load("folder", "test", pictures)
    assert [test.file(i).name for i in range(2)] == ["q.png", "r.png"]


def test_folder_decodes_only_what_is_asked_for(pictures):
    source = FolderSource(pictures, "train")
    broken = source.file(3)
    broken.write_bytes(broken.read_bytes()[:60])
    assert source.images([0, 1, 2, 4]).shape == (4, 3, 6, 6)
    with pytest.raises(ValueError, match=r"dog/y\.png cannot be read as an image"):
        source.images()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"], ids=["empty", "text", "head only"])
def test_broken_first_image_is_named(pictures, content):
    (pictures / "train" / "cat" / "a.bmp").write_bytes(content)
    with pytest.raises(ValueError, match=r"cat/a\.bmp cannot be read as an image"):
        FolderSource(pictures, "train")


def test_folder_fingerprint_is_of_paths_and_bytes(pictures):
    before = FolderSource(pictures, "train").fingerprint
    os.utime(pictures / "train" / "dog" / "y.png", (1, 1))
    assert FolderSource(pictures, "train").fingerprint == before
    moved = pictures.rename(pictures.with_name("moved"))
    assert FolderSource(moved, "train").fingerprint == before
    assert FolderSource(moved, "train", size=6).fingerprint != before
    changed = moved / "train" / "cat" / "a.bmp"  # a pixel, and not the size of the file
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert FolderSource(moved, "train").fingerprint != before
    changed.write_bytes(content)
    (moved / "train" / "dog" / "y.png").rename(moved / "train" / "dog" / "w.png")
    assert FolderSource(moved, "train").fingerprint != before


def test_images_of_several_sizes_need_a_size(pictures):
    _save(pictures / "train" / "dog" / "wide.png", _picture(5, 12, 20))
    with pytest.raises(ValueError, match=r"images should have one size.*a\.bmp is 6x6, .*wide\.png is 20x12"):
        FolderSource(pictures, "train")
    source = FolderSource(pictures, "train", size=6)
    assert source.image_shape == (3, 6, 6)
    # Those of just this size are left alone.
    assert torch.equal(source.images([0])[0], torch.from_numpy(_picture(1)).permute(2, 0, 1).float() / 255)


def test_resize_and_crop_as_for_imagenet(tmp_path):
    """What torchvision's Resize(256), CenterCrop(224) gives, in small: shorter side 8/7 of it, then the middle."""
    transforms = pytest.importorskip("torchvision.transforms")
    for i, (height, width) in enumerate([(48, 64), (40, 40), (17, 20), (97, 33)]):
        _save(tmp_path / "train" / "a" / f"{i}.png", _picture(i, height, width))
    source = FolderSource(tmp_path, "train", size=28)
    theirs = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()])
    for i in range(4):
        assert torch.equal(source.images([i])[0], theirs(Image.open(source.file(i)))), source.file(i)


def test_channels_follow_the_first_image(tmp_path):
    grey = np.arange(36, dtype=np.uint8).reshape(6, 6)
    _save(tmp_path / "grey" / "a" / "0.png", grey)
    _save(tmp_path / "grey" / "a" / "1.png", np.stack([grey] * 3, axis=2))
    source = FolderSource(tmp_path / "grey", "train")
    assert source.image_shape == (1, 6, 6)
    assert torch.equal(source.images()[0, 0] * 255, torch.from_numpy(grey).float())
    _save(tmp_path / "deep" / "a" / "0.png", (grey.astype(np.uint16) * 1000))
    with pytest.raises(ValueError, match=r"0\.png should have 8 bits a channel, got mode I;16"):
        FolderSource(tmp_path / "deep", "train").images()


def test_class_ranges_group_folders(tmp_path):
    for i in range(6):
        _save(tmp_path / "train" / f"n{i:04d}" / "x.png", _picture(i))
    ranges = {"late": (4, 5), "early": (0, 1)}
    source = sources.load("folder", "train", tmp_path, class_ranges=ranges)
    assert source.classes == ("late", "early") and source.labels.tolist() == [0, 0, 1, 1]
    assert [source.file(i).parent.name for i in range(4)] == ["n0004", "n0005", "n0000", "n0001"]
    with pytest.raises(ValueError, match=r"class_ranges\['a'\] should lie in 0 .. 5"):
        FolderSource(tmp_path, "train", class_ranges={"a": (4, 6)})
    with pytest.raises(ValueError, match=r"'a' and 'b' both hold class 2 \(n0002\)"):
        FolderSource(tmp_path, "train", class_ranges={"a": (0, 2), "b": (2, 3)})
    with pytest.raises(ValueError, match=r"class_ranges\['dog'\] should lie in 0 .. 5"):
        sources.load("restricted-imagenet", "train", tmp_path)


def test_restricted_imagenet_is_table_2(tmp_path):
    for i in range(1000):
        folder = tmp_path / "val" / f"n{i:08d}"
        folder.mkdir(parents=True)
        (folder / "x.jpeg").write_bytes(b"")
    first = tmp_path / "val" / "n00000151" / "x.jpeg"
    _save(first, _picture(0, 300, 260))
    source = sources.load("restricted-imagenet", "test", tmp_path)
    assert source.classes == ("dog", "cat", "frog", "turtle", "bird", "primate", "fish", "crab", "insect")
    assert source.labels.bincount().tolist() == [118, 5, 3, 5, 21, 18, 9, 4, 20]
    assert source.images([0]).shape == (1, 3, 224, 224)


def test_wrong_folders_say_what_is_there(pictures, tmp_path):
    empty = pictures / "train" / "emu"
    empty.mkdir()
    (empty / "readme.md").write_text("")
    with pytest.raises(ValueError, match=r"class folder .*emu has no image .*holds readme\.md"):
        FolderSource(pictures, "train")
    (pictures / "val").rename(pictures / "validation")
    with pytest.raises(FileNotFoundError, match="has no folder test or val.*holds train/, validation/"):
        FolderSource(pictures, "test")
    flat = pictures / "validation"
    assert len(FolderSource(flat, "train")) == 2
    with pytest.raises(FileNotFoundError, match="all of it is the training set"):
        FolderSource(flat, "test")
    with pytest.raises(FileNotFoundError, match="should hold a folder for each class.*holds q.png"):
        FolderSource(flat / "cat", "train")
