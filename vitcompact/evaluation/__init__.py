"""Accuracy, and fidelity to a reference."""

from vitcompact.evaluation.changed import MostChanged, Observer
from vitcompact.evaluation.evaluate import evaluate
from vitcompact.evaluation.result import EvalResult
from vitcompact.models.forward import eval_mode

__all__ = ["EvalResult", "MostChanged", "Observer", "eval_mode", "evaluate"]
