"""The example: it imports no torch, chooses among plans as the rollouts do, and its episodes are theirs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import envs
from distill.cli.export import ExportOptions, export_student
from distill.evaluation.policies import StudentPolicy
from distill.evaluation.rollouts import episode_generator, run_episodes
from envs.panda.recording import stored_starts
from students import load_student
from students.selection import KINDS, Memory, Selection, choose, draw_candidates

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples/numpy_loop.py"


@pytest.fixture(scope="module")
def loop() -> ModuleType:
    spec = importlib.util.spec_from_file_location("numpy_loop", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def exported(make_student: Any, tmp_path: Path) -> Path:
    make_student(codes=8, latent_size=2, shares=True).save_pretrained(tmp_path / "student")
    return export_student(ExportOptions(tmp_path / "student", tmp_path / "exported"), lambda line: None)


def drawer(generator: torch.Generator) -> Callable[[int], np.ndarray]:
    return lambda count: torch.randn(count, 2, generator=generator).numpy()


def with_selection(folder: Path, selection: Selection, executed: int) -> None:
    exported = json.loads((folder / "export.json").read_text())
    exported["selection"] |= {"kind": selection.kind, "candidates": selection.candidates,
                              "forget_every": selection.forget_every, "execution_horizon": executed}  # fmt: skip
    (folder / "export.json").write_text(json.dumps(exported))


def test_the_episodes_of_the_example_are_those_of_the_rollouts_without_torch(loop: ModuleType, exported: Path) -> None:
    policy, starts = StudentPolicy(load_student(exported), "student"), stored_starts("avoid", 0, "test", 3)
    env = envs.make("avoid")
    for kind in KINDS:
        selection = Selection(kind, 6, 2)
        with_selection(exported, selection, 4)
        student = loop.Student(exported)
        rolled = run_episodes("avoid", policy, starts, range(3), 4, 5, keep_actions=3, selection=selection)
        for index, start in enumerate(starts):
            done = loop.run_episode(student, env, start, drawer(episode_generator(5, index)))
            expected = rolled[index]
            assert (done["is_success"], done["failure"], done["mode"], done["steps"]) == (
                expected.success, expected.failure, expected.mode, expected.steps
            )  # fmt: skip
            assert env.tool_position()[:2] == pytest.approx(expected.path[-1], abs=2e-4)  # the path has four decimals
    # and the script by itself
    code = f"import sys; sys.argv[1:] = [{str(exported)!r}, '--starts', '2']\nimport runpy\n" \
           f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\nprint('torch' in sys.modules)"  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == "False", found.stderr
    assert "of 2 starts solved" in found.stdout


class Plans:
    """In the session's place: plans that were made before, however many latents there are."""

    def __init__(self, plans: np.ndarray) -> None:
        self.plans = plans

    def run(self, _: object, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.plans[:, : feed["latents"].shape[1]]]


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_chooses_among_any_plans_as_the_selection_does(kind: str, loop: ModuleType, tmp_path: Path) -> None:
    selection, executed, weights_A = Selection(kind, 9, 3), 5, torch.tensor([1.0, 0.3])
    student = object.__new__(loop.Student)  # without a graph: only the choice is tried
    student.choice = {**vars(selection), "execution_horizon": executed, "outlier_ratio": 4.0,
                      "mode_duplicates": 3, "same_plan_distance": 0.01}  # fmt: skip
    student.sources, student.executed, student.horizon = [], executed, 8
    scale_A = np.array([0.3, 2.0], np.float32)
    student.metric = np.sqrt(weights_A.numpy() / weights_A.numpy().sum()) / scale_A
    student.forget()
    memory, rng, chosen = Memory(), np.random.default_rng(0), set()
    for replan in range(60):
        # two modes, duplicates among them, and now and then an outlier or a NaN
        plans = 0.02 * rng.standard_normal((9, 8, 2)) + rng.integers(0, 2, (9, 1, 1))
        plans[rng.integers(0, 9, 3)] = plans[rng.integers(0, 9)]
        plans[0] += 5 * (replan % 3 == 0)
        if replan % 7 == 6:
            plans[2, 1, 1] = np.nan
        raw_1NTA = (plans * scale_A).astype(np.float32)[None]
        student.session = Plans(raw_1NTA)
        ours = student.plan([], lambda count: np.zeros((count, 2), np.float32))
        draws, memory = draw_candidates(selection, memory, lambda count: torch.zeros(count, 2), executed, 8)
        candidates_1NTA = torch.from_numpy(raw_1NTA / scale_A)[:, : len(draws)]
        picked_1TA, (memory,) = choose(selection, candidates_1NTA, [memory], executed, weights_A)
        np.testing.assert_allclose(ours / scale_A, picked_1TA[0].numpy(), rtol=1e-5, atol=1e-6)
        same = (np.nan_to_num(raw_1NTA[0]) == np.nan_to_num(ours)).all((1, 2))
        chosen.add(int(same.argmax()))
    assert len(chosen) == 1 if kind in ("single", "kept_latent") else len(chosen) > 1


def test_a_kept_latent_is_drawn_again_when_it_is_forgotten(loop: ModuleType) -> None:
    student = object.__new__(loop.Student)
    student.choice, student.sources, student.executed, student.horizon = {"kind": "kept_latent", "forget_every": 2}, [], 4, 8
    student.forget()
    drawn: list[int] = []

    def draw(count: int) -> np.ndarray:
        drawn.append(count)
        return np.full((count, 1), len(drawn), np.float32)

    student.session = Plans(np.zeros((1, 1, 8, 2), np.float32))
    for _ in range(5):
        student.plan([], draw)
    assert drawn == [1, 1, 1]  # at replans 0, 2 and 4
