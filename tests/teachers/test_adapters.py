"""Adapters in their own process: the contract holds across it, a user's packages stay the user's, mistakes are one line."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from envs.specs import STATE
from teachers.adapters import AdapterFile, AdapterTeacher
from teachers.contract import check_teacher

OBSERVATION = {STATE: torch.linspace(-1, 1, 12).view(2, 2, 3)}

FIELD = '''
import torch
from envs import CENTRE          # the user's own package of this name

class Field:
    """All data lie at CENTRE + the state's first number: v = (x1 - x) / (1 - t)."""
    horizon, action_size, observation_steps, num_steps = 4, 2, 2, 5
    network = torch.nn.Linear(3, 2)
    def encode(self, observation):
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

    def open_(text: str, timeout_s: float = 60.0, **arguments: str) -> AdapterTeacher:
        teachers.append(AdapterTeacher(AdapterFile.parse(str(write(text)), arguments, timeout_s=timeout_s)))
        return teachers[-1]

    yield open_
    for teacher in teachers:
        teacher.close()


def test_a_velocity_field_beside_a_package_named_envs_keeps_the_contract(opened: Open, capfd) -> None:
    teacher = opened(FIELD)
    check_teacher(teacher, OBSERVATION, action_size=2, num_steps=5)
    told = teacher.described
    assert (told.kind, told.horizon, told.action_size, told.num_steps, told.separable) == ("velocity field", 4, 2, 5, True)
    assert told.parameters is None and teacher.evaluations(5) == 5  # a class attribute is none of the object's own
    assert "disturbs nothing" in capfd.readouterr().err


def test_a_chunk_depends_on_its_seed_and_observation_alone(opened: Open) -> None:
    teacher = opened(FIELD)
    both = teacher.sample_from_seeds(OBSERVATION, np.array([[5, 6], [7, 8]]), 5)
    alone = teacher.sample_from_seeds({STATE: OBSERVATION[STATE][1:]}, np.array([[8]]), 5)
    torch.testing.assert_close(alone[0, 0], both[1, 1])
    # one Euler step from noise x: x + (centre + state + 0.1 x - x) = centre + state + 0.1 x
    noise = torch.randn(4, 2, generator=torch.Generator().manual_seed(8))
    one = teacher.sample_from_seeds({STATE: OBSERVATION[STATE][1:]}, np.array([[8]]), 1)
    torch.testing.assert_close(one[0, 0], 3.0 + OBSERVATION[STATE][1, -1, 0] + 0.1 * noise)


def test_a_field_whose_time_runs_from_data_to_noise_gives_the_same(opened: Open) -> None:
    turned = FIELD.replace("num_steps = 4, 2, 2, 5", "num_steps = 4, 2, 2, 5\n    noise_time = 1").replace(
        "return (end - x) / (1 - t[:, None, None]).clamp(min=0.2)", "return -(end - x) / t[:, None, None].clamp(min=0.2)"
    )
    seeds = np.array([[5, 6], [7, 8]])
    expected = opened(FIELD).sample_from_seeds(OBSERVATION, seeds, 7)
    torch.testing.assert_close(opened(turned).sample_from_seeds(OBSERVATION, seeds, 7), expected)


def test_a_call_is_timed_where_it_is_made(opened: Open) -> None:
    slow = FIELD.replace("        return observation", "        import time; time.sleep(0.05)\n        return observation")
    whole, stages = opened(slow).time_call({STATE: OBSERVATION[STATE][:1]}, seed=0, num_steps=2)
    assert whole >= 50 and stages[1] >= 50 and stages[2] < 50 and len(stages) == 4


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


def test_a_sampler_is_asked_for_each_observation_by_itself(opened: Open) -> None:
    teacher = opened(sampler())
    check_teacher(teacher, OBSERVATION, action_size=2)
    assert teacher.described.horizon is None
    both = teacher.sample_from_seeds(OBSERVATION, np.array([[5, 0, 0], [7, 0, 0]]), 5)
    alone = teacher.sample_from_seeds({STATE: OBSERVATION[STATE][1:]}, np.array([[7, 1, 2]]), 5)
    assert torch.equal(alone[0], both[1])


def test_what_the_process_boundary_hides_is_told_all_at_once(opened: Open) -> None:
    broken = sampler("noise.requires_grad_().bfloat16().expand(-1, -1, -1, -1)[..., :1]", "state.mul_(2)")
    with pytest.raises(ValueError) as error:
        check_teacher(opened(broken), OBSERVATION, action_size=2)
    told = str(error.value)
    for part in ("shape: got (2, 3, 4, 1)", "gradient:", "dtype: got torch.bfloat16", "was changed in place"):
        assert part in told, told


@pytest.mark.parametrize(
    ("result", "told"),
    [
        ("torch.randn(len(state), num_hypotheses, 4, 2)", "determinism"),
        ("noise[:, :1].expand(-1, num_hypotheses, -1, -1)", "the K chunks of one observation are equal"),
        ("noise.double()", "dtype: got torch.float64"),
        ("torch.zeros_like(noise)", "randomness"),
        ("noise / 0", "NaN or infinity"),
    ],
)
def test_a_sampler_that_breaks_the_contract_is_found_out(opened: Open, result: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_teacher(opened(sampler(result)), OBSERVATION, action_size=2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", r"has no function 'build'; it has \[\]"),
        ("def build():\n    return 1 / 0", r"my_policy.py:2: ZeroDivisionError: division by zero$"),
        ("def build(:\n", r"my_policy.py:1: SyntaxError: "),
        ("import nothing_of_this_name\n", r"my_policy.py:1: ModuleNotFoundError: No module named"),
        ("def build():\n    return object()", r"build\(\) gave a object with none of them; expected one of sample"),
        ("import sys\nsys.exit(3)", r"my_policy.py:2: SystemExit: 3"),
        ("import os\nos._exit(3)", r"is gone \(exit status 3\)"),
        ("class A:\n  def velocity(self, o, x, t): pass\nbuild = A", r"needs horizon and action_size"),
    ],
)
def test_an_adapter_that_cannot_be_built_is_refused_in_one_line(opened: Open, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as error:
        opened(text)
    assert "\n" not in str(error.value)


def test_what_an_adapter_raises_when_it_is_asked_names_its_line_and_it_lives_on(opened: Open) -> None:
    teacher = opened(sampler("noise[:, :, :, 7]"))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"my_policy.py:8: IndexError: index 7 is out of bounds"):
            teacher.sample(OBSERVATION, 2, 1, torch.Generator())


def test_an_adapter_that_does_not_answer_is_ended(opened: Open) -> None:
    with pytest.raises(ValueError, match=r"gave no answer to 'open' within 0.2 s; raise --adapter.timeout-s"):
        opened("import time\ntime.sleep(60)", timeout_s=0.2)


def test_another_interpreter_may_be_named(write: Write, tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nOTHER=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    text = "import os\nassert os.environ['OTHER'] == 'yes'\n" + FIELD
    with AdapterTeacher(AdapterFile.parse(f"{write(text)}:build", python=str(wrapper), timeout_s=60)) as teacher:
        assert teacher.described.kind == "velocity field"
    with pytest.raises(ValueError, match="adapter.python: .*nowhere is no program"):
        AdapterFile.parse(str(write(text)), python=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ["policy", "policy.pt", "policy.py:1build", "nowhere/policy.py:build"])
def test_what_is_no_adapter_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a|no such adapter file"):
        AdapterFile.parse(text)


def test_a_worker_ends_with_its_teacher(opened: Open) -> None:
    teacher = opened(sampler())
    process = teacher._process.pid
    teacher.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
