"""The report: a self-contained HTML page an experiment, and an overview."""
