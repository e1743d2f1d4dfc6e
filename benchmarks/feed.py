"""How many questions a second the input path makes ready, and whether a step would wait for them.

    python benchmarks/feed.py --json feed.json

Writes JPEG photographs (noise with a camera's file size) and a tiny model whose processor has
Qwen3-VL's published settings (patch 16, merge 2, Pillow), then encodes every question once, nothing
cached: read, decode, resize, cut into patches, normalise, tokenise, hash. First as quickly as it
goes, with each number of threads; then against a step that takes ``--step-ms`` a question on a
device of its own (here: asleep), where the share of time spent waiting is what counts. A control,
hashing, says how much a second thread can bring on the machine at that moment.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masters.read_ahead import ReadAhead

if TYPE_CHECKING:
    from masters.models.encode import EncodedPrompt
    from masters.stages.opening import Prompts

#: Of Qwen3-VL's preprocessor_config.json.
PUBLISHED = {
    "patch_size": 16,
    "merge_size": 2,
    "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def main() -> None:
    """Reads the command line, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--images", type=int, default=256, help="questions, an image each (256)")
    parser.add_argument("--pixels", type=int, default=448, help="side of an image (448)")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--step-ms", type=float, default=30.0, help="a step's, a question (30)")
    parser.add_argument("--questions-per-step", type=int, default=16, help="(16)")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), given)
    print(json.dumps(found, indent=1))
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Rates and shares of waiting by number of threads; 0: in the step's own thread."""
    import torch

    from masters.data.questions import Questions
    from masters.data.sources import open_questions
    from masters.models.load import load_processor
    from masters.recipe import JsonlSource, Prompt
    from masters.stages.opening import Prompts

    torch.set_num_threads(1)
    questions: Questions = open_questions(
        JsonlSource(kind="jsonl", path=str(write_questions(folder, given.images, given.pixels)))
    )
    processor = load_processor(str(write_processor(folder / "model")), backend="pil")

    def fresh() -> Prompts:
        prompts = Prompts(questions, processor, Prompt(suffix=None), cache=0)
        prompts(0)
        return prompts

    rates = {n: rate(fresh(), range(given.images), n) for n in given.threads}
    waits = {
        n: share_waiting(fresh(), given.images, n, given.questions_per_step, given.step_ms / 1000)
        for n in given.threads
    }
    first = fresh()(0)
    return {
        "images": given.images,
        "pixels": given.pixels,
        "bytes_a_prompt": first.size,
        "tokens_a_prompt": len(first.ids),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "samples_per_second": rates,
        "control_megabytes_per_second": {n: control(n) for n in given.threads if n},
        "step_ms_a_question": given.step_ms,
        "share_waiting": waits,
    }


def rate(prompts: Prompts, indices: Sequence[int], threads: int) -> float:
    """Questions encoded and hashed in a second."""

    def ready(index: int) -> EncodedPrompt:
        prompt = prompts(index)
        _ = prompt.image_key
        return prompt

    begin = time.perf_counter()
    with ReadAhead(ready, indices, workers=threads, size=lambda prompt: prompt.size) as encoded:
        for index in indices:
            encoded(index)
    return len(indices) / (time.perf_counter() - begin)


def control(threads: int) -> float:
    """Megabytes hashed in a second by so many threads, which share nothing: what the machine gives.

    Where other work leaves no second core, this does not grow with threads, and nothing else can.
    """
    block = bytes(1 << 22)

    def hashed(turn: int) -> int:
        hashlib.blake2b(block).digest()
        return turn

    begin = time.perf_counter()
    with ReadAhead(hashed, range(100), workers=threads) as ahead:
        for turn in range(100):
            ahead.take(turn)
    return 100 * len(block) / 1e6 / (time.perf_counter() - begin)


def share_waiting(prompts: Prompts, count: int, threads: int, size: int, seconds: float) -> float:
    """Of the time of all steps but the first, the share that they wait for their questions."""
    steps = [range(start, start + size) for start in range(0, count - size + 1, size)]
    begin = before = 0.0
    with prompts.ahead(range(count), threads) as encoded:
        for number, step in enumerate(steps):
            if number == 1:
                begin, before = time.perf_counter(), encoded.seconds_waiting
            for index in step:
                encoded(index)
            time.sleep(seconds * size)
        return (encoded.seconds_waiting - before) / (time.perf_counter() - begin)


def write_questions(folder: Path, count: int, side: int) -> Path:
    """A JSON Lines file and its JPEG images: smooth noise of about a photograph's size."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    lines = []
    for i in range(count):
        coarse = draw.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=90)
        (folder / f"{i}.jpg").write_bytes(content.getvalue())
        lines.append({"id": str(i), "image": f"{i}.jpg", "question": "What?", "answer": "noise"})
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def write_processor(folder: Path) -> Path:
    """A tiny model's folder whose image processor has the published settings."""
    from masters.models.tiny import write_tiny_model

    write_tiny_model(folder, "qwen3_vl_100k", seed=0, texts=["What is it?"])
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | PUBLISHED))
    return folder


if __name__ == "__main__":
    sys.exit(main())
