"""Policies in run modes: rolled out with the same random numbers, timed beside eager, refused when they differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from distill.evaluation.latency import measure_latency
from distill.evaluation.policies import StudentPolicy, TeacherPolicy
from distill.evaluation.rollouts import query_policy
from distill.evaluation.run_modes import check_modes, fastest, in_mode, parity, policies_in_modes, runs_in_modes
from envs.specs import STATE
from students.runtime.modes import MODES, PyTorch
from students.selection import SINGLE_SAMPLE, Memory, Selection

SEVERAL = Selection("outlier_rejection", 6)
CONSISTENT = Selection("temporal_consistency", 6, 2)


def _states(count: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {STATE: generator.uniform([0.25, -0.3], [0.75, 0.3], (count, 2, 2)).astype(np.float32)}


@pytest.mark.parametrize("selection", [SINGLE_SAMPLE, SEVERAL, CONSISTENT], ids=lambda each: each.kind)
def test_a_query_of_several_episodes_gives_eager_s_chunks_and_memories_replan_by_replan(make_student, selection) -> None:
    eager = StudentPolicy(make_student(codes=4, shares=True), "student")
    ours = in_mode(eager, "pytorch", selection, 3)
    results = []
    for policy in (eager, ours):
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
        memories, chunks = [Memory()] * 3, []
        for _ in range(4):  # the last plan is forgotten at every second replan
            chunk, memories = query_policy(policy, _states(3), generators, selection, memories, 3)
            chunks.append(chunk)
        results.append((np.stack(chunks), [memory.replans for memory in memories]))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1e-5)
    assert results[0][1] == results[1][1] == [4, 4, 4]


def test_candidates_are_given_for_actions_that_an_environment_refuses(make_student) -> None:
    eager = StudentPolicy(make_student(), "student")
    drawn: list[torch.Tensor] = []
    for policy in (eager, in_mode(eager, "pytorch", SEVERAL, 3)):
        query_policy(policy, _states(1), [torch.Generator().manual_seed(0)], SEVERAL, [Memory()], 3, drawn=drawn.append)
    assert drawn[0].shape == drawn[1].shape == (1, 6, 8, 2)
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=0)


def test_all_modes_are_timed_in_the_same_rounds_and_the_fastest_with_parity_is_named(make_student, make_teacher) -> None:
    policies = [TeacherPolicy(make_teacher(), 4), StudentPolicy(make_student(), "student")]

    def selection(policy: Any) -> Selection:
        return SEVERAL if policy.name.startswith("student") else SINGLE_SAMPLE

    in_modes, left_out = policies_in_modes(policies, ("pytorch", "cuda_graph"), selection, 3)
    assert [each.name for each in in_modes] == ["teacher_4@pytorch", "student@pytorch"]
    assert left_out == {"cuda_graph": "needs an NVIDIA GPU"}
    measured = measure_latency([*policies, *in_modes], _states(2), 3, 1, 3, 0, selection)
    assert set(measured) == {"teacher_4", "student", "teacher_4@pytorch", "student@pytorch"}
    for each in in_modes:
        found = parity(each, _states(2), selection(each.policy), 3, calls=4)
        assert found["holds"] and found["largest"] < 1e-5 and found["other_choice"] == 0 and found["calls"] == 4


def test_a_mode_that_computes_something_else_is_measured_and_never_the_fastest(make_student, monkeypatch) -> None:
    class Wrong(PyTorch):
        def graph(self, module, examples):
            graph = super().graph(module, examples)
            return lambda *inputs: (lambda chunk, candidates, index: (chunk, candidates + 0.01, index))(*graph(*inputs))

    monkeypatch.setitem(MODES, "pytorch", Wrong())
    policy = in_mode(StudentPolicy(make_student(), "student"), "pytorch", SEVERAL, 3)
    found = parity(policy, _states(2), SEVERAL, 3, calls=2)
    assert found["largest"] == pytest.approx(0.01, rel=1e-3) and not found["holds"]
    good = {"median_ms": 2.0, "parity": {"holds": True}}
    assert fastest({"median_ms": 3.0, "modes": {"a": {"median_ms": 1.0, "parity": found}, "b": good}}) == "b"
    assert fastest({"median_ms": 1.5, "modes": {"b": good}}) == fastest({"median_ms": 1.0}) == "eager"


def test_a_compiler_that_fails_leaves_its_mode_out_and_says_why(make_student, monkeypatch) -> None:
    class Failing(PyTorch):
        def graph(self, module, examples):
            raise RuntimeError("no such\ninstruction")

    monkeypatch.setitem(MODES, "pytorch", Failing())
    policy = StudentPolicy(make_student(), "student")
    found, left_out = policies_in_modes([policy], ("pytorch",), lambda _: SINGLE_SAMPLE, 3)
    assert found == [] and left_out == {"pytorch": "failed for student: no such instruction"}


def test_teachers_of_other_kinds_run_in_pytorch_only(make_teacher) -> None:
    assert runs_in_modes(TeacherPolicy(make_teacher(), 2))
    assert not any(runs_in_modes(TeacherPolicy(make_teacher(kind=kind, solver=""), 2)) for kind in ("energy",))


@pytest.mark.parametrize(("names", "message"), [
    (("onnxruntim",), "evaluate.latency_modes: unknown run mode 'onnxruntim'.*onnxruntime"),
    (("compile", "compile"), "got a run mode twice"),
])  # fmt: skip
def test_an_unknown_mode_is_refused_with_the_nearest(names, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_modes(names, "evaluate.latency_modes")
