"""The life of a server process: started, watched until it answers, stopped with everything it started. Knows no engine."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from octopus_mcore.rollout.engine import Phase, ServerFault

_LOG_TAIL_BYTES = 3000
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl  # found now: between fork and exec of a process with threads no lock may be taken


class ServerProcess:
    """A server in a process group of its own. Its output goes to a file; it dies with the process that started it."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Starts the process and returns at once; `environment` is added to this process's own."""
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**_own_environment(), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self) -> int:
        """The server's process, which leads its group."""
        return self._process.pid

    def ended(self, seconds: float = 0.0) -> str | None:
        """How the process ended, with the end of its output; None while it runs. Waits up to `seconds` for the end."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}; {self.tail()}"

    def tail(self) -> str:
        """The end of the server's output, and where to find all of it."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace").strip()
        return f"the end of {self.log}:\n{text or '(nothing)'}"

    def wait_until(self, answers: Callable[[], bool], seconds: float) -> None:
        """Returns when `answers` does.

        Raises:
            ServerFault: the process ended, or did not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not answers():
            if (reason := self.ended()) is not None:
                raise ServerFault(Phase.START, self.name, reason)
            if time.monotonic() > deadline:
                raise ServerFault(Phase.START, self.name, f"no answer within {seconds:.0f} s; {self.tail()}")
            time.sleep(0.2)

    def stop(self, seconds: float = 10.0) -> None:
        """Asks the process to end, then ends its whole group. Calling it again is harmless."""
        if self._process.poll() is None:
            self._process.terminate()
            self.ended(seconds)
        self.kill()

    def kill(self, seconds: float = 10.0) -> None:
        """Ends the whole group at once, hanging or not. Calling it again is harmless.

        A process that a device driver holds may outlive its SIGKILL; it is not waited for longer than `seconds`.
        """
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.ended(seconds)


def _own_environment() -> dict[str, str]:
    """This process's environment without what a launcher told its rank: a server's ranks meet among themselves."""
    launched = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    prefixes = ("TORCHELASTIC_", "GROUP_", "ROLE_")
    return {name: value for name, value in os.environ.items() if name not in launched and not name.startswith(prefixes)}


def _die_with_parent() -> None:
    """Runs in the new process: Linux kills it when the thread that started it ends, so also when its parent is killed and
    cannot clean up. Servers must be started by a thread that stays: the main one."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
