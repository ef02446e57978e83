"""What an exported file says of itself: classes, preparation of images, what was done to the model, its original."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from vitcompact.checkpoint import Provenance
from vitcompact.data import InputConfig, resolve_input
from vitcompact.data.described import check_described
from vitcompact.errors import CheckpointError
from vitcompact.models.cost import count
from vitcompact.models.forward import num_classes
from vitcompact.plans.schema import Plan
from vitcompact.utils.places import found, published
from vitcompact.utils.reading import parse_json
from vitcompact.utils.typed import typed
from vitcompact.version import __version__

KEY = "vitcompact"
"""Name of the entry that holds the description in every format."""
_FORMAT = 1


@dataclass(frozen=True)
class Description:
    """The metadata of an exported file, JSON in and out.

    Attributes:
        architecture: timm name of the original architecture.
        num_classes: outputs of the head, 0 for features.
        class_names: in the order of the outputs, where the model knows them.
        input: how an image is prepared.
        plan: how many layers got which operator, and `merged` pairs of tokens; empty where nothing was converted.
        params, macs: of the exported model, MACs an image.
        precision: number format of weights and arithmetic.
        input_name, output_name: in the file.
        original: where the model was made from, or None.
        original_options: how the original is read.
        places: where paths lie that are named without their folders (`utils.places`).
        version: release of vitcompact that wrote the file.
    """

    architecture: str
    num_classes: int
    input: InputConfig
    class_names: tuple[str, ...] = ()
    plan: Mapping[str, int] = field(default_factory=dict)
    params: int = 0
    macs: int = 0
    precision: str = "float32"
    input_name: str = "images"
    output_name: str = "outputs"
    original: Provenance | None = None
    original_options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__

    def published(self, folder: Path) -> Description:
        """The same without absolute paths, for a file in `folder`; `located` finds them again on this machine."""
        told, places = published(self._paths(), folder)
        return self._with(told, places) if places else self

    def located(self, folder: Path) -> Description:
        """The description of a file in `folder` with absolute paths again, as far as they are known here."""
        return self._with(found(self._paths(), self.places, folder), self.places) if self.places else self

    def _paths(self) -> dict[str, Any]:
        original = None if self.original is None else self.original.to_json()
        return {"original": original, "original_options": dict(self.original_options)}

    def _with(self, told: Mapping[str, Any], places: Mapping[str, str]) -> Description:
        original = None if told["original"] is None else Provenance.from_json(told["original"])
        return replace(self, original=original, original_options=told["original_options"], places=places)

    def text(self) -> str:
        """As it stands in a file."""
        original = None if self.original is None else self.original.to_json()
        return json.dumps({"format": _FORMAT, **asdict(self), "original": original})

    @classmethod
    def read(cls, text: str | None, label: str) -> Description:
        """Read what `text` wrote; `label` names the file in messages.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if not text:
            raise CheckpointError(
                f"{label} was not written by vitcompact: it does not say how its images are prepared, nor what its "
                "outputs are; export the model again with `vitcompact export`"
            )
        try:
            return cls._of(parse_json(text))
        except (ValueError, CheckpointError) as error:
            raise CheckpointError(f"the description in {label} is damaged: {error}") from error

    @classmethod
    def _of(cls, data: Mapping[str, Any]) -> Description:
        if not isinstance(data, Mapping) or type(data.get("format")) is not int or data["format"] != _FORMAT:
            form = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"format {form!r} is not supported; this release reads format {_FORMAT}")
        read = typed(cls, {key: value for key, value in data.items() if key != "format"}, "it")
        if min(read.num_classes, read.params, read.macs) < 0:
            raise ValueError("negative numbers")
        check_described(asdict(read.input), "input")
        return read

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What `resolve_input` reads of a timm model."""
        told = asdict(self.input)
        labels = {"label_names": list(self.class_names)} if self.class_names else {}
        return {"architecture": self.architecture, "num_classes": self.num_classes, **told, **labels}


def describe(
    model: nn.Module,
    precision: str,
    names: tuple[str, str],
    original: Provenance | None = None,
    original_options: Mapping[str, Any] | None = None,
) -> Description:
    """The description of a model that will be exported with inputs and outputs of these `names`."""
    prepared = resolve_input(model)
    cost = count(model, prepared.input_size)
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    classes = num_classes(model)
    labels = cfg.get("label_names") if cfg.get("num_classes") == classes else None
    recorded: Any = getattr(model, "_model_args", None) or {}
    return Description(
        architecture=str(recorded.get("base") or cfg.get("architecture") or type(model).__name__),
        num_classes=classes,
        input=prepared,
        class_names=tuple(map(str, labels or ())),
        plan=_summary(getattr(model, "vitcompact_plan", None)),
        params=cost.params,
        macs=cost.macs,
        precision=precision,
        input_name=names[0],
        output_name=names[1],
        original=original,
        original_options=dict(original_options or {}),
    )


def _summary(plan: Plan | None) -> dict[str, int]:
    """How many layers got which operator."""
    if plan is None:
        return {}
    counts = Counter(spec.op for layer in plan.layers for spec in layer.operators)
    merged = {"merged": sum(plan.merge_tokens)} if plan.merge_tokens else {}
    return {**counts, **merged}
