"""Wrong arguments for data sets, recipes and builds: the error names them, and none is taken in silence."""

import math

import pytest
import torch
from torch import nn

from advfeat import L2, PGD, models
from advfeat.datasets import exchange, planted, recipes, sources, store
from advfeat.datasets.base import ArraySource
from advfeat.datasets.building import build

X, Y = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
NET = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
ATTACK = PGD(L2(0.1), steps=1)
SOURCE = ArraySource(X, Y, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: recipes.preset("cifar10", "D_R"), ValueError, "recipe should be .* got 'D_R'; did you mean robust."),
        (lambda: recipes.preset("cifar10", "Det"), ValueError, "recipe should be .* did you mean det."),
        (lambda: recipes.preset("CIFAR-10", "det"), ValueError, "preset should be .* did you mean cifar10."),
        (lambda: sources.load("planted", "train", 0), TypeError, "root should be a path, got 0"),
        (lambda: sources.load(5), TypeError, "name should be that of a data set, or a path, got 5"),
        (lambda: sources.load("Fashion MNIST"), ValueError, "name should be one of .* did you mean fashion-mnist."),
        (lambda: sources.load("planted", seed=None), ValueError, "seed should be an integer, got None"),
        (lambda: sources.load("planted", seed="0"), ValueError, "seed should be an integer, got '0'"),
        (lambda: sources.load("planted", size="8"), ValueError, "size should be an integer, a side or .* got '8'"),
        (lambda: sources.load("planted", size=8.5), ValueError, "size should be an integer, .* got 8.5"),
        (lambda: sources.load("planted", limit=True), ValueError, "limit should be a number of samples, .* got True"),
        (lambda: ArraySource(X, Y, None), TypeError, "classes should be a list of names, .* got None"),
        (lambda: ArraySource(X, Y, True), TypeError, "classes should be a list of names, .* got True"),
        (
            lambda: list(SOURCE.batches("2")),
            ValueError,
            "batch_size should be an integer, at least 1, got '2'",
        ),
        (lambda: list(SOURCE.batches(True)), ValueError, "batch_size should be an integer, .* got True"),
        (lambda: planted.PlantedConfig(shape=8), TypeError, r"shape should be \(channels, height, width\), got 8"),
        (lambda: planted.PlantedConfig(classes="4"), ValueError, "classes should be an integer, got '4'"),
        (lambda: planted.PlantedConfig(classes=2.5), ValueError, "classes should be an integer, got 2.5"),
        (lambda: planted.PlantedConfig(noise=None), TypeError, "noise should be a number, got None"),
        (lambda: planted.PlantedConfig(slow_norm=math.inf), ValueError, "slow_norm should be finite, got inf"),
        (lambda: planted.Planted(n="10"), ValueError, "n should be an integer, at least 1, got '10'"),
        (lambda: planted.Planted(config=5), TypeError, "config should be a PlantedConfig, got int"),
        (lambda: exchange.export_lists("x", SOURCE), TypeError, "source should be a data set, got str"),
        (lambda: exchange.export_lists(SOURCE, 3), TypeError, "path should be a path, got 3"),
        (lambda: exchange.import_lists(3), TypeError, "path should be a path, got 3"),
        (lambda: exchange.export_folder(X, "x"), TypeError, "source should be a data set, got Tensor"),
        (lambda: store.ConstructedSet.open(None), TypeError, "path should be a path, got None"),
        (lambda: store.ConstructedSet.open("x", "no"), TypeError, "verify should be True or False, got 'no'"),
    ],
)
def test_data_sets(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": "D_R"}, ValueError, "recipe should be one of robust, .* got 'D_R'; did you mean robust."),
        (
            {"recipe": "det"},
            ValueError,
            "recipe should be a recipe .*'arrays' has no preset of its own, .* 'det'",
        ),
        ({"recipe": ATTACK}, TypeError, "recipe should be one of .*, or its name, got PGD"),
        ({"model": "run"}, TypeError, "model should be a module, got the path 'run'"),
        ({"source": "planted"}, TypeError, "source should be a data set, got str"),
        ({"out": None}, TypeError, "out should be a path, got None"),
        ({"seed": None}, ValueError, "seed should be an integer, got None"),
        ({"seed": "0"}, ValueError, "seed should be an integer, got '0'"),
        ({"seed": 1.5}, ValueError, "seed should be an integer, got 1.5"),
        ({"shard_size": "5"}, ValueError, "shard_size should be an integer, at least 1, got '5'"),
        ({"shard_size": True}, ValueError, "shard_size should be an integer, at least 1, got True"),
        ({"autocast": "bf16"}, TypeError, "autocast should be torch.bfloat16, torch.float16 or None, got 'bf16'"),
        ({"compile": "no"}, TypeError, "compile should be True or False, got 'no'"),
        ({"same_classes": "no"}, TypeError, "same_classes should be True or False, got 'no'"),
        ({"any_source": "no"}, TypeError, "any_source should be True or False, got 'no'"),
        ({"progress": True}, TypeError, r"progress should be a function \(done, total\), got bool"),
        ({"device": "gpu"}, ValueError, 'device should be a device such as "cpu" or "cuda:0", got .gpu'),
        ({"device": "meta"}, ValueError, "device should be one that holds values, got 'meta'"),
    ],
)
def test_builds(changes, error, message, tmp_path):
    model = models.adapt(NET, num_classes=3, input_shape=(3, 8, 8))
    arguments = {
        "recipe": recipes.PerturbTowardsTarget("det", 0.5, 1, 0.1),
        "model": model,
        "source": SOURCE,
        "out": tmp_path / "set",
    }
    with pytest.raises(error, match=message):
        build(**arguments | changes)
    assert not (tmp_path / "set").exists()
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())  # not moved, and still with values
