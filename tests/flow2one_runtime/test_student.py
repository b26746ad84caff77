"""The runtime against flow2one itself: the same chunks, the same choice, the same episodes; and what its deadline does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import envs
from distill.cli.export import ExportOptions, export_student
from distill.evaluation.policies import StudentPolicy
from distill.evaluation.rollouts import episode_generator, run_episodes
from envs.panda.recording import stored_starts
from envs.specs import STATE
from flow2one_runtime import Student
from flow2one_runtime.exported import Call, Exported, Input
from flow2one_runtime.selection import Selection as RuntimeSelection
from flow2one_runtime.student import Plan
from students import load_student
from students.export.whole_call import WholeCall
from students.selection import KINDS, Memory, Selection, choose, draw_candidates
from teachers.networks.observations import fake_observation

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/numpy_loop.py"


def with_selection(student: Student, selection: Selection, executed: int) -> Student:
    told = replace(student.exported.selection, kind=selection.kind, candidates=selection.candidates,
                   forget_every=selection.forget_every, executed=executed)  # fmt: skip
    return Student(replace(student.exported, selection=told, call=None), student._graph)


def in_one_call(student: Student, selection: Selection, executed: int, folder: Path) -> tuple[Student, list[Any]]:
    """The same with the selection in the graph of the whole call, and a list to which each call of it adds its input."""
    made = WholeCall(load_student(student.exported.folder).eval(), selection, executed, folder / "call.onnx")
    call, calls = Call(made.samples, len(made.inputs) > 2), list[Any]()
    session = onnxruntime.InferenceSession(str(folder / "call.onnx"), providers=["CPUExecutionProvider"])
    ours = with_selection(student, selection, executed)
    whole = lambda feed: (calls.append(feed), session.run(None, dict(feed)))[1]  # noqa: E731
    return Student(replace(ours.exported, call=call), ours._graph, whole=whole), calls


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "torch"])
def test_chunks_are_those_of_the_pytorch_student_on_the_same_latents(exported: Path, backend: str) -> None:
    pytest.importorskip(backend)
    student, reference = Student.load(exported, backend=backend), load_student(exported).eval()
    generator = torch.Generator().manual_seed(1)
    for count in (1, 16, 5):
        state, latents = 0.3 * torch.randn(1, 2, 2, generator=generator), torch.randn(1, count, 2, generator=generator)
        with torch.no_grad():
            expected = reference({STATE: state}, latents)[0].numpy()
        ours = student.generate({STATE: state[0].numpy()}, latents[0].numpy())
        assert ours.shape == (count, 8, 2)
        np.testing.assert_allclose(ours, expected, atol=3e-5)  # 1e-4 half ranges of 0.3


def test_images_depth_and_points_pass_as_the_student_takes_them(
    make_student, make_teacher, seeing_shape, tmp_path: Path
) -> None:
    make_student(make_teacher(encoder=seeing_shape.encoder)).save_pretrained(tmp_path / "student")
    folder = export_student(ExportOptions(tmp_path / "student", tmp_path / "exported"), lambda line: None)
    seen, latents = fake_observation(seeing_shape, 1, seed=3), torch.randn(1, 4, 5)
    with torch.no_grad():
        expected = load_student(folder)(seen, latents)[0].numpy()
    student, observation = Student.load(folder), {name: value[0].numpy() for name, value in seen.items()}
    np.testing.assert_allclose(student.generate(observation, latents[0].numpy()), expected, atol=3e-5)
    image = "observation.images.front"
    with pytest.raises(ValueError, match=r"front: got colours from 0 to \d+, expected 0 to 1: divide by 255"):
        student.predict_action_chunk(observation | {image: (255 * observation[image]).round().astype(np.uint8)})


@pytest.mark.parametrize("whole", [False, True], ids=["numpy", "in one call"])
@pytest.mark.parametrize("kind", KINDS)
def test_its_episodes_are_those_of_the_rollouts(kind: str, whole: bool, exported: Path, tmp_path: Path) -> None:
    policy, starts = StudentPolicy(load_student(exported), "student"), stored_starts("avoid", 0, "test", 3)
    selection, env = Selection(kind, 6, 2), envs.make("avoid")
    student, calls = with_selection(Student.load(exported), selection, 4), []
    if whole:
        student, calls = in_one_call(student, selection, 4, tmp_path)
    rolled = run_episodes("avoid", policy, starts, range(3), 4, 5, keep_actions=3, selection=selection)
    for index, start in enumerate(starts):
        generator = episode_generator(5, index)
        student.draw = lambda count, generator=generator: torch.randn(count, 2, generator=generator).numpy()
        student.reset()
        observation, _ = env.reset(options={"start": start})
        steps, ended = 0, False
        while not ended:
            observation, _, terminated, truncated, info = env.step(student.select_action(observation))
            steps, ended = steps + 1, terminated or truncated
        expected = rolled[index]
        assert (info["is_success"], info["failure"], info["mode"], steps) == (
            expected.success, expected.failure, expected.mode, expected.steps
        )  # fmt: skip
        assert env.tool_position()[:2] == pytest.approx(expected.path[-1], abs=2e-4)  # the path has four decimals
    assert bool(calls) == whole


def test_what_the_whole_call_cannot_do_is_done_in_numpy(exported: Path, tmp_path: Path) -> None:
    selection, observation = Selection("temporal_consistency", 6, 0), {STATE: np.zeros((2, 2), np.float32)}
    plain = with_selection(Student.load(exported), selection, 4)
    student, calls = in_one_call(plain, selection, 4, tmp_path)
    for each in (plain, student):
        each._random = np.random.default_rng(0)
    for step in range(4):
        if step == 2:  # one action more than usual was executed
            plain._at = student._at = 5
        ours, reference = (each._evaluate(each._window(), each._latents(), each._last, each._at) if each._last is not None
                           else Plan(each.predict_action_chunk(observation)) for each in (student, plain))  # fmt: skip
        np.testing.assert_allclose(ours.actions_TA, reference.actions_TA, atol=3e-5)
        if step:
            student._adopt(ours, 0)
            plain._adopt(reference, 0)
        student._at = plain._at = 4
        # the third call has to be numpy's, and the fourth, as numpy's plan is not normalised
        assert len(calls) == (1, 2, 2, 2)[step]


# -- the choice --------------------------------------------------------------------------------------------------------


def made_up(graph: Callable[[Any], np.ndarray], selection: RuntimeSelection, **options: Any) -> Student:
    """A student of one number of state with any graph: T = 8, A = 2."""
    inputs, latents = (Input(STATE, (1, 1)),), Input("latents", (2,))
    exported = Exported(
        Path("made-up"), "one_step_student", "recorded", 0.1, inputs, latents, 0, 8, ("a", "b"), selection, {}
    )  # fmt: skip
    return Student(exported, graph, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_it_chooses_among_any_plans_as_the_selection_does(kind: str) -> None:
    selection, executed, weights_A = Selection(kind, 9, 3), 5, torch.tensor([1.0, 0.3])
    scale_A = np.array([0.3, 2.0], np.float32)
    entry = {**vars(selection), "execution_horizon": executed, "outlier_ratio": 4.0, "mode_duplicates": 3,
             "same_plan_distance": 0.01}  # fmt: skip
    action = {"weights": weights_A.tolist(), "scale": scale_A.tolist()}
    plans = np.zeros((1, 9, 8, 2), np.float32)
    student = made_up(lambda feed: plans[0, : feed["latents"].shape[1]], RuntimeSelection.of(entry, action))
    memory, rng, chosen = Memory(), np.random.default_rng(0), set()
    for replan in range(60):
        # two modes, duplicates among them, and now and then an outlier
        made = 0.02 * rng.standard_normal((9, 8, 2)) + rng.integers(0, 2, (9, 1, 1))
        made[rng.integers(0, 9, 3)] = made[rng.integers(0, 9)]
        made[0] += 5 * (replan % 3 == 0)
        plans[:] = (made * scale_A)[None]
        ours = student.predict_action_chunk({STATE: np.zeros(1)})
        draws, memory = draw_candidates(selection, memory, lambda count: torch.zeros(count, 2), executed, 8)
        candidates_1NTA = torch.from_numpy(plans / scale_A)[:, : len(draws)]
        picked_1TA, (memory,) = choose(selection, candidates_1NTA, [memory], executed, weights_A)
        np.testing.assert_allclose(ours / scale_A, picked_1TA[0].numpy(), rtol=1e-5, atol=1e-6)
        chosen.add(int((plans[0] == ours).all((1, 2)).argmax()))
    assert len(chosen) == 1 if kind in ("single", "kept_latent") else len(chosen) > 1


def test_a_kept_latent_is_drawn_again_when_it_is_forgotten() -> None:
    student = made_up(lambda feed: np.zeros((1, 8, 2), np.float32), RuntimeSelection("kept_latent", 4, forget_every=2))
    drawn: list[int] = []

    def draw(count: int) -> np.ndarray:
        drawn.append(count)
        return np.full((count, 2), len(drawn), np.float32)

    student.draw = draw
    for _ in range(5):
        student.predict_action_chunk({STATE: np.zeros(1)})
    assert drawn == [1, 1, 1]  # at replans 0, 2 and 4


def test_the_last_observations_are_kept_and_the_first_is_repeated(exported: Path) -> None:
    seen: list[np.ndarray] = []
    student = with_selection(Student.load(exported), Selection("single"), 1)
    graph = student._graph
    student._graph = lambda feed: (seen.append(feed[STATE][0, :, 0]), graph(feed))[1]
    for x in (0.3, 0.4, 0.5):
        student.select_action({STATE: np.array([x, 0.0])})
    student.predict_action_chunk({STATE: np.array([[0.6, 0.0], [0.7, 0.0]])})
    student.predict_action_chunk({STATE: np.array([0.8, 0.0])})
    student.reset()
    student.select_action({STATE: np.array([0.9, 0.0])})
    expected = [[0.3, 0.3], [0.3, 0.4], [0.4, 0.5], [0.6, 0.7], [0.7, 0.8], [0.9, 0.9]]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


# -- the deadline ------------------------------------------------------------------------------------------------------


def test_a_call_that_misses_its_deadline_goes_on_with_the_last_plan() -> None:
    """Plans are 0, 1, .. and 100, 101, ..; the second is ready only when the test lets it be."""
    ready, calls = threading.Event(), []

    def graph(feed: Any) -> np.ndarray:
        calls.append(float(feed[STATE][0, 0, 0]))
        if len(calls) == 2:
            assert ready.wait(20)
        return 100.0 * (len(calls) - 1) + np.arange(8, dtype=np.float32)[None, :, None].repeat(2, 2)

    student = made_up(graph, RuntimeSelection("single", 3), deadline_s=0.01)
    got = [float(student.select_action({STATE: np.array([step])})[0]) for step in range(5)]
    assert got == [0, 1, 2, 3, 4] and (student.missed, student.held) == (2, 0)  # it was asked at step 3
    ready.set()
    student._pending[1].result(20)
    # it was made for the observation of step 3: at step 5 its first two actions are over
    got = [float(student.select_action({STATE: np.array([step])})[0]) for step in (5, 6)]
    assert got == [102, 200] and student.missed == 2 and calls == [0, 3, 6]  # three actions of each plan


def test_at_the_end_of_the_last_plan_its_last_action_is_held_and_an_episode_begins_without_it() -> None:
    ready, calls = threading.Event(), []

    def graph(feed: Any) -> np.ndarray:
        calls.append(1)
        if len(calls) == 2:
            assert ready.wait(20)
        return len(calls) * 100.0 + np.arange(8, dtype=np.float32)[None, :, None].repeat(2, 2)

    student = made_up(graph, RuntimeSelection("single", 8), deadline_s=0.005)
    got = [float(student.select_action({STATE: np.zeros(1)})[0]) for _ in range(10)]
    assert got == [100, 101, 102, 103, 104, 105, 106, 107, 107, 107] and (student.missed, student.held) == (2, 2)
    student.reset()
    ready.set()
    assert float(student.select_action({STATE: np.zeros(1)})[0]) == 300  # waited for, and not the plan of before


def test_without_a_deadline_nothing_is_missed(exported: Path) -> None:
    student = Student.load(exported)
    actions = [student.select_action({STATE: np.array([0.5, 0.0])}) for _ in range(20)]
    assert student.missed == 0 and np.isfinite(actions).all()
    again = Student.load(exported, deadline_s=30.0)
    np.testing.assert_array_equal([again.select_action({STATE: np.array([0.5, 0.0])}) for _ in range(20)], actions)
    assert again.missed == 0


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_runs_without_torch(exported: Path) -> None:
    code = f"import sys; sys.argv[1:] = [{str(exported)!r}, '--starts', '2']\nimport runpy\n" \
           f"runpy.run_path({str(EXAMPLE)!r}, run_name='__main__')\nprint('torch' in sys.modules)"  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert found.stdout.splitlines()[-1] == "False", found.stderr
    assert "of 2 starts solved" in found.stdout


def test_starting_noises_are_drawn_by_their_shares(exported: Path) -> None:
    student = Student.load(exported)
    starting = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]], np.float32), np.cumsum([0.5, 0.0, 0.5])
    student = Student(replace(student.exported, starting=starting), student._graph)
    drawn = student.draw(2000)
    assert drawn.shape == (2000, 2) and set(drawn[:, 0]) == {1.0, 3.0} and 0.45 < (drawn[:, 0] == 1).mean() < 0.55


def test_the_description_of_the_folder_is_read(exported: Path) -> None:
    told, found = json.loads((exported / "export.json").read_text()), Student.load(exported).exported
    assert (found.task, found.dt_s, found.horizon, found.observation_steps) == ("avoid", 0.05, 8, 2)
    assert found.action_names == ("x_m", "y_m") and found.selection.executed == told["selection"]["execution_horizon"]
    weights = np.array([0.5, 0.5]) ** 0.5 / 0.3
    np.testing.assert_allclose(found.selection.metric_A, weights, rtol=1e-6)
