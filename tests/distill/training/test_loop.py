"""The training loop: the same batches for any number of processes, an exact resume, a stop at nonsense."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor, nn

from distill.training.loop import (
    RESUME,
    Share,
    batch_indices,
    candidate_steps,
    fit,
    learning_rate,
    step_generator,
)
from envs.specs import STATE


@dataclass(frozen=True)
class Settings:
    training_steps: int = 4
    batch_size: int = 6
    learning_rate: float = 0.01
    weight_decay: float = 0.1
    warmup_steps: int = 1
    ema_decay: float = 0.9
    candidates: int = 2
    accumulate: int = 1


# -- the order of the data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "length"), [(4, 12), (5, 12), (7, 3), (12, 12)])
def test_every_epoch_is_a_fresh_permutation(batch: int, length: int) -> None:
    steps = 6 * length // batch + 1
    rows = torch.cat([batch_indices(3, step, batch, length) for step in range(steps)])
    epochs = rows[: 6 * length].view(6, length)
    assert torch.equal(epochs.sort(1).values, torch.arange(length).expand(6, length))
    assert len(epochs.unique(dim=0)) > 1


def test_the_order_depends_on_the_seed_and_the_step_only() -> None:
    assert torch.equal(batch_indices(3, 17, 8, 100), batch_indices(3, 17, 8, 100))
    assert not torch.equal(batch_indices(4, 17, 8, 100), batch_indices(3, 17, 8, 100))
    torch.manual_seed(0)
    first = batch_indices(3, 17, 8, 100)
    torch.manual_seed(1)
    assert torch.equal(batch_indices(3, 17, 8, 100), first)


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_processes_interleave_to_the_global_batch(world: int) -> None:
    for step in range(2, 5):
        whole = batch_indices(1, step, 6, 20)
        shares = [Share(rank, world).of(whole).tolist() for rank in range(world)]
        assert shares == [whole.tolist()[rank::world] for rank in range(world)]
        assert sorted(sum(shares, [])) == sorted(whole.tolist())


def test_generators_of_steps_and_streams_are_apart() -> None:
    seeds = {
        step_generator(seed, step, stream).initial_seed()
        for seed in range(4)
        for step in range(50)
        for stream in (0, 1)
    }
    assert len(seeds) == 4 * 50 * 2


# -- schedules -----------------------------------------------------------------------------------------------------


def test_the_learning_rate_by_hand() -> None:
    settings = Settings(training_steps=12, warmup_steps=4, learning_rate=0.8)
    # warm-up by quarters, then 0.4 (1 + cos(pi k / 8)) for k = 0, 2, 4, 6
    assert [learning_rate(settings, step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    expected = [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]
    assert [learning_rate(settings, step) for step in (4, 6, 8, 10)] == pytest.approx(expected)
    assert learning_rate(settings, 12) == pytest.approx(0.0)
    assert learning_rate(Settings(training_steps=2, warmup_steps=0), 0) == pytest.approx(0.01)
    assert learning_rate(Settings(training_steps=2, warmup_steps=5), 1) == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("steps", "count", "expected"),
    [(100, 1, [100]), (100, 2, [80, 100]), (100, 4, [70, 80, 90, 100]), (1000, 3, [733, 867, 1000]), (1, 3, [1]),
     (3, 8, [2, 3])],
)  # fmt: skip
def test_candidates_stand_evenly_over_the_last_part(steps: int, count: int, expected: list[int]) -> None:
    assert candidate_steps(Settings(training_steps=steps, candidates=count)) == expected


# -- fit -----------------------------------------------------------------------------------------------------------


class Task:
    """A small flow teacher on made-up data; notes what the loop asks of it."""

    def __init__(self, make_teacher: Any, folder: Path, settings: Settings | None = None, seed: int = 3) -> None:
        self.model = make_teacher().train()
        self.folder, self.settings, self.seed = folder, settings or Settings(), seed
        self.steps: list[int] = []
        self.rates: list[float] = []
        self.logged: list[tuple[int, float]] = []
        generator = torch.Generator().manual_seed(0)
        self.states = torch.rand(20, 2, 2, generator=generator)
        self.chunks = torch.rand(20, 8, 2, generator=generator)
        self.spoil_at: int | None = None

    def batches(self, first: int, last: int, share: Share) -> Iterator[tuple[int, Tensor]]:
        for step in range(first, last):
            yield step, share.of(batch_indices(self.seed, step, self.settings.batch_size, 20))

    def loss(
        self, model: nn.Module, batch: tuple[int, Tensor], generator: torch.Generator, share: Share
    ) -> Tensor:
        step, rows = batch
        self.steps.append(step)
        noise, time = share.of(torch.randn(6, 8, 2, generator=generator)), share.of(torch.rand(6, generator=generator))
        value: Tensor = model({STATE: self.states[rows]}, self.chunks[rows], noise, time)
        return value * float("nan") if step == self.spoil_at else value

    def train(self, stop_after: int | None = None) -> list[dict[str, float]]:
        return fit(
            Accelerator(cpu=True), self.model, self.batches, self.loss, self.settings, self.seed, self.folder,
            lambda model, folder: model.save_pretrained(folder),  # type: ignore[operator]
            lambda step, loss: self.logged.append((step, loss)), "test", stop_after,
        )  # fmt: skip


def _resume(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(str(folder / RESUME), framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["state"])


def _same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("stops", [[2], [1, 2, 3], [3]])
def test_stopped_and_resumed_training_is_the_straight_one_to_the_last_bit(make_teacher, tmp_path: Path, stops) -> None:
    straight = Task(make_teacher, tmp_path / "straight")
    straight.train()
    done: list[int] = []
    for stop in [*stops, None]:
        resumed = Task(make_teacher, tmp_path / "resumed")  # all from the disk: model and loop are new
        resumed.train(stop)
        done += resumed.steps
    assert done == straight.steps == [0, 1, 2, 3]
    assert _same(resumed.model.state_dict(), straight.model.state_dict())
    states = [_resume(tmp_path / name) for name in ("straight", "resumed")]
    assert _same(states[0][0], states[1][0]) and states[0][1]["step"] == states[1][1]["step"] == 4
    for step in candidate_steps(straight.settings):
        names = [f"{run}/candidate-{step:06d}/model.safetensors" for run in ("straight", "resumed")]
        assert (tmp_path / names[0]).read_bytes() == (tmp_path / names[1]).read_bytes()


def test_the_curve_does_not_show_where_training_was_interrupted(make_teacher, tmp_path: Path) -> None:
    straight = Task(make_teacher, tmp_path / "straight").train()
    Task(make_teacher, tmp_path / "resumed").train(2)
    resumed = Task(make_teacher, tmp_path / "resumed").train()
    assert [row["step"] for row in straight] == [row["step"] for row in resumed] == [4]
    assert resumed[0]["loss"] == pytest.approx(straight[0]["loss"], rel=1e-6)


def test_finished_training_does_nothing_more(make_teacher, tmp_path: Path) -> None:
    Task(make_teacher, tmp_path).train()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = Task(make_teacher, tmp_path)
    again.train()
    assert again.steps == [] and before == {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()
    }


def test_one_step_is_adamw_with_the_scheduled_rate_and_a_clipped_gradient(make_teacher, tmp_path: Path) -> None:
    task = Task(make_teacher, tmp_path, Settings(training_steps=2, warmup_steps=4))
    by_hand = make_teacher().train()
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1.0, weight_decay=0.1)
    for step, rate in ((0, 0.01 / 4), (1, 0.01 / 2)):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        rows = batch_indices(3, step, 6, 20)
        task.loss(by_hand, (step, rows), step_generator(3, step), Share()).backward()
        length = torch.sqrt(sum((value.grad.square().sum() for value in by_hand.parameters()), torch.zeros(())))  # type: ignore[union-attr]
        assert float(length) > 1.0  # so clipping is at work
        for value in by_hand.parameters():
            value.grad /= length
        optimizer.step()
    task.train()
    for name, value in task.model.named_parameters():
        if name.endswith("to_qkv.bias"):  # a key's bias changes no softmax, so its gradient is rounding
            continue
        torch.testing.assert_close(value, by_hand.get_parameter(name), rtol=1e-4, atol=1e-6)


def test_the_candidates_are_averages_not_the_last_weights(make_teacher, tmp_path: Path) -> None:
    task = Task(make_teacher, tmp_path)
    task.train()
    tensors, _ = _resume(tmp_path)
    with safe_open(str(tmp_path / "candidate-000004" / "model.safetensors"), framework="pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert _same(saved, {name[8:]: value for name, value in tensors.items() if name.startswith("average.")})
    assert not torch.equal(saved["trunk.position"], task.model.state_dict()["trunk.position"])


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(make_teacher, tmp_path: Path, parts: int) -> None:
    """Four parts of six rows differ in size: two of two rows, two of one."""
    whole = Task(make_teacher, tmp_path / "whole", Settings(training_steps=1))
    divided = Task(make_teacher, tmp_path / "divided", Settings(training_steps=1, accumulate=parts))
    curves = whole.train(), divided.train()
    assert divided.steps == [0] * parts
    assert curves[1][0]["loss"] == pytest.approx(curves[0][0]["loss"], rel=1e-6)
    first, second = (_resume(tmp_path / name)[0] for name in ("whole", "divided"))
    moments = [name for name in first if name.endswith("exp_avg")]  # after one step: a tenth of the clipped gradient
    assert len(moments) == len(list(whole.model.parameters()))
    for name in moments:
        torch.testing.assert_close(second[name], first[name], rtol=1e-4, atol=1e-7)


def test_more_parts_than_rows_are_refused(make_teacher, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch_size 6 is smaller than the 1 processes x 7 parts; raise it"):
        Task(make_teacher, tmp_path, Settings(accumulate=7)).train()


@pytest.mark.parametrize(("rank", "world", "parts"), [(0, 1, 3), (1, 2, 2), (2, 3, 4)])
def test_the_parts_of_a_share_have_its_rows(rank: int, world: int, parts: int) -> None:
    rows, share = torch.arange(14), Share(rank, world)
    divided = [part.of(rows) for part in share.parts(parts)]
    assert sorted(torch.cat(divided).tolist()) == share.of(rows).tolist()
    assert [part.count(14) for part in share.parts(parts)] == [len(each) for each in divided]


def test_the_mean_loss_is_logged(make_teacher, tmp_path: Path) -> None:
    task = Task(make_teacher, tmp_path)
    losses: list[float] = []
    plain = task.loss

    def noting(model: nn.Module, batch: tuple[int, Tensor], generator: torch.Generator, share: Share) -> Tensor:
        value = plain(model, batch, generator, share)
        losses.append(value.item())
        return value

    task.loss = noting  # type: ignore[method-assign]
    curve = task.train()
    assert curve == [{"step": 4, "loss": pytest.approx(sum(losses) / 4)}]
    assert task.logged == [(4, pytest.approx(sum(losses) / 4))]


def test_a_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights(
    make_teacher, tmp_path: Path
) -> None:
    task = Task(make_teacher, tmp_path)
    task.spoil_at = 2
    with pytest.raises(FloatingPointError, match="test: the gradient's norm is nan at step 2, .*Lower the learning rate"):
        task.train()
    assert all(bool(torch.isfinite(value).all()) for value in task.model.state_dict().values())
    tensors, state = _resume(tmp_path)
    assert state["step"] == 2 and all(bool(torch.isfinite(value).all()) for value in tensors.values())


def test_nothing_is_pickled(make_teacher, tmp_path: Path) -> None:
    Task(make_teacher, tmp_path).train()
    suffixes = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json"}


def test_a_batch_too_small_for_the_processes_is_refused(make_teacher, tmp_path: Path) -> None:
    task = Task(make_teacher, tmp_path, Settings(batch_size=1))

    class Two:
        device, process_index, num_processes, is_main_process = torch.device("cpu"), 0, 2, True

    with pytest.raises(ValueError, match="batch_size 1 is smaller than the 2 processes; raise it"):
        fit(Two(), task.model, task.batches, task.loss, task.settings, 0, tmp_path, lambda *_: None,  # type: ignore[arg-type]
            lambda *_: None, "test")  # fmt: skip
