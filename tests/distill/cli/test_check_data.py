"""`check-data`: what it prints, the page that it writes, and one line for what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from envs.specs import STATE
from tests.envs.recorded.writers import as_hdf5, as_zarr, lerobot, walk

pytest.importorskip("zarr")
pytest.importorskip("h5py")
pytest.importorskip("pyarrow")
Main = Callable[[Sequence[str]], int]


def test_it_says_what_a_recording_is_and_shows_one_frame(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    made = walk(12, 10, images=tuple(rng.integers(0, 256, (10, 16, 20, 3)).astype(np.uint8) for _ in range(12)),
                depth=tuple(rng.integers(300, 3000, (10, 16, 20)).astype(np.uint16) for _ in range(12)))  # fmt: skip
    made.states[2][4, 1] = 4e4
    paths = as_zarr(tmp_path / "a", made), as_hdf5(tmp_path / "b.hdf5", made), lerobot(tmp_path / "c", made)
    for number, path in enumerate(paths):
        page = tmp_path / f"page{number}.html"
        assert main(["check-data", str(path), "--out", str(page), "--dt-s", "0.2"]) == 0
        said = capsys.readouterr().out
        for words in ("120 frames in 12 episodes, 5 Hz", "observation.images.front [3, 16, 20]", "is 40000 in frame 24",
                      "split spread", "one of 2 frames is in a window", "(frame "):  # fmt: skip
            assert words in said, words
        text = page.read_text()
        assert text.count("data:image/png;base64,") == (1 if number == 2 else 2)
        assert "http" not in text.replace("http-equiv", "")
        told = json.loads(page.with_suffix(".json").read_text())
        assert told["outliers"][0]["first"] == 24 and told["frame"]["values"][STATE]


@pytest.mark.parametrize(("arguments", "message"), [
    (["nowhere"], "nowhere: there is nothing"), (["set", "--names", "img"], "names: got ['img'], expected key=feature"),
    (["set", "--out", "page.pdf"], "out: got page.pdf, expected an HTML file"),
    (["set", "--features", "observation.images.x"], "was not recorded"),
    (["set", "--dt-s", "0.15"], "expected a whole number of frames"),
    (["set", "--leave-out", "77"], "leave_out: got episodes [77]"),
])  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    as_zarr(tmp_path / "set", walk(4, 10))
    assert main(["check-data", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_help_is_there(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--help"]) == 0
    assert "--names" in capsys.readouterr().out
