"""What SGLang is sent to generate, and what its answers mean.

* A prompt travels as ids with *one* placeholder an image, which SGLang expands without decoding the rest (0.5.23,
  `compose_image_artifacts`). It returns the ids that it used; if they are not the request's, that is an error.
* Log-probs are those of SGLang's temperature-scaled distribution before truncation; banned ids have a logit bias that leaves
  them probability 0, so the log-probs are those over the allowed ids.
* SGLang's own end tokens cannot be changed for a request: a response that ends on an id that the request does not name is an
  error.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from octopus_mcore.rollout.engine import EngineError, Generation, GenerationRequest, Phase, SamplingParams, ServerFault

_BANNED_BIAS = -1e30
"""Added to a banned logit: finite because JSON knows no infinity; its probability is exactly 0 in float32 and bfloat16."""


def body_of(
    request: GenerationRequest, samples: int, pictures: Sequence[bytes], placeholder: int | None, deterministic: bool
) -> dict[str, Any]:
    """The JSON of a request for `samples` responses to one prompt. `pictures` are its images as PNG files, `placeholder` the id
    that stands for a piece of an image.

    Raises:
        ValueError: placeholders and images disagree.
    """
    sampling = _sampling(request.sampling) | {"n": samples}
    if deterministic:
        sampling["sampling_seed"] = request.seed & (2**63 - 1)
    body = {
        "input_ids": _one_placeholder_each(request, placeholder),
        "sampling_params": sampling,
        "return_logprob": True,
        "return_prompt_token_ids": True,
    }
    if pictures:
        images = [f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in pictures]
        # SGLang makes a batch of one of a prompt with several samples, and then expects a list of images a prompt.
        body["image_data"] = images if samples == 1 else [images]
    return body


def _sampling(params: SamplingParams) -> dict[str, Any]:
    return {
        "temperature": params.temperature,
        "top_p": params.top_p,
        **({} if params.top_k is None else {"top_k": params.top_k}),
        "max_new_tokens": params.max_new_tokens,
        "stop_token_ids": list(params.stop_token_ids),
        "ignore_eos": not params.stop_token_ids,
        "skip_special_tokens": False,
        "logit_bias": {str(token): _BANNED_BIAS for token in params.banned_token_ids} or None,
    }


def _one_placeholder_each(request: GenerationRequest, placeholder: int | None) -> list[int]:
    """The request's ids with each image's run of placeholders cut to its first.

    Raises:
        ValueError: an image's placeholders are not where its reference says, or there are others.
    """
    ids, kept, read = request.token_ids, [], 0
    for image in sorted(request.images, key=lambda image: image.offset):
        end = image.offset + image.num_tokens
        if image.offset < read or set(ids[image.offset : end]) != {placeholder} or end > len(ids):
            raise ValueError(f"ids {image.offset} to {end - 1} of a request are not the placeholders of image {image.key!r}")
        kept += [*ids[read : image.offset], placeholder]
        read = end
    kept += ids[read:]
    if kept.count(placeholder) != len(request.images):
        raise ValueError(f"a request has image placeholders beyond those of its {len(request.images)} images")
    return kept


def generation_of(answer: Mapping[str, Any], request: GenerationRequest, server: str) -> Generation:
    """The answer, checked: what was read, what was written, and why it ended.

    Raises:
        EngineError: the server works, but reads or ends otherwise than the request says.
        ServerFault: it does not work; so does what Python raises for fields that are missing or of another kind.
    """
    about = answer["meta_info"]
    finish = about["finish_reason"]
    ids = tuple(answer["output_ids"])
    scored = about["output_token_logprobs"] or []
    log_probs = np.array([entry[0] for entry in scored], dtype=np.float32)
    fault = None
    if not str(about.get("weight_version")).isdecimal():
        fault = f"answered with weight version {about.get('weight_version')!r}, which no update gave it"
    elif tuple(entry[1] for entry in scored) != ids or len(ids) > request.sampling.max_new_tokens:
        fault = f"gave log-probs of {len(scored)} tokens for a response of {len(ids)}, or of other tokens"
    elif not np.isfinite(log_probs).all():
        fault = "gave log-probs that are not finite: its memory is broken, or the weights have diverged"
    elif finish["type"] not in ("stop", "length", "abort"):
        fault = f"ended a response for the reason {finish}"
    elif finish["type"] == "abort" and finish.get("status_code") is not None:
        fault = f"gave a request up: {finish.get('message')}"
    if fault is not None:
        raise ServerFault(Phase.GENERATE, server, fault)
    wrong = None
    if tuple(answer["prompt_token_ids"]) != request.token_ids:
        wrong = f"read a prompt of {about.get('prompt_tokens')} ids that are not the request's {len(request.token_ids)}"
    elif finish["type"] == "stop" and ids[-1] not in request.sampling.stop_token_ids:
        wrong = f"ended a response on id {ids[-1]}, which is none of the stop ids {request.sampling.stop_token_ids}"
    if wrong is not None:
        raise EngineError(Phase.GENERATE, server, wrong)
    return Generation(ids, log_probs, finish["type"], int(about["weight_version"]))
