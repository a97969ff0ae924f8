"""The ``advfeat info`` command."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING

import torch

from advfeat._build_info import build_config
from advfeat.cli.console import console, say, table
from advfeat.cli.files import describe_set
from advfeat.datasets.constructed import ConstructedSet
from advfeat.json_files import read_json
from advfeat.models import describe

if TYPE_CHECKING:
    from advfeat.cli import commands


def run(c: commands.Info) -> None:
    """Describe the installation, a run folder or a constructed set.

    Args:
        c: Parsed options.

    Raises:
        FileNotFoundError: If the path is neither a run folder nor a constructed set.
    """
    if c.path is None:
        rows = [[k, _short(v)] for k, v in build_config().items()]
        rows += [["python", platform.python_version()]]
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        rows += [["threads", str(torch.get_num_threads())], ["GPUs", ", ".join(gpus) or "none"]]
        table("advfeat", ["", ""], rows)
        return
    if (c.path / "manifest.json").is_file():
        made = ConstructedSet.open(c.path)
        describe_set(made, c.path)
        parts = {k: made.manifest[k] for k in ("recipe", "source", "model", "seed")}
        console.print_json(json.dumps(parts), ensure_ascii=True)  # no terminal control codes
    elif (c.path / "model.json").is_file():
        for line in describe(c.path).lines():
            say(line)
        if (c.path / "config.json").is_file():
            console.print_json(json.dumps(read_json(c.path / "config.json")), ensure_ascii=True)
    else:
        raise FileNotFoundError(f"{c.path} is neither a run folder (model.json) nor a constructed set (manifest.json)")


def _short(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
