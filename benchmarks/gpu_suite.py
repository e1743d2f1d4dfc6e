"""Everything that needs a GPU, measured by one command in under ten minutes.

A Qwen3-VL-2B student under teachers of the 8B's and the 32B's shape (random weights, drawn on the
device; teachers in bf16, the student's weights float32 under bf16 autocast):

- device: what it is, its bf16 matrix products and copies;
- scores: `token_scores` against the bare matrix products, V 151,936, T 2,048;
- exactness: packed against repeated rows in bf16, by the rule of a run's first batch;
- steps 8B, steps 32B: a question's gradient, live teacher, each form of a group, and stored signals
  (hidden, topk) without it, at prompt:response 4:1, 16:1 and 1:1: seconds, response tokens/s,
  counted operations over the products' speed (MFU), peak memory;
- generation: new tokens a second; masks: seconds and bytes of each change of the mask.

The JSON is written after every number, so a run that is killed keeps what it has. A section without
time or memory is skipped, with the reason. Needs torch, transformers, numpy, pillow and pyarrow,
and no network.

    PYTHONPATH=src python benchmarks/gpu_suite.py --json gpu.json
    PYTHONPATH=src python benchmarks/gpu_suite.py --small    # tiny, on a CPU: proves the script
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from on_gpu import parts
from on_gpu.running import Section, run_sections
from on_gpu.setting import CONFIGS, Setting
from on_gpu.steps import Steps, exactness, steps_under

from masters.models.devices import exact_arithmetic

SCHEMA = 1
NAMES = ("device", "scores", "exactness", "steps 8B", "generation", "masks", "steps 32B")


def sections(setting: Setting, result: dict[str, Any]) -> list[Section]:
    """All of them, in order; those of the student share it."""

    @cache
    def steps() -> Steps:
        found = result["sections"].get("device", {}).get("results", {})
        peak = found.get("matmul_tflops")
        return Steps(setting, peak and 1e12 * peak)

    runs = {
        "device": (5, 30, lambda: parts.device_facts(setting)),
        "scores": (15, 60, lambda: parts.scores(setting)),
        "exactness": (40, 150, lambda: exactness(setting, steps)),
        "steps 8B": (40, 170, lambda: steps_under(setting, steps, "8B")),
        "generation": (20, 60, lambda: parts.generation(setting)),
        "masks": (30, 90, lambda: parts.masks(setting)),
        "steps 32B": (40, 170, lambda: steps_under(setting, steps, "32B")),
    }
    return [
        Section(name=name, least=0 if setting.small else least, most=most, run=run)
        for name, (least, most, run) in runs.items()
    ]


def versions() -> dict[str, str | None]:
    """Of what the numbers depend on."""
    found: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in ("torch", "transformers", "triton", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return {**found, "cuda": torch.version.cuda}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here, after each of them")
    parser.add_argument("--small", action="store_true", help="tiny models on a CPU: seconds")
    parser.add_argument(
        "--budget", type=float, default=570, help="seconds for all sections (default 570)"
    )
    parser.add_argument("--device", help="default cuda:0; with --small cpu")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, metavar="SECTION",
        help=f"of {', '.join(NAMES)}",
    )  # fmt: skip
    parser.add_argument(
        "--configs", type=Path, default=CONFIGS, help="folder of the published configurations"
    )
    options = parser.parse_args()
    device = torch.device(options.device or ("cpu" if options.small else "cuda:0"))
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no CUDA device; --small runs on a CPU")
    exact_arithmetic()
    setting = Setting(device, options.small, options.configs)
    result: dict[str, Any] = {
        "schema": SCHEMA, "small": options.small, "device": str(device), "versions": versions(),
        "budget": options.budget, "sections": {},
    }  # fmt: skip
    chosen = [s for s in sections(setting, result) if s.name in options.only]
    run_sections(chosen, result, budget=options.budget, path=options.json)


if __name__ == "__main__":
    main()
