"""Modules under the names that they had before: the same objects, with a warning, for one release."""

import subprocess
import sys

import pytest

from advfeat._moved import MOVED


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "default", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("old", [name for name in MOVED if name != "advfeat.datasets.build"])
def test_an_old_name_is_the_same_module(old):
    said = _python(
        f"import importlib, {old} as old; new = importlib.import_module({MOVED[old]!r})\n"
        f"assert old is new and new.__spec__.name == {MOVED[old]!r} == new.__name__\n"
        f"assert importlib.import_module({old!r}) is new"
    )
    assert said.count(f"{old} is now {MOVED[old]}") == 1


@pytest.mark.parametrize(
    "first", ["", "import advfeat.datasets.build\n", "from advfeat import datasets; datasets.build\n"]
)
def test_the_function_that_builds_stays_one_under_the_old_name_of_its_module(first):
    said = _python(
        first + "from advfeat.datasets.build import build as old\nfrom advfeat.datasets.building import build\n"
        "from advfeat import datasets\nassert old is build is datasets.build and callable(build)\n"
        "from advfeat.datasets import build as again\nassert again is build"
    )
    assert said.count("advfeat.datasets.build is now advfeat.datasets.building") == 1


def test_names_that_never_were_are_not_found():
    with pytest.raises(ModuleNotFoundError, match="advfeat.nothing"):
        import advfeat.nothing  # noqa: F401
