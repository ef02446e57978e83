"""Accuracy, and fidelity to a reference."""

from vitcompact.evaluate.evaluate import evaluate
from vitcompact.evaluate.forward import eval_mode
from vitcompact.evaluate.result import EvalResult

__all__ = ["EvalResult", "eval_mode", "evaluate"]
