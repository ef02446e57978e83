"""Options of a distillation run: names are those of timm's training script where it has one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from timm.optim import get_optimizer_info, list_optimizers

from vitcompact.errors import UsageError

SCHEDULES = ("cosine", "poly", "tanh", "wsd", "constant")
"""timm's schedules that make sense for a few hundred steps; all but `constant` end near zero."""

DEFAULT_MINUTES = 10.0
_FOREIGN_OPTIMIZERS = ("bnb", "fused")  # of packages that this project does not need


@dataclass(frozen=True)
class TrainOptions:
    """How a converted model is distilled from its original; nothing here is about images or devices.

    Attributes:
        epochs: passes over the training images, fractions allowed.
        steps: optimisation steps.
        max_minutes: wall-clock minutes of the whole call, evaluation included. Of several limits the first one reached
            ends the run; with none, `DEFAULT_MINUTES`.
        opt: timm optimizer name; None is `adamw`, or `muon` for a model without a head (`ResolvedOptions.of`).
        lr: learning rate at its height; None is 1e-4, or 3e-5 for a model without a head, times a factor for how
            far the model is from its original (`optimizer.rate_factor`).
        branch_lr: learning rate of what starts silent: the BatchNorm of re-parameterised branches, and alpha. None is
            1e-3, times the same factor where `lr` is None too.
        weight_decay: decay of weight matrices (never of biases, norms, branches' BatchNorm and `no_weight_decay()`).
        clip_grad: largest norm of all gradients together; None does not clip.
        sched: timm schedule name, one of `SCHEDULES`, applied step by step.
        warmup_steps: steps of linear warm-up, at most a fifth of the run.
        temperature: of the softmax that both models' logits are compared under.
        logit_weight: weight of the loss on logits; those of images that the original was trained on are saturated and
            teach little that holds elsewhere, block outputs teach more. None is 0, or 1 where no blocks are compared.
        feature_weight: weight of the loss on pooled features and tokens, for a model without a head.
        block_weight: weight of the loss on block outputs.
        label_weight: weight of the cross-entropy with the labels; used with `labels` only.
        labels: train on the labels of the images too.
        smoothing: label smoothing of that cross-entropy.
        amp: automatic mixed precision; None is on where the device computes `amp_dtype` natively.
        amp_dtype: its number format; only `bfloat16`.
        model_ema: keep an exponential moving average of the weights, and return that.
        model_ema_decay: its decay per step once warmed up.
        grad_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        statistics_batches: batches over which the branches' BatchNorm statistics are measured again at the end.
        eval_every: steps between evaluations while training; None is at the end of each epoch.
        eval_share: largest share of the training time that these evaluations may take, in [0, 1).
        save_minutes: minutes between saves of the resumable state.
        seed: of anything random in the models; images that come as a loader have a seed of their own.
    """

    epochs: float | None = None
    steps: int | None = None
    max_minutes: float | None = None
    opt: str | None = None
    lr: float | None = None
    branch_lr: float | None = None
    weight_decay: float = 0.01
    clip_grad: float | None = 1.0
    sched: str = "cosine"
    warmup_steps: int = 20
    temperature: float = 2.0
    logit_weight: float | None = None
    feature_weight: float = 1.0
    block_weight: float = 10.0
    label_weight: float = 1.0
    labels: bool = False
    smoothing: float = 0.0
    amp: bool | None = None
    amp_dtype: str = "bfloat16"
    model_ema: bool = True
    model_ema_decay: float = 0.99
    grad_checkpointing: bool = False
    statistics_batches: int = 8
    eval_every: int | None = None
    eval_share: float = 0.1
    save_minutes: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.max_minutes is None:
            object.__setattr__(self, "max_minutes", DEFAULT_MINUTES)
        for name in ("epochs", "max_minutes", "lr", "branch_lr", "temperature", "clip_grad", "save_minutes"):
            _above_zero(name, getattr(self, name))
        for name in ("steps", "eval_every", "statistics_batches"):
            _at_least(name, getattr(self, name), 1)
        for name in ("weight_decay", "logit_weight", "feature_weight", "block_weight", "label_weight", "warmup_steps"):
            _at_least(name, getattr(self, name), 0)
        for name in ("smoothing", "model_ema_decay", "eval_share"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{option(name)} must be in [0, 1), got {getattr(self, name)}")
        if self.sched not in SCHEDULES:
            raise UsageError(f"unknown --sched '{self.sched}': accepted are {', '.join(SCHEDULES)}")
        if self.amp_dtype != "bfloat16":
            raise UsageError(f"--amp-dtype must be bfloat16 (float16 would need loss scaling), got '{self.amp_dtype}'")
        if self.logit_weight == 0 and not (self.block_weight or (self.labels and self.label_weight)):
            raise UsageError("all loss weights are 0: there is nothing to learn from")
        if self.opt is not None:
            _check_optimizer(self.opt)


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


def option(name: str) -> str:
    """How an option is spelled on the command line."""
    return "--" + name.replace("_", "-")


def _above_zero(name: str, value: float | None) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{option(name)} must be above 0, got {value}")


def _at_least(name: str, value: float | None, minimum: int) -> None:
    if value is not None and not (value >= minimum and math.isfinite(value)):
        raise UsageError(f"{option(name)} must be at least {minimum}, got {value}")


def _check_optimizer(name: str) -> None:
    known = [n for n in list_optimizers() if not n.startswith(_FOREIGN_OPTIMIZERS)]
    if name not in known:
        close = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ": it takes names of timm.optim.list_optimizers()"
        raise UsageError(f"unknown --opt '{name}'{hint}")
    if get_optimizer_info(name).second_order:
        raise UsageError(f"--opt {name} needs second derivatives, which attention kernels do not have; try adamw")
