"""LeRobot data sets, v2.1 and v3.0, with videos: what was written is read, and what is malformed is refused in one line."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from envs.recorded import open_recorded
from envs.specs import IMAGES, STATE

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'flow2one[lerobot-data]'")
av = pytest.importorskip("av", reason="av is not installed: pip install 'flow2one[lerobot-data]'")
pq = pytest.importorskip("pyarrow.parquet")

RNG = np.random.default_rng(0)
FPS, SIZE, LENGTHS = 10, (32, 48), (25, 8, 40)
FRONT, WRIST = f"{IMAGES}.front", f"{IMAGES}.wrist"
STATES = [RNG.normal(size=(length, 3)).astype(np.float32) for length in LENGTHS]
ACTIONS = [RNG.normal(size=(length, 2)).astype(np.float32) for length in LENGTHS]
FEATURES: dict[str, dict[str, Any]] = {
    STATE: {"dtype": "float32", "shape": [3], "names": {"motors": ["a", "b", "c"]}},
    "action": {"dtype": "float32", "shape": [2], "names": ["x", "y"]},
    FRONT: {"dtype": "video", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]},
    WRIST: {"dtype": "image", "shape": [*SIZE, 3], "names": ["height", "width", "channels"]},
    **{f"{name}index": {"dtype": "int64", "shape": [1], "names": None} for name in ("frame_", "episode_", "", "task_")},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
}


def brightness(episode: int, step: int) -> int:
    """Of the whole image of a frame: no two frames of an episode that are near each other are alike."""
    return 20 + (episode * 71 + step * 23) % 200


def video(path: Path, values: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "8", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        stream.time_base = Fraction(1, FPS)
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((*SIZE, 3), value, np.uint8), format="rgb24")))
        container.mux(stream.encode())


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((*SIZE, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def table(episode: int) -> Any:
    steps = np.arange(LENGTHS[episode])
    return pa.table({
        STATE: pa.FixedSizeListArray.from_arrays(pa.array(STATES[episode].reshape(-1)), 3),
        "action": ACTIONS[episode].tolist(), "timestamp": (steps / FPS).astype(np.float32), "frame_index": steps,
        "episode_index": np.full(len(steps), episode), "index": steps, "task_index": np.full(len(steps), episode % 2),
        WRIST: [{"bytes": png(brightness(episode, step)), "path": None} for step in steps.tolist()],
    })  # fmt: skip


def info(version: str, **more: Any) -> dict[str, Any]:
    return {"codebase_version": version, "fps": FPS, "features": FEATURES, "total_episodes": len(LENGTHS),
            "total_frames": sum(LENGTHS), "chunks_size": 1000, **more}  # fmt: skip


def write_v2(path: Path) -> None:
    patterns = {"data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
                "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"}  # fmt: skip
    for folder in ("meta", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info("v2.1", **patterns)))
    lines = [json.dumps({"episode_index": each, "tasks": ["t"], "length": length}) for each, length in enumerate(LENGTHS)]
    (path / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    tasks = [json.dumps({"task_index": each, "task": text}) for each, text in enumerate(("lift it", "put it down"))]
    (path / "meta/tasks.jsonl").write_text("\n".join(tasks))
    for episode, length in enumerate(LENGTHS):
        pq.write_table(table(episode), path / f"data/chunk-000/episode_{episode:06d}.parquet")
        frames = [brightness(episode, step) for step in range(length)]
        video(path / f"videos/chunk-000/{FRONT}/episode_{episode:06d}.mp4", frames)


def write_v3(path: Path) -> None:
    """Episodes 0 and 1 in one file, 2 in another, for the parquet files and the videos."""
    patterns = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
                "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"}  # fmt: skip
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (path / folder).mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info("v3.0", **patterns)))
    files, begins = (0, 0, 1), (0.0, LENGTHS[0] / FPS, 0.0)
    rows = [
        {"episode_index": each, "length": length, "data/chunk_index": 0, "data/file_index": files[each],
         f"videos/{FRONT}/chunk_index": 0, f"videos/{FRONT}/file_index": files[each],
         f"videos/{FRONT}/from_timestamp": begins[each], f"videos/{FRONT}/to_timestamp": begins[each] + length / FPS}
        for each, length in enumerate(LENGTHS)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), path / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": [0, 1], "__index_level_0__": ["lift it", "put it down"]})
    pq.write_table(tasks, path / "meta/tasks.parquet")
    for number, episodes in enumerate(((0, 1), (2,))):
        joined = pa.concat_tables([table(episode) for episode in episodes])
        pq.write_table(joined, path / f"data/chunk-000/file-{number:03d}.parquet", row_group_size=7)
        values = [brightness(episode, step) for episode in episodes for step in range(LENGTHS[episode])]
        video(path / f"videos/{FRONT}/chunk-000/file-{number:03d}.mp4", values)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    write_v2(folder / "v2")
    write_v3(folder / "v3")
    return {"v2": folder / "v2", "v3": folder / "v3"}


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_a_data_set_is_read_frame_for_frame(sets: dict[str, Path], version: str) -> None:
    recorded = open_recorded(sets[version])
    assert recorded.features == {STATE: (3,), FRONT: (3, *SIZE), WRIST: (3, *SIZE)}
    assert (recorded.episodes, recorded.action_size, recorded.dt_s) == (LENGTHS, 2, 0.1)
    assert (recorded.state_names, recorded.action_names) == (("a", "b", "c"), ("x", "y"))
    where = [(0, 0), (0, 24), (1, 0), (1, 7), (2, 39), (2, 3), (2, 20)]  # also back in the video, and far ahead
    firsts = np.cumsum([0, *LENGTHS])
    frames = np.array([firsts[episode] + step for episode, step in where])
    seen = recorded.read(frames, 2)
    for row, (episode, step) in enumerate(where):
        for number, at in enumerate((max(step - 1, 0), step)):
            value = brightness(episode, at) / 255
            np.testing.assert_array_equal(seen[STATE][row, number], STATES[episode][at])
            np.testing.assert_allclose(seen[FRONT][row, number], value, atol=4 / 255)  # the codec loses a little
            np.testing.assert_allclose(seen[WRIST][row, number], value, atol=1e-6)
    np.testing.assert_array_equal(recorded.actions([24, 33], 3), [ACTIONS[0][[24] * 3], ACTIONS[2][:3]])
    assert recorded.instructions([72, 24, 25]) == ["lift it", "lift it", "put it down"]
    assert recorded.fingerprint() == open_recorded(sets[version]).fingerprint()


def test_reading_forwards_and_in_any_order_agree(sets: dict[str, Path]) -> None:
    forwards, jumping = open_recorded(sets["v3"]), open_recorded(sets["v3"])
    in_order = np.stack([forwards.read([frame], 1)[FRONT][0, 0] for frame in range(len(forwards))])
    for frame in np.random.default_rng(1).permutation(len(jumping)).tolist():
        np.testing.assert_array_equal(jumping.read([frame], 1)[FRONT][0, 0], in_order[frame])


def test_names_leave_out_and_rename(sets: dict[str, Path]) -> None:
    recorded = open_recorded(sets["v3"], {WRIST: "", FRONT: f"{IMAGES}.top"})
    assert set(recorded.features) == {STATE, f"{IMAGES}.top"}


# -- what is malformed -------------------------------------------------------------------------------------------------


def change_info(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        held = json.loads((path / "meta/info.json").read_text())
        (path / "meta/info.json").write_text(json.dumps({**held, **changes}))

    return change


def shorter_video(path: Path) -> None:
    video(path / f"videos/{FRONT}/chunk-000/file-001.mp4", [50] * 30)


def cut_video(path: Path) -> None:
    file = path / f"videos/{FRONT}/chunk-000/file-001.mp4"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def fewer_rows(path: Path) -> None:
    pq.write_table(table(2).slice(0, 30), path / "data/chunk-000/file-001.parquet")


def other_episode(path: Path) -> None:
    pq.write_table(pa.concat_tables([table(2)]), path / "data/chunk-000/file-000.parquet")


def cut_parquet(path: Path) -> None:
    file = path / "data/chunk-000/file-000.parquet"
    file.write_bytes(file.read_bytes()[:-300])


def wider_action(path: Path) -> None:
    change_info(features={**FEATURES, "action": {"dtype": "float32", "shape": [7], "names": None}})(path)


def smaller_images(path: Path) -> None:
    change_info(features={**FEATURES, WRIST: {"dtype": "image", "shape": [16, 16, 3], "names": None}})(path)


def unlisted(path: Path) -> None:
    (path / "meta/episodes/chunk-000/file-000.parquet").write_bytes(b"PAR1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter_video, r"file-001.mp4: the video ends early, at 2.900 s with 30 frames; episode 2 needs one at 3.900 s"),
        (cut_video, r"file-001.mp4: cannot be opened as a video, it is missing or cut off"),
        (fewer_rows, r"file-001.parquet: episode 2 has 30 rows, meta/episodes says 40; the data is cut off"),
        (other_episode, r"episode 2 has frame_index 0 twice; two recordings were joined under one number"),
        (cut_parquet, r"file-000.parquet: cannot be read as parquet"),
        (wider_action, r"file-000.parquet: action is \(2,\) in each row, meta/info.json says \(7,\)"),
        (smaller_images, r"images of observation.images.wrist are \(32, 48, 3\), meta/info.json says \(16, 16, 3\)"),
        (unlisted, r"meta/episodes/chunk-000/file-000.parquet: cannot be read as a list of episodes"),
        (change_info(total_episodes=4), r"meta/info.json says 4 episodes, the data has 3; the data was not written or copied "
                                        r"whole"),
        (change_info(codebase_version="v1.6"), r"codebase_version is 'v1.6', expected one of"),
        (change_info(data_path="../{chunk_index}.parquet"), r"names a file outside of the data set"),
        (change_info(data_path="{episode}.parquet"), r"which does not fit"),
    ],
)
def test_what_is_malformed_is_refused_in_one_line(
    sets: dict[str, Path], tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "changed"
    shutil.copytree(sets["v3"], path)
    change(path)
    with pytest.raises(ValueError, match=message) as caught:
        open_recorded(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_video_whose_end_is_damaged_is_refused_when_it_is_opened(sets: dict[str, Path], tmp_path: Path) -> None:
    """Its header still promises all frames."""
    shutil.copytree(sets["v2"], tmp_path / "cut")
    file = tmp_path / f"cut/videos/chunk-000/{FRONT}/episode_000002.mp4"
    with av.open(str(file)) as whole, av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as moved:
        stream = moved.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(whole.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                moved.mux(packet)
    held = (tmp_path / "front.mp4").read_bytes()
    file.write_bytes(held[: -len(held) // 5])
    with pytest.raises(ValueError, match=r"episode_000002.mp4: (the video ends|cannot be)"):
        open_recorded(tmp_path / "cut")
    assert open_recorded(tmp_path / "cut", features=[STATE]).features == {STATE: (3,)}
