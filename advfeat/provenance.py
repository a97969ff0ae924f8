"""What a result was made with: versions, revision, device."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from advfeat._version import __version__


def provenance(device: torch.device | str = "cpu") -> dict:
    """What a result was made with: versions, git revision (None outside a checkout), device and threads."""
    device = torch.device(device)
    return {
        "versions": {"advfeat": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "git": git_revision(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def git_revision() -> dict | None:
    """The commit that this package's code is at, and whether files differ from it; None where that is not known.

    Only a checkout of this project counts, which has its repository beside the package, and only if it tracks this very
    file: a virtual environment often lies inside another repository. Git is not asked there, for what it is told by the
    settings of a stranger's repository may be a program.
    """
    here = Path(__file__).resolve()
    if not (here.parents[1] / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(here.parent), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
