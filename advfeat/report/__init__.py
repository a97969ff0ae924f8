"""The report: a self-contained HTML page per experiment, and an overview."""
