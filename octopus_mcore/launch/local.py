"""Starting the ranks of a run on this machine, or joining those that torchrun or srun started.

`run_ranks` is what stands between a command and the function that every rank runs. It needs no `torch.distributed` of its own:
the function joins the world by the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), see `runtime.world`.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INPUT_ERRORS = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError)
"""What bad input raises: the message alone tells the user what to change."""


class RankError(RuntimeError):
    """A rank failed; the others were ended.

    `rank` is the one that failed first, `reason` its exception in one line (or how its process ended), `is_input_error` tells
    whether the exception was one of `INPUT_ERRORS`, and `trace` is its traceback ("" where it raised nothing).
    """

    def __init__(self, rank: int, reason: str, trace: str, is_input_error: bool, logs: Path | None) -> None:
        self.rank, self.reason, self.trace, self.is_input_error = rank, reason, trace, is_input_error
        where = f"\noutput of the other ranks: {logs}" if logs is not None else ""
        super().__init__("\n".join(part for part in (f"rank {rank} failed: {reason}", trace.rstrip()) if part) + where)


class RankInputError(Exception):
    """Carries an input error out of a rank's process; its cause is the error itself. Never leaves this module."""


def launcher_environment(environment: Mapping[str, str]) -> dict[str, str] | None:
    """RANK, WORLD_SIZE and LOCAL_RANK of the ranks that a launcher started, None where no launcher did.

    torchrun sets them. srun sets SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, which count only when MASTER_ADDR says where the
    ranks meet: inside an allocation, a command started without srun's ranks starts its own.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in environment}
    slurm = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
    if "MASTER_ADDR" in environment and all(name in environment for name in slurm.values()):
        return {name: environment[source] for name, source in slurm.items()}
    return None


def run_ranks(
    function: Callable[..., Any], args: tuple[Any, ...], world_size: int, *, threads: int = 1, logs: Path | None = None
) -> Any:
    """Runs `function(*args)` on `world_size` ranks and returns rank 0's result.

    - Ranks of a launcher: this process is one of them; the function is called here, whatever `world_size` says.
    - One rank: the function is called here.
    - Several: they are started as new processes through torch's elastic launcher. `function` must be importable (defined at the
      top level of a module), arguments and result picklable, and the calling program protected by `if __name__ == "__main__"`.
      Rank 0 writes to this terminal; the others write to files below `logs`. `threads` CPU threads each: without a bound, every
      rank takes all cores.

    Raises:
        RankError: a started rank failed; the message holds its traceback. In this process, whatever the function raises.
    """
    threading = {"OMP_NUM_THREADS": str(threads)}
    if (launched := launcher_environment(os.environ)) is not None:
        with _environment(launched | threading):
            return function(*args)
    if world_size == 1:
        with _environment(_lonely_rank() | threading):
            return function(*args)
    with _environment(threading):
        return _start(function, args, world_size, logs)


def _start(function: Callable[..., Any], args: tuple[Any, ...], world_size: int, logs: Path | None) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The launcher logs every failure in a format of its own; RankError says the same in words for users.
    logging.getLogger("torch.distributed.elastic.multiprocessing").setLevel(logging.CRITICAL)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world_size,
        run_id=uuid.uuid4().hex[:8],
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
        shutdown_timeout=5,
        logs_specs=DefaultLogsSpecs(
            log_dir=None if logs is None else str(logs), redirects={rank: Std.ALL for rank in range(1, world_size)}
        ),
    )
    try:
        return elastic_launch(launch, _rank_main)(function, args)[0]
    except ChildFailedError as error:
        raise _rank_error(error, logs) from None
    except SignalException as error:  # the launcher ended the ranks; end like a program that has no handler of its own
        raise KeyboardInterrupt if error.sigval == signal.SIGINT else SystemExit(128 + error.sigval) from None


def _rank_main(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """What a started rank runs."""
    try:
        return function(*args)
    except INPUT_ERRORS as error:
        raise RankInputError(f"{type(error).__name__}: {error}") from error


def _rank_error(error: Any, logs: Path | None) -> RankError:
    rank, failure = error.get_first_failure()
    message = failure.message
    if isinstance(message, str):  # the process died without raising
        name = f" (signal {failure.signal_name()})" if failure.exitcode < 0 else ""
        return RankError(rank, f"the process ended with exit code {failure.exitcode}{name}", "", False, logs)
    reason = message["message"]
    is_input_error = reason.startswith(f"{RankInputError.__name__}: ")
    reason = reason.removeprefix(f"{RankInputError.__name__}: ")
    return RankError(rank, reason, message["extraInfo"]["py_callstack"], is_input_error, logs)


def _lonely_rank() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables for the block and puts the old state back: a second call finds what the first one found."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
