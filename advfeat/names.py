"""Names as they are written down: of functions among settings, and of paths."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path


def function_name(function: Callable) -> str:
    """Its name; of a lambda, which has none, also a hash of its code, so that two of them are not taken for one."""
    name = getattr(function, "__name__", type(function).__name__)
    code = getattr(function, "__code__", None)
    if name != "<lambda>" or code is None:
        return name
    text = repr((code.co_code, [c for c in code.co_consts if not hasattr(c, "co_code")], code.co_names))
    return f"<lambda {hashlib.sha256(text.encode()).hexdigest()[:8]}>"


def printable(name: str | Path) -> str:
    """A path or name as text that every encoding of Unicode can write: bytes that are not UTF-8 as ``\\xNN``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
