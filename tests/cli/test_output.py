"""Printed output, and outputs that fail: results are kept whenever printing fails."""

import builtins
import io
import json
import os
import sys

import pytest
from rich.text import Text

from advfeat import cli
from advfeat.cli import ending
from advfeat.cli.console import bar, say, table
from advfeat.cli.output import stdout
from advfeat.models import create, save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = create("small-convnet", 10, (1, 8, 8), width=4)
    made.classes = tuple("0123456789")
    folder = tmp_path_factory.mktemp("model")
    save(made, folder)
    return folder


@pytest.fixture
def full(monkeypatch):
    """Standard output on a full disk."""
    with open("/dev/full", "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield stream


@pytest.fixture
def closed_pipe(monkeypatch):
    """Standard output into a pipe whose reader has gone, as after ``| head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        yield stream


@pytest.mark.parametrize("output", ["full", "closed_pipe"])
@pytest.mark.parametrize("command", ["evaluate", "attack", "features"])
def test_results_are_written_where_they_cannot_be_printed(command, output, model, tmp_path, capsys, request):
    out = tmp_path / ("r.json" if command == "evaluate" else "out")
    words = f"{command} --model {model} --limit 10 --eps 0.5 --steps 1 --out {out}"
    request.getfixturevalue(output)
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 1
    assert "could not be printed" in capsys.readouterr().err
    written = out if command == "evaluate" else out / f"{command if command == 'features' else 'attack'}.json"
    result = json.loads(written.read_text())
    assert result["model_fingerprint"] and result["data_fingerprint"]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_every_encoding_can_be_printed_in(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    table("a – b", ["→", "±"], [["\N{SNOWMAN}", "\udcff"], ["[bold]", Text("1.0 ± 0.1", "dim")]], "≈ ∞ [/x]")
    say("written to ", ("\udcff/[/x] 日本", "bold"))
    with bar("training [/x] –", "steps") as report:
        report(1, 2)
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)
    assert "[bold]" in shown and "[/x]" in shown and stdout.take_failure() is None


def test_markup_in_names_is_shown_as_it_is(capsys):
    say("a[red]b[/red]\x1b[31m\n")
    assert capsys.readouterr().out == "a[red]b[/red]\\x1b[31m\\n\n"


def test_without_a_standard_output_there_is_nothing_to_print_to(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    say("nothing")
    assert not stdout.isatty() and stdout.take_failure() is None


def test_a_mean_margin_that_is_none_or_infinite(capsys):
    from advfeat.cli.evaluate import _margin

    assert [_margin(value) for value in (None, float("inf"), float("nan"), 0.125)] == ["-", "-", "-", "0.12"]


def test_arguments_are_told_as_options():
    names = {"root": "--root", "batch_size": "--train-batch-size", "same_classes": "--same-classes"}
    for before, after in (
        ("root should be given", "--root should be given"),
        ("batch_size should be at least 1", "--train-batch-size should be at least 1"),
        ("it is not there: root=/a b", "it is not there: --root /a b"),
        ("same_classes=True (--same-classes) takes them", "--same-classes takes them"),
        ("/x/root=/y is a folder", "/x/root=/y is a folder"),
        ("roots should be", "roots should be"),
    ):
        assert ending.in_options(before, names) == after


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252"])
def test_the_help_can_be_printed_in_every_encoding(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    cli.main(["--help"])
    stream.flush()
    assert "evaluate" in stream.buffer.getvalue().decode(encoding) and stream.errors == "strict"


@pytest.mark.parametrize("output", ["full", "closed_pipe"])
def test_a_help_that_cannot_be_printed_is_a_sentence(output, capsys, request):
    request.getfixturevalue(output)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--help"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith("advfeat: the output could not be printed: ")


def test_an_interrupt_while_python_imports_the_command_shows_no_traceback(monkeypatch, capsys):
    def interrupted(name, *arguments, **settings):
        if name == "advfeat.cli" and arguments[2] == ("command_line",):
            raise KeyboardInterrupt
        return given(name, *arguments, **settings)

    given = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["info"])
    assert stopped.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
