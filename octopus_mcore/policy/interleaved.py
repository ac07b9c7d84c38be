"""What Megatron's interleaved schedule needs of us to run with packed micro-batches of different lengths."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator, _p2p_ops
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig


class InterleavedCommunicator(P2PCommunicator):
    """Exchanges shapes in the same order as tensors.

    Of two pipeline ranks each is the other's previous and next one. Megatron 0.16 exchanges the shapes of variable lengths in
    one batch of operations that does not tell the two directions apart, so that a stage takes the shape of a gradient for that
    of an activation. `_p2p_ops`, which moves the tensors themselves, keeps them apart. Sends are not waited for, as with the
    tensors in this schedule: the other rank may reach its receive only after it has sent something itself.
    """

    def __init__(self, pp_group: dist.ProcessGroup, config: TransformerConfig) -> None:
        super().__init__(pp_group, config)
        self._sent: list[tuple[dist.Work, tuple[torch.Tensor | None, ...]]] = []

    def _communicate_shapes(
        self,
        tensor_send_next: torch.Tensor | None,
        tensor_send_prev: torch.Tensor | None,
        recv_prev: bool,
        recv_next: bool,
    ) -> tuple[list[int], list[int]]:
        """The shapes of what comes from the previous and from the next stage; zeros where nothing comes."""
        device = torch.cuda.current_device()

        def shape_of(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else torch.tensor(tensor.shape, dtype=torch.int64, device=device)

        sent = (shape_of(tensor_send_prev), shape_of(tensor_send_next))
        received = [torch.zeros(3, dtype=torch.int64, device=device) for _ in range(2)]
        requests = _p2p_ops(
            tensor_send_prev=sent[0],
            tensor_recv_prev=received[0] if recv_prev else None,
            tensor_send_next=sent[1],
            tensor_recv_next=received[1] if recv_next else None,
            group=self.pp_group,
            prev_pipeline_rank=self.prev_rank,
            next_pipeline_rank=self.next_rank,
        )
        for name in ("recv_prev", "recv_next"):
            if name in requests:
                requests.pop(name).wait()
        self._sent = [(request, shapes) for request, shapes in self._sent if not request.is_completed()]
        self._sent += [(request, sent) for request in requests.values()]
        return received[0].tolist(), received[1].tolist()


def interleaved_arguments(config: TransformerConfig) -> dict[str, Any]:
    """Arguments for `forward_backward_pipelining_with_interleaving`: our communicator, and the groups that have to come with
    it, which are those that the schedule takes by itself."""
    groups = ProcessGroupCollection()
    groups.tp = parallel_state.get_tensor_model_parallel_group()
    groups.cp = parallel_state.get_context_parallel_group()
    groups.pp = parallel_state.get_pipeline_model_parallel_group()
    groups.embd = parallel_state.get_embedding_group(check_initialized=False)
    groups.pos_embd = parallel_state.get_position_embedding_group(check_initialized=False)
    groups.dp_cp = parallel_state.get_data_parallel_group(with_context_parallel=True)
    return {"p2p_communicator": InterleavedCommunicator(groups.pp, config), "pg_collection": groups}
