"""Reads and checks ``export.json``: what a student observes, what it returns, and how one of its chunks is selected."""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flow2one_runtime.selection import Selection

SCHEMA_VERSION = 1
LARGEST = 1 << 28
"""Numbers that an observation, a latent or a chunk may have at most."""
LAST_PLAN, HAS_LAST_PLAN = "last_plan", "has_last_plan"
OUTPUTS = ["actions", "candidates", "index"]
"""Further inputs of a whole call's graph, and its outputs."""
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
class Call:
    """A graph of the whole call, with the selection inside.

    samples: N, latents that it takes, always as many. takes_last_plan: whether the last plan and a flag are inputs, too.
    """

    samples: int
    takes_last_plan: bool


@dataclass(frozen=True)
class Exported:
    """The content of an exported folder.

    inputs: the observation's features, or the tensors of a condition (`is_head`). latents: the last input.
    samples: how many latents the graph takes; 0: any number. starting: latents `[J, ..]` to draw from and the sums of their
    shares `[J]`; None: latents are standard normal. horizon: T. action_names: A names. files: a file per format.
    call: what the format ``call`` holds; None without it.
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
    call: Call | None = None

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
        sums = {name: found["files"].get(name) for name in exported.files.values()}
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeDecodeError,
            json.JSONDecodeError) as error:  # fmt: skip
        raise ValueError(f"{path} is not what `flow2one export` writes ({type(error).__name__}: {error}); export the student "
                         "again") from error  # fmt: skip
    for name, sha256 in sums.items():
        _check_file(folder, name, sha256)
    return exported


def _text(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name) < 256 or "\0" in name:
        raise TypeError(f"got the file name {str(name)[:60]!r}")
    return name


def _numbers(dtype: Any) -> str:
    """The name of a dtype of numbers."""
    if np.dtype(str(dtype)).kind not in "fiub":
        raise TypeError(f"got the dtype {dtype!r}, expected numbers")
    return str(dtype)


def _sizes(shape: Any) -> tuple[int, ...]:
    """Sizes of an array, small enough to be one observation or chunk."""
    sizes = tuple(shape)
    if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) > LARGEST:
        raise TypeError(f"got the shape {str(sizes)[:60]}, expected sizes above 0 and at most {LARGEST} numbers")
    return sizes


def _content(folder: Path, found: dict[str, Any]) -> Exported:
    inputs, latents = found["inputs"][:-1], found["inputs"][-1]
    samples, output, starting = latents["shape"][1], found["output"], found.get("starting_noises")
    if not inputs:
        raise KeyError("inputs")
    return Exported(
        folder=folder, kind=found["kind"], task=found["task"], dt_s=float(found["dt_s"]),
        inputs=tuple(Input(str(each["name"]), _sizes(each["shape"][1:]), _numbers(each["dtype"])) for each in inputs),
        latents=Input(str(latents["name"]), _sizes(latents["shape"][2:])),
        samples=_sizes([samples])[0] if isinstance(samples, int) else 0,
        horizon=_sizes(output["shape"][2:])[0], action_names=tuple(output["names"]),
        selection=Selection.of(found["selection"], found.get("action")),
        files={name: _text(entry["file"]) for name, entry in found["formats"].items()},
        starting=None if starting is None else (
            np.asarray(starting["noises"], np.float32), np.cumsum(np.asarray(starting["shares"], np.float64))),
        call=_call(found["formats"].get("call"), [each["name"] for each in found["inputs"]]),
    )  # fmt: skip


def _call(entry: dict[str, Any] | None, names: list[str]) -> Call | None:
    if entry is None:
        return None
    inputs, takes_last = list(entry["inputs"]), [*names, LAST_PLAN, HAS_LAST_PLAN]
    if inputs not in (names, takes_last) or list(entry["outputs"]) != OUTPUTS:
        raise TypeError(f"got a whole call from {inputs} to {entry['outputs']}, expected from {takes_last} to {OUTPUTS}")
    return Call(_sizes([entry["samples"]])[0], inputs == takes_last)


def _check_file(folder: Path, name: str, sha256: str | None) -> None:
    path = folder / name
    # the folder's own parts may be links; what it holds may not lead out of it
    if Path(name).name != name or os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise ValueError(f"{folder}: export.json names a file outside of the folder, {name!r}; do not use it")
    if not path.is_file():
        raise ValueError(f"{path} is missing; copy the whole folder, or export the student again")
    if sha256 is not None and _sha256(path) != sha256:
        raise ValueError(f"{path} was changed since it was exported; copy it again, or export the student again")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
