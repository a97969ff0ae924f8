"""The Python of README and CONTRIBUTING runs as it stands there, and the documents' links lead somewhere."""

import functools
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from advfeat import L2, PGD, datasets
from advfeat.datasets import sources
from advfeat.evaluation import evaluate

ROOT = next(folder for folder in Path(__file__).parents if (folder / "README.md").is_file())
DOCUMENTS = [
    *(
        ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "csrc/README.md", "benchmarks/README.md")
    ),
    *sorted((ROOT / "docs").glob("*.md")),
]


def python_of(document: str) -> list[str]:
    found = re.findall(r"^( *)```python\n(.*?)```", (ROOT / document).read_text(), re.S | re.M)
    return [textwrap.dedent(code) for _, code in found]


BLOCKS = python_of("README.md")


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


@pytest.mark.filterwarnings("ignore:the model classifies:RuntimeWarning")  # so little trained
def test_first_example_runs(few_digits, capsys):
    names: dict = {}
    exec(compile(shortened(BLOCKS[0]), "README.md", "exec"), names)
    assert len(names["d_det"]) == 60 and "n=60" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:the model classifies:RuntimeWarning")  # so little trained
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


def test_what_contributing_adds_works():
    """An objective, an attack and a data set, by its own text."""
    names: dict = {"__name__": __name__}
    for block in python_of("CONTRIBUTING.md"):
        exec(compile(block, "CONTRIBUTING.md", "exec"), names)
    labels = torch.arange(20) % 2
    source = names["Mine"]((torch.rand(20, 3, 32, 32) * 255).to(torch.uint8), labels)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2))
    attack = names["Iterative"](L2(2.0), objective=names["LogitGap"](weight=2.0))
    same = PGD(L2(2.0), steps=10, step_size=0.2, objective=attack.objective, keep="best")
    x = source.images()
    found, expected = attack.run(model, x, labels), same.run(model, x, labels)
    assert torch.equal(found.x_adv, expected.x_adv) and torch.equal(found.first_success, expected.first_success)
    assert 0 < found.success.sum() and attack.to_dict()["objective"] == "LogitGap(weight=2.0)"
    (robust,) = evaluate(model, source, attacks=[("iterative", attack)]).robustness
    assert robust.accuracy.n == len(source) and robust.largest_distance <= 2 + 1e-5


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith(("http", "#")):
            assert (document.parent / link.split("#")[0]).exists(), link


def test_readme_links_every_document():
    readme = (ROOT / "README.md").read_text()
    for document in DOCUMENTS[1:]:
        assert f"]({document.relative_to(ROOT).as_posix()})" in readme
