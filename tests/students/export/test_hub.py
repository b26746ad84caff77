"""Uploads: refused before any work where they cannot succeed; where the Hub is not reached the folder is said to be whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from students.export.hub import check_upload, files_to_send, what_is_sent


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["", "avoid", "me/", "/avoid", "me/avoid/more", "me/a b", "https://hub/me/avoid", "me/-x"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected user/name"):
        check_upload(name)


def test_without_a_token_it_says_how_to_get_one(no_token: None) -> None:
    with pytest.raises(ValueError, match=r"no access token; run `hf auth login`, or set HF_TOKEN"):
        check_upload("me/avoid")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub$"):
        check_upload("me/avoid")


def test_a_hub_that_cannot_be_reached_leaves_the_folder_and_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A card\n")
    code = f"from pathlib import Path; from students.export.hub import upload; upload(Path({str(tmp_path)!r}), 'me/avoid')"
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_none", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nobody}, capture_output=True, text=True, timeout=120
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: push-to-hub: me/avoid was not uploaded (")
    assert last.endswith(f"{tmp_path} is whole, try again with `hf upload me/avoid {tmp_path}`")
    assert (tmp_path / "README.md").read_text() == "# A card\n"


def test_what_is_sent_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "weights").write_bytes(b"x" * 1500)
    (tmp_path / "README.md").write_text("card")
    assert what_is_sent(tmp_path, "me/avoid", False) == (
        "sending 2 files to me/avoid on the Hugging Face Hub, private:\n  README.md  4 B\n  policy/weights  1,500 B"
    )
    assert "me/avoid on the Hugging Face Hub, public: everybody may read it:" in what_is_sent(tmp_path, "me/avoid", True)


def test_a_link_is_not_followed_to_the_hub(tmp_path: Path) -> None:
    (tmp_path / "key").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"holds links, \['key'\]; nothing was sent"):
        files_to_send(tmp_path)
