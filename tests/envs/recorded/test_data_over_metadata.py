"""Rows are found by the columns in the data; what the metadata says otherwise is a note; what is cut off is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.recorded import open_recorded
from envs.recorded.observations import RecordedObservations
from envs.specs import STATE
from tests.envs.recorded.writers import Recording, as_hdf5, lerobot, walk

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
MADE = walk(4, 12, tasks=(0, 1, 0, 1), words=("lift it", "put it down"))
EVERY = np.concatenate(MADE.states)
FILE = "data/chunk-000/file-000.parquet"


def same(recorded: RecordedObservations, made: Recording = MADE) -> bool:
    every = np.concatenate(made.states)
    return np.array_equal(recorded.read(np.arange(len(every)), 1)[STATE][:, 0], every)


def change(path: Path, file: str, how: Callable[[Any], Any]) -> None:
    pq.write_table(how(pq.read_table(path / file)), path / file)


def column(name: str, values: Any) -> Callable[[Any], Any]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


def told(path: Path, **changes: Any) -> None:
    held = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps({**held, **changes}))


def other_files(path: Path) -> None:
    """All rows in one file, which has another name than the list of episodes says."""
    tables = [pq.read_table(file) for file in sorted((path / "data/chunk-000").glob("*.parquet"))]
    shutil.rmtree(path / "data/chunk-000")
    (path / "data/chunk-003").mkdir()
    pq.write_table(pa.concat_tables(tables), path / "data/chunk-003/file-017.parquet")


def shuffled(path: Path) -> None:
    order = np.random.default_rng(0).permutation(24)
    change(path, FILE, lambda table: table.take(order))


def backwards(path: Path) -> None:
    change(path, "meta/episodes/chunk-000/file-000.parquet", lambda table: table.take([3, 1, 2, 0]))


def no_list(path: Path) -> None:
    shutil.rmtree(path / "meta/episodes")


def stale_list(path: Path) -> None:
    change(path, "meta/episodes/chunk-000/file-000.parquet", lambda table: table.slice(0, 3))
    told(path, total_episodes=3, total_frames=36)


def shorter_lengths(path: Path) -> None:
    change(path, "meta/episodes/chunk-000/file-000.parquet", column("length", [12, 5, 12, 12]))


def wrong_begins(path: Path) -> None:
    change(path, "meta/episodes/chunk-000/file-000.parquet", column("dataset_from_index", [0, 0, 0, 0]))


@pytest.mark.parametrize(("mend", "said"), [
    (other_files, "says other data files"), (shuffled, ""), (backwards, ""), (no_list, "does not list episodes"),
    (stale_list, "does not list episodes [3]"), (shorter_lengths, "says fewer frames than there are for episodes [1]"),
    (wrong_begins, ""), (lambda path: told(path, total_frames=480), "meta/info.json says"),
    (lambda path: told(path, total_frames=7, total_episodes=1), "meta/info.json says"),
    (lambda path: told(path, splits={"train": "0:1"}), ""), (lambda path: (path / "meta/tasks.parquet").unlink(), ""),
])  # fmt: skip
def test_metadata_that_contradicts_the_data_is_worked_round_with_a_note(
    tmp_path: Path, mend: Callable[[Path], None], said: str
) -> None:
    path = lerobot(tmp_path / "set", MADE)
    mend(path)
    recorded = open_recorded(path)
    assert same(recorded) and recorded.episodes == (12, 12, 12, 12)
    assert any(said in line for line in recorded.notes) if said else not recorded.notes


def lose_rows(path: Path) -> None:
    change(path, FILE, lambda table: table.slice(0, 20))


def lose_a_file(path: Path) -> None:
    (path / "data/chunk-000/file-001.parquet").unlink()


def lose_all(path: Path) -> None:
    shutil.rmtree(path / "data")


@pytest.mark.parametrize(("cut", "message"), [
    (lose_rows, r"file-000.parquet: episode 1 has 8 rows, meta/episodes says 12; the data is cut off"),
    (lose_a_file, r"file-001.parquet: episodes \[2, 3\] have no row in any file; the data is cut off"),
    (lose_all, r"is missing, and .* has no other parquet file"),
    (lambda path: told(path, total_episodes=9), "says 9 episodes, the data has 4"),
    (lambda path: change(path, FILE, column("episode_index", [0] * 24)), "has frame_index 0 twice"),
    (lambda path: change(path, FILE, lambda table: table.drop_columns(["episode_index"])), "has no column episode_index"),
    (lambda path: change(path, FILE, lambda table: table.drop_columns([STATE])), f"has no column '{STATE}'"),
    (lambda path: change(path, FILE, column("timestamp", [np.nan] * 24)), "the time stamp of frame 0 is nan"),
    (lambda path: change(path, FILE, column(STATE, [[1.0], [1.0, 2.0, 3.0]] * 12)), "some rows have"),
    (lambda path: change(path, FILE, column(STATE, ["words"] * 24)), "it holds (large_)?string"),
])  # fmt: skip
def test_what_is_cut_off_or_no_numbers_is_refused(tmp_path: Path, cut: Callable[[Path], None], message: str) -> None:
    path = lerobot(tmp_path / "set", MADE)
    cut(path)
    with pytest.raises(ValueError, match=message) as caught:
        open_recorded(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_version_2_set_whose_files_were_copied_together_is_numbered_by_its_files(tmp_path: Path) -> None:
    path = lerobot(tmp_path / "set", MADE, "v2.1")
    for number in range(4):
        change(path, f"data/chunk-000/episode_{number:06d}.parquet", column("episode_index", [0] * 12))
    recorded = open_recorded(path)
    assert same(recorded) and any("numbers in the files' names are taken" in line for line in recorded.notes)


def test_episodes_may_be_numbered_as_they_like(tmp_path: Path) -> None:
    path = lerobot(tmp_path / "set", MADE, info={"total_episodes": 4})

    def renumbered(table: Any) -> Any:
        return column("episode_index", [7 + 3 * each for each in table["episode_index"].to_pylist()])(table)

    for file in (FILE, "data/chunk-000/file-001.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        change(path, file, renumbered)
    assert same(open_recorded(path))


@pytest.mark.parametrize(("kind", "cells"), [
    ("list", lambda values: pa.array(values.tolist())),
    ("fixed", lambda values: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])),
    ("float64", lambda values: pa.array(values.astype(np.float64).tolist())),
    ("struct", lambda values: pa.StructArray.from_arrays([pa.array(each) for each in values.T], names=["a", "b"])),
    ("large list", lambda values: pa.array(values.tolist(), pa.large_list(pa.float32()))),
])  # fmt: skip
def test_numbers_may_lie_in_any_kind_of_column(tmp_path: Path, kind: str, cells: Callable[[np.ndarray], Any]) -> None:
    path = lerobot(tmp_path / "set", MADE)
    for number in range(2):
        values = np.concatenate(MADE.states[2 * number : 2 * number + 2])

        def replaced(table: Any, values: np.ndarray = values) -> Any:
            return table.set_column(table.column_names.index(STATE), STATE, cells(values))

        change(path, f"data/chunk-000/file-{number:03d}.parquet", replaced)
    assert same(open_recorded(path))


def test_num_samples_that_is_too_small_is_a_note(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    path = as_hdf5(tmp_path / "set.hdf5", MADE)
    with h5py.File(path, "r+") as file:
        file["data/demo_1"].attrs["num_samples"] = 3
    recorded = open_recorded(path)
    assert recorded.episodes == (12, 12, 12, 12) and any("fewer frames than ['demo_1'] have" in line for line in recorded.notes)
