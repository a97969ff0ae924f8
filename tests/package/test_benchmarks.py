"""The benchmarks measure the same work on both sides, say what they measured, and their commands run."""

import csv
import json
import math
import os
import sys
import time
from pathlib import Path

import pytest
import torch
from support.tiny_preset import tiny_preset
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from advfeat import datasets, models  # noqa: E402
from advfeat import ops as operators  # noqa: E402
from advfeat.experiments import catalogue, times  # noqa: E402
from benchmarks import (  # noqa: E402
    apgd,
    attacks,
    autoattack,
    build,
    cycles,
    fast_sets,
    gpu,
    measure,
    memory,
    minimum_norm,
    ops,
    peers,
    queries,
    representation,
    reproduction,
    scaling,
    schedules,
    searches,
    stand_ins,
    zoo,
)


def table(path):
    return list(csv.DictReader(path.open()))


def whole(folder, name, *kinds):
    """A command's files: JSON that names the machine, tables with rows, pictures."""
    result = json.loads((folder / f"{name}.json").read_text())
    assert {"torch", "date", "git", "cores", "peers"} <= set(result["machine"])
    for kind in kinds:
        joined = f"{name}_{kind}" if kind else name
        assert len(table(folder / f"{joined}.csv")) == len(result["tables"][joined]) > 0
    assert [p for p in folder.iterdir() if p.suffix == ".png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in folder.glob("*.png"))
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    return result


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_the_plain_steps_are_the_operators(norm, layout):
    x, grad, x0, _ = ops.tensors((4, 3, 8, 8), torch.float32, layout, torch.device("cpu"))
    a, eps = ops.numbers(norm, x.shape)
    fused, plain = ops.STEPS[norm]
    expected = plain(x, grad, x0, a, eps)
    torch.testing.assert_close(fused(x.clone(), grad, x0, a, eps), expected, rtol=0, atol=1e-6)
    assert (expected - x).abs().max() > 0.001


def test_ratios_are_of_the_same_round():
    slow, fast = measure.Timing([2.0, 20.0, 4.0]), measure.Timing([1.0, 10.0, 2.0])
    assert slow.over(fast) == (2.0, 2.0, 2.0)
    assert measure.Timing([3.0]).over(measure.Timing([2.0])) == (1.5, 1.5, 1.5)
    assert measure.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == (3.0, 2.0, 4.0)


@pytest.mark.parametrize("seconds", [0.0, 1e-6])
def test_candidates_take_turns(seconds):
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timed = measure.take_turns(calls, rounds=4, seconds=seconds, warm_up=1)
    assert len(timed["a"].rounds) == 4 and all(t > 0 for t in timed["b"].rounds)
    if not seconds:  # one call each: the first of a round is the next one in the next round
        assert "".join(order) == "ab" + "abbaabba"


def test_results_are_written_together_or_not_at_all(tmp_path):
    measure.write_results(tmp_path, "r", {"n": 1}, {"": [{"a": 1.0}, {"a": math.nan, "b": 2}], "none": []})
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "n": 1,
        "tables": {"r": [{"a": 1.0}, {"a": None, "b": 2}], "r_none": []},
    }
    assert table(tmp_path / "r.csv") == [{"a": "1", "b": ""}, {"a": "nan", "b": "2"}]
    with pytest.raises(TypeError):
        measure.write_results(tmp_path, "s", {"n": object()}, {"": [{"a": 1}]})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.csv", "r.json"]


def test_peak_memory_is_exact():
    def call():
        first, second = torch.empty(1000), torch.empty(500)
        del first
        return second, torch.empty(100)

    assert memory.peak_bytes(call) == 6000
    assert memory.peak_bytes(lambda: None) < 100
    x = torch.rand(4, 3, 8, 8)
    # what an operator in C++ allocates counts too; in place there is no image to allocate
    assert memory.peak_bytes(lambda: operators.linf_step(x, x, x, 0.1, 0.5)) >= x.nbytes
    assert memory.peak_bytes(lambda: operators.linf_step_(x, x.clone(), x.clone(), 0.1, 0.5)) < 3 * x.nbytes


def test_the_operators_command(tmp_path):
    ops.main(["--rounds", "1", "--no-compile", "--shapes", "2x3x4x4", "--out", str(tmp_path)])
    result = whole(tmp_path, "ops_cpu", "", "overhead")
    rows = result["tables"]["ops_cpu"]
    assert len(rows) == 8 and {row["op"] for row in rows} == {"linf_step_", "l2_step_"}
    assert {row["model_bytes"] for row in rows if row["dtype"] == "float32"} == {4 * 2 * 48 * 4}


def test_the_pictures_of_a_gpu_sweep():
    row = {"op": "l2_step_", "shape": "9x784", "dtype": "float32", "us": 3.0, "low": 91.0, "high": 93.0}
    steps, cached = [{**row, "percent_of_clone": 92.0}], [{**row, "to_elementwise": 1.2, "low": 1.1, "high": 1.3}]
    machine = {"gpu": "a GPU", "torch": "2", "date": "today"}
    drawn = ops.figures({"machine": machine, "steps": steps, "cached": cached})
    assert set(drawn) == {"", "cached"}
    assert drawn[""].axes[0].get_xlabel() == "bandwidth, in per cent of torch.clone's"


@pytest.mark.slow
def test_the_attacks_command(tmp_path):
    tiny = ["--rounds", "1", "--steps", "2", "--shapes", "4x3x8x8", "--libraries", "advfeat", "--samples", "24"]
    attacks.main([*tiny, "--evaluation-rounds", "1", "--evaluation-steps", "10", "--out", str(tmp_path)])
    result = whole(tmp_path, "attacks_cpu", "overhead", "evaluation")
    rows = result["tables"]["attacks_cpu_overhead"]
    assert {row["norm"]: row["distance"] <= 0.2 + 1e-5 for row in rows} == {"linf": True, "l2": True}
    every, early, full, copied = result["tables"]["attacks_cpu_evaluation"]
    assert early["library"] == attacks.STOP and early["to_advfeat_stop"] == 1
    assert full["library"] == attacks.FULL and full["success"] == pytest.approx(early["success"], abs=0.05)
    assert copied["library"] == attacks.COPY and copied["success"] == pytest.approx(early["success"], abs=0.05)
    assert every["success"] == pytest.approx(early["success"], abs=0.05) and every["success"] > 0.5
    assert every["margin"] > early["margin"]  # the one goes on where the other stops


def test_quality_is_the_model_s_word():
    model = attacks.Linear(4, 2)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
        model.head.bias.zero_()
    x = torch.tensor([[0.6, 0.1, 0, 0], [0.2, 0.8, 0, 0]])
    x_adv = torch.tensor([[0.6, 0.9, 0, 0], [0.2, 0.7, 0, 0]])
    job = apgd.Job(model, "l2", 1.0, 0.1, 1)
    found = attacks.quality(model, x, x_adv, torch.tensor([0, 1]), job)
    assert found == pytest.approx({"success": 0.5, "margin": (0.3 - 0.5) / 2, "distance": 0.8}, abs=1e-6)


@pytest.mark.slow
def test_the_apgd_command(tmp_path):
    tiny = ["--rounds", "1", "--steps", "5", "--samples", "12", "--targets", "1", "--libraries", "advfeat"]
    apgd.main([*tiny, "--out", str(tmp_path)])
    result = whole(tmp_path, "apgd_cpu", "")
    rows = result["tables"]["apgd_cpu"]
    assert len(rows) == 6 and {row["norm"] for row in rows} == {"l2", "linf"}
    assert 0 < result["subject"]["clean_accuracy"] <= 1


@pytest.mark.parametrize(("recipe", "column"), [("det", "success"), ("robust", "representation_distance")])
def test_the_build_command(tmp_path, recipe, column):
    tiny = ["--recipe", recipe, "--images", "6", "--peer-images", "4", "--steps", "3", "--batch-size", "4"]
    ways = ["--options", "advfeat build", "advfeat build, until converged", "--libraries", "advfeat"]
    build.main([*tiny, *ways, "--rounds", "2", "--name", "b", "--out", str(tmp_path)])
    rows = {row["library"]: row for row in whole(tmp_path, "b", "")["tables"]["b"]}
    # D_det knows no rule of convergence
    assert ("advfeat build, until converged" in rows) == (recipe == "robust")
    built, attacked = rows["advfeat build"], rows["advfeat, the attack alone"]
    assert built["images"] == 6 and attacked["images"] == 4 and built["quality_over"] == 4
    assert built[column] == pytest.approx(attacked[column], rel=1e-3)  # the same images, whoever made them
    assert built["rounds"] == 2 and built["advfeat_over"] == 1


def test_a_build_option_that_does_not_exist_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(build.OPTIONS, "another", {"in_no_time": True})
    tiny = ["--images", "2", "--steps", "1", "--batch-size", "2", "--rounds", "1", "--libraries", "advfeat"]
    build.main([*tiny, "--options", "another", "--name", "b", "--out", str(tmp_path)])
    assert "another: left out (det is not built with in_no_time)" in capsys.readouterr().out
    assert {row["library"] for row in table(tmp_path / "b.csv")} == {"advfeat build", "advfeat, the attack alone"}


@pytest.mark.slow
def test_the_scaling_command(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "BATCH", 8)
    monkeypatch.setattr(scaling, "STEP_COUNT", 2)
    axes = ["--batches", "2", "8", "--sizes", "16", "--steps", "1"]
    scaling.main([*axes, "--rounds", "1", "--out", str(tmp_path)])
    rows = whole(tmp_path, "scaling_cpu", "")["tables"]["scaling_cpu"]
    assert {row["axis"] for row in rows} == {"batch", "size", "steps"}
    assert all(row["peak_bytes"] > 0 and row["ms_per_step"] > 0 for row in rows)
    # the documentation's promise, for batches that hide the few bytes a sample beside its images
    large = [row for row in rows if row["batch"] >= 8 and row["what"] != "model"]
    assert large and all(1 < row["images_a_sample"] <= scaling.GOAL for row in large)


@pytest.fixture
def run_folder(tmp_path):
    """An untrained model in a run folder."""
    source = datasets.load("digits", limit=20)
    folder = tmp_path / "run"
    models.save(models.create("small-convnet", 10, source.image_shape, width=4), folder)
    return folder


def test_the_schedules_command(tmp_path, run_folder):
    tiny = ["--passes", "2", "4", "--most", "2", "--images", "4", "--samples", "12", "--out", str(tmp_path)]
    schedules.main(["--standard", str(run_folder), "--adversarial", str(run_folder), *tiny])
    tables = whole(tmp_path, "schedules_digits", "matching", "evaluation")["tables"]
    matched = tables["schedules_digits_matching"]
    assert {row["steps"] for row in matched} == set(schedules.MATCHING)
    assert {row["passes"] for row in matched if row["steps"] == "steps of 0.1"} == {2, 4}
    left = tables["schedules_digits_evaluation"]
    assert {row["PGD"] for row in left} == set(schedules.EVALUATION) and all(row["samples"] == 12 for row in left)


@pytest.mark.slow
def test_the_fast_sets_command(tmp_path, monkeypatch):
    tiny = tiny_preset()
    monkeypatch.setattr(fast_sets.presets, "_PRESETS", {"digits": lambda: tiny})
    options = ["--seeds", "1", "--sets", "det", "--store", str(tmp_path / "store"), "--out", str(tmp_path)]
    fast_sets.main(options)
    rows = json.loads((tmp_path / "fast_sets_digits.json").read_text())["tables"]["fast_sets_digits"]
    assert [row["preset"] for row in rows] == ["digits", "digits-fast"] and rows[1]["passes"] == 20
    assert all(row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] for row in rows)


def test_optimality_is_the_area_between_the_curves():
    best = torch.tensor([0.0, 1.0, 2.0, 4.0], dtype=torch.float64)
    assert minimum_norm.optimality(best, best) == 1
    assert minimum_norm.optimality(torch.tensor([0.0, math.inf, math.inf, math.inf]), best) == 0
    # Areas by hand: 7/4 at best, (0 + 2 + 2 + 4)/4 here, 3/4 * 4 at most.
    assert minimum_norm.optimality(torch.tensor([0.0, 2.0, 2.0, 9.0]), best) == pytest.approx(1 - (8 - 7) / (12 - 7))
    assert math.isnan(minimum_norm.optimality(best[:1], best[:1]))


def test_every_adversarial_image_counts_within_the_passes_of_its_sample():
    class Bright(nn.Module):
        """Class 1 from a mean of 0.5 on."""

        def forward(self, z):
            return torch.stack([0.5 - z.flatten(1).mean(1), z.flatten(1).mean(1) - 0.5], dim=1)

    x, y = torch.tensor([[0.0, 0.8, 0.0, 0.8], [1.0, 0.2, 1.0, 0.2]]).view(2, 1, 2, 2), torch.tensor([0, 1])
    watched = minimum_norm.Watched(Bright(), x, y, "linf", budget=4)
    z = torch.cat([x[1:] - 0.2, x[:1] + 0.05, x[:1] + 0.15]).requires_grad_()  # in any order, any number of each
    watched(z).sum().backward()
    assert watched.nearest.tolist() == pytest.approx([0.15, 0.2], abs=1e-6) and watched.passes.tolist() == [4, 2]
    watched(torch.cat([x[:1] + 0.11, x[1:] - 0.11]))  # of the first sample one pass too many
    assert watched.nearest.tolist() == pytest.approx([0.15, 0.11], abs=1e-6) and watched.passes.tolist() == [5, 3]
    twice = minimum_norm.Watched(Bright(), x[:1], y[:1], "linf", budget=2)
    twice(torch.cat([x[:1] + 0.2, x[:1] + 0.15, x[:1] + 0.12]))  # the third is beyond the budget
    assert twice.nearest.item() == pytest.approx(0.15)


@pytest.mark.slow
def test_the_minimum_norm_command(tmp_path, monkeypatch):
    short = cycles.TRAINING.replace(epochs=1)
    monkeypatch.setattr(cycles, "TRAINING", short)
    monkeypatch.setattr(cycles, "ROBUST", short.replace(attack=cycles.ROBUST.attack.replace(steps=1)))
    usual = minimum_norm.curve_attack
    monkeypatch.setattr(minimum_norm, "curve_attack", lambda norm, dim: usual(norm, dim=dim, rounds=1, steps=2))
    options = ["--samples", "6", "--budget", "60", "--norms", "l2", "--out", str(tmp_path)]
    minimum_norm.main(options)
    rows = whole(tmp_path, "minimum_norm_cpu", "")["tables"]["minimum_norm_cpu"]
    assert {row["model"] for row in rows} == {"standard", "robust"} and {"DDN", "FMN", "FAB"} <= {
        r["attack"] for r in rows
    }
    assert max(row["optimality"] for row in rows) <= 1


def test_the_searches_command(tmp_path):
    searches.main(["--rows", "2", "--rounds", "2", "--out", str(tmp_path)])
    rows = whole(tmp_path, "searches", "")["tables"]["searches"]
    assert [row["op"] for row in rows] == list(searches.candidates(1)) and all(row["ratio"] > 0 for row in rows)
    for name, (fused, sorts) in searches.candidates(3).items():
        torch.testing.assert_close(fused(), sorts(), rtol=0, atol=1e-5, msg=name)


def test_the_queries_command(tmp_path):
    queries.main(["--samples", "12", "--queries", "20", "--seeds", "1", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "queries_digits.json").read_text())["tables"]["queries_digits"]
    assert [row["norm"] for row in rows] == list(queries.NORMS)
    assert all(0 <= row["differ"] <= 12 and row["float32_passes"] > 12 for row in rows)


@pytest.mark.slow
@pytest.mark.compare
def test_the_autoattack_command(tmp_path):
    pytest.importorskip("pyautoattack")
    autoattack.main(["--samples", "8", "--seeds", "2", "--norms", "linf", "--epochs", "1", "--out", str(tmp_path)])
    tables = whole(tmp_path, "autoattack_digits", "attacks")["tables"]
    summed = tables["autoattack_digits"]
    assert [row["attack"] for row in summed] == [*autoattack.ATTACKS, "all"] * 3
    assert all(row["to_advfeat"] > 0 and row["differ"] <= 8 for row in summed)
    assert len(tables["autoattack_digits_attacks"]) == 3 * 2 * 2 * 4


@pytest.mark.slow
def test_the_cycles_command(tmp_path, monkeypatch):
    short = cycles.TRAINING.replace(epochs=1)
    monkeypatch.setattr(cycles, "TRAINING", short)
    monkeypatch.setattr(cycles, "ROBUST", short.replace(attack=cycles.ROBUST.attack.replace(steps=1)))
    cycles.main(["--samples", "8", "--batch-size", "4", "--steps", "40", "60", "--out", str(tmp_path)])
    rows = whole(tmp_path, "cycles_cpu", "")["tables"]["cycles_cpu"]
    assert len(rows) == 2 * len(cycles.RADII) * len(cycles.STEP_SIZES) * 2
    assert all(0 < row["share"] <= 1 and row["passes"] <= 8 * (row["steps"] + 1) for row in rows)
    assert all(row["share"] < 1 for row in rows if row["step size"] == "eps / 4")


@pytest.mark.slow
@pytest.mark.parametrize("command", [attacks, apgd, build])
def test_an_unknown_library_is_refused(command, tmp_path):
    with pytest.raises(ValueError, match="libraries should be among advfeat, .*got other"):
        command.main(["--libraries", "other", "--rounds", "1", "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def smooth(shape):
    """A network without kinks, and images from whose middle greys no attack here reaches the box: there the libraries
    differ (ART projects on it first, robustness gives what lies on it no gradient)."""
    g = torch.Generator().manual_seed(0)
    layers = [nn.Conv2d(shape[0], 8, 5, stride=3), nn.Softplus(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(128, 10)).eval()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=g) * 0.3
    x = 0.25 + 0.5 * torch.rand(6, *shape, generator=g)
    return net, x, net(x).argmax(1)


def attack_of(name, job, libraries=None):
    found, missing = peers.available(job, [name], libraries)
    if missing:
        pytest.skip(f"{name}: {missing[name]}")
    return found[name]


@pytest.mark.parametrize("name", [name for name in peers.LIBRARIES if name not in ("advfeat", "adv-lib")])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 224, 224)])
@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("norm", "eps", "size"), [("l2", 0.5, 0.1), ("linf", 8 / 255, 2 / 255)])
def test_peers_run_the_same_attack(name, shape, targeted, norm, eps, size):
    net, x, y = smooth(shape)
    job = peers.Job(net, norm, eps, size, 7, targeted, shape=shape)
    target = (y + 1) % 10 if targeted else y
    theirs = attack_of(name, job)(x, target)
    ours = peers.advfeat(job)(x, target)
    assert (ours - x).abs().max() > 1e-3
    found, expected = (attacks.quality(net, x, x_adv, target, job) for x_adv in (theirs, ours))
    if name == "robustness, best":  # of all iterates, not the last one
        sign = -1 if targeted else 1
        assert sign * found["margin"] >= sign * expected["margin"] - 1e-4
        assert found["distance"] <= eps + 1e-5
        return
    # a gradient of next to nothing may have either sign: few values, no difference in what was reached
    assert ((ours - theirs).abs() <= 2e-6).float().mean() > 0.999
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("targeted", [False, True])
def test_adv_lib_gives_clean_images_where_it_fails(targeted):
    net, x, y = smooth((3, 32, 32))
    target = (y + 1) % 10 if targeted else y
    weak, strong = (peers.Job(net, "linf", eps, eps / 4, 10, targeted) for eps in (0.001, 0.2))
    found = attack_of("adv-lib", weak)(x, target)
    fell = (net(found).argmax(1) == target) == targeted
    assert 0 < fell.sum() < len(x)
    assert torch.equal(found[~fell], x[~fell]) and not torch.equal(found[fell], x[fell])
    success = [
        attacks.quality(net, x, attack(x, target), target, strong)["success"]
        for attack in (attack_of("adv-lib", strong), peers.advfeat(strong))
    ]
    assert success[0] == success[1] > 0


@pytest.mark.parametrize("name", [name for name in apgd.APGDS if name != "advfeat"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("more", [{}, {"loss": "dlr"}, {"targets": 2}, {"restarts": 2}])
def test_peers_run_apgd(name, norm, more):
    net, x, y = smooth((3, 32, 32))
    eps = {"l2": 2.0, "linf": 0.1}[norm]
    job = apgd.ApgdJob(net, norm, eps, 20, **more)
    plain = apgd.Job(net, norm, eps, 0.0, 20)
    attack = attack_of(name, job, apgd.APGDS)
    found, ours = (attacks.quality(net, x, a(x, y), y, plain) for a in (attack, apgd.advfeat(job)))
    assert found["distance"] <= eps * (1 + 1e-4) + 1e-6
    assert found["success"] == ours["success"] > 0


@pytest.mark.parametrize("name", ["robustness", "foolbox"])
def test_peers_match_representations(name):
    model = build.subjects.create("small-convnet", 10, (3, 16, 16), width=4).eval()
    g = torch.Generator().manual_seed(0)
    start, x = 0.25 + 0.5 * torch.rand(2, 3, 3, 16, 16, generator=g)
    features = model.representation(x).detach()
    job = representation.MatchJob(model, 0.05, 5)
    attack = attack_of(name, job, representation.MATCHERS)
    ours = representation.advfeat(job)(start, features)
    torch.testing.assert_close(attack(start, features), ours, rtol=0, atol=1e-4)
    before, after = (representation.match_quality(model, z, features)["representation_distance"] for z in (start, ours))
    assert after < before


def test_a_missing_library_is_named_and_the_rest_runs():
    def missing(job):
        return stand_ins.load("no_such_library_at_all")

    job = peers.Job(attacks.Linear(4), "l2", 0.5, 0.1, 1)
    found, left_out = peers.available(job, None, {"advfeat": peers.advfeat, "other": missing})
    assert list(found) == ["advfeat"]
    assert left_out == {"other": "not installed: No module named 'no_such_library_at_all'"}


def test_stand_ins_are_there_during_the_import_only(tmp_path, monkeypatch):
    (tmp_path / "wants_more.py").write_text(
        "import no_such_a\nimport no_such_a.b as b\nfrom no_such_a import C\nimport json\nkept = (b.D, C, json.dumps)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(stand_ins.NEEDS, "wants_more", ("no_such_a", "no_such_a.b", "json"))
    module = stand_ins.load("wants_more")
    assert module.kept[2] is json.dumps  # what is installed is not stood in for
    assert "no_such_a" not in sys.modules
    with pytest.raises(ImportError):
        stand_ins.load("no_such_a")


def script(text, *arguments):
    return [sys.executable, "-c", text, *map(str, arguments)]


@pytest.mark.slow
def test_gpu_reports_failed_parts_and_goes_on(tmp_path, monkeypatch, capsys):
    child = (
        "import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); open(sys.argv[1], 'w').write(str(p.pid))"
    )
    written = "open(sys.argv[1], 'w').write('{\"tables\": 7}')"
    (tmp_path / "stale.json").write_text('{"tables": 0}')
    os.utime(tmp_path / "stale.json", (1, 1))
    monkeypatch.setattr(
        gpu,
        "parts",
        lambda options: [
            gpu.Part("fails", script("print('adv-lib: left out (why)'); raise SystemExit(3)"), 20, "stale"),
            gpu.Part("hangs", script(f"{child}; p.wait()", tmp_path / "pid"), 2),
            gpu.Part("works", script(f"import sys; {written}", tmp_path / "r.json"), 20, "r"),
            gpu.Part("is not here", [], 0),
        ],
    )
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    summary = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    assert [(p["part"], p["status"]) for p in summary["parts"]] == [
        ("fails", "failed"),
        ("hangs", "out of time"),
        ("works", "ok"),
        ("is not here", "left out"),
    ]
    assert summary["parts"][0]["exit"] == 3 and summary["parts"][0]["left_out"] == ["adv-lib: left out (why)"]
    assert summary["results"] == {"r": {"tables": 7}}  # what lay there from another run is not this one's
    assert summary["machine"]["torch"] == torch.__version__
    assert "fails, hangs failed" in capsys.readouterr().out
    pid = int((tmp_path / "pid").read_text())
    for _ in range(50):  # what the part had started is gone as well
        if not _alive(pid):
            break
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_gpu_keeps_time_for_the_parts_to_come(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(gpu, "parts", lambda options: [gpu.Part(name, script("pass"), 100) for name in "abc"])
    monkeypatch.setattr(gpu, "machine", lambda *_: {})
    run = gpu.run
    monkeypatch.setattr(gpu, "run", lambda part, limit, *rest: limits.append(limit) or run(part, limit, *rest))
    assert gpu.main(["--dry-run", "--seconds", "110", "--out", str(tmp_path)]) == 0
    assert limits[0] == pytest.approx(110 - 2 * 100 * gpu.RESERVED, abs=1)
    assert limits[2] == pytest.approx(100, abs=1)


def test_gpu_s_parts_take_under_eight_minutes_and_cover_a_dry_run():
    def parts(*more):
        parser_options = {"out": Path("out"), "data": None, "split": "test", "model": None, "robust_model": None}
        return gpu.parts(gpu.argparse.Namespace(**parser_options, dry_run="dry" in more))

    assert gpu.IN_ALL < 480
    real, dry = parts(), parts("dry")
    assert [part.name for part in real] == [part.name for part in dry]
    assert sum(part.limit for part in real) * gpu.RESERVED < gpu.IN_ALL / 2
    for part in real[2:-1]:
        assert part.command[part.command.index("--device") + 1] == "cuda"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "--only should be among"),
        (["--data", "no/such/folder"], "--data should be a folder"),
        (["--wheels", "no/such/folder"], "--wheels should be a folder"),
    ],
)
def test_gpu_refuses_what_it_cannot_use(arguments, message, capsys):
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_without_one_measures_nothing(tmp_path, capsys):
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert "no GPU: nothing was measured" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_gpu_refuses_a_folder_without_wheels(tmp_path, capsys):
    assert gpu.main(["--dry-run", "--wheels", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "should be a folder with wheels" in capsys.readouterr().err


@pytest.mark.slow
def test_the_list_s_times_for_a_gpu_are_those_that_are_estimated(capsys):
    reproduction.main(["--preset", "cifar10"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:-1]]
    for name, alone, _ in lines:
        assert float(alone) == pytest.approx(times.MINUTES["cifar10"][name], rel=0.05, abs=1), name


@pytest.mark.slow
def test_reproduction_is_estimated_for_a_gpu(capsys):
    reproduction.main(["--preset", "cifar10", "--arch", "resnet18"])
    lines = capsys.readouterr().out.splitlines()
    minutes = {line.split()[0]: [float(v) for v in line.split()[1:]] for line in lines[1:-1]}
    assert minutes.keys() == catalogue.EXPERIMENTS.keys()
    assert all(alone >= left >= 0 for alone, left in minutes.values())
    assert minutes["table10"][1] < minutes["table10"][0]  # it shares all of its steps with those above
    net = reproduction.Network("resnet18", None, "bf16", 128, (3, 32, 32))
    # 0.56 billion multiply-adds forward, as the literature has it for a ResNet-18 with a CIFAR stem.
    assert reproduction.operations(net, "train") == pytest.approx(3 * 2 * 0.556e9, rel=0.01)
    assert "assumed" in lines[-1]


@pytest.mark.slow
def test_the_zoo_command(tmp_path):
    names, settings = ["softmax at the end", "linear"], ["linf"]
    zoo.main(["--limit", "8", "--only", *names, "--settings", *settings, "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "zoo.json").read_text())["tables"]["zoo"]
    assert [row["model"] for row in rows] == [names[0], *(f"linear, {setting}" for setting in settings)]
    assert "probabilities" in rows[0]["faults"] and all(row["as expected"] for row in rows)
    assert all(row["clean"] >= row["strong attack"] for row in rows)
