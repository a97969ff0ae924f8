"""Classes are compared by name: in training, evaluation, building and files, and where the same class has two names."""

from __future__ import annotations

import json

import pytest
import torch
from support.tensor_source import TensorSource, blobs
from torch import nn

from advfeat import models
from advfeat._class_names import check_same_classes
from advfeat.datasets import sources
from advfeat.datasets.building import build
from advfeat.datasets.constructed import ConstructedSet
from advfeat.datasets.official import CIFAR10_CLASSES, FASHION_CLASSES
from advfeat.datasets.recipes import PerturbTowardsTarget
from advfeat.evaluation import accuracy, evaluate, label_agreement
from advfeat.models import averaged
from advfeat.training import TrainConfig, train

CONFIG = TrainConfig(width=2, epochs=1, batch_size=32, lr=0.05)
OTHERS = "'a' only in the former, 'd' only in the latter"


def _renamed(source, names):
    return TensorSource(source.images(), source.labels, tuple(names), source.name)


@pytest.fixture(scope="module")
def model():
    return train(CONFIG, blobs()).model


def test_a_test_set_of_as_many_but_other_classes_is_refused(tmp_path):
    for names, message in (("bcd", OTHERS), ("acb", "label 1 is 'b' in the former, 'c' in the latter .2 of 3 differ")):
        with pytest.raises(ValueError, match=message):
            train(CONFIG, blobs(), _renamed(blobs(), names), tmp_path / names)
        assert not (tmp_path / names).exists()
        assert train(CONFIG, blobs(), _renamed(blobs(), names), same_classes=True).history[-1]["test_accuracy"] > 0
    with pytest.raises(ValueError, match="classes"):  # of another number they cannot be the same
        train(CONFIG, blobs(), blobs(classes=4), same_classes=True)


def test_a_trained_model_keeps_the_names_of_its_classes(tmp_path):
    result = train(CONFIG, blobs(), out=tmp_path / "run")
    assert result.model.classes == ("a", "b", "c")
    assert json.loads((tmp_path / "run" / "model.json").read_text())["classes"] == ["a", "b", "c"]
    assert models.load(tmp_path / "run").classes == ("a", "b", "c")
    assert train(CONFIG, blobs(), out=tmp_path / "run").model.classes == ("a", "b", "c")  # read, not trained


def test_a_model_of_an_older_version_has_the_classes_of_its_training(tmp_path):
    train(CONFIG, blobs(), out=tmp_path)
    path = tmp_path / "model.json"
    description = json.loads(path.read_text())
    del description["classes"]
    path.write_text(json.dumps(description))
    assert models.load(tmp_path).classes == ("a", "b", "c")
    description["extra"] = {}
    path.write_text(json.dumps(description))
    assert models.load(tmp_path).classes is None
    description["classes"] = ["a", "b"]
    path.write_text(json.dumps(description))
    with pytest.raises(ValueError, match="classes should be 3 names"):
        models.load(tmp_path)


def test_a_model_is_not_evaluated_on_other_classes_unless_told_so(model):
    other = _renamed(blobs(seed=1), "bcd")
    for measure in (evaluate, accuracy, label_agreement):
        with pytest.raises(ValueError, match=f"the model and data set 'blobs' should have the same classes: {OTHERS}"):
            measure(model, other)
    assert accuracy(model, other, same_classes=True) == accuracy(model, blobs(seed=1))
    assert label_agreement(model, other, same_classes=True)["label"] == accuracy(model, blobs(seed=1))


def test_a_set_is_not_built_with_a_model_of_other_classes_unless_told_so(model, tmp_path):
    recipe = PerturbTowardsTarget("det", 0.5, 1, 0.1)
    with pytest.raises(ValueError, match=OTHERS):
        build(recipe, model, _renamed(blobs(12), "bcd"), tmp_path / "set")
    assert not (tmp_path / "set").exists()
    made = build(recipe, model, _renamed(blobs(12), "bcd"), tmp_path / "set", same_classes=True)
    assert made.classes == ConstructedSet.open(tmp_path / "set").classes == ("b", "c", "d")
    with pytest.raises(ValueError, match="the same classes"):
        train(CONFIG, made, blobs())


def test_a_module_with_names_of_its_own_is_compared_too_and_one_without_passes(model):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    evaluate(module, _renamed(blobs(), "xyz"))
    module.classes = ["a", "b", "d"]
    with pytest.raises(ValueError, match="'d' only in the former, 'c' only in the latter"):
        evaluate(module, blobs())
    adapted = models.adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), num_classes=3, input_shape=(1, 8, 8))
    evaluate(adapted, _renamed(blobs(), "xyz"))
    adapted.classes = ("a", "b", "d")
    with pytest.raises(ValueError, match="the same classes"):
        evaluate(adapted, blobs())
    for wrong in (("a", "b"), "abc", (1, 2, 3)):
        with pytest.raises(ValueError, match="classes should be 3 names"):
            adapted.classes = wrong


def test_weights_of_other_classes_are_not_put_into_a_model_that_says_its_own(tmp_path):
    def make(names):
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        return models.adapt(module, num_classes=3, input_shape=(1, 8, 8), classes=names)

    models.save(make("a b c".split()), tmp_path)
    assert models.load(tmp_path, make(None)).classes == ("a", "b", "c")
    with pytest.raises(ValueError, match="label 0 is 'b' in the former, 'a' in the latter"):
        models.load(tmp_path, make("b a c".split()))


def test_a_model_trained_on_other_classes_before_is_refused_and_renamed_when_told_so(model):
    with pytest.raises(ValueError, match=OTHERS):
        train(CONFIG, _renamed(blobs(), "bcd"), model=model)
    names = model.classes
    again = train(CONFIG, _renamed(blobs(), "bcd"), model=model, same_classes=True).model
    assert again.classes == ("b", "c", "d")
    model.classes = names


@pytest.mark.parametrize(
    "first, second",
    [
        (FASHION_CLASSES, [f"{i}_{name.replace('/', '_')}" for i, name in enumerate(FASHION_CLASSES)]),  # as exported
        (CIFAR10_CLASSES, [name.title() for name in CIFAR10_CLASSES]),
        (["ankle boot", "t-shirt"], ["Ankle_Boot", "T-Shirt"]),
        (["a"], None),
    ],
)
def test_spelling_is_not_a_difference(first, second):
    check_same_classes(first, "one", second, "the other")
    check_same_classes(second, "one", first, "the other")


@pytest.mark.parametrize(
    "first, second",
    [
        (["+", "-"], ["-", "+"]),  # only punctuation tells them apart
        (["0_a", "1_b"], ["1_a", "0_b"]),  # the numbers are no positions
        ([str(i) for i in range(11)], sorted(str(i) for i in range(11))),  # 10 before 2, as in folders
        (["airplane", "car"], ["0", "1"]),
        (["a", "a", "b"], ["a", "b", "b"]),
    ],
)
def test_other_orders_and_other_names_are_a_difference(first, second):
    for one, two in ((first, second), (second, first)):
        with pytest.raises(ValueError, match="one and the other"):
            check_same_classes(one, "one", two, "the other")


def test_sets_that_are_used_together_have_the_same_names():
    digits = sources.load("digits", "test")
    assert digits.classes == tuple("0123456789")
    check_same_classes(digits.classes, "digits", sources.load("digits", "train").classes, "train")
    planted = sources.load("planted", "train"), sources.load("planted", "test")
    check_same_classes(planted[0].classes, "train", planted[1].classes, "test")


def test_the_command_line_takes_classes_for_the_same_when_told_so(tmp_path, capsys):
    from advfeat.cli import main

    for split, names in (("train", "ab"), ("test", "bc")):
        for label, name in enumerate(names):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            _grey(label).save(tmp_path / "data" / split / name / "0.png")
    common = ["train", "--dataset", "folder", "--root", str(tmp_path / "data"), "--epochs", "1", "--width", "2"]
    with pytest.raises(SystemExit):
        main([*common, "--out", str(tmp_path / "run")])
    assert "'a' only in the former, 'c' only in the latter" in capsys.readouterr().err
    main([*common, "--out", str(tmp_path / "run"), "--same-classes"])
    on = ["--model", str(tmp_path / "run"), "--dataset", "folder", "--root", str(tmp_path / "data")]
    for command in ("evaluate", "attack", "features"):
        out = str(tmp_path / command)
        with pytest.raises(SystemExit):
            main([command, *on, "--out", out])
        assert "only in the latter" in capsys.readouterr().err
        main([command, *on, "--out", out, "--same-classes"])


def _grey(level: int):
    from PIL import Image

    return Image.new("L", (8, 8), 60 + 120 * level)


def test_labels_are_looked_at_by_name_though_the_tensors_are_equal():
    source = blobs()
    assert torch.equal(source.labels, _renamed(source, "cab").labels)
    with pytest.raises(ValueError, match="number the same classes differently"):
        check_same_classes(source.classes, "one", "cab", "two")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["\u0915\u093f", "\u0916\u093f"], ["\u0915\u0941", "\u0916\u0941"]),  # vowel signs
        (["c++", "java"], ["c#", "java"]),
        (["card \u2665", "x"], ["card \u2660", "x"]),
        (["-1", "0"], ["+1", "0"]),
        (["<1", "x"], [">1", "x"]),
    ],
)
def test_signs_tell_classes_apart(first, second):
    with pytest.raises(ValueError, match="should have the same classes"):
        check_same_classes(first, "the model", second, "the data")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["ice-cream", "hot dog"], ["Ice cream", "hot_dog"]),
        (["caf\u00e9", "x"], ["cafe\u0301", "x"]),
        (["St. Bernard", "x"], ["st bernard", "x"]),
    ],
)
def test_case_and_punctuation_do_not(first, second):
    check_same_classes(first, "the model", second, "the data")


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel, lambda m: averaged(m, 2)])
def test_names_are_found_behind_what_wraps_a_model(wrap):
    model = models.create("small-convnet", 3, (1, 8, 8), width=2)
    model.classes = ("x", "y", "z")
    with pytest.raises(ValueError, match="should have the same classes"):
        evaluate(wrap(model), blobs(12), attacks=[])


@pytest.mark.parametrize("wrap", ["subset", "split", "concat"])
def test_names_are_found_behind_what_holds_a_dataset(wrap):
    class Folder(torch.utils.data.TensorDataset):
        classes = ["a", "b", "c"]

    data = Folder(torch.rand(12, 1, 8, 8), torch.arange(12) % 3)
    held = {
        "subset": lambda: torch.utils.data.Subset(data, range(6)),
        "split": lambda: torch.utils.data.random_split(data, [6, 6])[0],
        "concat": lambda: torch.utils.data.ConcatDataset([data, torch.utils.data.Subset(data, range(3))]),
    }[wrap]()
    model = models.create("small-convnet", 3, (1, 8, 8), width=2)
    model.classes = ("x", "y", "z")
    with pytest.raises(ValueError, match="should have the same classes"):
        evaluate(model, held, attacks=[])


def test_datasets_of_other_classes_are_not_put_together():
    parts = []
    for names in (["a", "b"], ["b", "a"]):
        parts.append(torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4) % 2))
        parts[-1].classes = names
    model = models.create("small-convnet", 2, (1, 8, 8), width=2)
    with pytest.raises(ValueError, match="the parts of a ConcatDataset should have the same classes"):
        evaluate(model, torch.utils.data.ConcatDataset(parts), attacks=[])


class _Items(torch.utils.data.Dataset):
    def __init__(self, image, label):
        self.item = image, label

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return self.item


@pytest.mark.parametrize("label", [0.9, torch.tensor(0.1), "1", "cat"])
def test_labels_of_a_dataset_are_not_cut_to_integers(label):
    model = models.create("small-convnet", 2, (1, 8, 8), width=2)
    with pytest.raises(TypeError, match="labels of '_Items' should be integers"):
        evaluate(model, _Items(torch.rand(1, 8, 8), label), attacks=[])


@pytest.mark.parametrize("label", [1, 1.0, torch.tensor(1), torch.tensor(1.0), torch.tensor([1])])
def test_whole_labels_of_any_kind_are_taken(label):
    model = models.create("small-convnet", 2, (1, 8, 8), width=2)
    assert evaluate(model, _Items(torch.rand(1, 8, 8), label), attacks=[]).clean.n == 4


def test_images_with_channels_last_are_not_taken_for_many_channels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with pytest.raises(TypeError, match=r"got shape \(8, 8, 3\) for sample 0, which looks like \[H, W, C\]"):
        evaluate(model, _Items(torch.rand(8, 8, 3), 1), attacks=[])


def test_normalised_images_are_told_what_to_do():
    model = models.create("small-convnet", 2, (1, 8, 8), width=2)
    with pytest.raises(ValueError, match="should lie in .0, 1.: sample 0 holds values from .*advfeat.models.adapt"):
        evaluate(model, _Items(torch.rand(1, 8, 8) * 4 - 2, 1), attacks=[])
