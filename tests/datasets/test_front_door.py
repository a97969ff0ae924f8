"""``advfeat.datasets``: load, build, open and the rest by short names, and recipes by name."""

from __future__ import annotations

import builtins
import inspect
import subprocess
import sys

import pytest
import torch
from support.constructed_set import build as build_set
from support.tensor_source import blobs
from torch import nn

from advfeat import datasets
from advfeat.datasets import base, constructed, exchange, protocol, recipes, sources
from advfeat.datasets.recipes import PRESETS
from advfeat.evaluation import evaluate
from advfeat.experiments.stages import Data


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_is_imported_when_it_is_asked_for():
    code = """
import sys
import advfeat.datasets
assert "torch" not in sys.modules
names = set(advfeat.datasets.__all__) | {"open"}
assert names <= set(dir(advfeat.datasets))
from advfeat.datasets.base import Source
heavy = {"torchvision", "sklearn", "PIL", "advfeat.attacks", "advfeat.datasets.folder"}
assert advfeat.datasets.Source is Source and not heavy & set(sys.modules)
assert all(getattr(advfeat.datasets, name) is not None for name in names)
assert not hasattr(advfeat.datasets, "nothing")
"""
    _python(code)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import advfeat.datasets.building", "import advfeat.experiments.stages", ""])
def test_build_is_the_function_whatever_was_imported_before(first):
    code = f"""
{first}
import advfeat
from advfeat.datasets.building import build
assert advfeat.datasets.build is build and callable(build)
from advfeat.datasets import *
from advfeat.datasets import build as again
assert again is build and open.__module__ in ("io", "_io")
"""
    _python(code)


def test_names_are_those_of_the_modules():
    assert datasets.load is sources.load and datasets.preset is recipes.preset
    assert datasets.ArraySource is base.ArraySource and datasets.ConstructedSet is constructed.ConstructedSet
    assert datasets.open == constructed.ConstructedSet.open and open is builtins.open
    assert datasets.export_folder is exchange.export_folder and datasets.import_lists is exchange.import_lists
    assert {*datasets.__all__} == {*datasets._WHERE}
    for name in datasets.__all__:
        assert getattr(datasets, name) is getattr(sys.modules[f"advfeat.datasets.{datasets._WHERE[name]}"], name)
    assert {"recipe", "model", "source", "out"} <= inspect.signature(datasets.build).parameters.keys()


def test_a_set_is_opened_by_its_folder(tmp_path):
    build_set(tmp_path / "set")
    made = datasets.open(tmp_path / "set")
    assert isinstance(made, datasets.ConstructedSet) and isinstance(made, datasets.Source)
    assert made.fingerprint == datasets.load(tmp_path / "set").fingerprint
    with pytest.raises(FileNotFoundError, match="is not there"):
        datasets.open(tmp_path / "none")


def _model(source, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(source.image_shape).numel(), classes))


@pytest.mark.filterwarnings("ignore:the model classifies:RuntimeWarning")
@pytest.mark.parametrize("name", ["rand", "det"])
def test_a_recipe_may_be_its_name(tmp_path, name):
    digits = datasets.load("digits", limit=20)
    model = _model(digits, 10)
    wanted = datasets.build(PRESETS["digits"][name], model, digits, tmp_path / "recipe")
    found = datasets.build(name, model, torch.utils.data.DataLoader(digits, batch_size=250), tmp_path / "name")
    assert found.manifest == wanted.manifest and torch.equal(found.images(), wanted.images())


def test_the_name_of_a_recipe_is_for_data_sets_that_have_one(tmp_path):
    source = blobs(12)
    for recipe, said in [
        (
            "det",
            r"recipe should be a recipe with .*'blobs' has no preset of its own, .* preset\('cifar10', 'det'\)",
        ),
        ("D_det", "recipe should be one of robust, nonrobust, rand, det, got 'D_det'; did you mean det"),
        ("", "recipe should be one of robust, nonrobust, rand, det, got ''"),
    ]:
        with pytest.raises(ValueError, match=said):
            datasets.build(recipe, _model(source, 3), source, tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_protocol_is_what_an_evaluation_needs():
    class Mine:
        """No class of this package."""

        name, classes, image_shape = "mine", ("a", "b"), (1, 2, 2)
        labels = torch.tensor([0, 1, 1])

        def __len__(self):
            return 3

        def images(self, indices=None):
            return torch.full((3 if indices is None else len(indices), 1, 2, 2), 0.5)

    mine = Mine()
    assert isinstance(mine, datasets.LabelledImages) and isinstance(blobs(3), datasets.LabelledImages)
    assert evaluate(_model(mine, 2), mine).data == "mine"
    for lacking in (torch.rand(2), [mine], torch.utils.data.TensorDataset(torch.rand(2)), Data("digits")):
        assert not isinstance(lacking, datasets.LabelledImages)
    assert protocol.Indices is base.Indices
