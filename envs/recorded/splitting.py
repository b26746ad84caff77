"""Which frames of a recording are for training, choosing checkpoints and measuring: spread over its tasks and its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

LEAST_FRAMES = 20
WHOLE = 10
"""From so many pieces on a piece is whole for one purpose, as frames that follow each other are nearly the same."""
STRETCHES = 20
"""Fewer pieces are cut into about so many stretches in all."""
OFTEN = 5
"""Of a task with so many pieces at least one is for measuring."""


@dataclass(frozen=True)
class SplitRule:
    """How recorded frames are divided into training, validation and test frames.

    Attributes:
        by: tasks: spread over the tasks and, within each, over time; end: the end of the recording is the test
        validation: share of the frames for the choice among checkpoints
        test: share of the frames for the measurements
        test_episodes: these episodes are the test frames, whatever `test` says
    """

    by: Literal["tasks", "end"] = "tasks"
    validation: float = 0.1
    test: float = 0.1
    test_episodes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.by not in ("tasks", "end"):
            raise ValueError(f"split.by: got {self.by!r}, expected tasks or end")
        for name in ("validation", "test"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"split.{name}: got {getattr(self, name)}, expected a share above 0 and below 0.5, such as "
                                 f"0.1")


def split(
    episodes: Sequence[int], labels_F: Sequence[str] | np.ndarray | None = None, usable_F: np.ndarray | None = None,
    rule: SplitRule = SplitRule(),
) -> dict[str, np.ndarray]:  # fmt: skip
    """Frames by purpose, ``train``, ``validation`` and ``test``, each rising.

    episodes: `[E]` frames of each; labels_F: which task each frame is of; usable_F: frames that may be used at all.
    A piece is an episode; of less than `WHOLE` episodes it is a stretch of one in which the task stays the same, cut so that
    there are about `STRETCHES`. No task is measured that is not trained on. Raises ValueError for too few frames.
    """
    count = int(np.sum(episodes))
    usable_F = np.ones(count, bool) if usable_F is None else usable_F
    if usable_F.sum() < LEAST_FRAMES:
        raise ValueError(f"observations: got {int(usable_F.sum())} frames, expected at least {LEAST_FRAMES}: some are kept for "
                         "measuring")  # fmt: skip
    label_F = _numbered(labels_F, count)
    ends_E = np.cumsum(episodes)
    episode_F = np.searchsorted(ends_E, np.arange(count), side="right")
    wrong = [each for each in rule.test_episodes if not 0 <= each < len(ends_E)]
    if wrong:
        raise ValueError(f"split.test_episodes: got {wrong}, expected numbers within 0 .. {len(ends_E) - 1}")
    whole = len(np.unique(episode_F[usable_F])) >= WHOLE or bool(rule.test_episodes)
    piece_F = episode_F if whole else _stretches(episode_F, label_F, usable_F)
    pieces = np.unique(piece_F[usable_F])
    # the first frame's task is the piece's
    group_P = label_F[np.array([np.flatnonzero((piece_F == piece) & usable_F)[0] for piece in pieces])]
    use_P = _by_end(len(pieces), rule) if rule.by == "end" else _spread(group_P, rule)
    if rule.test_episodes:
        use_P[use_P == 2] = 0
        use_P[np.isin(pieces, rule.test_episodes)] = 2
        if not (use_P == 0).any() or not (use_P == 1).any():
            use_P[np.flatnonzero(use_P != 2)[:1]] = 1
    if rule.by == "tasks":
        use_P = _trained_on(use_P, group_P)
    of_F = np.full(count, -1)
    of_F[usable_F] = use_P[np.searchsorted(pieces, piece_F[usable_F])]
    found = {name: np.flatnonzero(of_F == use) for use, name in enumerate(("train", "validation", "test"))}
    empty = [name for name, frames in found.items() if not len(frames)]
    if empty:
        raise ValueError(f"split: no frame is for {empty}; record more, or choose other shares: --split.validation, "
                         f"--split.test")
    return found


def describe(
    found: dict[str, np.ndarray], episodes: Sequence[int], labels_F: Sequence[str] | np.ndarray | None, rule: SplitRule
) -> dict[str, object]:
    """What the report says of a split: the rule, and for each purpose its frames, episodes and tasks."""
    ends_E = np.cumsum(episodes)
    told: dict[str, object] = {"by": rule.by, "validation": rule.validation, "test": rule.test,
                               "test_episodes": list(rule.test_episodes)}  # fmt: skip
    label_F = None if labels_F is None else np.asarray(labels_F, dtype=object)
    for name, frames in found.items():
        of = np.unique(np.searchsorted(ends_E, frames, side="right")).tolist()
        tasks = [] if label_F is None else sorted({str(each) for each in label_F[frames]})
        told[f"{name}_set"] = {"frames": len(frames), "episodes": of, "tasks": tasks}
    if label_F is not None:
        trained, measured = ({str(each) for each in label_F[found[name]]} for name in ("train", "test"))
        told["tasks_not_measured"] = sorted(trained - measured)
    return told


def in_words(told: dict[str, object]) -> str:
    """A split in one line."""
    parts = []
    for name in ("train", "validation", "test"):
        each = told[f"{name}_set"]
        assert isinstance(each, dict)
        episodes = each["episodes"]
        shown = ", ".join(map(str, episodes[:8])) + (" .." if len(episodes) > 8 else "")
        parts.append(f"{name} {each['frames']} frames of episodes {shown}")
    how = "spread over tasks and time" if told["by"] == "tasks" else "by the recording's end"
    missing = told.get("tasks_not_measured")
    lacks = f"; trained on, not measured: {missing}" if missing else ""
    return f"split {how}: {'; '.join(parts)}{lacks} (--split.by, --split.test, --split.validation, --split.test-episodes)"


def _numbered(labels_F: Sequence[str] | np.ndarray | None, count: int) -> np.ndarray:
    if labels_F is None:
        return np.zeros(count, np.int64)
    found: np.ndarray = np.unique(np.asarray(labels_F).astype(str), return_inverse=True)[1]
    return found.reshape(-1)


def _stretches(episode_F: np.ndarray, label_F: np.ndarray, usable_F: np.ndarray) -> np.ndarray:
    """A number for each frame of which stretch it is part."""
    new = np.concatenate([[True], (np.diff(episode_F) != 0) | (np.diff(label_F) != 0)])
    begins = np.flatnonzero(new)
    ends = np.append(begins[1:], len(episode_F))
    size = max(int(usable_F.sum()) // STRETCHES, 1)
    found, number = np.zeros(len(episode_F), np.int64), 0
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        for part in np.array_split(np.arange(begin, end), max(round((end - begin) / size), 1)):
            found[part] = number
            number += 1
    return found


def _by_end(count: int, rule: SplitRule) -> np.ndarray:
    use_P = np.zeros(count, np.int64)
    test = max(round(rule.test * count), 1)
    use_P[count - test :] = 2
    use_P[count - test - max(round(rule.validation * count), 1) : count - test] = 1
    return use_P


def _spread(group_P: np.ndarray, rule: SplitRule) -> np.ndarray:
    """0 training, 1 validation, 2 test: evenly among the pieces, in the order of their tasks and, within one, of time."""
    order = np.argsort(group_P, kind="stable")
    use_P = np.zeros(len(order), np.int64)
    for use, share, shift in ((2, rule.test, 0.5), (1, rule.validation, 0.25)):
        free = order[use_P[order] == 0]
        wanted = max(round(share * len(order)), 1)
        if len(free) > wanted:
            use_P[free[((np.arange(wanted) + shift) * len(free) / wanted).astype(int)]] = use
    for group in np.unique(group_P):
        members = np.flatnonzero(group_P == group)
        if len(members) >= OFTEN and not (use_P[members] == 2).any():
            free = members[use_P[members] == 0]
            use_P[free[len(free) // 2]] = 2
    return use_P


def _trained_on(use_P: np.ndarray, group_P: np.ndarray) -> np.ndarray:
    """A task of which no piece is for training gets one back."""
    use_P = use_P.copy()
    for group in np.unique(group_P):
        members = np.flatnonzero(group_P == group)
        if not (use_P[members] == 0).any():
            back = members[np.argsort(use_P[members], kind="stable")][:1]  # of validation first
            use_P[back] = 0
    return use_P
