"""Experiments of the paper, one file per table, figure or remark."""
