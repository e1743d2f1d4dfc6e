"""What sharing a question's prompt gains: counted first, measured beside it, and against TRL.

One question with G responses of R tokens to a prompt of P tokens, three quarters of them image
tokens of a vision tower, through the student (forward, loss, backward, update), its teacher and its
reference, in each form of `runtime.group_forward`: `repeat` (a row for each response), `mask` and
`attention` (one row for all). `stored` has the teacher's hidden states from before the step, so
only the student runs. All models are Qwen3-VL with random weights in float32, the student 512 wide
with 6 layers, the teacher 1,024 wide with 4 (2.5 times the arithmetic).

Everything takes turns in every round, so that a busy machine slows all down alike; times are
medians [least, most] over the rounds, of processor time on one thread (wall time on more). TRL's
functions (`pip install trl`) run over the same models on repeated prompts; without TRL those
numbers are null.

    python benchmarks/step.py --json step.json
    python benchmarks/step.py --only steps --without-picture
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from stepping import report, sections, shapes
from stepping.memory import in_a_fresh_process
from stepping.shapes import Case
from stepping.small import measure_small
from stepping.ways import Models

SECTIONS = ("steps", "memory", "growth", "small")
#: Which packed form suits which length: what `SHORT` in training/group_forward.py rests on.
EXTRA = "forms"
LENGTHS = (
    (24, 6, 4),
    (32, 8, 8),
    (64, 16, 8),
    (80, 22, 8),
    (96, 24, 8),
    (128, 32, 8),
    (192, 48, 8),
)
RATIOS = {"1:1": 1, "4:1": 4, "16:1": 16}
#: Beside the 4:1 of `RATIOS`, which vary the prefix.
VARIED = {"group": [2, 16], "response": [16, 144], "vocabulary": [32768]}


def cases(options: argparse.Namespace) -> dict[str, Case]:
    """Prompts once, four and sixteen times as long as a response."""
    response, vocabulary = (8, 256) if options.quick else (48, 4096)
    return {
        name: Case(
            prefix=ratio * response, response=response, group=4 if options.quick else 8,
            vocabulary=vocabulary, picture=not options.without_picture,
        )
        for name, ratio in RATIOS.items()
    }  # fmt: skip


def build(quick: bool, vocabulary: int) -> Models:
    """Student, reference and teacher over this vocabulary."""
    if quick:
        return Models(shapes.QUICK_STUDENT, shapes.QUICK_TEACHER, vocabulary)
    return Models(shapes.STUDENT, shapes.TEACHER, vocabulary)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Every section that is asked for."""
    at = cases(options)
    rounds = 1 if options.quick else options.repeats
    result: dict[str, Any] = {"machine": machine()}
    models = build(options.quick, at["1:1"].vocabulary)
    if "steps" in options.only:
        result["steps"] = sections.measure_steps(models, at, rounds)
    if "memory" in options.only:
        long = at["16:1"]
        saved = sections.saved_activations(models, long)
        result["memory"] = {"saved_bytes": saved, "peak_bytes": None}
        if not options.quick:
            result["memory"]["peak_bytes"] = {
                form: in_a_fresh_process(Path(__file__), "--child", form) for form in sections.FORMS
            }
    if "growth" in options.only and not options.quick:
        result["growth"] = sections.measure_growth(
            lambda vocabulary: build(False, vocabulary), at["4:1"], VARIED, rounds
        )
    if "small" in options.only:
        result["small"] = measure_small(1 if options.quick else 7)
    if EXTRA in options.only:
        result["forms"] = sections.measure_forms(
            {"64 wide": build(True, 256), "512 wide": build(options.quick, 256)},
            [
                Case(prefix=p, response=r, group=g, vocabulary=256, picture=False)
                for p, r, g in LENGTHS
            ],
            rounds,
        )
    result["machine"]["load_after"] = os.getloadavg()
    return {**headline(result), **result}


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that others read, by fixed names; None where they were not measured."""
    found: dict[str, dict[str, Any]] = result.get("steps", {}).get("shapes", {})
    saved = result.get("memory", {}).get("saved_bytes")
    errors = [(k, v) for shape in found.values() for k, v in shape["errors"].items()]

    def largest(kind: str) -> float | None:
        packed = [v for k, v in errors if k in (f"{kind}/mask", f"{kind}/attention")]
        return max(packed, default=None)

    def against(name: str) -> dict[str, float | None]:
        return {
            ratio: found.get(ratio, {}).get("trl_ratio", {}).get(name, [None])[0]
            for ratio in ("4:1", "16:1")
        }

    return {
        "speedup": {
            ratio: found[ratio]["speedup"]["attention"][0] if ratio in found else None
            for ratio in RATIOS
        },
        "activation_ratio_16_1": saved["repeat"] / saved["attention"] if saved else None,
        "trl_ratio_live": against("attention + reference"),
        "trl_ratio_stored": against("stored"),
        "max_logprob_error": largest("logprob"),
        "max_gradient_error": largest("gradient"),
    }


def machine() -> dict[str, Any]:
    """Where this ran, and how busy it was."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--quick", action="store_true", help="tiny models, one round: seconds")
    parser.add_argument(
        "--without-picture", action="store_true", help="prompts of words only: no vision tower"
    )
    parser.add_argument(
        "--only", nargs="+", choices=(*SECTIONS, EXTRA), default=SECTIONS, metavar="SECTION",
        help=f"of {', '.join(SECTIONS)} (default: all of these) and {EXTRA}",
    )  # fmt: skip
    parser.add_argument("--child", choices=sections.FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child is not None:
        long = cases(options)["16:1"]
        models = build(options.quick, long.vocabulary)
        print(json.dumps(sections.peak_resident(models, long, options.child)))
        return
    result = measure(options)
    print(report.tables(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
