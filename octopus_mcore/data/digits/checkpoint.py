"""Writes the digits checkpoint: a Qwen3-VL of less than half a million parameters, as a complete Hugging Face folder.

Tokenizer, image processor and generation settings are part of it, so every other room treats it like any downloaded checkpoint.
The weights are random; the SFT phase of the demo is the model's whole education.
"""

from __future__ import annotations

import json
import os
import shutil
from os import PathLike
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from octopus_mcore.data.chatml import CHATML_TEMPLATE
from octopus_mcore.data.digits import task
from octopus_mcore.data.digits.task import Way
from octopus_mcore.runtime.seeds import key_bits, numpy_generator

PATCH = 8
MERGE = 2
_END, _PAD = "<|im_end|>", "<|endoftext|>"
_SPECIAL = (_PAD, "<|im_start|>", _END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_THINK = ("<think>", "</think>")
_VOCABULARY_MULTIPLE = 16
_WORDS = r"\n+|\\boxed\{|\}|</?self-correction>|\d| ?[A-Za-z]+|."
"""Pieces that never merge with each other: an attempt ends in `}` and the separator begins with a newline run, so first
attempt, separator and correction have the same tokens alone and together."""


def create_checkpoint(
    path: str | PathLike,
    seed: int = 0,
    layers: int = 4,
    hidden: int = 64,
    heads: int = 2,
    kv_heads: int = 2,
    vision_layers: int = 2,
    digits: int = 3,
) -> Path:
    """Writes the checkpoint into the new folder `path` and returns it. Equal arguments give equal bytes.

    `heads` and `kv_heads` of 32 dimensions each bound the tensor-parallel size, `layers` the pipeline-parallel one. `digits`
    only tells the tokenizer which texts to expect. The folder appears complete or not at all.

    Raises:
        FileExistsError: `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already; remove it or choose another folder for the digits checkpoint")
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        tokenizer = _tokenizer(digits)
        config = _config(tokenizer, layers, hidden, heads, kv_heads, vision_layers)
        _write_model(draft, config, tokenizer, seed)
        tokenizer.save_pretrained(draft)
        _declare_portable_tokenizer(draft / "tokenizer_config.json")
        _write_image_processor(draft)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _tokenizer(digits: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on texts of the task, with Qwen's special tokens. As in Qwen3, `<think>` is not special."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in _SPECIAL]
    special += [AddedToken(token, special=False, normalized=False) for token in _THINK]
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(digits), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=_END,
        pad_token=_PAD,
        clean_up_tokenization_spaces=False,
        chat_template=CHATML_TEMPLATE,
    )


def _corpus(digits: int, size: int = 300) -> list[str]:
    """Texts as the tokenizer will meet them, apart from special tokens."""
    generator = numpy_generator("digits tokenizer")
    shown = generator.integers(0, 10, size=(size, 2, digits)).tolist()
    return [
        f"user\n{task.question(digits)}\nassistant\n"
        f"{task.attempt(first, Way.GUT)}{task.SEPARATOR}{task.attempt(second, Way.WORKED)}"
        for first, second in shown
    ]


def _config(
    tokenizer: PreTrainedTokenizerFast, layers: int, hidden: int, heads: int, kv_heads: int, vision_layers: int
) -> Qwen3VLConfig:
    """The architecture: 32-dimensional heads, interleaved M-RoPE, one deepstack feature, tied embeddings."""
    ids = tokenizer.convert_tokens_to_ids
    vocabulary = -(-len(tokenizer) // _VOCABULARY_MULTIPLE) * _VOCABULARY_MULTIPLE
    return Qwen3VLConfig(
        text_config=dict(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=32,
            max_position_embeddings=1024,
            initializer_range=0.05,
            tie_word_embeddings=True,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[6, 5, 5], mrope_interleaved=True),
            pad_token_id=ids(_PAD),
            eos_token_id=ids(_END),
        ),
        vision_config=dict(
            depth=vision_layers,
            hidden_size=64,
            intermediate_size=128,
            num_heads=2,
            patch_size=PATCH,
            spatial_merge_size=MERGE,
            temporal_patch_size=2,
            out_hidden_size=hidden,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
            initializer_range=0.05,
        ),
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def _write_model(folder: Path, config: Qwen3VLConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    """Random weights by Hugging Face's own initialisation, which only knows the global generator: it is lent and given back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_bits(seed, "digits checkpoint") & (2**63 - 1))
        model = Qwen3VLForConditionalGeneration(config).float()
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)


def _declare_portable_tokenizer(file: Path) -> None:
    """Names the tokenizer class by the name that Transformers 4 (in engines) and 5 both know."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_image_processor(folder: Path) -> None:
    """Image processor settings that leave a picture of whole digits at its size; engines ask for the same for video."""
    side = PATCH * MERGE
    shared = dict(
        patch_size=PATCH,
        temporal_patch_size=2,
        merge_size=MERGE,
        size={"shortest_edge": side * side, "longest_edge": 64 * side * side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    Qwen2VLImageProcessorPil(**shared).save_pretrained(folder)
    video = {"video_processor_type": "Qwen3VLVideoProcessor", **shared}
    file = folder / "video_preprocessor_config.json"
    file.write_text(json.dumps(video, indent=2) + "\n", encoding="utf-8")
