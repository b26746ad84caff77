"""Stages on disk: whole or not at all, verified by name, put aside and brought back, a stranger's left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from distill.store import manifest as stages
from distill.store.manifest import (
    MANIFEST,
    commit,
    discard,
    finished,
    make_key,
    partial_folder,
    read_manifest,
    sha256_file,
    verify,
    write_bytes,
    write_json,
)

MADE_FROM = {"seed": 0, "sample": {"num_hypotheses": 32, "sizes": [1, 2]}, "teacher": "abc"}
KEY, OTHER = make_key(MADE_FROM), make_key({**MADE_FROM, "seed": 1})


def _make(folder: Path, key: str = KEY, text: str = "one") -> None:
    """A finished stage of two files, one of them in a sub-folder."""
    partial = partial_folder(folder, key)
    (partial / "inner").mkdir(parents=True)
    (partial / "a.txt").write_text(text)
    (partial / "inner" / "b.txt").write_text("two")
    commit(folder, key, MADE_FROM, 1.25)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".hashed.json")}


# -- keys ----------------------------------------------------------------------------------------------------------


def test_the_key_is_a_function_of_the_inputs_not_of_their_order() -> None:
    assert make_key(dict(reversed(MADE_FROM.items()))) == KEY
    assert make_key({**MADE_FROM, "sample": {"sizes": (1, 2), "num_hypotheses": 32}}) == KEY


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"seed": 0.5}, {"seed": "0"}, {"teacher": "abd"}, {"teacher": None}, {"more": 0},
     {"sample": {"num_hypotheses": 33, "sizes": [1, 2]}}, {"sample": {"num_hypotheses": 32, "sizes": [2, 1]}}],
)  # fmt: skip
def test_the_key_changes_with_any_input(change: dict) -> None:
    assert make_key({**MADE_FROM, **change}) != KEY


# -- whole or not at all -------------------------------------------------------------------------------------------


def test_a_finished_stage_says_what_it_holds_and_what_it_was_made_from(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    assert not finished(folder, KEY)
    _make(folder)
    assert finished(folder, KEY) and _names(tmp_path) == {"sample"}
    manifest = verify(folder)
    assert manifest["files"] == {name: sha256_file(folder / name) for name in ("a.txt", "inner/b.txt")}
    assert (manifest["key"], manifest["made_from"], manifest["seconds"]) == (KEY, MADE_FROM, 1.25)
    assert manifest["packages"]["torch"] != "missing" and manifest["schema_version"] == stages.SCHEMA_VERSION


@pytest.mark.parametrize("moment", ["before the manifest", "before the last rename"])
def test_a_crash_in_commit_leaves_the_partial_folder_and_no_finished_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = tmp_path / "sample"
    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):

        def power_cut(*_: object) -> None:
            raise OSError("power cut")

        patch.setattr(stages.os if moment == "before the last rename" else stages, *{
            "before the manifest": ("write_json", power_cut), "before the last rename": ("rename", power_cut),
        }[moment])  # fmt: skip
        _make(folder)
    assert not folder.exists() and not finished(folder, KEY)
    assert {"a.txt", "inner"} <= _names(partial_folder(folder, KEY))
    commit(folder, KEY, MADE_FROM, 1.0)  # the next go only has to finish
    assert finished(folder, KEY) and set(verify(folder)["files"]) == {"a.txt", "inner/b.txt"}


def test_a_crash_while_the_old_result_is_put_aside_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sample"
    _make(folder, OTHER, "old")
    real, count = os.rename, []

    def second_fails(source: object, target: object) -> None:
        count.append(source)
        if len(count) == 2:
            raise OSError("power cut")
        real(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(stages.os, "rename", second_fails)
        _make(folder, KEY, "new")
    assert not folder.exists()
    assert finished(folder, OTHER) and (folder / "a.txt").read_text() == "old"
    commit(folder, KEY, MADE_FROM, 1.0)
    assert (folder / "a.txt").read_text() == "new" and finished(folder, KEY)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard"
    write_bytes(path, b"first")

    def power_cut(*_: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(stages.os, "replace", power_cut)
        write_bytes(path, b"second")
    assert path.read_bytes() == b"first"
    write_bytes(path, b"third")
    assert path.read_bytes() == b"third"


def test_what_a_killed_write_left_does_not_get_into_the_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sample"
    partial = partial_folder(folder, KEY)
    partial.mkdir()

    def power_cut(*_: object) -> None:
        raise OSError("power cut")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(stages.os, "replace", power_cut)
        patch.setattr(stages.os, "getpid", lambda: 4711)  # the next go is another process
        write_bytes(partial / "shard", b"whole")
    write_bytes(partial / "shard", b"whole")
    commit(folder, KEY, MADE_FROM, 1.0)
    assert _names(folder) == {"shard", MANIFEST} and set(verify(folder)["files"]) == {"shard"}


def test_json_is_strict(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not (tmp_path / "x.json").exists()
    write_json(tmp_path / "x.json", {"loss": 0.1})
    assert json.loads((tmp_path / "x.json").read_text()) == {"loss": 0.1}


def test_discard_removes_what_an_unfinished_stage_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    _make(folder)
    for key in (KEY, OTHER):
        partial_folder(folder, key).mkdir()
    discard(folder, OTHER)
    assert _names(tmp_path) == {"sample", partial_folder(folder, KEY).name}


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "inner/b.txt"])
def test_a_flipped_byte_is_refused_with_the_files_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sample"
    _make(folder)
    data = bytearray((folder / name).read_bytes())
    data[1] ^= 0x10
    (folder / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{folder / name} was changed since it was written.*Delete {folder} to"):
        finished(folder, KEY)


@pytest.mark.parametrize("name", ["a.txt", "inner/b.txt"])
def test_a_missing_file_is_refused_with_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sample"
    _make(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{folder / name} is missing.*Delete {folder} to"):
        finished(folder, KEY)


@pytest.mark.parametrize("text", ["{", "[]", '{"key": "x"}', "\xff"])
def test_a_broken_manifest_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "sample"
    _make(folder)
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=f"{MANIFEST} cannot be read"):
        verify(folder)


def test_a_folder_without_a_manifest_is_no_stage(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    assert read_manifest(tmp_path / "sample") is None
    with pytest.raises(ValueError, match="holds no finished stage"):
        verify(tmp_path / "sample")


def test_a_strangers_folder_is_not_written_over(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years")
    assert not finished(folder, KEY)
    with pytest.raises(ValueError, match=f"{folder} exists but is no finished stage of flow2one; move it away"):
        _make(folder)
    assert (folder / "thesis.tex").read_text() == "years" and (partial_folder(folder, KEY) / "a.txt").is_file()


# -- other settings, and back --------------------------------------------------------------------------------------


def test_a_changed_key_puts_the_old_result_aside_and_brings_it_back(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    _make(folder, KEY, "old")
    assert not finished(folder, OTHER)
    assert (folder / "a.txt").read_text() == "old"  # looking moves nothing
    _make(folder, OTHER, "new")
    assert finished(folder, OTHER) and (folder / "a.txt").read_text() == "new" and len(_names(tmp_path)) == 2
    stamp = [path.stat().st_mtime_ns for path in tmp_path.rglob("a.txt")]
    for key, text in ((KEY, "old"), (OTHER, "new"), (KEY, "old")):
        assert finished(folder, key) and (folder / "a.txt").read_text() == text
        assert len(_names(tmp_path)) == 2
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("a.txt")) == sorted(stamp)


def test_a_damaged_result_that_was_put_aside_is_refused_when_it_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    _make(folder, KEY, "old")
    _make(folder, OTHER, "new")
    aside = next(path for path in tmp_path.iterdir() if path.name.startswith("sample."))
    (aside / "a.txt").write_text("odd")
    with pytest.raises(ValueError, match=r"a\.txt was changed since it was written"):
        finished(folder, KEY)


def test_partial_folders_of_different_keys_do_not_meet(tmp_path: Path) -> None:
    assert partial_folder(tmp_path / "sample", KEY) != partial_folder(tmp_path / "sample", OTHER)
    assert partial_folder(tmp_path / "sample", KEY).parent == tmp_path
