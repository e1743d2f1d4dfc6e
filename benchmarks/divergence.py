"""Time and memory of the divergence: ours, the plain formula, TRL's chunked kernel, bare products.

Each variant goes from last hidden states and output heads to a value and its gradient. Task ``jsd``
is the divergence alone; task ``both`` adds the log-probs of the sampled tokens, each with its own
weights, as a training step has them. For TRL that is its ``ChunkedDivergenceFunction`` and its
``ChunkedLogProbFunction``; without `pip install trl` those columns are left out. ``products`` are
the matrix products that any exact way must make, once each: the logits of both models, and the
gradient with respect to the student's hidden states and (where it is trained) its head.

Times are medians over repeats in which the variants take turns, forward and backward, of processor
time on one thread (wall time on an accelerator). Memory is measured in a fresh process for each
variant: the peak of resident memory during one forward and backward (VmHWM, set back just before;
the allocator's peak on an accelerator) less what was there before and less the gradients' bytes.

    python benchmarks/divergence.py --json divergence.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from masters.training.losses import jsd
from masters.training.token_scores import ScoreSettings, token_scores

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape: tokens, vocabulary, widths of student and teacher, whether the head is trained."""

    tokens: int
    vocabulary: int
    student: int
    teacher: int
    trained: bool
    task: str = "jsd"
    dtype: str = "fp32"
    device: str = "cpu"
    chunk: int | None = None

    @property
    def plain_bytes(self) -> int:
        """About what the plain formula takes: twelve tensors of [T, V] in float32."""
        return 12 * self.tokens * self.vocabulary * 4

    @property
    def flops(self) -> int:
        """Of the products that nothing exact does without."""
        units = 2 * self.student + self.teacher + self.trained * self.student
        return 2 * self.tokens * self.vocabulary * units


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Tensors of a case; weights of both scores in the loss."""

    hidden_S: torch.Tensor
    head_S: torch.Tensor
    hidden_T: torch.Tensor
    head_T: torch.Tensor
    targets: torch.Tensor
    weight_N: torch.Tensor
    gain_N: torch.Tensor

    @property
    def trained(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden_S, self.head_S) if x.requires_grad]


def make_inputs(case: Case) -> Inputs:
    """Random ones; logits of about unit size; the student's head is float32 as in training."""
    generator = torch.Generator(case.device).manual_seed(0)
    dtype = DTYPES[case.dtype]

    def normal(rows: int, columns: int, scale: float = 1.0, kind: torch.dtype = dtype) -> Any:
        x = torch.empty(rows, columns, device=case.device, dtype=kind)
        return x.normal_(std=scale, generator=generator)

    def uniform() -> torch.Tensor:
        return torch.rand(case.tokens, generator=generator, device=case.device)

    return Inputs(
        hidden_S=normal(case.tokens, case.student).requires_grad_(),
        head_S=normal(
            case.vocabulary, case.student, case.student**-0.5, torch.float32
        ).requires_grad_(case.trained),
        hidden_T=normal(case.tokens, case.teacher),
        head_T=normal(case.vocabulary, case.teacher, case.teacher**-0.5),
        targets=(uniform() * case.vocabulary).long(),
        weight_N=uniform(),
        gain_N=uniform() - 0.5,
    )


def ours(case: Case, x: Inputs, *, norms: bool = True) -> torch.Tensor:
    settings = ScoreSettings(dtype=DTYPES[case.dtype], chunk=case.chunk, norms=norms)
    jsd_N, logp_N = token_scores(x.hidden_S, x.head_S, x.hidden_T, x.head_T, x.targets, settings)
    loss = (x.weight_N * jsd_N).sum()
    return loss if case.task == "jsd" else loss + (x.gain_N * logp_N).sum()


def plain(case: Case, x: Inputs) -> torch.Tensor:
    dtype = DTYPES[case.dtype]
    z_S = x.hidden_S @ x.head_S.to(dtype).T
    z_T = x.hidden_T @ x.head_T.T
    loss = (x.weight_N * jsd(z_T, z_S)).sum()
    if case.task == "jsd":
        return loss
    logp_N = z_S.float().log_softmax(-1).gather(1, x.targets[:, None])[:, 0]
    return loss + (x.gain_N * logp_N).sum()


def trl_kernels(case: Case, x: Inputs) -> torch.Tensor:
    from trl.kernels.chunked_divergence import VOCAB_CHUNK_SIZE, ChunkedDivergenceFunction
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    head_S = x.head_S.to(DTYPES[case.dtype])
    jsd_N, _ = ChunkedDivergenceFunction.apply(  # its second output is the student's entropy
        x.hidden_S, head_S, None, x.hidden_T, x.head_T, None, 0.5
    )
    loss = (x.weight_N * jsd_N).sum()
    if case.task == "jsd":
        return loss
    logp_N = ChunkedLogProbFunction.apply(
        x.hidden_S, head_S, None, x.targets, 1.0, VOCAB_CHUNK_SIZE, None, 1.0, ()
    )[0]
    return loss + (x.gain_N * logp_N).sum()


def products(case: Case, x: Inputs, rooms: dict[str, torch.Tensor]) -> None:
    """The bare matrix products, into room that is there before, in chunks of 1,024 tokens."""
    dtype = DTYPES[case.dtype]
    head_S = rooms.setdefault("head", x.head_S.detach().to(dtype))
    grad = rooms.setdefault("grad", torch.zeros_like(head_S)) if case.trained else None
    size = min(1024, case.tokens)
    z = rooms.setdefault("z", torch.zeros(size, case.vocabulary, dtype=dtype, device=case.device))
    for start in range(0, case.tokens, size):
        h_S = x.hidden_S.detach()[start : start + size]
        z_C = z[: len(h_S)]
        torch.mm(x.hidden_T[start : start + size], x.head_T.T, out=z_C)
        torch.mm(h_S, head_S.T, out=z_C)
        z_C @ head_S
        if grad is not None:
            grad.addmm_(z_C.T, h_S)


def one_pass(variant: Callable[..., Any], case: Case, x: Inputs) -> None:
    loss = variant(case, x)
    if loss is not None:
        loss.backward()


def variants(case: Case, plain_limit: float) -> dict[str, Callable[..., Any]]:
    """Those that can run here."""
    found: dict[str, Callable[..., Any]] = {"ours": ours}
    if case.task == "both":
        found["ours_without_norms"] = partial(ours, norms=False)
    if case.plain_bytes <= plain_limit * 1e9:
        found["plain"] = plain
    if find_spec("trl") is not None:
        found["trl"] = trl_kernels
    found["products"] = partial(products, rooms={})
    return found


def clock(case: Case) -> float:
    if case.device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_time(case: Case, repeats: int, plain_limit: float) -> dict[str, list[float]]:
    """Seconds of each repeat of each variant; the variants take turns."""
    x = make_inputs(case)
    seconds: dict[str, list[float]] = {}
    found = variants(case, plain_limit)
    for repeat in range(repeats + 1):
        for name, variant in found.items():
            for tensor in x.trained:
                tensor.grad = None
            begin = clock(case)
            one_pass(variant, case, x)
            if repeat:  # the first is for warming up
                seconds.setdefault(name, []).append(clock(case) - begin)
    return seconds


def measure_memory(case: Case, name: str, plain_limit: float) -> int:
    """Peak bytes beyond what was there before and beyond the gradients, of one pass."""
    variant = variants(case, plain_limit)[name]
    # Libraries and threads set themselves up on a small case first.
    small = replace(case, tokens=8, vocabulary=64)
    one_pass(variant, small, make_inputs(small))
    x = make_inputs(case)
    if case.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        one_pass(variant, case, x)
        peak = _resident("VmHWM") - before
    else:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one_pass(variant, case, x)
        peak = torch.cuda.max_memory_allocated() - before
    return peak - sum(y.nbytes for y in x.trained)


def _resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def in_a_fresh_process(case: Case, name: str, plain_limit: float) -> int:
    job = json.dumps({"case": asdict(case), "name": name, "limit": plain_limit})
    done = subprocess.run(
        [sys.executable, __file__, "--child", job], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(done.stdout.splitlines()[-1])


def summary(case: Case, seconds: dict[str, list[float]], memory: dict[str, int]) -> dict[str, Any]:
    """Medians and spreads of one case, and ratios of what each repeat took."""
    row: dict[str, Any] = {"case": asdict(case), "tera_operations": case.flops / 1e12}
    row["seconds"] = {name: spread(values) for name, values in seconds.items()}
    row["memory_mb"] = {name: value / 1e6 for name, value in memory.items()}
    mine = seconds["ours"]
    row["ratio_to_ours"] = {
        name: spread([other / own for other, own in zip(values, mine, strict=True)])
        for name, values in seconds.items()
        if name not in ("ours", "products")
    }
    row["share_of_the_limit"] = spread(
        [bare / own for bare, own in zip(seconds["products"], mine, strict=True)]
    )
    if "plain" in memory:
        row["memory_of_plain"] = memory["ours"] / memory["plain"]
    return row


def spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}


def line(row: dict[str, Any]) -> str:
    case = row["case"]
    head = "trained" if case["trained"] else "frozen"
    cells = [f"{case['task']:4} T {case['tokens']} V {case['vocabulary']} head {head}:"]
    cells += [f"{name} {s['median']:.2f} s" for name, s in row["seconds"].items()]
    cells += [
        f"{name}/ours {s['median']:.2f} ({s['low']:.2f}-{s['high']:.2f})"
        for name, s in row["ratio_to_ours"].items()
    ]
    cells.append(f"share {row['share_of_the_limit']['median']:.2f}")
    cells += [f"{name} {value:.0f} MB" for name, value in row["memory_mb"].items()]
    return " ".join(cells)


def cases(options: argparse.Namespace) -> list[Case]:
    return [
        Case(
            tokens=tokens,
            vocabulary=vocabulary,
            student=options.student,
            teacher=options.teacher,
            trained=trained,
            task=task,
            dtype=options.dtype,
            device=options.device,
            chunk=options.chunk,
        )  # fmt: skip
        for task in options.task
        for vocabulary in options.vocabulary
        for tokens in options.tokens
        for trained in (True, False)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--student", type=int, default=896, help="hidden width")
    parser.add_argument("--teacher", type=int, default=2048, help="hidden width")
    parser.add_argument("--task", nargs="+", choices=["jsd", "both"], default=["jsd", "both"])
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chunk", type=int, help="tokens per chunk of ours")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plain-limit", type=float, default=6.0, help="GB the plain one may take")
    parser.add_argument("--no-memory", action="store_true", help="times only")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.child is not None:
        job = json.loads(options.child)
        print(measure_memory(Case(**job["case"]), job["name"], job["limit"]))
        return
    rows = []
    for case in cases(options):
        seconds = measure_time(case, options.repeats, options.plain_limit)
        measured = [] if options.no_memory else [n for n in seconds if n != "products"]
        memory = {n: in_a_fresh_process(case, n, options.plain_limit) for n in measured}
        rows.append(summary(case, seconds, memory))
        print(line(rows[-1]), flush=True)
        if options.json is not None:
            result = {"torch": torch.__version__, "repeats": options.repeats, "rows": rows}
            options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
