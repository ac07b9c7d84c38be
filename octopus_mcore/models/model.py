"""Every family as one Megatron-Core model: `GPTModel` with our rotary angles, visual tokens and deepstack; it returns hidden
states."""

from __future__ import annotations

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from octopus_mcore.config.schema import ModelConfig
from octopus_mcore.models.context import ContextShare
from octopus_mcore.models.families import family_of
from octopus_mcore.models.family import ModelShape
from octopus_mcore.models.layer_spec import attention_kernel, decoder_spec
from octopus_mcore.models.micro_batch import Images, MicroBatch
from octopus_mcore.models.rotary import rotary_angles
from octopus_mcore.models.vision import VisionTower


class PolicyModel(GPTModel):
    """This rank's part of the model: one (virtual) pipeline stage, its tensor-parallel share, on this rank's tokens.

    The last stage returns hidden states behind the final norm, [S / (context · tensor size), 1, hidden]; log-probs of selected
    tokens are the token head's business, so no logits of a whole sequence ever exist.
    """

    def __init__(
        self,
        shape: ModelShape,
        vocab_rows: int,
        config: TransformerConfig,
        model: ModelConfig,
        device: torch.device,
        virtual_stage: int | None = None,
    ) -> None:
        """`vocab_rows` is the vocabulary's size with padding, over all tensor-parallel ranks; `device` where the model will
        compute; `virtual_stage` which of this rank's virtual stages this is, None where stages are not virtual."""
        first, last = (
            ends(ignore_virtual=False, vp_stage=virtual_stage)
            for ends in (parallel_state.is_pipeline_first_stage, parallel_state.is_pipeline_last_stage)
        )
        super().__init__(
            config=config,
            transformer_layer_spec=decoder_spec(
                config,
                get_num_layers_to_build(config, virtual_stage),
                model.layer_spec,
                attention_kernel(model.attention, config.params_dtype, device),
            ),
            vocab_size=vocab_rows,
            max_sequence_length=shape.decoder.max_positions,
            pre_process=first,
            post_process=last,
            position_embedding_type="none",
            share_embeddings_and_output_weights=shape.decoder.tied,
            vp_stage=virtual_stage,
        )
        self.shape = shape
        if first and shape.vision is not None:
            shape.hf.vision_config._attn_implementation = "sdpa"
            tower = family_of(shape.hf).vision_tower(shape.hf)
            self.vision = VisionTower(tower, shape, config.params_dtype, model.freeze_vision, config.sequence_parallel)

    def forward(self, batch: MicroBatch, visual: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states of the micro-batch on this rank.

        Args:
            batch: the tokens, the same on every rank of the replica.
            visual: what `self.vision` makes of `batch.images`, [1 + levels, visual tokens, hidden]; read on the first stage
            only.
        """
        hidden = context = positions = None
        own = ContextShare.here().tokens(len(batch)).to(batch.token_ids.device)
        if self.pre_process:
            hidden = self.embedding(input_ids=batch.token_ids[None, own], position_ids=None)
            if batch.images is not None:
                hidden, context, positions = self._place_images(hidden, batch.images, visual, len(batch))
        decoder = self.shape.decoder
        angles = rotary_angles(batch.position_ids[:, own], decoder.rope_theta, decoder.rope_channels)
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
        self, hidden: torch.Tensor, images: Images, features: torch.Tensor, length: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Puts visual features at their placeholders; also returns the deepstack features [levels, V, hidden] and positions [V]
        of the visual tokens that live on this rank.

        The index operations run on empty selections as well: every rank must reach the gather's backward pass.
        """
        held, places = ContextShare.here().locate(images.positions, length)
        local = hidden.shape[0]
        start = local * parallel_state.get_tensor_model_parallel_rank() if self.config.sequence_parallel else 0
        here = (places >= start) & (places < start + local)
        positions = places[here] - start
        mine = features.index_select(1, images.features[held][here])
        hidden = hidden.index_copy(0, positions, mine[0].unsqueeze(1).to(hidden.dtype))
        return hidden, mine[1:], positions
