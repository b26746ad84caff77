"""Adapters in their own process: the contract holds across it, a user's packages stay the user's, mistakes are one line."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.process import serving
from envs.specs import STATE
from teachers import solvers
from teachers.adapters import program, seeded
from teachers.adapters.teacher import AdapterFile, AdapterTeacher, own_environment
from teachers.contract import check_teacher

OBSERVATION = {STATE: torch.linspace(-1, 1, 12).view(2, 2, 3)}

FIELD = '''
import time
import torch
from envs import CENTRE          # the user's own package of this name

class Field:
    """All data lie at CENTRE + the state's first number: v = (x1 - x) / (1 - t)."""
    horizon, action_size, observation_steps, num_steps = 4, 2, 2, 5
    network = torch.nn.Linear(3, 2)
    def encode(self, observation):
        time.sleep(0.02)
        return observation["observation.state"][:, -1, 0]
    def velocity(self, first, x, t):
        end = CENTRE + first[:, None, None] + 0.1 * x
        return (end - x) / (1 - t[:, None, None]).clamp(min=0.2)

def build(centre="0"):
    print("a user's print disturbs nothing")
    return Field()
'''

Write = Callable[[str], Path]
Open = Callable[..., AdapterTeacher]
Refusal = Callable[[str], str]
PATIENCE_S = 170.0
"""A worker imports torch, which takes long where the machine is busy."""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """An adapter file in a folder that has a package `envs` of its own."""
    (tmp_path / "user" / "envs").mkdir(parents=True)
    (tmp_path / "user" / "envs" / "__init__.py").write_text("CENTRE = 3.0\n")

    def write(text: str) -> Path:
        path = tmp_path / "user" / "my_policy.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def opened(write: Write) -> Iterator[Open]:
    teachers: list[AdapterTeacher] = []

    def open_(text: str, timeout_s: float = PATIENCE_S, **arguments: str) -> AdapterTeacher:
        teachers.append(AdapterTeacher(AdapterFile.parse(str(write(text)), arguments, timeout_s=timeout_s)))
        return teachers[-1]

    yield open_
    for teacher in teachers:
        teacher.close()


def test_a_velocity_field_beside_a_package_named_envs_keeps_the_contract(opened: Open, capfd) -> None:
    teacher = opened(FIELD)
    check_teacher(teacher, OBSERVATION, action_size=2, num_steps=5)
    described = teacher.description
    sizes = described.horizon, described.action_size, described.num_steps
    assert (described.kind, sizes, described.separable) == ("velocity field", (4, 2, 5), True)
    assert described.parameters is None and teacher.evaluations(5) == 5  # a class attribute is none of the object's own
    assert "disturbs nothing" in capfd.readouterr().err

    # a chunk depends on its seed and its observation alone
    both = teacher.sample_from_seeds(OBSERVATION, np.array([[5, 6], [7, 8]]), 5)
    second = {STATE: OBSERVATION[STATE][1:]}
    torch.testing.assert_close(teacher.sample_from_seeds(second, np.array([[8]]), 5)[0, 0], both[1, 1])
    # one Euler step from noise x: x + (centre + state + 0.1 x - x)
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(8))
    one = teacher.sample_from_seeds(second, np.array([[8]]), 1)
    torch.testing.assert_close(one[0, 0], 3.0 + second[STATE][0, -1, 0] + 0.1 * noise)

    # and it is timed where it is made: encoding sleeps
    whole, stages = teacher.time_call(second, seed=0, num_steps=2)
    assert whole >= 20 and stages[1] >= 20 and len(stages) == 4

    process = teacher._process.pid
    teacher.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


SAMPLER = '''
import torch
class Sampler:
    def sample(self, observation, num_hypotheses, num_steps, generator):
        state = observation["observation.state"]
        {state}
        noise = torch.randn(len(state), num_hypotheses, 4, 2, generator=generator)
        return {result}
def build():
    return Sampler()
'''


def sampler(result: str = "noise + state.mean((1, 2))[:, None, None, None]", state: str = "pass") -> str:
    return SAMPLER.format(result=result, state=state)


def test_a_sampler_is_called_for_each_observation_by_itself(opened: Open) -> None:
    teacher = opened(sampler())
    check_teacher(teacher, OBSERVATION, action_size=2)
    assert teacher.description.horizon is None
    both = teacher.sample_from_seeds(OBSERVATION, np.array([[5, 0, 0], [7, 0, 0]]), 5)
    alone = teacher.sample_from_seeds({STATE: OBSERVATION[STATE][1:]}, np.array([[7, 1, 2]]), 5)
    assert torch.equal(alone[0], both[1])
    for _ in range(2):  # what it raises names its line, and it lives on
        with pytest.raises(ValueError, match=r"my_policy.py:\d+: IndexError: Dimension out of range") as error:
            teacher.sample({STATE: torch.zeros(2, 2)}, 2, 1, torch.Generator())
        assert "\n" not in str(error.value)


def test_what_the_process_boundary_hides_is_reported_all_at_once(opened: Open) -> None:
    broken = sampler("noise.requires_grad_().bfloat16().expand(-1, -1, -1, -1)[..., :1]", "state.mul_(2)")
    with pytest.raises(ValueError) as error:
        check_teacher(opened(broken), OBSERVATION, action_size=2)
    message = str(error.value)
    for part in ("shape: got (2, 3, 4, 1)", "gradient:", "dtype: got torch.bfloat16", "was changed in place"):
        assert part in message, message


@pytest.fixture
def refusal(write: Write, monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusal]:
    """What is said of an adapter that cannot be opened: by the program's own code, without a process, which takes seconds."""
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    known = dict(sys.modules)

    def opened(text: str) -> str:
        options = {"file": str(write(text)), "function": "build", "arguments": {}, "threads": 1}
        with pytest.raises(program.AdapterError) as error:
            program.AdapterProgram(seeded, solvers, serving.load).open(options)
        return program.text_of(error.value)

    yield opened
    for name in set(sys.modules) - set(known):
        del sys.modules[name]
    sys.modules.update(known)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"has no function 'build'; it has \[\]"),
        ("def build():\n    return 1 / 0", r"my_policy.py:2: ZeroDivisionError: division by zero$"),
        ("def build(:\n", r"my_policy.py:1: SyntaxError: "),
        ("import nothing_of_this_name\n", r"my_policy.py:1: ModuleNotFoundError: No module named"),
        ("def build():\n    return object()", r"build\(\) gave a object with none of them; expected one of sample"),
        ("import sys\nsys.exit(3)", r"my_policy.py:2: SystemExit: 3"),
        ("class A:\n  def velocity(self, o, x, t): pass\nbuild = A", r"needs horizon and action_size"),
    ],
)
def test_an_adapter_that_cannot_be_built_is_refused_in_one_line(refusal: Refusal, text: str, message: str) -> None:
    error = refusal(text)
    assert re.search(message, error) and "\n" not in error


def test_an_adapter_that_ends_its_process_is_refused_in_one_line(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"is gone \(exit status 3\)") as error:
        opened("import os\nos._exit(3)")
    assert "\n" not in str(error.value)


def test_exit_handlers_of_an_adapter_run_when_it_is_closed(opened: Open, tmp_path: Path) -> None:
    teacher = opened("import atexit\n" + FIELD + f"\natexit.register(open, {str(tmp_path / 'left')!r}, 'w')\n")
    teacher.close()
    assert (tmp_path / "left").is_file()


def test_an_adapter_that_does_not_answer_is_ended(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"gave no answer to 'open' within 0.2 s; raise --adapter.timeout-s"):
        opened("import time\ntime.sleep(60)", timeout_s=0.2)


def test_another_interpreter_may_be_named(write: Write, tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nOTHER=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    text = "import os\nassert os.environ['OTHER'] == 'yes'\n" + FIELD
    with AdapterTeacher(AdapterFile.parse(f"{write(text)}:build", python=str(wrapper), timeout_s=PATIENCE_S)) as teacher:
        assert teacher.description.kind == "velocity field"
    with pytest.raises(ValueError, match="adapter.python: .*nowhere is no program"):
        AdapterFile.parse(str(write(text)), python=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ["policy", "policy.pt", "policy.py:1build", "nowhere/policy.py:build"])
def test_what_is_no_adapter_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a|no such adapter file"):
        AdapterFile.parse(text)


def test_an_adapter_is_nobodys_rank_and_has_a_gpu_of_its_own() -> None:
    launched = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here", "HOME": "/h",
                "TORCHELASTIC_RUN_ID": "x", "ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "4,6"}  # fmt: skip
    assert own_environment(launched) == {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "6"}
    assert own_environment({"HOME": "/h", "CUDA_VISIBLE_DEVICES": "4,6"}) == {"HOME": "/h", "CUDA_VISIBLE_DEVICES": "4,6"}
    assert own_environment({**launched, "CUDA_VISIBLE_DEVICES": "4"})["CUDA_VISIBLE_DEVICES"] == "4"
