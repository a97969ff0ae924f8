"""The README's Python runs as it stands there."""

import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from advfeat import datasets
from advfeat.datasets import sources

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / "README.md").read_text(), re.S)


def test_loop_attack_and_compat_run(capsys):
    x, y = torch.rand(8, 3, 2, 2), torch.randint(10, (8,))
    names = {"model": nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), "x": x, "y": y, "loader": [(x, y)] * 2}
    for block in BLOCKS[1:4]:
        exec(compile(block, "README.md", "exec"), names)
    moved = names["l2_pgd"](names["model"], x, y)
    assert 0 < (moved - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    assert names["x_adv"].shape == x.shape and len(capsys.readouterr().out.splitlines()) == 2
    assert names["torchattacks"].PGD and names["L2Step"]


@pytest.fixture
def few_digits(tmp_path, monkeypatch):
    """Sixty digits, and a folder to write into."""
    monkeypatch.setattr(datasets, "load", functools.partial(sources.load, limit=60))
    monkeypatch.chdir(tmp_path)


def shortened(block: str) -> str:
    assert "epochs=10, width=16" in block
    return block.replace("epochs=10, width=16", "epochs=2, width=2")


@pytest.mark.filterwarnings("ignore:the model gets:RuntimeWarning")  # so little trained
def test_first_example_runs(few_digits, capsys):
    names: dict = {}
    exec(compile(shortened(BLOCKS[0]), "README.md", "exec"), names)
    assert len(names["d_det"]) == 60 and "n=60" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the model gets:RuntimeWarning")  # so little trained
def test_data_sets_run(few_digits, tmp_path):
    """With few images and a small network."""
    names: dict = {}
    exec(compile(shortened(BLOCKS[4]), "README.md", "exec"), names)
    assert len(BLOCKS) == 5 and names["found"].clean.n == 60 and names["found"].robustness[0].eps == 0.25
    assert (tmp_path / "sets" / "digits-det" / "manifest.json").is_file() and len(names["s"]) == 60
    assert names["image"].shape == (1, 8, 8) and names["label"] == names["s"].labels[0]


def test_the_blocks_are_short():
    """Ten lines each, as promised."""
    for block in BLOCKS[:3]:
        assert len(block.strip().splitlines()) <= 11
