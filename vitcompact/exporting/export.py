"""Writes a model as a file of another runtime, and runs it there before the file gets its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.checkpoint import Provenance
from vitcompact.data import ImageBatches, check_model, images_for
from vitcompact.errors import DataError, UsageError
from vitcompact.exporting.base import Format, Job
from vitcompact.exporting.conversion import converting, suited
from vitcompact.exporting.description import describe
from vitcompact.exporting.output import check_file, publish_export
from vitcompact.exporting.parity import BATCH_SIZES, Parity, compare
from vitcompact.exporting.registry import format_of
from vitcompact.exporting.result import ExportResult
from vitcompact.layers.branches import branched
from vitcompact.options.exporting import ExportOptions
from vitcompact.utils.copies import copy_of
from vitcompact.utils.files import disk_errors, staged
from vitcompact.utils.progress import Progress, notebooks

NOT_RUN = "not run"


def export(
    model: nn.Module,
    path: str | Path,
    *,
    images: Tensor | Iterable[Any] | ImageBatches | None = None,
    opset: int = 18,
    input_name: str = "images",
    output_name: str = "outputs",
    fp16: bool = False,
    int8: bool = False,
    atol: float | None = None,
    overwrite: bool = False,
    original: Provenance | None = None,
    original_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress = notebooks,
) -> ExportResult:
    """Write a folded model, or any timm model, for another runtime; the suffix of `path` says for which.

        vitcompact.export(folded, "model.onnx")
        vitcompact.export(folded, "model.onnx", int8=True, images=images)

    `.onnx` (ONNX Runtime), `.pt2` (torch.export), `.xml` (OpenVINO), `.mlpackage` (Core ML), `.pte` (ExecuTorch). The
    batch size is free. Before the file gets its name it is run by its own runtime on 1, 3 and 8 images and compared
    with `model` in float32. Classes, preparation of images, what the plan did and the recorded original travel in it.

    Args:
        images: prepared images (n, channels, height, width) or batches of them: int8 is calibrated on them.
        opset: ONNX operator set.
        input_name, output_name: in the file, where the format has names.
        fp16: weights and arithmetic in float16; inputs and outputs stay float32.
        int8: static int8 of linear layers and convolutions.
        atol: largest difference of an output that is accepted; None is a share of the largest output by number format.
        overwrite: replace a file that exists.
        original, original_options: where the model was made from, and how that is read, recorded in the file.
        seed: of the noise that is compared on where there are no images.
        progress: told of each stage.

    Raises:
        UsageError: a wrong suffix, name or option, a file that exists, a package that is not installed, a model in
            training form, or one that the format cannot express.
        DataError: int8 without images.
        VerificationError: the outputs differ; nothing was written.
    """
    options = ExportOptions(
        opset=opset, input_name=input_name, output_name=output_name, fp16=fp16, int8=int8, atol=atol
    )
    form = format_of(path)
    out = check_file(path, form, overwrite)
    check_exportable(model)
    form.check(options)
    if int8 and images is None:
        raise DataError("`int8` is calibrated on images: give `images`, some hundred of them")
    calibration = None if images is None or not int8 else images_for(model, images)
    reference = _reference(model)
    description = describe(reference, options.precision, (input_name, output_name), original, original_options)
    description = description.published(out.parent)
    job = Job(suited(reference, form), options, description, () if calibration is None else calibration)
    probes = _probes(description.input.input_size, calibration, seed)
    progress.start("export", 3)
    with disk_errors(out), staged(out) as folder:
        progress.advance(1, f"write {form.title}")
        with converting(form):
            form.write(job, folder / out.name)
        progress.advance(1, "compare with PyTorch")
        parity, runtime = _checked(form, folder / out.name, reference, probes, options)
        check_file(path, form, overwrite)  # again: something may have appeared meanwhile
        num_bytes = publish_export(folder, out, form)
        progress.advance(1)
    progress.finish()
    return ExportResult(
        format=form.suffix[1:],
        precision=options.precision,
        max_abs_diff=None if parity is None else parity.max_abs_diff,
        rel_diff=None if parity is None else parity.rel_diff,
        agreement=None if parity is None else parity.agreement,
        checked_with=runtime,
        bytes=num_bytes,
        out=out,
        how_to_run=form.how_to_run.format(path=out.name, input=input_name, output=output_name),
    )


def check_exportable(model: nn.Module) -> None:
    """Refuse what is no timm model, and a model in training form.

    Raises:
        UsageError, CheckpointError: see above.
    """
    check_model(model)
    plan: Any = getattr(model, "vitcompact_plan", None)
    if (plan is not None and plan.layers and plan.form != "folded") or branched(model):
        raise UsageError("this model is in training form: fold first (`vitcompact fold`), then export what that gives")


def _reference(model: nn.Module) -> nn.Module:
    """A copy in float32 and eval mode on the CPU, without gradients."""
    return copy_of(model).eval().float().cpu().requires_grad_(False)


def _probes(size: tuple[int, int, int], calibration: ImageBatches | None, seed: int) -> Tensor:
    """Images to compare on: the first of those calibrated on, and noise where they are too few."""
    noise = torch.randn(max(BATCH_SIZES), *size, generator=torch.Generator().manual_seed(seed))
    if calibration is None:
        return noise
    return torch.cat((next(iter(calibration)).float().cpu(), noise))[: len(noise)]


def _checked(
    form: Format, path: Path, reference: nn.Module, probes: Tensor, options: ExportOptions
) -> tuple[Parity | None, str]:
    """The parity of a written file and what ran it; None where it cannot be run here."""
    opened = form.open(path)
    if opened is None:
        return None, NOT_RUN
    parity = compare(reference, opened.run, probes)
    parity.require(options.precision, options.atol, opened.runtime)
    return parity, opened.runtime
