"""Reports of verbs: a self-contained HTML page, or a PNG of an analysis."""

from vitcompact.cli.report.made import command_of, distinct, heading, made_by, name_of
from vitcompact.cli.report.write import check_report, write_report

__all__ = ["check_report", "command_of", "distinct", "heading", "made_by", "name_of", "write_report"]
