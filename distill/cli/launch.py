"""Starts worker processes: one per core on a machine without a GPU, one thread each."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from distill.runtime.context import MEETING
from distill.runtime.diagnostics import Terminated

_MOST_PROCESSES = 8


def is_launched() -> bool:
    """Whether a launcher (torchrun, accelerate with several processes) has already started several processes.

    Raises ValueError for variables of one that are not whole, as an earlier job may leave them in a shell.
    """
    rank, world, local = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None or world is None:
        if local is None:
            return False
        whole = False
    else:
        meets = world == "1" or bool({MEETING, "MASTER_ADDR"} & os.environ.keys())
        whole = meets and rank.isdecimal() and world.isdecimal() and int(rank) < int(world)
    if not whole:
        raise ValueError(f"the environment holds RANK={rank}, WORLD_SIZE={world} and LOCAL_RANK={local}, expected none or all "
                         "of a launcher's with its MASTER_ADDR; unset RANK WORLD_SIZE LOCAL_RANK, or start with torchrun or "
                         "accelerate")  # fmt: skip
    return True


def wanted_processes(requested: int) -> int:
    """Processes to start: as many as requested; else one per usable core without a GPU, one with a GPU."""
    if requested:
        return requested
    if torch.cuda.is_available():
        return 1
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, _MOST_PROCESSES)


def launch(processes: int, script: str, arguments: Sequence[str]) -> int:
    """Run `processes` copies of the script in parallel with torchrun; returns the exit status of the first that fails.

    Raises KeyboardInterrupt when interrupted, of which `Terminated` is one.

    `accelerate launch` always starts one process on a CPU; torchrun, which accelerate understands, starts as many as given.
    Small networks gain nothing from threads, and two threads on two busy cores are ten times slower.

    The processes meet over files in a folder of this user's, and talk over the loopback interface only. By default torchrun
    opens ports on all interfaces to anybody, and what the processes exchange there is unpickled.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if sys.platform == "linux":
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    # workers report their own errors and Ctrl-C; torch's loggers have levels of their own, and this process does nothing else
    logging.disable(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory(prefix="flow2one-", ignore_cleanup_errors=True) as folder:
            os.environ[MEETING] = str(Path(folder) / "workers")
            run(parse_args([
                "--rdzv-backend", "c10d", "--rdzv-conf", "store_type=file", "--rdzv-endpoint", str(Path(folder) / "launcher"),
                "--rdzv-id", "flow2one", "--local-addr", "127.0.0.1", "--nproc-per-node", str(processes), script, *arguments,
            ]))  # fmt: skip
    except ChildFailedError as error:
        return max(1, int(error.get_first_failure()[1].exitcode))
    except SignalException as error:
        raise (Terminated if error.sigval == signal.SIGTERM else KeyboardInterrupt) from error
    return 0


def configure_process() -> None:
    """One thread per process on a CPU. A torchrun worker ends with its launcher, even when that is killed by SIGKILL.

    Otherwise `kill -9` of the launcher would leave workers behind that keep writing.
    """
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
