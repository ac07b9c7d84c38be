"""Qwen3-VL as a Megatron-Core model: `GPTModel` with interleaved M-RoPE, visual tokens and deepstack;
it returns hidden states."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.models.layer_spec import decoder_spec
from octopus_mcore.models.micro_batch import MicroBatch
from octopus_mcore.models.qwen3_vl.config import ModelShape
from octopus_mcore.models.qwen3_vl.vision import VisionTower
from octopus_mcore.models.rotary import interleaved_mrope_angles


class Qwen3VLModel(GPTModel):
    """This rank's part of the model (its pipeline stage, its tensor-parallel share).

    The last stage returns hidden states behind the final norm, [S / tensor size, 1, hidden]; log-probs of selected tokens are
    the token head's business, so no logits of a whole sequence ever exist.
    """

    def __init__(self, shape: ModelShape, config: TransformerConfig, layer_spec: str, freeze_vision: bool) -> None:
        first, last = parallel_state.is_pipeline_first_stage(), parallel_state.is_pipeline_last_stage()
        super().__init__(
            config=config,
            transformer_layer_spec=decoder_spec(config, get_num_layers_to_build(config), layer_spec),
            vocab_size=shape.padded_vocab_size,
            max_sequence_length=shape.hf.text_config.max_position_embeddings,
            pre_process=first,
            post_process=last,
            position_embedding_type="none",
            share_embeddings_and_output_weights=shape.tied,
        )
        self.shape = shape
        if first:
            self.vision = VisionTower(shape, config.params_dtype, freeze_vision, config.sequence_parallel)

    def forward(self, batch: MicroBatch, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the micro-batch on this rank.

        Args:
            batch: the tokens, the same on every rank of the replica.
            pixel_values: [patches, patch features] of `batch.images` in order; read on the first stage only.
        """
        hidden = context = positions = None
        if self.pre_process:
            hidden = self.embedding(input_ids=batch.token_ids[None], position_ids=None)
            if batch.images is not None:
                hidden, context, positions = self._place_images(hidden, batch, pixel_values)
        text = self.shape.hf.text_config
        angles = interleaved_mrope_angles(
            batch.position_ids, text.head_dim, text.rope_parameters["rope_theta"], text.rope_parameters["mrope_section"]
        )
        return self.decoder(
            hidden_states=hidden,
            attention_mask=batch.subtree_end,
            context=context,
            context_mask=positions,
            rotary_pos_emb=angles,
        )

    def head_weight(self) -> torch.Tensor:
        """This rank's rows of the output matrix, [padded vocabulary / tensor size, hidden]. Last stage only."""
        return (
            self.shared_embedding_or_output_weight() if self.share_embeddings_and_output_weights else self.output_layer.weight
        )

    def _place_images(
        self, hidden: torch.Tensor, batch: MicroBatch, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Puts visual features at their placeholders; also returns the deepstack features [levels, V, hidden] and positions [V]
        of the visual tokens that live on this rank.

        The index operations run on empty selections as well: every rank must reach the gather's backward pass.
        """
        features = self.vision(pixel_values, batch.images.grid_thw)
        local = hidden.shape[0]
        start = local * parallel_state.get_tensor_model_parallel_rank() if self.config.sequence_parallel else 0
        here = (batch.images.positions >= start) & (batch.images.positions < start + local)
        positions = batch.images.positions[here] - start
        mine = features.index_select(1, batch.images.features[here])
        hidden = hidden.index_copy(0, positions, mine[0].unsqueeze(1).to(hidden.dtype))
        return hidden, mine[1:], positions
