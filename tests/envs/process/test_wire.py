"""Messages between processes: what goes in comes out, what is not ours is refused, and the file stands alone."""

from __future__ import annotations

import ast
import io
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import envs.process.wire
from envs.process.wire import LIMIT, MAGIC, WireError, receive, send


def sent(message: dict, arrays: dict | None = None) -> bytes:
    stream = io.BytesIO()
    send(stream, message, arrays)
    return stream.getvalue()


def test_what_goes_in_comes_out_bit_by_bit() -> None:
    arrays = {
        "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],
        "depth": np.array([[np.nan, 1.5]], np.float32),
        "big endian": np.array([1, -2], ">i4"),
        "none": np.zeros((0, 3)),
        "scalar": np.array(2.5),
        "flag": np.array([True, False]),
    }
    message, back = receive(io.BytesIO(sent({"command": "step", "seed": 3, "names": ["a"]}, arrays)))
    assert message == {"command": "step", "seed": 3, "names": ["a"]}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
        assert back[name].flags.writeable


def test_messages_follow_each_other_on_one_stream() -> None:
    stream = io.BytesIO(sent({"n": 1}) + sent({"n": 2}, {"x": np.ones(2)}) + sent({"n": 3}))
    assert [receive(stream)[0]["n"] for _ in range(3)] == [1, 2, 3]


def test_a_stream_that_gives_a_byte_at_a_time_is_read_whole() -> None:
    class Slow(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(1 if count else 0)

    _, arrays = receive(Slow(sent({}, {"x": np.arange(5.0)})))
    np.testing.assert_array_equal(arrays["x"], np.arange(5.0))


@pytest.mark.parametrize("array", [np.array([object()]), np.array(["text"]), np.array([1j])])
def test_arrays_of_other_things_are_not_sent(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="'x': got dtype"):
        sent({}, {"x": array})


def test_nan_in_the_message_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        sent({"reward": float("nan")})


@pytest.mark.parametrize("kept", [0, 5, 15, 30, -1])
def test_a_stream_that_ends_early_is_said_to(kept: int) -> None:
    with pytest.raises(WireError, match="ended .* bytes before"):
        receive(io.BytesIO(sent({"a": 1}, {"x": np.ones(3)})[:kept]))


def message_of(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return MAGIC + struct.pack(">IQ", len(header), len(body) if length is None else length) + header + body


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"Loading CoppeliaSim...\n", "something else wrote"),
        (message_of(b"{", b""), "header is not ours"),
        (message_of(b"\xff\xff"), "header is not ours"),
        (message_of(b"[]"), "header is not ours"),
        (message_of(b'{"message": {}}'), "header is not ours"),
        (message_of(b'{"message": {}, "arrays": [["x", "|O", [1]]]}', b"12345678"), "got dtype '|O'"),
        (message_of(b'{"message": {}, "arrays": [["x", "<f4", [-1]]]}', b""), "shape"),
        (message_of(b'{"message": {}, "arrays": [["x", "<f4", [2]]]}', b"1234"), "need 8 bytes, the message has 4"),
        (message_of(b"{}", length=LIMIT + 1), "over the limit"),
    ],
)
def test_what_is_not_a_message_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(WireError, match=said.replace("|", r"\|")):
        receive(io.BytesIO(data))


def test_the_file_stands_alone_and_is_python_3_8() -> None:
    tree = ast.parse(Path(envs.process.wire.__file__).read_text(), feature_version=(3, 8))
    imported = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported - set(sys.stdlib_module_names) == {"numpy"}
