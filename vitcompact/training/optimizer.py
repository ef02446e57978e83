"""The optimizer and its steps: parameter groups, natural step sizes, learning rates, and Muon without bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, muon, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vitcompact.data.sampling import generator
from vitcompact.errors import UsageError
from vitcompact.layers.attention import CompactAttention
from vitcompact.layers.branches import TokenBatchNorm, branched
from vitcompact.layers.pointwise import channel_dim
from vitcompact.models.forward import eval_mode
from vitcompact.training.distill import Distiller
from vitcompact.training.held_out import evaluated_loss
from vitcompact.training.mixing import Mixing
from vitcompact.training.options import ResolvedOptions, TrainOptions
from vitcompact.training.result import DivergedError
from vitcompact.training.sharded import whole
from vitcompact.training.share import Loss, Sharing
from vitcompact.utils.device import computes_bfloat16, device_of
from vitcompact.utils.hooks import hooked
from vitcompact.utils.processes import ALONE, Processes

USUAL_RMS = 0.02
"""Root mean square of a ViT's weight matrices, for which `--lr` is meant literally (timm initialises them so)."""
ORTHOGONALIZE = "zeropower_via_newtonschulz"
"""timm's function that makes an update orthogonal (timm/optim/muon.py), in bfloat16 unless told otherwise."""
USUAL_ERROR = 0.05
"""Mean `relative_error` of the blocks for which default learning rates are meant literally (docs/results.md)."""
FACTORS = (0.1, 1.5)
"""By how much the error may change them."""
MAX_BAD_STEPS = 5
"""Steps in a row whose loss or gradients may be not finite before training gives up."""
_BLOCKS_ALONE = TrainOptions(logit_weight=0.0, feature_weight=0.0, block_weight=1.0)


def weight_scale(parameter: Tensor) -> float:
    """Root mean square over `USUAL_RMS`, to the nearest power of two (so that few groups result); 1 for zeros."""
    rms = float(whole(parameter.detach()).double().square().mean().sqrt())
    if not rms > 0 or not math.isfinite(rms):
        return 1.0
    return float(2.0 ** round(math.log2(rms / USUAL_RMS)))


def output_scales(model: nn.Module, images: Tensor, processes: Processes = ALONE) -> dict[str, float]:
    """Root mean square over channels of the standard deviation that each `BranchedLinear`'s solved part gives.

    Args:
        model: on the device of `images`.
        images: one batch (batch, channels, height, width).
        processes: those that share the batch, of which `images` are this one's.
    """
    found: dict[str, float] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(main: nn.Module, _: object, output: Tensor) -> None:
            rows = output.float().movedim(channel_dim(main), -1)
            flat = rows.reshape(-1, rows.shape[-1])
            found[name] = float(_variance(flat, processes).mean().sqrt())

        return hook

    hooks = {f"{name}.main": keep(name) for name in branched(model)}
    if hooks:
        with hooked(model, hooks), eval_mode(model), torch.no_grad():
            model(images)
    return {name: scale if scale > 0 and math.isfinite(scale) else 1.0 for name, scale in found.items()}


def _variance(rows: Tensor, processes: Processes) -> Tensor:
    """Of each channel, over the rows `(rows, channels)` of all processes: spread within parts, and between them."""
    within = rows.var(dim=0, correction=0)
    if not processes.several:
        return within
    count, mean = float(len(rows)), rows.double().mean(0)
    sums = torch.cat((mean * count, mean.new_tensor([count])))
    processes.total(sums)
    spread = count * (within.double() + (mean - sums[:-1] / sums[-1]).square())
    processes.total(spread)
    return spread / sums[-1]


def silent_groups(model: nn.Module, scales: Mapping[str, float]) -> list[tuple[list[nn.Parameter], float]]:
    """What starts silent, with its natural size.

    Scale and bias of a branch's BatchNorm are in units of the layer's output (`scales` by module path), the alpha
    of hallucinated heads is around one.
    """
    groups = []
    for name, module in branched(model).items():
        norms = [part for part in module.modules() if isinstance(part, TokenBatchNorm)]
        groups.append(([p for norm in norms for p in norm.parameters()], scales.get(name, 1.0)))
    alphas = [m.alpha for m in model.modules() if isinstance(m, CompactAttention) and m.alpha is not None]
    groups.append((alphas, 1.0))
    return [(parameters, scale) for parameters, scale in groups if parameters]


def parameter_groups(model: nn.Module, options: ResolvedOptions, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """timm's groups with and without decay, divided by `weight_scale`, and those of `silent_groups`.

    A group's `lr_scale` is what timm's schedulers multiply the learning rate by. Vectors and learned tokens keep 1.
    """
    excluded: set[str] = getattr(model, "no_weight_decay", set)()
    special = silent_groups(model, scales)
    ids = {id(parameter) for parameters, _ in special for parameter in parameters}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depths = layer_factors(model, options.layer_decay)
    # A decay is given so that timm tells matrices from the rest; the one of the options replaces it.
    for group in param_groups_weight_decay(model, 1.0, no_weight_decay_list=excluded):
        for parameter in group["params"]:
            if id(parameter) not in ids:
                scale = weight_scale(parameter) if group["weight_decay"] else 1.0
                scale *= depths.get(id(parameter), 1.0)
                decay = group["weight_decay"] * options.weight_decay
                groups.setdefault((decay, scale), []).append(parameter)
    result: list[dict[str, Any]] = [
        {"params": parameters, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), parameters in groups.items()
    ]
    ratio = options.branch_lr / options.lr
    return result + [{"params": parameters, "weight_decay": 0.0, "lr_scale": ratio * s} for parameters, s in special]


def layer_factors(model: nn.Module, decay: float | None) -> dict[int, float]:
    """By parameter (its `id`), what `decay` for each layer between it and the output makes of its learning rate.

    Raises:
        UsageError: timm does not know the layers of this model.
    """
    if decay is None:
        return {}
    if not hasattr(model, "group_matcher"):
        raise UsageError(f"`layer_decay`: {type(model).__name__} does not tell its layers (no group_matcher)")
    layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
    last = max(layers.values())
    return {id(weight): decay ** (last - layers.get(name, last)) for name, weight in model.named_parameters()}


def make_optimizer(model: nn.Module, options: ResolvedOptions, scales: Mapping[str, float]) -> torch.optim.Optimizer:
    """The timm optimizer `options.opt` over `parameter_groups`.

    torch's fused kernel of Adam and AdamW is asked for: on CPUs it is several times as fast as the loop over tensors.

    Raises:
        UsageError: timm cannot make this optimizer here.
    """
    fused = {"fused": True} if options.opt in ("adam", "adamw") else {}
    groups = parameter_groups(model, options, scales)
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=options.opt, lr=options.lr, **fused)
    except (ImportError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"`opt='{options.opt}'` cannot be used here: {error}") from error
    return in_native_precision(optimizer, device_of(model)) if "muon" in options.opt else optimizer


def in_native_precision(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer itself; where `device` has no bfloat16 its steps iterate in float32.

    Emulated, an update of a 384 x 1536 matrix took 2.1 s instead of 0.07 s (a CPU with AVX2 alone). timm's optimizer
    has no argument for it, so its function is replaced for the time of a step.
    """
    if not hasattr(muon, ORTHOGONALIZE) or computes_bfloat16(device):
        return optimizer
    step = optimizer.step

    def stepping(*args: Any, **kwargs: Any) -> Any:
        with _iterating_in(torch.float32):
            return step(*args, **kwargs)

    optimizer.step = stepping  # type: ignore[method-assign]
    return optimizer


@contextmanager
def _iterating_in(dtype: torch.dtype) -> Iterator[None]:
    original = getattr(muon, ORTHOGONALIZE)
    setattr(muon, ORTHOGONALIZE, partial(original, dtype=dtype))
    try:
        yield
    finally:
        setattr(muon, ORTHOGONALIZE, original)


def rate_factor(error: float) -> float:
    """What a default learning rate is multiplied by where the blocks' mean `relative_error` is `error` before training.

    That error is a square: outputs that are off by a share `sqrt(error)` want weights changed by about such a share.
    """
    smallest, largest = FACTORS
    if not math.isfinite(error):
        return 1.0
    return min(max(math.sqrt(error / USUAL_ERROR), smallest), largest)


def block_error(
    student: nn.Module,
    teacher: nn.Module,
    blocks: Sequence[str],
    batches: Sequence[tuple[Tensor, Tensor]],
    sharing: Sharing = Sharing(),
) -> float:
    """Mean `relative_error` of block outputs, from the first block on that differs.

    Args:
        student: on the device of `teacher`.
        teacher: the original, in evaluation mode.
        blocks: module paths of at least one block.
        batches: images and labels, of which the latter are not looked at.
        sharing: how the batches are shared, of which these are this process's rows.
    """
    with closing(Distiller(student, teacher, blocks, _BLOCKS_ALONE, None)) as distiller:
        return evaluated_loss(distiller.loss, student, batches, replace(sharing, labels=False))


class Stepper:
    """Applies optimisation steps to `student`, and keeps its moving average.

    Args:
        student: the model in training.
        loss: gives the loss of a batch of images and labels, on the models' device.
        optimizer: over the student's parameters.
        ema: the moving average, or None.
        clip_grad: largest gradient norm, or None.
        seed: with the number of the step it decides all that is random in it.
        sharing: how batches are shared by processes and split into parts; `loss` then takes a part's `Weights` too.
        mixing: of the images of a step, or None.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        ema: ModelEmaV3 | None,
        clip_grad: float | None,
        seed: int,
        sharing: Sharing = Sharing(),
        mixing: Mixing | None = None,
    ) -> None:
        self._mixing = mixing
        self.student, self.optimizer, self.ema = student, optimizer, ema
        self._loss, self._sharing = loss, sharing
        self._learner = sharing.learner(student, loss)
        self._max_norm = math.inf if clip_grad is None else clip_grad
        self._seed = seed
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.bad_in_a_row = 0
        self.bad_steps = 0

    @property
    def sharded(self) -> bool:
        """Whether the weights of the student lie in parts on several processes."""
        return self._sharing.shards is not None

    def step(self, number: int, images: Tensor, labels: Tensor) -> float | None:
        """Step `number` (from 0) on one batch; its loss, or None where it was not finite and the step was skipped.

        Of a batch that processes share, `images` and `labels` are the rows of this one; the loss is the whole's.

        Raises:
            DivergedError: too many steps in a row were skipped.
        """
        torch.manual_seed(generator("step", self._seed, number).getrandbits(63))
        buffers = [(buffer, buffer.clone()) for buffer in self.student.buffers()]
        if self._mixing is not None:
            images, labels = self._mixing(number, images, labels)
        losses = self._gradients(images, labels)
        norm = whole(torch.nn.utils.clip_grad_norm_(self._parameters, self._max_norm))
        # Read when all is under way: a device has nothing to do while it is waited for.
        value, processes = sum(map(float, losses)), self._sharing.processes
        value = value if self._learner is None else processes.sums(value / processes.world)[0]
        if not (math.isfinite(value) and math.isfinite(norm)):
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
            self._count_bad(number)
            return None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.student, step=number + 1)
        self.bad_in_a_row = 0
        return value

    def _gradients(self, images: Tensor, labels: Tensor) -> list[Tensor]:
        """Gradients of the whole batch, and the losses that its parts have in this process, on the device."""
        parts, losses = self._sharing.parts(images, labels), []
        for place, part in enumerate(parts):
            with self._exchanging(last=place + 1 == len(parts)):
                if self._learner is None:
                    loss = self._loss(*part) if part[2] is not None else self._loss(*part[:2])
                else:
                    loss = self._learner(*part)
                loss.backward()
                losses.append(loss.detach())
        return losses

    def _exchanging(self, last: bool) -> AbstractContextManager[None]:
        """Gradients of whole models are exchanged once a step; those of sharded ones after each part, to stay small."""
        if last or not isinstance(self._learner, DistributedDataParallel):
            return nullcontext()
        return self._learner.no_sync()

    def _count_bad(self, number: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.bad_steps += 1
        self.bad_in_a_row += 1
        if self.bad_in_a_row >= MAX_BAD_STEPS:
            raise DivergedError(
                f"the loss was not finite for {self.bad_in_a_row} steps in a row, up to step {number + 1}: "
                "train with a lower `lr`, and check the images and the converted model"
            )
