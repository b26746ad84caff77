"""Policy folders: `config.json` (what it is) beside `model.safetensors` (weights and normalisation statistics)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

SCHEMA_VERSION = 1


def save_policy(folder: Path | str, kind: str, config: Mapping[str, Any], model: nn.Module) -> None:
    """Write ``config.json`` and ``model.safetensors`` into `folder` (made if missing)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema_version": SCHEMA_VERSION, "kind": kind, **config}, indent=2)
    (folder / "config.json").write_text(text + "\n")
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()},
              str(folder / "model.safetensors"))


def _read(folder: Path | str) -> tuple[Path, Any]:
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"no policy at {folder}: expected a folder with config.json and model.safetensors")
    try:
        return path, json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); save the policy again") from error


def read_kind(folder: Path | str, known: Collection[str]) -> str:
    """The kind that a policy folder's ``config.json`` names. Raises ValueError when it is none of the known ones."""
    path, config = _read(folder)
    kind = config.get("kind") if isinstance(config, dict) else type(config).__name__
    if kind not in known:
        raise ValueError(f"{path} describes a {kind!r}, expected one of {sorted(known)}: point at the right folder")
    return str(kind)


def read_config(folder: Path | str, kind: str) -> dict[str, Any]:
    """The ``config.json`` of a policy folder of this kind, without ``schema_version`` and ``kind``.

    Raises ValueError when the folder, the file or the kind is not what was expected.
    """
    path, config = _read(folder)
    if not isinstance(config, dict) or config.get("kind") != kind:
        got = config.get("kind") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path} describes a {got!r}, expected a {kind!r}: point at the right folder")
    if config.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {config.get('schema_version')!r}, this flow2one reads {SCHEMA_VERSION}: "
            "save the policy again with this version"
        )
    return {key: value for key, value in config.items() if key not in ("schema_version", "kind")}


def load_weights(folder: Path | str, model: nn.Module) -> None:
    """Fill `model` from ``model.safetensors``, strictly.

    Raises ValueError for a missing or broken file, missing or foreign tensors, wrong shapes, values that are not finite.
    """
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing: a policy folder holds config.json and model.safetensors")
    try:
        weights = load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"{path}: {bad} hold values that are not finite; this policy cannot be used")
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its config.json: {error}") from error
