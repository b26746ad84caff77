"""Convert in place, whole but tiny: the user's own network is fine-tuned, chosen, measured, saved in its own format."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import distill.hypotheses.distances as losses
import envs
from distill.stages.in_place.choose import ChooseInPlace
from distill.stages.in_place.config import loss_terms, rate_for
from distill.stages.in_place.encode import ConditionCost, in_units
from distill.stages.in_place.train import STARTS, TrainInPlace, together
from distill.store.manifest import sha256_file, write_json
from flow2one_runtime import Student
from teachers.adapters.teacher import AdapterFile, AdapterGone, AdapterTeacher
from teachers.networks.shapes import PolicyShape
from tests.distill.twelve_episodes import twelve_episodes

POLICIES = Path(__file__).parents[3] / "examples" / "own_network.py"
SETTINGS = """\
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 12, shard_size: 6, batch_size: 5}
student: {training_steps: 4, batch_size: 4, num_latents: 3, codes: 4, warmup_steps: 1, candidates: 2, width: 16,
  depth: 1, code_shares: false}
in_place: {training_steps: 6, batch_size: 4, num_latents: 3, warmup_steps: 1, candidates: 2}
evaluate: {fidelity_observations: 3, fidelity_samples: 6, latency_calls: 3, latency_warmup: 1,
  latency_modes: [], test_starts: 2,
  validation_starts: 2, teacher_steps: [4, 1], execution_horizon: 8, selection_candidates: 4}
"""

Main = Callable[[Sequence[str]], int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A working folder with recorded observations of `avoid`, a foreign policy and settings; and how to convert there."""
    monkeypatch.chdir(tmp_path)
    twelve_episodes().save(Path("demos"))
    shutil.copy(POLICIES, "my_policy.py")
    Path("tiny.yaml").write_text(SETTINGS)

    def line(*more: str) -> list[str]:
        there = ["--config", "tiny.yaml", "--observations", "demos", "--out", "out"]
        return ["convert", "--teacher", "my_policy.py", *there, *more]

    return SimpleNamespace(line=line)


def told() -> dict[str, Any]:
    return dict(json.loads(Path("out/report/report.json").read_text()))


def test_a_policy_becomes_its_own_one_step_student_though_its_process_is_killed(
    main: Main, place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    killed: list[int] = []
    steps = TrainInPlace._steps

    def killing(self: TrainInPlace, worker: AdapterTeacher, first: int, last: int, count: int, config: Any) -> dict[str, Any]:
        if first >= 5 and not killed:  # after the first checkpoint was written
            killed.append(worker._process.pid)
            os.kill(worker._process.pid, signal.SIGKILL)
        return steps(self, worker, first, last, count, config)

    monkeypatch.setattr(TrainInPlace, "_steps", killing)
    assert main(place.line("--task", "avoid", "--student.kind", "both")) == 0
    said = capsys.readouterr().out
    assert "student: the policy's own network, fine-tuned in place, beside a fresh one" in said
    assert len(killed) == 1 and "is gone (signal SIGKILL)" in said and "training resumes in a new process" in said
    assert "encoded observations: 32 B an observation, 384 B for all 12; computed once" in said
    assert len(list(Path("out/encode").glob("conditions-*.safetensors"))) == 3  # five, five and two
    assert "saved in the policy's own format; read back, its chunks differ by 0.0e+00" in said

    policies = {policy["name"]: policy for policy in told()["policies"]}
    assert list(policies) == ["teacher_4", "teacher_1", "in_place", "chamfer"]
    mine = policies["in_place"]
    assert mine["is_default_student"] and mine["nfe"] == 1 and mine["candidates"] == 4 and mine["warm_start"]
    assert mine["parameters"] == policies["teacher_4"]["parameters"] and mine["episodes"] == 2
    assert {row["step"] for row in mine["validation"]} == {5, 6}
    page = Path("out/report/report.html").read_text()
    assert "Which one to take" in page and "Student, in place" in page

    # the chosen weights are the ones that were saved, in the policy's own folder
    chosen = Path("out/distill/in_place")
    weights, own = load_file(chosen / "model.safetensors"), load_file(chosen / "policy" / "policy.safetensors")
    assert all(torch.equal(own[name], value) for name, value in weights.items())
    assert json.loads(Path("out/distill/in_place/policy/policy.json").read_text())["num_steps"] == 1
    assert not list(Path("out").rglob("*.tmp")) and not list(Path("out").rglob("resume.safetensors"))

    # killed or not, the same weights come out
    monkeypatch.setattr(TrainInPlace, "_steps", steps)
    shutil.rmtree("out/train/in_place")
    shutil.move("out/distill/in_place", "before")
    assert main(place.line("--task", "avoid", "--student.kind", "both")) == 0
    again = load_file("out/distill/in_place/model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())


@pytest.mark.slow
def test_without_a_task_sets_choose_and_auto_takes_the_policy_itself(main: Main, place: SimpleNamespace, capsys) -> None:
    assert main(place.line("--in-place.starting-noises", "5", "--adapter.arguments", "kind=unet")) == 0
    assert [policy["name"] for policy in told()["policies"]] == ["teacher_4", "teacher_1", "in_place"]
    assert load_file("out/distill/in_place/model.safetensors")["starting_noises"].shape == (5, 8, 2)
    assert told()["curves"]["in_place"][-1]["step"] == 6 and "Take " in Path("out/report/report.md").read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")}
    assert main(place.line("--in-place.starting-noises", "5", "--adapter.arguments", "kind=unet")) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")} == before


def test_a_policy_that_cannot_be_trained_gets_the_fresh_student_and_is_told_why(
    main: Main, place: SimpleNamespace, capsys
) -> None:
    text = Path("my_policy.py").read_text().replace("def trained(", "def weights(")
    Path("my_policy.py").write_text(text)
    assert main(place.line("--student.kind", "in_place", "--dry-run")) == 0
    said = capsys.readouterr().out
    why = "student: a fresh network, not in_place, because the policy itself cannot be fine-tuned in place: it has no trained()"
    assert why in said and "distill/chamfer" in said and "distill/in_place" not in said


@pytest.mark.slow
def test_a_broken_offer_is_refused_before_anything_is_made(main: Main, place: SimpleNamespace, capsys) -> None:
    text = Path("my_policy.py").read_text().replace("    def velocity", "    @torch.no_grad()\n    def velocity")
    Path("my_policy.py").write_text(text)
    assert main(place.line()) == 2
    error = capsys.readouterr().err
    assert "one_step: no gradient reaches the weights; take torch.no_grad() off what it calls" in error
    assert error.count("\n") == 1 and not Path("out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--in-place.objective", "sinkhorn"), "in_place.objective: got 'sinkhorn', expected one of"),
        (("--in-place.objective", "chamfr"), "unknown objective 'chamfr'"),
        (("--in-place.num-latents", "1"), "in_place.num_latents: got 1, expected at least 2"),
        (("--in-place.objective", "anchored", "--in-place.num-latents", "5"), "has only the 4 noises an observation"),
        (("--in-place.objective", "noise_regression", "--in-place.starting-noises", "3"), "leave it at 0"),
        (("--in-place.batch-size", "0"), "in_place.batch_size: got 0, expected at least 1. Change --in-place.batch-size"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    main: Main, place: SimpleNamespace, capsys, flags: tuple[str, ...], message: str
) -> None:
    assert main(place.line(*flags)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_encoded_observations_that_do_not_fit_are_computed_again_and_give_the_same_student(
    main: Main, place: SimpleNamespace, capsys
) -> None:
    assert main(place.line("--in-place.conditions-gb", "0")) == 0
    said = capsys.readouterr().out
    assert "32 B an observation, 384 B for all 12; too much to keep (--in-place.conditions-gb)" in said
    assert not Path("out/encode").exists()
    first = load_file("out/distill/in_place/model.safetensors")
    shutil.rmtree("out/train/in_place")
    shutil.rmtree("out/distill/in_place")
    assert main(place.line()) == 0
    again = load_file("out/distill/in_place/model.safetensors")
    for name, value in first.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5)


def test_what_encoding_costs_is_told_in_units_a_person_reads(tmp_path: Path) -> None:
    assert [in_units(size) for size in (0, 1023, 1536, 3 << 20, 5 << 40)] == ["0 B", "1023 B", "1.5 KB", "3.0 MB", "5120.0 GB"]
    cost = ConditionCost(15 << 20, 0.25, 2048)
    assert cost.total == 30 << 30 and not cost.fits(29.9, tmp_path / "not" / "there")
    stored = "15.0 MB an observation, 30.0 GB for all 2048; computed once, in about 512 s, and kept in encode/"
    assert cost.line(True, 3000, 32).endswith(stored)
    assert cost.line(False, 3000, 32).endswith("computed again in every step, in all about 24000 s")


def test_where_one_process_fails_all_do() -> None:
    def among(*others: tuple[list[Any], str, str]) -> Any:
        return SimpleNamespace(gather=lambda mine: [*mine, *others])

    def gone() -> int:
        raise AdapterGone("the adapter is gone")

    def wrong() -> int:
        raise ValueError("NaN")

    assert together(among(([2], "", "")), lambda: 1) == [1, 2]
    with pytest.raises(AdapterGone, match="is gone"):
        together(among(([2], "", "")), gone)
    with pytest.raises(AdapterGone, match="over there"):  # this one's error is only that the other left
        together(among(([], "gone over there", "")), wrong)
    with pytest.raises(ValueError, match="^NaN$"):
        together(among(([2], "", "")), wrong)


def test_the_learning_rate_falls_with_the_number_of_weights() -> None:
    assert rate_for(1000) == rate_for(500_000) == 2.5e-3
    assert rate_for(300_000_000) == pytest.approx(1.02e-4, rel=0.01)


def test_a_weighted_sum_becomes_the_shared_functions() -> None:
    assert loss_terms("chamfer") == [(1.0, "chamfer")]
    assert loss_terms("anchored") == [(2.0, "fidelity"), (1.0, "coverage"), (0.5, "energy_distance"), (0.3, "paired")]


def test_a_process_that_keeps_dying_is_told(tmp_path: Path) -> None:
    starts = []

    class Dying:
        def another(self) -> Any:
            starts.append(1)
            return SimpleNamespace(close=lambda: None)

    class Stage(TrainInPlace):
        teacher = Dying()  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

        config = SimpleNamespace(batch_size=4)  # type: ignore[assignment]

        def _train(self, context: Any, worker: Any, folder: Path) -> Any:
            raise AdapterGone("the adapter is gone (signal SIGKILL)")

    context = SimpleNamespace(say=lambda text: None, share=SimpleNamespace(world=1), gather=lambda told: told)
    with pytest.raises(AdapterGone, match="SIGKILL"):
        Stage().run(context, tmp_path)  # type: ignore[arg-type]
    assert len(starts) == STARTS and ChooseInPlace.__name__


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_the_student_of_one_though_an_adapter_is_killed(
    main: Main, place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(place.line()) == 0
    shutil.move("out", "alone")
    text = Path("my_policy.py").read_text()
    killing = """
import os, signal, torch.distributed
whole, calls = torch.distributed.all_reduce, []

def all_reduce(*given, **named):
    calls.append(1)
    if torch.distributed.get_rank() == 1 and len(calls) == 5 and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*given, **named)

torch.distributed.all_reduce = all_reduce
"""
    Path("my_policy.py").write_text(text + killing)
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, str(root / "distill.py"), *place.line("--processes", "2")], capture_output=True,
                          text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "weights are trained in 2 processes" in done.stdout and "training resumes in a new process" in done.stdout
    assert Path("killed").exists()
    mine, other = (load_file(f"{folder}/train/in_place/candidate-000006/model.safetensors") for folder in ("out", "alone"))
    for name, value in other.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-4)
    assert not list(Path("out").rglob(".processes-*")) and not list(Path("out").rglob("resume.safetensors"))


@pytest.fixture
def fine_tuned(place: SimpleNamespace, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder as `distill/in_place` makes one, of weights that were not trained, of the kind of policy that is asked."""
    kind = getattr(request, "param", "mlp")
    spec = envs.task_spec("avoid")
    shape = PolicyShape(task="avoid", state_names=spec.state_names, action_names=spec.action.names, action_weights=(1.0, 1.0),
                        dt_s=spec.dt_s, observation_steps=2, horizon=8)  # fmt: skip
    folder = tmp_path / "student"
    folder.mkdir()
    policy = tmp_path / "my_policy.py"
    write_json(folder / "config.json", {
        "kind": "in_place", "step": 6, "objective": "chamfer", "shape": shape.to_json(),
        "adapter": {"file": str(policy), "sha256": sha256_file(policy), "function": "build", "arguments": {"kind": kind},
                    "python": ""},
    })  # fmt: skip
    with AdapterTeacher(AdapterFile.parse(str(policy), {"kind": kind})) as teacher:
        teacher.request("train", {"weights": np.ones((8, 2), np.float32), "centre": np.zeros(2), "scale": np.ones(2)},
                        losses=losses.__file__, resume="", terms=[[1.0, "chamfer"]], paired=False, samples=2, at_once=0,
                        weight_decay=0.0, autocast="", conditions="", starting_noises=0, seed=0, rows=1, store="", rank=0,
                        world=1)  # fmt: skip
        teacher.request("write", weights=str(folder / "model.safetensors"), resume=str(tmp_path / "resume"), state={})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fine_tuned", ["mlp", "unet", "transformer"], indirect=True)
def test_its_head_is_exported_where_it_traces(main: Main, fine_tuned: Path, capsys) -> None:
    pytest.importorskip("onnxscript")
    assert main(["export", "--student", "student", "--out", "exported"]) == 0
    assert "onnx: differs from the policy by at most" in capsys.readouterr().out
    described = json.loads(Path("exported/export.json").read_text())
    assert described["inputs"] == [
        {"name": "condition_0", "shape": [1, 8], "dtype": "float32"},
        {"name": "noise", "shape": [1, "samples", 8, 2], "dtype": "float32"},
    ]  # fmt: skip
    assert set(described["files"]) == {"config.json", "head.onnx", "model.safetensors"}
    # the runtime takes the condition in the observation's place
    student, rng = Student.load("exported"), np.random.default_rng(0)
    condition, noise = rng.standard_normal(8, dtype=np.float32), rng.standard_normal((3, 8, 2), dtype=np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession("exported/head.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"condition_0": condition[None], "noise": noise[None]})
    np.testing.assert_allclose(student.generate({"condition_0": condition}, noise), expected[0], atol=1e-5)
    assert student.select_action({"condition_0": condition}).shape == (2,) and student.exported.selection.kind == "single"
    with pytest.raises(ValueError, match="condition_0 is missing, got .'observation.state'."):
        student.select_action({"observation.state": np.zeros(2)})


@pytest.mark.slow
def test_a_head_that_cannot_be_traced_is_refused_and_others_are_compared(main: Main, fine_tuned: Path, capsys) -> None:
    policy = Path("my_policy.py")
    check = "if float(x.abs().max()) > 1e9:\n            raise ValueError('too far')\n        return (self.head"
    changed = policy.read_text().replace("return (self.head(condition, x, t) - x)", f"{check}(condition, x, t) - x)")
    assert main(["export", "--student", "student", "--out", "exported", "--formats", "torch"]) == 2
    assert "formats: got ['torch'], expected onnx alone" in capsys.readouterr().err
    policy.write_text(changed)
    assert main(["export", "--student", "student", "--out", "exported"]) == 2
    assert "my_policy.py was changed since; put it back, or convert again" in capsys.readouterr().err
    config = json.loads((fine_tuned / "config.json").read_text())
    config["adapter"]["sha256"] = sha256_file(policy)
    write_json(fine_tuned / "config.json", config)
    assert main(["export", "--student", "student", "--out", "exported"]) == 2
    error = capsys.readouterr().err
    assert "this policy's head cannot be traced as a graph" in error and error.count("\n") == 1
    assert not Path("exported").exists()

    Path("evaluate.yaml").write_text(SETTINGS[SETTINGS.index("evaluate:") :].replace("teacher_steps: [4, 1], ", ""))
    line = ["compare", "my_policy.py@4", "student", "--config", "evaluate.yaml", "--observations", "demos", "--out", "compared"]
    assert main(line) == 0
    found = json.loads(Path("compared/report/report.json").read_text())["policies"]
    assert [(each["label"], each["kind"], each["nfe"], each["candidates"]) for each in found] == [
        ("my_policy.py@4", "teacher", 4, 1), ("student", "student", 1, 4),
    ]  # fmt: skip
