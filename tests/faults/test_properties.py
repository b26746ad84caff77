"""Properties of the readers, over what hypothesis makes up: what was written comes back, anything else is a clear error."""

from __future__ import annotations

import io
import json
import os
import pickletools
import struct
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.cli.lerobot_card import front_matter
from distill.config import Config
from distill.presets import apply_preset
from distill.runtime.diagnostics import without_paths
from distill.store.manifest import read_manifest
from envs.gym.mapping import read_mapping
from envs.process.wire import DTYPES, HEADER_LIMIT, MAGIC, WireError, receive, send
from envs.recorded import open_recorded
from envs.recorded.formats.lerobot_meta import place
from envs.rlbench.plain_pickle import read
from flow2one_runtime.exported import read_exported
from teachers import load_teacher
from teachers.trained import TrainedTeacher
from tests.envs.recorded.writers import as_hdf5, as_zarr, lerobot, walk

few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12
)
codes = [each.code.encode("latin1") for each in pickletools.opcodes]


@few
@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=4), st.integers(0, 2**32))
def test_an_array_comes_back(dtype: str, shape: list[int], seed: int) -> None:
    data = np.random.default_rng(seed).bytes(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    array = np.frombuffer(data, dtype).reshape(shape)
    stream = io.BytesIO()
    send(stream, {"seed": seed}, {"x": array})
    message, arrays = receive(io.BytesIO(stream.getvalue()))
    assert message == {"seed": seed} and arrays["x"].dtype == array.dtype and arrays["x"].shape == array.shape
    assert arrays["x"].tobytes() == array.tobytes()


@few
@given(values, st.binary(max_size=40), st.integers(0, 2**64 - 1))
def test_any_message_is_read_or_refused(header: object, body: bytes, told: int) -> None:
    text = json.dumps(header).encode()
    for lengths in ((len(text), len(body)), (told % 2**32, told)):
        try:
            receive(io.BytesIO(MAGIC + struct.pack(">IQ", *lengths) + text + body))
        except WireError:
            continue


@pytest.mark.parametrize("shape", [[1] * 200, [0, 2**63], [0, -1], [10**30, 0]])
def test_a_shape_that_no_array_has_is_refused(shape: list[int]) -> None:
    text = json.dumps({"message": {}, "arrays": [["x", "|u1", shape]]}).encode()
    with pytest.raises(WireError):
        receive(io.BytesIO(MAGIC + struct.pack(">IQ", len(text), int(np.prod([float(each) for each in shape]))) + text + b"x"))


def test_the_length_of_a_header_is_bounded_before_it_is_read() -> None:
    with pytest.raises(WireError, match="over the limit"):
        receive(io.BytesIO(MAGIC + struct.pack(">IQ", HEADER_LIMIT + 1, 0)))


@few
@given(values)
def test_any_preset_is_read_or_refused_in_one_line(tmp_path: Path, value: object) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    try:
        apply_preset(Config(), path)
    except ValueError as error:
        assert str(path) in str(error) or "extends" in str(error) or "no config at" in str(error)


def test_aliases_that_stand_for_gigabytes_are_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    for reader in (lambda path: apply_preset(Config(), path), read_mapping):
        with pytest.raises(ValueError, match="aliases"):
            reader(tmp_path / "bomb.yaml")


@pytest.mark.parametrize("text", ["[" * 3000, "{a: " * 3000, "- " * 3000 + "x", "a: 1\n" * 300_000])
def test_yaml_that_takes_minutes_or_gigabytes_is_refused_at_once(tmp_path: Path, text: str) -> None:
    """The time of PyYAML grows with the square of the depth, and its nodes are hundreds of times as large as the text."""
    (tmp_path / "large.yaml").write_text(text)
    (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
    began = time.process_time()
    for reader in (lambda path: apply_preset(Config(), path), read_mapping):
        with pytest.raises(ValueError, match=r"large.yaml.*(nested deeper than 32|characters, expected)"):
            reader(tmp_path / "large.yaml")
    assert front_matter(tmp_path / "README.md") == {}
    assert time.process_time() - began < 5


@few
@given(values)
def test_any_manifest_is_read_or_refused(tmp_path: Path, value: object) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(value))
    try:
        manifest = read_manifest(tmp_path)
    except ValueError as error:
        assert "cannot be read" in str(error) and "\n" not in str(error)
    else:
        assert manifest is not None and isinstance(manifest["key"], str)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/file", "a/../../b"])
def test_a_manifest_names_no_file_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"key": "k", "files": {name: "0"}}))
    with pytest.raises(ValueError, match="names files outside of its folder"):
        read_manifest(tmp_path)


@few
@given(st.binary(max_size=200), st.lists(st.sampled_from(codes), max_size=30))
def test_any_pickle_is_read_or_refused(data: bytes, chosen: list[bytes]) -> None:
    for each in (data, b"".join(chosen) + b".", b"\x80\x04" + b"".join(chosen) + data):
        try:
            read(each)
        except ValueError as error:
            assert "\n" not in str(error)


def test_a_name_in_a_pickle_does_not_break_the_line() -> None:
    with pytest.raises(ValueError, match="names 'os.sys") as refused:
        read(b"\x80\x04\x8c\x02os\x8c\x07sys\ntem\x93.")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "below\n.yaml", None])
def test_a_preset_extends_what_no_path_can_be(tmp_path: Path, name: str | None) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"extends": [name]}))
    with pytest.raises(ValueError, match=r"no config at|expected the name") as refused:
        apply_preset(Config(), tmp_path / "mine.yaml")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 2000


def test_shared_lists_that_stand_for_billions_cost_nothing() -> None:
    levels = b"".join(b"](h" + bytes([n]) + b"h" + bytes([n]) + b"e" + b"q" + bytes([n + 1]) for n in range(60))
    began = time.monotonic()
    read(b"]q\x00" + levels + b".")
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("name", "link"),
    [("../student.onnx", ""), ("/etc/passwd", ""), ("student.onnx", "/etc/passwd"), ("..", ""), ("", ""), ("nul\0", ""),
     ("x" * 5000, "")],
)
def test_an_export_names_no_file_outside_of_its_folder(tmp_path: Path, name: str, link: str) -> None:
    from tests.faults.readers import _exported

    folder = tmp_path / "exported"
    _exported(folder)
    told = json.loads((folder / "export.json").read_text())
    told["formats"]["onnx"]["file"] = name
    (folder / "export.json").write_text(json.dumps(told))
    (tmp_path / "student.onnx").write_text("outside")
    if link:
        (folder / name).unlink()
        (folder / name).symlink_to(link)
    with pytest.raises(ValueError, match=r"outside of the folder|file name"):
        read_exported(folder)


@pytest.mark.parametrize("pattern", ["{episode_index:>999999999}", "{episode_index.real}", "{episode_index!r}", "{0}", "{"])
def test_a_data_set_names_its_files_by_numbers_alone(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        place(tmp_path, pattern, {"episode_index": 3})
    assert place(tmp_path, "data/chunk-{episode_index:03d}.parquet", {"episode_index": 3}).name == "chunk-003.parquet"


@pytest.mark.parametrize("circle", [True, False])
def test_hdf5_groups_with_billions_of_ways_through_them_cost_nothing(tmp_path: Path, circle: bool) -> None:
    made = as_hdf5(tmp_path / "data.hdf5", walk(3, 8))
    with h5py.File(made, "a") as file:
        group = file["data/demo_0/obs"]
        for _ in range(1 if circle else 40):
            group["a"] = group["b"] = group if circle else group.create_group(None)
            group = group["a"]
    began = time.process_time()
    with pytest.raises(ValueError, match="is linked twice"):
        open_recorded(made)
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", [".zattrs", "data/state/.zattrs", "data/state/0.0"])
def test_a_pipe_in_a_zarr_group_is_not_read(tmp_path: Path, name: str) -> None:
    made = as_zarr(tmp_path / "data.zarr", walk(3, 8))
    (made / name).unlink()
    os.mkfifo(made / name)
    with pytest.raises(ValueError, match="got a pipe"):
        open_recorded(made)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl"])
@pytest.mark.parametrize("instead", ["/dev/zero", "/etc/passwd", "a pipe", "a folder"])
def test_what_stands_in_for_a_file_of_a_data_set_is_not_read(tmp_path: Path, name: str, instead: str) -> None:
    """A device gives bytes until the memory is full, a pipe none for ever, and a link leads to what belongs to others."""
    made = lerobot(tmp_path / "data", walk(3, 8), "v2.1")
    (made / name).unlink()
    if instead == "a pipe":
        os.mkfifo(made / name)
    elif instead == "a folder":
        (made / name).mkdir()
    else:
        (made / name).symlink_to(instead)
    with pytest.raises(ValueError, match=r"expected a file|outside of|leads out|got \["):
        open_recorded(made)


def test_weights_that_cannot_be_mapped_are_refused_by_name(tmp_path: Path, make_teacher: Callable[..., TrainedTeacher]) -> None:
    make_teacher().save_pretrained(tmp_path / "policy")
    (tmp_path / "policy" / "model.safetensors").unlink()
    (tmp_path / "policy" / "model.safetensors").symlink_to("/proc/self/environ")
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        load_teacher(tmp_path / "policy")


@few
@given(st.lists(st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True), min_size=2, max_size=5))
def test_no_path_of_a_person_stays_in_a_crash_file(parts: list[str]) -> None:
    path = "/" + "/".join(["home", "somebody", *parts])
    told = without_paths(f'File "{path}", line 3: cannot open {path}; see ({path})')
    assert "somebody" not in told.replace(parts[-1], "") and "/home" not in told and parts[-1] in told
