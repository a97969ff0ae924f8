"""How long each experiment takes with nothing done before, in minutes."""

from __future__ import annotations

CAPTION = (
    "digits and cifar10-cpu: two cores of an AMD EPYC. cifar10: an estimate for one H200, none has been measured. "
    "Steps are shared, so that all together take less."
)

MINUTES: dict[str, dict[str, float]] = {}
