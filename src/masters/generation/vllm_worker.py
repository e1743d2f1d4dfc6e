"""Runs in vLLM's own environment: reads jobs as JSON lines, writes answers as JSON lines.

Nothing of masters is imported, only vLLM, Pillow and the standard library. What vLLM and its
children print goes to the log, never between the answers.
"""

import base64
import io
import json
import os
import sys


def main() -> None:
    """Opens the model of the first line, then answers one batch for each further line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # file descriptor 1 is from now on the log, for vLLM's children too

    def say(value: object) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    opening = json.loads(sys.stdin.readline())
    import vllm  # pyright: ignore[reportMissingImports]

    model = vllm.LLM(**opening["options"])
    say({"ready": vllm.__version__})
    for line in sys.stdin:
        for index, output in enumerate(answered(vllm, model, json.loads(line))):
            say({"index": index, "samples": [sample(one) for one in output.outputs]})
        say({"done": True})


def answered(vllm, model, batch):  # noqa: ANN001, ANN201
    """vLLM's outputs for a batch, in its order."""
    prompts = []
    for request in batch["requests"]:
        prompt = {"prompt_token_ids": request["ids"]}
        if request["images"]:
            prompt["multi_modal_data"] = {"image": [picture(file) for file in request["images"]]}
        prompts.append(prompt)
    sampling = batch["sampling"]
    bias = {int(token): value for token, value in (sampling.pop("logit_bias") or {}).items()}
    params = [
        vllm.SamplingParams(
            **sampling, logit_bias=bias or None, n=request["n"], seed=request["seed"]
        )
        for request in batch["requests"]
    ]
    return model.generate(prompts, params, use_tqdm=False)


def picture(file):  # noqa: ANN001, ANN201
    """A picture from its file's base64."""
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(file))).convert("RGB")


def sample(output):  # noqa: ANN001, ANN201
    """One answer: ids, the raw log-prob of each, and why it ended."""
    ids = [int(token) for token in output.token_ids]
    logprobs = [float(step[token].logprob) for step, token in zip(output.logprobs, ids)]  # noqa: B905
    return {"ids": ids, "logprobs": logprobs, "finish": output.finish_reason}


if __name__ == "__main__":
    main()
