"""What a mask makes of a teacher: its accuracy, entropy, and distance to the student, by ratio.

    python benchmarks/suites/teacher_by_ratio.py TEACHER STUDENT PROFILE.yaml [--json FILE]

TEACHER and STUDENT are model folders (``model/`` in the stage that taught them; `masters ablate
SUITE --plan` names the stages), PROFILE is the suite's. On the validation questions: greedy
accuracy. At the tokens of the whole teacher's own greedy answers, means over answers of means over
tokens, in nats: entropy, JSD to the whole teacher, JSD to the student; and the temperature at which
the whole teacher has the masked one's entropy (`mask.kind: softness`), by bisection.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from masters.calibration.measuring import Asking, Measuring
from masters.calibration.tokens import token_measures
from masters.data.sources import open_questions
from masters.recipe import Recipe, load_recipe
from masters.stages.opening import OpenedModel, Prompts, open_model
from masters.teachers.masked import MaskedTeacher
from masters.teachers.measuring import measure_thresholds
from masters.training.losses import jsd_from_log_probs
from masters.training.token_scores import log_probs
from masters.workers import configure

RATIOS = (0, 1500, 3000, 4500, 6000, 7500, 9000)
QUESTIONS = 1000


class ByRatio(Measuring):
    """What `masters calibrate` measures, the distance to a student, and temperatures."""

    def to_student(self, student: OpenedModel, ratio: int) -> float:
        """Mean JSD between the teacher under this mask and the student."""
        self._teacher.set_ratio(ratio)
        other = MaskedTeacher(student.model, student.folder, None)
        real = self._opened.ids.vocabulary
        theirs_VD = student.model.get_output_embeddings().weight.detach()
        found: list[torch.Tensor] = []
        for rows in self._batches():
            ours_NV = self._states(self._teacher, rows) @ self._head_VD[:real].T
            theirs_NV = self._states(other, rows) @ theirs_VD[:real].T
            jsd_N = jsd_from_log_probs(log_probs(ours_NV), log_probs(theirs_NV), 0.5)[0]
            found += [jsd_N[start:stop].mean() for start, stop in rows.spans]
        return float(torch.stack(found).mean())

    def temperature_of(self, entropy: float) -> float:
        """The temperature, at least 1, at which the whole teacher has this mean entropy."""
        low, high = 1.0, 16.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self._entropy_at(middle) < entropy else (low, middle)
        return (low + high) / 2

    def _entropy_at(self, temperature: float) -> float:
        ids, found = self._opened.ids, []
        for rows, whole_ND in zip(self._batches(), self._whole, strict=True):
            said = {"vocabulary": ids.vocabulary, "banned": ids.banned}
            soft_ND = whole_ND / temperature
            measures = token_measures(whole_ND, soft_ND, self._head_VD, rows.targets_N, **said)
            found += [measures.entropy_N[start:stop].mean() for start, stop in rows.spans]
        return float(torch.stack(found).mean())


def by_ratio(teacher: Path, student: Path, recipe: Recipe) -> list[dict[str, float]]:
    """One row for each of RATIOS."""
    opened, learner = (
        open_model(folder, recipe.prompt, recipe.runtime, precision="fp32", teacher=True)
        for folder in (teacher, student)
    )
    assert recipe.data.validation is not None
    prompts = Prompts(open_questions(recipe.data.validation), opened.processor, recipe.prompt)
    asking = Asking(
        indices=tuple(range(QUESTIONS)),
        max_new_tokens=recipe.method.responses.max_new_tokens,
        rule=recipe.evaluation.rule,
        precision="fp32",
        runtime=recipe.runtime,
    )
    thresholds = measure_thresholds(teacher, RATIOS[1:])
    measuring = ByRatio(opened, thresholds, prompts, asking, lambda done, total, note: None)
    whole = measuring.unmasked()
    found = []
    for ratio in RATIOS:
        row = measuring.masked(ratio) if ratio else whole
        found.append(
            {
                "ratio": ratio / 1e4,
                "accuracy": row.accuracy.value,
                "entropy": row.entropy.value,
                "jsd_to_whole": row.jsd.value,
                "jsd_to_student": measuring.to_student(learner, ratio),
                "temperature": measuring.temperature_of(row.entropy.value) if ratio else 1.0,
            }
        )
    return found


def main() -> None:
    """Measures, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("profile")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    recipe = load_recipe("masters", profile=asked.profile)
    configure(recipe.runtime)
    rows = by_ratio(asked.teacher, asked.student, recipe)
    print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(f"{value:.4g}" for value in row.values()) + " |")
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
