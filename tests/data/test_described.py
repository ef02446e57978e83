"""`pretrained_cfg`: what timm's own models say is accepted, what no image can be prepared by is named."""

from __future__ import annotations

from typing import Any

import pytest
from timm.models import get_pretrained_cfg, list_models

from vitcompact.data import resolve_input
from vitcompact.data.described import check_described
from vitcompact.errors import CheckpointError


def test_what_timm_says_of_its_models_is_accepted() -> None:
    for name in list_models(pretrained=True):
        cfg = get_pretrained_cfg(name)
        assert cfg is not None
        check_described(cfg.to_dict(), name)


WRONG: dict[str, tuple[Any, ...]] = {
    "input_size": (224, [3, 224], [3, 0, 32], [3, 32, 10**5], [3, 32.0, 32], [True, 32, 32], "abc", [10**9, 32, 32]),
    "test_input_size": ([3, "32", 32],),
    "mean": (0.5, [], ["0.5"], [float("nan")], [float("inf")], [True], {"a": 1}, [10**30]),
    "std": ([0], [0.0, 0.5, 0.5], [-1], [1e-320], "x"),
    "crop_pct": (0, -1, 1e-320, float("nan"), float("inf"), "0.9", True, [0.9], 11),
    "interpolation": ("", "cubic", 3, ["bicubic"], "\x1b[31m"),
    "crop_mode": ("centre", 1, True, ["center"]),
    "num_classes": (-1, 2.0, "2", True, 10**9),
    "classifier": (7, [7], {"a": "b"}),
    "first_conv": (7, True),
    "label_names": ("cat", [1, 2], {"0": "cat"}, [None]),
    "label_descriptions": (["a"], "a"),
    "fixed_input_size": ("no", 1),
    "custom_load": ("hf",),
    "pool_size": ([-1, 7], "7", [7.5]),
    "license": ({"a": 1},),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_named(name: str) -> None:
    for value in WRONG[name]:
        with pytest.raises(CheckpointError, match=rf"^x is damaged: {name} is .*, expected ") as refused:
            check_described({name: value}, "x")
        assert str(refused.value).isprintable()
        with pytest.raises(CheckpointError, match=name):
            resolve_input({"input_size": [3, 32, 32], name: value})


def test_a_crop_that_needs_a_huge_image_is_refused() -> None:
    check_described({"input_size": [3, 160, 160], "crop_pct": 0.01}, "x")
    with pytest.raises(CheckpointError, match="too small a share"):
        check_described({"input_size": [3, 1600, 1600], "crop_pct": 0.01}, "x")


def test_nothing_said_is_nothing_wrong() -> None:
    check_described(dict.fromkeys(WRONG), "x")
    check_described({"something": object()}, "x")
