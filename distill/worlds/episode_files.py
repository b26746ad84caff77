"""Episodes on disk, one JSON line each as they end, and LeRobot's ``eval_info.json`` derived from them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.evaluation.rollouts import Episode
from distill.evaluation.statistics import wilson_interval
from distill.store.manifest import write_json
from envs.rlbench.spec import task_names, which_task


def read_episodes(folder: Path, name: str) -> dict[int, Episode]:
    """The stored episodes by index; a line truncated by a crash is skipped."""
    return {row["episode"]["index"]: Episode(**row["episode"]) for row in _rows(folder, name)}


def _rows(folder: Path, name: str) -> Iterable[dict[str, Any]]:
    for path in sorted(folder.glob(f"{name}-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def write_eval_info(task: str, folder: Path, episodes: Sequence[Episode], name: str = "test") -> None:
    """``eval_info.json`` with LeRobot's keys: per_task, per_group, overall. The reward is 1 for a success, else 0."""
    rows = {row["episode"]["index"]: row for row in _rows(folder, name)}
    seconds = {index: row["seconds"] for index, row in rows.items()}
    names = task_names(task)
    of_task = {index: which_task(np.array(row["start"]), names)[0] for index, row in rows.items()}
    group, per_task = task.partition("/")[0], []
    for number, task in enumerate(names):
        mine = [episode for episode in episodes if of_task[episode.index] == number]
        if mine:
            rewards = [float(episode.success) for episode in mine]
            metrics = {"sum_rewards": rewards, "max_rewards": rewards, "successes": [episode.success for episode in mine],
                       "failures": [episode.failure for episode in mine],
                       "refused_actions": [episode.refused for episode in mine], **_figures(mine, seconds)}  # fmt: skip
            per_task.append({"task_group": group, "task": task, "task_id": number, "metrics": metrics})
    overall = _figures(episodes, seconds)
    write_json(folder / "eval_info.json", {"per_task": per_task, "per_group": {group: overall}, "overall": overall})


def _figures(episodes: Sequence[Episode], seconds: Mapping[int, float]) -> dict[str, Any]:
    """LeRobot's aggregates of a set of episodes, with the 95 % Wilson interval of the success rate and the refused actions."""
    successes, count = sum(episode.success for episode in episodes), len(episodes)
    low, high = wilson_interval(successes, count)
    took = sum(seconds[episode.index] for episode in episodes)
    return {
        "avg_sum_reward": successes / count, "avg_max_reward": successes / count, "pc_success": 100 * successes / count,
        "pc_success_ci95": [100 * low, 100 * high], "n_success": successes, "n_episodes": count, "eval_s": took,
        "eval_ep_s": took / count, "video_paths": [], "n_refused_actions": sum(episode.refused for episode in episodes),
        "n_episodes_with_refusals": sum(episode.refused > 0 for episode in episodes),
    }  # fmt: skip


def task_rows(evaluations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per policy and task: episodes, successes with their 95 % Wilson interval, failures by name.

    evaluations: the policies' ``eval_info.json`` by their labels in the report.
    """
    return [{"label": label, "tasks": [_task_figures(task) for task in info["per_task"]]}
            for label, info in evaluations.items()]  # fmt: skip


def _task_figures(task: Mapping[str, Any]) -> dict[str, Any]:
    metrics = task["metrics"]
    successes, episodes = sum(metrics["successes"]), len(metrics["successes"])
    low, high = wilson_interval(successes, episodes)
    return {"task": task["task"], "episodes": episodes, "successes": successes, "success_low": low, "success_high": high,
            "failures": dict(Counter(name for name in metrics["failures"] if name))}  # fmt: skip
