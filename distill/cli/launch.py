"""Starting: one process per core on a CPU-only machine, one thread per process."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence

import torch

_MOST_PROCESSES = 8


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate with several processes) already started several of us."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def wanted_processes(asked: int) -> int:
    """Processes to start: what was asked, else one per usable core on a CPU-only machine, one where there is a GPU."""
    if asked:
        return asked
    if torch.cuda.is_available():
        return 1
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_PROCESSES)


def launch(processes: int, script: str, arguments: Sequence[str]) -> int:
    """Run `processes` copies of the script side by side with torchrun; returns the exit status of the first to fail.

    `accelerate launch` starts one process on a CPU whatever it is told; torchrun, which accelerate understands, starts
    as many as asked. Small networks gain nothing from threads, and two threads on two busy cores lose tenfold.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ["OMP_NUM_THREADS"] = "1"
    # the workers say themselves what is wrong; the launcher's own tracebacks would bury it
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run(parse_args(["--standalone", "--nproc-per-node", str(processes), script, *arguments]))
    except ChildFailedError as error:
        return max(1, int(error.get_first_failure()[1].exitcode))
    except (SignalException, KeyboardInterrupt):
        return 130
    return 0


def settle() -> None:
    """One thread per process on a CPU; a worker of torchrun ends with it, even if that was killed by SIGKILL.

    Without the second, `kill -9` of the launcher would leave workers behind that go on writing.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
