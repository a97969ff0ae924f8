"""Modules under the names that they had before: the same objects, with a warning, for one release."""

import subprocess
import sys

import pytest

from advfeat._moved import MOVED

# Reads a program a line, and runs each in a process that has imported torch, which takes long, and nothing of advfeat.
SERVER = """
import os, sys, torch
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(1, 2)
        exec(eval(line), {"__name__": "__main__"})
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("ENDED", os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def python():
    """A function that runs a program in a process of its own and returns what it wrote to stderr."""
    command = [sys.executable, "-W", "default", "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:

        def run(code: str) -> str:
            server.stdin.write(repr(code) + "\n")
            server.stdin.flush()
            said = []
            for line in server.stdout:
                if line.startswith("ENDED "):
                    assert line == "ENDED 0\n", "".join(said)
                    break
                said.append(line)
            else:
                pytest.fail("the process ended: " + "".join(said))
            return "".join(said)

        yield run
        server.stdin.close()


@pytest.mark.parametrize("old", [name for name in MOVED if name != "advfeat.datasets.build"])
def test_an_old_name_is_the_same_module(python, old):
    said = python(
        f"import importlib, {old} as old; new = importlib.import_module({MOVED[old]!r})\n"
        f"assert old is new and new.__spec__.name == {MOVED[old]!r} == new.__name__\n"
        f"assert importlib.import_module({old!r}) is new"
    )
    assert said.count(f"{old} is now {MOVED[old]}") == 1


@pytest.mark.parametrize(
    "first", ["", "import advfeat.datasets.build\n", "from advfeat import datasets; datasets.build\n"]
)
def test_the_function_that_builds_stays_one_under_the_old_name_of_its_module(python, first):
    said = python(
        first + "from advfeat.datasets.build import build as old\nfrom advfeat.datasets.building import build\n"
        "from advfeat import datasets\nassert old is build is datasets.build and callable(build)\n"
        "from advfeat.datasets import build as again\nassert again is build"
    )
    assert said.count("advfeat.datasets.build is now advfeat.datasets.building") == 1


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError, match="advfeat.nothing"):
        import advfeat.nothing  # noqa: F401
