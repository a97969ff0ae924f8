"""Measurements behind docs/performance.md: ``python -m benchmarks.ops``, ``.attacks``, ``.build``, ``.gpu``."""
