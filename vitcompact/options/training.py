"""Options of a distillation run: names are those of timm's training script where it has one."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from vitcompact.errors import UsageError
from vitcompact.options.declare import TARGET, TRAINING, check_limits, one_of, option
from vitcompact.options.shared import MixedPrecision, Seeded

SCHEDULES = ("cosine", "poly", "tanh", "wsd", "constant")
"""timm's schedules that make sense for a few hundred steps; all but `constant` end near zero."""

DEFAULT_MINUTES = 10.0
_FOREIGN_OPTIMIZERS = ("bnb", "fused")  # of packages that this project does not need


@dataclass(frozen=True)
class TrainOptions(MixedPrecision, Seeded):
    """How a converted model is distilled from its original; nothing here is about images or devices.

    Attributes:
        epochs, steps, max_minutes: the first limit reached ends the run; with none, `DEFAULT_MINUTES`. Minutes are of
            wall-clock time.
        opt: None is chosen in `ResolvedOptions.of`.
        lr: None is 1e-4, or 3e-5 for a model without a head, times a factor for how far the model is from its original
            (`rate.rate_factor`).
        branch_lr: of the BatchNorm of re-parameterised branches, and alpha. None is 1e-3, times the same factor where
            `lr` is None too.
        weight_decay: never of biases, norms, branches' BatchNorm and `no_weight_decay()`.
        clip_grad: None does not clip.
        sched: one of `SCHEDULES`, applied step by step.
        warmup_steps: at most a fifth of the run.
        logit_weight: logits of images that the original was trained on are saturated and teach little that holds
            elsewhere, block outputs teach more. None is 0, or 1 where no blocks are compared.
        label_weight, smoothing: used with `labels` only.
        mixup, cutmix: the original sees the mixed images too. Of several processes each mixes its own part of a batch,
            so that the result depends on their number.
        layer_decay: as timm's, from the output on; not of what starts silent.
        amp_dtype: only `bfloat16`: float16 would need loss scaling.
        seed: of anything random in the models; images that come as a loader have a seed of their own.
    """

    epochs: float | None = option(
        None, "Passes over the training images; fractions are allowed.", panel=TARGET, unit="N", above=0
    )
    steps: int | None = option(None, "Optimizer steps.", panel=TARGET, unit="N", least=1)
    max_minutes: float | None = option(
        None,
        "Limit of the whole run in minutes, evaluation included.",
        panel=TARGET,
        unit="MINUTES",
        unset=f"{DEFAULT_MINUTES:g} where no other limit is given",
        above=0,
    )
    opt: str | None = option(
        None,
        "timm optimizer.",
        panel=TRAINING,
        unit="NAME",
        unset="adamw, or muon for a model without a head",
        rare=True,
    )
    lr: float | None = option(
        None,
        "Peak learning rate, relative to the size of the weights.",
        panel=TRAINING,
        unit="RATE",
        unset="1e-4, or 3e-5 without a head, times 0.1 to 1.5 by how much was taken away",
        above=0,
    )
    branch_lr: float | None = option(
        None,
        "Peak learning rate of branches and alpha, which start silent.",
        panel=TRAINING,
        unit="RATE",
        unset="1e-3, times the same factor as `lr`",
        above=0,
        rare=True,
    )
    weight_decay: float = option(0.01, "Decay of weight matrices.", panel=TRAINING, unit="RATE", least=0, rare=True)
    clip_grad: float | None = option(
        1.0, "Largest norm of all gradients together.", panel=TRAINING, unit="NORM", above=0, rare=True
    )
    sched: str = option(
        "cosine", f"Learning rate schedule: {', '.join(SCHEDULES)}.", panel=TRAINING, unit="NAME", rare=True
    )
    warmup_steps: int = option(20, "Steps of linear warm-up.", panel=TRAINING, unit="N", least=0, rare=True)
    temperature: float = option(
        2.0, "Softmax temperature of the logit loss.", panel=TRAINING, unit="T", above=0, rare=True
    )
    logit_weight: float | None = option(
        None,
        "Weight of the loss on logits; worth setting for images that the original was not trained on.",
        panel=TRAINING,
        unit="WEIGHT",
        unset="0, or 1 where no block outputs are compared",
        least=0,
        rare=True,
    )
    feature_weight: float = option(
        1.0,
        "Weight of the loss on features, for a model without a head.",
        panel=TRAINING,
        unit="WEIGHT",
        least=0,
        rare=True,
    )
    block_weight: float = option(
        10.0, "Weight of the loss on block outputs.", panel=TRAINING, unit="WEIGHT", least=0, rare=True
    )
    label_weight: float = option(1.0, "Weight of the cross-entropy with the labels.", least=0)
    labels: bool = option(False, "Learn from the images' labels too.", panel=TRAINING)
    smoothing: float = option(0.0, "Label smoothing of that cross-entropy.", least=0, below=1)
    mixup: float | None = option(
        None,
        "Mix pairs of images, alpha of the beta distribution (timm's Mixup); labels are mixed alike.",
        panel=TRAINING,
        unit="ALPHA",
        unset="no mixing",
        above=0,
        rare=True,
    )
    cutmix: float | None = option(
        None,
        "Put a part of each image into another, likewise; with both, each step has one of them.",
        panel=TRAINING,
        unit="ALPHA",
        unset="no mixing",
        above=0,
        rare=True,
    )
    layer_decay: float | None = option(
        None,
        "Factor between the learning rates of a layer and of the one after it.",
        panel=TRAINING,
        unit="FACTOR",
        unset="1",
        above=0,
        most=1,
        rare=True,
    )
    cache_teacher: bool = option(
        False,
        "Keep what the original makes of each image on disk, for later epochs; needs images that do not vary.",
        panel=TRAINING,
        rare=True,
    )
    cache_teacher_gb: float = option(
        20.0, "Largest size of that, of each process.", panel=TRAINING, unit="GB", above=0, rare=True
    )
    model_ema: bool = option(
        True,
        "Keep an exponential moving average of the weights, and save that.",
        panel=TRAINING,
        rare=True,
    )
    model_ema_decay: float = option(
        0.99, "Decay of that average per step.", panel=TRAINING, unit="RATE", least=0, below=1, rare=True
    )
    grad_accum: int = option(
        1,
        "Parts that a batch is split into, one after the other: the same step with less memory.",
        panel=TRAINING,
        unit="N",
        least=1,
        rare=True,
    )
    grad_checkpointing: bool = option(
        False, "Recompute activations: less memory, for about a third more time.", panel=TRAINING, rare=True
    )
    fsdp: bool = option(
        False,
        "Keep weights, gradients and the optimizer's state in parts on the processes that torchrun starts (FSDP), for "
        "models that do not fit on one device.",
        panel=TRAINING,
        rare=True,
    )
    statistics_batches: int = option(
        8, "Batches over which the branches' BatchNorm statistics are measured again at the end.", least=1
    )
    eval_every: int | None = option(
        None,
        "Steps between evaluations while training.",
        panel=TRAINING,
        unit="N",
        unset="at the end of each epoch",
        least=1,
        rare=True,
    )
    eval_share: float = option(
        0.1,
        "Largest share of the training time that these may take; with 1, none is left out for want of time.",
        panel=TRAINING,
        unit="SHARE",
        least=0,
        most=1,
        rare=True,
    )
    save_interval: int | None = option(
        None,
        "Steps between saves of the resumable state.",
        panel=TRAINING,
        unit="N",
        unset="by time",
        least=1,
        rare=True,
    )
    save_minutes: float = option(
        2.0,
        "Minutes between saves of the resumable state.",
        panel=TRAINING,
        unit="MINUTES",
        above=0,
        rare=True,
    )

    def __post_init__(self) -> None:
        if self.epochs is None and self.steps is None and self.max_minutes is None:
            object.__setattr__(self, "max_minutes", DEFAULT_MINUTES)
        check_limits(self)
        one_of("sched", self.sched, SCHEDULES)
        if self.amp_dtype != "bfloat16":
            raise UsageError(f"`amp_dtype` must be bfloat16 (float16 would need loss scaling), got '{self.amp_dtype}'")
        if self.logit_weight == 0 and not (self.block_weight or (self.labels and self.label_weight)):
            raise UsageError("all loss weights are 0: there is nothing to learn from")
        if self.opt is not None:
            _check_optimizer(self.opt)


def _check_optimizer(name: str) -> None:
    from timm.optim import get_optimizer_info, list_optimizers  # not before it is needed: `--help` is quick without

    known = [n for n in list_optimizers() if not n.startswith(_FOREIGN_OPTIMIZERS)]
    if name not in known:
        close = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ": it takes names of timm.optim.list_optimizers()"
        raise UsageError(f"unknown `opt` '{name}'{hint}")
    if get_optimizer_info(name).second_order:
        raise UsageError(f"`opt='{name}'` needs second derivatives, which attention kernels do not have; try adamw")
