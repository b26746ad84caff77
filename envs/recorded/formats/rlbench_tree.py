"""RLBench's stored demonstrations as recorded observations: one task or several, ``variation<v>`` or ``all_variations``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from envs.recorded.keys import frame_shape, in_our_units, join, named
from envs.recorded.observations import RecordedObservations
from envs.recorded.sources import refuse_outside, refuse_pointer
from envs.recorded.timing import Clock
from envs.recorded.units import Unit
from envs.rlbench.tree import ALL, CAMERAS, StoredEpisode, words
from envs.specs import ACTION, DEPTH, IMAGES, STATE

LOW = "low_dim_obs.pkl"
NUMBERS = ("joint_positions", "joint_velocities", "gripper_pose", "gripper_open", "gripper_joint_positions")
STATES = ("joint_positions", "gripper_open")
"""The state, unless `names` says otherwise."""
PERIOD_S = 0.05
"""RLBench's control period."""
JOINED = Unit()


def stored_episodes(path: Path) -> list[Path]:
    """The folders of the episodes at or under `path`, in the order of task, variation and number; [] where there are none."""
    found = {each.parent for depth in range(5) for each in path.glob("/".join(["*"] * depth + [LOW]))}
    whole = {each.parents[2] for each in found if each.parent.parent.name.startswith("variation")}
    kept = [each for each in found if not (each.parent.parent.name == ALL and each.parents[2] in whole)]
    return sorted(kept, key=lambda each: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(each))])


class RLBenchRecording(RecordedObservations):
    """Episodes of the folders that RLBench's generator writes. Nothing is unpickled: see envs/rlbench/plain_pickle.py."""

    def __init__(self, path: Path, names: Mapping[str, str], dt_s: float = 0.0) -> None:
        """Raises ValueError for what is malformed (docs/data.md). dt_s: instead of RLBench's 0.05 s."""
        folders = stored_episodes(path)
        for each in folders:
            refuse_pointer(each / LOW)
            refuse_outside(path, each / LOW)
        self._stored = [StoredEpisode(each) for each in folders]
        keys = [key for key in NUMBERS if all(key in each.low for each in self._stored)]
        pictures = [key for camera in CAMERAS for key in (f"{camera}_rgb", f"{camera}_depth") if (folders[0] / key).is_dir()]
        self._keys = named(path, [*keys, *pictures], _defaults([*keys, *pictures]), names)
        self._each: dict[str, dict[str, tuple[int, ...]]] = {}
        malformed = {}
        for name, used in self._keys.items():
            try:
                self._each[name] = {key: self._shape(path, name, key) for key in used}
            except ValueError as error:
                malformed[name] = str(error)
        shapes = {name: join(list(each.values())) for name, each in self._each.items()}
        self._next = ACTION not in self._keys and STATE in self._keys
        size = shapes.pop(ACTION, shapes.get(STATE, (0,)) if self._next else (0,))[0]
        chosen = {key for used in self._keys.values() for key in used}
        left = {key: "by names" if names.get(key) == "" else "no known name" for key in (*keys, *pictures) if key not in chosen}
        lengths = [len(each) for each in self._stored]
        self._told = [words(each) or words(each.parents[1]) for each in folders]
        notes = ["actions: the next frame's state, as no action is stored"] if self._next else []
        lacking = sum(not each for each in self._told)
        if lacking:
            notes.append(f"{lacking} of {len(folders)} episodes have no readable variation_descriptions.pkl: their "
                         f"instruction is not known")
        names_S = [each for key in self._keys.get(STATE, ()) for each in self._numbered(key)] if STATE in shapes else []
        super().__init__(
            path, shapes, lengths, action_size=size, state_names=names_S, action_names=names_S if self._next else (),
            clock=Clock.even(lengths, dt_s or PERIOD_S), parts=self._keys, left_out=left, notes=notes,
        )  # fmt: skip
        self.malformed = malformed

    def _numbered(self, key: str) -> list[str]:
        size = int(np.prod(self._stored[0].low[key].shape[1:]))
        return [f"{key}_{each}" for each in range(size)] if size > 1 else [key]

    def _shape(self, path: Path, name: str, key: str) -> tuple[int, ...]:
        if key in self._stored[0].low:
            return frame_shape(path, key, name, self._stored[0].low[key].shape[1:], np.dtype(np.float64))
        from PIL import Image

        file = self._stored[0].folder / key / "0.png"
        refuse_pointer(file)
        try:
            with Image.open(file) as opened:  # which reads its header alone
                width, height = opened.size
        except OSError as error:
            raise ValueError(f"{file}: cannot be read as an image: {error}; leave it out: --names {key}=") from error
        stored, kind = ((height, width, 3), np.uint8) if key.endswith("_rgb") else ((height, width), np.float32)
        return frame_shape(path, key, name, stored, np.dtype(kind))

    def look(self, feature: str) -> str:
        if feature == ACTION and self._next:
            return "as recorded"
        said = []
        for key in self._each[feature]:
            if key in NUMBERS:
                continue
            for each in self._stored:
                there = {file.stem for file in (each.folder / key).glob("*.png")}
                missing = [frame for frame in range(len(each)) if str(frame) not in there]
                if missing:
                    raise ValueError(f"{each.folder / key}: {len(missing)} of {len(each)} images are missing, the first is "
                                     f"{missing[0]}.png; "
                                     f"copy them, or leave them out: --names {key}=")  # fmt: skip
                if key.endswith("_depth") and key.removesuffix("_depth") not in each.planes:
                    raise ValueError(f"{each.folder}: does not say the near and far planes of {key}; leave it out: --names "
                                     f"{key}=")
            said.append("8 bits, divided by 255" if key.endswith("_rgb") else "depth in metres, of 24 bits between the "
                                                                              "camera's planes")
        return "; ".join(said) or "as recorded"

    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """See `RecordedObservations.frames`; also of ``action``."""
        parts = []
        for key, shape in self._each[feature].items():
            unit = Unit(255.0) if feature.startswith(IMAGES + ".") else JOINED
            parts.append(in_our_units(feature, self._raw(key, frames_M), shape, unit, f"{self.path}: {key}", cast=False))
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        if not self._next:
            return self.frames(ACTION, frames_M)
        last_M = self._ends[self.episode_index(frames_M)] - 1
        after_M, back = np.unique(np.minimum(frames_M + 1, last_M), return_inverse=True)
        return self.frames(STATE, after_M)[back]

    def _raw(self, key: str, frames_M: np.ndarray) -> np.ndarray:
        episode_M, found = self.episode_index(frames_M), []
        camera, _, what = key.rpartition("_")
        for number in np.unique(episode_M).tolist():
            stored = self._stored[number]
            steps_M = frames_M[episode_M == number] - (self._ends[number] - self.episodes[number])
            if key in stored.low:
                found.append(stored.low[key][steps_M])
                continue
            try:
                seen = stored.images(steps_M.tolist(), [camera], what == "rgb", what == "depth")
            except OSError as error:
                raise ValueError(f"{stored.folder / key}: an image is damaged: {error}; leave it out: --names "
                                 f"{key}=") from error
            found.append(seen[f"{camera}.{what}"])
        sizes = {each.shape[1:] for each in found}
        if len(sizes) > 1:
            raise ValueError(f"{self.path}: {key} has the sizes {sorted(sizes)}, expected one; leave it out: --names {key}=")
        return np.concatenate(found)

    def instructions(self, indices: object) -> list[str]:
        frames_n = self._checked(indices)  # type: ignore[arg-type]
        return [(self._told[episode] or [""])[0] for episode in self.episode_index(frames_n).tolist()]

    def files(self) -> tuple[list[Path], list[Path]]:
        keys = [key for name in self.features for key in self._keys[name] if key not in NUMBERS]
        images = [file for each in self._stored for key in keys for file in sorted((each.folder / key).glob("*.png"))]
        return [], [*(each.folder / LOW for each in self._stored), *images]


def _defaults(keys: list[str]) -> dict[str, str]:
    found = dict.fromkeys(STATES, STATE)
    found |= {f"{camera}_rgb": f"{IMAGES}.{camera}" for camera in CAMERAS}
    found |= {f"{camera}_depth": f"{DEPTH}.{camera}" for camera in CAMERAS}
    return {key: name for key, name in found.items() if key in keys}
