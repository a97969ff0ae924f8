"""Hypothesis profiles, markers and fixtures shared by all tests.

Random numbers start from a seed of each test's own, of its name and ADVFEAT_TEST_SEED (default 0): a test does not
depend on those before it, and one that passes by its seed alone is found with other ones.
HYPOTHESIS_PROFILE=ci (the default: the same examples every time), check (the first ten of them at most, which make
check takes) or thorough (many more, random).
ADVFEAT_DATA=DIR with CIFAR-10, Fashion-MNIST or MNIST in torchvision's layout turns on the tests on real data.
"""

from __future__ import annotations

import collections
import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

_relaxed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("ci", derandomize=True, max_examples=40, **_relaxed)
settings.register_profile("check", derandomize=True, max_examples=10, **_relaxed)
settings.register_profile("thorough", max_examples=1000, **_relaxed)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

# Taken out of the environment, from which the commands read their default for --root: a test that leaves --root out
# gets the same message with the data at hand and without, and never trains on them.
REAL_DATA = os.environ.pop("ADVFEAT_DATA", None)

# The tests' tensors are small: two threads would wait for each other, on a busy machine ten times longer than they
# work.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also run the tests marked thorough (minutes each)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: needs a CUDA device and an extension built for it")
    config.addinivalue_line(
        "markers", "compare: compares with a third-party package, skipped where it is not installed"
    )
    config.addinivalue_line(
        "markers", "emulated: runs CUDA kernels on the CPU (tests/emulator), which compiles them first"
    )
    config.addinivalue_line("markers", "slow: takes more than 5 s, with all its parameters; make check leaves it out")
    config.addinivalue_line("markers", "thorough: takes minutes; runs with --thorough or HYPOTHESIS_PROFILE=thorough")


def is_thorough(config: pytest.Config) -> bool:
    return config.getoption("--thorough") or PROFILE == "thorough"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # An item that takes a parameter for it runs there under some parameters only.
        on_cuda = getattr(item, "callspec", None) is not None and item.callspec.params.get("device") == "cuda"
        if "emulator" in item.fixturenames or ("device" in item.fixturenames and not on_cuda):
            item.add_marker(pytest.mark.emulated)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("thorough") and not is_thorough(config):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --thorough"))
    # Files are handed out in this order: those of the longest tests first, so that no process is left alone with one.
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    name = request.node.nodeid.rpartition("/")[2]  # a test that moves to another folder keeps its numbers
    seed = zlib.crc32(f"tests/{name} {os.environ.get('ADVFEAT_TEST_SEED', 0)}".encode())
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the real data sets; skips where there is none."""
    if not REAL_DATA:
        pytest.skip("ADVFEAT_DATA is not set: no real data sets here")
    if not Path(REAL_DATA).is_dir():
        pytest.skip(f"ADVFEAT_DATA={REAL_DATA} is not a folder")
    return Path(REAL_DATA)


@pytest.fixture
def tiny(monkeypatch):
    """The preset "digits" of the command line is a tiny one."""
    from support.tiny_preset import tiny_preset

    from advfeat.experiments import presets

    preset = tiny_preset()
    monkeypatch.setitem(presets._PRESETS, "digits", lambda: preset)
    return preset


@pytest.fixture(scope="session")
def emulator(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """The CUDA kernels on the CPU: compiled in half a minute, and again only after a change."""
    from emulator.emulated_cuda import load

    try:
        folder = request.config.cache.mkdir("emulated_cuda")
    except (AttributeError, OSError):  # pytest without a cache, or one that cannot be written
        folder = tmp_path_factory.mktemp("emulated_cuda")
    return load(folder)


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.cuda), "emulated"])
def device(request: pytest.FixtureRequest):
    """A CUDA device, then its emulation on the CPU."""
    from support.cuda_devices import CudaDevice, EmulatedDevice

    if request.param == "cuda":
        return CudaDevice()
    return EmulatedDevice(request.getfixturevalue("emulator"), is_thorough(request.config))


@pytest.fixture
def threads():
    """A function that sets the number of torch threads; put back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
