"""Asks an exported model one question, with Transformers alone.

    python examples/inference_hf.py runs/digits_octopus/export --image picture.png \\
        --question "First*second+next?" --instruction none

Only the instructions' texts come from octopus_mcore; the model is an ordinary one of its family. Text models take no --image.
"""

import argparse

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from octopus_mcore.data.instructions import SELF_CORRECTION_SUFFIX, THINK_SUFFIX

INSTRUCTIONS = {"self-correction": SELF_CORRECTION_SUFFIX, "think": THINK_SUFFIX, "none": ""}


def build_inputs(path, question, image_files):
    """Token ids and pixels of one user turn: what `AutoProcessor` builds, from its two parts.

    `AutoProcessor` also loads a video processor, which needs torchvision; tokenizer and image processor do not.
    """
    tokenizer = AutoTokenizer.from_pretrained(path)
    # Templates of text models read a string only.
    content = [{"type": "image"} for _ in image_files] + [{"type": "text", "text": question}] if image_files else question
    text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
    inputs = {}
    if image_files:
        processor = AutoImageProcessor.from_pretrained(path, backend="pil")
        inputs = dict(processor(images=[Image.open(file).convert("RGB") for file in image_files], return_tensors="pt"))
        # The template writes one placeholder an image; the model wants one a visual token.
        first, *rest = text.split("<|image_pad|>")
        tokens = (inputs["image_grid_thw"].prod(dim=1) // processor.merge_size**2).tolist()
        text = first + "".join("<|image_pad|>" * count + part for count, part in zip(tokens, rest, strict=True))
    inputs |= tokenizer(text, add_special_tokens=False, return_tensors="pt")
    if image_files:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    return tokenizer, {name: value for name, value in inputs.items() if name != "token_type_ids"}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name of the exported model")
    parser.add_argument("--question", required=True)
    parser.add_argument("--image", action="append", default=[], help="image file; may be repeated")
    parser.add_argument("--instruction", choices=INSTRUCTIONS, default="self-correction", help="text behind the question")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    question = "\n\n".join(filter(None, (options.question, INSTRUCTIONS[options.instruction])))
    tokenizer, inputs = build_inputs(options.model, question, options.image)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    has_vision = hasattr(AutoConfig.from_pretrained(options.model), "vision_config")
    family = AutoModelForImageTextToText if has_vision else AutoModelForCausalLM
    model = family.from_pretrained(options.model, dtype="auto").to(device)
    torch.manual_seed(options.seed)
    # top_k=0 and top_p=1: the distribution that the model was trained on, not the shipped generation defaults.
    sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    output = model.generate(
        **{name: value.to(device) for name, value in inputs.items()},
        max_new_tokens=options.max_new_tokens,
        **(sampling if options.temperature > 0 else {"do_sample": False}),
    )
    answer = output[0, inputs["input_ids"].shape[1] :].tolist()
    print(tokenizer.decode([token for token in answer if token not in (tokenizer.eos_token_id, tokenizer.pad_token_id)]))


if __name__ == "__main__":
    main()
