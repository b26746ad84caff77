"""Recordings as other people make them, converted whole: what is refused, what is told, and how near the student comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.specs import STATE
from students import load_student
from tests.envs.recorded.writers import Recording, as_zarr, lerobot, walk

pytest.importorskip("pyarrow")
pytest.importorskip("zarr")
Main = Callable[[Sequence[str]], int]

HOLD = '''
import os, torch
class Hold:
    """Stays about where it is; {more}"""
    horizon, action_size, observation_steps, num_steps = 4, {size}, {steps}, 1
    {more}
    def sample(self, observation, num_hypotheses, num_steps, generator):
        state = observation["observation.state"]
        if not bool(state.isfinite().all()): raise ValueError("observation.state is not finite")
        if {steps} > 1 and os.environ.get("SEEN"):
            open(os.environ["SEEN"], "a").write(" ".join(str(v) for v in (state[:, -1, 0] - state[:, 0, 0]).tolist()) + "\\n")
        noise = torch.randn(len(state), num_hypotheses, 4, {size}, generator=generator)
        chunk = state[:, -1, None, None, :{size}] + {spread} * noise
        chunk[..., -1] = {last}
        return chunk
def build(): return Hold()
'''
SMALL = (
    "--sample.num-observations", "16", "--sample.num-hypotheses", "3", "--student.training-steps", "4", "--student.width", "16",
    "--student.depth", "1", "--evaluate.fidelity-observations", "2", "--evaluate.fidelity-samples", "6",
    "--evaluate.latency-calls", "3", "--evaluate.latency-warmup", "1",
)  # fmt: skip


def policy(path: Path, size: int = 2, steps: int = 1, more: str = "pass", spread: str = "0.05", last: str = "0.1") -> str:
    path.write_text(HOLD.format(size=size, steps=steps, more=more, spread=spread, last=last))
    return f"{path}:build"


def convert(main: Main, teacher: str, observations: Path, out: Path, *flags: str) -> int:
    return main(["convert", "--teacher", teacher, "--observations", str(observations), "--out", str(out), *SMALL, *flags])


def test_a_small_conversion_tells_how_it_reads_and_keeps_constants(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = walk(12, 12, tasks=tuple(each % 2 for each in range(12)), words=("open the drawer", "close the drawer"))
    made.states[4][5, 0] = 1e4
    path = lerobot(tmp_path / "set", made, names=["shoulder.pos", "elbow.pos"])
    assert convert(main, policy(tmp_path / "hold.py"), path, tmp_path / "out") == 0
    said = capsys.readouterr().out
    for words in ("2 numbers of observation.state: shoulder.pos, elbow.pos", "observation.state[0] is 10000 in frame 53",
                  "split spread", "2 tasks, by the instruction", "given no instruction"):  # fmt: skip
        assert words in said, words
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    recording = report["data"]["recording"]
    assert recording["outliers"][0]["first"] == 53 and recording["tasks"] == {"close the drawer": 72, "open the drawer": 71}
    assert recording["ranges"][STATE][0]["high"] < 2 and recording["split"]["by"] == "tasks"
    student = next(each for each in report["policies"] if each["is_default_student"])
    assert [each["name"] for each in student["dimensions"]] == ["action_0", "action_1"]
    assert student["dimensions"][1]["mean_error"] == 0 and student["dimensions"][1]["mean_error_share"] is None
    assert "Errors in the actions' own units" in (tmp_path / "out/report/report.md").read_text()
    made_student = load_student(tmp_path / "out/distill/chamfer")
    with torch.no_grad():
        chunk = made_student({STATE: torch.randn(5, 1, 2)}, torch.randn(5, 3, *made_student.latent_shape))
    assert torch.equal(chunk[..., 1], torch.full_like(chunk[..., 1], 0.1))


def refusals(tmp_path: Path) -> dict[str, tuple[str, Path, tuple[str, ...], str]]:
    plain = as_zarr(tmp_path / "plain.zarr", walk(10, 12, fps=30))
    two = lerobot(tmp_path / "two", walk(10, 12, tasks=(0, 1) * 5, words=("open it", "close it")))
    return {
        "rate": (policy(tmp_path / "rate.py", more="dt_s = 0.05"), plain, (), "30 Hz.*policy's control period is 0.05 s"),
        "instruction": (policy(tmp_path / "told.py", more="instruction = 'open it'"), two, (),
                        "has 2 tasks.* the policy is given 'open it' in all frames; .*--instructions 'open it'"),
        "names": (policy(tmp_path / "names.py"), plain, ("--names", "staet=observation.state"), "speaks of 'staet'"),
        "features": (policy(tmp_path / "seen.py"), plain, ("--features", "observation.images.top"), "was not recorded"),
        "split": (policy(tmp_path / "split.py"), plain, ("--split.test", "0.9"), "split.test: got 0.9"),
        "leave out": (policy(tmp_path / "out.py"), plain, ("--leave-out", "99"), r"leave_out: got episodes \[99\]"),
    }  # fmt: skip


@pytest.mark.parametrize("which", ["rate", "instruction", "names", "features", "split", "leave out"])
def test_what_does_not_go_together_is_refused_in_one_line(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    import re

    teacher, path, flags, message = refusals(tmp_path)[which]
    try:
        status = convert(main, teacher, path, tmp_path / "out", *flags)
    except SystemExit as error:  # by the parser of flags
        status = int(error.code or 0)
    said = capsys.readouterr().err
    assert status == 2 and re.search(message, " ".join(said.split())), said
    assert "Traceback" not in said and not (tmp_path / "out").exists()


def test_the_chosen_task_and_the_policys_rate_are_followed(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = tuple(np.stack([np.arange(30) / 30, np.full(30, each)], 1).astype(np.float32) for each in range(8))
    made = Recording(states, states, 30, tasks=(0, 1) * 4, words=("open it", "close it"))
    path = lerobot(tmp_path / "set", made)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.txt"))
    teacher = policy(tmp_path / "slow.py", steps=2, more="dt_s, instruction = 0.1, 'open it'")
    assert convert(main, teacher, path, tmp_path / "out", "--instructions", "open it") == 0
    apart = np.array([float(each) for each in (tmp_path / "seen.txt").read_text().split()])
    assert apart.max() == pytest.approx(0.1, abs=1e-5)
    said = capsys.readouterr().out
    assert "one of 3 frames is in a window" in said and "is given the instruction 'open it'" in said
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert report["task"]["dt_s"] == 0.1 and report["data"]["recording"]["stride"] == 3
    assert report["data"]["recording"]["tasks"] == {"open it": 120}


JOINTS = ("shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_arm_at_30_hertz_with_a_glitch_is_converted_to_one_percent_of_each_joint(main: Main, tmp_path: Path) -> None:
    """As an SO-101's: six joints in degrees, the gripper in percent; one reading of 10000 and one that never moves."""
    rng = np.random.default_rng(0)
    scale, middle = np.array([80, 60, 70, 50, 0, 40]), np.array([5, -20, 30, 10, 12.5, 50])
    steps = np.arange(90)[:, None]
    states = tuple((middle + scale * np.sin(steps / rng.uniform(12, 25, 6) + rng.uniform(0, 6, 6))).astype(np.float32)
                   for _ in range(24))  # fmt: skip
    real = np.concatenate(states)
    low, high = real.min(0), real.max(0)
    states[11][40, 2] = 1e4
    path = lerobot(tmp_path / "set", Recording(states, states, 30), names=list(JOINTS), per_file=8)
    teacher = policy(tmp_path / "hold.py", size=6, spread="0.4", last="(0.5 * state[:, -1, 0])[:, None, None]",
                     more=f"dt_s, action_names = 1 / 30, {list(JOINTS)}")  # fmt: skip
    flags = ("--sample.num-observations", "1024", "--student.training-steps", "3000", "--student.width", "64",
             "--student.depth", "4", "--evaluate.fidelity-observations", "24", "--evaluate.fidelity-samples", "24")  # fmt: skip
    assert convert(main, teacher, path, tmp_path / "out", *flags) == 0
    student = load_student(tmp_path / "out/distill/chamfer")
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    test = report["data"]["recording"]["split"]["test_set"]["episodes"]
    at = torch.from_numpy(np.concatenate([states[each][::7] for each in test]))[:, None]
    with torch.no_grad():
        latents = torch.randn(len(at), 16, *student.latent_shape, generator=torch.Generator().manual_seed(0))
        chunk = student({STATE: at}, latents)
    wanted = at[:, 0].clone()
    wanted[:, -1] = 0.5 * at[:, 0, 0]
    error = (chunk.mean((1, 2)) - wanted).abs().mean(0).numpy()
    ranges = np.where(high > low, high - low, 1.0)
    ranges[-1] = 0.5 * ranges[0]
    for name, each, size in zip(JOINTS, error, ranges, strict=True):
        print(f"{name}: {each:.3f} of {size:.1f}: {each / size:.2%}")
    assert (error[ranges > 1.5] < 0.01 * ranges[ranges > 1.5]).all()
    rows = report["policies"][-1]["dimensions"]
    assert [row["name"] for row in rows] == list(JOINTS)
    assert report["data"]["recording"]["outliers"][0]["value"] == 1e4
