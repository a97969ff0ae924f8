"""The benchmarks measure the same work on both sides, and their commands run."""

import csv
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import attacks, measure, ops  # noqa: E402


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


def test_candidates_take_turns():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timed = measure.take_turns(calls, rounds=4, seconds=1e-6)
    assert len(timed["a"].rounds) == 4 and all(t > 0 for t in timed["b"].rounds)
    assert {"a", "b"} == set(order)


def test_the_sweep_writes_its_table_and_plot(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "CPU_SHAPES", [(2, 3, 4, 4)])
    monkeypatch.setattr(ops.cpu_rows, "__defaults__", ([(2, 3, 4, 4)],))
    ops.main(["--rounds", "1", "--no-compile", "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "ops_cpu.csv").open()))
    assert len(rows) == 8 and {row["op"] for row in rows} == {"linf_step_", "l2_step_"}
    assert (tmp_path / "ops_cpu.png").read_bytes().startswith(b"\x89PNG")


def test_attacks_are_compared_by_quality_too(tmp_path, monkeypatch):
    monkeypatch.setattr(attacks, "SHAPES", [(4, 3, 8, 8)])
    attacks.main(["--rounds", "1", "--steps", "2", "--libraries", "advfeat", "--out", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "attacks_cpu_overhead.csv").open()))
    assert {row["library"] for row in rows} == {"advfeat"}
    assert all(float(row["distance"]) <= 0.5 + 1e-5 for row in rows)
