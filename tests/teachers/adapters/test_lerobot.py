"""LeRobot policies as teachers: folders that are not whole are refused; the rest runs where LeRobot is (FLOW2ONE_LEROBOT)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import teachers.adapters.lerobot_policies as adapter
import teachers.adapters.lerobot_teachers as kinds
from teachers.adapters.one_step import obstacle

HERE = Path(__file__).parent
LEROBOT = os.environ.get("FLOW2ONE_LEROBOT", "")
STATISTICS = "policy_preprocessor_step_0_normalizer_processor.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What LeRobot saves, as far as `check_folder` looks at it."""
    step = {"registry_name": "normalizer_processor", "config": {"norm_map": {"STATE": "MEAN_STD"}}, "state_file": STATISTICS}
    (tmp_path / "config.json").write_text(json.dumps({"type": "diffusion"}))
    (tmp_path / "policy_preprocessor.json").write_text(json.dumps({"steps": [step]}))
    (tmp_path / "policy_postprocessor.json").write_text(json.dumps({"steps": [{"registry_name": "device_processor"}]}))
    save_file({"observation.state.mean": torch.zeros(3)}, str(tmp_path / STATISTICS))
    save_file({"weight": torch.zeros(300)}, str(tmp_path / "model.safetensors"))
    return tmp_path


def change_step(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "policy_preprocessor.json"
        step = json.loads(file.read_text())["steps"][0] | changes
        file.write_text(json.dumps({"steps": [{key: value for key, value in step.items() if value is not None}]}))

    return change


def not_finite(folder: Path) -> None:
    save_file({"observation.state.mean": torch.tensor([0.0, float("inf")])}, str(folder / STATISTICS))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02}q\x00.")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "policy_postprocessor.json").unlink(), r"lacks \['policy_postprocessor.json'\]"),
        (pickled, r"model.safetensors: is no whole safetensors file"),
        (cut, r"model.safetensors: is no whole safetensors file"),
        (not_finite, r"observation.state.mean has NaN or infinity, expected finite statistics"),
        (change_step(state_file=None), r"step 0 \(normalizer_processor\) has no statistics"),
        (change_step(registry_name=None, **{"class": "os.system"}), r"step 0 names a class of its own, 'os.system'"),
        (lambda folder: (folder / STATISTICS).unlink(), r"normalizer_processor.safetensors: is no whole safetensors file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_line(
    folder: Path, change: Callable[[Path], None], message: str
) -> None:
    adapter.check_folder(folder)
    change(folder)
    with pytest.raises(ValueError, match=message) as caught:
        adapter.check_folder(folder)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(folder))


def test_a_prefix_is_repeated_row_by_row_whatever_holds_it() -> None:
    rows = torch.tensor([[1.0], [2.0]])
    held = kinds.repeated({"cache": {0: [rows, (rows, None)]}}, 2)
    assert held["cache"][0][0].tolist() == held["cache"][0][1][0].tolist() == [[1], [1], [2], [2]]
    assert held["cache"][0][1][1] is None
    with pytest.raises(TypeError, match="a prefix holds a str"):
        kinds.repeated("text", 2)


def test_attributes_come_back() -> None:
    thing = torch.nn.Linear(1, 1)
    thing.steps = 3  # type: ignore[assignment]
    with kinds.patched_attributes(thing, steps=5, forward=lambda x: x + 1):
        assert thing.steps == 5 and thing(torch.zeros(1)) == 1
    assert thing.steps == 3 and "forward" not in vars(thing)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("groot", r"\(LeRobot downloads its backbone .* missing: its head"), ("act", r"\(it gives one chunk in one evaluation"),
        ("wall_x", r"\(its ODE is solved inside .* missing: what is computed once"), ("pi0_fast", r"\(it generates tokens"),
        ("tdmpc", ""),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name_with_what_is_missing(folder: Path, kind: str, why: str) -> None:
    (folder / "config.json").write_text(json.dumps({"type": kind}))
    with pytest.raises(ValueError, match=f"a policy of type '{kind}'.*{why}.*, expected one of \\['diffusion', .*'xvla'\\]"):
        adapter.build(str(folder), "lift")


def test_weights_that_lerobot_would_leave_random_are_refused(folder: Path) -> None:
    policy = torch.nn.Linear(3, 1)
    policy.config = SimpleNamespace(type="pi0")  # type: ignore[assignment]
    save_file({"weight": torch.zeros(1, 3), "another": torch.zeros(9)}, str(folder / "model.safetensors"))
    adapter.check_shapes(folder, policy)
    save_file({"weight": torch.zeros(1, 4)}, str(folder / "model.safetensors"))
    with pytest.raises(ValueError, match=r"weight is \(1, 4\), but LeRobot's pi0 has \(1, 3\)"):
        adapter.check_shapes(folder, policy)


def test_an_adapters_own_reason_is_told() -> None:
    class Adapter:
        why_not_in_place = "its actions are relative"

        def sample(self) -> None: ...

    assert obstacle(Adapter()) == "its actions are relative"
    Adapter.why_not_in_place = ""
    assert obstacle(Adapter()).startswith("it has no encode(observation)")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter that has LeRobot")
@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_pi_policies_that_transformers_cannot_run_are_refused_before_anything_is_made(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"type": kind}))
    text = (
        "import importlib.util, pathlib, sys; found = importlib.util.find_spec;"
        f"source = pathlib.Path(found('lerobot.policies.{kind}.modeling_{kind}').origin).read_text();"
        "runs = 'models.siglip import check' not in source or found('transformers.models.siglip.check') is not None;"
        "print(runs); sys.exit() if runs else None;"
        "sys.path.insert(0, sys.argv[1]); import lerobot_policies; lerobot_policies.build(sys.argv[2], 'lift')"
    )
    program = [LEROBOT, "-c", text, str(Path(adapter.__file__).parent), str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=850)
    if done.stdout.strip() == "True":
        pytest.skip("this LeRobot takes the transformers that is installed")
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"ValueError: {folder}: {kind} of this LeRobot needs its own branch of transformers"), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not LEROBOT, reason="FLOW2ONE_LEROBOT names no interpreter that has LeRobot")
@pytest.mark.parametrize(
    ("kind", "horizon", "frames"),
    [("diffusion", 7, 2), ("multi_task_dit", 7, 2), ("smolvla", 6, 1), ("pi0", 6, 1), ("pi05", 6, 1), ("pi0_relative", 6, 1),
     ("xvla", 6, 1)],
)
def test_a_tiny_policy_is_encoded_once_and_drawn_from_independently(
    tmp_path: Path, kind: str, horizon: int, frames: int
) -> None:
    program = [LEROBOT, str(HERE / "tiny_lerobot.py"), kind, str(tmp_path), str(Path(adapter.__file__).resolve())]
    done = subprocess.run(program, capture_output=True, text=True, timeout=850, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["shape"] == [3, 8, horizon, 2] and (result["horizon"], result["action_size"]) == (horizon, 2)
    assert result["observation_steps"] == frames and result["num_steps"] == result["evaluations"] == 4
    assert result["looks"] == 1 and result["encoded"] == 3  # one pass of the vision tower for 3 observations of 8 chunks each
    assert result["finite"] and result["same"] and not result["other"] and not result["gradient"]
    assert result["nearest_two"] > (0.1 if kind == "xvla" else 1.0)  # raw units; no two of the 8 are alike
    assert result["std_together"] == pytest.approx(result["std_alone"], rel=0.15)
    assert result["whole"] < 1e-4  # LeRobot's own sampler with the observation repeated 8 times
