"""docs/extending.md, followed to the letter: each example is written to its one file, its line is added, and it works."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch

import envs
from distill.cli.main import main
from distill.cli.opening import _encoder
from distill.graphs.run import EXTRA_STAGES
from distill.hypotheses.distances import distances, embed
from distill.objectives.sets import OBJECTIVES
from distill.report.contents import SECTIONS
from distill.worlds import WORLDS
from envs.recorded.observations import RecordedObservations
from envs.specs import STATE
from teachers import TEACHERS, load_teacher
from teachers import make_teacher as untrained
from teachers.contract import check_teacher
from teachers.networks.modalities import MODALITIES
from teachers.networks.observations import fake_observation
from teachers.networks.shapes import EncoderShape, PolicyShape
from teachers.trained import TrainedTeacher

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
EXAMPLES = {match[1]: match[0] for match in re.finditer(r"(?s)(?<=```python\n)# (\S+\.py)\n.*?(?=```)", PAGE)}
Example = Callable[[str], ModuleType]

TINY = """\
processes: 1
demos: {train_starts: 4, per_mode: 1}
teacher: {training_steps: 6, batch_size: 8, warmup_steps: 2, candidates: 1, width: 16, depth: 1, heads: 2, horizon: 8, patch: 8}
sample: {num_hypotheses: 4, num_steps: 1, num_observations: 12, shard_size: 16, batch_size: 8}
student: {training_steps: 4, batch_size: 4, num_latents: 2, codes: 0, code_shares: false, latent_size: 2, warmup_steps: 1,
  candidates: 1}
evaluate: {test_starts: 3, validation_starts: 2, teacher_steps: [1], execution_horizon: 4, fidelity_observations: 3,
  fidelity_samples: 6, latency_modes: [], frontier_samples: [], latency_calls: 3, latency_warmup: 1}
"""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Example:
    """An example of the page as a module, from a new file under the name that the page gives it."""

    def load(name: str) -> ModuleType:
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(EXAMPLES[name])
        module = name.removesuffix(".py").replace("/", ".")
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, module, made)  # dataclasses look their module up
        spec.loader.exec_module(made)
        return made

    return load


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], Path]:
    """A tiny run; its folder."""

    def do(arguments: Sequence[str]) -> Path:
        (tmp_path / "tiny.yaml").write_text(TINY)
        monkeypatch.chdir(tmp_path)
        assert main([*arguments, "--config", "tiny.yaml", "--name", "toy"]) == 0
        return tmp_path / "runs" / "toy"

    return do


def test_every_file_of_the_table_has_its_example() -> None:
    rooms = {str(Path(name).parent) for name in EXAMPLES}
    assert rooms == {
        "envs/panda", "distill/worlds", "teachers", "distill/objectives", "teachers/networks", "distill/stages",
        "distill/report/sections",
    }  # fmt: skip
    assert all(f"`{room}/<name>.py`" in PAGE for room in rooms)


def test_a_task(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    task = example("envs/panda/avoid_slowly.py")
    monkeypatch.setitem(envs.TASKS, "avoid_slowly", task.AvoidSlowlyEnv)
    assert envs.task_spec("avoid_slowly").dt_s == 0.1
    observation, _ = envs.make("avoid_slowly").reset(seed=0)
    assert observation["observation.state"].shape == (2,)


def test_a_world_runs_from_demonstrations_to_the_report(
    example: Example, run: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(WORLDS, "point", example("distill/worlds/point.py").PointWorld)
    folder = run(["--task", "point"])
    report = json.loads((folder / "report" / "report.json").read_text())
    assert report["task"]["name"] == "point" and report["task"]["modes"] == ["left", "right"]
    assert [policy["name"] for policy in report["policies"]] == ["teacher_1", "nearest_demonstration", "regression", "chamfer"]
    nearest = report["policies"][1]
    assert nearest["successes"] == nearest["episodes"] == 3  # what was shown passes the obstacle
    # what this world cannot do is refused before anything starts
    assert main(["--task", "point", "--real-time.latency-ms", "50"]) == 2


def test_a_teacher_is_trained_and_keeps_the_contract(
    example: Example, run: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch, small_shape: PolicyShape,
    statistics: dict[str, Any],
) -> None:
    monkeypatch.setitem(TEACHERS, "spread", example("teachers/spread.py").SpreadTeacher)
    teacher = untrained("spread", small_shape).eval()
    teacher.normaliser.fit(statistics)
    check_teacher(teacher, fake_observation(small_shape, 2), small_shape.action_size, 1)
    folder = run(["sample", "--teacher.kind", "spread"])
    assert json.loads((folder / "sample" / "index.json").read_text())["teacher"] == "spread_teacher, once"


def test_an_objective_trains_a_student_and_is_the_hausdorff_distance(
    example: Example, run: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = example("distill/objectives/farthest.py")
    monkeypatch.setitem(OBJECTIVES, "farthest", made.FARTHEST)
    student, teacher = torch.randn(3, 4, 5, 2, requires_grad=True), torch.randn(3, 6, 5, 2, requires_grad=True)
    weights = torch.tensor([1.0, 0.5])
    distance_BMK = distances(embed(student, weights), embed(teacher, weights)).detach()
    brute = sum(max(min(float(distance_BMK[b, m, k]) for m in range(4)) for k in range(6)) for b in range(3)) / 3
    loss = made.farthest(student, teacher, weights)
    assert float(loss.detach()) == pytest.approx(brute)
    loss.backward()
    assert student.grad is not None and teacher.grad is None
    folder = run(["distill", "--student.objectives", "farthest", "chamfer+0.1farthest", "--student.default", "farthest"])
    assert (folder / "distill" / "farthest" / "model.safetensors").is_file()
    assert (folder / "distill" / "chamfer+0.1farthest" / "model.safetensors").is_file()


def test_a_modality_is_encoded_saved_and_loaded(
    example: Example, monkeypatch: pytest.MonkeyPatch, make_teacher: Callable[..., TrainedTeacher], tmp_path: Path
) -> None:
    state_names = make_teacher().shape.state_names
    force = EncoderShape(state_names=state_names, vectors=(("observation.force", 6),), width=16, heads=2, channels=16)
    with pytest.raises(ValueError, match="observation.force: got no modality of this name"):
        make_teacher(encoder=force)
    monkeypatch.setitem(MODALITIES, "observation.force", example("teachers/networks/force.py").ForceEncoder)
    teacher = make_teacher(encoder=force)
    seen = fake_observation(teacher.shape, 2)
    assert seen["observation.force"].shape == (2, teacher.shape.observation_steps, 6)
    feature_BF = teacher.encode(seen)
    pressed = {**seen, "observation.force": seen["observation.force"] + 5}
    assert not torch.allclose(teacher.encode(pressed), feature_BF, rtol=1e-3)
    without = {"without": ("observation.force",)}
    assert torch.equal(teacher.encode(seen, **without), teacher.encode(pressed, **without))
    with pytest.raises(ValueError, match=r"observation.force: got NaN or infinity in rows \[1\]"):
        teacher.encode({**seen, "observation.force": torch.tensor([0.0, torch.inf])[:, None, None].expand(2, 2, 6)})
    # beside images, points and depth, each with its own encoder
    every = replace(force, cameras=("front",), depth_cameras=("front",), num_points=32, image_size=(16, 24))
    assert make_teacher(encoder=every).encode(fake_observation(replace(teacher.shape, encoder=every), 3)).shape[0] == 3
    teacher.save_pretrained(tmp_path / "policy")
    assert torch.equal(load_teacher(tmp_path / "policy").encode(seen), feature_BF)
    # a policy of vectors trains: the force's encoder gets a gradient
    teacher.train()
    chunks_BTA = torch.zeros(2, teacher.shape.horizon, teacher.shape.action_size)
    teacher(seen, chunks_BTA, *teacher.training_draws(2, torch.Generator())).backward()
    assert all(float(each.grad.abs().sum()) > 0 for each in teacher.encoder.vectors.parameters())


def test_a_conversion_sees_a_modality_that_was_recorded(example: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = cast(RecordedObservations, SimpleNamespace(features={STATE: (2,), "observation.force": (6,)}))
    features = [STATE, "observation.force"]
    with pytest.raises(ValueError, match=r"features: \['observation.force'\] are not supported by a student"):
        _encoder(recorded, features, ("x", "y"))
    monkeypatch.setitem(MODALITIES, "observation.force", example("teachers/networks/force.py").ForceEncoder)
    encoder = _encoder(recorded, features, ("x", "y"))
    assert encoder is not None and encoder.vectors == (("observation.force", 6),)


def test_a_section_stands_in_the_report(
    example: Example, run: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = example("distill/report/sections/failures.py")
    monkeypatch.setattr("distill.report.page.SECTIONS", [*SECTIONS, made.FAILURES])
    folder = run(["--task", "avoid"])
    report = json.loads((folder / "report" / "report.json").read_text())
    markdown = (folder / "report" / "report.md").read_text().partition("## Failures")[2]
    failed = [policy for policy in report["policies"] if policy["failures"]]
    assert failed  # a network of six training steps does not pass the obstacle every time
    for policy in failed:
        why, count = next(iter(policy["failures"].items()))
        assert f"{count} x {why}" in markdown
    assert "Failures</h2>" in (folder / "report" / "report.html").read_text()


def test_a_stage_is_done_and_listed(
    example: Example, run: Callable[[Sequence[str]], Path], monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = example("distill/stages/action_ranges.py")
    monkeypatch.setitem(EXTRA_STAGES, "action_ranges", lambda graph: made.MeasureActionRanges(graph.demonstrations))
    folder = run(["action_ranges"])
    (low, high), _ = json.loads((folder / "action_ranges" / "ranges.json").read_text())
    assert 0.28 <= low < high <= 0.75
    manifest = json.loads((folder / "action_ranges" / "manifest.json").read_text())
    demos = json.loads((folder / "demos" / "manifest.json").read_text())
    assert manifest["made_from"] == {"digits": 4, "demos": demos["key"]}
    capsys.readouterr()
    run(["--dry-run"])
    assert re.search(r"action_ranges +done\n", capsys.readouterr().out)
