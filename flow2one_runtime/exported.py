"""Reads and checks ``export.json``: what a student observes, what it returns, and how one of its chunks is selected."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flow2one_runtime.selection import Selection

SCHEMA_VERSION = 1
IN_PLACE = "in_place"
"""Kind of a policy that was fine-tuned in place: only its head was exported, and its inputs are the condition."""


@dataclass(frozen=True)
class Input:
    """One input of the graph.

    shape: without the batch axis; of an observation (O, ..), of latents the shape of one. dtype: numpy's name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Exported:
    """The content of an exported folder.

    inputs: the observation's features, or the tensors of a condition (`is_head`). latents: the last input.
    samples: how many latents the graph takes; 0: any number. starting: latents `[J, ..]` to draw from and the sums of their
    shares `[J]`; None: latents are standard normal. horizon: T. action_names: A names. files: a file per format.
    """

    folder: Path
    kind: str
    task: str
    dt_s: float
    inputs: tuple[Input, ...]
    latents: Input
    samples: int
    horizon: int
    action_names: tuple[str, ...]
    selection: Selection
    files: dict[str, str]
    starting: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_head(self) -> bool:
        """Whether the inputs are a condition, which the user's own encoder makes, instead of an observation."""
        return self.kind == IN_PLACE

    @property
    def observation_steps(self) -> int:
        """O, how many control steps an observation spans; 1 for a condition."""
        return 1 if self.is_head else self.inputs[0].shape[0]


def read_exported(folder: Path | str) -> Exported:
    """The content of a folder that `flow2one export` wrote. Raises ValueError, in one line, for anything else."""
    folder = Path(folder)
    path = folder / "export.json"
    if not path.is_file():
        if (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds a student that was not exported; run: flow2one export --student {folder} --out "
                             "<folder>")  # fmt: skip
        raise ValueError(f"{path} does not exist; expected a folder that `flow2one export` wrote")
    try:
        found = json.loads(path.read_text())
        version = found.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path}: got schema_version {version!r}, expected {SCHEMA_VERSION}; export the student again, or "
                             "install the flow2one_runtime of the flow2one that exported it")  # fmt: skip
        if not found["formats"]:
            raise ValueError(f"{folder} holds no graph; export the student with --formats onnx")
        exported = _content(folder, found)
    except (KeyError, IndexError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not what `flow2one export` writes ({type(error).__name__}: {error}); export the student "
                         "again") from error  # fmt: skip
    for name in exported.files.values():
        _check_file(folder / name, found["files"].get(name))
    return exported


def _content(folder: Path, found: dict[str, Any]) -> Exported:
    inputs, latents = found["inputs"][:-1], found["inputs"][-1]
    samples, output, starting = latents["shape"][1], found["output"], found.get("starting_noises")
    if not inputs:
        raise KeyError("inputs")
    return Exported(
        folder=folder, kind=found["kind"], task=found["task"], dt_s=float(found["dt_s"]),
        inputs=tuple(Input(each["name"], tuple(each["shape"][1:]), each["dtype"]) for each in inputs),
        latents=Input(latents["name"], tuple(latents["shape"][2:])),
        samples=samples if isinstance(samples, int) else 0,
        horizon=output["shape"][2], action_names=tuple(output["names"]),
        selection=Selection.of(found["selection"], found.get("action")),
        files={name: entry["file"] for name, entry in found["formats"].items()},
        starting=None if starting is None else (
            np.asarray(starting["noises"], np.float32), np.cumsum(np.asarray(starting["shares"], np.float64))),
    )  # fmt: skip


def _check_file(path: Path, sha256: str | None) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder, or export the student again")
    if sha256 is not None and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ValueError(f"{path} was changed since it was exported; copy it again, or export the student again")
