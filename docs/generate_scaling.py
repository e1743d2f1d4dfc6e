"""Writes what docs/scaling.md says in numbers: the estimate of the paper's four families.

Run ``make recipes``. A test fails when the committed page differs. The runs against which the
estimate was checked are put in by hand from ``benchmarks/estimate.py``: they took a machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from masters.drafts import Draft
from masters.estimate.cluster import Cluster, load_cluster
from masters.estimate.jobs import place
from masters.estimate.stages import Jobs
from masters.estimate.workload import workload_of
from masters.recipe import Recipe, load_recipe
from masters.specs import GenerateSpec

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CONFIGS = ROOT / "tests" / "configs"
QUESTIONS = 1_500_000
COUNTS = (8, 64, 256)
FAMILIES = {
    "qwen25vl_7b_ladder": "Qwen2.5-VL: 7B from 32B, 72B",
    "qwen3vl_2b_ladder": "Qwen3-VL: 2B from 8B, 32B",
    "internvl3_8b_ladder": "InternVL3: 8B from 14B, 38B, 78B",
    "internvl35_8b_ladder": "InternVL3.5: 8B from 14B, 38B",
}
KINDS = ("generate", "judge", "score", "train")
ROWS = re.compile(r"(\| family \|.*\n\| --- .*\n)((?:\|.*\n)*)")


def family_recipe(name: str) -> Recipe:
    """The example under the profile ``cluster``, its models' configurations at hand."""
    path = ROOT / "docs" / "examples" / f"{name}.yaml"
    sets = [
        "method.rewards.accuracy={kind: judge, judge: {model: server, name: teacher}}",
        "runtime.server.url=http://localhost:8000/v1",
        "runtime.generation_batch=256",
    ]
    recipe = load_recipe(path)
    named = [("models.student", recipe.models.student)]
    named += [(f"models.teachers.{i}", one) for i, one in enumerate(recipe.models.teachers)]
    for key, source in named:
        assert source.path is not None
        sets.append(f"{key}.path={CONFIGS / source.path.split('/')[1]}")
    return load_recipe(path, "cluster", sets)


def estimated(recipe: Recipe, cluster: Cluster) -> tuple[dict[str, float], float]:
    """(hours by kind, GPU-hours).

    Teachers answer through vLLM, spread over as many GPUs as their weights need, and judge behind a
    server that does the same.
    """
    hours: dict[str, float] = defaultdict(float)
    gpu_hours = 0.0
    jobs = Jobs(recipe, QUESTIONS, cluster, workload_of(recipe))
    jobs.drafts = {name: _through_vllm(draft) for name, draft in jobs.drafts.items()}
    for name, draft in jobs.drafts.items():
        placed = place(jobs.job(name), cluster)
        assert placed.fits, (recipe.name, name, cluster.gpus)
        hours[draft.spec.kind] += placed.hours
        gpu_hours += placed.hours * placed.gpus
    return hours, gpu_hours


def _through_vllm(draft: Draft) -> Draft:
    if not isinstance(draft.spec, GenerateSpec):
        return draft
    return replace(draft, spec=draft.spec.model_copy(update={"engine": "vllm"}))


def table_rows() -> str:
    """A row for each family and number of GPUs."""
    rows = []
    for name, title in FAMILIES.items():
        recipe = family_recipe(name)
        for gpus in COUNTS:
            hours, gpu_hours = estimated(recipe, load_cluster("a100", gpus=gpus))
            cells = [f"{hours[kind]:,.0f}" for kind in KINDS]
            days = sum(hours.values()) / 24
            each = 3600 * gpu_hours / QUESTIONS
            rows.append(
                f"| {title} | {gpus} | {' | '.join(cells)} | {days:,.1f} | {gpu_hours:,.0f} | "
                f"{each:.0f} |\n"
            )
    return "".join(rows)


def page() -> str:
    """The page with its table made anew."""
    text = PAGE.read_text(encoding="utf-8")
    found = ROWS.search(text)
    assert found is not None, f"{PAGE}: no table of families"
    return text[: found.start(2)] + table_rows() + text[found.end(2) :]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
