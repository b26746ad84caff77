"""Policies in folders: `config.json` (kind, shape, settings) and `model.safetensors` (weights and statistics)."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from teachers.networks.encoding import EncodingPolicy
from teachers.networks.shapes import PolicyShape

SCHEMA_VERSION = 1
LARGEST = 1 << 20
"""No size in a ``config.json`` is larger."""


class PretrainedPolicy(EncodingPolicy):
    """The base class of all policies here: normalisation, encoder, and saving to a folder."""

    KIND: ClassVar[str]
    """The kind's name in `config.json`."""

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments besides the shape, as stored in `config.json`."""
        return {}

    @classmethod
    def from_settings(cls, shape: PolicyShape, settings: dict[str, Any]) -> Self:
        """The untrained policy with these settings. Raises KeyError or TypeError for settings of another kind."""
        return cls(shape)

    def save_pretrained(self, folder: Path | str) -> None:
        """Writes ``config.json`` and ``model.safetensors`` (with statistics). Raises ValueError for unset statistics."""
        self.normaliser.check()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"schema_version": SCHEMA_VERSION, "kind": self.KIND, "shape": self.shape.to_json(), **self.settings()}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, str(folder / "model.safetensors"))

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> Self:
        """Reads a folder that `save_pretrained` wrote. Raises ValueError, saying what is wrong with it."""
        config, path = _read_config(folder, cls.KIND), Path(folder) / "model.safetensors"
        if not path.is_file():
            raise ValueError(f"{path} is missing: a policy folder holds config.json and model.safetensors")
        weights = _read_weights(path)
        _refuse_larger(config, path)
        try:
            policy = cls.from_settings(PolicyShape(**config.pop("shape")), config)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:  # the last for sizes beyond any memory
            first = str(error).splitlines()[0]
            raise ValueError(f"{folder}/config.json does not describe a {cls.KIND}: {first}") from error
        _fill(policy, weights, f"{path} does not fit its config.json")
        try:
            policy.normaliser.check()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        return policy.eval()


def load_encoder(policy: EncodingPolicy, path: Path | str, parts: Collection[str] = ()) -> None:
    """Loads a policy's encoder, or parts of it (``colour``, ``depth``, ``points``, ..), from a local safetensors file.

    path: the ``model.safetensors`` of another policy, or a file with the same names (``encoder.colour...``). The rest of the
    file is ignored, statistics included. Raises ValueError for a missing or damaged file, one that lacks such a part, and a
    part that this encoder lacks.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected weights as save_pretrained writes them, model.safetensors")
    weights = _read_weights(path)
    for part in parts or ("",):
        prefix = "encoder." + (part + "." if part else "")
        module = getattr(policy.encoder, part, None) if part else policy.encoder
        if not isinstance(module, nn.Module):
            known = [name for name, _ in policy.encoder.named_children()]
            raise ValueError(f"encoder: got the part {part!r}, expected some of {known}")
        chosen = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        _fill(module, chosen, f"{path}: its {prefix.rstrip('.')} is not that of this policy")


def _read(folder: Path | str) -> tuple[Path, Any, Any]:
    """The path of a folder's ``config.json``, its contents, and the kind that it names."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"no policy at {folder}: expected a folder with config.json and model.safetensors")
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); save the policy again") from error
    return path, config, config.get("kind") if isinstance(config, dict) else type(config).__name__


def read_kind(folder: Path | str, known: Collection[str]) -> str:
    """The kind that a policy folder's ``config.json`` names. Raises ValueError for an unknown one."""
    path, _, kind = _read(folder)
    if not isinstance(kind, str) or kind not in known:
        raise ValueError(f"{path} describes a {kind!r}, expected one of {sorted(known)}: point at the right folder")
    return kind


def _read_config(folder: Path | str, kind: str) -> dict[str, Any]:
    """The ``config.json`` of a policy folder of this kind, without ``schema_version`` and ``kind``.

    Raises ValueError for a missing or damaged file, another kind, or another schema.
    """
    path, config, got = _read(folder)
    if got != kind:
        raise ValueError(f"{path} describes a {got!r}, expected a {kind!r}: point at the right folder")
    if config.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {config.get('schema_version')!r}, this flow2one reads {SCHEMA_VERSION}: "
            "save the policy again with this version"
        )
    return {key: value for key, value in config.items() if key not in ("schema_version", "kind")}


def _refuse_larger(config: dict[str, Any], path: Path) -> None:
    """Raise ValueError for a network that is larger than its file of weights, before anything of that size is allocated.

    A block of a transformer has more than width x width weights, and more than 500 bytes in the file's header.
    """
    size = path.stat().st_size
    shape = config.get("shape")
    for part in (shape, shape.get("encoder") if isinstance(shape, dict) else None, config):
        if not isinstance(part, dict):
            continue
        sizes = {name: value for name, value in part.items() if isinstance(value, int)}
        large = [name for name, value in sizes.items() if value > min(size, LARGEST)]
        if not large and sizes.get("depth", 1) * (sizes.get("width", 0) ** 2 + 500) > size:
            large = ["width", "depth"]
        if large:
            told = ", ".join(f"{name} is {str(sizes.get(name))[:20]}" for name in large)
            raise ValueError(f"{path.parent}/config.json describes a larger network than its weights, {size} bytes: {told}; "
                             "save the policy again")  # fmt: skip


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError for a damaged file or values that are not finite."""
    try:
        weights: dict[str, Tensor] = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error
    bad = [name for name, value in weights.items() if not bool(torch.isfinite(value).all())]
    if bad:
        raise ValueError(f"{path}: {bad} hold values that are not finite; this policy cannot be used")
    return weights


def _fill(module: nn.Module, weights: dict[str, Tensor], complaint: str) -> None:
    """Loads weights strictly. Raises ValueError, beginning with the complaint, for missing, unexpected or mis-sized ones."""
    expected = module.state_dict()
    faults = {
        "it lacks": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "size mismatch of": [f"{name} {list(value.shape)} for {list(expected[name].shape)}" for name, value in weights.items()
                             if name in expected and value.shape != expected[name].shape],
    }  # fmt: skip
    parts = [f"{what} {found[:4]}" + (f" and {len(found) - 4} more" if found[4:] else "")
            for what, found in faults.items() if found]  # fmt: skip
    if parts:
        raise ValueError(f"{complaint}: {'; '.join(parts)}")
    module.load_state_dict(weights, strict=True)
