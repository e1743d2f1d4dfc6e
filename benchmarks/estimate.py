"""How far `masters plan --estimate` is from what stages take, and the cluster file of this machine.

Runs the real stages of small settings on one thread, by processor time: the efficiencies of the
cost model are fitted to some of them, the others are predicted. Each of these differs from all
fitted ones in the models' shapes and in several of pictures, lengths, groups and numbers.

    python benchmarks/estimate.py --json estimate.json --cluster cpu.yaml
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import yaml
from estimating.cases import FITTED, TESTED, WARM
from estimating.fitting import fitted
from estimating.running import Ran, run_case
from stepping.clock import matmul_peak, now

from masters.estimate.cluster import Assumed, Cluster, Efficiency, Tflops
from masters.estimate.work import prices, seconds
from masters.run import quiet_libraries

#: What is called near: the share of the measured time by which an estimate may be off.
NEAR = 0.3
ROUNDS = 2


def this_machine() -> Cluster:
    """One thread of this processor, nothing fitted yet."""
    one = Assumed(value=0.5)
    zero = Assumed(value=0.0)
    peak = matmul_peak() / 1e12
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Cluster(
        name="one thread of a processor", device="cpu", gpus=1, gpus_per_node=1,
        memory_gb=round(pages * size / 1e9, 1), bandwidth_gb_s=round(copy_rate() / 1e9, 1),
        tflops=Tflops(bf16=round(peak, 4), fp32=round(peak, 4)), node_gb_s=10, network_gb_s=1,
        host_gb_s=10, disk_gb=100,
        disk_gb_s=round(read_rate() / 1e9, 1),
        source="peak, bandwidth and reading of cached files measured by benchmarks/estimate.py",
        efficiency=Efficiency(
            train=one, forward=one, generate=one, head=one, decode=one, layer_seconds=zero,
            pass_seconds=zero, sample_seconds=zero, question_seconds=zero, patch_seconds=zero,
            row_seconds=zero, update_seconds=zero, mask_seconds=zero, matrix_seconds=zero,
            stage_seconds=zero,
            reserved_gb=Assumed(value=0.5),
        ),
    )  # fmt: skip


def copy_rate(size: int = 1 << 26, repeats: int = 5) -> float:
    """Bytes a second that a copy reads and writes."""
    source, target = torch.ones(size), torch.empty(size)
    target.copy_(source)
    begin = now()
    for _ in range(repeats):
        target.copy_(source)
    return 2 * 4 * size * repeats / (now() - begin)


def read_rate(size: int = 1 << 27) -> float:
    """Bytes a second in which a file is read that the system still holds in memory."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(size))
        file.flush()
        path = Path(file.name)
        begin = now()
        path.read_bytes()
        return size / (now() - begin)


def measured(folder: Path, quick: bool) -> tuple[list[Ran], list[Ran]]:
    """(the runs to fit, the runs to predict), each stage at the faster of two rounds.

    Fitted and predicted settings take turns, so that a busy machine slows down both alike.
    """
    cases = [case for pair in zip_longest(FITTED, TESTED) for case in pair if case is not None]
    if quick:
        cases = [FITTED[0], TESTED[0], FITTED[1]]
    run_case(WARM, folder / "warm")  # what a first run imports is nobody's cost
    best: dict[tuple[str, str], Ran] = {}
    for number in range(1 if quick else ROUNDS):
        for case in cases:
            ran = run_case(case, folder / f"{number}-{case.name.replace(' ', '-')}")
            print(f"round {number}, {case.name}: {sum(one.seconds for one in ran):.1f} s")
            for one in ran:
                key = (one.case, one.stage)
                best[key] = min(best.get(key, one), one, key=lambda run: run.seconds)
    fitting = {case.name for case in FITTED}
    return (
        [one for one in best.values() if one.case in fitting],
        [one for one in best.values() if one.case not in fitting],
    )


def compared(cluster: Cluster, runs: list[Ran]) -> list[dict[str, Any]]:
    """Each run beside its estimate."""
    price = prices(cluster, "fp32")
    return [
        {
            "case": one.case, "stage": one.stage, "kind": one.kind, "measured": one.seconds,
            "estimated": (guess := seconds(work := one.work(cluster), price)),
            "ratio": guess / one.seconds, "work": asdict(work),
        }
        for one in runs
    ]  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row for each case, a column for each stage, estimate over measured seconds."""
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    lines = [f"| case | {' | '.join(stages)} | all |", "| --- |" + " --- |" * (len(stages) + 1)]
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["stage"]: row for row in rows if row["case"] == case}
        cells = [_cell(own[name]) if name in own else "" for name in stages]
        total = {key: sum(row[key] for row in own.values()) for key in ("estimated", "measured")}
        lines.append(f"| {case} | {' | '.join([*cells, _cell(total)])} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any]) -> str:
    ratio = row["estimated"] / row["measured"]
    return f"{row['estimated']:.2g} / {row['measured']:.2g} = {ratio:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--cluster", type=Path, help="write this machine's cluster file here")
    parser.add_argument("--quick", action="store_true", help="three cases: to see that it runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        machine = this_machine()
        known, unknown = measured(Path(folder), options.quick)
        cluster = fitted(machine, known)
        rows = {"fitted": compared(cluster, known), "tested": compared(cluster, unknown)}
    for name, own in rows.items():
        near = sum(abs(row["ratio"] - 1) <= NEAR for row in own)
        print(f"\n{name}: {near} of {len(own)} stages within {NEAR:.0%}\n\n{table(own)}")
    if options.cluster is not None:
        text = yaml.safe_dump(cluster.model_dump(mode="json"), sort_keys=False, width=100)
        options.cluster.write_text("# One thread of one machine; see docs/scaling.md\n" + text)
    if options.json is not None:
        result = {"near": NEAR, "cluster": cluster.model_dump(mode="json"), **rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
