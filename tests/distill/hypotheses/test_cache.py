"""The hypothesis cache: seeds, shards whose bytes depend on plan and teacher only, resuming, and lazy reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from distill.hypotheses import cache
from distill.hypotheses.cache import (
    CachePlan,
    HypothesisDataset,
    draw_hypotheses,
    episode_seed,
    hypothesis_seeds,
    log_halved,
    noise_of,
    shard_name,
    training_frames,
    write_index,
    write_shards,
)
from distill.training.loop import batch_indices
from envs.specs import STATE
from teachers.diffusion import DiffusionTeacher

CPU = torch.device("cpu")
PLAN = CachePlan(
    np.array([3, 5, 8, 13, 21, 34, 55, 89]), num_hypotheses=4, num_steps=3, shard_size=3, batch_size=2, seed=7
)
"""Eight observations in shards of 3, 3 and 2."""


def _states(frames: np.ndarray) -> np.ndarray:
    """State histories `[n, 2, 2]` that tell which frame they are of."""
    return np.stack([np.full((2, 2), 0.3 + frame / 300) + [[0.0, 0.01], [0.02, 0.03]] for frame in frames])


def _observe(frames: np.ndarray) -> dict[str, np.ndarray]:
    return {STATE: _states(frames)}


def _write(folder: Path, teacher, plan: CachePlan = PLAN, shards: list[int] | None = None, observe=_observe) -> list[int]:
    folder.mkdir(exist_ok=True)
    done: list[int] = []
    chosen = list(range(plan.num_shards)) if shards is None else shards
    write_shards(folder, teacher, teacher.normaliser, plan, observe, chosen, CPU, done.append)
    return done


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard-*.safetensors")}


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


# -- seeds ---------------------------------------------------------------------------------------------------------


def test_no_two_hypotheses_have_one_seed() -> None:
    seeds = hypothesis_seeds(0, np.arange(2000), 64)
    assert seeds.shape == (2000, 64) and seeds.dtype == np.int64 and seeds.min() >= 0
    assert len(np.unique(seeds)) == seeds.size
    # nor do two runs, even when seeds and frames lie side by side
    runs = [hypothesis_seeds(seed, np.arange(100), 32) for seed in range(20)]
    assert len(np.unique(runs)) == 20 * 100 * 32


def test_a_seed_depends_on_run_frame_and_number_only() -> None:
    seeds = hypothesis_seeds(3, np.array([10, 20, 30]), 8)
    assert np.array_equal(hypothesis_seeds(3, np.array([10, 20, 30]), 5), seeds[:, :5])
    assert np.array_equal(hypothesis_seeds(3, np.array([30]), 8), seeds[2:])
    assert not np.isin(hypothesis_seeds(4, np.array([10, 20, 30]), 8), seeds).any()


def test_seeds_look_random() -> None:
    # each of the 63 bits is set in half of them: 51200 draws, five standard deviations are 0.011
    seeds = hypothesis_seeds(0, np.arange(800), 64).reshape(-1)
    shares = [float(((seeds >> bit) & 1).mean()) for bit in range(63)]
    assert all(abs(share - 0.5) < 0.011 for share in shares)


def test_episode_seeds_are_apart_in_everything_that_names_them() -> None:
    names = [(seed, what, number, attempt) for seed in (0, 1) for what in ("train", "test") for number in range(50)
             for attempt in range(3)]  # fmt: skip
    assert len({episode_seed(*name) for name in names}) == len(names)
    assert episode_seed(0, "test", 5, 0) == episode_seed(0, "test", 5, 0) >= 0


def test_noise_is_standard_normal_and_each_chunks_own() -> None:
    seeds = hypothesis_seeds(0, np.arange(50), 8)
    noise = noise_of(seeds, (16, 2))
    assert noise.shape == (50, 8, 16, 2)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.03) and float(noise.std()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(noise_of(seeds[7:8, 3:4], (16, 2))[0, 0], noise[7, 3])
    expected = torch.randn(16, 2, generator=torch.Generator().manual_seed(int(seeds[7, 3])))
    assert torch.equal(noise[7, 3], expected)


# -- shards --------------------------------------------------------------------------------------------------------


def test_the_shards_hold_the_frames_in_their_order(make_teacher, tmp_path: Path) -> None:
    assert _write(tmp_path, make_teacher()) == [0, 1, 2] and PLAN.num_shards == 3
    shards = [load_file(str(tmp_path / shard_name(shard))) for shard in range(3)]
    assert [shard["frame_index"].tolist() for shard in shards] == [[3, 5, 8], [13, 21, 34], [55, 89]]
    assert [tuple(shard["hypotheses"].shape) for shard in shards] == [(3, 4, 8, 2), (3, 4, 8, 2), (2, 4, 8, 2)]
    for shard in shards:
        assert shard["hypotheses"].dtype == torch.float16
        torch.testing.assert_close(shard[STATE], torch.from_numpy(_states(shard["frame_index"].numpy())).float())


def test_a_shards_bytes_do_not_depend_on_who_writes_it_or_what_else_is_written(make_teacher, tmp_path: Path) -> None:
    _write(tmp_path / "all", make_teacher())
    for name, shards in (("last", [2]), ("first", [0]), ("middle", [1])):
        _write(tmp_path / name, make_teacher(), shards=shards)
        assert _bytes(tmp_path / name) == {shard_name(shards[0]): _bytes(tmp_path / "all")[shard_name(shards[0])]}
    torch.manual_seed(99)
    _write(tmp_path / "backwards", make_teacher(), shards=[2, 1, 0])
    assert _bytes(tmp_path / "backwards") == _bytes(tmp_path / "all")


def test_a_shard_asks_for_its_own_observations_only(make_teacher, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def observe(frames: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(frames.tolist())
        return _observe(frames)

    _write(tmp_path, make_teacher(), shards=[1], observe=observe)
    assert asked == [[13, 21], [34]]


@pytest.mark.parametrize(
    ("change", "same"), [({"seed": 8}, False), ({"num_steps": 2}, False), ({"shard_size": 4}, True)]
)
def test_what_changes_the_hypotheses(make_teacher, tmp_path: Path, change: dict, same: bool) -> None:
    sets = []
    for name, plan in (("one", PLAN), ("two", replace(PLAN, **change))):
        _write(tmp_path / name, make_teacher(), plan)
        sets.append(
            torch.cat([load_file(str(path))["hypotheses"] for path in sorted((tmp_path / name).glob("*.saf*"))])
        )
    # the size of a network call is the same or not at a shard's end, which changes last bits only
    assert torch.allclose(sets[0].float(), sets[1].float(), atol=1e-3) == same


def test_the_stored_seeds_make_the_stored_hypotheses_again(make_teacher, tmp_path: Path) -> None:
    teacher = make_teacher()
    _write(tmp_path, teacher)
    shard = load_file(str(tmp_path / shard_name(1)))
    assert np.array_equal(shard["seed"].numpy(), hypothesis_seeds(7, np.array([13, 21, 34]), 4))
    for row, k in ((0, 0), (1, 3), (2, 2)):
        noise = noise_of(shard["seed"][row : row + 1, k : k + 1].numpy(), (8, 2))
        raw = teacher.sample_from_noise({STATE: shard[STATE][row : row + 1]}, noise, 3)[0, 0]
        again = teacher.normaliser.normalise_action(raw)
        torch.testing.assert_close(shard["hypotheses"][row, k].float(), again, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_teacher_that_draws_nonsense_is_stopped_with_the_shard(make_teacher, tmp_path: Path, value: float) -> None:
    teacher = make_teacher()
    with torch.no_grad():
        teacher.trunk.from_tokens.bias.fill_(value)
    with pytest.raises(ValueError, match="drew NaN or infinity in shard 1"):
        _write(tmp_path, teacher, shards=[1])
    assert list(tmp_path.iterdir()) == []


class Elsewhere:
    """A teacher that only has `sample`: level chunks at a random height round the first state; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []

    def sample(self, observation, num_hypotheses: int, num_steps: int, generator: torch.Generator) -> torch.Tensor:
        state = observation[STATE]
        self.asked.append((len(state), num_hypotheses, num_steps))
        height_BK11 = torch.randn(len(state), num_hypotheses, 1, 1, generator=generator)
        return state[:, -1, None, None] + 0.1 * height_BK11.expand(-1, -1, 8, 2)

    def evaluations(self, num_steps: int) -> int:
        return 1


def test_a_teacher_from_elsewhere_is_asked_for_samples_observation_by_observation(make_teacher, tmp_path: Path) -> None:
    teacher, normaliser = Elsewhere(), make_teacher().normaliser
    for name, plan in (("one", PLAN), ("two", replace(PLAN, batch_size=3))):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, teacher, normaliser, plan, _observe, range(3), CPU)
    # whatever the batch, each observation by itself and from the first of its seeds
    assert teacher.asked == 16 * [(1, 4, 3)] and _bytes(tmp_path / "one") == _bytes(tmp_path / "two")
    shard = load_file(str(tmp_path / "one" / shard_name(2)))
    for row, frame in enumerate((55, 89)):
        seed = int(hypothesis_seeds(7, np.array([frame]), 4)[0, 0])
        height_K = torch.randn(1, 4, 1, 1, generator=torch.Generator().manual_seed(seed))[0, :, 0]
        raw_KA = torch.tensor(_states(np.array([frame]))[0, -1]) + 0.1 * height_K
        # centres 0.5, -0.1 and half ranges 0.3
        expected_KA = (raw_KA - torch.tensor([0.5, -0.1])) / 0.3
        torch.testing.assert_close(shard["hypotheses"][row, :, 5].float(), expected_KA.float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_a_trained_teacher_is_given_all_the_noise_it_asks_for(
    small_shape, statistics, tmp_path: Path, solver: str
) -> None:
    torch.manual_seed(0)
    teacher = DiffusionTeacher(small_shape, solver).eval()
    with torch.no_grad():
        teacher.trunk.from_tokens.weight.normal_(std=0.1)
    teacher.normaliser.fit(statistics)
    plan = replace(PLAN, num_steps=4)
    _write(tmp_path, teacher, plan)
    shard = load_file(str(tmp_path / shard_name(0)))
    shape = (8, 2) if solver == "ddim" else (5, 8, 2)
    noise = noise_of(shard["seed"][1:2].numpy(), shape)
    assert noise.shape == (1, 4, *shape)
    raw = teacher.sample_from_noise({STATE: shard[STATE][1:2]}, noise, 4)
    again = teacher.normaliser.normalise_action(raw)[0]
    torch.testing.assert_close(shard["hypotheses"][1].float(), again, rtol=1e-3, atol=1e-3)
    assert float((again[0] - again[1]).abs().max()) > 0.01


class Small:
    """A teacher whose memory holds `most` observations at a time; each chunk is the seed of its own."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, list[int]()

    def sample(self, *_: object) -> torch.Tensor:
        raise NotImplementedError

    def evaluations(self, num_steps: int) -> int:
        return num_steps

    def sample_from_seeds(self, observation: dict, seeds_BK: np.ndarray, num_steps: int) -> torch.Tensor:
        self.asked.append(len(seeds_BK))
        if len(seeds_BK) > self.most:
            raise torch.OutOfMemoryError("made up")
        return torch.from_numpy(seeds_BK)[..., None, None] + observation[STATE][:, :1, :1, None]


def test_a_batch_that_exceeds_the_memory_is_drawn_in_halves(caplog: pytest.LogCaptureFixture) -> None:
    log_halved.cache_clear()
    teacher, seeds = Small(2), np.arange(10).reshape(5, 2)
    observation = {STATE: torch.arange(5.0).view(5, 1, 1) * 100}
    for _ in range(2):
        drawn = draw_hypotheses(teacher, observation, seeds, 1, CPU)
        assert drawn.flatten().tolist() == [0, 1, 102, 103, 204, 205, 306, 307, 408, 409]
    assert teacher.asked == 2 * [5, 2, 3, 1, 2]
    assert [record.message for record in caplog.records] == [
        "a batch of hypotheses exceeds the memory, drawing halves; lower --sample.batch-size"
    ]
    with pytest.raises(torch.OutOfMemoryError):
        draw_hypotheses(Small(0), observation, seeds, 1, CPU)


# -- going on ------------------------------------------------------------------------------------------------------


def test_finished_shards_are_kept_and_broken_ones_made_again(make_teacher, tmp_path: Path) -> None:
    teacher = make_teacher()
    _write(tmp_path, teacher)
    whole, before = _bytes(tmp_path), _stamps(tmp_path)
    assert _write(tmp_path, teacher) == [0, 1, 2]
    assert _stamps(tmp_path) == before

    broken = tmp_path / shard_name(1)
    data = bytearray(broken.read_bytes())
    data[-5] ^= 1
    broken.write_bytes(data)
    _write(tmp_path, teacher)
    after = _stamps(tmp_path)
    assert _bytes(tmp_path) == whole
    assert {name for name in before if after[name] != before[name]} == {shard_name(1), "shard-00001.sha256"}


def test_a_shard_is_reported_once_it_is_on_disk_and_survives_a_failure_of_the_next(make_teacher, tmp_path: Path) -> None:
    teacher = make_teacher()

    def observe(frames: np.ndarray) -> dict[str, np.ndarray]:
        if 55 in frames:
            raise KeyError("the recording ends here")
        return _observe(frames)

    def progress(shard: int) -> None:
        assert (tmp_path / shard_name(shard)).with_suffix(".sha256").is_file()

    with pytest.raises(KeyError, match="ends here"):
        write_shards(tmp_path, teacher, teacher.normaliser, PLAN, observe, [0, 1, 2], CPU, progress)
    _write(tmp_path / "whole", teacher)
    assert _bytes(tmp_path) == {name: value for name, value in _bytes(tmp_path / "whole").items() if "00002" not in name}


def test_a_shard_that_cannot_be_written_stops_the_drawing(make_teacher, tmp_path: Path) -> None:
    (tmp_path / shard_name(0)).mkdir()  # a folder stands where the file belongs
    asked: list[int] = []

    def observe(frames: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(int(frames[0]))
        return _observe(frames)

    with pytest.raises(OSError):
        _write(tmp_path, make_teacher(), observe=observe)
    assert 55 not in asked  # the third shard: the second was drawn while the first was written


@pytest.mark.parametrize("lost", ["shard-00002.sha256", "shard-00002.safetensors"])
def test_half_of_a_shard_is_no_shard(make_teacher, tmp_path: Path, lost: str) -> None:
    _write(tmp_path, make_teacher())
    whole, before = _bytes(tmp_path), _stamps(tmp_path)
    (tmp_path / lost).unlink()
    _write(tmp_path, make_teacher())
    after = _stamps(tmp_path)
    assert _bytes(tmp_path) == whole
    assert all(after[name] == before[name] for name in before if "00002" not in name)


def test_shards_that_are_there_are_not_sampled_again(make_teacher, tmp_path: Path) -> None:
    _write(tmp_path, make_teacher(), shards=[0, 2])
    asked: list[list[int]] = []

    def observe(frames: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(frames.tolist())
        return _observe(frames)

    _write(tmp_path, make_teacher(), observe=observe)
    assert asked == [[13, 21], [34]]


def test_the_index_is_not_written_before_all_shards_are_there(make_teacher, tmp_path: Path) -> None:
    _write(tmp_path, make_teacher(), shards=[0, 2])
    with pytest.raises(ValueError, match="shard-00001.safetensors"):
        write_index(tmp_path, PLAN, "flow_teacher")
    with pytest.raises(ValueError, match="no hypothesis cache.*run the sample stage"):
        HypothesisDataset(tmp_path)


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(make_teacher, tmp_path: Path) -> Path:
    _write(tmp_path, make_teacher())
    write_index(tmp_path, PLAN, "flow_teacher")
    return tmp_path


def test_the_index_says_what_drew_the_chunks(cached: Path) -> None:
    assert json.loads((cached / "index.json").read_text()) == {
        "observations": 8, "num_hypotheses": 4, "num_steps": 3, "shard_size": 3, "seed": 7, "teacher": "flow_teacher",
        "normalised": True,
    }  # fmt: skip


def test_the_reader_gives_what_the_teacher_samples(make_teacher, cached: Path) -> None:
    teacher, dataset = make_teacher(), HypothesisDataset(cached)
    assert len(dataset) == 8
    for row, frame in enumerate(PLAN.frames):
        item = dataset[row]
        state = torch.from_numpy(_states(np.array([frame]))).float()
        assert set(item) == {STATE, "hypotheses", "seed"} and torch.equal(item[STATE], state[0])
        assert item["seed"].dtype == torch.int64
        assert item["seed"].tolist() == hypothesis_seeds(7, np.array([frame]), 4)[0].tolist()
        noise = noise_of(hypothesis_seeds(7, np.array([frame]), 4), (8, 2))
        direct = teacher.normaliser.normalise_action(teacher.sample_from_noise({STATE: state}, noise, 3))[0]
        assert item["hypotheses"].dtype == torch.float32
        # half precision has eleven bits, and a batch of one may differ from a batch of two in the last of float32
        torch.testing.assert_close(item["hypotheses"], direct, rtol=2**-11, atol=1e-4)


def test_only_the_shards_that_are_asked_for_are_opened(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = cache.safe_open

    def counting(path: str, *arguments, **keywords):
        opened.append(Path(path).name)
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(cache, "safe_open", counting)
    dataset = HypothesisDataset(cached)
    assert len(dataset) == 8 and opened == []
    dataset[7], dataset[6], dataset[0]
    assert opened == [shard_name(2), shard_name(0)]


def test_a_batch_is_its_rows_in_their_order(cached: Path) -> None:
    dataset = HypothesisDataset(cached)
    for rows in ([6], [5, 0, 7, 1, 6], [2, 2, 4], batch_indices(5, 1, 3, 8)):  # over the borders of shards of 3, and twice
        batch = dataset.batch(rows)
        items = [dataset[int(row)] for row in rows]
        for name in (STATE, "hypotheses", "seed"):
            assert batch[name].dtype == items[0][name].dtype
            assert torch.equal(batch[name], torch.stack([item[name] for item in items]))


def test_a_data_loader_reads_it(cached: Path) -> None:
    dataset = HypothesisDataset(cached)
    batches = list(DataLoader(dataset, batch_size=3))
    assert torch.equal(torch.cat([batch["hypotheses"] for batch in batches]), dataset.batch(range(8))["hypotheses"])


# -- which frames ----------------------------------------------------------------------------------------------------


def test_half_of_the_frames_are_those_at_which_a_policy_is_asked() -> None:
    # two episodes of 7 and 5 frames, asked every third frame: frames 0, 3, 6 and 7, 10
    episode_index = np.repeat([0, 1], [7, 5])
    asked = {0, 3, 6, 7, 10}
    for seed in range(20):
        frames = training_frames(episode_index, 6, 0.5, 3, seed)
        assert len(set(frames.tolist())) == 6 and (np.diff(frames) > 0).all()
        assert len(asked & set(frames.tolist())) >= 3
    assert set(training_frames(episode_index, 5, 1.0, 3, 0).tolist()) == asked
    assert training_frames(episode_index, 99, 0.5, 3, 0).tolist() == list(range(12))


def test_a_share_of_nothing_is_a_plain_random_choice() -> None:
    episode_index = np.repeat(np.arange(50), 20)
    frames = training_frames(episode_index, 500, 0.0, 10, 0)
    # 100 of 1000 frames are asked at; 500 drawn without looking take 50 of them, with a standard deviation of 4.7
    assert abs(int((frames % 10 == 0).sum()) - 50) < 20
