"""Image folders: what is read, in which order and size, and what goes wrong with them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from support.image_files import Image, folders
from support.image_files import picture as _picture
from support.image_files import save as _save

from advfeat.datasets import sources
from advfeat.datasets.folder import FolderSource

pytestmark = pytest.mark.filterwarnings("error")  # what is left out is told, and nothing else is


@pytest.fixture
def pictures(tmp_path):
    """Two classes; names, formats and depths as they come."""
    for i, file in enumerate(["cat/b.png", "cat/a.bmp", "dog/deep/er/x.PNG", "dog/y.png", "dog/z.webp"]):
        _save(tmp_path / "train" / file, _picture(i), **({"lossless": True} if file.endswith("webp") else {}))
    _save(tmp_path / "val" / "cat" / "q.png", _picture(9))
    _save(tmp_path / "val" / "dog" / "r.png", _picture(10))
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("no image")
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


def test_a_default_device_or_dtype_changes_no_images(pictures):
    expected = FolderSource(pictures).images()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            source = FolderSource(pictures)
            found = source.images(), source.subset([0, 2, 1]).images([0, 2])
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found[0], expected) and torch.equal(found[1], expected[:2])
    assert found[0].dtype == torch.float32


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
    assert FolderSource(moved, "train", size=6).fingerprint == before  # the same images
    assert FolderSource(moved, "train", size=5).fingerprint != before
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


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("grey_ones", [(), (0,), (0, 1, 2), (3,), (0, 1, 2, 3)], ids=str)
def test_the_set_has_colour_if_any_image_has(tmp_path, size, grey_ones):
    for i in range(4):
        picture = _picture(i)
        _save(tmp_path / "train" / "ab"[i // 2] / f"{i}.png", picture[..., 0] if i in grey_ones else picture)
    source = FolderSource(tmp_path, size=size)
    assert source.image_shape == (1 if len(grey_ones) == 4 else 3, 6, 6)
    for i in range(4):
        expected = torch.from_numpy(_picture(i)).permute(2, 0, 1).float() / 255
        expected = expected[:1].expand(source.image_shape) if i in grey_ones else expected
        assert torch.equal(source.images([i])[0], expected)


def test_grey_images_can_be_read_as_colour_and_never_the_other_way(tmp_path):
    _save(tmp_path / "train" / "a" / "0.png", _picture(0)[..., 0])
    grey, colour = FolderSource(tmp_path), FolderSource(tmp_path, channels=3)
    assert grey.image_shape == (1, 6, 6) and colour.image_shape == (3, 6, 6)
    assert torch.equal(colour.images(), grey.images().expand(1, 3, 6, 6)) and grey.fingerprint != colour.fingerprint
    with pytest.raises(ValueError, match="channels should be 1 or 3, got 2"):
        FolderSource(tmp_path, channels=2)
    _save(tmp_path / "train" / "a" / "1.png", _picture(0))
    with pytest.raises(ValueError, match=r"1\.png has colour, where grey images were asked for \(channels=1\)"):
        FolderSource(tmp_path, channels=1)
    for read in (FolderSource(tmp_path, channels=1, size=6).images, grey.subset([0]).images):
        _save(tmp_path / "train" / "a" / "0.png", _picture(0))  # after it was opened as grey
        with pytest.raises(ValueError, match=r"\.png has colour \(mode RGB\), but the images of this set are grey"):
            read()


@pytest.mark.parametrize("shape", [(1, 8, 128), (3, 128, 8)])
def test_a_size_may_be_wide_or_tall(tmp_path, shape):
    channels, height, width = shape
    for i in range(3):
        picture = _picture(i, height + i, width - i)
        _save(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", picture[..., 0] if channels == 1 else picture)
    source = sources.load("folder", root=tmp_path, **sources.options_for("folder", shape))
    assert source.image_shape == shape and source.images().shape == (3, *shape)
    assert len({FolderSource(tmp_path, size=s).fingerprint for s in ((8, 128), (128, 8), 8)}) == 3
    assert FolderSource(tmp_path, size=np.int64(8)).image_shape == (channels, 8, 8)
    for size in (0, (8, 0), (8, 8, 8), 8.5, "8"):
        with pytest.raises(ValueError, match="size should be at least 1, a side or \\(height, width\\), got"):
            FolderSource(tmp_path, size=size)


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
    for wrong in (range(0, 4), ("n0000", "n0001"), (0,)):
        with pytest.raises(
            ValueError, match=r"class_ranges\['a'\] should be \(first, last\), two places in the folders"
        ):
            FolderSource(tmp_path, class_ranges={"a": wrong})
    with pytest.raises(ValueError, match="class_ranges should have at least one class"):
        FolderSource(tmp_path, class_ranges={})
    folders(tmp_path / "val", *(f"n{i:04d}" for i in range(6) if i != 3))
    with pytest.raises(ValueError, match=r"should have the same class folders, .* only one of them has n0003"):
        FolderSource(tmp_path, "test", class_ranges=ranges)


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
    (tmp_path / "val" / "n00000005" / "x.jpeg").unlink()
    (tmp_path / "val" / "n00000005").rmdir()
    with pytest.raises(ValueError, match="root should have all 1,000 class folders of ImageNet.* got 999;"):
        sources.load("restricted-imagenet", "test", tmp_path)
    (tmp_path / "val" / "readmes").mkdir()  # as many as there should be, and another one
    with pytest.raises(ValueError, match=r"got 1,000, 1 of them not named like n01440764 \(readmes\)"):
        sources.load("restricted-imagenet", "test", tmp_path)


def test_wrong_folders_say_what_is_there(pictures, tmp_path):
    empty = pictures / "train" / "emu"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"class folder .*emu has no image .*emu is empty"):
        FolderSource(pictures, "train")
    assert FolderSource(pictures, "train", allow_empty=True).classes == ("cat", "dog", "emu")
    (empty / "readme.md").write_text("")
    with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match=r"emu has no image .*holds readme\.md"):
        FolderSource(pictures, "train")
    (pictures / "val").rename(pictures / "holdout")
    with pytest.raises(FileNotFoundError, match="has no folder test or testing or val .*holds holdout/, train/"):
        FolderSource(pictures, "test")
    flat = pictures / "holdout"
    assert len(FolderSource(flat, "train")) == 2
    with pytest.raises(FileNotFoundError, match="all of it is the training set.*holdout"):
        FolderSource(flat, "test")
    with pytest.raises(FileNotFoundError, match="should hold a folder for each class.*holds q.png"):
        FolderSource(flat / "cat", "train")
    with pytest.raises(ValueError, match="split should be train or test, got 'val'"):
        FolderSource(pictures, "val")


# --- a share held out


def test_a_share_is_held_out_of_a_flat_folder(tmp_path):
    folders(tmp_path, "a", "b", "c", images=60)
    train, test = (sources.load("folder", split, tmp_path, holdout=0.2, seed=4) for split in ("train", "test"))
    files = [{source.file(i) for i in range(len(source))} for source in (train, test)]
    assert not files[0] & files[1] and len(files[0] | files[1]) == 180
    assert (train.split, test.split) == ("train", "test") and train.classes == test.classes == ("a", "b", "c")
    assert 20 <= len(test) <= 52 and int(test.labels.bincount().min()) > 3
    assert train.fingerprint != test.fingerprint and test.images().shape == (len(test), 1, 4, 4)
    again = sources.load("folder", "test", tmp_path, holdout=0.2, seed=4)
    assert again.fingerprint == test.fingerprint
    assert sources.load("folder", "test", tmp_path, holdout=0.2, seed=5).fingerprint != test.fingerprint


def test_more_images_move_none_of_those_that_were_there(tmp_path):
    folders(tmp_path / "train", "a", "b", images=30)
    before = {split: FolderSource(tmp_path, split, holdout=0.3) for split in ("train", "test")}
    folders(tmp_path / "train", "a", "b", images=60)
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    for split, source in before.items():
        after = FolderSource(moved, split, holdout=0.3)
        names = [{s.file(i).relative_to(s.root) for i in range(len(s))} for s in (source, after)]
        assert names[0] < names[1]


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_every_class_has_an_image_on_both_sides(tmp_path, share):
    folders(tmp_path, "a", "b", images=2)
    for split in ("train", "test"):
        assert FolderSource(tmp_path, split, holdout=share).labels.tolist() == [0, 1]
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(ValueError, match="class 'a' should have two images or more to hold one out, got 1"):
        FolderSource(tmp_path, holdout=share)


def test_a_held_out_share_sees_the_whole_set(tmp_path):
    """One image in colour, on whichever side: both sides have three channels."""
    folders(tmp_path, "a", "b", images=20)
    _save(tmp_path / "a" / "9.png", _picture(0, 4, 4))
    shapes = {FolderSource(tmp_path, split, holdout=0.5).image_shape for split in ("train", "test")}
    assert shapes == {(3, 4, 4)}


def test_what_cannot_be_held_out_is_refused(tmp_path):
    folders(tmp_path / "train", "a", images=3)
    for share in (0, 1, -0.1, 10, "0.1"):
        with pytest.raises(ValueError, match=r"holdout should be in \(0, 1\), the share of the test images, got"):
            FolderSource(tmp_path, holdout=share)
    folders(tmp_path / "val", "a", images=3)
    with pytest.raises(ValueError, match="holdout is for a root without test images: there is .*val"):
        FolderSource(tmp_path, holdout=0.5)
    with pytest.raises(ValueError, match="holdout should be left out for digits: it is for folder, got 0.5"):
        sources.load("digits", holdout=0.5)


# --- names


def test_names_that_are_not_utf_8_are_read(tmp_path):
    class_folder, image = os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff.png")
    root = tmp_path / os.fsdecode(b"r\xfc")
    _save(root / "train" / class_folder / image, _picture(0))
    _save(root / "train" / "tea" / "0.png", _picture(1))
    source = FolderSource(root)
    assert source.classes == ("caf\\xe9", "tea")
    source.classes[0].encode()  # can be written down
    assert torch.equal(source.images([0])[0], torch.from_numpy(_picture(0)).permute(2, 0, 1).float() / 255)
    assert len(source.fingerprint) == 64
    source.file(0).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"caf\\xe9/\\xff\.png cannot be read") as error:
        source.images()
    str(error.value).encode()


def test_a_name_is_the_same_from_a_mac(tmp_path):
    folders(tmp_path / "train", "cafe\u0301", "zoo")
    folders(tmp_path / "test", "caf\u00e9", "zoo")
    assert FolderSource(tmp_path, "train").classes == FolderSource(tmp_path, "test").classes
    folders(tmp_path / "train", "caf\u00e9")
    with pytest.raises(ValueError, match="has two class folders named 'café' after normalisation"):
        FolderSource(tmp_path, "train")


def test_litter_of_systems_is_passed_over(tmp_path):
    folders(tmp_path / "train", "a", "b")
    for name in ("a/._0.png", "a/.DS_Store", "a/Thumbs.db", "b/desktop.ini", "__MACOSX/a/._0.png", "a/@eaDir/0.png"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"litter")
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    source = FolderSource(tmp_path)
    assert source.classes == ("a", "b") and len(source) == 2
