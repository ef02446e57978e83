"""A split to evaluate on that a data set does not have is said, and is no reason to stop a verb that can do without."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vitcompact.cli import images
from vitcompact.data import DataOptions
from vitcompact.errors import DataError


class Said:
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)


def options(**given: Any) -> Any:
    usual = {"data_dir": None, "dataset": "", "train_split": "train", "val_split": "validation", "eval_data_dir": None}
    return SimpleNamespace(**{**usual, **given})


@pytest.mark.parametrize(
    ("given", "found", "warned"),
    [
        ({"dataset": "hfds/some/set"}, False, True),
        ({"dataset": "wds/some/set", "val_split": "test"}, False, True),
        ({"dataset": "hfds/some/set", "val_split": "train"}, False, False),
        ({"dataset": "hfds/there"}, True, False),
        ({"dataset": "hfds/some/set", "eval_data_dir": "images"}, True, False),
        ({"data_dir": "images"}, False, False),
    ],
)
def test_a_missing_split(
    given: dict[str, Any], found: bool, warned: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def opened(data: DataOptions, split: str) -> None:
        if data.dataset != "hfds/there":
            raise DataError(f"cannot open {data.dataset} (split '{split}')")

    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    monkeypatch.setattr(images, "open_dataset", opened)
    console = Said()
    data = images.optional_evaluation_set(options(**given), console)  # type: ignore[arg-type]
    assert (data is not None) == found
    assert console.warnings == (
        [f"nothing to evaluate on: cannot open {given['dataset']} (split '{given.get('val_split', 'validation')}')"]
        if warned
        else []
    )
