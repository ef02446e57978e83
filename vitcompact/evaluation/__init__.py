"""Accuracy, and fidelity to a reference."""

from vitcompact.evaluation.evaluate import evaluate
from vitcompact.evaluation.result import EvalResult
from vitcompact.models.forward import eval_mode

__all__ = ["EvalResult", "eval_mode", "evaluate"]
