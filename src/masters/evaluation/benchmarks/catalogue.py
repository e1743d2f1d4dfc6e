"""The thirteen benchmarks in the paper's order: what each harness calls them and how they count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from masters.errors import StageError
from masters.evaluation.benchmarks import questions as read

Counting = Literal["share", "mean", "groups", "pairs"]
"""share: right answers of all. mean: of scores between 0 and 1. groups: the mean of the shares of
groups, whatever their sizes. pairs: each question is asked in two settings, and both count."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Args:
        name: on our command line.
        title: of its column.
        tasks: lmms-eval's; with several, the benchmark is the mean of theirs.
        metric: lmms-eval's key of the metric, "name,filter".
        full: the metric's value for a perfect score.
        questions: how many count, as published.
        counting: see ``Counting``.
        judge: what an LLM judge is asked for; "" where none is.
        question: reads a line of lmms-eval's log.
        kit: VLMEvalKit's data sets; with several, the benchmark is the mean of theirs.
        kit_class: their class in VLMEvalKit.
        kit_metric: VLMEvalKit's key of the metric in status.json.
        kit_full: its value for a perfect score.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    metric: str
    full: float = 1.0
    questions: int
    counting: Counting = "share"
    judge: str = ""
    question: read.Reader
    kit: tuple[str, ...]
    kit_class: str = "ImageMCQDataset"
    kit_metric: str = "split=none|Overall"
    kit_full: float = 1.0


_BLINK = (
    "art_style", "counting", "forensic_detection", "functional_correspondence", "iq_test",
    "jigsaw", "multi_view_reasoning", "object_localization", "relative_depth",
    "relative_reflectance", "semantic_correspondence", "spatial_relation",
    "visual_correspondence", "visual_similarity",
)  # fmt: skip
_LETTER = "the letter, where an answer shows none"

BENCHMARKS: tuple[Benchmark, ...] = (
    Benchmark(
        name="ai2d", title="AI2D", tasks=("ai2d",), metric="exact_match,flexible-extract",
        questions=3088, question=read.plain("exact_match"), kit=("AI2D_TEST",),
    ),
    Benchmark(
        name="chartqa", title="ChartQA", tasks=("chartqa",), metric="relaxed_overall,none",
        questions=2500, question=read.plain("relaxed_overall"), kit=("ChartQA_TEST",),
        kit_class="ImageVQADataset", kit_metric="Overall", kit_full=100.0,
    ),
    Benchmark(
        name="mathvista", title="MathVista", tasks=("mathvista_testmini_format",),
        metric="llm_as_judge_eval,none", full=100.0, questions=1000,
        judge="the answer's extraction", question=read.mathvista,
        kit=("MathVista_MINI",), kit_class="MathVista", kit_metric="Task&Skill=Overall|acc",
        kit_full=100.0,
    ),
    Benchmark(
        name="mmbench", title="MMB", tasks=("mmbench_en_dev",), metric="gpt_eval_score,none",
        full=100.0, questions=1164, judge=_LETTER, question=read.mmbench,
        kit=("MMBench_DEV_EN",), kit_metric="split=dev|Overall",
    ),
    Benchmark(
        name="mmbench_cn", title="MMB-CN", tasks=("mmbench_cn_dev",), metric="gpt_eval_score,none",
        full=100.0, questions=1164, judge=_LETTER, question=read.mmbench,
        kit=("MMBench_DEV_CN",), kit_metric="split=dev|Overall",
    ),
    Benchmark(
        name="mmvet", title="MM-Vet", tasks=("mmvet",), metric="gpt_eval_score,none", full=100.0,
        questions=218, counting="mean", judge="a score from 0 to 1", question=read.mmvet,
        kit=("MMVet",), kit_class="MMVet", kit_metric="Category=Overall|acc", kit_full=100.0,
    ),
    Benchmark(
        name="mmmu", title="MMMU", tasks=("mmmu_val",), metric="mmmu_acc,none", questions=900,
        question=read.mmmu, kit=("MMMU_DEV_VAL",), kit_class="MMMUDataset",
        kit_metric="split=validation|Overall",
    ),
    Benchmark(
        name="mmmu_pro", title="MMMU-Pro", tasks=("mmmu_pro_standard", "mmmu_pro_vision"),
        metric="mmmu_acc,none", questions=1730, counting="pairs", question=read.mmmu_pro,
        kit=("MMMU_Pro_10c", "MMMU_Pro_V"), kit_class="MMMUProDataset",
    ),
    Benchmark(
        name="mmstar", title="MMStar", tasks=("mmstar",), metric="average,none", questions=1500,
        counting="groups", question=read.mmstar, kit=("MMStar",),
    ),
    Benchmark(
        name="blink", title="BLINK", tasks=tuple(f"blink_{task}" for task in _BLINK),
        metric="blink_acc,none", questions=1901, counting="groups", question=read.blink,
        kit=("BLINK",),
    ),
    Benchmark(
        name="seed", title="SEED", tasks=("seedbench",), metric="seed_image,none",
        questions=14233, question=read.letters("seed_image"), kit=("SEEDBench_IMG",),
    ),
    Benchmark(
        name="seed2_plus", title="SEED2+", tasks=("seedbench_2_plus",),
        metric="seedbench_2_plus_all,none", questions=2277,
        question=read.letters("seedbench_2_plus_all"), kit=("SEEDBench2_Plus",),
    ),
    Benchmark(
        name="realworldqa", title="RWQA", tasks=("realworldqa",), metric="exact_match,none",
        questions=765, question=read.plain("exact_match"), kit=("RealWorldQA",),
    ),
)  # fmt: skip
"""All thirteen; the paper's mean is over these, each with weight one."""


def chosen(names: str) -> tuple[Benchmark, ...]:
    """The benchmarks named, in the paper's order.

    Args:
        names: parted by commas, or "all".

    Raises:
        StageError: a name is unknown.
    """
    if names.strip() == "all":
        return BENCHMARKS
    wanted = {name.strip().lower() for name in names.split(",") if name.strip()}
    known = {benchmark.name for benchmark in BENCHMARKS}
    if unknown := sorted(wanted - known):
        raise StageError(
            f"--benchmarks: no benchmark {', '.join(unknown)}; expected all, or names of "
            f"{', '.join(benchmark.name for benchmark in BENCHMARKS)}"
        )
    if not wanted:
        raise StageError("--benchmarks: names none; expected all, or names parted by commas")
    return tuple(benchmark for benchmark in BENCHMARKS if benchmark.name in wanted)


def titles(benchmarks: Sequence[Benchmark]) -> str:
    """Their names for a message."""
    return ", ".join(benchmark.name for benchmark in benchmarks)
