"""The entry point of `flow2one`: light, so that an interruption while the packages are loading is one line, too."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 2 invalid command or file, 130 interrupted."""
    leading = os.environ.get("RANK", "0") == "0"
    try:
        import_undisturbed("glfw")
        from distill.cli.command import run_command

        return run_command(sys.argv[1:] if arguments is None else arguments, leading)
    except ValueError as error:
        if leading:
            print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has stopped, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (else Python complains when it flushes at the end)
        return 0
    except KeyboardInterrupt:
        if leading and "TORCHELASTIC_RUN_ID" not in os.environ:  # else the launcher says it
            given = sys.argv[1:] if arguments is None else arguments
            resumes = not {"doctor", "export", "check-data", "check-world", "-h", "--help"} & set(given)
            print(f"\ninterrupted{'; the same command resumes from here' if resumes else ''}", file=sys.stderr)
        return INTERRUPTED


def import_undisturbed(name: str) -> None:
    """Import a package, if it is installed; Ctrl-C waits meanwhile.

    glfw, which mujoco imports, looks for its library in a process of its own. It inherits the blocked signal; else Ctrl-C would
    end it with a traceback on our terminal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
