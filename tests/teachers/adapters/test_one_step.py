"""A user's own network at one evaluation: what adapters offer for it, what is wrong with that, and how it is fine-tuned."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import distill.hypotheses.distances as distances
from distill.hypotheses.distances import chamfer, energy_distance, paired
from envs.specs import STATE
from teachers import solvers
from teachers.adapters import conditions, seeded
from teachers.adapters.conditions import ComputedConditions, StoredConditions, read_tensors
from teachers.adapters.one_step import OneStepPolicy, obstacle, one_step_of, trainable
from teachers.adapters.teacher import AdapterFile, AdapterGone, AdapterTeacher
from teachers.adapters.training import InPlaceTraining
from teachers.contract import check_teacher

POLICIES = Path(__file__).parents[3] / "examples" / "own_network.py"
SEEN = {STATE: torch.linspace(-1, 1, 24).view(6, 2, 2)}


def policies() -> Any:
    """The module of the foreign policies, by its path as an adapter is loaded."""
    spec = importlib.util.spec_from_file_location("own_network", POLICIES)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def adapted(built: Any) -> OneStepPolicy:
    return OneStepPolicy(seeded.adapt(built, solvers.integrate))


OPTIONS = {
    "terms": [[1.0, "chamfer"]], "paired": False, "samples": 3, "at_once": 0, "weight_decay": 0.0, "autocast": "",
    "starting_noises": 0, "seed": 0, "rows": 6, "rank": 0, "world": 1,
}  # fmt: skip
ARRAYS = {"weights": np.ones((8, 2), np.float32), "centre": np.array([0.5, -0.5], np.float32),
          "scale": np.array([2.0, 4.0], np.float32)}  # fmt: skip


def training(built: Any = None, observed: bool = True, stored: Any = None, **options: Any) -> InPlaceTraining:
    policy = adapted(built or policies().make())
    encoded = stored or ComputedConditions(policy.encode, policy.device)
    made = InPlaceTraining(policy, distances, conditions, encoded, {**OPTIONS, **options}, ARRAYS)
    for value in made.policy.trained().values():
        value.requires_grad_(True)
    if observed:
        rng = np.random.default_rng(0)
        hypotheses = rng.normal(size=(6, 4, 8, 2)).astype(np.float16)
        seeds = rng.integers(0, 1 << 40, (6, 4))
        for first in (0, 3):
            part = slice(first, first + 3)
            if stored is None:
                encoded.observe(first, {name: value[part].numpy() for name, value in SEEN.items()})
            made.observe(first, hypotheses[part], seeds[part])
    return made


# -- one evaluation ------------------------------------------------------------------------------------------------


def test_one_step_is_the_whole_way_from_noise_to_data_whichever_way_time_runs() -> None:
    x = torch.arange(6.0).view(1, 3, 2)

    def velocity(condition: Any, x: Tensor, t: Tensor) -> Tensor:
        return 10 * condition + t[:, None, None] + 0 * x

    forward, backward = SimpleNamespace(velocity=velocity), SimpleNamespace(velocity=velocity, noise_time=1)
    assert torch.equal(one_step_of(forward)[0](1.0, x), x + 10)  # type: ignore[misc]
    assert torch.equal(one_step_of(backward)[0](1.0, x), x - 11)  # type: ignore[misc]
    own = SimpleNamespace(velocity=velocity, one_step=lambda condition, noise: noise + 7)
    assert torch.equal(one_step_of(own)[0](1.0, x), x + 7)  # type: ignore[misc]


@pytest.mark.parametrize("prediction", ["sample", "v_prediction", "epsilon"])
def test_a_denoiser_gives_the_clean_chunk_that_it_predicts_of_pure_noise(prediction: str) -> None:
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    scheduler = DDIMScheduler(num_train_timesteps=10, prediction_type=prediction)
    x, kept = torch.ones(1, 3, 2), float(scheduler.alphas_cumprod[-1])
    asked = []

    def denoise(condition: Any, x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t))
        return 2 * x

    one_step, told = one_step_of(SimpleNamespace(denoise=denoise, scheduler=scheduler))
    if prediction == "epsilon":
        assert one_step is None and "predicts 'epsilon'" in told
        return
    expected = 2.0 if prediction == "sample" else kept**0.5 - 2 * (1 - kept) ** 0.5
    assert one_step is not None
    torch.testing.assert_close(one_step(None, x), expected * x)
    assert asked == [9.0]
    flow, _ = one_step_of(SimpleNamespace(denoise=denoise, scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=10)))
    assert flow is not None and torch.equal(flow(None, x), x - 2 * x) and asked[-1] == 10.0


def test_what_an_adapter_lacks_decides_what_can_be_done() -> None:
    whole = policies().make()
    assert obstacle(whole) == ""
    parts = {"encode": whole.encode, "velocity": whole.velocity, "trained": whole.trained, "horizon": 8, "action_size": 2}
    for lacking, message in (("encode", "no encode"), ("trained", "no trained"), ("velocity", "neither one_step")):
        assert message in obstacle(SimpleNamespace(**{name: value for name, value in parts.items() if name != lacking}))
    with pytest.raises(ValueError, match="cannot become its own one-step student: it has no encode"):
        adapted(SimpleNamespace(velocity=whole.velocity, horizon=8, action_size=2))


class Broken:
    """A whole one, of which each test breaks one thing."""

    horizon, action_size = 8, 2

    def __init__(self, **changes: Any) -> None:
        self.net = nn.Linear(4, 16)
        for name, value in changes.items():
            setattr(self, name, value)

    def encode(self, observation: dict[str, Tensor]) -> Any:
        return observation[STATE].flatten(1)

    def velocity(self, condition: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return self.net(condition).view_as(x) - x

    def trained(self) -> list[nn.Parameter]:
        return list(self.net.parameters())


def _no_grad(broken: Broken) -> None:
    whole = broken.velocity
    broken.velocity = torch.no_grad()(whole)  # type: ignore[method-assign]


def _grad(broken: Broken) -> None:
    net = nn.Linear(4, 4)

    def encode(observation: dict[str, Tensor]) -> Tensor:
        with torch.enable_grad():
            return net(observation[STATE].flatten(1))

    broken.encode = encode  # type: ignore[method-assign]


def _dropout(broken: Broken) -> None:
    whole, dropout = broken.velocity, nn.Dropout(0.5)
    broken.velocity = lambda condition, x, t: dropout(whole(condition, x, t))  # type: ignore[method-assign]


def _in_place(broken: Broken) -> None:
    whole = broken.velocity
    broken.velocity = lambda condition, x, t: whole(condition.add_(1), x, t)  # type: ignore[method-assign]


def _other_weights(broken: Broken) -> None:
    broken.trained = lambda: list(nn.Linear(2, 2).parameters())  # type: ignore[method-assign]


def _infinite(broken: Broken) -> None:
    whole = broken.velocity
    broken.velocity = lambda condition, x, t: whole(condition, x, t) / 0  # type: ignore[method-assign]


def _mixing(broken: Broken) -> None:
    whole = broken.encode
    broken.encode = lambda observation: whole(observation).mean(0)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda broken: None, ""),
        (_no_grad, "one_step: no gradient reaches the weights; take"),
        (_grad, "encode: what it gives requires grad"),
        (_dropout, "one_step: one noise gave two chunks; call .eval()"),
        (_in_place, "one_step: it changed the condition in place"),
        (_other_weights, "no gradient reaches the weights; take torch.no_grad() off what it calls, or give by trained() those"),
        (_infinite, "has NaN or infinity"),
        (_mixing, "encode: got tensors of shape [(4,)], expected [6, ..]"),
    ],
)
def test_a_fault_is_told_in_a_line(break_it: Callable[[Broken], None], message: str) -> None:
    broken = Broken()
    break_it(broken)
    faults = adapted(broken).faults({name: value.clone() for name, value in SEEN.items()})
    assert any(message in fault for fault in faults) if message else faults == []
    assert all("\n" not in fault for fault in faults)


def test_wrong_shapes_and_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one_step gave \(6, 4\), expected \(6, 8, 2\)"):
        adapted(Broken(one_step=lambda condition, noise: condition)).faults(SEEN)
    with pytest.raises(ValueError, match=r"to_actions gave \(6, 16\), expected \(6, T, A\)"):
        adapted(Broken(to_actions=lambda x: x.flatten(1))).faults(SEEN)
    with pytest.raises(ValueError, match=r"trained\(\) gave nothing, expected parameters"):
        adapted(Broken(trained=list)).faults(SEEN)
    with pytest.raises(ValueError, match=r"trained\(\) gave \['Tensor'\]"):
        adapted(Broken(trained=lambda: [torch.zeros(2)])).trained()
    with pytest.raises(ValueError, match="noise_shape: got"):
        adapted(Broken(noise_shape=(0, 2)))
    with pytest.raises(ValueError, match=r"weights are of another network: \['net.bias'"):
        adapted(Broken()).load({"net.weight": torch.zeros(16, 4)})


# -- training ------------------------------------------------------------------------------------------------------


def test_the_losses_are_those_of_the_students_that_are_trained_here(tmp_path: Path) -> None:
    """The very functions, loaded by their path, without anything of ours in the process that loads them."""
    program = (
        "import sys; sys.path[:] = [place for place in sys.path if place]\n"
        "from importlib.util import spec_from_file_location as spec, module_from_spec as module\n"
        f"found = spec('flow2one_distances', {distances.__file__!r}); losses = module(found)\n"
        "found.loader.exec_module(losses)\n"
        "import torch\ntorch.manual_seed(0)\na, b = torch.randn(2, 3, 4, 2), torch.randn(2, 5, 4, 2)\n"
        "print([float(f(a, b, torch.ones(2))) for f in (losses.chamfer, losses.energy_distance, losses.paired)])\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('envs', 'teachers', 'students', 'distill')]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 2), torch.randn(2, 5, 4, 2)
    expected = [float(loss(student, teacher, torch.ones(2))) for loss in (chamfer, energy_distance, paired)]
    assert done.stdout.strip() == str(expected)


@pytest.mark.parametrize("kind", ["mlp", "unet", "transformer"])
def test_a_gradient_added_up_part_by_part_is_that_of_the_whole_step(kind: str) -> None:
    whole, parts = training(policies().make(kind)), training(policies().make(kind), at_once=2)
    losses = [each._accumulate([0, 3, 5, 2, 1], torch.Generator().manual_seed(3)) for each in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for name, value in whole.trained.items():
        torch.testing.assert_close(value.grad, parts.trained[name].grad, atol=1e-6, rtol=1e-4)


def test_the_loss_of_a_step_is_taken_in_the_hypotheses_space() -> None:
    made = training()
    noise = torch.randn(2, 3, 8, 2, generator=torch.Generator().manual_seed(3))
    got = made._accumulate([4, 1], torch.Generator().manual_seed(3))
    built = made.policy.built
    condition = built.encode({STATE: SEEN[STATE][[4, 1]]}).repeat_interleave(3, 0)
    raw = built.to_actions(noise.flatten(0, 1) + built.velocity(condition, noise.flatten(0, 1), torch.zeros(6)))
    student = ((raw - torch.tensor([0.5, -0.5])) / torch.tensor([2.0, 4.0])).unflatten(0, (2, 3))
    teacher = torch.stack([made._hypotheses[4], made._hypotheses[1]]).float()  # type: ignore[list-item]
    assert got == pytest.approx(float(chamfer(student, teacher, torch.ones(8, 2)).detach()), rel=1e-5)


def test_paired_noise_is_what_the_teacher_made_each_hypothesis_from() -> None:
    made = training(paired=True, terms=[[1.0, "paired"]])
    noise, shares, hypotheses = made._draws([2, 5], 3, torch.Generator().manual_seed(0))
    assert shares is None
    for row, number in ((0, 2), (1, 5)):
        for sample in range(3):
            place = (hypotheses[row, sample] == made._hypotheses[number]).flatten(1).all(1).nonzero()[0, 0]  # type: ignore[union-attr]
            seed = made._seeds[number][int(place)]
            torch.testing.assert_close(noise()[row, sample], torch.randn(8, 2, generator=torch.Generator().manual_seed(seed)))


STEPS = {"rows_SB": [[0, 1, 2], [3, 4, 5], [1, 3, 5], [0, 2, 4]], "seeds_S": [1, 2, 3, 4], "rates_S": [1e-2] * 4,
         "averages_S": [0.5, 0.4, 0.3, 0.2]}  # fmt: skip


def _part(first: int, last: int) -> dict[str, Any]:
    return {name: values[first:last] for name, values in STEPS.items()}  # type: ignore[index]


@pytest.mark.parametrize("noises", [0, 5])
def test_training_goes_on_exactly_where_it_was_written(tmp_path: Path, noises: int) -> None:
    whole = training(starting_noises=noises)
    assert whole.resume(tmp_path / "resume.safetensors") == {}
    whole.steps(**_part(0, 2))
    whole.write_resume(tmp_path / "resume.safetensors", {"step": 2})
    whole.steps(**_part(2, 4))

    again = training(starting_noises=noises)
    assert again.resume(tmp_path / "resume.safetensors") == {"step": 2}
    again.steps(**_part(2, 4))
    for name, value in whole.trained.items():
        assert torch.equal(value, again.trained[name]) and torch.equal(whole.average[name], again.average[name])
    # the average by hand: a <- a + w (x - a), of what was trained after each step
    assert not torch.equal(whole.average["head.layers.0.weight"], whole.trained["head.layers.0.weight"])
    assert not list(tmp_path.glob("*.tmp"))
    with pytest.raises(ValueError, match="was written for other weights"):
        training(policies().make("unet"), observed=False).resume(tmp_path / "resume.safetensors")


def test_learned_starting_noises_travel_with_the_weights(tmp_path: Path) -> None:
    made = training(starting_noises=5)
    made.steps(**STEPS)  # type: ignore[arg-type]
    made.write(tmp_path / "model.safetensors")
    tensors, _ = read_tensors(tmp_path / "model.safetensors")
    assert tensors["starting_noises"].shape == (5, 8, 2)
    assert float(tensors["starting_log_shares"].exp().sum()) == pytest.approx(1.0, abs=1e-5)
    student = adapted(policies().make())
    student.load(tensors)
    drawn = student.noise(range(50))
    assert all(any(torch.equal(each, noise) for noise in tensors["starting_noises"]) for each in drawn)
    assert torch.equal(drawn, student.noise(range(50)))


def test_a_gradient_that_is_not_finite_stops_the_training() -> None:
    built = Broken(one_step=lambda condition, noise: noise * built.net.weight.sum() * torch.inf)
    with pytest.raises(ValueError, match="the gradient's norm is nan, expected a finite one; lower the learning rate"):
        training(built).steps(**_part(0, 1))


def test_stored_conditions_train_as_computed_ones(tmp_path: Path) -> None:
    policy = adapted(policies().make())
    for shard, rows in enumerate((slice(0, 4), slice(4, 6))):
        conditions.write_shard(conditions.shard_path(tmp_path, shard), policy.encode({STATE: SEEN[STATE][rows]}))
    stored = StoredConditions(tmp_path, 4, policy.encode({STATE: SEEN[STATE][:1]}), policy.device)
    computed, read = training(), training(stored=stored)
    losses = [each._accumulate([0, 3, 5, 4], torch.Generator().manual_seed(1)) for each in (computed, read)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and computed.conditions.encoded == 4


PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.teachers.adapters.test_one_step import STEPS, training
from teachers.adapters.training import join
import torch
torch.set_num_threads(1)
store, rank, world, out = sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
join(store, rank, world, torch.device("cpu"))
made = training(rank=rank, world=world, starting_noises=5)
told = made.steps(**STEPS)
made.write_resume(__import__("pathlib").Path(out), {"loss": told["loss"]})
"""


@pytest.mark.slow
def test_several_processes_compute_the_gradient_of_one(tmp_path: Path) -> None:
    root, outs = str(Path(__file__).parents[3]), [tmp_path / f"{rank}.safetensors" for rank in range(2)]
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, root, str(tmp_path / "store"), str(rank), "2", str(out)])
        for rank, out in enumerate(outs)
    ]
    assert [each.wait(120) for each in running] == [0, 0]
    whole = training(starting_noises=5)
    loss = whole.steps(**STEPS)["loss"]  # type: ignore[arg-type]
    found = [read_tensors(out) for out in outs]
    assert sum(json.loads(header["state"])["loss"] for _, header in found) == pytest.approx(loss, rel=1e-5)
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())  # they stay together
    for name, value in whole.average.items():
        torch.testing.assert_close(found[0][0][f"average/{name}"], value, atol=1e-5, rtol=1e-4)


def test_only_the_trained_weights_take_a_gradient_and_only_meanwhile() -> None:
    built = policies().make()
    student = adapted(built)
    with trainable(built, student.trained()):
        assert {name.split(".")[0] for name, value in built.named_parameters() if value.requires_grad} == {"head"}
    assert not any(value.requires_grad for value in built.parameters())


# -- in the adapter's process --------------------------------------------------------------------------------------


def test_a_network_is_trained_saved_and_read_back_in_its_own_process(tmp_path: Path) -> None:
    resume, weights = tmp_path / "resume.safetensors", tmp_path / "model.safetensors"

    def begin(teacher: AdapterTeacher) -> dict[str, Any]:
        one = teacher.arrays({STATE: SEEN[STATE][:1]})
        told, _ = teacher.request("train", {**ARRAYS, **one}, losses=distances.__file__, resume=str(resume), store="",
                                  conditions={"folder": str(tmp_path), "shard_size": 6}, **OPTIONS)  # fmt: skip
        rng = np.random.default_rng(0)
        teacher.request("observe", {"hypotheses": rng.normal(size=(6, 4, 8, 2)).astype(np.float16),
                                    "seeds": rng.integers(0, 1 << 40, (6, 4))}, first=0)  # fmt: skip
        return dict(told["state"])

    def steps(teacher: AdapterTeacher, write: str = "", save: str = "") -> dict[str, Any]:
        told = teacher.request("steps", {"rows": np.array([[0, 1], [2, 3]])}, seeds=[1, 2], rates=[1e-2, 1e-2],
                               averages=[0.5, 0.5])[0]  # fmt: skip
        if save:
            teacher.request("write", weights=write, resume=save, state={"step": 2})
        return told

    with AdapterTeacher(AdapterFile.parse(f"{POLICIES}:build")) as teacher:
        check_teacher(teacher, SEEN, action_size=2)
        assert teacher.description.obstacle == "" and teacher.description.saves
        before = teacher.sample_from_seeds(SEEN, np.arange(12).reshape(6, 2), 1)
        assert teacher.request("condition", teacher.arrays(SEEN))[0]["bytes"] == 8 * 4  # eight numbers
        teacher.request("encode", teacher.arrays(SEEN), path=str(conditions.shard_path(tmp_path, 0)))
        trainer = teacher.another()
        try:
            assert begin(trainer) == {}
            assert steps(trainer, str(weights), str(resume))["loss"] > 0
            os.kill(trainer._process.pid, signal.SIGKILL)
            with pytest.raises(AdapterGone, match="is gone"):
                steps(trainer)
        finally:
            trainer.close()
        trainer = teacher.another()
        try:
            assert begin(trainer) == {"step": 2}
        finally:
            trainer.close()

        student = teacher.student(weights)
        assert student.evaluations(5) == 1 and student.is_student and not teacher.is_student
        made = student.sample_from_seeds(SEEN, np.arange(12).reshape(6, 2), 1)
        assert not torch.equal(made, before)  # fine-tuned; and the teacher is what it was
        assert torch.equal(before, teacher.sample_from_seeds(SEEN, np.arange(12).reshape(6, 2), 1))
        told, _ = student.request("save", {**student.arrays(SEEN), "seeds": np.arange(12).reshape(6, 2)},
                                  folder=str(tmp_path / "own"))  # fmt: skip
        assert told == {"saved": True, "difference": 0.0}
        assert student.time_call({STATE: SEEN[STATE][:1]}, 0, 1, samples=4)[0] > 0
    own = policies().load(str(tmp_path / "own"))
    assert own.num_steps == 1
    chunk = seeded.adapt(own, solvers.integrate).head(own.encode(SEEN), np.arange(12).reshape(6, 2).tolist(), 1)
    torch.testing.assert_close(chunk, made)
