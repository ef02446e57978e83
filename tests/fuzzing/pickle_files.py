"""Files of `torch.save` and `torch.jit.save` with code, shapes or sizes in them that no checkpoint needs."""

from __future__ import annotations

import io
import pickletools
import struct
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .mutate import Rng, damaged, of_the_system

MARK = "EXECUTED"
"""The file that hostile code would leave."""
SHELL, PYTHON = f"echo > {MARK}", f"open({MARK!r}, 'w').close()"
CALLS: tuple[tuple[str, str, bytes], ...] = (
    *((module, "system", b"V" + SHELL.encode() + b"\n") for module in ("os", "posix", "nt")),
    *(
        (module, name, b"V" + PYTHON.encode() + b"\n")
        for module in ("builtins", "__builtin__")
        for name in ("exec", "eval")
    ),
    ("subprocess", "Popen", b"(lV/bin/sh\naV-c\naV" + SHELL.encode() + b"\na"),
    ("subprocess", "getoutput", b"V" + SHELL.encode() + b"\n"),
    ("pty", "spawn", b"V/bin/true\n"),
    ("builtins", "__import__", b"Vantigravity\n"),
    ("builtins", "getattr", b"cos\npath\nVos\n"),
    ("builtins", "open", f"V{MARK}\nVw\n".encode()),
    ("io", "open", f"V{MARK}\nVw\n".encode()),
    ("pathlib", "Path.touch", f"V{MARK}\n".encode()),
    ("shutil", "rmtree", b"V.\n"),
    ("runpy", "run_path", b"Vevil.py\n"),
    ("importlib", "import_module", b"Vevil\n"),
    ("operator", "methodcaller", b"Vsystem\nVx\n"),
    ("functools", "partial", b"cos\nsystem\nV" + SHELL.encode() + b"\n"),
    ("pickle", "loads", b"C\x04cos\n"),
    ("torch", "load", b"Vevil.pth\n"),
    ("torch.jit", "load", b"Vevil.pth\n"),
    ("torch.hub", "load", b"Vevil\nVx\n"),
    ("torch.storage", "_load_from_bytes", b"C\x04cos\n"),
    ("torch.ops", "load_library", b"Vevil.so\n"),
    ("torch._utils_internal", "eval", b"V1\n"),
    ("torch.serialization", "load", b"Vevil.pth\n"),
    ("torch.utils.cpp_extension", "load", b"Vevil\nVevil.cpp\n"),
    ("torch._inductor.codecache", "compile_file", b"Vevil.cpp\n"),
    ("torch.distributed.elastic.multiprocessing", "start_processes", b""),
    ("numpy", "load", b"Vevil.npy\n"),
    ("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n(I900000000\ntVb\n"),
    ("numpy.f2py", "compile", b"Vx\n"),
    ("builtins", "bytearray", b"L6000000000L\n"),
    ("builtins", "bytes", b"L6000000000L\n"),
    ("builtins", "range", b"L6000000000L\n"),
    ("collections", "deque", b"L6000000000L\n"),
    ("collections", "Counter", b"(dVx\nL6000000000L\ns"),
    ("_codecs", "encode", b"Vx\nVunicode_escape\n"),
    ("torch", "Size", b"(lL6000000000L\na"),
    ("torch", "zeros", b"L6000000000L\n"),
    ("torch", "device", b"Vcuda:0\n"),
    ("evil", "Evil", b"V1\n"),
    ("evil", "evil", b"V1\n"),
    ("__main__", "Evil", b"V1\n"),
    ("timm.models", "create_model", b"Vvit_base_patch16_224\n"),
    ("vitcompact.checkpoint.inert", "Inert", b"V1\n"),
)


def call(rng: Rng) -> bytes:
    """Opcodes that leave the result of a call on the stack, in one of the spellings of a pickle."""
    module, name, arguments = rng.choice(CALLS)
    kind = rng.randrange(5)
    if kind == 0:
        return b"(" + arguments + f"i{module}\n{name}\n".encode()
    if kind == 1:  # STACK_GLOBAL
        texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
        return texts + b"\x93(" + arguments + b"tR"
    found = f"c{module}\n{name}\n".encode()
    if kind == 2:  # NEWOBJ
        return found + b"(" + arguments + b"t\x81"
    if kind == 3:  # built from a state
        return found + b"(" + arguments + b"tR}V__class__\n" + found + b"sb"
    return found + b"(" + arguments + b"tR"


def with_call(pickled: bytes, rng: Rng) -> bytes:
    """A pickle that makes a call somewhere and drops the result, or keeps it at the end."""
    ends = [position for _, _, position in pickletools.genops(pickled) if position]
    if rng.random() < 0.3:
        return pickled[: ends[-1]] + b"0" * (rng.random() < 0.5) + call(rng) + b"."
    at = rng.choice(ends)
    return pickled[:at] + call(rng) + b"0" + pickled[at:]


def odd_tensor(rng: Rng) -> Any:
    """A tensor of a kind that no checkpoint of a Vision Transformer has."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.empty(4, 4, device="meta"),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
        lambda: torch.quantize_per_channel(torch.ones(4, 2), torch.ones(4), torch.zeros(4), 0, torch.quint8),
        lambda: torch.ones((1,) * 64),
        lambda: torch.ones(1).expand(10**9),
        lambda: torch.ones(1).as_strided((3,), (0,)),
        lambda: torch.ones(4, dtype=rng.choice((torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint64))),
        lambda: torch.nn.Parameter(torch.ones(2)),
        lambda: torch.ones(2).to_mkldnn(),
        lambda: torch.tensor(float("nan")),
        lambda: torch.empty(0, 10**12),
        lambda: torch.nn.Linear(2, 2),
        lambda: torch.ones(3, requires_grad=True),
        lambda: torch.ones(3)[1:],
        lambda: torch.ones(2).conj(),
        lambda: torch._neg_view(torch.ones(2)),
        lambda: torch.Size([1, 2]),
        lambda: torch.Generator(),
        lambda: torch.float16,
        lambda: torch.UntypedStorage(8),
    )
    return rng.choice(makers)()


def odd_content(state: dict[str, Tensor], rng: Rng) -> Any:
    """What a training script may have saved, or somebody who means harm."""
    kind = rng.randrange(13)
    changed: dict[Any, Any] = dict(state)
    name = rng.choice(list(state))
    if kind < 5:
        changed[name] = odd_tensor(rng)
        return rng.choice((changed, {"state_dict": changed}, {"model": changed, "args": {"model": "x"}}))
    if kind == 5:
        value: Any = {"w": torch.ones(1)}
        for _ in range(rng.choice((3, 8, 200))):  # the same object under many keys
            value = {f"k{i}": value for i in range(rng.choice((2, 40, 1000)))}
        return value
    if kind == 6:
        circle: dict[str, Any] = {"state_dict": changed}
        circle["model"] = circle
        return circle
    if kind == 7:
        rubbish: Any = rng.choice((None, 1, [], "x" * 10_000, {"\x1b[31m": 1}, {1: 2}, range(10**9), 1e400, b"x"))
        return {**{f"model{i}": changed for i in range(rng.choice((2, 300)))}, "epoch": rubbish}
    if kind == 8:
        return {f"\x1b[31m\n{key}": value for key, value in changed.items()}
    if kind == 9:
        names: dict[Any, Any] = dict(enumerate(changed.values()))
        return rng.choice((names, list(changed.values()), tuple(changed), changed[name], None, 7, {}, OrderedDict()))
    if kind == 10:
        other = rng.choice(("model", "arch", "hyper_parameters", "args", "config", "class_names"))
        told = rng.choice(
            ("vit_7b_patch16_dinov3", {"model": "\x1b[31m"}, {"img_size": 10**9}, 7, ["a"] * 9, {"mean": [1]})
        )
        return {"state_dict": changed, other: told}
    if kind == 11:
        changed[name] = changed[name].new_zeros(rng.choice(((1,), (2, 3), (0,), (5, 5, 5, 5))))
        return changed
    return {f"{rng.choice(('module.', '_orig_mod.', 'a.b.', ''))}{key}": value for key, value in changed.items()}


def _saved(content: Any, rng: Rng) -> bytes:
    buffer = io.BytesIO()
    protocol = rng.choice((2, 2, 3, 4, 5))
    torch.save(content, buffer, pickle_protocol=protocol, _use_new_zipfile_serialization=rng.random() < 0.7)
    return buffer.getvalue()


def hostile_pickle(path: Path, state: dict[str, Tensor], script: bytes, rng: Rng) -> None:
    """Write a variant of a file that holds `state`, or of a TorchScript archive."""
    if of_the_system(path, rng):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(_variant(state, script, rng))


def _variant(state: dict[str, Tensor], script: bytes, rng: Rng) -> bytes:
    kind = rng.randrange(10)
    if kind == 0:
        return damaged(_saved(state, rng), rng)
    if kind == 1:
        return _bare(rng)
    if kind == 2:
        return _old_tar(rng)
    if kind in (3, 4):
        return _changed_archive(script if rng.random() < 0.5 else _saved_zip(state), rng)
    if kind in (5, 6):
        return _with_code(_saved_zip(state) if rng.random() < 0.7 else script, rng)
    if kind == 7:
        return with_call(_legacy(state), rng)
    try:
        return _saved(odd_content(state, rng), rng)
    except Exception:  # torch does not save everything: then bytes are damaged
        return damaged(_saved(state, rng), rng)


def _saved_zip(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _legacy(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def _bare(rng: Rng) -> bytes:
    """A pickle without torch's format around it."""
    start = rng.choice((b"", b"\x80\x02", b"\x80\x04", b"\x80\x05"))
    odd = (
        *(b"(" * 100_000, b"]" * 50_000 + b"." * 2, b"\x8a\xff" + b"\x7f" * 255, b"\x8b\xff\xff\xff\x7f"),
        *(b"B\xff\xff\xff\xff", b"\x8d" + b"\xff" * 8, b"\x8e\xff\xff\xff\xff\xff\xff\xff\x0f", b"j\xff\xff\xff\xff"),
        *(b"]" + b"2\x61" * 60_000, b"Vx\n" + b"2\x86" * 300 + b".", b"r\xff\xff\xff\xff", b"P1\n.", b"K\x01Q."),
        *(b"\x82\x01.", b"I" + b"9" * 200_000 + b"\n.", b"}" + b"]K\x01s.", b"((d(ds.", b"\x95" + b"\xff" * 8 + b"N."),
    )
    return start + (rng.choice(odd) if rng.random() < 0.5 else call(rng)) + b"."


def _old_tar(rng: Rng) -> bytes:
    """The format of torch before 0.1.10."""
    buffer = io.BytesIO()
    parts = {"sys_info": b"}.", "pickle": call(rng) + b".", "storages": b"K\x01." + call(rng), "tensors": b"K\x00."}
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in parts.items():
            if rng.random() < 0.9:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _members(content: bytes) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def _archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


def _changed_archive(content: bytes, rng: Rng) -> bytes:
    """Members lost, doubled, renamed, damaged, compressed, or claiming another size."""
    members = _members(content)
    at = rng.randrange(len(members))
    name, data = members[at]
    kind = rng.randrange(8)
    if kind == 0:
        del members[at]
    elif kind == 1:
        members.append((name, damaged(data, rng)))
    elif kind == 2:
        members[at] = rng.choice((f"../{name}", f"/{name}", name.upper(), "x", "archive/data.pkl", "a\0b")), data
    elif kind == 3:
        members[at] = name, damaged(data, rng)
    elif kind == 4:
        return _archive([(name, data + b"\0" * 30_000_000)], zipfile.ZIP_DEFLATED)
    elif kind == 5:
        members += [(f"archive/{i}", b"") for i in range(20_000)]
    elif kind == 6:
        whole = bytearray(_archive(members))
        for signature, offset in ((b"PK\x01\x02", 20), (b"PK\x03\x04", 18)):
            found = whole.find(signature)
            struct.pack_into("<II", whole, found + offset, *(rng.choice((0, 2**31, 2**32 - 1)),) * 2)
        return bytes(whole)
    else:
        members = [
            (name, rng.choice((b"big", b"little", b"\xff")) if "byteorder" in name else data) for name, data in members
        ]
    return _archive(members)


def _with_code(content: bytes, rng: Rng) -> bytes:
    """A call in a pickle of an archive, or numbers in it changed (sizes, strides, offsets, keys)."""
    changed = []
    for name, data in _members(content):
        if name.endswith("data.pkl"):
            data = with_call(data, rng) if rng.random() < 0.6 else _other_numbers(data, rng)
        elif name.endswith("constants.pkl") and rng.random() < 0.5:
            data = call(rng) + b"."
        elif name.endswith(".py"):
            data += b"\nimport os\nos.system('" + SHELL.encode() + b"')\n"
        changed.append((name, data))
    return _archive(changed)


def _other_numbers(pickled: bytes, rng: Rng) -> bytes:
    spots = [
        (position, 1 if opcode.name == "BININT1" else 2)
        for opcode, _, position in pickletools.genops(pickled)
        if opcode.name in ("BININT1", "BININT2") and position is not None
    ]
    for position, width in sorted(rng.sample(spots, min(len(spots), rng.choice((1, 2)))), reverse=True):
        number = rng.choice((0, 255, 2**31 - 1, -1, 6 * 10**9, 2**62))
        new = b"\x8a\x09" + number.to_bytes(9, "little", signed=True)
        pickled = pickled[:position] + new + pickled[position + 1 + width :]
    return pickled
