"""Convert and compare, whole but tiny: own folder and adapter, resume, refusals that leave nothing behind."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import envs
from distill.cli.external_config import CompareConfig, read_external
from distill.hypotheses.frame_cache import FrameCache
from distill.stages.train_student import TrainStudent
from envs.cameras.specs import CameraSettings
from envs.demonstrations import Demonstration, Demonstrations
from envs.panda.recording import record, stored_starts
from envs.specs import STATE
from students import load_student
from teachers import load_teacher
from tests.distill.twelve_episodes import twelve_episodes

SETTINGS = """\
sample: {num_hypotheses: 4, num_steps: 2, num_observations: 12, shard_size: 6, batch_size: 6}
student: {training_steps: 4, batch_size: 4, num_latents: 3, codes: 4, warmup_steps: 1, candidates: 2, width: 16,
  depth: 1, code_shares: false}
evaluate: {fidelity_observations: 3, fidelity_samples: 6, latency_calls: 3, latency_warmup: 1,
  latency_modes: [], test_starts: 2,
  validation_starts: 2, teacher_steps: [2, 1], execution_horizon: 8}
"""

ROOT = Path(__file__).parents[3]
Main = Callable[[Sequence[str]], int]

ADAPTER = '''
import torch
from envs import SPEED       # the user's own package of this name

class Field:
    """Chunks go from where the tool is straight ahead, to the left or to the right."""
    horizon, action_size, num_steps = 8, 2, 4
    def velocity(self, observation, x, t):
        here = observation["observation.state"][:, -1, None, :2]
        side = torch.where(x.mean((1, 2)) > 0, 0.1, -0.1)[:, None, None]
        end = here + side + SPEED * torch.arange(8)[:, None] + 0.01 * x
        return (end - x) / (1 - t[:, None, None]).clamp(min=0.25)

def build():
    return Field()
'''


@pytest.fixture(scope="session")
def observations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve made-up episodes of `avoid`, four frames each."""
    folder = tmp_path_factory.mktemp("observations") / "demos"
    twelve_episodes().save(folder)
    return folder


@pytest.fixture
def place(tmp_path: Path, observations: Path, make_teacher, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A working folder with a teacher of ours, an adapter beside a package `envs`, and settings; and how to convert there."""
    monkeypatch.chdir(tmp_path)
    make_teacher().save_pretrained("teacher")
    (tmp_path / "user" / "envs").mkdir(parents=True)
    Path("user/envs/__init__.py").write_text("SPEED = 0.01\n")
    Path("user/my_policy.py").write_text(ADAPTER)
    Path("tiny.yaml").write_text(SETTINGS)

    def line(teacher: str, *more: str, out: str = "out", command: str = "convert") -> list[str]:
        named = ["--teacher", teacher] if command == "convert" else teacher.split()
        return [command, *named, "--config", "tiny.yaml", "--observations", str(observations), "--out", out, *more]

    return SimpleNamespace(folder=tmp_path, line=line)


def report(out: str = "out") -> dict:
    told: dict = json.loads(Path(out, "report", "report.json").read_text())
    assert (Path(out) / "report" / "report.html").read_text().count("<table") >= 5
    return told


def test_a_folder_of_ours_is_converted_without_a_simulator_and_goes_on_where_it_stopped(
    main: Main, place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    # interrupted after the hypotheses, as by Ctrl-C
    with monkeypatch.context() as broken:
        broken.setattr(TrainStudent, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(place.line("teacher")) == 130
    drawn = Path("out/sample/shard-00000.safetensors").stat().st_mtime_ns
    assert main(place.line("teacher", "--dry-run")) == 0
    told = capsys.readouterr().out
    assert "sample                       done" in told and "report                       to do" in told

    assert main(place.line("teacher")) == 0
    assert Path("out/sample/shard-00000.safetensors").stat().st_mtime_ns == drawn
    told = report()
    assert [policy["name"] for policy in told["policies"]] == ["teacher_2", "teacher_1", "chamfer"]
    assert told["measured_success"] is False and "success_rate" not in told["policies"][0]
    teacher, student = load_teacher("teacher"), load_student("out/distill/chamfer")
    # the teacher's statistics travel with the student, which takes and gives raw numbers
    for name, value in teacher.normaliser.state_dict().items():
        assert torch.equal(student.normaliser.state_dict()[name], value)
    assert (student({STATE: torch.full((1, 2, 2), 0.4)}, torch.zeros(1, 3, 1))).shape == (1, 3, 8, 2)
    assert not list(Path("out").rglob("*.partial")) and not list(Path("out").rglob("*.tmp"))

    # a second time nothing is done; another number of samples measures again, and draws nothing
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")}
    assert main(place.line("teacher")) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.safetensors")} == before


def test_few_recorded_observations_are_filled_up_with_perturbed_copies(
    main: Main, place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill.hypotheses.cache import HypothesisDataset

    monkeypatch.setattr(TrainStudent, "run", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(place.line("teacher", "--sample.num-observations", "60", "--sample.perturbation", "0.2")) == 130
    cached = HypothesisDataset(Path("out/sample"), frames=True)
    rows = cached.batch(torch.arange(len(cached)))
    copies = rows["frame_index"] >= 48  # twelve episodes of four frames
    assert len(cached) == 60 and 0 < int(copies.sum()) < 60
    assert not torch.isin(rows[STATE][copies], rows[STATE][~copies]).any()


def test_an_adapter_beside_a_package_named_envs_is_converted_and_compared(main: Main, place: SimpleNamespace) -> None:
    assert main(place.line("user/my_policy.py", "--task", "avoid", "--evaluate.teacher-steps", "4")) == 0
    told = report()
    teacher, student = told["policies"]
    assert teacher["label"] == "Teacher, 4 steps" and teacher["nfe"] == 4 and teacher["parameters"] is None
    assert student["warm_start"] is False and student["episodes"] == 2
    assert set(student["latency"]["stages"]) == {"preprocess_ms", "encode_ms", "head_ms", "post_ms"}
    assert told["external"][0]["kind"] == "velocity field"
    made = load_student("out/distill/chamfer")
    assert (made.shape.task, made.shape.horizon, made.shape.width, made.shape.patch) == ("avoid", 8, 16, 4)
    ranges = load_file("out/observations/ranges.safetensors")
    torch.testing.assert_close(made.normaliser.state_low.double(), ranges["state.min"])
    torch.testing.assert_close(made.normaliser.action_high.double(), ranges["action.max"])
    hypotheses = load_file("out/sample/shard-00000.safetensors")["hypotheses"]
    assert float(hypotheses.abs().max()) < 2  # normalised by them

    # what came out is compared with what it was made from, on the same observations
    names = "user/my_policy.py@2 out/distill/chamfer teacher@3"
    Path("tiny.yaml").write_text(SETTINGS[SETTINGS.index("evaluate:") :])  # there are no others
    assert main(place.line(names, out="compared", command="compare")) == 0
    told = report("compared")
    assert [policy["label"] for policy in told["policies"]] == names.split()
    assert [policy["nfe"] for policy in told["policies"]] == [2, 1, 3]
    assert told["policies"][0]["is_reference_teacher"] and told["policies"][0]["speedup"] == 1.0
    assert told["fidelity_floor"]["observations"] == 3


LOOKING = """
import torch
class Looking:
    features = ("observation.state", "observation.images.front")
    horizon, action_size, num_steps = 8, 2, 2
    network = torch.nn.Conv2d(3, 2, 4, 4)
    def encode(self, observation):
        return observation["observation.images.front"].mean((1, 3, 4))[:, None, :2] + observation["observation.state"]
    def velocity(self, condition, x, t):
        return (condition + 0.01 * x - x) / (1 - t[:, None, None]).clamp(min=0.5)
build = Looking
"""


@pytest.mark.slow
def test_a_student_of_a_foreign_teacher_learns_to_see(main: Main, place: SimpleNamespace) -> None:
    env = envs.make("avoid", CameraSettings(cameras=("front",), width=16, height=16, depth=False, num_points=0))
    start = stored_starts("avoid", 0, "train", 1)[0]
    episode = record(env, start, env.spec_task.modes[0], 0, 0.0)
    env.close()
    assert episode is not None
    Demonstrations.from_episodes(env.spec_task, [episode], [0]).save("seen")
    Path("user/my_policy.py").write_text(LOOKING)
    line = place.line("user/my_policy.py", "--observations", "seen", "--features", "observation.images.front")
    assert main(line) == 0
    student = load_student("out/distill/chamfer")
    assert student.shape.encoder is not None and student.shape.encoder.sources == ("observation.images.front",)
    told = report()
    assert told["policies"][0]["observes"] == [STATE, "observation.images.front"]
    assert told["policies"][-1]["observes"] == ["observation.images.front"]


def test_what_does_not_fit_into_memory_is_read_each_time() -> None:
    frames = np.array([3, 1, 4, 1, 5])
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 3, 2, 2)).astype(np.float32) / 255

    def observe(chosen: np.ndarray) -> dict[str, np.ndarray]:
        return {STATE: np.float32(chosen)[:, None, None], "observation.images.front": images[chosen]}

    rows = torch.tensor([4, 0, 4])
    for most in (0, 1 << 20):
        found = FrameCache(observe, frames, most).at(rows)
        assert found[STATE].flatten().tolist() == [5, 3, 5]
        torch.testing.assert_close(found["observation.images.front"], torch.from_numpy(images[[5, 3, 5]]))


# -- refusals ------------------------------------------------------------------------------------------------------


def refused(main: Main, capsys, line: list[str], *parts: str) -> None:
    assert main(line) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
    for part in parts:
        assert part in told.err, told.err
    assert not Path("out").exists()


def test_a_mistake_in_the_command_is_said_in_a_line(main: Main, place: SimpleNamespace, capsys, observations: Path) -> None:
    line = place.line
    refused(main, capsys, ["convert", "--teacher", "teacher", "--out", "out"], "--observations is missing")
    refused(main, capsys, ["convert", "--observations", ".", "--out", "out"], "--teacher is missing")
    refused(main, capsys, line("teacher", "--observations", "nowhere"), "nowhere does not exist")
    refused(main, capsys, line("teacher", "--observations", "user"), "user: got ['envs', 'my_policy.py'], expected our demo")
    refused(main, capsys, line("teacher", "--task", "aviod"), "task: unknown 'aviod'", "Did you mean 'avoid'?")
    refused(main, capsys, line("teacher", "--task", "detour"), "teacher is for task 'avoid', not 'detour'")
    refused(main, capsys, line("teacher", "--student.objectives", "shortcut"), "needs demonstrations, which convert")
    refused(main, capsys, line("teacher", "--evaluate.execution-horizon", "9"), "a chunk has only 8 actions")
    refused(main, capsys, line("teacher", "--sample.num-hypotheses", "1"), "a single hypothesis is not a set")
    refused(main, capsys, line("teacher", "--adapter.arguments", "nothing", out="user"), "--out: user contains other files")
    refused(main, capsys, line("teacher", out="tiny.yaml"), "--out: tiny.yaml is a file; name a new folder")
    spec, there = envs.task_spec("avoid"), np.full((16, 2), 0.4, np.float32)
    start = stored_starts("avoid", 0, "train", 1)[0]
    few = Demonstration(there, there, np.full((16, 3), 0.4, np.float32), start, spec.modes[0])
    Demonstrations.from_episodes(spec, [few], [0]).save("few")
    refused(main, capsys, line("teacher", "--observations", "few"), "observations: got 16 frames, expected at least 20")
    Path("tiny.yaml").write_text(SETTINGS[SETTINGS.index("evaluate:") :])
    refused(main, capsys, line("teacher", command="compare"), "expected at least two")
    refused(main, capsys, line("teacher teacher@0", command="compare"), "expected at least one solver step")


def test_a_policy_that_cannot_be_used_is_refused_by_name(main: Main, place: SimpleNamespace, capsys) -> None:
    line = place.line
    Path("policy.pt").write_bytes(b"\x80\x04.")
    refused(main, capsys, line("policy.pt"), "policy.pt is a pickle", "Write an adapter")
    refused(main, capsys, line("nowhere"), "nowhere: no such policy")
    refused(main, capsys, line("user/nothing.py:build"), "user/nothing.py: no such adapter file")
    whole = Path("teacher/model.safetensors").read_bytes()
    Path("teacher/model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(main, capsys, line("teacher"), "teacher/model.safetensors is not a whole safetensors file")
    Path("teacher/model.safetensors").write_bytes(b"\x80\x04\x95 a pickle under another name")
    refused(main, capsys, line("teacher"), "teacher/model.safetensors is not a whole safetensors file")
    Path("teacher/model.safetensors").write_bytes(whole)
    weights = load_file("teacher/model.safetensors")
    save_file({**weights, "normaliser.action_low": torch.full((2,), torch.nan)}, "teacher/model.safetensors")
    refused(main, capsys, line("teacher"), "['normaliser.action_low'] hold values that are not finite")
    shutil.rmtree("teacher")
    Path("teacher").mkdir()
    Path("teacher/config.json").write_text('{"type": "smolvla"}')
    refused(main, capsys, line("teacher"), "a LeRobot policy of type 'smolvla'")


def test_an_adapter_that_breaks_the_contract_is_refused(main: Main, place: SimpleNamespace, capsys) -> None:
    # never put into eval mode, its dropout is drawn anew in every call; and x is changed in place
    text = ADAPTER.replace("Field:", "Field:\n    drop = torch.nn.Dropout(0.5)")
    Path("user/my_policy.py").write_text(text.replace("return (end - x)", "x.zero_()\n        return self.drop(end)"))
    refused(main, capsys, place.line("user/my_policy.py"), "user/my_policy.py: this teacher does not keep the contract: ",
            "determinism: one seed gave two results", "call .eval() on networks; x: velocity changed it in place")  # fmt: skip


def test_an_adapter_of_the_wrong_action_size_is_refused(main: Main, place: SimpleNamespace, capsys) -> None:
    text = ADAPTER.replace("= 8, 2, 4", "= 8, 3, 4").replace("[:, -1, None, :2]", "[:, -1, None, :1]")
    Path("user/my_policy.py").write_text(text)
    refused(main, capsys, place.line("user/my_policy.py:build"), "actions of 3 numbers", "has 2: ['x_m', 'y_m']")


# -- the parts -----------------------------------------------------------------------------------------------------


PAGES = ("docs/convert.md", "docs/adapter.md", "examples/remembered_flow.py", "examples/remembered_denoiser.py")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page: str, observations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / page).read_text().replace("\\\n", " ")
    found = 0
    for line in text.splitlines():
        words = shlex.split(line) if line.strip().startswith("flow2one ") else []
        if words[1:2] in (["convert"], ["compare"]):
            words[words.index("--observations") + 1] = str(observations)
            _, config = read_external(words[1], words[2:])
            named = config.policies if isinstance(config, CompareConfig) else (config.teacher,)
            assert named and all((ROOT / name.split(":")[0]).is_file() for name in named if name.startswith("examples/"))
            found += 1
    assert found
