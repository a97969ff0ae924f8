"""The provenance of a result: versions, revision, device."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from advfeat._version import __version__


def provenance(device: torch.device | str = "cpu") -> dict:
    """The versions, the git revision (None outside a checkout), the device and the number of threads.

    Args:
        device: the device on which the result was computed.

    Returns:
        JSON values by name.
    """
    device = torch.device(device)
    return {
        "versions": {"advfeat": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "git": git_revision(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def git_revision() -> dict | None:
    """The commit of this package's code, and whether files differ from it.

    Only a checkout of this project counts: one whose repository is beside the package and tracks this very file, since
    a virtual environment often lies inside another repository. Git is not run in any other repository, whose settings
    could make it run a program.

    Returns:
        The revision; None if it is unknown.
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
