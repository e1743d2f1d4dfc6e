"""Writes what docs/scaling.md says in numbers: the estimate of the paper's four families.

Run ``make recipes``. A test fails when the committed page differs. The runs against which the
estimate was checked are put in by hand from ``benchmarks/estimate.py``: they took a machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from masters.estimate.changes import Change, apply_change, first_change
from masters.estimate.cluster import Cluster, load_cluster
from masters.estimate.jobs import place
from masters.estimate.stages import Jobs
from masters.estimate.workload import workload_of
from masters.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CONFIGS = ROOT / "tests" / "configs"
QUESTIONS = 1_500_000
#: What the paper names: two days, 256 A100 of 80 GB.
PAPER_GPU_HOURS = 2 * 24 * 256
FAMILIES = {
    "qwen25vl_7b_ladder": "Qwen2.5-VL: 7B from 32B, 72B",
    "qwen3vl_2b_ladder": "Qwen3-VL: 2B from 8B, 32B",
    "internvl3_8b_ladder": "InternVL3: 8B from 14B, 38B, 78B",
    "internvl35_8b_ladder": "InternVL3.5: 8B from 14B, 38B",
}
KINDS = ("generate", "judge", "score", "train")
ROWS = re.compile(r"(\| family \|.*\n\| --- .*\n)((?:\|.*\n)*)")
CHANGES = re.compile(r"(<!-- changes -->\n)(.*?)(\n<!-- end of changes -->)", re.DOTALL)


def family_recipe(name: str) -> Recipe:
    """The example with its models' configurations at hand, a judge, and the profile ``cluster``."""
    path = ROOT / "docs" / "examples" / f"{name}.yaml"
    sets = ["method.rewards.accuracy={kind: judge, judge: {model: teacher}}"]
    recipe = load_recipe(path)
    named = [("models.student", recipe.models.student)]
    named += [(f"models.teachers.{i}", one) for i, one in enumerate(recipe.models.teachers)]
    for key, source in named:
        assert source.path is not None
        sets.append(f"{key}.path={CONFIGS / source.path.split('/')[1]}")
    return load_recipe(path, "cluster", sets)


def estimated(recipe: Recipe, cluster: Cluster) -> tuple[dict[str, float], float, dict[str, str]]:
    """(hours by kind, GPU-hours, stage -> the change it needed), the changes made."""
    workload = workload_of(recipe)
    hours: dict[str, float] = defaultdict(float)
    gpu_hours, changes = 0.0, {}
    base = Jobs(recipe, QUESTIONS, cluster, workload)
    for name, draft in base.drafts.items():
        placed = place(base.job(name), cluster)
        if not placed.fits:
            change = first_change(base, name)
            assert change is not None, name
            placed = _changed(base, name, change, cluster)
            changes[name] = str(change)
        hours[draft.spec.kind] += placed.hours
        gpu_hours += placed.hours * placed.gpus
    return hours, gpu_hours, changes


def _changed(base: Jobs, name: str, change: Change, cluster: Cluster):
    values = [text.split("=", 1) for text in change.sets]
    path = ROOT / "docs" / "examples" / f"{base.recipe.name}.yaml"
    sources = [("models.student", base.recipe.models.student)]
    sources += [(f"models.teachers.{i}", s) for i, s in enumerate(base.recipe.models.teachers)]
    sets = [f"{key}.path={source.path}" for key, source in sources]
    sets += ["method.rewards.accuracy={kind: judge, judge: {model: teacher}}"]
    sets += [f"{key}={value}" for key, value in values]
    wider = apply_change(cluster, change)
    jobs = Jobs(load_recipe(path, "cluster", sets), QUESTIONS, wider, base.workload)
    return place(jobs.job(name), wider)


def rows_and_changes() -> tuple[str, str]:
    """The table's rows, and a line for each kind of stage that needed another setting."""
    rows, needed = [], defaultdict(set)
    for name, title in FAMILIES.items():
        recipe = family_recipe(name)
        for gpus in (8, 64, 256):
            hours, gpu_hours, changes = estimated(recipe, load_cluster("a100", gpus=gpus))
            for stage, change in changes.items():
                kind, phase = stage.split("/")[:2]
                needed[change].add(f"{kind} with {phase.split('-')[1]} of {title.split(':')[0]}")
            cells = [f"{hours[kind]:,.0f}" for kind in KINDS]
            days = sum(hours.values()) / 24
            each = 3600 * gpu_hours / QUESTIONS
            rows.append(
                f"| {title} | {gpus} | {' | '.join(cells)} | {days:,.1f} | {gpu_hours:,.0f} | "
                f"{each:.0f} |\n"
            )
    lines = [f"- `{change}`: {', '.join(sorted(stages))}" for change, stages in needed.items()]
    return "".join(rows), "\n".join(sorted(lines))


def page() -> str:
    """The page with its table and its list of changes made anew."""
    text = PAGE.read_text(encoding="utf-8")
    rows, changes = rows_and_changes()
    found = ROWS.search(text)
    assert found is not None, f"{PAGE}: no table of families"
    text = text[: found.start(2)] + rows + text[found.end(2) :]
    return CHANGES.sub(lambda match: match[1] + changes + match[3], text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
