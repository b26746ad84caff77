"""The whole recipe with cameras, tiny: from points and from RGB-D, stopped and gone on with, refused where it must be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import distill.stages.train_student
import distill.stages.train_teacher
from distill.config import Config
from distill.graphs.run import run_graph
from distill.hypotheses.cache import HypothesisDataset
from distill.presets import apply_preset
from distill.runtime.context import Context
from distill.training.data import windows_for
from distill.training.loop import fit
from distill.worlds import open_world
from envs.demonstrations import Demonstrations
from envs.specs import DEPTH, IMAGES, POINTS, STATE
from students import load_student
from teachers import load_teacher
from teachers.contract import FEATURES

TINY = """\
task: detour
processes: 1
demos: {{train_starts: 2}}
observation: {{sources: {sources}, state_names: [tool_x_m, tool_y_m, tool_z_m, finger_m], num_points: 32,
  image_size: [24, 32], width: 32, channels: 16, dropout: 0.1{more}}}
teacher: {{training_steps: 5, batch_size: 4, warmup_steps: 2, candidates: 1, width: 32, depth: 1, heads: 2, horizon: 32,
  patch: 16}}
sample: {{num_hypotheses: 4, num_steps: 2, num_observations: 12, shard_size: 8, batch_size: 8}}
student: {{objectives: {objectives}, default: chamfer, training_steps: 4, batch_size: 4, num_latents: 4, codes: 8,
  warmup_steps: 2, candidates: 1}}
evaluate: {{test_starts: 2, validation_starts: 1, teacher_steps: [2], execution_horizon: 24, fidelity_observations: 3,
  fidelity_samples: 8, latency_modes: [], frontier_samples: [], latency_calls: 3, latency_warmup: 1}}
"""

Main = Callable[[Sequence[str]], int]


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
            patch.delenv(name, raising=False)
        yield


def _preset(folder: Path, sources: str, objectives: str = "[chamfer]", more: str = "") -> list[str]:
    """The arguments of a tiny run in this folder."""
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(sources=sources, objectives=objectives, more=more))
    return ["--config", str(path), "--runs-dir", str(folder)]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run from points, with its report."""
    from distill.cli.main import main

    folder = tmp_path_factory.mktemp("points")
    assert main(_preset(folder, "[state, points]")) == 0
    return folder / "tiny-seed0"


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_from_points_is_whole(points: Path) -> None:
    demonstrations = Demonstrations.load(points / "demos")
    assert demonstrations.cameras is not None and set(demonstrations.cameras.spec.shapes()) == {POINTS}
    assert set(load_teacher(points / "teach").shape.encoder.sources) == {STATE, POINTS}  # type: ignore[union-attr]
    report = _json(points / "report" / "report.json")
    assert report["observation"]["sources"] == ["state", "points"]
    names = {row["name"] for row in report["policies"]}
    assert names == {"teacher_2", "nearest_demonstration", "chamfer"}
    for name in names:
        assert _json(points / "evaluate" / name / "result.json")["summary"]["episodes"] == 2
        assert _json(points / "latency" / "latency.json")[name]["stages"]["encode_ms"] > 0


def test_a_student_keeps_its_teachers_encoder_and_was_trained_on_what_it_makes(points: Path) -> None:
    teacher, student = load_teacher(points / "teach"), load_student(points / "distill" / "chamfer")
    mine, its = student.encoder.state_dict(), teacher.encoder.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in its)
    key = _json(points / "teach" / "manifest.json")["key"]
    cache = HypothesisDataset(points / "sample", features_of=key, frames=True)
    batch = cache.batch(range(len(cache)))
    config = apply_preset(Config(runs_dir=points.parent, name=points.name), points.parent / "tiny.yaml")
    graph = run_graph(config, open_world(config))
    with Context.open(config.folder) as context:
        dataset = windows_for(graph.demonstrations.result(context), student.shape, 2, 1)
        seen = dataset[batch["frame_index"].numpy()]
        with torch.no_grad():
            torch.testing.assert_close(batch[FEATURES], student.features({name: seen[name] for name in (STATE, POINTS)}))
        held_out = graph.starts.held_out(context)
    assert held_out[POINTS].shape == (3, 2, 32, 3) and held_out[STATE].shape == (3, 2, 7)


def test_no_policy_is_told_where_the_object_is(points: Path) -> None:
    teacher = load_teacher(points / "teach")
    config = apply_preset(Config(runs_dir=points.parent, name=points.name), points.parent / "tiny.yaml")
    starts = run_graph(config, open_world(config)).starts
    with Context.open(config.folder) as context:
        seen = {name: torch.from_numpy(value) for name, value in starts.held_out(context).items()}
    moved = {**seen, STATE: seen[STATE].clone()}
    moved[STATE][..., 4:] += 0.1
    with torch.no_grad():
        assert torch.equal(teacher.encode(seen), teacher.encode(moved))


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    points: Path, tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*arguments: Any, **keywords: Any) -> Any:
        fit(*arguments, **keywords, stop_after=3)
        raise KeyboardInterrupt

    def train_with(loop: Any) -> None:
        for stage in (distill.stages.train_teacher, distill.stages.train_student):
            monkeypatch.setattr(stage, "fit", loop)

    command = ["distill", *_preset(tmp_path, "[state, points]")]
    train_with(stopped)
    assert main(command) == 130  # the teacher
    train_with(fit)
    assert main(["sample", *command[1:]]) == 0
    train_with(stopped)
    assert main(command) == 130  # the student
    train_with(fit)
    assert main(command) == 0
    for name in ("teach/model.safetensors", "sample/shard-00001.safetensors", "distill/chamfer/model.safetensors"):
        assert (tmp_path / "tiny-seed0" / name).read_bytes() == (points / name).read_bytes(), name


def test_rgbd_with_students_that_need_no_hypotheses_and_a_world_that_goes_on(tmp_path: Path, main: Main) -> None:
    command = _preset(tmp_path, "[state, images, depth]", "[chamfer, imle_policy, reflow, consistency]")
    assert main(["evaluate", *command, "--real-time.latency-ms", "100", "--real-time.teacher-steps", "2"]) == 0
    run = tmp_path / "tiny-seed0"
    demonstrations = Demonstrations.load(run / "demos")
    assert demonstrations.cameras is not None
    assert set(demonstrations.cameras.spec.shapes()) == {
        f"{kind}.{camera}" for kind in (IMAGES, DEPTH) for camera in ("front", "wrist")
    }
    assert load_student(run / "distill" / "imle_policy").shape.encoder is not None
    rolled = _json(run / "real_time" / "chamfer" / "result.json")["times"][0]
    assert len(rolled["calm"]) == len(rolled["disturbed"]) == 2


def test_an_encoder_that_is_not_frozen_is_trained_on(tmp_path: Path, main: Main) -> None:
    assert main(["distill", *_preset(tmp_path, "[points]", more=", state_names: [], frozen: false")]) == 0
    run = tmp_path / "tiny-seed0"
    teacher, student = load_teacher(run / "teach"), load_student(run / "distill" / "chamfer")
    its = teacher.encoder.state_dict()
    assert any(not torch.equal(value, its[name]) for name, value in student.encoder.state_dict().items())


def test_a_narrower_student_keeps_the_encoder_too(tmp_path: Path, main: Main) -> None:
    command = _preset(tmp_path, "[state, points]")
    assert main(["distill", *command, "--student.width", "16", "--student.depth", "1"]) == 0
    run = tmp_path / "tiny-seed0"
    its = load_teacher(run / "teach").encoder.state_dict()
    student = load_student(run / "distill" / "chamfer")
    assert student.shape.width == 16 and student.adapt is not None
    assert all(torch.equal(value, its[name]) for name, value in student.encoder.state_dict().items())


def test_a_teacher_that_sees_otherwise_is_refused(points: Path, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--runs-dir", str(points.parent), "--task", "detour", "--teacher.path", str(points / "teach")]
    assert main(["sample", *command, "--teacher.horizon", "32", "--dry-run"]) == 2
    assert "use the section observation of the config it was trained with" in capsys.readouterr().err
