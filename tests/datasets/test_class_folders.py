"""The folders of an image data set: splits, classes, links, and what is left out."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from support.image_files import folders, picture, save

from advfeat.datasets import base, sources
from advfeat.datasets.class_folders import CLASSES_FILE
from advfeat.datasets.exchange import export_folder
from advfeat.datasets.folder import FolderSource


def _files(root: Path, split: str = "train") -> list[str]:
    source = FolderSource(root, split)
    return [source.file(i).relative_to(root).as_posix() for i in range(len(source))]


# --- splits


@pytest.mark.parametrize(
    "names",
    [("train", "test"), ("Train", "Test"), ("TRAIN", "VAL"), ("training", "validation"), ("Training", "Testing"),
     ("train", "valid"), ("train", "dev")],
)  # fmt: skip
def test_splits_are_found_by_any_of_their_names(tmp_path, names):
    for name in names:
        folders(tmp_path / name, "cat", "dog")
    for split, name in zip(("train", "test"), names, strict=True):
        source = sources.load("folder", split, tmp_path)
        assert source.classes == ("cat", "dog") and source.root == tmp_path / name


def test_the_test_split_is_test_before_val(tmp_path):
    for name in ("train", "val", "test", "extra"):
        folders(tmp_path / name, "a")
    assert _files(tmp_path, "test") == ["test/a/0.png"]


def test_one_split_under_two_spellings_is_refused(tmp_path):
    for name in ("train", "Train"):
        folders(tmp_path / name, "a")
    with pytest.raises(ValueError, match="should have one folder train, got Train and train"):
        FolderSource(tmp_path)


def test_two_folders_of_training_images_are_refused(tmp_path):
    for name in ("train", "Training"):
        folders(tmp_path / name, "a")
    with pytest.raises(ValueError, match="should have one folder of training images, got train and training"):
        FolderSource(tmp_path)


def test_a_class_may_be_called_like_a_split(tmp_path):
    folders(tmp_path, "car", "plane", "train")
    assert FolderSource(tmp_path).classes == ("car", "plane", "train")
    with pytest.raises(FileNotFoundError, match="all of it is the training set"):
        FolderSource(tmp_path, "test")
    # With class folders of its own it is the split, whatever lies beside it.
    folders(tmp_path / "train", "bus", "tram")
    with pytest.warns(RuntimeWarning) as told:
        assert FolderSource(tmp_path).classes == ("bus", "tram")
    said = sorted(str(warning.message).replace(str(tmp_path), "ROOT") for warning in told)
    assert said[0].startswith("ROOT has split folders, so the images in the folders beside them are left out: car, ")
    assert said[1].startswith("ROOT/train: 1 file is left out (1 .png): images are the files in class folders")
    root = tmp_path / "within"
    folders(root / "train", "train", "test", "ship")
    folders(root / "test", "train", "test", "ship")
    for split in ("train", "test"):
        assert FolderSource(root, split).classes == ("ship", "test", "train")


@pytest.mark.parametrize("names", [("train", "test"), ("train", "test1"), ("train", "val2017", "docs")])
def test_splits_without_class_folders_are_no_classes(tmp_path, names):
    """As the images of many competitions lie: without labels."""
    for name in names:
        save(tmp_path / name / "0.png", picture(0)) if name != "docs" else (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match=r"train should hold a folder for each class.*holds 0\.png"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    "names",
    [("Training set", "Test set"), ("seg_train", "seg_test"), ("train2017", "val2017"), ("trainset", "testset"),
     ("images-train", "images-test", "labels")],
)  # fmt: skip
def test_splits_of_other_names_are_no_classes(tmp_path, names):
    for name in names:
        folders(tmp_path / name, "cat", "dog")
    with pytest.raises(
        ValueError, match=f"in the folders train and test .*, got {', '.join(sorted(names[:2]))}, which"
    ):
        FolderSource(tmp_path)


@pytest.mark.filterwarnings("error")
def test_classes_may_have_words_of_splits_in_their_names(tmp_path):
    folders(tmp_path, "car", "test_tube", "train_station", "training shoe")
    assert len(FolderSource(tmp_path).classes) == 4


@pytest.mark.parametrize("names", [("tr", "te"), ("Fold1", "fold 2", "fold_10"), ("trn", "tst"), ("split1", "split2")])
def test_folders_of_splits_by_other_names_are_refused(tmp_path, names):
    for name in names:
        folders(tmp_path / name, "cat", "dog")
    with pytest.raises(ValueError, match="all hold the same folders of images, cat, dog, and would be read as classes"):
        FolderSource(tmp_path)
    for name in names:  # as classes go
        save(tmp_path / name / "0.png", picture(0, 4, 4))
    assert FolderSource(tmp_path, channels=3).classes == tuple(sorted(names))


@pytest.mark.filterwarnings("error")
def test_top_folders_that_hold_the_same_folders_are_told(tmp_path):
    for name in ("first", "second"):
        folders(tmp_path / name, "cat", "dog")
    with pytest.raises(RuntimeWarning, match="first, second in .* all hold the same folders of images, cat, dog,"):
        FolderSource(tmp_path)
    folders(tmp_path / "first", "cow")
    assert FolderSource(tmp_path).classes == ("first", "second")
    for name in ("one", "two"):  # a single folder below is no list of classes
        folders(tmp_path / "other" / name, "images")
    assert FolderSource(tmp_path / "other").classes == ("one", "two")


def test_splits_inside_the_classes_are_refused(tmp_path):
    for name in ("cat", "dog"):
        folders(tmp_path / name, "train", "test")
    with pytest.raises(ValueError, match=r"cat holds folders of both splits \(test, train\).*root/<split>/<class>"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("above", ["pictures", "train/train"])
def test_a_folder_too_many_above_the_classes_is_refused(tmp_path, above):
    folders(tmp_path / above, "cat", "dog")
    with pytest.raises(ValueError, match="holds one folder, .* holds 2 folders and no image: if these are the classes"):
        FolderSource(tmp_path)
    assert FolderSource(tmp_path / above).classes == ("cat", "dog")


def test_classes_that_differ_in_case_alone_are_told(tmp_path):
    folders(tmp_path, "Cat", "cat")
    with pytest.warns(RuntimeWarning, match="class folders 'Cat' and 'cat' differ only in case"):
        assert FolderSource(tmp_path).classes == ("Cat", "cat")


@pytest.mark.filterwarnings("error")
def test_letters_are_classes_in_both_cases(tmp_path):
    folders(tmp_path, "A", "a", "b")
    assert FolderSource(tmp_path).classes == ("A", "a", "b")


# --- what is left out


def test_files_that_are_left_out_are_told(tmp_path):
    folders(tmp_path / "train", "a", "b")
    for name in ("a/x.heic", "a/y.heic", "b/z.jp2", "b/deep/notes.TXT", "b/blob", "stray.png"):
        (tmp_path / "train" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"")
    (tmp_path / "train" / "metadata.csv").write_text("beside the class folders, and no image")
    told = r"train: 6 files are left out \(2 \.heic, .*1 \.txt.*1 without a suffix.*in class folders whose names end in"
    with pytest.warns(RuntimeWarning, match=told):
        assert len(FolderSource(tmp_path)) == 2


def test_images_in_a_hidden_class_folder_are_told(tmp_path):
    folders(tmp_path, "a", ".net", ".cache/x")
    with pytest.warns(RuntimeWarning, match=r"begin with a dot are ignored, but these hold images: \.net$"):
        assert FolderSource(tmp_path).classes == ("a",)


@pytest.mark.filterwarnings("error")
def test_what_torchvision_reads_is_read(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    for i, suffix in enumerate(datasets.folder.IMG_EXTENSIONS):
        array = picture(i)[..., 0] if suffix == ".pgm" else picture(i)
        save(tmp_path / "train" / "ab"[i % 2] / f"{i}{suffix}", array)
    theirs = datasets.ImageFolder(str(tmp_path / "train"))
    assert [str(tmp_path / file) for file in _files(tmp_path)] == [file for file, _ in theirs.samples]


def test_a_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    folders(tmp_path / "train", "a", "b")
    folders(tmp_path / "train" / "a", "private")
    scan = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("private"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root reads everything
    with pytest.raises(PermissionError, match="private"):
        FolderSource(tmp_path)


# --- links


@pytest.fixture
def linked(tmp_path):
    """root with train and test, of two classes with an image each, and images elsewhere."""
    for split in ("train", "test"):
        folders(tmp_path / "root" / split, "a", "b")
    folders(tmp_path / "elsewhere", "c", "d")
    return tmp_path / "root"


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("train/a/here", ".", r"a/here and .*train/a are one folder"),
        ("train/a/up", "..", r"a/up leads to .*train, which contains it"),
        ("train/a/root", "../..", r"a/root leads to .*root, which contains it"),
        ("train/a/top", "/", r"a/top leads to /, which contains it"),
        ("train/a/other", "../b", r"are one folder"),
        ("train/c", "b", r"train/c and .*train/b are one folder"),
        ("train/a/test", "../../test", r"a/test leads to .*test, a folder of the test split or above it"),
        ("train/a/test", "../../test/a", r"a/test and .*test/a, of another split, are one folder"),
        ("train/c", "../test/a", r"train/c and .*test/a, of another split, are one folder"),
        ("test/c", "../train/a", r"test/c and .*train/a, of another split, are one folder"),
        ("train/a/1.png", "0.png", r"a/1\.png leads to .*a/0\.png, which is already an image of this split"),
        ("train/a/1.png", "../b/0.png", r"a/1\.png leads to .*b/0\.png, which is already an image of this split"),
        ("train/a/1.png", "../../test/a/0.png", r"a/1\.png leads to .*test/a/0\.png, an image of another split"),
        ("train/a/1.png", "nowhere.png", r"1\.png is a link to nowhere\.png, which cannot be followed: No such file"),
        ("train/c", "nowhere", r"train/c is a link to nowhere, which cannot be followed: No such file"),
        ("train/a/c", "../nowhere", r"a/c is a link to \.\./nowhere, which cannot be followed: No such file"),
        ("train/a/self", "self", r"a/self is a link to self, which cannot be followed: Too many levels"),
        ("train/self", "self", r"train/self is a link to self, which cannot be followed: Too many levels"),
    ],
)
def test_links_that_count_images_twice_or_lead_nowhere_are_refused(linked, link, target, said):
    (linked / link).symlink_to(target)
    with pytest.raises(ValueError, match=said):
        sources.load("folder", link.split("/")[0], linked)


@pytest.mark.parametrize(
    "file, said",
    [
        ("train/b/1.png", r"train/b/1\.png and .*train/a/0\.png, of another class, are hard links of one file: "),
        ("test/a/below/1.png", r"train/a/0\.png and .*test/a/below/1\.png, of another split, are hard links"),
    ],
)
def test_a_file_in_two_classes_or_splits_by_hard_links_is_told(linked, file, said):
    (linked / file).parent.mkdir(exist_ok=True)
    os.link(linked / "train" / "a" / "0.png", linked / file)
    with pytest.warns(RuntimeWarning, match=said):
        sources.load("folder", "train", linked)


@pytest.mark.filterwarnings("error")
def test_hard_links_in_one_class_and_to_files_elsewhere_are_kept(linked):
    os.link(linked / "train" / "a" / "0.png", linked / "train" / "a" / "1.png")
    os.link(linked.parent / "elsewhere" / "c" / "0.png", linked / "train" / "a" / "2.png")
    assert len(sources.load("folder", "train", linked)) == 4


def test_two_links_to_a_folder_itself_end(linked):
    for name in ("one", "two", "three"):
        (linked / "train" / "a" / name).symlink_to(".")
    with pytest.raises(ValueError, match="are one folder: its images would count twice"):
        sources.load("folder", root=linked)


def test_links_of_two_classes_into_each_other_end(linked):
    (linked / "train" / "a" / "b").symlink_to("../b")
    (linked / "train" / "b" / "a").symlink_to("../a")
    with pytest.raises(ValueError, match="are one folder"):
        sources.load("folder", root=linked)


def test_a_test_split_that_is_the_training_split_is_refused(linked):
    (linked / "test").rename(linked.parent / "old")
    (linked / "test").symlink_to("train")
    for split in ("train", "test"):
        with pytest.raises(ValueError, match="should be two folders.*training images would be test images"):
            sources.load("folder", split, linked)
    (linked / "test").unlink()
    (linked / "test").symlink_to("nowhere")
    with pytest.raises(ValueError, match="test is a link to nowhere, which cannot be followed"):
        sources.load("folder", "train", linked)


def test_both_splits_with_one_class_folder_are_refused(linked):
    for split in ("train", "test"):
        (linked / split / "c").symlink_to(linked.parent / "elsewhere" / "c")
    with pytest.raises(ValueError, match=r"train/c and .*test/c, of another split, are one folder"):
        sources.load("folder", "train", linked)


@pytest.mark.filterwarnings("error")
def test_links_to_images_from_elsewhere_are_followed(linked):
    elsewhere, train = linked.parent / "elsewhere", linked / "train"
    (train / "c").symlink_to(elsewhere / "c")  # a whole class
    (train / "a" / "more").symlink_to(elsewhere / "d")  # a folder below a class
    store = linked.parent / "store"
    store.mkdir()
    (train / "b" / "0.png").rename(store / "1f2e3d")
    (train / "b" / "0.png").symlink_to(store / "1f2e3d")  # as in stores that name files by their hash,
    (train / "b" / "1.png").symlink_to(store / "1f2e3d")  # where equal images are one
    hidden = linked / ".store"
    hidden.mkdir()
    save(hidden / "x.png", picture(1, 4, 4))
    (train / "a" / "2.png").symlink_to(hidden / "x.png")
    expected = ["a/0.png", "a/2.png", "a/more/0.png", "b/0.png", "b/1.png", "c/0.png"]
    assert _files(linked) == [f"train/{file}" for file in expected]
    (linked.parent / "data").symlink_to(linked)  # the root itself
    assert len(FolderSource(linked.parent / "data")) == 6
    whole = linked.parent / "whole"
    whole.mkdir()
    (whole / "train").symlink_to(train)  # a split
    source = FolderSource(whole)
    assert len(source) == 6 and source.fingerprint == FolderSource(linked).fingerprint


# --- exports come back


def test_an_exported_set_comes_back_with_names_and_empty_classes(tmp_path):
    images = torch.arange(4 * 3 * 4 * 4, dtype=torch.uint8).view(4, 3, 4, 4)
    names = ("zebra", "T-shirt/top", "café", "empty")
    source = base.ArraySource(images, torch.tensor([0, 2, 2, 1]), names, split="test")
    export_folder(source, tmp_path)
    back = sources.load("folder", "test", tmp_path)
    assert back.classes == names
    order = torch.argsort(source.labels, stable=True)
    assert torch.equal(back.labels, source.labels[order]) and torch.equal(back.images(), source.images(order))
    (tmp_path / "test" / "3_empty").rmdir()  # archives and git do not keep empty folders
    assert sources.load("folder", "test", tmp_path).classes == names


def test_a_changed_export_is_refused(tmp_path):
    source = base.ArraySource(torch.zeros(2, 1, 4, 4), [0, 1], ("a", "b"))
    export_folder(source, tmp_path)
    split, file = tmp_path / "train", tmp_path / "train" / CLASSES_FILE
    folders(split, "c")
    with pytest.raises(ValueError, match=r"train/c is not a class folder in .*advfeat-classes\.json"):
        FolderSource(tmp_path)
    (split / "c" / "0.png").unlink()
    (split / "c").rmdir()
    (split / "b" / "00001.png").unlink()
    with pytest.raises(ValueError, match="b was exported with 1 images and holds 0"):
        FolderSource(tmp_path)
    (split / "b").rmdir()
    with pytest.raises(FileNotFoundError, match=r"train/b, a class folder in advfeat-classes\.json, is missing"):
        FolderSource(tmp_path)
    wrong = [{"folder": "../..", "name": "a", "images": 1}], [{"folder": "a"}], [1], {}, {"a": 1}, "[", "[" * 100_000
    for content in wrong:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises((ValueError, FileNotFoundError), match="should be the list of classes|not a class folder"):
            FolderSource(tmp_path)


def test_a_half_copied_export_is_refused(tmp_path):
    source = base.ArraySource(torch.zeros(6, 1, 4, 4), [0, 0, 0, 1, 1, 1], ("a", "b"))
    export_folder(source, tmp_path)
    file = tmp_path / "train" / CLASSES_FILE
    (tmp_path / "train" / "a" / "00001.png").unlink()
    with pytest.raises(ValueError, match="a was exported with 3 images and holds 2: copy it again"):
        FolderSource(tmp_path)
    entries = json.loads(file.read_text())
    entries[0]["images"] = 2
    file.write_text(json.dumps(entries))
    assert len(FolderSource(tmp_path)) == 5
    for key in ("name", "folder"):
        file.write_text(json.dumps([entries[0], entries[1] | {key: entries[0][key]}]))
        with pytest.raises(ValueError, match="every class should be listed once"):
            FolderSource(tmp_path)


@pytest.mark.parametrize("kind", ["class", "split", "folder", "inside", "above"])
def test_one_image_from_elsewhere_counts_once(linked, kind):
    """In two classes it would have two labels, and in both splits it would be learned and tested on."""
    elsewhere, train, test = linked.parent / "elsewhere", linked / "train", linked / "test"
    image = next((elsewhere / "c").iterdir())
    (elsewhere / "c" / "below").mkdir()
    save(elsewhere / "c" / "below" / "9.png", picture(9, 4, 4))
    first, second = {
        "class": ((train / "a" / "l.png", image), (train / "b" / "l.png", image)),
        "split": ((train / "a" / "l.png", image), (test / "a" / "l.png", image)),
        "folder": ((train / "a" / "l", elsewhere / "c"), (test / "a" / "l", elsewhere / "c")),
        "inside": ((train / "a" / "l", elsewhere / "c"), (test / "a" / "l.png", image)),
        "above": ((train / "a" / "l", elsewhere / "c"), (test / "a" / "l", elsewhere / "c" / "below")),
    }[kind]
    for place, target in (first, second):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    for split in ("train", "test"):
        if kind == "class" and split == "test" or kind == "inside" and split == "train":
            continue  # the other of the two tells
        with pytest.raises(ValueError, match="would count twice"):
            FolderSource(linked, split)
