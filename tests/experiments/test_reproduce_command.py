"""The command that reproduces the paper: what it prints and writes, and what it says of mistakes."""

import dataclasses
import json
from pathlib import Path

import pytest

from advfeat import cli
from advfeat.experiments import catalogue, presets
from advfeat.experiments.run import read_page
from advfeat.report.page import command


def test_the_command_writes_pages_and_an_overview(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    cli.main(["reproduce", "table1", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "\n\n" not in printed, "a bar that is not drawn left an empty line"
    page, overview = (out / "table1.html").read_text(), (out / "index.html").read_text()
    assert "Test accuracy on D" in printed and "63.3" in printed and "What would count against it" in page
    assert "advfeat reproduce table1 --preset digits" in page
    for html in (page, overview):
        assert "<script" not in html and "http" not in html.split("</style>")[1]
    assert 'href="table1.html"' in overview and "not done yet" in overview
    assert "D<sub>rand</sub>" in page
    # The paper's numbers are of another data set and network: they stand for the pattern.
    assert json.loads((out / "results" / "table1.json").read_text())["differences"] == []


def test_results_of_another_version_are_not_shown(tiny, tmp_path):
    """A folder may hold pages that were written otherwise; the overview does without them."""
    for name in ("cats-vs-dogs", "table10"):
        cli.main(["reproduce", name, "--out", str(tmp_path)])
    path = tmp_path / "results" / "table10.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k not in ("format", "seeds")}))
    cli.main(["reproduce", "cats-vs-dogs", "--out", str(tmp_path)])
    assert 'href="table10.html"' not in (tmp_path / "index.html").read_text()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "--preset cifar10-cpu"),
        ({"seeds": (0,)}, "--preset cifar10-cpu --seeds 1"),
        ({"name": "cifar10-resnet18", "seeds": (0,)}, "--preset cifar10 --arch resnet18"),
        ({"name": "cifar10-cpu-resnet50", "seeds": (0, 1)}, "--preset cifar10-cpu --arch resnet50 --seeds 2"),
    ],
)
def test_the_command_of_a_page(changes, words):
    preset = presets.preset("cifar10-cpu").replace(**changes).to_dict()
    assert command({"name": "table1", "preset": preset}) == f"advfeat reproduce table1 {words}"


def test_a_name_that_is_none(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "table3"])
    assert stopped.value.code == 1
    assert "unknown experiment 'table3': should be table1, figure2" in capsys.readouterr().err


def test_data_that_is_not_there(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "cifar10.1", "--out", str(tmp_path)])
    assert stopped.value.code == 1
    assert "cifar10.1 is about cifar10" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))


def test_all_goes_on_after_an_experiment_that_fails(tiny, tmp_path, capsys, monkeypatch):
    """An unattended run does what it can, says what it could not, and does not end as if all were well."""
    some = {name: catalogue.EXPERIMENTS[name] for name in ("table1", "cats-vs-dogs", "cifar10.1")}
    some["table1"] = dataclasses.replace(some["table1"], report=lambda *_: _fail())
    monkeypatch.setattr(catalogue, "EXPERIMENTS", some)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "all", "--out", str(tmp_path)])
    assert stopped.value.code == 1
    overview = (tmp_path / "index.html").read_text()
    assert "failed: FloatingPointError: the loss" in overview and "cifar10.1 is about cifar10" in overview
    assert 'href="cats-vs-dogs.html"' in overview
    assert "failed  FloatingPointError: the loss" in capsys.readouterr().out


def _fail():
    raise FloatingPointError("the loss is not finite")


def test_all_without_the_data_is_an_error(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["reproduce", "all", "--preset", "cifar10-cpu", "--out", str(tmp_path)])
    assert stopped.value.code == 1
    assert "cifar10 is not part of advfeat: give its folder with --root (or ADVFEAT_DATA)" in capsys.readouterr().err


def test_seeds_below_one(capsys):
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "table1", "--seeds", "0"])
    assert "--seeds should be at least 1, got 0" in capsys.readouterr().err


def test_the_list(capsys):
    cli.main(["reproduce", "--list"])
    printed = capsys.readouterr().out
    for name, found in catalogue.EXPERIMENTS.items():
        assert name in printed
        assert found.paper.split()[0] in printed
    cli.main(["reproduce"])
    assert capsys.readouterr().out == printed


def test_every_row_of_the_paper_is_there():
    rows = (
        "table1 figure2 table7 figure3 figure13 cross-architecture figure8 table8 table9 figure10 table10 cifar10.1 "
        "restricted-imagenet cats-vs-dogs released leakage-control"
    )
    for name in rows.split():
        assert catalogue.experiment(name)


def test_minutes_that_are_over(tiny, tmp_path, capsys):
    command = ["reproduce", "table1", "--out", str(tmp_path), "--minutes", "0"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    assert stopped.value.code == 75
    assert "time limit of 0 minutes reached; the same command resumes" in capsys.readouterr().out
    cli.main(command[:-2])
    assert (tmp_path / "table1.html").is_file()


def test_the_published_pages_can_be_read():
    folder = Path(__file__).parents[2] / "docs" / "results"
    published = sorted(folder.glob("*/results/*.json"))
    assert len(published) > 20
    for path in published:
        assert read_page(path.parents[1], path.stem) is not None, path


@pytest.mark.parametrize("damage", ["differs", "verdict", "folder"])
def test_a_page_of_another_version_is_not_read(tmp_path, damage):
    published = Path(__file__).parents[2] / "docs" / "results" / "digits" / "results" / "figure8.json"
    results = json.loads(published.read_text())
    (tmp_path / "results").mkdir()
    for picture in results["pictures"]:
        place = tmp_path / "results" / f"figure8-{picture['name']}.png"
        place.mkdir() if damage == "folder" else place.write_bytes(b"")
    if damage == "differs":
        del results["preset"]["differs"]
    if damage == "verdict":
        results["findings"][0]["verdict"] = "perhaps"
    (tmp_path / "results" / "figure8.json").write_text(json.dumps(results))
    assert read_page(tmp_path, "figure8") is None
