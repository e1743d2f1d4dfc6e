"""Stands in for vLLM's environment: the worker's protocol, answered by transformers.

Run as ``python -m tests.invariant.vllm_stand_in``; VLLM_STAND_IN holds "version[:dies after so many
batches]".
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling
from masters.models.encode import EncodedPrompt
from masters.models.load import load_model, load_processor, token_ids


def main() -> None:
    torch.set_num_threads(1)
    version, _, batches = os.environ["VLLM_STAND_IN"].partition(":")
    folder = json.loads(sys.stdin.readline())["options"]["model"]
    print(f"opened {folder}", file=sys.stderr, flush=True)
    model, processor = load_model(folder), load_processor(folder)
    ids = token_ids(model, processor)
    rows = model.get_output_embeddings().weight.shape[0]
    # As vLLM: the rows that fill the head up are in the softmax and never chosen.
    ids = replace(ids, vocabulary=rows, banned=(*ids.banned, *range(ids.vocabulary, rows)))
    engine = TransformersEngine(model, processor, ids)
    say({"ready": version})
    for done, line in enumerate(sys.stdin):
        if batches and done == int(batches):
            print("killed by the test", file=sys.stderr, flush=True)
            os._exit(9)
        batch = json.loads(line)
        asked = batch["sampling"]
        names = ("temperature", "top_p", "top_k", "repetition_penalty")
        sampling = Sampling(
            max_new_tokens=asked["max_tokens"], **{name: asked[name] for name in names}
        )
        requests = [
            Request(prompt=prompt(processor, request), keys=keys(request))
            for request in batch["requests"]
        ]
        for index, own in enumerate(engine.generate(requests, sampling)):
            samples = [
                {"ids": c.token_ids, "logprobs": c.logprobs, "finish": c.finish} for c in own
            ]
            say({"index": index, "samples": samples})
        say({"done": True})


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


def keys(request: Any) -> tuple[SampleKey, ...]:
    return tuple(
        SampleKey(seed=request["seed"] + n, question_id="", source="", ratio=0, round=0, sample=0)
        for n in range(request["n"])
    )


def prompt(processor: Any, request: Any) -> EncodedPrompt:
    images = [Image.open(io.BytesIO(base64.b64decode(file))) for file in request["images"]]
    text = processor.tokenizer.decode(request["ids"], skip_special_tokens=False)
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    ids = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask")
    types = {
        name: inputs.pop(name)[0].tolist() for name in ("mm_token_type_ids",) if name in inputs
    }
    return EncodedPrompt(text=text, ids=ids, token_types=types, images=dict(inputs))


if __name__ == "__main__":
    main()
