"""A trained LeRobot policy as a teacher: an adapter that runs in LeRobot's own environment, through LeRobot's own classes.

    flow2one convert --teacher teachers/adapters/lerobot_policies.py:build --adapter.python /path/to/lerobot/bin/python
                     --adapter.arguments path=outputs/train/checkpoints/last/pretrained_model

It imports nothing of ours, so that it can be loaded by its path; see docs/lerobot.md. An observation is encoded once; only the
head runs for each of the K chunks (lerobot_teachers.py). Python 3.10.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from torch import Tensor

PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")
TEXT_POLICIES = ("smolvla", "pi0", "pi05", "multi_task_dit", "xvla")
"""Policies with a language instruction."""
KINDS = ("diffusion", *TEXT_POLICIES)
MISSING = {
    "groot": "LeRobot downloads its backbone from the hub with trust_remote_code, and its actions are relative to a state; "
             "missing: its head (get_action_with_features) with noise from outside",
    "wall_x": "its ODE is solved inside the forward of its language model, whose tokenizer is loaded with trust_remote_code; "
              "missing: what is computed once, apart from what runs in each step",
    "pi0_fast": "it generates tokens one after the other and has no noise to start from",
    "act": "it gives one chunk in one evaluation already",
}  # fmt: skip
"""Kinds of LeRobot that are not supported, and why."""


def build(path: str, instruction: str = "", device: str = "cpu", names: str = "", steps: str = "") -> Any:
    """The policy in the folder `path`, as LeRobot saves it (``pretrained_model``).

    instruction: the task in words, for `TEXT_POLICIES`; device: where it runs; names: ``ours=its`` pairs, joined by commas, for
    features whose recorded name is not the policy's; steps: solver steps, "": as in its config.
    Raises ValueError for an incomplete folder, and for processors with classes of their own or without finite statistics.
    """
    folder = Path(path)
    config, policy, preprocessor, postprocessor = load(folder, device)
    pairs = dict(pair.split("=", 1) for pair in names.split(",") if "=" in pair)
    if config.type in TEXT_POLICIES and not instruction:
        raise ValueError(f"{folder}: a {config.type} policy needs an instruction; give it: instruction=pick up the cube")
    kind = _beside("lerobot_teachers.py").teacher_of(config.type)
    teacher = kind(policy, preprocessor, postprocessor, instruction, pairs, int(steps) if steps else 0)
    in_place = _beside("lerobot_in_place.py")
    teacher.why_not_in_place = in_place.why_not(policy, folder)
    if teacher.why_not_in_place:
        return teacher
    return in_place.InPlace(teacher, folder, lambda other: build(other, instruction, device, names))


def _beside(name: str) -> Any:
    """The file of this name beside this one as a module, by its path, as this one is loaded."""
    spec = importlib.util.spec_from_file_location("flow2one_" + Path(name).stem, Path(__file__).resolve().parent / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(folder: Path, device: str) -> tuple[Any, Any, Any, Any]:
    """Config, policy, pre- and postprocessor. Raises ValueError as `build`."""
    check_folder(folder)
    kind = json.loads((folder / "config.json").read_text()).get("type")
    if kind not in KINDS:
        why = f" ({MISSING[kind]})" if kind in MISSING else ""
        raise ValueError(f"{folder}: a policy of type {kind!r}{why}, expected one of {sorted(KINDS)}")
    try:  # importing it registers its config
        importlib.import_module(f"lerobot.policies.{kind}.configuration_{kind}")
    except ModuleNotFoundError as error:
        raise ValueError(f"{folder}: this LeRobot has no policies of type {kind!r} ({error}); take a newer one") from error
    _check_transformers(folder, kind)
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors

    config = PreTrainedConfig.from_pretrained(str(folder), local_files_only=True)
    config.device = device
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None  # LeRobot would download them, to be overwritten by the folder's
    policy = get_policy_class(config.type).from_pretrained(str(folder), config=config, local_files_only=True, strict=True)
    check_shapes(folder, policy)
    overrides = {"device_processor": {"device": device}}
    processors = make_pre_post_processors(config, pretrained_path=str(folder), preprocessor_overrides=overrides)
    return config, policy.to(device).eval(), *processors


def _check_transformers(folder: Path, kind: str) -> None:
    """Raises ValueError where this LeRobot needs a patched transformers that is not installed (pi0 and pi05 of LeRobot 0.4).

    LeRobot itself would notice only after it had created billions of weights.
    """
    if kind not in ("pi0", "pi05"):
        return
    model = importlib.util.find_spec(f"lerobot.policies.{kind}.modeling_{kind}")
    source = "" if model is None or model.origin is None else Path(model.origin).read_text()
    needs_patch = "models.siglip import check" in source
    if needs_patch and importlib.util.find_spec("transformers.models.siglip.check") is None:
        installed = " and ".join(f"{name} {importlib.metadata.version(name)}" for name in ("lerobot", "transformers"))
        raise ValueError(f"{folder}: {kind} of this LeRobot needs its own branch of transformers (its extra pi), installed are "
                         f"{installed}; install that branch, or a newer LeRobot, which takes a released one")  # fmt: skip


# -- checks before LeRobot reads the folder -----------------------------------------------------------------------------


def check_folder(folder: Path) -> None:
    """Raises ValueError for missing files, truncated weights, and statistics that are truncated or not finite.

    A processor step that names a class by its module would import it: only LeRobot's registered steps are accepted.
    """
    lacking = [name for name in ("config.json", "model.safetensors", *PROCESSORS) if not (folder / name).is_file()]
    if lacking:
        old = lacking == list(PROCESSORS)
        hint = "; saved before LeRobot 0.4, whose migration of normalisation it needs first" if old else ""
        raise ValueError(f"{folder}: lacks {lacking}, expected a folder pretrained_model of LeRobot's{hint}")
    tensors(folder / "model.safetensors")
    for name in PROCESSORS:
        for number, step in enumerate(_json(folder / name).get("steps", [])):
            if not isinstance(step, dict) or "registry_name" not in step:
                raise ValueError(f"{folder / name}: step {number} names a class of its own, {step.get('class')!r}; expected "
                                 "steps that LeRobot registers, nothing else is imported")  # fmt: skip
            held = tensors(folder / str(step["state_file"])) if step.get("state_file") else {}
            bad = sorted(key for key, value in held.items() if not bool(value.isfinite().all()))
            if bad:
                file = folder / str(step["state_file"])
                raise ValueError(f"{file}: {bad[0]} has NaN or infinity, expected finite statistics")
            modes = (step.get("config") or {}).get("norm_map", {})
            if "normalizer" in step["registry_name"] and not held and set(modes.values()) - {"IDENTITY"}:
                raise ValueError(f"{folder / name}: step {number} ({step['registry_name']}) has no statistics; a policy "
                                 "without them would get and output other numbers than in training")  # fmt: skip


def check_shapes(folder: Path, policy: Any) -> None:
    """Raises ValueError for saved weights of other shapes than the policy's: pi0 and pi05 only print that and stay random."""
    own = {name: tuple(value.shape) for name, value in policy.state_dict().items()}
    for name, value in tensors(folder / "model.safetensors").items():
        if own.get(name, value.shape) != value.shape:
            raise ValueError(f"{folder}: {name} is {tuple(value.shape)}, but LeRobot's {policy.config.type} has {own[name]}; "
                             "its weights would be left random")  # fmt: skip


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises ValueError for a missing, truncated or different file (a pickle)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: is no whole safetensors file: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}") from error
