"""Options of a distillation run once the model is known (`vitcompact.options.training` declares them)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from vitcompact.options.training import DEFAULT_MINUTES, SCHEDULES, TrainOptions

__all__ = ["DEFAULT_MINUTES", "SCHEDULES", "ResolvedOptions", "TrainOptions"]


@dataclass(frozen=True)
class ResolvedOptions(TrainOptions):
    """Options with nothing left open that depends on the kind of model."""

    opt: str = "adamw"
    lr: float = 1e-4
    branch_lr: float = 1e-3

    @classmethod
    def of(cls, options: TrainOptions, has_head: bool) -> ResolvedOptions:
        """Fill in what is None.

        Features are compared in full, and a converted feature extractor is near its original: AdamW, whose steps do not
        shrink with the gradient, takes it further away within a few hundred of them; Muon does not (docs/results.md).
        """
        values: dict[str, Any] = {field.name: getattr(options, field.name) for field in fields(options)}
        opt, lr = ("adamw", 1e-4) if has_head else ("muon", 3e-5)
        defaults = {"opt": opt, "lr": lr, "branch_lr": cls.branch_lr}
        return cls(**{**values, **{name: value for name, value in defaults.items() if values[name] is None}})
