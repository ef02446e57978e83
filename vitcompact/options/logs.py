"""Where the course of a training run is told besides its own files."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from vitcompact.errors import UsageError
from vitcompact.options.declare import TRAINING, check_limits, option

_PACKAGES = {"log_tensorboard": "tensorboard", "log_wandb": "wandb"}


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Loss, rate and scores for other programs; `summary.csv` and `steps.jsonl` are always written.

    Attributes:
        log_tensorboard: in the folder of the state, `tensorboard/run-N`; a resumed run goes on in its own.
        log_wandb: what else Weights & Biases reads is in its environment variables (`WANDB_MODE=offline`, ...).
    """

    log_tensorboard: bool = option(
        False,
        "Write TensorBoard's event files beside the resumable state (extra: tensorboard).",
        panel=TRAINING,
        rare=True,
    )
    log_wandb: bool = option(False, "Log to Weights & Biases (extra: wandb).", panel=TRAINING, rare=True)
    wandb_project: str | None = option(
        None, "Project there.", panel=TRAINING, unit="NAME", unset="its own default", rare=True
    )

    def __post_init__(self) -> None:
        check_limits(self)
        if self.wandb_project is not None and not self.log_wandb:
            raise UsageError("`wandb_project` is of `log_wandb`, which was not given")
        for name, package in _PACKAGES.items():
            if getattr(self, name) and not _installed(package):
                raise UsageError(f"`{name}` needs {package}, not installed here: pip install 'vitcompact[{package}]'")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
