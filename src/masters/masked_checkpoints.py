"""`masters mask --materialise`: the plan's masked teachers as checkpoints that any engine loads."""

from __future__ import annotations

from pathlib import Path

from masters.errors import StageError
from masters.plan import Plan
from masters.ratios import ratio_parts, ratio_text
from masters.specs import MaskSpec
from masters.stages.opening import model_folder
from masters.teachers.materialise import write_masked
from masters.teachers.thresholds import load_thresholds


def write_masked_teachers(plan: Plan, ratio: str) -> list[Path]:
    """Writes ``OUT/masked/<teacher>-<ratio>-...`` for each mask stage that has the ratio.

    Args:
        plan: its mask stages are done.
        ratio: a decimal such as 0.2.

    Returns:
        The folders, the ones that were there already included.

    Raises:
        StageError: no mask stage of the plan has this ratio.
    """
    parts = ratio_parts(ratio, name="--materialise")
    stages = [s for s in plan.stages if isinstance(s.spec, MaskSpec) and parts in s.spec.ratios]
    if not stages:
        known = {r for s in plan.stages if isinstance(s.spec, MaskSpec) for r in s.spec.ratios}
        raise StageError(
            f"{plan.recipe.name} masks no teacher at {ratio}; expected one of "
            f"{', '.join(ratio_text(r) for r in sorted(known)) or 'none (it has no mask)'}. Set "
            "method.phases[].mask to have others"
        )
    written = []
    for stage in stages:
        assert isinstance(stage.spec, MaskSpec)
        inputs = {role: plan.stage(name).folder for role, name in stage.inputs.items()}
        name = f"{stage.name.removeprefix('mask/').replace('/', '-')}-{ratio_text(parts)}"
        target = plan.out / "masked" / f"{name}-{stage.fingerprint[:12]}"
        if not target.exists():
            source = model_folder(stage.spec.teacher, inputs)
            thresholds = load_thresholds(stage.folder / "thresholds.json")
            write_masked(source, target, thresholds, parts)
        written.append(target)
    return written
