"""AutoAttack's drop-in killed at random moments of each attack: what it resumes to is what it would have found."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ATTACKS = ["apgd-ce", "apgd-t", "fab-t", "square"]
_SCRIPT = """
import sys, torch
from torch import nn
from advfeat.compat.autoattack import AutoAttack
from advfeat.datasets import load

torch.set_num_threads(1)
name, state, out, batch = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
test = load("digits", "test")
x, y = test.images()[:120].double(), test.labels[:120]
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
known = load("digits", "train")
optimiser, labels = torch.optim.Adam(net.parameters(), 0.02), known.labels
for _ in range(40):
    optimiser.zero_grad()
    nn.functional.cross_entropy(net(known.images().double()), labels).backward()
    optimiser.step()
# An easy attack comes first, so that the state holds examples of another one as well.
names = ["apgd-dlr", name]
attack = AutoAttack(net, eps=0.05, version="custom", attacks_to_run=names, device="cpu", seed=0, verbose=False)
attack.apgd.n_restarts, attack.apgd.n_iter, attack.square.n_queries = 1, 10, 800
attack.apgd_targeted.n_iter = attack.fab.n_iter = 30
print("begins", flush=True)
found = attack.run_standard_evaluation(x, y, bs=batch, state_path=state)
torch.save((found, net(found).argmax(1) != y), out)
"""


def start(name: str, state: Path, out: Path, batch: int) -> subprocess.Popen:
    command = [sys.executable, "-c", _SCRIPT, name, str(state), str(out), str(batch)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    return process


def kills(name: str, folder: Path, moments: int, seed: int, latest: float = 1.0) -> int:
    """Kills an evaluation at so many moments, the last time leaves it alone; compares, and returns the kills.

    latest: of the moments, as a share of the time that it takes.
    """
    undisturbed, killed = folder / "undisturbed.pt", folder / "killed.pt"
    process = start(name, folder / "whole.json", undisturbed, 120)
    began = time.monotonic()
    assert process.wait() == 0
    duration, chance, killed_so_often = time.monotonic() - began, random.Random(seed), 0
    for turn in range(moments):
        process = start(name, folder / "killed.json", killed, (120, 50, 17)[turn % 3])
        try:
            process.wait(timeout=chance.uniform(0, latest * duration))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            killed_so_often += process.wait() == -signal.SIGKILL
        if killed.exists():  # it came to its end before: from the start again
            _compare(undisturbed, killed)
            killed.unlink()
            for path in folder.glob("killed.json*"):
                path.unlink()
    assert start(name, folder / "killed.json", killed, 33).wait() == 0
    _compare(undisturbed, killed)
    return killed_so_often


def _compare(undisturbed: Path, killed: Path) -> None:
    (x_adv, broken), (again, flags) = (torch.load(path, weights_only=True) for path in (undisturbed, killed))
    assert torch.equal(flags, broken) and 0 < broken.sum() < len(broken)
    torch.testing.assert_close(again, x_adv, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_killed_twice_it_finds_the_same(tmp_path):
    assert kills("square", tmp_path, 2, seed=0, latest=0.6) > 0


@pytest.mark.thorough
@pytest.mark.parametrize("name", ATTACKS)
def test_killed_at_twenty_moments_it_finds_the_same(tmp_path, name):
    assert kills(name, tmp_path, 20, seed=10 + ATTACKS.index(name)) > 3
