"""Experiments of the paper's published discussion, one file per comment."""
