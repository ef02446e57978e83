"""The workspace: one folder in which a job's stages find what the stage before left.

`workspace.json` records the source, the images, the selection and each stage's output with its SHA-256, so that a
stage whose input has changed since is noticed. It is written to a temporary sibling and renamed.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vitcompact.checkpoint.provenance import Provenance, sha256_of
from vitcompact.checkpoint.record import RECORD_NAME, read_record
from vitcompact.cli.spoken import flagged
from vitcompact.errors import UsageError
from vitcompact.utils.files import claimed, json_text, restored, tidied, write_file
from vitcompact.utils.reading import read_json, user_path
from vitcompact.utils.typed import typed

DEFAULT_WORKDIR = "vitcompact-out"
FORMAT = 1
STATE_NAME = "workspace.json"
WEIGHTS_NAME = "model.safetensors"
FOLDERS = {"convert": "converted", "finetune": "finetuned", "fold": "folded"}
"""The verbs whose stages leave a model, in the order of the job, and the folder of each."""


@dataclass(frozen=True)
class Source:
    """The original model: SOURCE (a path is absolute), how it is read, and the hashes of its weights and settings."""

    source: str
    sha256: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: str | None = None


@dataclass(frozen=True)
class Stage:
    """The output of one verb.

    Attributes:
        path: its directory, relative to the workspace where it lies inside.
        sha256: hash of its weights.
        serial: position in the order in which the stages were written.
        source: hash of the original's weights at that time (its name where it has none).
    """

    path: str
    sha256: str
    serial: int
    source: str | None = None


@dataclass(frozen=True)
class State:
    """The content of `workspace.json`.

    Attributes:
        source: the original.
        data: options that say which images, by option name.
        images: fingerprint of the images to calibrate or train on, or None.
        selection: options that say what is compacted, by option name.
        stages: by verb.
    """

    source: Source | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    selection: Mapping[str, Any] = field(default_factory=dict)
    stages: Mapping[str, Stage] = field(default_factory=dict)
    images: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> State:
        """Read what `to_json` wrote; ValueError where it is anything else."""
        if not isinstance(data, Mapping) or type(data.get("format")) is not int or data["format"] != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"format {found!r}, this release reads {FORMAT}")
        state = typed(cls, {key: value for key, value in data.items() if key != "format"}, "the workspace")
        if any(stage.serial < 0 for stage in state.stages.values()):
            raise ValueError("a negative serial number of a stage")
        known = {verb: stage for verb, stage in state.stages.items() if verb in FOLDERS}
        return replace(state, stages=known)  # a newer release may know more of them


class Workspace:
    """A folder with `workspace.json`; it exists on disk from the first write on.

    Args:
        path: the folder.

    Raises:
        UsageError: its `workspace.json` is damaged, or `path` is a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = user_path(path)
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--workdir {self.path} is a file; give the name of a directory")
        self.state = _read(self.path / STATE_NAME)

    @contextmanager
    def held(self) -> Iterator[Workspace]:
        """Hold the workspace for a verb that writes into it: one at a time, so that stages belong together.

        Raises:
            UsageError: another run holds it, or the folder has files of others in the places of ours.
        """
        with claimed(self.path / STATE_NAME):
            tidied(self.path)
            self.state = _read(self.path / STATE_NAME)
            self._check_room()
            yield self

    def _check_room(self) -> None:
        """Refuse a folder in which a file of somebody would be replaced."""
        for path in (self.analysis_file, self.plan_file):
            if path.exists() and not _has_layers(path):
                raise UsageError(
                    f"{path} was not written by vitcompact, so {self.path} is no workspace: give another --workdir"
                )

    def command(self, *words: str) -> str:
        """A command as it has to be typed to work in this workspace."""
        return command(*words, workdir=self.path)

    @property
    def analysis_file(self) -> Path:
        return self.path / "analysis.json"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def curves_file(self) -> Path:
        """What was measured of the original's layers, for another target."""
        return self.path / "curves.json"

    @property
    def budgets(self) -> Path:
        """Folder of the models of several targets."""
        return self.path / "budgets"

    def write_document(self, path: Path, document: Mapping[str, Any]) -> None:
        """Write one of the files above."""
        write_file(path, json_text(document))

    @property
    def finetune_state(self) -> Path:
        """Folder of the resumable state of finetuning."""
        return self.path / "finetune-state"

    def out(self, verb: str) -> Path:
        """The directory that a verb writes by default."""
        return self.path / FOLDERS[verb]

    def record(
        self,
        *,
        source: Source | None = None,
        data: Mapping[str, Any] | None = None,
        images: str | None = None,
        selection: Mapping[str, Any] | None = None,
        stage: tuple[str, Path] | None = None,
    ) -> None:
        """Remember what a verb leaves, in one step: its source, images, selection and model belong together.

        What is not given stays.

        Args:
            data, images: options that say which images, and their fingerprint.
            stage: a verb and the model that it wrote.
        """
        state = replace(
            self.state,
            source=source or self.state.source,
            data=self.state.data if data is None else dict(data),
            images=self.state.images if data is None else images,
            selection=self.state.selection if selection is None else dict(selection),
        )
        if stage is not None:
            verb, out = stage
            serial = 1 + max((each.serial for each in state.stages.values()), default=0)
            made = Stage(self._relative(out), sha256_of(out / WEIGHTS_NAME), serial, _key_of(state.source))
            state = replace(state, stages={**state.stages, verb: made})
        self._write(state)

    def source(self) -> Source:
        """The recorded original.

        Raises:
            UsageError: none was recorded.
        """
        if self.state.source is None:
            raise UsageError(
                f"no model was given, and the workspace {self.path} has none: "
                f"run '{self.command('analyze', 'SOURCE')}' first, or name the model"
            )
        return self.state.source

    def check_source(self, loaded: Provenance) -> None:
        """Raises UsageError where what was just loaded from the recorded source is not what was recorded."""
        source = self.source()
        changed = replace(loaded, sha256=source.sha256, settings=source.settings).differs(loaded)
        if changed:
            raise UsageError(
                f"the {changed} of {source.source} have changed since they were recorded in {self.path}: "
                f"run '{self._analyze_again()}' again"
            )

    def check_images(self, fingerprint: str | None) -> None:
        """Raises UsageError where the recorded images, looked at again, are not those recorded."""
        if None not in (fingerprint, self.state.images) and fingerprint != self.state.images:
            where = self.state.data.get("data_dir") or self.state.data.get("dataset")
            raise UsageError(
                f"the images in {where} have changed since they were recorded in {self.path}: "
                f"run '{self._analyze_again()}' again, or name the images with --data-dir"
            )

    def input_of(self, verb: str) -> Path:
        """The model that `finetune` or `fold` continues from.

        Raises:
            UsageError: the stage before is missing or stale; the message names the verb to run.
        """
        if verb == "fold" and "finetune" in self.state.stages:
            self._check_order("convert", "finetune")
            return self._checked("finetune")
        return self._checked("convert")

    def latest(self) -> tuple[str, Path]:
        """The stage that was written last, and its verb.

        Raises:
            UsageError: there is none, or it is stale.
        """
        if not self.state.stages:
            raise UsageError(
                f"no model was given, and the workspace {self.path} has none: "
                f"run '{self.command('convert')}' first, or name the model"
            )
        verb = max(self.state.stages, key=lambda name: self.state.stages[name].serial)
        return verb, self._checked(verb)

    def folded(self) -> Path:
        """The folded model.

        Raises:
            UsageError: there is none, it is stale, or something else was written after it.
        """
        for verb in ("convert", "finetune"):
            if "fold" in self.state.stages and verb in self.state.stages:
                self._check_order(verb, "fold")
        return self._checked("fold")

    def _checked(self, verb: str) -> Path:
        """The directory of a stage whose weights and source are those recorded."""
        stage = self.state.stages.get(verb)
        if stage is None:
            raise UsageError(
                f"no model was given, and the workspace {self.path} has no {FOLDERS[verb]} model: "
                f"run '{self.command(verb)}' first, or name the model"
            )
        path = restored(self.path / stage.path)
        if not (path / WEIGHTS_NAME).is_file():
            raise UsageError(f"{path} is gone: run '{self.command(verb)}' again, or name the model")
        if stage.source != _key_of(self.state.source):
            raise UsageError(
                f"{path} was made from another model than the one now recorded in {self.path} "
                f"({self.source().source}): run '{self.command('convert', '--overwrite')}', or name the model"
            )
        if sha256_of(path / WEIGHTS_NAME) != stage.sha256:
            raise UsageError(
                f"{path} has changed since 'vitcompact {verb}' wrote it: "
                f"run '{self.command(verb, '--overwrite')}', or name the model"
            )
        self._check_record(path, verb)
        return path

    def _check_record(self, path: Path, verb: str) -> None:
        """Compare what a model says of its original with the original recorded here."""
        source = self.state.source
        origin = read_record(path).provenance if (path / RECORD_NAME).is_file() else None
        if source is None or origin is None:
            return
        changed = replace(origin, sha256=source.sha256, settings=source.settings).differs(origin)
        if changed:
            raise UsageError(
                f"{path} was made from a model with other {changed} than {source.source}, which is recorded in "
                f"{self.path}: run '{self.command('convert', '--overwrite')}', or name the model"
            )

    def _check_order(self, before: str, after: str) -> None:
        first, second = self.state.stages.get(before), self.state.stages[after]
        if first is not None and first.serial > second.serial:
            raise UsageError(
                f"{self.path / first.path} is newer than {self.path / second.path}: "
                f"run '{self.command(after, '--overwrite')}', or name the model"
            )

    def _analyze_again(self) -> str:
        """The command that records source and images anew."""
        source = self.source()
        read = [word for name, value in source.options.items() for word in flagged(name, value)]
        images = [word for name, value in self.state.data.items() for word in flagged(name, value)]
        return self.command("analyze", source.source, *read, *images)

    def _relative(self, out: Path) -> str:
        out, root = out.resolve(), self.path.resolve()
        return str(out.relative_to(root) if out.is_relative_to(root) else out)

    def _write(self, state: State) -> None:
        write_file(self.path / STATE_NAME, json_text(state.to_json()))
        self.state = state


def command(*words: str, workdir: str | Path = DEFAULT_WORKDIR) -> str:
    """A command of ours as it has to be typed, `--workdir` included where it is not the default one."""
    elsewhere = () if str(workdir) == DEFAULT_WORKDIR else ("--workdir", str(workdir))
    return shlex.join(("vitcompact", *words, *elsewhere))


def _key_of(source: Source | None) -> str | None:
    """What tells whether a stage was made from this original."""
    return None if source is None else source.sha256 or f"{source.source} {sorted(source.options.items())}"


def _read(path: Path) -> State:
    if not path.exists():
        return State()
    try:
        return State.from_json(read_json(path))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} is damaged, or was not written by vitcompact ({error}): give another --workdir, or remove the file"
        ) from error


def _has_layers(path: Path) -> bool:
    """Whether a file is a plan or an analysis: a JSON object with a list of layers."""
    try:
        document = read_json(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("layers"), list)
