"""The build backend: setuptools', with the torch of the environment that is being installed into in sight.

In an isolated build pip makes a fresh environment of the build requirements. Were torch one of them, pip would fetch
another than the user's, gigabytes of it, and compile against the wrong one. So torch is no build requirement: the
user's own site-packages are added behind the isolated ones (setuptools, pybind11 and ninja still come from these), and
without a torch there the build ends with three lines.
"""

import importlib.util
import site
import sys

import setuptools
from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the source distribution needs no torch)
from torch_build import require_setuptools, require_torch


def _see_torch():
    if importlib.util.find_spec("torch") is None:
        folders = site.getsitepackages()
        if sys.base_prefix in site.PREFIXES:  # no virtual environment, or one that sees the system's packages
            folders = [site.getusersitepackages(), *folders]
        for folder in folders:
            site.addsitedir(folder)  # at the end of sys.path, with its .pth files, as Python itself would
    require_torch()
    require_setuptools(setuptools.__version__)


def _with_torch(hook):
    def run(*args, **kwargs):
        _see_torch()
        return hook(*args, **kwargs)

    return run


# Without isolation the metadata come first, with it the requirements: a missing torch is said before anything else.
get_requires_for_build_wheel = _with_torch(build_meta.get_requires_for_build_wheel)
get_requires_for_build_editable = _with_torch(build_meta.get_requires_for_build_editable)
prepare_metadata_for_build_wheel = _with_torch(build_meta.prepare_metadata_for_build_wheel)
prepare_metadata_for_build_editable = _with_torch(build_meta.prepare_metadata_for_build_editable)
build_wheel = _with_torch(build_meta.build_wheel)
build_editable = _with_torch(build_meta.build_editable)
