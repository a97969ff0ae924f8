"""The build's decisions, what build_config() says, and what an import may and may not pull in."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import advfeat
from advfeat._build_info import build_config

ROOT = Path(__file__).resolve().parents[2]


def _load_torch_build():
    spec = importlib.util.spec_from_file_location("torch_build", ROOT / "build_support" / "torch_build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["torch_build"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


torch_build = _load_torch_build()


def python(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )


def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


# --- versions ---


def test_the_version_is_written_once_and_the_same_everywhere():
    written = re.fullmatch(r'.*__version__ = "([\d.]+\w*)"\n', (ROOT / "advfeat/_version.py").read_text(), re.DOTALL)[1]
    assert build_config()["version"] == written
    assert importlib.metadata.version("advfeat") == written
    assert project()["project"]["dynamic"] == ["version"] and "version" not in project()["project"]
    assert not re.search(r"\bversion\s*=", (ROOT / "setup.py").read_text())


def test_minimum_versions_agree():
    dependencies = project()["project"]["dependencies"]
    minimum = ".".join(map(str, torch_build.MINIMUM_TORCH))
    assert f"torch>={minimum}" in dependencies
    target = int(torch_build.STABLE_ABI_TARGET, 16)
    assert (target >> 56, (target >> 48) & 0xFF) == torch_build.MINIMUM_TORCH
    setuptools = ".".join(map(str, torch_build.MINIMUM_SETUPTOOLS))
    assert f"setuptools>={setuptools}" in project()["build-system"]["requires"]
    assert not any(r.startswith("torch") for r in project()["build-system"]["requires"])
    # An index's torchvision replaces, or does not fit, the torch of a user who has a CPU build.
    assert not any(d.startswith("torchvision") for d in dependencies)


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117", "0.4"])
def test_an_old_torch_is_refused(version):
    with pytest.raises(ValueError, match=rf"torch should be 2\.10 or later, got {re.escape(version)}"):
        torch_build.check_torch_version(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.14.1+cu130", "3.0.0a0+git1234"])
def test_a_new_torch_is_taken(version):
    torch_build.check_torch_version(version)


# --- build_config ---


def test_build_config_tells_what_was_built():
    config = build_config()
    assert "error" not in config, config
    assert Path(config["extension"]).exists() and Path(config["extension"]).parent == Path(advfeat.__file__).parent
    assert config["torch_running"] == torch.__version__
    torch_build.check_torch_version(config["torch"])
    assert config["stable_abi"] == "2.10"
    assert re.match(r"(gcc|clang) \d+", config["compiler"])
    assert config["cxx_standard"] >= 201703 and isinstance(config["cxx11_abi"], bool)
    assert config["python_abi"] == f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert config["build_type"] in ("Release", "RelWithDebInfo", "Debug", "MinSizeRel")
    assert config["simd_level"] in config["simd_levels"] and "default" in config["simd_levels"]
    assert isinstance(config["cuda"], bool) and config["cuda_reason"]
    assert config["cuda"] == bool(config["cuda_version"]) == bool(config["cuda_architectures"])
    assert json.loads(json.dumps(config)) == config


@pytest.mark.slow
def test_the_simd_level_can_be_lowered_and_a_wrong_one_is_named():
    code = "from advfeat._build_info import build_config as c; print(c()['simd_level'])"
    result = python(code, ADVFEAT_SIMD="default")
    assert result.stdout.strip() == "default", result.stderr
    result = python("import torch; from advfeat import _C; _C.build_config()", ADVFEAT_SIMD="sse9")
    assert result.returncode != 0
    assert "ADVFEAT_SIMD should be one of default" in result.stderr and "got sse9" in result.stderr


@pytest.mark.slow
def test_build_config_answers_without_an_extension():
    code = """
import sys
sys.modules["advfeat._C"] = None
from advfeat._build_info import build_config
config = build_config()
assert config["extension"] is None and "_C" in config["error"], config
assert config["version"] and config["torch_running"]
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


# --- imports ---


@pytest.mark.slow
def test_everything_is_imported_when_it_is_asked_for():
    code = """
import sys
import advfeat
assert "torch" not in sys.modules
names = set(advfeat.__all__) | {"models", "compat"}
assert names <= set(dir(advfeat))
assert all(getattr(advfeat, name) is getattr(advfeat, name) for name in names)
from advfeat import *
assert PGD is advfeat.attacks.PGD and ops is advfeat.ops
assert not hasattr(advfeat, "nothing")
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_ops_and_attacks_import_torch_alone():
    code = """
import sys
blocked = ["torchvision", "scipy", "sklearn", "matplotlib", "rich", "tyro", "jinja2", "safetensors", "PIL"]
for name in blocked:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
import torch
import advfeat, advfeat.ops, advfeat.attacks
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
x, target = torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0])
attack = advfeat.PGD(advfeat.L2(0.5), steps=2, step_size=0.25)
assert (attack(model, x, target) - x).flatten(1).norm(dim=1).min() > 0
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_theory_is_installed_inside_advfeat_only(tmp_path):
    code = """
import importlib.util
import advfeat.theory
assert importlib.util.find_spec("theory") is None, importlib.util.find_spec("theory")
"""
    result = python(code, cwd=tmp_path)  # from the repository's root, theory/ itself would be found
    assert result.returncode == 0, result.stderr


def python_files() -> list[Path]:
    folders = ["advfeat", "theory", "tests", "benchmarks", "build_support", ".ci"]
    return [ROOT / "setup.py"] + [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def unpickling(tree: ast.AST) -> list[str]:
    """What in a module's syntax tree can run code from a file that it loads.

    Tests may write pickles, to show that they are refused, and code may catch UnpicklingError.
    """
    found = []
    libraries = {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
    pickles, harmless = {"pickle", "_pickle", "cPickle"}, {"dump", "dumps", "UnpicklingError"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in libraries or (name.name in pickles and name.asname):
                    found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.ImportFrom):
            names = {name.name for name in node.names}
            if (node.module or "").split(".")[0] in libraries or (node.module in pickles and names - harmless):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Attribute):
            if ast.unparse(node.value) in pickles and node.attr not in harmless:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False":
                found.append(f"line {node.lineno}: {called} with allow_pickle")
            if called.endswith(".read_pickle"):
                found.append(f"line {node.lineno}: {called}")
    return found


@pytest.mark.slow
def test_nothing_is_ever_unpickled():
    files = python_files()
    assert ROOT / "advfeat" / "ops.py" in files
    found = {str(f.relative_to(ROOT)): unpickling(ast.parse(f.read_text(encoding="utf-8"))) for f in files}
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle; pickle.load(f)",
        "import pickle; class_ = pickle.Unpickler",
        "import pickle as p",
        "from pickle import dumps, loads",
        "from joblib import load",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "pandas.read_pickle(f)",
    ],
)
def test_the_search_for_unpickling_finds_it(code):
    assert unpickling(ast.parse(code))
    assert not unpickling(ast.parse("import pickle, pickletools; pickle.dumps(x); torch.load(f, weights_only=True)"))


# --- what is compiled ---


def test_cuda_sources_are_included_exactly_when_cuda_is_chosen():
    cpu, cuda = torch_build.source_files(False), torch_build.source_files(True)
    kernels = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.cu")}
    assert kernels and set(cuda) - set(cpu) == kernels
    assert {"csrc/ops/l2_step.cpp", "csrc/core/check.cpp", "csrc/module.cpp"} <= set(cpu) <= set(cuda)
    all_sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".cu")}
    assert set(cuda) == all_sources, "a source that no build compiles"


def test_no_two_sources_of_one_folder_share_a_stem():
    objects = [str(Path(source).with_suffix(".o")) for source in torch_build.source_files(True)]
    assert len(objects) == len(set(objects)), "x.cpp and x.cu collide in ninja"


def test_flags():
    args = torch_build.Plan("2.14.1", True, "why", include_dirs=["/t"]).compile_args()
    assert "-DUSE_CUDA" in args["nvcc"] and "-DUSE_CUDA" not in args["cxx"]
    assert '-DADVFEAT_CUDA_REASON="why"' in args["cxx"]
    for flags in args.values():
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in flags
        # torch adds a standard of its own where none is given: 2.11 an older one. A second -std breaks nvcc.
        assert [f for f in flags if "std=" in f] == ["-std=c++20"]
        # Fast-math breaks exactness, and the sources choose the instruction set themselves.
        assert not [f for f in flags if "fast-math" in f or "march" in f]
        # torch sets no architectures where it sees this word in a flag.
        assert not [f for f in flags if "arch" in f]
    assert "nvcc" not in torch_build.Plan("2.14.1", False, "why").compile_args()


@pytest.mark.parametrize(
    "torch_cuda, toolkit, force, chosen, why",
    [
        ("13.0", "13.0", None, True, "torch for CUDA 13.0 and toolkit 13.0"),
        ("13.0", "13.2", "", True, "toolkit 13.2"),
        ("13.0", "13.0", "1", True, "torch for CUDA 13.0"),
        ("13.0", "13.0", "0", False, "FORCE_CUDA=0"),
        ("13.0", None, None, False, "no CUDA toolkit was found"),
        ("13.0", "12.8", None, False, "the toolkit is CUDA 12.8, this torch is built for CUDA 13.0"),
        (None, "13.0", None, False, "this torch was built without CUDA"),
    ],
)
def test_choice_of_cuda(torch_cuda, toolkit, force, chosen, why):
    cuda, reason = torch_build.choose_cuda(torch_cuda, toolkit, force)
    assert cuda is chosen and why in reason


@pytest.mark.parametrize("torch_cuda, toolkit", [(None, "13.0"), ("13.0", None), ("13.0", "12.8")])
def test_forced_cuda_that_cannot_be_built_is_an_error(torch_cuda, toolkit):
    with pytest.raises(ValueError, match="FORCE_CUDA=1 asks for CUDA kernels, but"):
        torch_build.choose_cuda(torch_cuda, toolkit, "1")


def test_force_cuda_is_0_or_1():
    with pytest.raises(ValueError, match="FORCE_CUDA should be 0 or 1, got 'yes'"):
        torch_build.choose_cuda("13.0", "13.0", "yes")


@pytest.mark.parametrize(
    "requested, supported, expected",
    [
        (None, ["7.5", "8.0", "8.6", "9.0", "10.0", "12.0"], "7.5;8.0;9.0+PTX"),
        ("", ["7.5", "8.0", "9.0"], "7.5;8.0;9.0+PTX"),
        ("8.6 9.0a", ["7.5", "8.0", "9.0"], "8.6 9.0a"),  # the user's own word, as it is
        (None, ["5.0", "7.0", "7.5", "8.0"], "7.5;8.0+PTX"),  # an nvcc before Hopper
        (None, ["8.0", "9.0", "10.0"], "8.0;9.0+PTX"),  # one that has dropped Turing
        (None, ["10.0", "12.0"], "10.0+PTX"),  # one that has dropped them all
    ],
)
def test_architectures(requested, supported, expected):
    assert torch_build.architectures(requested, supported) == expected


def test_architectures_need_one():
    with pytest.raises(ValueError, match="should name an architecture, got none"):
        torch_build.architectures(None, [])


def test_architectures_as_cmake_spells_them():
    assert torch_build._cmake_architectures("7.5;9.0a 10.0+PTX") == ["75-real", "90a-real", "100"]
    assert torch_build._cmake_architectures("") == []
    with pytest.raises(ValueError, match="should be numbers .* got Hopper"):
        torch_build._cmake_architectures("Hopper")


# --- finding the toolkit ---


def make_nvcc(file: Path, script: str = "") -> None:
    file.parent.mkdir(parents=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def make_toolkit(folder: Path, include: str = "include") -> Path:
    make_nvcc(folder / "bin" / "nvcc", f"echo '#$ TOP={folder}/bin/..' >&2")
    (folder / include).mkdir(parents=True)
    (folder / include / "cuda_runtime.h").touch()
    return folder


@pytest.mark.parametrize("include", ["include", "targets/x86_64-linux/include"])
def test_toolkit_of_an_nvcc_on_the_path(tmp_path, include):
    toolkit = make_toolkit(tmp_path / "cuda", include)
    assert torch_build.find_toolkit({"PATH": f"{toolkit}/bin:/usr/bin:/bin"}) == str(toolkit)


def test_toolkit_behind_a_wrapper_script(tmp_path):
    toolkit = make_toolkit(tmp_path / "opt" / "cuda")
    make_nvcc(tmp_path / "local" / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    (tmp_path / "local" / "include").mkdir()
    assert torch_build.find_toolkit({"PATH": f"{tmp_path}/local/bin:/usr/bin:/bin"}) == str(toolkit)


def test_toolkit_behind_a_link(tmp_path):
    toolkit = make_toolkit(tmp_path / "opt" / "cuda")
    (toolkit / "bin" / "nvcc").write_text("#!/bin/sh\n")  # one that does not tell
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(toolkit / "bin" / "nvcc")
    assert torch_build.find_toolkit({"PATH": f"{tmp_path}/bin"}) == str(toolkit)


def test_cuda_home_goes_first_and_a_wrong_one_is_named(tmp_path):
    mine, other = make_toolkit(tmp_path / "mine"), make_toolkit(tmp_path / "other")
    assert torch_build.find_toolkit({"CUDA_HOME": str(mine), "PATH": f"{other}/bin:/bin"}) == str(mine)
    with pytest.raises(ValueError, match=r"CUDA_PATH should be a CUDA toolkit .*, got .*/nowhere"):
        torch_build.find_toolkit({"CUDA_PATH": str(tmp_path / "nowhere"), "PATH": f"{other}/bin:/bin"})


# --- without torch ---


def test_the_message_without_torch_is_three_lines():
    code = "import torch_build; torch_build.require_torch()"
    result = subprocess.run(  # -S: no site-packages
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT / "build_support"), "PATH": os.environ["PATH"]},
    )
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert len(lines) == 3, result.stderr
    assert "PyTorch" in lines[0] and "pip install" in lines[1] and "--no-build-isolation" in lines[2]


def test_an_old_setuptools_is_named():
    torch_build.require_setuptools("84.2.1")
    with pytest.raises(SystemExit, match=r"setuptools should be 77\.0 or later, got 65\.5\.0"):
        torch_build.require_setuptools("65.5.0")
