"""A process group of the trainer and its servers' ranks, in which nobody waits for ever.

The group is the trainer's own affair: it is made of torch's backend classes and never enters `torch.distributed`'s list of
groups, so the trainer's default group, whatever its size, neither knows nor meets it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist

from octopus_mcore.rollout.engine import EngineError, Phase, ServerFault
from octopus_mcore.rollout.sync.bucket import Bucket
from octopus_mcore.rollout.sync.transport import GroupError, GroupPlace, Receiver

_TRAINER = "the trainer"
_GRACE_SECONDS = 10.0
"""After a fault: how long the others have to say how they fared. Their connections to whoever left are closed by then."""

_BACKENDS = {"cpu": ("gloo", "cpu"), "cuda": ("nccl", "cuda")}
"""By type of the trainer's device: the backend, and the prefix that torch gives the backend's keys in the store."""


class WeightGroup:
    """A process group whose rank 0 is this process; behind it come the tensor-parallel ranks of each server in turn.

    Whatever can wait for another member runs in a thread of its own, so that a member that never comes costs a deadline and no
    more. After an error the group is of no use and every member was told to leave it. With more than three members broadcasts
    are relayed: a server that waits for one that hangs cannot be told from it, and is named, too.
    """

    def __init__(self, servers: Sequence[Receiver], device: torch.device, address: str, seconds: float) -> None:
        """Returns when every member has joined.

        Raises:
            EngineError: a server refused, died, or did not come in time.
        """
        self._servers, self._device, self._seconds = tuple(servers), device, seconds
        self._identities = [server.identity for server in servers]
        self._name = f"octopus-weights-{uuid4().hex}"
        self._size = 1 + sum(server.tensor for server in servers)
        self._backend: dist.Backend | None = None
        # Members meet at a store of this process, whose port the system chooses. Closing it ends everybody's wait for members.
        self._store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        tasks: dict[str, Callable[[], object]] = {_TRAINER: self._meet}
        kind, _ = _BACKENDS[device.type]
        first = 1
        for server in servers:
            place = GroupPlace(self._name, address, self._store.port, first, self._size, kind)
            tasks[server.name] = partial(_ask, server, server.join_group, place)
            first += server.tensor
        # A member that finds the store closed would knock for half an hour: after a fault let all come in before it closes.
        self._backend = self._together(tasks, "joining the group", patience=_GRACE_SECONDS)[_TRAINER]

    def is_of(self, servers: Sequence[Receiver]) -> bool:
        """Whether these servers, none of them restarted, are the members."""
        return self._identities == [server.identity for server in servers]

    def broadcast(self, bucket: Bucket, version: int | None) -> None:
        """Brings the bucket to every rank of every server; returns when all servers have copied and the buffer is free. The
        version comes with the last bucket of an update.

        Raises:
            EngineError: a server refused, died, or did not answer in time.
        """
        # Filled on a stream of this thread, sent from one of another.
        torch.get_device_module(self._device).synchronize(self._device)
        tasks: dict[str, Callable[[], object]] = {_TRAINER: partial(self._send, bucket.buffer[: bucket.used])}
        for server in self._servers:
            tasks[server.name] = partial(_ask, server, server.load_broadcast, self._name, bucket.metadata, version)
        self._together(tasks, "the broadcast of a bucket")

    def leave(self) -> None:
        """Lets every member leave, those that still answer; a member that waits for another one gets an error."""
        self._store = None
        wait(_start({server.name: partial(server.leave_group, self._name) for server in self._servers}).values())
        backend, self._backend = [self._backend], None
        # NCCL drops operations under way. Gloo's end when the servers leave or at their deadline; freeing it waits for that.
        _start({_TRAINER: lambda: (backend[0] and backend[0].abort(), backend.clear())})

    def _meet(self) -> dist.Backend:
        """This process's side of what SGLang's `init_custom_process_group` does: the same prefixes of the same store."""
        deadline = timedelta(seconds=self._seconds)
        kind, prefix = _BACKENDS[self._device.type]
        store = dist.TCPStore("localhost", self._store.port, is_master=False, wait_for_workers=False, timeout=deadline)
        for part in (self._name, f"{self._name}/", f"{prefix}/"):
            store = dist.PrefixStore(part, store)
        if kind == "gloo":
            return dist.ProcessGroupGloo(store, 0, self._size, deadline)
        options = dist.ProcessGroupNCCL.Options()
        # Beyond its own timeout NCCL ends the whole process; ours comes first.
        options._timeout = 2 * deadline
        return dist.ProcessGroupNCCL(store, 0, self._size, options)

    def _send(self, tensor: torch.Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank = 0
        options.timeout = timedelta(seconds=self._seconds)
        self._backend.broadcast([tensor], options).wait()
        torch.get_device_module(self._device).synchronize(self._device)

    def _together(self, tasks: Mapping[str, Callable[[], object]], doing: str, patience: float = 0.0) -> dict[str, object]:
        """Runs all at the same time and returns their results. `patience` seconds after a failure the group ends and the cause
        is raised."""
        futures = _start(tasks)
        done, missing = wait(futures.values(), timeout=self._seconds + _GRACE_SECONDS, return_when=FIRST_EXCEPTION)
        if not missing and all(future.exception() is None for future in done):
            return {name: future.result() for name, future in futures.items()}
        wait(futures.values(), timeout=patience)
        self.leave()
        wait(futures.values(), timeout=_GRACE_SECONDS)
        raise _cause(futures, doing, self._seconds)


def _ask(server: Receiver, call: Callable[..., None], *arguments: Any) -> None:
    call(*arguments)
    if server.gone:
        raise GroupError(Phase.SYNC, server.name, "was lost")


def _cause(futures: Mapping[str, Future], doing: str, seconds: float) -> EngineError:
    """What went wrong, judged after the group was left: a server's own failure; or a server that still says nothing; else what
    the absence of somebody did to the others."""
    errors = {name: future.exception() for name, future in futures.items() if future.done() and future.exception() is not None}
    own = [error for error in errors.values() if isinstance(error, EngineError) and not isinstance(error, GroupError)]
    if own:
        return own[0]
    silent = [name for name, future in futures.items() if not future.done() and name != _TRAINER]
    if silent:
        return ServerFault(Phase.SYNC, ", ".join(silent), f"{doing}: no answer within {seconds:.0f} s")
    party = next((name for name in errors if name != _TRAINER), _TRAINER)
    return ServerFault(Phase.SYNC, party, f"{doing}: {errors[party] if errors else f'not done within {seconds:.0f} s'}")


def _start(tasks: Mapping[str, Callable[[], object]]) -> dict[str, Future]:
    """Runs every task in a thread of its own, which never keeps this process from ending."""
    futures = {name: Future() for name in tasks}

    def run(task: Callable[[], object], future: Future) -> None:
        try:
            future.set_result(task())
        except BaseException as error:
            future.set_exception(error)

    for name, task in tasks.items():
        threading.Thread(target=run, args=(task, futures[name]), name=f"weight group: {name}", daemon=True).start()
    return futures
