"""Pickles are read without unpickling: what RLBench writes comes out, everything else is refused in one line."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from envs.rlbench.plain_pickle import Plain, read

PLAIN = (
    "{'a': [1, -2.5, None, True, 'x', 2**40], 'b': (np.arange(6.).reshape(2, 3), np.float32(0.5), np.zeros((0, 3))), "
    "'c': np.asfortranarray(np.arange(6, dtype='>i4').reshape(2, 3)), 'd': [(), (1,), (1, 2, 3, 4)], 'e': np.ones(1, bool)}"
)
SHARED, CUT, LONG = "(lambda a: [a, a])(np.arange(3))", "[np.arange(100), 'text']", "np.arange(4, dtype='<i8')"
HOSTILE = {
    "collections.OrderedDict(a=1)": "collections.OrderedDict",
    "print": "print",
    "__import__('os').system": "posix.system",
    "__import__('pathlib').Path('x')": "pathlib",
    "np.random.RandomState(0)": "numpy.random",
}
Pickled = Callable[..., bytes]


@pytest.fixture(scope="module")
def pickled() -> Pickled:
    """What another interpreter pickles, so that no test has to: all of it in one go."""
    pickles = [(text, protocol) for text in (PLAIN, SHARED, CUT, LONG, *HOSTILE) for protocol in range(1, 6)]
    code = (
        "import base64, collections, json, numpy as np, pickle, sys\n"
        "made = [pickle.dumps(eval(text), protocol) for text, protocol in json.load(sys.stdin)]\n"
        "print(json.dumps([base64.b64encode(each).decode() for each in made]))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=json.dumps(pickles), capture_output=True, check=True, text=True)
    pickled_bytes = dict(zip(pickles, map(base64.b64decode, json.loads(done.stdout)), strict=True))
    return lambda text, protocol=4: pickled_bytes[text, protocol]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_plain_things_and_arrays_come_out_as_they_went_in(pickled: Pickled, protocol: int) -> None:
    contents = read(pickled(PLAIN, protocol))
    assert contents["a"] == [1, -2.5, None, True, "x", 2**40] and contents["d"] == [(), (1,), (1, 2, 3, 4)]
    np.testing.assert_array_equal(contents["b"][0], [[0.0, 1, 2], [3, 4, 5]])
    assert contents["b"][1] == 0.5 and contents["b"][2].shape == (0, 3)
    np.testing.assert_array_equal(contents["c"], [[0, 1, 2], [3, 4, 5]])
    assert contents["c"].dtype == np.dtype(">i4") and contents["e"].tolist() == [True]


def test_what_is_shared_in_a_pickle_is_read_once(pickled: Pickled) -> None:
    one, two = read(pickled(SHARED))
    assert one is two and one.tolist() == [0, 1, 2]


def test_demonstrations_become_plain_objects(store_rlbench) -> None:  # type: ignore[no-untyped-def]
    folder = store_rlbench(episodes=1, images=False, frames=3)
    demo = read((folder / "reach_target/variation0/episodes/episode0/low_dim_obs.pkl").read_bytes())
    assert isinstance(demo, Plain) and demo.kind == "Demo"
    first = demo.fields["_observations"][0]
    assert first.kind == "Observation" and first.fields["gripper_open"] == 1.0 and first.fields["front_rgb"] is None
    assert first.fields["joint_positions"].shape == (7,)
    name, words, place, *_ = demo.fields["random_seed"]
    assert name == "MT19937" and words.shape == (624,) and words.dtype == np.uint32 and place == 624
    assert read((folder / "reach_target/variation0/variation_descriptions.pkl").read_bytes())[1] == "variation 0"


@pytest.mark.parametrize(("expression", "named"), HOSTILE.items())
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_foreign_class_is_refused_in_one_line(pickled: Pickled, expression: str, named: str, protocol: int) -> None:
    with pytest.raises(ValueError, match="^the pickle names") as caught:
        read(pickled(expression, protocol))
    contents = str(caught.value)
    assert "\n" not in contents and "expected only rlbench.demo.Demo and rlbench.backend.observation.Observation" in contents
    assert named in contents


def test_nothing_of_a_hostile_pickle_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    command = f"touch {mark}".encode()
    hostile = b"cposix\nsystem\n(S'" + command + b"'\ntR."
    with pytest.raises(ValueError, match="posix.system"):
        read(hostile)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04cnumpy\ndtype\n\x8c\x01O\x89\x88\x87R.", "array of 'O', expected numbers"),
        (b"\x80\x04cnumpy\nndarray\n)R.", "the pickle calls numpy.ndarray"),
        (b"\x80\x04crlbench.demo\nDemo\n\x8c\x01x\x85\x81.", "creates a rlbench.demo.Demo from"),
        (b"\x80\x04cnumpy\nndarray\n)\x81.", "creates a numpy.ndarray from"),
        (b"\x80\x04crlbench.demo\nDemo\n)R.", "the pickle calls rlbench.demo.Demo"),
        (b"\x80\x04\x8f.", "the instruction EMPTY_SET"),
        (b"\x80\x04K\x01Q.", "the instruction BINPERSID"),
        (b"\x80\x04\x85.", "not a whole pickle"),
        (b"", "not a whole pickle|pickle exhausted"),
        (b"\x89PNG\r\n", "the instruction PERSID"),
        (b"no pickle", "opcode|not a whole pickle"),
    ],
)
def test_what_no_demonstration_needs_and_damage_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(data)


def test_a_pickle_that_is_cut_off_is_refused(pickled: Pickled) -> None:
    whole = pickled(CUT)
    for length in range(0, len(whole), 37):
        with pytest.raises(ValueError):
            read(whole[:length])


def test_an_array_that_is_longer_than_its_data_is_refused(pickled: Pickled) -> None:
    whole = bytearray(pickled(LONG))
    place = whole.index(b"K\x04\x85")  # the shape
    whole[place + 1] = 9
    with pytest.raises(ValueError, match="reshape"):
        read(bytes(whole))


