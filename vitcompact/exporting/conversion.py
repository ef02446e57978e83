"""What surrounds every converter: models as it knows them best, its chatter kept away, its errors in our words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from torch import nn

from vitcompact.errors import UsageError, VitCompactError, is_out_of_memory
from vitcompact.exporting.base import Format
from vitcompact.layers.attention import CompactAttention
from vitcompact.utils.copies import copy_of

_CHATTY = ("torch.onnx", "onnxscript", "coremltools", "nncf", "root")


def suited(model: nn.Module, form: Format) -> nn.Module:
    """A copy with attention computed in the way that the format's converter knows best.

    timm's own layers lose their fused call where products are wanted: some hand it windows on an axis of their own
    (Twins), and the ONNX form of that call takes four axes only.
    """
    prepared = copy_of(model)
    for module in prepared.modules():
        if form.attention == "matmul" and getattr(module, "fused_attn", False) is True:
            module.fused_attn = False  # type: ignore[assignment]
        if isinstance(module, CompactAttention) and module.backend == "auto":
            module.backend = form.attention
    return prepared


@contextmanager
def converting(form: Format) -> Iterator[None]:
    """Run a format's own converter, quietly.

    Raises:
        UsageError: it cannot express the model.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with redirect_stdout(StringIO()):
            yield
    except (VitCompactError, OSError):
        raise
    except Exception as error:  # each converter has its own
        if is_out_of_memory(error):
            raise
        reason = form.reason(_root(error)) or type(error).__name__
        if isinstance(error, ImportError):
            raise UsageError(f"{form.title}'s converter lacks something that it imports: {reason}") from error
        raise UsageError(f"{form.title} cannot express this model: {reason}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _root(error: BaseException) -> str:
    """What the innermost cause says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
