"""Keys to our names, shapes of frames and numbers in our units, each by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from envs.recorded.keys import frame_shape, in_our_units, named, optional
from envs.recorded.units import Unit
from envs.specs import DEPTH, IMAGES, POINTS, STATE

HERE = Path("some.zarr")
FRONT, FRONT_DEPTH = f"{IMAGES}.front", f"{DEPTH}.front"


def test_names_go_over_the_defaults_and_are_checked() -> None:
    defaults, keys = {"state": STATE, "img": FRONT, "action": "action"}, ["state", "agent_pos", "img", "action"]
    assert named(HERE, keys, defaults, {}) == {STATE: ("state",), FRONT: ("img",), "action": ("action",)}
    added = {STATE: ("state", "agent_pos"), "action": ("action",)}
    assert named(HERE, keys, defaults, {"agent_pos": STATE, "img": ""}) == added
    replaced = named(HERE, keys, defaults, {"agent_pos": STATE, "state": "", "img": ""})
    assert replaced == {"action": ("action",), STATE: ("agent_pos",)}
    assert named(HERE, keys, {}, {"state": "action", "agent_pos": "action", "img": FRONT})["action"] == ("state", "agent_pos")
    assert named(HERE, keys, {}, {"agent_pos": STATE, "state": STATE}) == {STATE: ("agent_pos", "state")}
    with pytest.raises(ValueError, match="speaks of 'agentpos', .* 'agent_pos'"):
        named(HERE, keys, defaults, {"agentpos": STATE})
    with pytest.raises(ValueError, match="'img' and 'agent_pos' would both be observation.images.front"):
        named(HERE, keys, {}, {"img": FRONT, "agent_pos": FRONT})
    with pytest.raises(ValueError, match="gives 'img' the name 'front', expected action, observation.state"):
        named(HERE, keys, defaults, {"img": "front"})
    with pytest.raises(ValueError, match="none is known"):
        named(HERE, keys, defaults, {"img": "", "state": ""})


def test_a_library_that_is_not_there_is_told_with_how_to_get_it() -> None:
    with pytest.raises(ImportError, match=r"some.zarr: reading it needs no_such_library.inner .*pip install no_such_library$"):
        optional("no_such_library.inner", HERE)


def test_shapes_of_frames_become_ours() -> None:
    byte, number = np.dtype(np.uint8), np.dtype(np.float32)
    assert frame_shape(HERE, "img", FRONT, (4, 5, 3), byte) == frame_shape(HERE, "img", FRONT, (3, 4, 5), byte) == (3, 4, 5)
    for stored in ((4, 5), (4, 5, 1), (1, 4, 5)):
        assert frame_shape(HERE, "depth", FRONT_DEPTH, stored, number) == (1, 4, 5)
    assert frame_shape(HERE, "cloud", POINTS, (9, 6), number) == (9, 6)
    assert frame_shape(HERE, "gripper", "action", (), number) == (1,)
    for name, stored in ((FRONT, (4, 5, 4)), (FRONT_DEPTH, (3, 4, 5)), (POINTS, (9, 4)), (STATE, (2, 2)), (STATE, (0,))):
        with pytest.raises(ValueError, match=f"it is .* in each frame, expected .* to be {name}"):
            frame_shape(HERE, "it", name, stored, number)
    with pytest.raises(ValueError, match="holds object, expected numbers; objects and strings are not read"):
        frame_shape(HERE, "it", STATE, (3,), np.dtype(object))


def test_numbers_become_ours() -> None:
    channels_last = np.array([[[[0, 51, 255]]]], np.uint8)
    bright, metres = Unit(255.0, 255.0, "0 to 255", 255.0), Unit(1000.0)
    assert in_our_units(FRONT, channels_last, (3, 1, 1), bright).reshape(-1) == pytest.approx([0, 0.2, 1])
    floats = channels_last.astype(np.float64)
    assert in_our_units(FRONT, floats, (3, 1, 1), bright).reshape(-1) == pytest.approx([0, 0.2, 1])
    assert in_our_units(FRONT, np.full((1, 1, 1, 3), 0.2), (3, 1, 1)).reshape(-1) == pytest.approx([0.2] * 3)
    millimetres = in_our_units(FRONT_DEPTH, np.array([[[0, 1500]]], np.uint16), (1, 1, 2), metres)
    assert np.isnan(millimetres[0, 0, 0, 0]) and millimetres[0, 0, 0, 1] == pytest.approx(1.5)
    assert in_our_units(FRONT_DEPTH, np.array([[[2.5]]]), (1, 1, 1)).tolist() == [[[[2.5]]]]
