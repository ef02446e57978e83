"""Short distillation of a converted model from its original."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from vitcompact.data import check_model, unwrapped
from vitcompact.errors import CheckpointError, Interrupted, UsageError
from vitcompact.layers.branches import TokenBatchNorm, branched
from vitcompact.models.forward import eval_mode, num_classes
from vitcompact.options.logs import LogOptions
from vitcompact.training.course import Course
from vitcompact.training.distill import Distiller, amp_dtype, block_names
from vitcompact.training.held_out import JUDGED_STEPS, HeldOut, Scores, batches_judged, evaluated_loss, unseen_crops
from vitcompact.training.interrupt import StopRequest
from vitcompact.training.keep import Keeper, check_same_run, describe_run, find_state, fingerprint, holding
from vitcompact.training.loop import Clock, Loop, Stopwatch
from vitcompact.training.mixing import Mixing
from vitcompact.training.optimizer import Stepper, block_error, make_optimizer, output_scales, rate_factor
from vitcompact.training.options import ResolvedOptions, TrainOptions
from vitcompact.training.result import FinetuneResult, StoppedBy
from vitcompact.training.saved import Best, saved_run
from vitcompact.training.schedule import LearningRate, StepPlan
from vitcompact.training.sharded import load_whole, whole_weights
from vitcompact.training.share import Sharing, own_statistics
from vitcompact.training.state import STATE_NAME, State, load_state, told_state
from vitcompact.training.stream import TrainingStream, as_stream, first_batch, remeasure
from vitcompact.training.teacher_cache import cache_for, remove
from vitcompact.training.trackers import trackers_for
from vitcompact.utils.copies import copy_of
from vitcompact.utils.device import device_of, frozen_copy
from vitcompact.utils.processes import ALONE, Processes
from vitcompact.utils.progress import Progress, notebooks

logger = logging.getLogger("vitcompact")


def finetune(
    model: nn.Module,
    teacher: nn.Module,
    batches: TrainingStream | Tensor | Iterable[Any],
    *,
    options: TrainOptions | None = None,
    evaluation: Iterable[tuple[Tensor, Tensor]] | None = None,
    device: str | torch.device = "cpu",
    state_dir: str | Path | None = None,
    resume: Literal["auto"] | str | Path | None = None,
    progress: Progress = notebooks,
    clock: Clock = time.monotonic,
    processes: Processes = ALONE,
    log: LogOptions = LogOptions(),
    asked: Mapping[str, Any] | None = None,
) -> FinetuneResult:
    """Train a copy of `model` to answer as `teacher` does; labels are not used unless `options.labels` says so.

    A run of given steps or epochs gives the same weights on the same machine whether or not it was interrupted and
    resumed. With a time limit that holds as long as the clock leads to the same plan.

    Args:
        model: a converted model in training form (or any timm model); not modified. All parameters are trained from
            the first block on that differs from the original's. Should the loss of training images, in crops that no
            step has seen, be larger after training than before, it keeps the weights it had (`best_step` 0), and a
            warning says so; runs of fewer than `JUDGED_STEPS` are not judged.
        teacher: the original that it was converted from; it comes back in its own mode and on its own device.
        batches: `data.TrainingBatches`, or normalised images (n, channels, height, width), or batches of them.
        options: limits, rates and losses.
        evaluation: `data.EvaluationBatches` or the like, never training images; None scores nothing.
        device: where both models run.
        state_dir: folder of the resumable state, the best weights and the run's course; None keeps none of them.
        resume: `"auto"` goes on from `state_dir` where it holds a state, else begins; a path (state file or its folder)
            has to exist; None begins anew.
        progress: told of each step.
        clock: seconds, monotonic.
        processes: those of a run that torchrun started (`utils.processes.joined`), each of which calls this function
            with the same arguments: it trains on its part of every batch, and gets the same result. The first keeps
            the state.
        log: what is told of the run's course besides `summary.csv` and `steps.jsonl`, which lie beside the state.
        asked: plain data that lies beside the state as `options.json`, and goes where the state goes: what a command
            line needs to say the same again.

    Raises:
        UsageError: options, models, images or the saved state do not fit.
        Interrupted: by Ctrl-C or SIGTERM, after the step in progress.
        DivergedError: the loss was not finite for several steps in a row.
    """
    chosen = options or TrainOptions()
    model, teacher = unwrapped(model), unwrapped(teacher)
    check_model(model)
    check_model(teacher, "teacher")
    if next(teacher.parameters()).dtype != torch.float32:
        teacher = frozen_copy(teacher, device_of(teacher))
    device = torch.device(device)
    stream = as_stream(batches, model, chosen.seed)
    watch, home = Stopwatch(clock), device_of(teacher)
    folder, saved = find_state(state_dir, resume) if processes.first else (None, None)
    _check_same(model, teacher, stream, processes)
    listening = StopRequest(patient=processes.several)
    try:
        with holding(folder, saved, asked is not None), listening as stop, eval_mode(teacher), _own_randomness(device):
            run = _Run(model, teacher, stream, chosen, device, folder, stop, progress, processes)
            with closing(run.course):
                return run.finish(run.start(evaluation, saved, watch, clock, log, asked))
    finally:
        teacher.to(home)


class _Run:
    """The parts of one call, put together and taken apart again."""

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        stream: TrainingStream,
        given: TrainOptions,
        device: torch.device,
        folder: Path | None,
        stop: StopRequest,
        progress: Progress,
        processes: Processes,
    ) -> None:
        options = ResolvedOptions.of(given, has_head=num_classes(teacher) > 0)
        self.processes, self.sharing = processes, Sharing.of(options, processes, device)
        self.sharing.check(stream, model)
        self.model, self.stream = model, self.sharing.stream(stream)
        self.home, self.precision = device_of(model), next(model.parameters()).dtype
        self.device, self.stop, self.progress = device, stop, progress
        self.amp_dtype = amp_dtype(options, device)
        amp, first = self.amp_dtype is not None, first_batch(self.stream)
        self.spare = first[0][:1], first[1][:1]
        asked = {**asdict(options), "lr": given.lr, "branch_lr": given.branch_lr}  # before the rule
        whole = first_batch(stream) if folder and processes.several else first
        identity = describe_run(model, teacher, stream, whole, asked, device, amp) if folder else {}
        self.identity, self.keeper = identity, Keeper(folder, identity, processes)
        self.course = Course(folder, self.stream.steps_per_epoch, stream.batch_size)
        student = _training_mode(copy_of(model).float().requires_grad_(True))
        ema = None
        if options.model_ema:
            ema = ModelEmaV3(student, decay=options.model_ema_decay, use_warmup=True, foreach=not options.fsdp)
        self.sharing.whole_statistics(student)
        self.blocks = block_names(teacher)
        self.teacher = copy_of(teacher).requires_grad_(False) if options.fsdp else teacher
        for each in (student, self.teacher, *([ema.module] if ema else [])):
            self.sharing.place(each, self.blocks, device)
        if options.block_weight and not self.blocks:
            logger.warning("the original's blocks are not known: only its outputs are matched")
        self.has_branches = bool(branched(student))
        if given.lr is None and options.block_weight and self.blocks:
            factor = rate_factor(block_error(student, self.teacher, self.blocks, self._unseen(), self.sharing))
            options = replace(options, lr=options.lr * factor)
            if given.branch_lr is None:
                options = replace(options, branch_lr=options.branch_lr * factor)
        self.options = options
        self.cache = cache_for(options, self.stream, folder, identity, processes)
        self.distiller = Distiller(student, self.teacher, self.blocks, options, self.amp_dtype, self.cache)
        if options.grad_checkpointing:
            _checkpoint_gradients(student)
        scales = self.sharing.within(lambda: output_scales(student, first[0].to(device), processes))
        optimizer = make_optimizer(student, options, scales)
        self.rate = LearningRate(optimizer, options)
        self.stepper = Stepper(
            *(student, self.distiller.loss, optimizer, ema, options.clip_grad, options.seed, self.sharing),
            mixing=Mixing.of(options, num_classes(model)),
        )

    def start(
        self,
        evaluation: Iterable[tuple[Tensor, Tensor]] | None,
        saved: Path | None,
        watch: Stopwatch,
        clock: Clock,
        log: LogOptions,
        asked: Mapping[str, Any] | None,
    ) -> Loop:
        """Begin or resume, and train."""
        plan = StepPlan.of(self.options, self.stream.steps_per_epoch)
        if self.processes.agreed(lambda: saved is not None):
            state = told_state(lambda: self._loaded(saved), self.processes)
            begun, (plan, spent) = plan, self.keeper.restore(state, saved.parent if saved else None, self.stepper)
            if not plan.continues(begun):
                raise CheckpointError(f"the training state {saved} is damaged: {plan} is not the plan of this run")
            watch = Stopwatch(clock, spent)
        else:
            self.keeper.begin_anew()
        self.keeper.note_options(asked)
        self._open_course(plan.step, saved, log)
        held_out = None
        if evaluation is not None:
            shared = self.sharing.evaluation(evaluation)
            held_out = HeldOut(shared, self.teacher, self.device, self._check, self.progress, self.sharing, self.spare)
        self._score_before(held_out, watch)
        loop = Loop(
            stepper=self.stepper,
            plan=plan,
            rate=self.rate,
            stream=self.stream,
            device=self.device,
            options=self.options,
            watch=watch,
            keeper=self.keeper,
            stop=self.stop,
            progress=self.progress,
            reserve=lambda pace: self._reserve(pace, plan, held_out),
            held_out=held_out,
            amp_dtype=self.amp_dtype,
            processes=self.processes,
            course=self.course,
        )
        try:
            loop.run()
        finally:
            self.distiller.close()
            if self.cache is not None:
                self.cache.close()
        return loop

    def finish(self, loop: Loop) -> FinetuneResult:
        """Measure what came out, and choose between the last weights and the best ones seen."""
        model = loop.averaged
        if self.has_branches:
            self.sharing.whole_statistics(model)
            with closing(self.stream.batches(0)) as batches:  # type: ignore[type-var]
                count = self.options.statistics_batches
                self.sharing.within(lambda: remeasure(model, batches, count, self.device, self.amp_dtype))
            own_statistics(model)
        scores, held_out, best_step = Scores(), loop.held_out, None
        if held_out is not None and (best := self._better(model, held_out)) is not None:
            load_whole(model, best.weights)
            best_step = best.step
        if loop.plan.step >= JUDGED_STEPS and self._went_astray(model, loop.plan.step):
            load_whole(model, self.model.state_dict())
            best_step = 0
        if held_out is not None:
            scores = self._scored(held_out, model, None, "evaluate the result")
        best_seen = None if held_out is None else loop.plan.step if best_step is None else best_step
        self.course.row(loop.plan.step, scores, best_seen, loop.watch.seconds)
        before = Scores(**self.keeper.notes["before"]) if "before" in self.keeper.notes else Scores()
        model = self._put_together(model)
        if self.options.grad_checkpointing:
            model.set_grad_checkpointing(False)  # type: ignore[operator]
        if self.cache is not None:
            remove(self.cache.path)
        steps = loop.plan.step
        return FinetuneResult(
            model=model.to(self.home, self.precision).eval(),
            steps=steps,
            epochs=steps / self.stream.steps_per_epoch,
            top1_before=before.top1,
            top1_after=scores.top1,
            agreement=scores.agreement,
            cosine=scores.cosine,
            seconds=loop.watch.seconds,
            images_seen=steps * self.stream.batch_size,
            branch_ratio=branch_ratios(model),
            stopped_by=_stopped_by(loop.plan, self.options),
            best_step=best_step,
            skipped_steps=self.stepper.bad_steps,
            lr=self.options.lr,
            history=self.course.history,
        )

    def _put_together(self, model: nn.Module) -> nn.Module:
        """A model of the run as a module like any other."""
        if self.sharing.shards is None:
            return model
        result = copy_of(self.model).float()
        result.load_state_dict(whole_weights(model))
        return result

    def _open_course(self, step: int, saved: Path | None, log: LogOptions) -> None:
        """Tell the run's course from `step` on."""
        self.course.begin(step, saved.parent if saved else None, self.processes)
        if self.processes.first:
            config = {name: value for name, value in asdict(self.options).items() if value is not None}
            self.course.trackers += trackers_for(log, self.keeper.folder, step, self.keeper.notes, config)

    def _better(self, model: nn.Module, held_out: HeldOut) -> Best | None:
        """The best weights seen, if they beat those of `model`."""
        best = self.keeper.best
        if best is None or self._scored(held_out, model, self.amp_dtype, "evaluate").value >= best.value:
            return None
        return best

    def _went_astray(self, trained: nn.Module, steps: int) -> bool:
        """Whether the model that was given is nearer to the original than what came out."""
        batches, losses, given = self._unseen(steps), [], copy_of(self.model).float()
        self.sharing.place(given, self.blocks, self.device)
        for model in (given, trained):
            with closing(Distiller(model, self.teacher, self.blocks, self.options, None)) as distiller:
                losses.append(evaluated_loss(distiller.loss, model, batches, self.sharing))
        before, after = losses
        if after < before:
            return False
        logger.warning(
            "training led away from the original (loss %.3g on %d training images, %.3g before): the weights from "
            "before are kept; a lower `lr`, more time or more images may help",
            after,
            sum(len(images) for images, _ in batches),
            before,
        )
        return True

    def _unseen(self, steps: int = 0) -> list[tuple[Tensor, Tensor]]:
        crops = unseen_crops(self.stream, steps)
        return [(images.to(self.device), labels.to(self.device)) for images, labels in crops]

    def _score_before(self, held_out: HeldOut | None, watch: Stopwatch) -> None:
        if held_out is None or "before" in self.keeper.notes:
            return
        start = watch.seconds
        scores = self._scored(held_out, self.stepper.student, None, "evaluate before training")
        self.keeper.notes["before"] = scores.to_json()
        self.keeper.notes["evaluation_seconds"] = watch.seconds - start
        self.course.row(0, scores, None, watch.seconds)

    def _reserve(self, pace: float, plan: StepPlan, held_out: HeldOut | None) -> float:
        """Seconds that `finish` will take; a forward pass is about a third of a step."""
        judged = batches_judged(self.stream.batch_size, plan.total or plan.step)
        seconds = pace * judged  # through both models, before and after
        seconds += self.options.statistics_batches * pace / 3 if self.has_branches else 0.0
        if held_out is not None:
            seconds += held_out.passes_left * self.keeper.notes["evaluation_seconds"] / 2
        return seconds

    def _check(self) -> None:
        if self.stop.requested:
            raise Interrupted("interrupted while evaluating")

    def _scored(self, held_out: HeldOut, model: nn.Module, amp_dtype: torch.dtype | None, task: str) -> Scores:
        """`held_out.score`; an interruption says from where the run can go on."""
        try:
            return held_out.score(model, amp_dtype, task)
        except Interrupted as error:
            hint = self.processes.agreed(self._kept)
            raise Interrupted(f"{error}; {hint}") from error

    def _kept(self) -> str:
        folder = self.keeper.folder
        kept = folder is not None and (folder / STATE_NAME).exists()
        return f"`resume='auto'` continues from {folder}" if kept else "nothing was saved"

    def _loaded(self, saved: Path | None) -> State:
        """The state to go on from, which has to be one of this run."""
        assert saved is not None  # the first process has found it
        state = load_state(saved)
        check_same_run(saved_run(state).identity, self.identity, str(saved))
        return state


def _check_same(model: nn.Module, teacher: nn.Module, stream: TrainingStream, processes: Processes) -> None:
    """Refuse processes that read other models or images than the first.

    Raises:
        UsageError: see above.
    """
    if processes.several:
        processes.check_same("converted model", fingerprint(model.state_dict()))
        processes.check_same("original", fingerprint(teacher.state_dict()))
        processes.check_same("number of training images", stream.num_samples)


def branch_ratios(model: nn.Module) -> dict[str, float]:
    """Per branched layer: Frobenius norm of its folded branches over that of its solved matrix; 0 while silent."""
    return {name: module.branch_ratio() for name, module in branched(model).items()}


def _stopped_by(plan: StepPlan, options: TrainOptions) -> StoppedBy:
    if plan.limit is None or plan.step < plan.limit:
        return "max_minutes"
    return "steps" if plan.limit == options.steps else "epochs"


def _training_mode(student: nn.Module) -> nn.Module:
    """Evaluation mode but for the branches' BatchNorm, which has no statistics yet, and for biases that are remembered.

    What differs from the original has to be the surgery alone: with stochastic depth (timm's default in some families)
    or batch statistics the original itself is far from its own outputs, and a few hundred steps would go into that.
    """
    for module in student.eval().modules():
        if isinstance(module, TokenBatchNorm):
            module.train()
        elif hasattr(module, "attention_bias_cache"):  # its own flag alone: biases of an evaluation are not kept
            module.training = True
    return student


def _checkpoint_gradients(model: nn.Module) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise UsageError(f"`grad_checkpointing`: {type(model).__name__} has no set_grad_checkpointing()")
    model.set_grad_checkpointing(True)  # type: ignore[operator]


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Steps seed torch's generators; the caller's come back as they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
