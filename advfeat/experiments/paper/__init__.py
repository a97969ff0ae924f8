"""Experiments of the paper, one file a table, figure or remark."""
