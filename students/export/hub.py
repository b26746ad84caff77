"""Upload of an exported folder to the Hugging Face Hub: only on request, private by default."""

from __future__ import annotations

import re
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


def upload(folder: Path, name: str, public: bool = False) -> str:
    """Creates a repository with all files of the folder; returns its address.

    Raises ValueError for an existing repository and for errors of the Hub or the network; the folder itself stays complete.
    """
    check_upload(name)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=not public, exist_ok=False))
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Add a one-step student")
    except Exception as error:  # the exceptions differ between versions of the package
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"push-to-hub: {name} was not uploaded ({reason}); {folder} is whole, try again with `hf upload {name} {folder}`"
        ) from error
    return address
