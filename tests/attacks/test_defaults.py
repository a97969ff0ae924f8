"""Results do not depend on torch's default dtype and default device."""

from __future__ import annotations

import contextlib

import pytest
import torch

from advfeat import L2, PGD, models
from advfeat.datasets import exchange, sources
from advfeat.datasets.building import build
from advfeat.datasets.recipes import MatchRepresentation, PerturbTowardsTarget
from advfeat.datasets.store import ConstructedSet
from advfeat.evaluation import evaluate
from advfeat.training import TrainConfig, paper_attack, train

CONFIG = TrainConfig(
    width=4,
    epochs=2,
    batch_size=32,
    augment="shift",
    attack=paper_attack(0.3, steps=2).replace(random_start=True),
    eval_attack=paper_attack(0.3, steps=2),
)


@contextlib.contextmanager
def _dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


DEFAULTS = {
    "float64": lambda: _dtype(torch.float64),
    "bfloat16": lambda: _dtype(torch.bfloat16),
    "meta": lambda: _device("meta"),
    "meta in a block": lambda: torch.device("meta"),
}


def _train(folder):
    train(
        CONFIG,
        sources.load("digits", limit=120),
        sources.load("digits", "test", limit=40),
        folder / "run",
        device="cpu",
    )
    return [(folder / "run" / "model.safetensors").read_bytes()]


def _resume(folder):
    def stop(done, _):
        if done == 5:
            raise KeyboardInterrupt

    data = sources.load("digits", limit=120)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, data, out=folder / "run", device="cpu", progress=stop)
    trained = train(CONFIG, data, out=folder / "run", device="cpu")
    again = train(CONFIG, data, out=folder / "run", device="cpu")
    return [models.fingerprint(trained.model), models.fingerprint(again.model)]


def _network(arch, shape):
    def make(folder):
        model = models.create(arch, 3, shape, width=4, seed=1)
        models.save(model, folder / "model")
        return [models.fingerprint(models.load(folder / "model"))]

    return make


def _build(recipe, **settings):
    def make(folder):
        model = models.create("small-convnet", 10, (1, 8, 8), width=4, seed=1).eval()
        data = sources.load("digits", limit=40)
        made = build(recipe, model, data, folder / "set", batch_size=16, shard_size=20, device="cpu", **settings)
        ConstructedSet.open(folder / "set")
        first = made.subset(range(3)).images()
        return [made.fingerprint, bytes(first.numpy().tobytes()), made.images(slice(0, 5)).sum().item()]

    return make


def _evaluate(folder):
    model = models.create("small-convnet", 10, (1, 8, 8), width=4, seed=1).eval()
    found = evaluate(model, sources.load("digits", "test", limit=60), attacks=[PGD(L2(0.5), steps=3)], limit=50)
    return [found.clean, found.robustness[0].accuracy, found.robustness[0].margin]


def _exchange(folder):
    data = sources.load("digits", limit=30)
    exchange.export_lists(data, folder / "lists")
    exchange.export_folder(data, folder / "images")
    lists = exchange.import_lists(folder / "lists")
    images = sources.load("folder", "train", folder / "images")
    return [lists.fingerprint, images.fingerprint]


def _sources(folder):
    return [sources.load(name, split).fingerprint for name in ("digits", "planted") for split in ("train", "test")]


def _features(folder):
    from advfeat.features import attacked_ranges, usefulness

    model = models.create("small-convnet", 10, (1, 8, 8), width=4, seed=1).eval()
    data = sources.load("digits", "test", limit=40)
    ranges = attacked_ranges(model.representation, data.images(), PGD(L2(0.25), steps=2), batch_size=20)
    return [usefulness(ranges, data.labels).rows()]


def _experiment(folder):
    from support.tiny_preset import make_lab, tiny_preset

    from advfeat.experiments.shared_stages import evaluated, model

    workspace, preset = make_lab(folder), tiny_preset(limit=30)
    outcome = workspace.open(evaluated(preset, model(preset, "det", 0)))
    return [outcome["clean"], outcome["next"], [r["count"] for r in outcome["robust"]]]


WORK = {
    "train": _train,
    "resume": _resume,
    "small-convnet": _network("small-convnet", (1, 8, 8)),
    "resnet18": _network("resnet18", (3, 32, 32)),
    "inception": _network("inception_v3", (3, 32, 32)),
    "det": _build(PerturbTowardsTarget("det", eps=0.5, steps=3, step_size=0.2)),
    "rand": _build(PerturbTowardsTarget("rand", eps=0.5, steps=3, step_size=0.2), dtype="uint8"),
    "robust": _build(MatchRepresentation("robust", steps=3, step_size=0.2), dtype="float16"),
    "nonrobust": _build(MatchRepresentation("nonrobust", steps=3, step_size=0.2, start="noise")),
    "evaluate": _evaluate,
    "exchange": _exchange,
    "sources": _sources,
    "features": _features,
    "experiment": _experiment,
}
_expected: dict[str, list] = {}


@pytest.mark.slow
@pytest.mark.parametrize("defaults", DEFAULTS)
@pytest.mark.parametrize("work", WORK)
def test_the_result_is_the_same(tmp_path, defaults, work):
    if work not in _expected:
        _expected[work] = WORK[work](tmp_path / "undisturbed")
    with DEFAULTS[defaults]():
        found = WORK[work](tmp_path / "disturbed")
    assert found == _expected[work]
