"""Upload of an exported folder to the Hugging Face Hub: only on request, private by default."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_upload(name: str) -> None:
    """Raises ValueError, before any work, where an upload to ``user/name`` cannot work: invalid name, no package, no token."""
    if not NAME.fullmatch(name):
        raise ValueError(f"push-to-hub: got {name!r}, expected user/name, of letters, digits, '-', '.' and '_'")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError('push-to-hub: huggingface_hub is not installed; pip install huggingface_hub') from error
    if huggingface_hub.get_token() is None:
        raise ValueError("push-to-hub: no access token; run `hf auth login`, or set HF_TOKEN to one that may write")


def files_to_send(folder: Path) -> list[Path]:
    """Every file that an upload sends. Raises ValueError for a link, which may lead to what nobody meant to send."""
    paths = sorted(folder.rglob("*"))
    links = [str(path.relative_to(folder)) for path in paths if path.is_symlink()]
    if links:
        raise ValueError(f"push-to-hub: {folder} holds links, {links[:5]}; nothing was sent. Copy the files themselves there")
    return [path for path in paths if path.is_file()]


def what_is_sent(folder: Path, name: str, public: bool) -> str:
    """Which files go where, and who may read them there, as lines."""
    files = files_to_send(folder)
    to = f"{name} on the Hugging Face Hub, {'public: everybody may read it' if public else 'private'}"
    lines = [f"  {path.relative_to(folder).as_posix()}  {path.stat().st_size:,} B" for path in files]
    return "\n".join([f"sending {len(files)} files to {to}:", *lines])


def upload(folder: Path, name: str, public: bool = False, say: Callable[[str], object] = print) -> str:
    """Says what is sent, creates a repository with all files of the folder, and returns its address. say: prints lines.

    Raises ValueError for an existing repository, for links in the folder, and for errors of the Hub or the network; the folder
    itself stays complete.
    """
    check_upload(name)
    say(what_is_sent(folder, name, public))
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=not public, exist_ok=False))
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Add a one-step student",
                          allow_patterns=[path.relative_to(folder).as_posix() for path in files_to_send(folder)])  # fmt: skip
    except Exception as error:  # the exceptions differ between versions of the package
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"push-to-hub: {name} was not uploaded ({reason}); {folder} is whole, try again with `hf upload {name} {folder}`"
        ) from error
    return address
