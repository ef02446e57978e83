"""Measuring a model before surgery: similarity of maps, spectra of FFN outputs, cost."""

from vitcompact.analysis.analyze import analyze
from vitcompact.analysis.cost import Cost, count
from vitcompact.analysis.report import AnalysisReport

__all__ = ["AnalysisReport", "Cost", "analyze", "count"]
