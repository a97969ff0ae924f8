"""The estimated cost of an experiment: passes counted by hand, and rates measured on this machine."""

import dataclasses

import pytest
import torch
from support.tiny_preset import tiny_preset

from advfeat.experiments import catalogue, cost, presets
from advfeat.experiments.discussion.leakage_control import Without
from advfeat.experiments.shared_stages import constructed, data, evaluated, evaluated_as_paper, model
from advfeat.experiments.stages import Data


def count(step) -> dict[str, float]:
    total: dict[str, float] = {}
    for (_, kind), n in cost.passes([step]).items():
        total[kind] = total.get(kind, 0) + n
    return total


def test_passes_of_a_training():
    p = tiny_preset()
    standard = model(p.replace(standard=p.standard.replace(epochs=5)), "standard", 0)
    assert count(standard) == pytest.approx({"train": 60 * 5, "attack": 5 * 40 / 3})
    config = standard.config.replace(attack=tiny_preset().adversarial.attack.replace(steps=7), eval_every=0)
    assert count(dataclasses.replace(standard, config=config)) == pytest.approx(
        {"train": 300, "inner": 2100, "attack": 40 / 3}
    )


def test_passes_of_sets_and_measurements():
    p = tiny_preset()
    det = constructed(p, "det", 0)
    assert count(det) == {"attack": 60 * 2}
    # At two radii 20 steps of PGD, and for the third that stands two steps of Auto-PGD from each of ten starts.
    strong = 1 / 3 + 2 * (20 + 2 * 10 / 3)
    assert count(evaluated(p, model(p, "det", 0))) == pytest.approx({"attack": 40 * strong})
    assert count(evaluated(p, model(p, "det", 0), on=det, limit=10)) == pytest.approx({"attack": 10 * strong})
    assert count(evaluated_as_paper(p, model(p, "det", 0))) == pytest.approx({"attack": 40 * (1 / 3 + 2 * 2)})
    (untargeted, _) = catalogue.experiment("figure3").plan(p)["transfer"]
    assert count(untargeted) == pytest.approx({"attack": 40 * 2 + 3 * 40 * 2 / 3})
    (sweep,) = catalogue.experiment("figure8").plan(p)["PGD"]
    assert count(sweep) == {"attack": 20 * 4 * 2}


def test_samples_are_those_that_there_are():
    p = tiny_preset()
    assert cost.samples(Data("digits")) == 1347 and cost.samples(Data("digits", "test", limit=9999)) == 450
    assert cost.samples(Data("cifar10", classes=("cat", "dog"))) == 10_000
    assert cost.samples(constructed(p, "det", 0)) == cost.samples(Without(constructed(p, "det", 0), "true label")) == 60
    assert cost.samples(data(p, "test")) == 40


def test_networks_are_told_apart():
    """By what a rate depends on: not by the seed or the data, but by the precision."""
    p = tiny_preset()
    one = cost.passes([model(p, "standard", 0), model(p, "standard", 1), model(p, "rand", 0)])
    assert len({net for net, _ in one}) == 1
    low = cost.passes([model(p.replace(standard=p.standard.replace(amp="bf16")), "standard", 0)])
    assert {net for net, _ in low} != {net for net, _ in one}


def test_seconds():
    work = cost.passes([model(tiny_preset(), "standard", 0)])
    assert cost.seconds(work, {key: 10.0 for key in work}) == pytest.approx((60 + 40 / 3) / 10)


@pytest.mark.parametrize("kind", ["train", "attack", "inner"])
@pytest.mark.parametrize("amp", ["none", "bf16"])
def test_a_rate_is_measured(kind, amp):
    net = cost.Network("small-convnet", 4, amp, 32, (1, 8, 8))
    assert cost.measure_rate(net, kind, torch.device("cpu"), at_least=0.05) > 10


def test_every_preset_can_be_counted():
    for name in presets.names():
        p = presets.preset(name)
        for found in catalogue.EXPERIMENTS.values():
            work = cost.passes(found.stages(p).values())
            assert work and all(n >= 0 for n in work.values())


def test_measured_times_are_listed(tiny, capsys, monkeypatch, tmp_path):
    from advfeat import cli

    monkeypatch.setattr(cost, "measure_rate", lambda *_, **__: 1000.0)
    cli.main(["reproduce", "--measure", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.count(" alone, ") == len(catalogue.EXPERIMENTS) and "after those above" in out
