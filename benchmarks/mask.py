"""How quickly, and in how much memory, the thresholds of a large checkpoint are measured.

Writes a random bf16 checkpoint with every tensor of the configuration (Qwen3-VL-4B: 8.9 GB in five
files), then measures all its layers at four ratios, each time in a fresh process on one core. The
first reading brings the files into the page cache; the ones after it count.

    python benchmarks/mask.py --json mask.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "tests" / "configs" / "Qwen3-VL-4B-Instruct" / "config.json"
RATIOS = (500, 1000, 1500, 2000)
BLOCK = 1 << 24


def write_checkpoint(config: Path, folder: Path, shard_bytes: int = 2 * 10**9) -> int:
    """Random bf16 weights (standard deviation 0.02) for every tensor; returns the bytes written."""
    from masters.models.layers import meta_model
    from masters.models.load import load_config

    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(config, folder / "config.json")
    model = meta_model(load_config(str(folder)))
    if model.config.tie_word_embeddings:
        model.tie_weights()
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = shard_bytes
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        if size > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = shape
        room -= size
    generator = np.random.Generator(np.random.SFC64(0))
    return sum(
        _write_shard(folder / f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors", s, generator)
        for i, s in enumerate(shards)
    )


def _write_shard(file: Path, shapes: dict[str, tuple[int, ...]], generator: np.random.Generator):
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as sink:
        sink.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, at // 2, BLOCK):
            count = min(BLOCK, at // 2 - start)
            values = generator.standard_normal(count, dtype=np.float32) * np.float32(0.02)
            sink.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
    return at


def measure(folder: Path) -> dict[str, float]:
    """One pass over the checkpoint in this process."""
    from masters.teachers.measuring import measure_thresholds

    begin = time.perf_counter()
    thresholds = measure_thresholds(folder, RATIOS)
    seconds = time.perf_counter() - begin
    size = 2 * sum(layer.size for layer in thresholds.layers.values())
    return {
        "seconds": seconds,
        "bytes": size,
        "layers": len(thresholds.layers),
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2,
    }


def _in_a_fresh_process(folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--config", type=Path, default=CONFIG, help="a config.json")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written and kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(measure(options.child)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "checkpoint"
        if not (folder / "config.json").exists():
            written = write_checkpoint(options.config, folder)
            print(f"wrote {written / 1e9:.2f} GB to {folder}")
        runs = [_in_a_fresh_process(folder) for _ in range(1 + options.repeats)][1:]
    speeds = [run["bytes"] / 1e6 / run["seconds"] for run in runs]
    result = {
        "megabytes_per_second": median(speeds),
        "slowest": min(speeds),
        "peak_rss_gb": max(run["peak_rss_gb"] for run in runs),
        "bytes": int(runs[0]["bytes"]),
        "layers": int(runs[0]["layers"]),
        "ratios": len(RATIOS),
        "repeats": options.repeats,
    }
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
