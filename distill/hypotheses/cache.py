"""The hypothesis cache: K teacher chunks for each of many observations, in shards that can be redrawn one by one."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import mmap
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import Dataset

from distill.store.manifest import sha256_file, write_bytes, write_json
from envs.specs import STATE
from teachers.contract import FEATURES, Observation, SeededTeacher, Teacher
from teachers.networks.normalisation import Normaliser
from teachers.trained import TrainedTeacher

INDEX = "index.json"
DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64}
"""Of the tensors in shards, by their names in safetensors."""
MOST_OPEN = 2048
"""Shards that a reader keeps open: opening one again costs a quarter of a millisecond."""


@dataclass(frozen=True)
class CachePlan:
    """What is sampled: `num_hypotheses` chunks for every frame, in shards of `shard_size` observations.

    frames: `[N]` indices into the demonstrations. seed: of all noise. batch_size: observations per network call, part of the
    plan because the last bits of a matrix product depend on its size.
    """

    frames: np.ndarray
    num_hypotheses: int
    num_steps: int
    shard_size: int
    batch_size: int
    seed: int

    @property
    def num_shards(self) -> int:
        return -(-len(self.frames) // self.shard_size)

    def shard_frames(self, shard: int) -> np.ndarray:
        return self.frames[shard * self.shard_size : (shard + 1) * self.shard_size]


def training_frames(
    episode_index_F: np.ndarray, count: int, replanning_share: float, execution_horizon: int, seed: int
) -> np.ndarray:
    """`[N]` sorted frames of the demonstrations to draw hypotheses for; N = count, or all frames if there are fewer.

    `replanning_share` of them are replanning frames: every `execution_horizon`-th frame of an episode from its first on. The
    hard decisions are there (above all at the start), and they are rare among all frames.
    """
    rng = np.random.default_rng([seed, 12])
    first_F = np.searchsorted(episode_index_F, episode_index_F, side="left")
    step_F = np.arange(len(episode_index_F)) - first_F
    replanning = rng.permutation(np.flatnonzero(step_F % execution_horizon == 0))[: round(count * replanning_share)]
    others = np.setdiff1d(np.arange(len(episode_index_F)), replanning)
    return np.sort(np.concatenate([replanning, rng.permutation(others)[: count - len(replanning)]]))


def hypothesis_seeds(seed: int, frames_N: np.ndarray, num_hypotheses: int) -> np.ndarray:
    """A seed per hypothesis, `[N, K]` int64 >= 0: splitmix64 of (seed, frame, k), so that all draws are independent.

    It does not depend on the shard, the batch or the number of processes.
    """
    mixed = np.full(1, seed, dtype=np.uint64)
    for part in (np.asarray(frames_N, dtype=np.uint64)[:, None], np.arange(num_hypotheses, dtype=np.uint64)[None]):
        mixed = mixed + part * np.uint64(0xD1342543DE82EF95) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    seeds_NK: np.ndarray = (mixed >> np.uint64(1)).astype(np.int64)
    return seeds_NK


def episode_seed(seed: int, what: str, number: int, attempt: int) -> int:
    """A seed >= 0 for one of many independent draws: `what` names the stream, `number` the draw, `attempt` the retry."""
    stream = int.from_bytes(hashlib.sha256(f"{what}:{attempt}".encode()).digest()[:6], "big")
    return int(hypothesis_seeds(seed ^ stream, np.array([number]), 1)[0, 0])


def noise_of(seeds_NK: np.ndarray, shape: Sequence[int]) -> Tensor:
    """The noise `[N, K, *shape]` of these seeds, always drawn on the CPU so that it does not depend on the device."""
    generator = torch.Generator()
    rows = [torch.randn(*shape, generator=generator.manual_seed(int(seed))) for seed in seeds_NK.reshape(-1)]
    return torch.stack(rows).view(*seeds_NK.shape, *shape)


def draw_hypotheses(
    teacher: Teacher, observation: Observation, seeds_NK: np.ndarray, num_steps: int, device: torch.device
) -> Tensor:
    """Raw chunks `[N, K, T, A]` for one batch of observations.

    A trained teacher gets the noise of each hypothesis' seed, a seeded adapter the seeds themselves. Any other teacher is
    sampled one observation at a time, with a generator seeded by the first seed, so that its draws depend on nothing else.
    A batch that does not fit into the memory of `device` is drawn in halves, which may change the last bits.
    """
    try:
        return _draw(teacher, observation, seeds_NK, num_steps, device)
    except torch.OutOfMemoryError:
        if len(seeds_NK) == 1:
            raise
    log_halved()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    middle = len(seeds_NK) // 2
    return torch.cat([
        draw_hypotheses(teacher, {name: value[rows] for name, value in observation.items()}, seeds_NK[rows], num_steps, device)
        for rows in (slice(0, middle), slice(middle, None))
    ])  # fmt: skip


@functools.cache
def log_halved() -> None:
    """Log once per process that batches are halved."""
    logging.getLogger(__name__).warning("a batch of hypotheses exceeds the memory, drawing halves; lower --sample.batch-size")


def _draw(
    teacher: Teacher, observation: Observation, seeds_NK: np.ndarray, num_steps: int, device: torch.device
) -> Tensor:
    if isinstance(teacher, TrainedTeacher):
        noise = noise_of(seeds_NK, teacher.noise_shape(num_steps)).to(device)
        return teacher.sample_from_noise({name: value.to(device) for name, value in observation.items()}, noise, num_steps)
    if isinstance(teacher, SeededTeacher):
        return teacher.sample_from_seeds(observation, seeds_NK, num_steps).float().to(device)
    drawn = []
    for row, seeds_K in enumerate(seeds_NK):
        one = {name: value[row : row + 1].to(device) for name, value in observation.items()}
        generator = torch.Generator(device).manual_seed(int(seeds_K[0]))
        drawn.append(teacher.sample(one, len(seeds_K), num_steps, generator).float())
    return torch.cat(drawn)


def stores_features(teacher: Teacher) -> TypeGuard[TrainedTeacher]:
    """Whether the teacher's encoder features are stored too: not for a plain state, whose encoder costs nothing."""
    return isinstance(teacher, TrainedTeacher) and teacher.shape.encoder is not None


@torch.no_grad()
def encoded(teacher: TrainedTeacher, observation: Observation, device: torch.device) -> Observation:
    """``{"features": [B, F]}`` on `device`, which can replace the observation from then on."""
    return {FEATURES: teacher.features({name: value.to(device) for name, value in observation.items()})}


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.safetensors"


def write_shards(
    folder: Path,
    teacher: Teacher,
    normaliser: Normaliser,
    plan: CachePlan,
    observe: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    shards: Sequence[int],
    device: torch.device,
    progress: Callable[[int], object] = lambda shard: None,
) -> None:
    """Draw and write the given shards into `folder`, skipping those that are already complete.

    observe: frames `[n]` to raw observations, `[n, O, ..]`, always with the state. normaliser: on `device`. progress: called
    with each shard that is on disk.
    Chunks are stored normalised in float16 (three digits of half the range: 0.1 mm to 1 mm). Of the observation, the state is
    stored and, for a teacher with an encoder, its features `[n, F]`, so that an observation is encoded once for all its chunks
    and for the students. A shard's bytes depend only on the plan and the teacher; it is written while the next one is drawn.
    Raises ValueError for chunks with NaN or infinity.
    """
    with ThreadPoolExecutor(1) as writer:
        writing: list[tuple[int, Future[None]]] = []

        def written() -> None:
            while writing:
                done, future = writing.pop()
                future.result()
                progress(done)

        for shard in shards:
            path = folder / shard_name(shard)
            if _is_complete(path):
                written()
                progress(shard)
                continue
            tensors = _draw_shard(shard, teacher, normaliser, plan, observe, device)
            written()  # one shard at most waits in memory
            writing.append((shard, writer.submit(_write_shard, path, tensors)))
        written()


def _is_complete(path: Path) -> bool:
    digest = path.with_suffix(".sha256")
    return path.is_file() and digest.is_file() and digest.read_text() == _digest(path)


def _write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    write_bytes(path, save(tensors))
    write_bytes(path.with_suffix(".sha256"), _digest(path).encode())


def _digest(path: Path) -> str:
    """Of a shard and of the folder that it is drawn for, whose name holds the stage's key: another run's shard does not fit."""
    return f"{sha256_file(path)} {path.parent.name}\n"


def _draw_shard(
    shard: int, teacher: Teacher, normaliser: Normaliser, plan: CachePlan,
    observe: Callable[[np.ndarray], Mapping[str, np.ndarray]], device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    frames = plan.shard_frames(shard)
    seeds_NK = hypothesis_seeds(plan.seed, frames, plan.num_hypotheses)
    states, chunks, features = [], [], []
    for start in range(0, len(frames), plan.batch_size):
        part = slice(start, start + plan.batch_size)
        observation = {name: torch.from_numpy(seen).float() for name, seen in observe(frames[part]).items()}
        states.append(observation[STATE])
        if stores_features(teacher):
            observation = encoded(teacher, observation, device)
            features.append(observation[FEATURES].cpu())
        raw_BKTA = draw_hypotheses(teacher, observation, seeds_NK[part], plan.num_steps, device)
        chunks.append(normaliser.normalise_action(raw_BKTA).to("cpu", torch.float16))
    hypotheses = torch.cat(chunks)
    if not bool(torch.isfinite(hypotheses).all()):
        raise ValueError(f"the teacher drew NaN or infinity in shard {shard}; train it again before sampling")
    tensors = {
        STATE: torch.cat(states), "hypotheses": hypotheses, "seed": torch.from_numpy(seeds_NK),
        "frame_index": torch.from_numpy(np.asarray(frames, dtype=np.int64)),
    }  # fmt: skip
    return {**tensors, FEATURES: torch.cat(features)} if features else tensors


def write_index(folder: Path, plan: CachePlan, teacher: str, features_of: str = "") -> None:
    """Write the index next to the shards, once all of them exist. Raises ValueError when one is missing.

    teacher: description of what drew them. features_of: key of the teacher whose features they hold, "" without features.
    """
    missing = [shard_name(shard) for shard in range(plan.num_shards) if not (folder / shard_name(shard)).is_file()]
    if missing:
        raise ValueError(f"{folder}: shards {missing[:5]} are missing; run the sample stage again")
    write_json(folder / INDEX, {
        "observations": len(plan.frames), "num_hypotheses": plan.num_hypotheses, "num_steps": plan.num_steps,
        "shard_size": plan.shard_size, "seed": plan.seed, "teacher": teacher, "normalised": True,
        **({"features_of": features_of} if features_of else {}),
    })  # fmt: skip


def mapped(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a safetensors file as views of a private memory map, of which only what is used is read.

    `safe_open` checks the header, that is, that every tensor lies in the file. Its own tensors read the file to its end.
    Raises SafetensorError, OSError, and KeyError for a tensor that is missing.
    """
    with safe_open(str(path), framework="np") as file:
        missing = sorted(set(names) - set(file.keys()))
    if missing:
        raise KeyError(f"it lacks {missing}")
    with path.open("rb") as opened:
        begin = 8 + int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(begin - 8))
        whole = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    found = {}
    for name in names:
        told = header[name]
        if told["dtype"] not in DTYPES:
            raise KeyError(f"{name} is of {told['dtype']}, expected one of {sorted(DTYPES)}")
        array = np.ndarray(told["shape"], DTYPES[told["dtype"]], whole, begin + told["data_offsets"][0])
        found[name] = torch.from_numpy(array)
    return found


class HypothesisDataset(Dataset[dict[str, Tensor]]):
    """Reads rows of a cache folder through memory maps, never all of it.

    An item is ``{"observation.state": [O, S], "hypotheses": [K, T, A], "seed": [K]}``: float32, chunks normalised, int64
    seeds; with the teacher's ``features`` `[F]` if `features_of` is given, and ``frame_index``, the frame of the
    demonstrations, if `frames` is set. `distill.store.manifest.verify` checks the files when the stage is opened.
    """

    def __init__(self, folder: Path, features_of: str = "", frames: bool = False) -> None:
        """features_of: key of the teacher whose features are needed. Raises ValueError when the cache does not hold them."""
        path = folder / INDEX
        if not path.is_file():
            raise ValueError(f"no hypothesis cache at {folder} ({INDEX} is missing); run the sample stage")
        try:
            self.index = json.loads(path.read_text())
            self.shard_size, self._length = int(self.index["shard_size"]), int(self.index["observations"])
            if not (0 < self.shard_size < 1 << 31 and 0 <= self._length < 1 << 48):
                raise ValueError(f"{self._length} observations in shards of {self.shard_size}")
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path} is not what the sample stage writes ({type(error).__name__}: {error!s:.200}); delete "
                             f"{folder} to draw again") from error  # fmt: skip
        if features_of and self.index.get("features_of") != features_of:
            raise ValueError(
                f"{folder} holds features of the teacher {self.index.get('features_of')}, expected those of {features_of}: "
                f"delete {folder} to recompute them"
            )
        self._names = (STATE, "hypotheses", "seed", *((FEATURES,) if features_of else ()),
                       *(("frame_index",) if frames else ()))  # fmt: skip
        self.folder = folder
        self._open: OrderedDict[int, dict[str, Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.batch([row]).items()}

    def batch(self, rows: Sequence[int] | Tensor, names: Collection[str] = ()) -> dict[str, Tensor]:
        """Many rows at once, `[B, ...]` each: faster than reading and stacking single rows. names: of the tensors, (): all.

        Raises ValueError for a shard that is missing, damaged or of another size.
        """
        row_B = torch.as_tensor(rows)
        shard_B, offset_B = row_B // self.shard_size, row_B % self.shard_size
        found: dict[str, Tensor] = {}
        for shard in shard_B.unique().tolist():
            here_B = shard_B == shard
            for name, value in self._shard(shard).items():
                if names and name not in names:
                    continue
                if name not in found:
                    kind = torch.int64 if name in ("seed", "frame_index") else torch.float32
                    found[name] = torch.empty(len(row_B), *value.shape[1:], dtype=kind)
                found[name][here_B] = value[offset_B[here_B]].to(found[name].dtype)
        return found

    def _shard(self, shard: int) -> dict[str, Tensor]:
        """The tensors of a shard: views of a memory map, read from disk on access. The last `MOST_OPEN` stay open."""
        if shard not in self._open:
            path = self.folder / shard_name(shard)
            rows = min(self.shard_size, self._length - shard * self.shard_size)
            try:
                tensors = mapped(path, self._names)
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); delete {self.folder} to draw "
                                 "again") from error  # fmt: skip
            wrong = [name for name, value in tensors.items() if not value.ndim or len(value) != rows]
            if wrong:
                raise ValueError(f"{path} holds {wrong} of another number of observations than {rows}; delete {self.folder} to "
                                 "draw again")  # fmt: skip
            self._open[shard] = tensors
            if len(self._open) > MOST_OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]
