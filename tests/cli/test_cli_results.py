"""Results of commands: names of their own, places looked at first, tables that a full disk does not lose."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import matplotlib
import pytest
import torch
from support.commands import fails, run

from advfeat import provenance
from advfeat.cli import attack, features, files
from advfeat.datasets import sources
from advfeat.models import create, save
from advfeat.plots import sample_grid


@pytest.fixture
def model(tmp_path):
    """The run folder of a model of the digits; not trained."""
    made = create("small-convnet", 10, (1, 8, 8), width=4)
    made.classes = tuple("0123456789")
    save(made, tmp_path / "model")
    return tmp_path / "model"


QUICK = {
    "evaluate": ("--eps", "0.1", "--attack", "pgd", "--steps", "1", "--limit", "20"),
    "attack": ("--eps", "0.1", "--steps", "1", "--limit", "20"),
    "features": ("--eps", "0.1", "--steps", "1", "--limit", "20"),
}


def test_results_whose_names_end_in_numbers_have_samples_of_their_own(model, tmp_path, capsys):
    for name in ("l2-0.25", "l2-0.5", "r.json"):
        run("evaluate", "--model", model, *QUICK["evaluate"], "--out", tmp_path / name)
        result = json.loads((tmp_path / name).read_text())
        assert result["samples"] == f"{name.removesuffix('.json')}.samples.jsonl"
        samples = (tmp_path / result["samples"]).read_bytes()
        assert result["samples_sha256"] == hashlib.sha256(samples).hexdigest()
    assert len(list(tmp_path.glob("*.samples.jsonl"))) == 3


@pytest.mark.parametrize(
    "name", ["shard-00000.safetensors", "checkpoint-00003.safetensors", "advfeat-classes.json", "features.json"]
)
def test_a_part_of_a_set_is_not_replaced_by_a_result(model, tmp_path, capsys, name):
    (tmp_path / name).write_text("kept")
    (tmp_path / "link.json").symlink_to(tmp_path / name)
    for out in (tmp_path / name, tmp_path / "link.json"):
        message = fails(capsys, "evaluate", "--model", model, *QUICK["evaluate"], "--out", out)
        assert "--out should be a file of its own" in message
    assert (tmp_path / name).read_text() == "kept"


@pytest.mark.parametrize(
    ("command", "name"), [("attack", "samples.png"), ("attack", "attack.json"), ("features", "features.json")]
)
def test_a_result_that_cannot_be_written_is_said_before_the_work(model, tmp_path, capsys, monkeypatch, command, name):
    out = tmp_path / "out"
    (out / name).mkdir(parents=True)
    for module in (attack, features):
        monkeypatch.setattr(module, "load_model", lambda _: pytest.fail("the work had begun"))
    assert f"{name} should be a file, got a folder" in fails(
        capsys, command, "--model", model, *QUICK[command], "--out", out
    )


@pytest.mark.parametrize(("command", "shown"), [("evaluate", "clean"), ("attack", "%"), ("features", "rho")])
def test_a_disk_that_fills_up_does_not_lose_what_can_be_shown(model, tmp_path, capsys, monkeypatch, command, shown):
    def full(files):
        raise OSError(errno.ENOSPC, f"could not write {files[0][0]}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(files, "write_together", full)
    with pytest.raises(SystemExit) as stopped:
        run(command, "--model", model, *QUICK[command], "--out", tmp_path / "out")
    told = capsys.readouterr()
    assert stopped.value.code == 1 and shown in told.out and "written to" not in told.out
    assert "could not write" in told.err and "the disk is full" in told.err and "printed" not in told.err


def test_features_of_one_class_are_refused_before_the_attacks(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features, "attacked_ranges", lambda *_, **__: pytest.fail("the attacks had begun"))
    real = sources.load

    def one_class(*args, **options):
        source = real(*args, **options)
        source.labels = torch.zeros_like(source.labels)
        return source

    monkeypatch.setattr(sources, "load", one_class)
    message = fails(capsys, "features", "--model", model, *QUICK["features"])
    assert "should hold at least two classes, got [0]" in message


def test_options_that_would_do_nothing_are_refused(tmp_path, capsys):
    for option, value in (("--attack-steps", 50), ("--attack-step-size", 0.1), ("--eps", 0.5)):
        message = fails(capsys, "train", "--out", tmp_path / "x", option, value)
        assert f"{option} needs --adversarial l2, linf or l1" in message
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["train", "build", "evaluate", "attack", "features", "theory", "demo"])
def test_an_empty_path_is_not_the_current_folder(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = ["det"] if command == "build" else []
    fails(
        capsys,
        command,
        *recipe,
        "--out",
        "",
        *(["--model", "x"] if command not in ("train", "theory", "demo") else []),
        status=2,
    )
    assert not list(tmp_path.iterdir())


def test_what_is_done_may_lie_where_nothing_can_be_written(tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    quick = ("--dataset", "digits", "--limit", "40", "--epochs", "1", "--width", "4")
    run("train", "--out", out, *quick)
    monkeypatch.setattr(files, "check_writable_folder", lambda _: pytest.fail("looked at"))
    run("train", "--out", out, *quick)
    assert capsys.readouterr().out.count("test accuracy on digits") == 2
    for name in ("metrics.jsonl", "checkpoint.json"):
        (out / name).unlink()
    run("train", "--out", out, *quick)
    assert "already holds a trained model" in capsys.readouterr().out


def test_a_damaged_config_is_named(model, capsys):
    (model / "config.json").write_text('{"a": ')
    assert "config.json" in fails(capsys, "info", model)


def test_a_shell_without_completion_is_said(capsys):
    for shell in (["foo"], [], ["bash", "extra"]):
        assert "--completion should be bash, zsh or tcsh, got " in fails(capsys, "--completion", *shell)


def test_help_in_a_narrow_terminal_comes_to_an_end():
    done = subprocess.run(
        [sys.executable, "-m", "advfeat", "train", "--help"],
        env=os.environ | {"COLUMNS": "3"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "--epochs" in done.stdout


def test_pictures_do_not_depend_on_the_users_style(monkeypatch):
    """With LaTeX the names of classes would be carried out as its program, and without it nothing would be drawn."""
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = sample_grid([("a", images)], ["$x$", "b"], ("c", images))
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30}):
        assert sample_grid([("a", images)], ["$x$", "b"], ("c", images)) == wanted
        assert matplotlib.rcParams["font.size"] == 30


def test_git_is_not_asked_about_a_strangers_repository(tmp_path, monkeypatch):
    package = tmp_path / "venv" / "site-packages" / "advfeat"
    package.mkdir(parents=True)
    (package / "provenance.py").touch()
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    monkeypatch.setattr(provenance.subprocess, "run", lambda *_, **__: pytest.fail("git was asked"))
    assert provenance.git_revision() is None


def test_a_name_tells_the_terminal_nothing(capsys):
    from advfeat.cli import ending

    with pytest.raises(SystemExit), ending.in_order("advfeat"):
        raise ValueError("class '\x1b]0;owned\x07\u202e\u009b2J caf\u00e9 \udcff' is missing")
    told = capsys.readouterr().err
    assert told == "advfeat: class '\\x1b]0;owned\\x07\\u202e\\x9b2J caf\u00e9 \\udcff' is missing\n"
