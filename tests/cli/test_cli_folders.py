"""The commands on folders of images: sizes, channels, and a share held out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.commands import fails, run
from support.image_files import save

from advfeat.datasets.store import ConstructedSet
from advfeat.models import create
from advfeat.models import save as save_model


@pytest.fixture
def wide(tmp_path):
    """A flat folder of two classes, grey images of 8x24, bright on the left or on the right."""
    random = np.random.default_rng(0)
    for i in range(40):
        image = random.integers(0, 60, (8, 24), dtype=np.uint8)
        image[:, 12 * (i % 2) : 12 * (i % 2) + 12] += 180
        save(tmp_path / "wide" / ("left", "right")[i % 2] / f"{i:02d}.png", image)
    return tmp_path


RECIPE = ("--preset", "cifar10", "--eps", 1)
TRAIN = ("--epochs", 3, "--width", 4, "--train-batch-size", 8, "--augment", "shift")


def test_a_wide_folder_is_trained_built_and_evaluated_with_a_share_held_out(wide):
    data = ("--dataset", "folder", "--root", wide / "wide", "--holdout", 0.25)
    run("train", "--out", wide / "model", *data, *TRAIN)
    held = json.loads((wide / "model" / "metrics.jsonl").read_text().splitlines()[-1])
    run("build", "det", "--model", wide / "model", "--out", wide / "set", *data, *RECIPE, "--steps", 2)
    made = ConstructedSet.open(wide / "set")
    assert made.image_shape == (1, 8, 24) and held["test_accuracy"] is not None
    # The set is tested on what was held out; the size of its images is known.
    run("train", "--out", wide / "again", "--dataset", wide / "set", "--root", wide / "wide", "--holdout", 0.25, *TRAIN)
    assert (wide / "again" / "model.json").is_file()


def test_a_folder_is_brought_to_what_a_model_takes(wide):
    save_model(create("small-convnet", 2, (3, 6, 12), width=4), wide / "model", extra={"classes": ["left", "right"]})
    data = ("--dataset", "folder", "--root", wide / "wide", "--split", "train")
    out = wide / "result.json"
    run("evaluate", "--model", wide / "model", *data, "--eps", 0.1, "--steps", 1, "--out", out)
    assert json.loads(out.read_text())["n"] == 40
    run("attack", "--model", wide / "model", *data, "--steps", 1, "--out", wide / "attack")
    run("features", "--model", wide / "model", *data, "--steps", 1, "--limit", 10)


def test_a_size_is_for_whichever_set_takes_it(wide, capsys):
    folder = ("--dataset", "folder", "--root", wide / "wide")
    save_model(create("small-convnet", 2, (1, 8, 12), width=4), wide / "model")
    run("build", "det", "--model", wide / "model", "--out", wide / "set", *folder, *RECIPE, "--steps", 1)
    (wide / "root").mkdir()
    (wide / "root" / "train").symlink_to(wide / "set")  # not read
    (wide / "root" / "test").symlink_to(wide / "wide")
    test = ("--root", wide / "root", "--test-dataset", "folder", *TRAIN)
    run("train", "--out", wide / "a", "--dataset", wide / "set", *test, "--size", 8, 12)
    run("train", "--out", wide / "b", "--dataset", wide / "set", *test)
    said = fails(capsys, "train", "--out", wide / "c", "--dataset", wide / "set", *test, "--size", 8)
    assert "training and test images should have one shape" in said
    said = fails(capsys, "train", "--out", wide / "d", "--dataset", "digits", "--size", 8)
    assert "--size should be left out for digits: it is for planted, folder and restricted-imagenet, got 8" in said
    assert not (wide / "c").exists() and not (wide / "d").exists()


def test_test_images_of_another_size_are_not_cut_without_a_word(wide, capsys):
    torch.manual_seed(0)
    root = wide / "root"
    root.mkdir()
    (wide / "wide").rename(root / "train")
    for name in ("left", "right"):
        save(root / "test" / name / "0.png", np.zeros((9, 24), dtype=np.uint8))
    folder = ("--dataset", "folder", "--root", root)
    assert "should have one shape" in fails(capsys, "train", "--out", wide / "model", *folder, *TRAIN)
    run("train", "--out", wide / "model", *folder, *TRAIN, "--size", 8, 24)
