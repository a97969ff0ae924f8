"""The README's Python runs as it stands there."""

import re
from pathlib import Path

import torch
from torch import nn

BLOCKS = re.findall(r"```python\n(.*?)```", (Path(__file__).parents[1] / "README.md").read_text(), re.S)


def test_loop_attack_and_compat_run(capsys):
    x, y = torch.rand(8, 3, 2, 2), torch.randint(10, (8,))
    names = {"model": nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), "x": x, "y": y, "loader": [(x, y)] * 2}
    for block in BLOCKS[:3]:
        exec(compile(block, "README.md", "exec"), names)
    moved = names["l2_pgd"](names["model"], x, y)
    assert 0 < (moved - x).flatten(1).norm(dim=1).max() <= 0.5 + 1e-5
    assert names["x_adv"].shape == x.shape and len(capsys.readouterr().out.splitlines()) == 2
    assert names["torchattacks"].PGD and names["L2Step"]


def test_the_blocks_are_short():
    """Ten lines each, as promised."""
    for block in BLOCKS[:2]:
        assert len(block.strip().splitlines()) <= 11
