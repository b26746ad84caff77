"""Recorded observations of any format, streamed: windows under our feature names, whatever the folder holds."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from envs.recorded.outliers import Outlier, find_outliers, kept_ends, told, wraps
from envs.recorded.sources import one_line
from envs.recorded.splitting import SplitRule, describe, split
from envs.recorded.timing import Clock
from envs.specs import ACTION, DEPTH, STATE, nearest_name

ENDS_BYTES = 1 << 16
"""So many bytes of either end of a data file go into a fingerprint; a file of metadata goes in whole."""


ROWS = 4096
"""Frames that are looked at together when numbers are looked through."""
OFTEN = 0.05
"""Where more than this share of the frames would be glitches, it is a signal that jumps."""
DIGITS = 1e-3
"""64-bit numbers that lose more than this share of their range in 32 bits are refused."""


class RecordedObservations(ABC):
    """Frames of E episodes, one after the other, of which only what is asked for is read.

    path: where they lie. features: our feature name to the shape of one frame, as `envs.specs` says: ``[S]``, ``[3, H, W]``
    in 0..1, ``[1, H, W]`` [m], ``[N, 3+C]`` [m]. episodes: `[E]` frames of each. action_size: A, 0 where there are no
    actions. state_names, action_names: `[S]`, `[A]`, or () where the data does not say. dt_s: control period [s] or None.
    parts: our feature name to the data's keys that it is made of; left_out: keys that are not read, and why.
    clock: when the frames were recorded. units: feature to its unit in words, once it was looked at. outliers: readings far
    out. notes: what was worked around, a line each. usable: `[F]` frames that may be used: not so glitches, episodes that
    were left out, and other tasks' frames where one was chosen.
    """

    looks_for_outliers = True
    """Not so for our own demonstrations, which no sensor recorded."""

    def __init__(
        self, path: Path, features: Mapping[str, tuple[int, ...]], episodes: Sequence[int], *, action_size: int = 0,
        state_names: Sequence[str] = (), action_names: Sequence[str] = (), dt_s: float | None = None,
        clock: Clock | None = None, parts: Mapping[str, Sequence[str]] | None = None,
        left_out: Mapping[str, str] | None = None, notes: Iterable[str] = (),
    ) -> None:  # fmt: skip
        """ValueError where these do not fit each other: no features, an empty episode, as many names as there are not."""
        self.path, self.features, self.episodes = path, dict(features), tuple(int(length) for length in episodes)
        self.action_size = action_size
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        if not self.features:
            raise ValueError(f"{path}: got no feature, expected at least one; say by `names` which of its keys is what")
        if not self.episodes or min(self.episodes) < 1:
            raise ValueError(f"{path}: got episodes of {list(self.episodes)[:8]} frames, expected at least one frame in each")
        named = {"state_names": (self.state_names, self.features.get(STATE, (0,))[0]),
                 "action_names": (self.action_names, action_size)}  # fmt: skip
        for what, (names, size) in named.items():
            if names and len(names) != size:
                raise ValueError(f"{path}: {what} are {len(names)}, expected {size}: {list(names)[:8]}")
        self._ends = np.cumsum(self.episodes)
        self.clock = clock or Clock.even(self.episodes, dt_s)
        self.dt_s = self.clock.dt_s
        self.parts = {name: tuple(keys) for name, keys in (parts or {}).items()}
        self.left_out, self.notes = dict(left_out or {}), list(notes)
        self.malformed: dict[str, str] = {}
        """Features that are there but cannot be read, and why: told when they are wanted."""
        self.units: dict[str, str] = {}
        self.outliers: list[Outlier] = []
        self.rule = SplitRule()
        """How its frames are divided into those for training, choosing and measuring."""
        self.usable, self._glitch_F = np.ones(len(self), bool), np.zeros(len(self), bool)

    def __len__(self) -> int:
        """Frames of all episodes, F."""
        return int(self._ends[-1])

    @abstractmethod
    def frames(self, feature: str, frames_M: np.ndarray) -> np.ndarray:
        """A feature in M frames, `[M, *shape]` float32 (states and actions also float64); the frames rise and none comes twice.

        ValueError for bad data.
        """

    @abstractmethod
    def action_frames(self, frames_M: np.ndarray) -> np.ndarray:
        """The actions of M rising frames, `[M, A]`. Only asked for where there are any."""

    @abstractmethod
    def files(self) -> tuple[list[Path], list[Path]]:
        """The files of metadata, and those of data, of the features that are there, for `fingerprint`."""

    def look(self, feature: str) -> str:
        """Look over a feature's files and frames when it is first needed, but not at numbers; its unit in words.

        Raises ValueError for what is missing, cut off, or of a unit that cannot be told.
        """
        return "as recorded"

    # -- what is chosen of it --------------------------------------------------------------------------------------

    def only(self, features: Iterable[str], action: bool = False) -> Self:
        """The same recording with these features alone, each looked over; nothing of any other is opened.

        action: whether the actions are looked over, too. Raises ValueError for a feature that was not recorded, and for one
        that is malformed.
        """
        made = copy.copy(self)
        wanted = list(dict.fromkeys(features))
        for name in wanted:
            if name in self.malformed:
                raise ValueError(self.malformed[name])
            if name not in self.features:
                raise ValueError(f"{self.path}: {name!r} was not recorded; there are {list(self.features)}"
                                 f"{nearest_name(name, self.features)}{self._hint(name)}")  # fmt: skip
        made.features = {name: shape for name, shape in self.features.items() if name in wanted}
        made.units, made.notes, made.usable = dict(self.units), list(self.notes), self.usable.copy()
        made._glitch_F = self._glitch_F.copy()
        made.outliers = list(self.outliers)
        for name in (*made.features, *((ACTION,) if action and self.action_size else ())):
            with one_line(self.path):
                if name not in made.units:
                    made.units[name] = made.look(name)
                    if name in (STATE, ACTION):
                        made._look_through(name)
        return made

    def _hint(self, name: str) -> str:
        alike = [each for each in (*self.features, *self.left_out) if each.startswith(f"{name}.")]
        return f". Its parts may be joined: --names {' '.join(f'{each}={name}' for each in alike)}" if alike else ""

    def at_period(self, policy_s: float) -> Self:
        """The same recording, its windows and chunks spaced by a policy's control period [s].

        Raises ValueError where that is no whole number of the recording's frames (within 2 %).
        """
        made = copy.copy(self)
        made.clock, made.notes = self.clock.at_period(policy_s, self.path), list(self.notes)
        if self.dt_s is None:
            made.notes.append(f"the recording does not say its rate: its frames are taken to be {policy_s:.4g} s apart, as "
                              f"the policy's "
                              "(--recorded-dt-s says otherwise)")  # fmt: skip
        elif made.clock.stride > 1:
            made.notes.append(f"recorded every {self.dt_s:.4g} s ({1 / self.dt_s:.4g} Hz), the policy's period is "
                              f"{policy_s:.4g} s "
                              f"({1 / policy_s:.4g} Hz): one of {made.clock.stride} frames is in a window")  # fmt: skip
        made.dt_s = policy_s
        return made

    def leave_out(self, episodes: Sequence[int]) -> Self:
        """The same recording, these episodes unused and not looked at. ValueError for one that is not there."""
        wrong = [each for each in episodes if not 0 <= each < len(self.episodes)]
        if wrong:
            raise ValueError(f"{self.path}: leave_out: got episodes {wrong}, expected numbers within 0 .. "
                             f"{len(self.episodes) - 1}")
        made = copy.copy(self)
        made.usable = self.usable & ~np.isin(self.episode_index(np.arange(len(self))), list(episodes))
        return made

    def instructed(self, instructions: Sequence[str]) -> Self:
        """The same recording, only frames with these instructions used. ValueError for one that is never given."""
        given, there = np.array(self.labels(), dtype=object), self.tasks()
        for each in instructions:
            if each not in there:
                raise ValueError(f"{self.path}: the instruction {each!r} is not among {list(there)}{nearest_name(each, there)}")
        made = copy.copy(self)
        made.usable = self.usable & np.isin(given.astype(str), list(instructions))
        return made

    def divided(self, rule: SplitRule) -> Self:
        """The same recording, divided by another rule."""
        made = copy.copy(self)
        made.rule = rule
        return made

    def split(self, observation_steps: int = 1) -> dict[str, np.ndarray]:
        """Frames for ``train``, ``validation`` and ``test``; see `envs.recorded.splitting.split`.

        observation_steps: O of the windows, none of which may show a glitch.
        """
        usable = self.usable
        if observation_steps > 1 and self._glitch_F.any():
            shown = self.clock.near(np.arange(len(self)), np.arange(1 - observation_steps, 1))
            usable = usable & ~self._glitch_F[shown].any(1)
        return split(self.episodes, self._labelled(), usable, self.rule)

    def split_described(self, observation_steps: int = 1) -> dict[str, Any]:
        """The split as the report holds it."""
        return describe(self.split(observation_steps), self.episodes, self._labelled(), self.rule)

    def _labelled(self) -> list[str] | None:
        return self.labels() if len(self.tasks()) > 1 else None

    # -- what the robot was told -----------------------------------------------------------------------------------

    def instructions(self, indices: Sequence[int] | np.ndarray) -> list[str]:
        """What the robot was told to do in each of n frames, "" where the data does not say."""
        return [""] * len(self._checked(indices))

    def labels(self) -> list[str]:
        """The task of every frame, `[F]`: what the robot was told there."""
        return self.instructions(np.arange(len(self)))

    def tasks(self) -> dict[str, int]:
        """Every instruction that is given in a frame that is used, with its frames; {} where the data says of none."""
        given = np.array(self.labels(), dtype=object)[self.usable]
        names, counts = np.unique(given.astype(str), return_counts=True)
        return {str(name): int(count) for name, count in zip(names, counts, strict=True) if name}

    # -- reading ---------------------------------------------------------------------------------------------------

    def episode_index(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The episode of each of n frames, `[n]` int64, 0 .. E-1."""
        return np.searchsorted(self._ends, self._checked(indices), side="right").astype(np.int64)

    def read(self, indices: Sequence[int] | np.ndarray, observation_steps: int) -> dict[str, np.ndarray]:
        """What was observed in the O steps up to each of n frames: every feature `[n, O, *shape]` float32.

        Steps are a policy's period apart (`at_period`; a frame each without it). Before an episode's first frame, or a gap
        in its time stamps, that frame is repeated. Raises ValueError for a frame that is not there, and for numbers that are
        not finite (in depth NaN is right: unknown) with feature, frame and episode.
        """
        history_nO = self.clock.near(self._checked(indices), np.arange(1 - observation_steps, 1))
        frames_M, back = np.unique(history_nO, return_inverse=True)
        found = {}
        for name, shape in self.features.items():
            with one_line(self.path):
                values_M = self._finite(name, self.frames(name, frames_M), frames_M, shape)
            found[name] = values_M[back.reshape(-1)].reshape(*history_nO.shape, *shape)
        return found

    def actions(self, indices: Sequence[int] | np.ndarray, horizon: int) -> np.ndarray:
        """The T actions from each of n frames on, `[n, T, A]` float32; an episode's last one is repeated after its end.

        Spaced as `read` spaces its steps. Raises ValueError where the data has no actions, and as `read` does.
        """
        frames_n = self._checked(indices)
        if not self.action_size:
            raise ValueError(f"{self.path}: got no actions, expected some; only observations can be read from it")
        future_nT = self.clock.near(frames_n, np.arange(horizon))
        frames_M, back = np.unique(future_nT, return_inverse=True)
        with one_line(self.path):
            values_M = self._finite(ACTION, self.action_frames(frames_M), frames_M, (self.action_size,))
        return values_M[back.reshape(-1)].reshape(*future_nT.shape, self.action_size)

    def numbers(self, name: str) -> np.ndarray:
        """Every state, or every ``action``, `[F, D]` float32; rows of episodes that were left out are 0."""
        shape = (self.action_size,) if name == ACTION else self.features[name]
        found = np.zeros((len(self), *shape), np.float32)
        of_F = self.episode_index(np.arange(len(self)))
        used = np.flatnonzero(np.isin(of_F, np.unique(of_F[self.usable])))
        loss_D, least_D, most_D = np.zeros(shape), np.full(shape, np.inf), np.full(shape, -np.inf)
        for begin in range(0, len(used), ROWS):
            frames_M = used[begin : begin + ROWS]
            raw = self.action_frames(frames_M) if name == ACTION else self.frames(name, frames_M)
            values = self._finite(name, raw, frames_M, shape)
            found[frames_M] = values
            if raw.dtype == np.float64:
                loss_D = np.maximum(loss_D, np.abs(raw - values).max(0))
                least_D, most_D = np.minimum(least_D, raw.min(0)), np.maximum(most_D, raw.max(0))
        lost = np.flatnonzero((loss_D > DIGITS * (most_D - least_D)) & (most_D > least_D))
        if len(lost):
            at = int(lost[0])
            raise ValueError(f"{self.path}: {name}[{at}] goes from {least_D[at]:.12g} to {most_D[at]:.12g} in 64 bits, whose "
                             f"differences "
                             "are lost in 32 bits; take an offset away before it is recorded, or leave it out: --names "
                             "key=")  # fmt: skip
        return found

    def _look_through(self, name: str) -> None:
        """All states or actions: refused where they are not finite; glitches are found, and their frames not used."""
        values_FD = self.numbers(name)
        if not self.looks_for_outliers or len(values_FD) < 2:
            return
        rows = np.flatnonzero(self.usable)
        if not len(rows):
            return
        ends_G = np.unique(np.searchsorted(rows, self.clock.borders))
        ends_G = ends_G[ends_G > 0]
        found = find_outliers(name, values_FD[rows], ends_G)
        found = [Outlier(**{**vars(each), "first": int(rows[each.first]), "last": int(rows[each.last])}) for each in found]
        glitches = [each for each in found if each.is_glitch]
        often = {each.column for each in glitches
                 if sum(g.last - g.first + 1 for g in glitches if g.column == each.column) > OFTEN * len(rows)}  # fmt: skip
        if often:
            self.notes.append(f"{name}{sorted(often)} jump far out in more than {OFTEN:.0%} of the frames: taken as what they "
                              f"measure")
        found = [each for each in found if each.column not in often]
        for each in found:
            if each.is_glitch:
                self.usable[each.first : each.last + 1] = False
                self._glitch_F[each.first : each.last + 1] = True
        kept_F = self.usable[rows]
        for column, frames in wraps(values_FD[rows][kept_F], kept_ends(kept_F, ends_G)).items() if kept_F.sum() > 1 else ():
            at = rows[kept_F][frames[0]]
            self.notes.append(f"{name}[{column}] jumps by nearly all of its range in {len(frames)} places, first in frame "
                              f"{at}: an angle "
                              "that wraps? Policies see it as a leap; unwrap it before it is recorded")  # fmt: skip
        self.outliers += found
        self.notes += told(found)

    def ranges(self, name: str) -> list[dict[str, Any]]:
        """Of every number of the state, or of ``action``: its name, least and most in frames that are used, and where."""
        values_FD, names = self.numbers(name), self.state_names if name == STATE else self.action_names
        rows = np.flatnonzero(self.usable)
        low_D, high_D = values_FD[rows].argmin(0), values_FD[rows].argmax(0)
        return [
            {"name": names[column] if names else f"{name.rpartition('.')[2]}_{column}",
             "low": float(values_FD[rows[low], column]), "low_frame": int(rows[low]),
             "high": float(values_FD[rows[high], column]), "high_frame": int(rows[high])}
            for column, (low, high) in enumerate(zip(low_D.tolist(), high_D.tolist(), strict=True))
        ]  # fmt: skip

    def opened_as(self) -> list[str]:
        """What is to be said of how the data is read, a line each: parts, units, what was left out, tasks, notes."""
        lines = []
        for name, keys in self.parts.items():
            if (name in self.features or name == ACTION) and (len(keys) > 1 or name in (STATE, ACTION)):
                shape = self.features.get(name, (self.action_size,))
                known = self.state_names if name == STATE else self.action_names if name == ACTION else ()
                lines.append(f"{name}: {shape[0]} numbers of {' + '.join(keys)}" + (f": {', '.join(known)}" if known else ""))
        lines += [f"{name}: {said}" for name, said in self.units.items() if name in self.features and said != "as recorded"]
        if self.left_out:
            lines.append("left out: " + ", ".join(f"{key} ({why})" for key, why in self.left_out.items()))
        tasks = self.tasks()
        if tasks:
            shown = "; ".join(f"{task!r} in {count} frames" for task, count in list(tasks.items())[:8])
            lines.append(f"{len(tasks)} task{'s' if len(tasks) > 1 else ''}, by the instruction: "
                         f"{shown}" + (" .." if len(tasks) > 8 else ""))
        unused = int(len(self) - self.usable.sum())
        return lines + self.notes + ([f"{unused} of {len(self)} frames are not used"] if unused else [])

    def fingerprint(self) -> dict[str, Any]:
        """What a stage's key holds of this data: names and shapes, and a sha256 over its files.

        Of metadata every byte counts, of data files the size and both ends. So it costs little, and misses only a change
        that leaves a file's size, its first and its last 64 KiB as they were.
        """
        metadata, data = self.files()
        digest = hashlib.sha256()
        for path in (*metadata, *data):
            with one_line(self.path), path.open("rb") as file:
                size = path.stat().st_size
                digest.update(json.dumps([self._shown(path), size]).encode())
                if path in metadata:
                    digest.update(file.read())
                else:
                    digest.update(file.read(ENDS_BYTES))
                    file.seek(max(size - ENDS_BYTES, 0))
                    digest.update(file.read(ENDS_BYTES))
        return {
            "format": type(self).__name__, "features": {name: list(shape) for name, shape in self.features.items()},
            "state_names": list(self.state_names), "action_names": list(self.action_names), "dt_s": self.dt_s,
            "episodes": len(self.episodes), "frames": len(self), "files_sha256": digest.hexdigest(),
            "split": {**asdict(self.rule), "test_episodes": list(self.rule.test_episodes)},
            **({} if self.clock.stride == 1 else {"stride": self.clock.stride}),
            **({} if self.usable.all() else {"usable_sha256": hashlib.sha256(np.packbits(self.usable).tobytes()).hexdigest()}),
            "parts": {name: list(keys) for name, keys in self.parts.items() if name in self.features},
        }  # fmt: skip

    def _shown(self, path: Path) -> str:
        return str(path.relative_to(self.path)) if path != self.path else path.name

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        frames_n = np.asarray(indices, dtype=np.int64)
        if frames_n.ndim != 1 or (frames_n.size and (frames_n.min() < 0 or frames_n.max() >= len(self))):
            ends = f" from {frames_n.min()} to {frames_n.max()}" if frames_n.size else ""
            raise ValueError(f"{self.path}: indices must be [n] within 0 .. {len(self) - 1}, got shape {frames_n.shape}{ends}")
        return frames_n

    def _finite(self, name: str, values_M: np.ndarray, frames_M: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if values_M.shape != (len(frames_M), *shape):
            raise ValueError(f"{self.path}: {name} is {values_M.shape[1:]} in frame {frames_M[:1]}, expected {shape}")
        rest = tuple(range(1, values_M.ndim))
        bad_M = np.isinf(values_M).any(axis=rest) if name.startswith(DEPTH) else ~np.isfinite(values_M).all(axis=rest)
        if bad_M.any():
            frame = int(frames_M[np.argmax(bad_M)])
            episode = int(np.searchsorted(self._ends, frame, side="right"))
            raise ValueError(
                f"{self.path}: {name} has NaN or infinity in frame {frame} (episode {episode}, step "
                f"{frame - int(self._ends[episode]) + self.episodes[episode]}), expected finite numbers; leave that episode "
                f"out "
                f"(--leave-out {episode}) or the key ({self._key_hint(name)})"
            )
        return values_M.astype(np.float32, copy=False)

    def _key_hint(self, name: str) -> str:
        return "--names " + " ".join(f"{key}=" for key in self.parts.get(name, (name,)))
