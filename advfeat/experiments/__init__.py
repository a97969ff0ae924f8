"""Experiments of the paper: each file holds a config and a ``run``."""
