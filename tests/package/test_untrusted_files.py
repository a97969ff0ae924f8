"""No module hands a stranger's file to a reader that runs what is in it, or unpacks whatever it holds."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Readers that run code or programs, follow what a file says to other files, or unpack without a bound.
_MODULES = {"yaml", "xml", "tarfile", "zipfile", "h5py", "runpy", "code", "imageio", "cv2"}
_CALLS = {
    "eval", "exec", "__import__", "os.system", "os.popen", "shutil.unpack_archive", "gzip.decompress", "bz2.decompress",
    "lzma.decompress", "zlib.decompress", "torch.jit.load", "torch.hub.load", "np.memmap", "np.fromfile", "np.load",
    "numpy.load",
}  # fmt: skip


def unsafe(tree: ast.AST) -> list[str]:
    """What in a module's syntax tree opens files in a way that the package does not."""
    found = []
    for node in ast.walk(tree):
        what = None
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            what = next((m for m in modules if m.split(".")[0] in _MODULES or m == "scipy.io"), None)
        elif isinstance(node, ast.Call):
            called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called in _CALLS or called.endswith((".loadmat", ".extractall")):
                what = called
            elif called.lower().endswith(("image.open", "pillow.open", "pil.open")) and "formats" not in keywords:
                what = f"{called} without formats"
            elif keywords.get("shell") == "True" or keywords.get("allow_pickle", "False") != "False":
                what = ast.unparse(node)
        elif isinstance(node, ast.Assign) and any("MAX_IMAGE_PIXELS" in ast.unparse(t) for t in node.targets):
            what = ast.unparse(node)
        if what:
            found.append(f"line {node.lineno}: {what}")
    return found


def test_no_module_reads_a_stranger_s_file_unsafely():
    files = [file for folder in ("advfeat", "theory") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert ROOT / "advfeat" / "datasets" / "image_file.py" in files
    found = {str(f.relative_to(ROOT)): unsafe(ast.parse(f.read_text(encoding="utf-8"))) for f in files}
    assert not {name: what for name, what in found.items() if what}


@pytest.mark.parametrize(
    "line",
    [
        "Image.open(f)",
        "PIL.Image.open(f)",
        "eval(text)",
        "import yaml",
        "from xml.etree import ElementTree",
        "import scipy.io",
        "tar.extractall(path)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, mmap_mode='r')",
        "np.lib.format.read_array(f, allow_pickle=True)",
        "gzip.decompress(data)",
        "subprocess.run(text, shell=True)",
        "Image.MAX_IMAGE_PIXELS = None",
    ],
)
def test_unsafe_lines_are_found(line):
    assert unsafe(ast.parse(line))


def test_safe_lines_are_not():
    lines = "Image.open(f, formats=FORMATS)\nmodel.eval()\nopen(f)\nsubprocess.run(['git'])\nnp.savez(f)"
    assert not unsafe(ast.parse(lines))
