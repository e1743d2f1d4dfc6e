"""Which models keep the features of their pictures, in training and where they answer."""

from __future__ import annotations

from typing import Any

from masters import curriculum
from masters.models.feature_cache import FeatureCache, FeatureStore, attach_features
from masters.recipe import Runtime
from masters.specs import TrainSpec
from masters.teachers.masked import MaskedTeacher

AUTO_GB = 4.0
#: Of the pictures of a stage, how many must come again for their features to be kept.
SHARE = 0.1


def keep_features(
    spec: TrainSpec, runtime: Runtime, questions: int, student: Any, teacher: MaskedTeacher | None
) -> dict[str, FeatureCache]:
    """The caches of the student and the teacher, by role, where they have one.

    With ``auto`` a model has one where questions come round again under the same weights, or where
    prompts are repeated in a batch: that follows from the plan, so a run that goes on has the same.

    Args:
        questions: how many there are.
        student: the model, frozen as it is trained.
        teacher: None where there is none.
    """
    wanted = runtime.feature_cache_gb
    if wanted == 0:
        return {}
    seen = curriculum.pairs(spec.schedule, questions, spec.start, spec.stop)
    uses = (spec.stop - spec.start) * spec.schedule.questions_per_step
    without_ratio = len(curriculum.distinct(seen * [1, 0]))
    models: dict[str, tuple[Any, int]] = {"student": (student, without_ratio)}
    if teacher is not None:
        each = len(seen) if teacher.masks_pictures else without_ratio
        models["teacher"] = teacher.model, each
    again = {role: uses >= (1 + SHARE) * different for role, (_, different) in models.items()}
    room = AUTO_GB if wanted == "auto" else wanted
    store = FeatureStore(int(room * 1e9))
    none_kept = FeatureStore(0)
    found: dict[str, FeatureCache | None] = {}
    for role, (model, _) in models.items():
        if wanted == "auto" and not again[role] and runtime.group_forward != "repeat":
            continue
        version = (lambda: 0) if role == "student" or teacher is None else teacher.picture_ratio
        kept = store if again[role] or wanted != "auto" else none_kept
        found[role] = attach_features(model, kept, role, version=version)
    return {role: cache for role, cache in found.items() if cache is not None}


def answer_features(
    runtime: Runtime, teacher: MaskedTeacher, *, samples: int, asked: int, questions: int
) -> FeatureCache | None:
    """The cache of a model that answers, if pictures come again: for a prompt's samples, or later.

    Args:
        teacher: the model, masked or not.
        samples: answers to each prompt, in one batch.
        asked, questions: prompts in all, and how many of them differ but for the masking ratio.
    """
    again = asked >= (1 + SHARE) * questions and not teacher.masks_pictures
    wanted = runtime.feature_cache_gb
    if wanted == 0 or not (again or samples > 1):
        return None
    room = AUTO_GB if wanted == "auto" else wanted
    store = FeatureStore(int(room * 1e9) if again else 0)
    return attach_features(teacher.model, store, "model", version=teacher.picture_ratio)
