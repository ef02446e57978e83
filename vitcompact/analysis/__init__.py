"""Measuring a model before surgery: similarity of maps, spectra of FFN outputs, cost."""

from vitcompact.analysis.analyze import analyze, analyze_plan
from vitcompact.analysis.report import AnalysisReport
from vitcompact.models.cost import Cost, count

__all__ = ["AnalysisReport", "Cost", "analyze", "analyze_plan", "count"]
