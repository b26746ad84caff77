"""The entry point of `flow2one`: light, so that an interruption while the packages are loading is one line, too."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence

from distill.runtime.diagnostics import Terminated, write_crash

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM
"""Exit status after SIGTERM, which schedulers send before they kill."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status.

    0: done, 1: an error that is not known, 2: invalid command, file or data, or a disk that fails, 130: interrupted, 143:
    terminated.
    """
    leading = os.environ.get("RANK", "0") == "0" or not {"MASTER_ADDR", "FLOW2ONE_MEETING"} & os.environ.keys()
    given = sys.argv[1:] if arguments is None else arguments
    resumes = not {"doctor", "export", "check-data", "check-world", "-h", "--help"} & set(given)
    _open_streams()
    _raise_on_sigterm()
    try:
        import_undisturbed("glfw")
        from distill.cli.command import run_command

        return run_command(given, leading)
    except (ValueError, FloatingPointError) as error:
        if leading:
            _tell(f"error: {error}")
        return 2
    except BrokenPipeError:  # whoever read the output has stopped, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (else Python complains when it flushes at the end)
        return 0
    except KeyboardInterrupt as error:
        ended = "terminated" if isinstance(error, Terminated) else "interrupted"
        if leading and "TORCHELASTIC_RUN_ID" not in os.environ:  # else the launcher says it
            _tell(f"\n{ended}{'; the same command resumes from here' if resumes else ''}")
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        return _failed(error, given, resumes, leading)


def _failed(error: Exception, given: Sequence[str], resumes: bool, leading: bool) -> int:
    """Say what ended the command: a disk or network that fails in one line, all else with the file that tells more."""
    disk = _os_error(error)
    if disk is not None:
        after = "; mend that, then the same command resumes from here" if resumes else ""
        _tell(f"error: {_in_words(disk)}{after}")
        return 2
    if not leading and type(error).__module__.startswith("torch"):  # its connection broke because another process failed
        return 1
    text = " ".join(str(error).split())[:300]
    written = write_crash(error, given)
    where = f"details are in {written}" if written else "no file with details could be written"
    _tell(f"flow2one stopped on an unexpected {type(error).__name__}{': ' + text if text else ''}; {where}")
    return 1


def _os_error(error: BaseException | None) -> OSError | None:
    """The failure of the system behind an error, if there is one: some packages hide it in errors of their own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        number = _os_number(str(error))
        if number is not None:
            return OSError(number, os.strerror(number))
        error = error.__cause__
    return None


def _os_number(text: str) -> int | None:
    """The system's error number in a message of safetensors, which writes files itself: ``... (os error 28)``."""
    found = text.rpartition("(os error ")[2].partition(")")[0]
    return int(found) if found.isdigit() else None


def _in_words(error: OSError) -> str:
    said = error.strerror or " ".join(str(error).split()) or type(error).__name__
    return said if error.filename is None else f"{said}: {os.fsdecode(error.filename)}"


def _tell(text: str) -> None:
    """Print a line of its own: progress bars are closed before."""
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        bar.close()
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(text, file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Standard streams that were closed lead nowhere; else the next files that are opened take their places and the output."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115  (as long as the process)


def _raise_on_sigterm() -> None:
    """SIGTERM ends a command as Ctrl-C does: processes are stopped, files closed, one line is said."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return

    def terminate(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends it at once
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)


def import_undisturbed(name: str) -> None:
    """Import a package, if it is installed; Ctrl-C and SIGTERM wait meanwhile.

    glfw, which mujoco imports, looks for its library in a process of its own. It inherits the blocked signal; else Ctrl-C would
    end it with a traceback on our terminal.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
