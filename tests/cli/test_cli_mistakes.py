"""First mistakes on the command line: each gets one line that names the option, before any work is done."""

import json
import runpy
import sys
import warnings

import pytest
import torch
from PIL import Image
from support.commands import fails_in_a_line as fails
from torch import nn

import advfeat
from advfeat import cli, plots
from advfeat.cli import files, options
from advfeat.models import adapt, create, save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The run folder of a model of the digits, as far as the commands need it; not trained."""
    made = create("small-convnet", 10, (1, 8, 8), width=4)
    made.classes = tuple("0123456789")
    folder = tmp_path_factory.mktemp("model") / "[std]"
    save(made, folder)
    return folder


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("eps", value) for value in ("1e300", "nan", "inf", "-1", "-8/255")),
        *(("steps", value) for value in ("-1", "1" + "0" * 30)),
        *(("seed", value) for value in ("-1", str(2**70))),
        *(("limit", value) for value in ("-5", "0")),
        *(("size", value) for value in ("0", "1000000")),
        *(("batch-size", value) for value in ("0", "-3")),
        ("restarts", "0"),
        ("step-size", "nan"),
    ],
)
def test_a_number_that_cannot_be_names_its_option(model, capsys, option, value):
    message = fails(capsys, "evaluate", "--model", model, f"--{option}={value}")
    assert message.startswith(f"advfeat evaluate: --{option} should be ")


@pytest.mark.parametrize(
    "option", ["--epochs=0", "--lr=nan", "--lr=-1", "--lr=1e300", "--width=0", "--train-batch-size=0"]
)
def test_a_number_that_training_cannot_take_names_its_option(tmp_path, capsys, option):
    message = fails(capsys, "train", "--out", tmp_path / "run", option)
    assert message.startswith(f"advfeat train: {option.partition('=')[0]} should be ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("minutes", ["nan", "-1", "inf"])
def test_minutes_that_never_end_are_refused(tmp_path, capsys, minutes):
    message = fails(capsys, "reproduce", "table1", "--out", tmp_path / "r", f"--minutes={minutes}")
    assert message.startswith("advfeat reproduce: --minutes should be ")


def test_radii_are_taken_as_the_field_writes_them(model, tmp_path, capsys):
    out = tmp_path / "r.json"
    arguments = ("--limit", 10, "--steps", 1, "--out", out)
    cli.main([*map(str, ("evaluate", "--model", model, "--norm", "linf", "--eps", "8/255", ".03", "1e-2", *arguments))])
    assert [r["eps"] for r in json.loads(out.read_text())["robustness"]] == [8 / 255, 0.03, 0.01]
    assert "linf 8/255" in capsys.readouterr().out
    for wrong in ("8/0", "5%", "8/", "eps", "8/255/2"):
        assert "8/255" in fails(capsys, "evaluate", "--model", model, "--eps", wrong, status=2)
    assert "is 8/255 meant?" in fails(capsys, "evaluate", "--model", model, "--norm", "linf", "--eps", "8")
    assert "0.5 twice" in fails(capsys, "evaluate", "--model", model, "--eps", "0.5", "0.50")


def test_radii_are_those_of_the_norm_where_none_are_given():
    assert options.radii("--eps", None, advfeat.Linf, 8 / 255) == 8 / 255
    assert options.radii("--eps", None, advfeat.L2, (0.25, 0.5)) == (0.25, 0.5)
    assert options.radii("--eps", (), advfeat.L2, 0.5) == ()
    assert options.radii("--eps", 0.0, advfeat.L2, 0.5) == 0.0
    assert [advfeat.Linf.write_radius(e) for e in (8 / 255, 0.3, 1 / 2550)] == ["8/255", "0.3", "0.000392157"]
    assert advfeat.L2.write_radius(0.5) == "0.5"


def test_no_steps_are_no_steps(model, tmp_path, capsys):
    out = tmp_path / "r.json"
    evaluate = (
        "evaluate",
        "--model",
        model,
        "--attack",
        "pgd",
        "--limit",
        10,
        "--eps",
        0.5,
        "--steps",
        0,
        "--out",
        out,
    )
    cli.main([*map(str, evaluate)])
    assert json.loads(out.read_text())["robustness"][0]["attack"]["steps"] == 0


@pytest.mark.parametrize("command", ["evaluate", "attack", "features", "build"])
@pytest.mark.parametrize(("device", "what"), [("gpu", "cpu, cuda or cuda:NUMBER"), ("meta", "cpu"), ("cuda:99", "GPU")])
def test_a_device_that_is_not_there(model, tmp_path, capsys, command, device, what):
    arguments = ["build", "det"] if command == "build" else [command]
    message = fails(capsys, *arguments, "--model", model, "--out", tmp_path / "x", "--device", device)
    assert "--device" in message and what in message


def test_places_that_cannot_be_written_are_found_before_the_work(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(files, "load", lambda _: pytest.fail("the model was loaded first"))
    (tmp_path / "file").write_text("")
    for command, out, what in (
        (["evaluate"], tmp_path, "should be a file, got a folder"),
        (["evaluate"], "/dev/null", "should be a file, got a device"),
        (["evaluate"], tmp_path / "file" / "r.json", "cannot be written"),
        (["evaluate"], model / "model.json", "part of a run"),
        (["attack"], tmp_path / "file", "should be a folder"),
        (["features"], tmp_path / "file", "should be a folder"),
        (["build", "det"], tmp_path / "file", "should be a folder"),
    ):
        assert what in fails(capsys, *command, "--model", model, "--out", out)


def test_a_home_is_found_after_the_equals_sign(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cli.main(["evaluate", f"--model={model}", "--limit=10", "--eps=0.5", "--steps=1", "--out=~/r.json"])
    assert {path.name for path in tmp_path.iterdir()} == {"r.json", "r.samples.jsonl"}
    assert "no such user" in fails(capsys, "evaluate", "--model=~nobody-of-this-name/x")
    assert "zero byte" in fails(capsys, "evaluate", "--model=a\0b")


def test_commands_and_experiments_that_were_meant(capsys):
    assert "did you mean evaluate?" in fails(capsys, "evalute", "--model", "x", status=2)
    assert "did you mean figure2?" in fails(capsys, "reproduce", "fig2")
    assert "did you mean digits?" in fails(capsys, "train", "--out", "unused", "--dataset", "digit")


def test_the_version_and_the_module(capsys, monkeypatch):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"advfeat {advfeat.__version__}\n"
    monkeypatch.setattr(sys, "argv", ["advfeat", "--version"])
    runpy.run_module("advfeat", run_name="__main__")
    assert advfeat.__version__ in capsys.readouterr().out


def test_a_shell_completes(capsys):
    cli.main(["--completion", "bash"])
    assert "complete -F" in capsys.readouterr().out


def test_messages_speak_of_options(tmp_path, capsys):
    message = fails(capsys, "train", "--out", tmp_path / "x", "--dataset", "cifar10")
    assert message.startswith("advfeat train: --root should be the folder with the data set 'cifar10', got None")
    message = fails(capsys, "train", "--out", tmp_path / "x", "--dataset", "folder", "--root", tmp_path / "none")
    assert f"--root should be the folder with the data set 'folder', got {tmp_path / 'none'}, which is not" in message
    folder = ("--dataset", "folder", "--root", tmp_path, "--holdout", 2)
    assert "--holdout should be in (0, 1)" in fails(capsys, "train", "--out", tmp_path / "x", *folder)


def test_what_is_no_run_folder_is_said(tmp_path, capsys):
    adapted = adapt(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), num_classes=10, input_shape=(1, 8, 8))
    save(adapted, tmp_path / "own")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text("{}")
    (tmp_path / "weights.pt").write_bytes(b"")
    for command in (["evaluate"], ["attack"], ["features"], ["build", "det"]):
        for name, what in (("own", "in Python"), ("set", "constructed set"), ("weights.pt", "adapt"), ("no", "no")):
            assert what in fails(capsys, *command, "--model", tmp_path / name, "--out", tmp_path / "x")
    cli.main(["info", str(tmp_path / "own")])
    assert "650 parameters" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["attack", "features"])
def test_classes_of_any_name_are_drawn(tmp_path, capsys, command):
    names = ["$\\frac$", "[/red]", "日本", "\N{NAZAR AMULET}", "مرحبا", "x" * 200, "a_{b", "\\", "50 %", "$"]
    model = create("small-convnet", 10, (3, 8, 8), width=4)
    model.classes = tuple(name.replace("/", ":") for name in names)
    save(model, tmp_path / "$\\model$")
    for name in model.classes:
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (40, 80, 160)).save(tmp_path / "test" / name / "a.png")
    data = ("--dataset", "folder", "--root", tmp_path, "--model", tmp_path / "$\\model$", "--same-classes")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cli.main([*map(str, (command, *data, "--eps", 3, "--steps", 1, "--out", tmp_path / "out"))])
    assert capsys.readouterr().err == ""
    assert any(path.suffix == ".png" for path in (tmp_path / "out").iterdir())


def test_text_in_pictures_is_on_one_line_and_in_the_font():
    assert plots.label("a\n b\x1b") == "a b\N{WHITE SQUARE}"
    assert plots.label("\N{NAZAR AMULET} \udcff é $x$") == "\N{WHITE SQUARE} \N{WHITE SQUARE} é $x$"
    assert plots.label("x" * 50, 10) == "x" * 9 + "…"


def test_memory_that_is_not_there_is_told_with_what_needs_less(model, capsys, monkeypatch):
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(files, "load", fail)
        assert "less is needed with smaller values of --batch-size, --limit" in fails(
            capsys, "evaluate", "--model", model
        )


def test_an_interrupted_command_says_how_it_goes_on(model, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "load", interrupt)
    assert "starts again" in fails(capsys, "evaluate", "--model", model, status=130)
    assert "resumes" in fails(capsys, "build", "det", "--model", model, "--out", "unused", status=130)
