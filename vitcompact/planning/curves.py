"""Loss increase curves that are measured once: another target then costs a plan, not another walk over the images."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitcompact.calibration.output_sensitivity import OutputSensitivity
from vitcompact.data import ImageBatches, placed, processes_of
from vitcompact.errors import UsageError
from vitcompact.operators.steps import MULTIPLE
from vitcompact.options.selection import Keep
from vitcompact.planning.candidates import Losses, measure_losses
from vitcompact.planning.kept_losses import from_json, to_json
from vitcompact.planning.request import Budget
from vitcompact.planning.selection import Selection
from vitcompact.planning.site_time import SiteTimes
from vitcompact.utils.device import device_of
from vitcompact.utils.files import json_text, write_file
from vitcompact.utils.progress import Progress, silent
from vitcompact.utils.reading import read_json, user_path
from vitcompact.version import __version__

logger = logging.getLogger("vitcompact")

FORMAT = 1


class Curves:
    """What `plan`, `convert` and `analyze` measured of a model's layers, for the next of them.

        curves = vitcompact.Curves("curves.json")
        for share in (0.8, 0.6, 0.4):
            compact = vitcompact.convert(model, images=images, target_macs=share, curves=curves)

    They hold for one model, the same images and the same choice of layers and operators; for others they are measured
    anew, and replaced. Times of layers are of the machine as it is, and what errors do to the output is large: the
    object keeps both, the file does not.

    Args:
        path: a file to keep them in and to find them in; None for this object's life only.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else user_path(path)
        self._known: dict[str, Any] | None = None
        self._times: dict[tuple[Hashable, ...], SiteTimes] = {}
        self._sensitivity: tuple[str, OutputSensitivity] | None = None

    def losses(
        self, original: nn.Module, images: ImageBatches, asked: Mapping[str, Any], measure: Callable[[], Losses]
    ) -> Losses:
        """What `measure` gives; it is not called where that is known.

        Args:
            original: in eval mode and float32.
            asked: what the result depends on beside model and images, as plain data.

        Raises:
            UsageError: the file cannot be written.
        """
        key, processes = fingerprint(original, images, asked), processes_of(images)
        known = processes.agreed(lambda: self._known or self._read())
        if known is not None and known.get("key") == key:
            try:
                kept = {name: value for name, value in known.items() if name not in ("format", "key")}
                found = from_json(original, kept, asked.get("branches"), asked.get("size_multiple", MULTIPLE))
            except (UsageError, KeyError, TypeError, ValueError) as error:
                logger.warning("%s is damaged (%s): the layers are measured anew", self.path, error)
            else:
                self._known = known
                logger.info("the layers' curves are those measured before%s", f" ({self.path})" if self.path else "")
                return found
        measured = measure()
        self._known = {"format": FORMAT, "key": key, **to_json(measured)}
        if self.path is not None and processes.first:
            write_file(self.path, json_text(self._known))
        return measured

    def times(self, asked: tuple[Hashable, ...], measure: Callable[[], SiteTimes]) -> SiteTimes:
        """What `measure` gives for the layers whose losses were asked for last; it is not called where that is known.

        Args:
            asked: what the times depend on beside the layers: batch, device, backend.
        """
        key: tuple[Hashable, ...] = (None if self._known is None else str(self._known["key"]), *asked)
        if key not in self._times:
            self._times[key] = measure()
        return self._times[key]

    def sensitivity(
        self, original: nn.Module, images: ImageBatches, keep: Keep, progress: Progress = silent
    ) -> OutputSensitivity:
        """`OutputSensitivity` of a model on its images, with all that was measured of it before."""
        fresh = OutputSensitivity(original, images, keep, progress)
        key = fingerprint(original, fresh.images, {"keep": keep, "device": str(device_of(original))})
        if self._sensitivity is None or self._sensitivity[0] != key:
            self._sensitivity = key, fresh
        return self._sensitivity[1]

    def _read(self) -> dict[str, Any] | None:
        """What the file holds; nothing where there is none, or no curves of this release."""
        if self.path is None:
            return None
        try:
            found = read_json(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} holds no curves ({error}): move it away, or name another file") from error
        if not isinstance(found, dict) or "key" not in found:
            raise UsageError(f"{self.path} holds no curves: move it away, or name another file")
        return found if found.get("format") == FORMAT else None


def measured_losses(
    original: nn.Module,
    images: ImageBatches,
    curves: Curves | None,
    *,
    ops: Iterable[str],
    budget: Budget | None = None,
    selection: Selection | None = None,
    keep: Keep = "both",
    weigh: bool = True,
    cache_bytes: float = 4e9,
    progress: Progress = silent,
) -> Losses:
    """`measure_losses`, or what it gave before and `curves` has of it.

    Raises:
        UsageError, DataError: as `measure_losses`, and where the curves cannot be kept.
    """
    ops, chosen = tuple(ops), selection or Selection()

    def measure() -> Losses:
        return measure_losses(
            original,
            images,
            ops=ops,
            budget=budget,
            selection=chosen,
            keep=keep,
            weigh=weigh,
            cache_bytes=cache_bytes,
            progress=progress,
        )

    if curves is None:
        return measure()
    asked: dict[str, Any] = {} if keep == "both" else {"keep": keep}
    asked |= {} if chosen.size_multiple == MULTIPLE else {"size_multiple": chosen.size_multiple}
    asked |= {"ops": ops, "only": chosen.only, "protect": chosen.protect, "branches": chosen.branches, "weigh": weigh}
    return curves.losses(original, images, asked, measure)


@torch.no_grad()
def fingerprint(original: nn.Module, images: ImageBatches, asked: Mapping[str, Any]) -> str:
    """A hash of all that the curves depend on: every tensor and setting of the model, the images, and `asked`."""
    digest = hashlib.sha256(json.dumps([__version__, torch.__version__, asked], sort_keys=True).encode())
    for name, module in original.named_modules():
        settings = {key: value for key, value in vars(module).items() if _plain(value)}
        digest.update(f"{name} {type(module).__qualname__} {sorted(settings.items())}".encode())
    for name, tensor in original.state_dict(keep_vars=True).items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    for each in _of_images(images):
        digest.update(each)
    return digest.hexdigest()


def _of_images(images: ImageBatches) -> Iterator[bytes]:
    """A hash of each image, in their order among all, whoever has it."""
    if not processes_of(images).several:
        yield from (hashlib.sha256(_bytes(image)).digest() for batch in images for image in batch)
        return
    found = torch.zeros(images.num_samples, hashlib.sha256().digest_size, dtype=torch.uint8)
    for start, batch in placed(images):
        for place, image in enumerate(batch, start):
            found[place] = torch.frombuffer(bytearray(hashlib.sha256(_bytes(image)).digest()), dtype=torch.uint8)
    processes_of(images).total(found)
    yield from (bytes(row.numpy().tobytes()) for row in found)


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_plain(item) for item in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
