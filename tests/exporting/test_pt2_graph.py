"""Graphs of `.pt2` archives: names that are code, and graphs that are run under autocast."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vitcompact
from vitcompact.errors import CheckpointError
from vitcompact.exporting import open_exported
from vitcompact.folding.verify import perturbed

Document = Any
AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"
LINEAR = "torch.ops.aten.linear.default"


def rewritten(source: Path, out: Path, member: str, change: Callable[[Document], None]) -> Path:
    """A copy of an archive with one of its JSON documents changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.partition("/")[2] == member:
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            new.writestr(name, content)
    return out


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_exported(path)
    return str(caught.value)


def renamed(document: Document, old: str, new: str) -> Document:
    """A document in which a name is another one wherever it occurs, keys included."""
    if isinstance(document, dict):
        return {new if key == old else key: renamed(value, old, new) for key, value in document.items()}
    if isinstance(document, list):
        return [renamed(value, old, new) for value in document]
    return new if document == old else document


def graph(document: Document) -> Document:
    return document["graph_module"]["graph"]


def signature(document: Document) -> Document:
    return document["graph_module"]["signature"]


def nodes(document: Document, target: str) -> list[Document]:
    return [node for node in graph(document)["nodes"] if node["target"] == target]


def rename(old: Callable[[Document], str], new: str) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        document.update(renamed(document, old(document), new))

    return change


def _module_signature(document: Document) -> Document:
    return document["graph_module"]["module_call_graph"][0]["signature"]


def _set_argument_names(document: Document) -> None:
    _module_signature(document)["forward_arg_names"] = ["x=open('m', 'w')"]


def _set_tree(document: Document) -> None:
    spec = json.loads(_module_signature(document)["in_spec"])
    spec[1]["children_spec"][1]["context"] = json.dumps(["x': open('m', 'w'), 'y"])
    _module_signature(document)["in_spec"] = json.dumps(spec)


CODE = 'training") and open("m", "w") or getattr(self, "training'
"""As the name of a weight this runs when torch calls what it compiled."""
NAMES: dict[str, Callable[[Document], None]] = {
    "input": rename(lambda d: graph(d)["inputs"][-1]["as_tensor"]["name"], "x: open('m', 'w')"),
    "weight": rename(lambda d: signature(d)["input_specs"][0]["parameter"]["parameter_name"], CODE),
    "node": rename(lambda d: nodes(d, LINEAR)[0]["outputs"][0]["as_tensor"]["name"], "x = open('m', 'w')"),
    "argument": lambda d: nodes(d, LINEAR)[0]["inputs"][0].update(name="x=open('m','w'), y"),
    "arguments": _set_argument_names,
    "tree": _set_tree,
}


@pytest.mark.parametrize("change", NAMES.values(), ids=NAMES)
def test_names_that_are_code(pt2_file: Path, tmp_path: Path, change: Callable[[Document], None]) -> None:
    """torch writes them into a function's source and compiles it."""
    message = refusal(rewritten(pt2_file, tmp_path / "evil.pt2", "models/model.json", change))
    assert "is no name" in message or "no plain tensors" in message


def test_a_weight_whose_name_runs(pt2_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named so in both documents, as torch wants it."""
    monkeypatch.chdir(tmp_path)
    change = rename(lambda _: "cls_token", CODE)
    weights = rewritten(pt2_file, tmp_path / "weights.pt2", "data/weights/model_weights_config.json", change)
    both = rewritten(weights, tmp_path / "both.pt2", "models/model.json", change)
    for path in (weights, both):
        assert "is no name" in refusal(path)
    assert not Path("m").exists()


class Under(nn.Module):
    """A block of `torch.autocast`, as timm's LiteMLA has one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            out: Tensor = self.inner(tokens)
        return out


@pytest.fixture(scope="module")
def model() -> nn.Module:
    shape = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 1}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=4, **shape)
    model.norm = Under(model.norm)
    return perturbed(model, seed=1).eval()


@pytest.fixture(scope="module")
def autocast_file(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return vitcompact.export(model, tmp_path_factory.mktemp("pt2") / "model.pt2").out


@torch.no_grad()
def test_a_block_under_autocast_goes_to_a_file_and_back(model: nn.Module, autocast_file: Path) -> None:
    with zipfile.ZipFile(autocast_file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("models/model.json"))
        assert AUTOCAST in archive.read(name).decode()  # else nothing below could fail
    images = torch.randn(5, 3, 32, 32)
    wanted, got = model(images), open_exported(autocast_file)(images)
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


class Bordered(nn.Module):
    """A pooling whose border never wins, as timm's MaxPool2dSame is one in hybrid ViTs, or always does."""

    def __init__(self, inner: nn.Module, border: float) -> None:
        super().__init__()
        self.inner, self.border = inner, border

    def forward(self, tokens: Tensor) -> Tensor:
        bordered = nn.functional.pad(tokens, (0, 1), value=self.border)
        out: Tensor = self.inner(nn.functional.max_pool1d(bordered, 2, 1).nan_to_num().clamp(-9.0, 9.0))
        return out


@torch.no_grad()
@pytest.mark.parametrize("border", [float("-inf"), float("inf"), float("nan")])
def test_numbers_without_digits(model: nn.Module, tmp_path: Path, border: float) -> None:
    model = copy.deepcopy(model)
    model.norm = Bordered(model.get_submodule("norm"), border)
    images = torch.randn(5, 3, 32, 32)
    path = vitcompact.export(model, tmp_path / "model.pt2").out
    torch.testing.assert_close(open_exported(path)(images), model(images), rtol=1e-4, atol=1e-4)


def wrapped(document: Document) -> Document:
    """The arguments of the first block: device, number format, two switches, a graph, tensors."""
    return [value["arg"] for value in nodes(document, AUTOCAST)[0]["inputs"]]


def inner(document: Document) -> Document:
    return wrapped(document)[4]["as_graph"]["graph"]


def _target(new: str, inside: bool = False) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        node = inner(document)["nodes"][0] if inside else nodes(document, AUTOCAST)[0]
        node["target"] = new

    return change


def _argument(place: int, new: dict[str, Any]) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        nodes(document, AUTOCAST)[0]["inputs"][place]["arg"] = new

    return change


def _hand_to_aten(document: Document) -> None:
    node = next(node for node in graph(document)["nodes"] if node["target"].startswith("torch.ops.aten."))
    node["inputs"][0]["arg"] = wrapped(document)[4]


def _size_in_the_graph(document: Document) -> None:
    values = next(iter(inner(document)["tensor_values"].values()))
    values["sizes"][0] = {"as_expr": {"expr_str": "__import__('os').getcwd()", "hint": None}}


HIGHER = "torch.ops.higher_order."
BLOCKS: dict[str, tuple[Callable[[Document], None], str]] = {
    "operator inside": (_target("torch.load", inside=True), "'torch.load' is not one of"),
    "file inside": (_target("torch.ops.aten.from_file.default", inside=True), "from_file"),
    "extension inside": (_target("#x:y", inside=True), "'#x:y' is not one of"),
    "operators handed on": (_argument(4, {"as_operator": "torch.load"}), f"'{AUTOCAST}' is not one of"),
    "no graph": (_argument(4, {"as_string": "print"}), f"'{AUTOCAST}' is not one of"),
    "unknown device": (_argument(0, {"as_string": "privateuseone"}), f"'{AUTOCAST}' is not one of"),
    "no arguments": (lambda d: nodes(d, AUTOCAST)[0]["inputs"].clear(), f"'{AUTOCAST}' is not one of"),
    "a graph for aten": (_hand_to_aten, "hands on graphs"),
    "size inside": (_size_in_the_graph, "is no size"),
    "named by code": (lambda d: wrapped(d)[4]["as_graph"].update(name=CODE), "is no name"),
    "input inside": (lambda d: inner(d)["inputs"][0]["as_tensor"].update(name="x: open('m')"), "is no name"),
    **{
        name: (_target(HIGHER + name), f"'{HIGHER}{name}' is not one of")
        for name in ("cond", "map_impl", "wrap", "wrap_with_set_grad_enabled", "triton_kernel_wrapper_functional")
    },
}


@pytest.mark.parametrize(("change", "message"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_that_are_more(
    autocast_file: Path, tmp_path: Path, change: Callable[[Document], None], message: str
) -> None:
    assert message in refusal(rewritten(autocast_file, tmp_path / "evil.pt2", "models/model.json", change))
