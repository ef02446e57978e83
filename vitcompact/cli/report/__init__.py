"""Draws an analysis: a self-contained HTML page, or a PNG."""

from vitcompact.cli.report.write import check_report, write_report

__all__ = ["check_report", "write_report"]
