"""The report: one HTML page with the table, the verdicts, the training curves and sample images."""

from advfeat.report.page import write_report

__all__ = ["write_report"]
