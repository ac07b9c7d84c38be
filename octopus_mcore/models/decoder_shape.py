"""A Qwen text configuration → `DecoderShape`: what the families of this project share."""

from __future__ import annotations

from transformers import PretrainedConfig

from octopus_mcore.models.family import DecoderShape, require


def decoder_shape(
    text: PretrainedConfig, where: str, tied: bool, qk_norm: bool, qkv_bias: bool, rope_channels: tuple[int, ...]
) -> DecoderShape:
    """The decoder of a text configuration. `where` is the configuration's place in `config.json`, such as `text_config.`.

    Raises:
        ValueError: a field is missing or has a value that is not supported, named with its place.
    """
    rope = text.rope_parameters or {}
    if "rope_theta" not in rope:
        raise ValueError(f"{where}rope_parameters has no rope_theta (base of the rotary frequencies)")
    layer_types = set(getattr(text, "layer_types", None) or ()) | {"full_attention"}
    require(
        {
            f"{where}hidden_act": (text.hidden_act, "silu"),
            f"{where}attention_bias": (bool(getattr(text, "attention_bias", False)), False),
            f"{where}attention_dropout": (getattr(text, "attention_dropout", 0.0), 0.0),
            f"{where}use_sliding_window": (bool(getattr(text, "use_sliding_window", False)), False),
            f"{where}layer_types": (sorted(layer_types), ["full_attention"]),
            f"{where}rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
        }
    )
    _check_heads(text, where)
    return DecoderShape(
        layers=text.num_hidden_layers,
        hidden_size=text.hidden_size,
        ffn_size=text.intermediate_size,
        heads=text.num_attention_heads,
        groups=text.num_key_value_heads,
        head_dim=head_dim(text),
        vocab_size=text.vocab_size,
        max_positions=text.max_position_embeddings,
        norm_epsilon=text.rms_norm_eps,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        tied=tied,
        rope_theta=rope["rope_theta"],
        rope_channels=rope_channels,
    )


def _check_heads(text: PretrainedConfig, where: str) -> None:
    heads, groups, size = text.num_attention_heads, text.num_key_value_heads, head_dim(text)
    if groups < 1:
        raise ValueError(f"{where}num_key_value_heads is {groups}; at least 1 is needed")
    if heads % groups:
        raise ValueError(f"{where}num_attention_heads={heads} is no multiple of {where}num_key_value_heads={groups}")
    if not getattr(text, "head_dim", None) and text.hidden_size % heads:
        raise ValueError(f"{where}hidden_size={text.hidden_size} does not divide into {where}num_attention_heads={heads}")
    if size % 2:
        raise ValueError(f"{where}head_dim is {size}; rotary positions turn pairs of numbers, so it must be even")


def head_dim(text: PretrainedConfig) -> int:
    """Size of one attention head; configurations that do not say it mean hidden size ÷ heads.

    Raises:
        ValueError: there are no heads.
    """
    if text.num_attention_heads < 1:
        raise ValueError(f"num_attention_heads is {text.num_attention_heads}; at least 1 is needed")
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def mrope_section(text: PretrainedConfig) -> list[int]:
    """Rotary frequencies of time, height and width.

    Raises:
        ValueError: the configuration does not say.
    """
    section = (text.rope_parameters or {}).get("mrope_section")
    if section is None:
        raise ValueError("text_config.rope_parameters has no mrope_section (frequencies of time, height, width)")
    if len(section) != 3 or sum(section) != head_dim(text) // 2:
        raise ValueError(
            f"text_config.rope_parameters.mrope_section is {section}; expected three numbers whose sum is half of head_dim="
            f"{head_dim(text)}"
        )
    return list(section)
