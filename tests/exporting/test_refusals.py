"""What cannot be exported or read is refused with one message, before the work, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.errors import CheckpointError, DataError, UsageError, VerificationError, VitCompactError
from vitcompact.exporting import FORMATS, open_exported
from vitcompact.exporting.base import Format, Job, Opened
from vitcompact.exporting.description import Description
from vitcompact.exporting.openvino_ir import OpenVino


class Plain(Format):
    """A format whose file is its description, run by the very model that was written."""

    suffix, title = ".plain", "Plain"
    precisions = ("float32", "float16", "int8")
    models: ClassVar[dict[str, nn.Module]] = {}
    error: float = 0.0

    def write(self, job: Job, path: Path) -> None:
        self.models[path.name] = job.model
        path.write_text(job.description.text(), encoding="utf-8")

    def open(self, path: Path) -> Opened:
        description = Description.read(path.read_text(encoding="utf-8"), str(path))

        def run(images: Tensor) -> Tensor:
            out: Tensor = self.models[path.name](images)
            return out + self.error * (len(images) > 3)

        return Opened(description, run, "plain")


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Plain:
    form = Plain()
    monkeypatch.setitem(FORMATS, ".plain", form)
    return form


def left(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_difference_is_noticed_at_every_batch_size(plain: Plain, folded: nn.Module, tmp_path: Path) -> None:
    plain.error = 0.01
    with pytest.raises(VerificationError, match=r"differs from PyTorch by .* allowed 0.0001; nothing was written"):
        vitcompact.export(folded, tmp_path / "model.plain")
    with pytest.raises(VerificationError, match=r"in an output, allowed 0.001"):
        vitcompact.export(folded, tmp_path / "model.plain", atol=0.001)
    assert left(tmp_path) == []
    result = vitcompact.export(folded, tmp_path / "model.plain", atol=0.02)
    assert result.max_abs_diff == pytest.approx(0.01, rel=0.01)
    assert left(tmp_path) == ["model.plain"]


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("images.reshape(-1)", "expected finite"),
        ("images * float('nan')", "expected finite"),
        ("images @ images[0, 0, 0, :5]", "does not run on 1 images"),
    ],
)
def test_outputs_that_are_none(
    plain: Plain, folded: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, message: str
) -> None:
    text = Description("a", 4, vitcompact.data.resolve_input(folded))
    monkeypatch.setattr(plain, "open", lambda path: Opened(text, lambda images: eval(form), "plain"))
    with pytest.raises(VerificationError, match=message):
        vitcompact.export(folded, tmp_path / "model.plain")
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module named 'attrs'"), "Plain's converter lacks .*: No module named 'attrs'"),
        (RuntimeError("no rule for aten::x"), "Plain cannot express this model: no rule for aten::x"),
    ],
)
def test_what_a_converter_says(
    plain: Plain, folded: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fails(job: Job, path: Path) -> None:
        raise error

    monkeypatch.setattr(plain, "write", fails)
    with pytest.raises(UsageError, match=message):
        vitcompact.export(folded, tmp_path / "model.plain")
    assert left(tmp_path) == []


def test_openvino_names_the_operators_that_it_has_no_rule_for() -> None:
    said = """Check 'false' failed at src/frontends/common_translators/src/unconverted_ops_report.cpp:151:
FrontEnd API failed with OpConversionFailure:
Model wasn't fully converted.
Summary:
-- No conversion rule found for operations: aten._upsample_bicubic2d_aa.default

"""
    assert OpenVino().reason(said) == "No conversion rule found for operations: aten._upsample_bicubic2d_aa.default"
    assert OpenVino().reason("\n  Inputs do not match.\nElsewhere") == "Inputs do not match."


def test_an_older_file_stays_until_the_new_one_is_proven(plain: Plain, folded: nn.Module, tmp_path: Path) -> None:
    out = tmp_path / "model.plain"
    out.write_text("older")
    with pytest.raises(UsageError, match=r"exists; give another name, or `overwrite=True`"):
        vitcompact.export(folded, out)
    plain.error = 1.0
    with pytest.raises(VerificationError):
        vitcompact.export(folded, out, overwrite=True)
    assert out.read_text() == "older"
    plain.error = 0.0
    vitcompact.export(folded, out, overwrite=True)
    assert open_exported_text(out)["num_classes"] == 4


def open_exported_text(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


REFUSED: list[tuple[str, dict[str, Any], type[VitCompactError], str]] = [
    ("model", {}, UsageError, "got no suffix; accepted: .onnx"),
    ("model.trt", {}, UsageError, "got '.trt'; accepted: .onnx"),
    ("model.onnx", {"opset": 9}, UsageError, "`opset` must be 18 to 23, got 9"),
    ("model.onnx", {"atol": 0.0}, UsageError, "`atol` must be above 0"),
    ("model.onnx", {"fp16": True, "int8": True}, UsageError, "leave out `fp16` or `int8`"),
    ("model.onnx", {"input_name": "a b"}, UsageError, "`input_name` must be a name"),
    ("model.onnx", {"output_name": "images"}, UsageError, "different names"),
    ("model.plain", {"int8": True}, DataError, "`int8` is calibrated on images: give `images`"),
    ("model.plain", {"int8": True, "images": torch.zeros(2, 3, 40, 40)}, DataError, "3 x 40 x 40"),
    ("model.pt2", {"int8": True}, UsageError, "written in float32, float16: leave out `int8`"),
]


@pytest.mark.parametrize(("name", "options", "kind", "message"), REFUSED)
def test_what_cannot_be_is_refused_at_once(
    plain: Plain,
    folded: nn.Module,
    tmp_path: Path,
    name: str,
    options: dict[str, Any],
    kind: type[VitCompactError],
    message: str,
) -> None:
    with pytest.raises(kind) as caught:
        vitcompact.export(folded, tmp_path / name, **options)
    assert message in str(caught.value)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("suffix", "fused"), [(".onnx", False), (".pt2", True)])
def test_timms_own_attention_is_written_as_products(suffix: str, fused: bool) -> None:
    """The ONNX form of the fused call takes four axes, and windows of Twins have an axis of their own."""
    from vitcompact.exporting.conversion import suited

    attention = timm.models.twins.LocallyGroupedAttn(8, num_heads=1, ws=2)
    assert attention.fused_attn
    prepared = suited(attention, FORMATS[suffix])
    assert bool(prepared.fused_attn) == fused
    assert attention.fused_attn
    tokens = torch.randn(2, 16, 8)
    torch.testing.assert_close(prepared(tokens, (4, 4)), attention(tokens, (4, 4)))


def test_the_training_form_is_refused(plain: Plain, converted: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="training form: fold first"):
        vitcompact.export(converted, tmp_path / "model.plain")


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_what_is_not_installed_is_named_with_its_extra(
    folded: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    form = FORMATS[suffix]
    monkeypatch.setattr("vitcompact.exporting.base.importlib.util.find_spec", lambda name: None)
    if not form.modules:
        pytest.skip("needs nothing but PyTorch")
    with pytest.raises(UsageError) as caught:
        vitcompact.export(folded, tmp_path / f"model{suffix}")
    assert f"pip install 'vitcompact[{form.extra}]'" in str(caught.value)


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
@pytest.mark.parametrize("content", [b"", b"this is no model", b"PK\x03\x04 broken"])
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged or no"):
        open_exported(tmp_path / name)


@pytest.mark.parametrize(("name", "size"), [("model.onnx", 1 << 40), ("model.xml", 1 << 29), ("model.pt2", 1 << 40)])
def test_files_larger_than_any_model(tmp_path: Path, name: str, size: int) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(size)
    with pytest.raises(CheckpointError, match=r"is refused: .* bytes"):
        open_exported(tmp_path / name)


class Odd(Plain):
    """Opens, and then its runtime fails, or gives what the description does not say."""

    answer: Any = None

    def open(self, path: Path) -> Opened:
        opened = super().open(path)

        def run(images: Tensor) -> Tensor:
            if self.answer is None:
                raise RuntimeError("[Runtime] : 2 : INVALID_ARGUMENT\nand a long trace")
            out: Tensor = self.answer
            return out

        return Opened(opened.description, run, "odd")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "does not run: .*INVALID_ARGUMENT$"),
        (torch.zeros(1, 4), r"gives outputs \(1, 4\)"),
        (torch.zeros(2, 5), r"gives outputs \(2, 5\)"),
        (torch.zeros(2, 4).long(), "gives outputs"),
        (torch.zeros(2, 4, 1), "gives outputs"),
    ],
)
def test_a_file_that_does_not_do_what_it_says(
    folded: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    form = Odd()
    monkeypatch.setitem(FORMATS, ".plain", form)
    monkeypatch.setattr("vitcompact.exporting.runtime.READABLE", (".plain",))
    size = vitcompact.data.resolve_input(folded).input_size
    (tmp_path / "x.plain").write_text(Description("a", 4, vitcompact.data.resolve_input(folded)).text())
    model = open_exported(tmp_path / "x.plain")
    form.answer = answer
    with pytest.raises(CheckpointError, match=message):
        model(torch.zeros(2, *size))
    form.answer = torch.ones(2, 4)
    assert torch.equal(model(torch.zeros(2, *size)), torch.ones(2, 4))


def test_files_of_others(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    node = onnx.helper.make_node("Relu", ["a"], ["b"])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="was not written by vitcompact"):
        open_exported(tmp_path / "foreign.onnx")
    onnx.helper.set_model_props(model, {"vitcompact": '{"format": 1, "input": 3}'})
    onnx.save(model, tmp_path / "broken.onnx")
    with pytest.raises(CheckpointError, match=r"the description in .*broken.onnx is damaged"):
        open_exported(tmp_path / "broken.onnx")


def changed(source: Path, out: Path, member: str, change: Any) -> Path:
    """A copy of an archive in which one member is another, or a new one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        names = {name.partition("/")[2]: name for name in old.namelist()}
        for short, name in names.items():
            new.writestr(name, change(old.read(name)) if short == member else old.read(name))
        if member not in names:
            new.writestr(f"{root}/{member}", change(b""))
    return out


def in_graph(old: str, new: str) -> Any:
    def change(content: bytes) -> bytes:
        assert old.encode() in content
        return content.replace(old.encode(), new.encode(), 1)

    return change


GRAPH, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
HOSTILE = [
    ("extra code", "data/aotinductor/model.so", lambda _: b"\x7fELF", "which no model of vitcompact needs"),
    ("opaque object", "data/constants/opaque_obj_0", lambda _: b"cos\n", "which no model of vitcompact needs"),
    ("guard", GRAPH, in_graph('"guards_code": []', '"guards_code": ["print(1)"]'), "it holds code"),
    ("operator", GRAPH, in_graph('"torch.ops.aten.linear.default"', '"torch.load"'), "'torch.load' is not one of"),
    ("file", GRAPH, in_graph("torch.ops.aten.linear.default", "torch.ops.aten.from_file.default"), "from_file"),
    ("size", GRAPH, in_graph('"expr_str": "', '"expr_str": "__import__(\'os\').getcwd()#'), "is no size"),
    ("pickled weight", WEIGHTS, in_graph('"use_pickle": false', '"use_pickle": true'), "pickled objects"),
    ("pickled input", "data/sample_inputs/model.pt", lambda _: b"cos\ngetcwd\n(tR.", "more than tensors"),
    ("tree", GRAPH, in_graph('\\"type\\": \\"builtins.tuple\\"', '\\"type\\": \\"os.path\\"'), "no plain tensors"),
]


@pytest.mark.parametrize(("member", "change", "message"), [case[1:] for case in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_hostile_archives(pt2_file: Path, tmp_path: Path, member: str, change: Any, message: str) -> None:
    path = changed(pt2_file, tmp_path / "evil.pt2", member, change)
    with pytest.raises(CheckpointError) as caught:
        open_exported(path)
    assert message in str(caught.value)


def test_a_copied_archive_is_read(pt2_file: Path, tmp_path: Path) -> None:
    """Else the refusals above would prove nothing."""
    shutil.copy(pt2_file, tmp_path / "copy.pt2")
    assert open_exported(tmp_path / "copy.pt2").num_classes == 4
