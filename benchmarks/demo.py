"""The demo's training with packed groups against repeated prompts: seconds, values, accuracy.

Trains the demo's ``masters`` again from the same stored stages, once with every form of a group,
and compares the values of the first steps, the seconds of the train stage and the accuracy in the
end. The run to start from is made first if it is not there.

    python benchmarks/demo.py --out runs/demo --json demo.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

FORMS = ("repeat", "auto")


def main() -> None:
    """Prints a line for each form; ``--json`` writes all numbers."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="the demo's folder")
    parser.add_argument("--steps", type=int, default=20, help="first steps whose values count")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each form, in turns")
    parser.add_argument("--set", dest="sets", action="append", default=[], help="recipe overrides")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    given = parser.parse_args()
    _run(given.out, given.sets)
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    for _ in range(given.repeats):
        for form in FORMS:
            runs[form].append(_again(given.out, form, given.sets))
    apart = _apart(*(runs[form][0]["metrics"] for form in FORMS), given.steps)
    seconds = {form: sorted(run["seconds"] for run in runs[form]) for form in FORMS}
    numbers = {
        "steps": given.steps,
        "apart": max(apart.values()),
        "apart_by_metric": apart,
        "train_seconds": seconds,
        "speedup": seconds["repeat"][given.repeats // 2] / seconds["auto"][given.repeats // 2],
        "accuracy": {form: runs[form][0]["accuracy"] for form in FORMS},
    }
    for form in FORMS:
        value, low, high = (100 * x for x in numbers["accuracy"][form])
        spent = ", ".join(f"{x:.1f}" for x in seconds[form])
        print(f"{form}: train stage {spent} s; accuracy {value:.1f} ({low:.1f} to {high:.1f})")
    print(f"repeat / auto: {numbers['speedup']:.2f} times the seconds (medians)")
    print(f"largest difference of a value in the first {given.steps} steps: {numbers['apart']:.1e}")
    if given.json:
        given.json.write_text(json.dumps(numbers, indent=1) + "\n")


def _run(out: Path, sets: list[str]) -> Any:
    from masters import load_recipe, make_plan, run_plan

    plan = make_plan(load_recipe("masters", profile="tiny", overrides=sets), out)
    run_plan(plan)
    return plan


def _again(source: Path, form: str, sets: list[str]) -> dict[str, Any]:
    """The train stage's log and seconds, and the accuracy, of one more training in this form."""
    with tempfile.TemporaryDirectory(dir=source.parent) as folder:
        out = Path(folder)
        shutil.copytree(source / "stages", out / "stages", copy_function=os.link)
        for name in _ends(source):
            shutil.rmtree(out / "stages" / name)
        plan = _run(out, [*sets, f"runtime.group_forward={form}"])
        stages = {stage.name: stage.folder for stage in plan.stages}
        train = stages["train/0-teacher"]
        rows = json.loads((stages["evaluate/student"] / "results.json").read_text())["rows"]
        headline = next(row for row in rows if row["kind"] == "all")
        return {
            "metrics": [json.loads(x) for x in (train / "metrics.jsonl").read_text().splitlines()],
            "seconds": json.loads((train / "record.json").read_text())["seconds"],
            "accuracy": [headline[name] for name in ("value", "low", "high")],
        }


def _ends(source: Path) -> list[str]:
    """Folders of what is made anew: the training of the phase, and the student's evaluation."""
    stages = json.loads((source / "masters.plan.json").read_text())["stages"]
    return [Path(stages[name]["folder"]).name for name in ("train/0-teacher", "evaluate/student")]


def _apart(
    ours: list[dict[str, float]], theirs: list[dict[str, float]], steps: int
) -> dict[str, float]:
    """The largest |difference| of every logged value but times, over the first steps."""
    found: dict[str, float] = {}
    for mine, other in zip(ours[:steps], theirs[:steps], strict=True):
        for name in mine.keys() - {"step"}:
            if not name.startswith("time/"):
                gap = abs(mine[name] - other[name])
                found[name] = max(found.get(name, 0.0), math.inf if math.isnan(gap) else gap)
    return found


if __name__ == "__main__":
    main()
