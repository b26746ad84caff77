"""Messages between processes: one JSON header and plain arrays over a byte stream; nothing is ever unpickled.

It runs in any interpreter with numpy, Python 3.8 or newer, and imports nothing of ours, so that a process in another
environment can load this file by its path. A message is

    8 bytes   magic and version
    4 + 8     lengths of the header and of the body, big endian
    header    JSON: {"message": {..}, "arrays": [[name, dtype, shape], ..]}
    body      the arrays' bytes one after the other, C order, little endian
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

MAGIC = b"flow2on1"
LIMIT = 1 << 31
"""Greatest length of a body that is accepted [bytes]; a longer one means that the stream is out of step."""
HEADER_LIMIT = 1 << 26
"""The same for a header."""

DTYPES = ("|b1", "|u1", "|i1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
"""The dtypes of arrays that may be sent: numbers and booleans, no objects or strings."""

_LENGTHS = struct.Struct(">IQ")


class WireError(ValueError):
    """The stream ended, or did not hold a message."""


def send(stream: BinaryIO, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes one message and flushes. Raises ValueError, before writing, for NaN in the message or an array of objects."""
    described, chunks = [], []
    for name, array in (arrays or {}).items():
        array = np.asarray(array)
        array = np.ascontiguousarray(array).reshape(array.shape)  # the former makes a scalar an array of one
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        if array.dtype.str not in DTYPES:
            raise ValueError(f"array {name!r}: got dtype {array.dtype}, expected one of {list(DTYPES)}")
        described.append([name, array.dtype.str, list(array.shape)])
        chunks.append(array.tobytes())
    header = json.dumps({"message": dict(message), "arrays": described}, allow_nan=False).encode()
    stream.write(MAGIC + _LENGTHS.pack(len(header), sum(map(len, chunks))) + header)
    for chunk in chunks:
        stream.write(chunk)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads one message and its arrays by name. Raises WireError when the stream ends or holds no message."""
    magic = _exactly(stream, len(MAGIC))
    if magic != MAGIC:
        raise WireError(f"expected a message, got {magic!r}: something else wrote to this stream")
    header_length, body_length = _LENGTHS.unpack(_exactly(stream, _LENGTHS.size))
    if header_length > HEADER_LIMIT or body_length > LIMIT:
        raise WireError(f"a message of {header_length} + {body_length} bytes is over the limit of {HEADER_LIMIT} + {LIMIT}")
    try:
        header = json.loads(_exactly(stream, header_length))
        message, described = dict(header["message"]), [(str(n), str(d), tuple(map(int, s))) for n, d, s in header["arrays"]]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise error if isinstance(error, WireError) else WireError(f"the header is not ours: {error}") from error
    sizes = []
    for name, dtype, shape in described:
        if dtype not in DTYPES or min(shape, default=0) < 0:
            raise WireError(f"array {name!r}: got dtype {dtype!r} and shape {shape}, expected one of {list(DTYPES)}")
        sizes.append(math.prod(shape) * np.dtype(dtype).itemsize)
    if sum(sizes) != body_length:
        raise WireError(f"the arrays need {sum(sizes)} bytes, the message has {body_length}")
    parts = [_exactly(stream, size) for size in sizes]
    try:
        arrays = {
            name: np.frombuffer(part, dtype=dtype).reshape(shape).copy()
            for (name, dtype, shape), part in zip(described, parts)  # noqa: B905 - `strict` is newer than Python 3.8
        }
    except ValueError as error:  # more axes than numpy has, or a size beyond its numbers
        raise WireError(f"the header is not ours: {error}") from error
    return message, arrays


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """Reads exactly `count` bytes. Raises WireError when the stream ends before."""
    parts, missing = [], count
    while missing:
        part = stream.read(min(missing, 1 << 20))
        if not part:
            raise WireError(f"the stream ended {missing} bytes before the end of a message: the other process is gone")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
