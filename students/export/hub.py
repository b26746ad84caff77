"""Upload of an exported folder to the Hugging Face Hub: only when it is asked for, private unless said otherwise."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def check_upload(name: str) -> None:
    """Raise ValueError, before any work, where an upload to ``user/name`` cannot succeed: its name, the package, the token."""
    if not NAME.fullmatch(name):
        raise ValueError(f"push-to-hub: got {name!r}, expected user/name, of letters, digits, '-', '.' and '_'")
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError('push-to-hub: huggingface_hub is not installed; pip install "flow2one[hub]"') from error
    if huggingface_hub.get_token() is None:
        raise ValueError("push-to-hub: no access token; run `hf auth login`, or set HF_TOKEN to one that may write")


def upload(folder: Path, name: str, public: bool = False) -> str:
    """Make a new repository of all files of the folder; its address.

    Raises ValueError, which says that the folder itself is whole, for a repository that is there already and for whatever
    the Hub or the way to it refuses.
    """
    check_upload(name)
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(name, private=not public, exist_ok=False))
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Add a one-step student")
    except Exception as error:  # its HTTP library, and with it what is raised, differs between versions of the package
        said = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"push-to-hub: {name} was not uploaded ({said}); {folder} is whole, try again with `hf upload {name} {folder}`"
        ) from error
    return address
