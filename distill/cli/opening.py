"""Policies named on the command line, our folders and adapters, opened and checked before any long work."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from distill.cli.external_config import ExternalConfig
from distill.cli.in_place import is_in_place, open_in_place
from distill.inputs.recorded import Opened, read_features
from distill.inputs.teachers import folder_key
from distill.store.manifest import make_key, sha256_file
from envs.specs import DEPTH, IMAGES, POINTS, STATE, nearest_name
from students import STUDENTS, load_student
from teachers import TEACHERS, load_teacher
from teachers.adapters.teacher import AdapterTeacher
from teachers.contract import Observation, check_teacher
from teachers.networks.modalities import modality_of
from teachers.networks.observations import feature_shape, sources_of
from teachers.networks.pretrained import read_kind
from teachers.networks.shapes import Augmentation, EncoderShape, PolicyShape

if TYPE_CHECKING:
    from envs.recorded.observations import RecordedObservations

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")
OUR_STEPS = 50
"""Solver steps that one of our teachers is measured with by default."""

UNNAMED_TASK = "recorded"
"""Task name of a policy on observations that belong to no task here."""


def open_policy(text: str, config: ExternalConfig, recorded: RecordedObservations) -> Opened:
    """The policy that `text` names, checked on the recorded observations. Raises ValueError in one line."""
    path, _, steps = text.rpartition("@") if re.search(r"@\d+$", text) else (text, "", "")
    num_steps = int(steps or 0)
    if steps and not num_steps:
        raise ValueError(f"{text}: got @0, expected at least one solver step, such as {path}@10")
    if path.endswith(".py") or ".py:" in path:
        opened = _adapter(path, num_steps, config, recorded)
    elif Path(path).is_dir() and is_in_place(Path(path)):
        if num_steps:
            raise ValueError(f"{text}: a student has no solver steps; leave out @{num_steps}")
        opened = open_in_place(path, config.adapter.timeout_s)
    elif Path(path).is_dir():
        opened = _folder(path, num_steps)
    elif Path(path).suffix in PICKLES:
        raise ValueError(f"{path} is a pickle, which can execute code when it is loaded: flow2one never opens one. Write "
                         "an adapter that loads it in its own process (docs/adapter.md)")  # fmt: skip
    elif Path(path).is_file():
        raise ValueError(f"{path}: expected its folder, with config.json, or an adapter (my_policy.py:build)")
    else:
        raise ValueError(f"{path}: no such policy; expected a folder with config.json and model.safetensors, or an adapter "
                         "(my_policy.py:build)")  # fmt: skip
    try:
        _check_fits(opened, recorded, config)
    except ValueError:
        opened.close()
        raise
    return replace(opened, label=text)


def _folder(path: str, num_steps: int) -> Opened:
    """One of our teachers or students."""
    found = Path(path) / "config.json"
    if found.is_file():
        _refuse_lerobot(found)
    teachers = {each.KIND for each in TEACHERS.values()}
    kind = read_kind(path, {*teachers, *STUDENTS})
    if kind in teachers:
        teacher = load_teacher(path)
        teacher.check_steps(num_steps or OUR_STEPS)
        return Opened(path, folder_key(Path(path)), teacher, teacher.shape, num_steps or OUR_STEPS)
    if num_steps:
        raise ValueError(f"{path}@{num_steps}: a student has no solver steps; leave out @{num_steps}")
    student = load_student(Path(path))
    return Opened(path, folder_key(Path(path)), student, student.shape, 1)


def _refuse_lerobot(path: Path) -> None:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
        return  # reported by the next reader
    if isinstance(content, dict) and "kind" not in content and "type" in content:
        raise ValueError(f"{path} describes a LeRobot policy of type {content['type']!r}; LeRobot's own classes load it: "
                         "--teacher teachers/adapters/lerobot_policies.py:build --adapter.python <LeRobot's python> "
                         f"--adapter.arguments path={path.parent}")  # fmt: skip


# -- adapters ----------------------------------------------------------------------------------------------------------


def _adapter(path: str, num_steps: int, config: ExternalConfig, recorded: RecordedObservations) -> Opened:
    file = config.adapter.file(path)
    teacher = AdapterTeacher(file)
    try:
        described = teacher.description
        features = tuple(described.features or config.features or (*recorded.malformed, *recorded.features))
        teacher.features = features
        recorded = observed_by(recorded, features, _period(config, described.dt_s, recorded), described.instruction)
        rows = np.unique(np.flatnonzero(recorded.usable)[[0, -1]])
        seen = read_features(recorded, rows, described.observation_steps, features, "used by the adapter")
        observation = {name: torch.from_numpy(value) for name, value in seen.items()}
        steps = num_steps or described.num_steps
        horizon, action_size = described.horizon, described.action_size
        if horizon is None or action_size is None:
            chunks = teacher.sample(observation, 2, steps, torch.Generator().manual_seed(0))
            if chunks.ndim == 4:
                horizon, action_size = horizon or chunks.shape[2], action_size or chunks.shape[3]
        try:
            check_teacher(teacher, observation, action_size or 0, steps)
        except ValueError as error:  # one line per violation
            violations = [line.strip() for line in str(error).splitlines()]
            text = f"{path}: {violations[0]} {'; '.join(violations[1:])}" if violations[1:] else violations[0]
            raise ValueError(text) from error
        assert horizon is not None and action_size is not None
        shape = external_shape(recorded, features, described.observation_steps, horizon, action_size, config,
                               described.action_names, described.dt_s)  # fmt: skip
        key = make_key({
            "file": sha256_file(file.file), "function": file.function, "arguments": file.arguments,
            "draws": _draws(teacher, observation, steps),
        })  # fmt: skip
    except BaseException:
        teacher.close()
        raise
    return Opened(path, key, teacher, shape, steps)


def _draws(teacher: AdapterTeacher, observation: Observation, steps: int) -> str:
    """A fingerprint of an adapter's chunks for the first observation, rounded to 1 % of their standard deviation.

    It changes with the adapter's weights, wherever they are stored, and does not with the last bits that depend on threads.
    """
    one = {name: value[:1] for name, value in observation.items()}
    chunks = teacher.sample_from_seeds(one, np.arange(4)[None], steps).double().numpy()
    spread = max(float(chunks.std()), 1e-9)
    return hashlib.sha256(np.round(chunks[..., :8, :] / spread, 2).astype(np.float32).tobytes()).hexdigest()


def _period(config: ExternalConfig, adapter_s: float | None, recorded: RecordedObservations) -> float | None:
    """The policy's control period [s]: from the flag, else the adapter, the task, or the recording."""
    spec = config.spec()
    return config.dt_s or adapter_s or (spec.dt_s if spec else None) or recorded.dt_s


def observed_by(
    recorded: RecordedObservations, features: Sequence[str], dt_s: float | None, instruction: str = ""
) -> RecordedObservations:
    """The recording as policies observe it: these features and the state, spaced by the control period.

    Raises ValueError for features that were not recorded or cannot be read, a period that cannot be matched, and several tasks
    for a policy with one instruction.
    """
    tasks = recorded.tasks()
    if instruction and len(tasks) > 1:
        raise ValueError(f"{recorded.path}: has {len(tasks)} tasks, {list(tasks)[:8]}, the policy is given {instruction!r} "
                         f"in all frames; expected the frames of one task: --instructions, such as --instructions "
                         f"{nearest_name(instruction, tasks, '', 0.0).strip() or repr(next(iter(tasks)))}")  # fmt: skip
    recorded = recorded.only(dict.fromkeys((STATE, *features)))
    return recorded.at_period(dt_s) if dt_s else recorded


# -- shapes ------------------------------------------------------------------------------------------------------------


def external_shape(
    recorded: RecordedObservations, features: Sequence[str], observation_steps: int, horizon: int, action_size: int,
    config: ExternalConfig, action_names: Sequence[str] | None = None, adapter_dt_s: float | None = None,
) -> PolicyShape:  # fmt: skip
    """The shape of a policy on recorded observations; its network sizes are those of a student with random weights.

    Raises ValueError when the control period is unknown or the numbers of actions disagree.
    """
    spec = config.spec()
    dt_s = _period(config, adapter_dt_s, recorded)
    if not dt_s:
        raise ValueError(f"the control period is unknown: neither {config.observations} nor the adapter has it; add --dt-s, "
                         "such as --dt-s 0.1 for 10 Hz")  # fmt: skip
    names = tuple(action_names or (spec.action.names if spec else recorded.action_names) or
                  (f"action_{index}" for index in range(action_size)))  # fmt: skip
    if len(names) != action_size:
        source = "the adapter's action_names" if action_names else f"task {spec.name!r}" if spec else str(config.observations)
        raise ValueError(f"the teacher predicts actions of {action_size} numbers, {source} has {len(names)}: {list(names)}; "
                         "give the observations that it was trained on")  # fmt: skip
    weights = config.action_weights or (spec.action.weights if spec else (1.0,) * action_size)
    if len(weights) != action_size:
        raise ValueError(f"action_weights: got {len(weights)}, expected one for each of {action_size} action dimensions")
    state_size = recorded.features[STATE][0] if STATE in recorded.features else 0
    state_names = (spec.state_names if spec else recorded.state_names) or tuple(f"state_{each}" for each in range(state_size))
    if len(state_names) != state_size:
        raise ValueError(f"{config.observations} holds states of {state_size} numbers, expected {len(state_names)}: "
                         f"{list(state_names)}")  # fmt: skip
    return PolicyShape(
        task=config.task or UNNAMED_TASK, state_names=tuple(state_names), action_names=names, action_weights=tuple(weights),
        dt_s=float(dt_s), observation_steps=observation_steps, horizon=horizon,
        patch=max(size for size in range(1, 17) if horizon % size == 0 and (size == 1 or 2 * size <= horizon)), width=64,
        depth=4,
        encoder=_encoder(recorded, features, state_names),
    )  # fmt: skip


def _encoder(
    recorded: RecordedObservations, features: Sequence[str], state_names: Sequence[str]
) -> EncoderShape | None:
    """The encoder for these features; None for the state alone. Raises ValueError for features it does not support."""
    if list(features) == [STATE]:
        return None
    shapes = {name: tuple(recorded.features[name]) for name in features}
    further = [name for name in features if modality_of(name) and len(shapes[name]) == 1]
    unknown = [name for name in features if name not in (STATE, *further) and not name.startswith((IMAGES, DEPTH, POINTS))]
    if unknown:
        raise ValueError(f"features: {unknown} are not supported by a student; name supported ones: --features {STATE} ..")
    sizes = {shape[-2:] for name, shape in shapes.items() if name.startswith((IMAGES, DEPTH))}
    if len(sizes) > 1:
        raise ValueError(f"features: the images have the sizes {sorted(sizes)}, expected one size; choose with --features")
    cloud = shapes.get(POINTS, (0, 3))
    return EncoderShape(
        state_names=tuple(state_names) if STATE in features else (),
        cameras=_views(features, IMAGES), depth_cameras=_views(features, DEPTH),
        image_size=_pair(next(iter(sizes), (84, 84))), num_points=cloud[0], point_colours=cloud[1] > 3,
        vectors=tuple((name, shapes[name][0]) for name in further),
        augmentation=Augmentation(1, 0.1, 0.002, 0.0),
    )  # fmt: skip


def _pair(size: Sequence[int]) -> tuple[int, int]:
    height, width = size
    return height, width


def _views(features: Sequence[str], kind: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(f"{kind}.") for name in features if name.startswith(f"{kind}."))


def _check_fits(opened: Opened, recorded: RecordedObservations, config: ExternalConfig) -> None:
    """Raise ValueError when a policy does not fit the observations or the task."""
    shape = opened.shape
    if STATE not in recorded.features:
        raise ValueError(f"{config.observations} holds no {STATE}; got {list(recorded.features)}")
    for name in sources_of(shape):
        if name not in recorded.features:
            raise ValueError(f"{opened.label} observes {name}, {config.observations} holds {list(recorded.features)}: give the "
                             "observations that it was trained on")  # fmt: skip
        wanted, got = feature_shape(shape, name)[1:], tuple(recorded.features[name])
        if wanted != got:
            raise ValueError(f"{opened.label} observes {name} of shape {wanted}, in {config.observations} it is {got}")
    if recorded.action_size and recorded.action_size != shape.action_size:
        raise ValueError(f"{opened.label} predicts actions of {shape.action_size} numbers, {config.observations} has "
                         f"{recorded.action_size}: {list(recorded.action_names)}; give those it was trained on")  # fmt: skip
    if config.task and shape.task not in (config.task, *([UNNAMED_TASK] if config.world.gym else [])):
        raise ValueError(f"{opened.label} is for task {shape.task!r}, not {config.task!r}; use --task {shape.task}")
