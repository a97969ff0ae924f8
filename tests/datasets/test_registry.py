"""The registry of data sets: loading, its documentation and builds agree with it."""

import re
from typing import get_args

import pytest
from support.tiny_preset import make_lab

from advfeat.datasets import recipes, registry, sources
from advfeat.experiments import cost
from advfeat.experiments.base import MissingData
from advfeat.experiments.stages import Data


@pytest.mark.parametrize("name", registry.NAMES)
def test_a_data_set_needs_a_root_or_is_part_of_the_library(name, tmp_path):
    stage, workspace = Data(name, "test"), make_lab(tmp_path)
    if name in registry.WITHOUT_ROOT:
        assert sources.load(name, "test").name == workspace.open(stage).name == name
        return
    with pytest.raises(ValueError, match=f"root should be the folder with the data set '{name}', got None"):
        sources.load(name, "test")
    with pytest.raises(MissingData, match=f"{name} is not part of advfeat"):
        workspace.open(stage)


def test_the_documentation_of_load_has_the_names_and_says_which_need_a_root():
    text = sources.load.__doc__
    assert re.findall(r'^    \* "(.+?)":', text, re.MULTILINE) == [*registry.NAMES]
    root = re.search(r" root: (.+?)\n +seed:", text, re.DOTALL)[1]
    need, need_not = root.split(";")
    assert re.findall(r'"(.+?)"', need) == [name for name in registry.NAMES if registry.known(name).needs_root]
    assert re.findall(r'"(.+?)"', need_not) == [*registry.WITHOUT_ROOT] and "paths" in need_not


@pytest.mark.parametrize(
    ("option", "given"), [("size", 8), ("channels", 1), ("holdout", 0.5), ("class_ranges", {"a": (0, 1)})]
)
def test_an_option_is_refused_by_the_data_sets_that_do_not_take_it(option, given, tmp_path):
    for name in (*registry.NAMES, str(tmp_path)):
        if not registry.takes(name, option):
            with pytest.raises(ValueError, match=f"^{option} should be left out for {re.escape(name)}: it is for "):
                sources.load(name, root=tmp_path, **{option: given})


def test_presets_of_data_sets_are_presets():
    assert get_args(registry.PresetName) == tuple(recipes.PRESETS)
    own = {name: each.preset for name, each in registry.DATA_SETS.items() if each.preset}
    assert own == {"digits": "digits", "cifar10": "cifar10", "restricted-imagenet": "restricted-imagenet"}
    assert recipes.own_recipe("cifar10", "det") is recipes.preset("cifar10", "det")
    # No other preset stands in: a data set that has the name of a preset only is no data set of this library.
    assert [recipes.own_recipe(name, "det") for name in ("planted", "folder", "sets/det", "cifar10-cpu")] == [None] * 4


def test_what_costs_are_known_of_is_a_data_set():
    assert cost._SIZES.keys() <= registry.DATA_SETS.keys()
