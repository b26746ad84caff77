"""A whole tiny run in the tool frame with moved scenes: what teacher, hypotheses and students see is the same moved scene."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config import Config
from distill.graphs.run import run_graph
from distill.hypotheses.cache import HypothesisDataset, draw_hypotheses
from distill.presets import apply_preset
from distill.runtime.context import Context
from distill.worlds import open_world
from envs.specs import POINTS, STATE
from students import load_student
from teachers import load_teacher
from teachers.contract import FEATURES

TINY = """\
task: handles
processes: 1
demos: {train_starts: 2}
observation: {sources: [state, points], state_names: [tool_x_m, tool_y_m, tool_z_m, finger_m], num_points: 32,
  image_size: [24, 32], width: 32, channels: 16, keypoints: 4, frame: tool, translate_m: 0.1, rotate_deg: 20.0, stretch: 0.2}
teacher: {training_steps: 5, batch_size: 4, warmup_steps: 2, candidates: 1, width: 32, depth: 1, heads: 2, horizon: 32,
  patch: 16, observation_steps: 2}
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 400, shard_size: 256, batch_size: 64}
student: {objectives: [regression, chamfer], default: chamfer, training_steps: 4, batch_size: 4, num_latents: 4, codes: 8,
  warmup_steps: 2, candidates: 1}
evaluate: {test_starts: 2, validation_starts: 1, teacher_steps: [2], execution_horizon: 16, fidelity_observations: 3,
  fidelity_samples: 8, latency_modes: [], frontier_samples: [], latency_calls: 3, latency_warmup: 1, baselines: []}
"""


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from distill.cli.main import main

    folder = tmp_path_factory.mktemp("moving")
    (folder / "tiny.yaml").write_text(TINY)
    assert main(["--config", str(folder / "tiny.yaml"), "--runs-dir", str(folder)]) == 0
    return folder / "tiny-seed0"


def _config(run: Path) -> Config:
    return apply_preset(Config(runs_dir=run.parent, name=run.name), run.parent / "tiny.yaml")


def test_hypotheses_are_what_the_teacher_plans_in_the_moved_scene(run: Path) -> None:
    teacher, config = load_teacher(run / "teach"), _config(run)
    graph = run_graph(config, open_world(config))
    cache = HypothesisDataset(run / "sample", features_of=graph.sample.teacher.key, frames=True)
    with Context.open(config.folder) as context:
        count = graph.sample.source.num_frames(context)
        # fewer frames than observations: the rest are copies, moved differently
        assert count < len(cache) == 400
        batch = cache.batch(range(len(cache)))
        numbers = batch["frame_index"].numpy()
        assert len(set(numbers.tolist())) == 400 and (numbers >= count).sum() == 400 - count
        rows = np.array([0, 1, 300, 399])
        seen = graph.sample.source.observe(context, teacher.shape)(numbers[rows])
        original = graph.sample.source.observe(context, teacher.shape)(numbers[rows] % count)
    observation = {name: torch.from_numpy(value) for name, value in seen.items()}
    torch.testing.assert_close(batch[STATE][rows], observation[STATE])
    with torch.no_grad():
        torch.testing.assert_close(batch[FEATURES][rows], teacher.features(observation), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        teacher.use_solver(graph.sample.config.solver)
        drawn = draw_hypotheses(teacher, observation, batch["seed"][rows].numpy(), 2, torch.device("cpu"))
        torch.testing.assert_close(
            batch["hypotheses"][rows], teacher.normaliser.normalise_action(drawn), rtol=0, atol=5e-3
        )  # stored in float16
    # a copy is another scene than its original, with the same distances from the tool but for the stretch
    assert not np.allclose(seen[POINTS][2:], original[POINTS][2:], atol=1e-3)
    gap = [np.linalg.norm(each[POINTS][2:, -1] - each[STATE][2:, -1, None, :3], axis=-1) for each in (seen, original)]
    assert np.abs(gap[0] / gap[1] - 1).max() < 0.2 * 1.5 + 1e-3


def test_a_student_starts_as_its_teacher_plans_relative_to_the_tool(run: Path) -> None:
    """Its codes are chunks relative to the tool: moved by a metre, it plans the same, a metre away."""
    student = load_student(run / "distill" / "chamfer")
    assert student.shape.frame == "tool" and student.shape.encoder is not None and student.shape.encoder.keypoints == 4
    config = _config(run)
    with Context.open(config.folder) as context:
        seen = run_graph(config, open_world(config)).starts.held_out(context)
    observation = {name: torch.from_numpy(seen[name]).float() for name in (STATE, POINTS)}
    far = {name: value.clone() for name, value in observation.items()}
    far[STATE][..., :3] += 1.0
    far[POINTS][..., :3] += 1.0
    latents = torch.randn(3, 5, *student.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plan, moved = student(observation, latents), student(far, latents)
    torch.testing.assert_close(moved[..., :3], plan[..., :3] + 1.0, rtol=0, atol=1e-4)
    torch.testing.assert_close(moved[..., 3], plan[..., 3], rtol=0, atol=1e-4)


def test_the_report_compares_training_and_new_scenes(run: Path) -> None:
    report = json.loads((run / "report/report.json").read_text())
    rows = report["generalisation"]["rows"]
    assert [row["label"] for row in rows] == [policy["label"] for policy in report["policies"]]
    for row in rows:
        for split in ("training", "held_out"):
            assert row[split]["position_m"]["mean"] > 0 and "rotation_deg" not in row[split]
    assert "Errors on new scenes" in (run / "report/report.html").read_text()
