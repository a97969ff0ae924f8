"""The command line as tests call it."""

from __future__ import annotations

import pytest

from advfeat import cli


def run(*arguments: object) -> None:
    """``advfeat`` with these arguments."""
    cli.main([str(part) for part in arguments])


def fails(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 1) -> str:
    """What a command that ends with this exit status says on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == status
    return capsys.readouterr().err


def fails_in_a_line(capsys: pytest.CaptureFixture[str], *arguments: object, status: int = 1) -> str:
    """The same where it is one line, as errors are; a wrong command line (status 2) may have several."""
    lines = fails(capsys, *arguments, status=status).strip().splitlines()
    assert status == 2 or len(lines) == 1, lines
    return " ".join(lines)
