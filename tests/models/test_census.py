from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import timm
import timm.layers
import torch
from torch import nn

import vitcompact.models
from vitcompact.models import census, inspect
from vitcompact.models.attention_classes import REASONS, attention_class, attention_table, class_name
from vitcompact.models.census import FamilyRow, attention_like, support_matrix, to_markdown, unclassified
from vitcompact.models.registry import FAMILIES

DOCS = Path(__file__).parents[2] / "docs" / "families.md"


@pytest.fixture(scope="module")
def rows() -> dict[str, FamilyRow]:
    return {row.attention: row for row in support_matrix()}


def attention_in(name: str) -> set[str]:
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False)
    return {class_name(type(module)) for module in model.modules() if attention_class(module) is not None}


@pytest.mark.parametrize(
    ("attention", "models"),
    [
        ("layers.attention.Attention", 237),
        ("layers.attention.AttentionRope", 41),
        ("eva.EvaAttention", 36),
        ("levit.Attention", 20),
        ("swin_transformer_v2.WindowAttention", 12),
        ("swin_transformer.WindowAttention", 9),
        ("pvt_v2.Attention", 7),
        ("nextvit.EfficientAttention", 3),
    ],
)
def test_known_counts(rows: dict[str, FamilyRow], attention: str, models: int) -> None:
    assert attention_table().timm == "1.0.31", "the table was counted again: put the new counts here"
    assert rows[attention].models == models


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("test_vit3", {"layers.attention.Attention", "layers.attention_pool.AttentionPoolLatent"}),
        ("davit_tiny", {"davit.WindowAttention", "davit.ChannelAttention"}),
        ("nextvit_small", {"nextvit.EfficientAttention", "nextvit.ConvAttention"}),
    ],
)
def test_small_models_carry_what_the_table_says(model: str, expected: set[str]) -> None:
    assert attention_in(model) == expected


@pytest.mark.skipif(timm.__version__ != attention_table().timm, reason="counted with another timm release")
@pytest.mark.parametrize(
    ("module", "attention"), [("nextvit", "nextvit.EfficientAttention"), ("convit", "convit.GPSA")]
)
def test_counts_agree_with_building_every_model_of_a_file(
    rows: dict[str, FamilyRow], module: str, attention: str
) -> None:
    carrying = [name for name in timm.list_models(module=module) if attention in attention_in(name)]
    assert rows[attention].models == len(carrying)


def test_supported_is_what_the_families_say(rows: dict[str, FamilyRow]) -> None:
    supported = {name for name, row in rows.items() if row.supported}
    of_timm = {class_name(family.attention) for family in FAMILIES if family.name != "torch"}
    assert supported == of_timm
    assert class_name(timm.layers.Attention) in supported
    assert not any(row.supported for row in support_matrix(families=()))


def test_rows_are_unique_explained_and_sorted() -> None:
    matrix = support_matrix()
    assert len({row.attention for row in matrix}) == len(matrix)
    assert all(row.reason.strip() for row in matrix)
    assert [row.models for row in matrix] == sorted((row.models for row in matrix), reverse=True)
    assert all(entry.kind in REASONS for entry in attention_table().attention.values())
    assert attention_table().attention.keys().isdisjoint(attention_table().not_attention)


def test_reasons_tell_not_yet_from_never() -> None:
    reasons = {row.attention: row.reason for row in support_matrix(families=())}
    assert reasons["swin_transformer.WindowAttention"].startswith("not supported yet (windows")
    assert reasons["xcit.XCA"] == "channel attention: no token-by-token map"
    assert reasons["cait.TalkingHeadAttn"].startswith("mixes heads before the softmax")


def test_every_class_of_the_installed_timm_is_classified() -> None:
    assert unclassified() == [], "read these classes and put them into families/attention_classes.json"


@pytest.mark.parametrize(
    ("module", "classes"),
    [
        ("timm.models.xcit", {"xcit.XCA", "xcit.XCABlock", "xcit.ClassAttentionBlock"}),
        ("timm.models.convit", {"convit.GPSA", "convit.MHSA"}),  # by name the first does not show
        ("timm.models.efficientvit_mit", {"efficientvit_mit.LiteMLA"}),  # no softmax either
        ("timm.models.resnet", set()),
    ],
)
def test_attention_is_found_by_name_and_by_source(module: str, classes: set[str]) -> None:
    assert set(attention_like(module)) == classes


def test_a_class_that_the_table_does_not_know_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    known = attention_table()
    fewer = {name: entry for name, entry in known.attention.items() if name != "xcit.XCA"}
    monkeypatch.setattr(census, "attention_table", lambda: dataclasses.replace(known, attention=fewer))
    monkeypatch.setattr(census, "attention_like", lambda module: attention_like(module) if "xcit" in module else ())
    assert unclassified() == ["xcit.XCA"]


def test_rows_have_the_keys_of_the_contract() -> None:
    row = json.loads(json.dumps(support_matrix()[0].to_json()))
    assert row["supported"] is True
    assert set(row) == {"attention", "models", "supported", "reason"}


def test_the_documented_matrix_is_the_current_one() -> None:
    assert to_markdown(support_matrix()) in DOCS.read_text(encoding="utf-8"), (
        "run: python benchmarks/attention_census.py --markdown docs/families.md"
    )


def test_the_worked_example_is_the_file_it_shows() -> None:
    code = Path(vitcompact.models.__file__).with_name("visformer.py").read_text(encoding="utf-8")
    assert f"```python\n{code}```" in DOCS.read_text(encoding="utf-8"), (
        "run: python benchmarks/attention_census.py --markdown docs/families.md"
    )
    assert len(code.splitlines()) < 60


def test_a_class_that_nobody_classified_is_skipped_by_name() -> None:
    """As those of a newer timm are."""
    shiny = type("ShinyAttention", (nn.Module,), {"__module__": "timm.models.shiny", "forward": lambda self, x: x})
    model = timm.create_model("test_vit")
    model.blocks[0].attn = shiny()
    found = inspect(model)
    assert ("blocks.0.attn", "ShinyAttention: an attention class that is not known yet") in [
        (item.name, item.reason) for item in found.skipped
    ]
    assert [site.name for site in found.attention] == [f"blocks.{i}.attn" for i in range(1, len(model.blocks))]
    assert not inspect(timm.create_model("test_vit")).skipped
