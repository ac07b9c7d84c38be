"""Asks an exported model many questions at once, with vLLM (`pip install vllm` in an environment of its own).

    python examples/inference_vllm.py runs/octopus/export questions.jsonl --n 4 > answers.jsonl

Each line of the input is `{"question": ..., "images": ["picture.png", ...]}`, with paths relative to the file; each line of
the output repeats it with the list `answers`.
"""

import argparse
import json
from pathlib import Path

from PIL import Image
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX

INSTRUCTIONS = {"self-correction": SELF_CORRECTION_SUFFIX, "think": THINK_SUFFIX, "none": ""}


def build_prompt(tokenizer, row, folder, instruction):
    """vLLM's form of one user turn: one placeholder an image, which vLLM expands, and the images themselves."""
    images = [Image.open(folder / file).convert("RGB") for file in row.get("images", [])]
    question = "\n\n".join(filter(None, (row["question"], instruction)))
    # Templates of text models read a string only.
    content = [{"type": "image"} for _ in images] + [{"type": "text", "text": question}] if images else question
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    prompt = {"prompt": text}
    if images:
        prompt["multi_modal_data"] = {"image": images}
    return prompt


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name of the exported model")
    parser.add_argument("questions", type=Path, help="JSONL file")
    parser.add_argument("--instruction", choices=INSTRUCTIONS, default="self-correction", help="text behind each question")
    parser.add_argument("--n", type=int, default=1, help="answers to each question")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=16384)
    parser.add_argument("--max-model-len", type=int, default=65536)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    instruction = INSTRUCTIONS[options.instruction]
    prompts = [build_prompt(tokenizer, row, options.questions.parent, instruction) for row in rows]
    images = max((len(row.get("images", [])) for row in rows), default=0)
    engine = LLM(
        model=options.model,
        max_model_len=options.max_model_len,
        tensor_parallel_size=options.tensor_parallel,
        limit_mm_per_prompt={"image": images, "video": 0} if images else None,  # None: a text model has no such limits
        generation_config="vllm",  # the temperatures above, not the model's shipped defaults
        seed=options.seed,
    )
    sampling = SamplingParams(
        n=options.n,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_new_tokens,
        seed=options.seed,
        skip_special_tokens=False,  # keeps <think> visible whatever the tokenizer calls special
    )
    for row, output in zip(rows, engine.generate(prompts, sampling), strict=True):
        answers = [answer.text.removesuffix(tokenizer.eos_token) for answer in output.outputs]
        print(json.dumps(row | {"answers": answers}, ensure_ascii=False))


if __name__ == "__main__":
    main()
