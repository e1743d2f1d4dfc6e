"""Temperatures at which the whole teacher is as uncertain as the masked one: mask kind softness.

    python benchmarks/suites/match_temperature.py TEACHER_FOLDER benchmarks/suites/medium.yaml

Measures the mean entropy over the tokens of the whole teacher's greedy answers to the validation
questions, under each mask, and finds by bisection the temperature that gives the whole teacher that
entropy on the same tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from masters.calibration.measuring import Asking, Measuring
from masters.calibration.tokens import token_measures
from masters.data.sources import open_questions
from masters.recipe import load_recipe
from masters.stages.opening import Prompts, open_model
from masters.teachers.measuring import measure_thresholds
from masters.workers import configure

RATIOS = (1500, 3000, 4500, 6000, 7500)
QUESTIONS = 512


class Matching(Measuring):
    """What `masters calibrate` measures, and the whole teacher's entropy at a temperature."""

    def entropy_at(self, temperature: float) -> float:
        """Mean over answers of their tokens' mean entropy, logits divided by ``temperature``."""
        ids, found = self._opened.ids, []
        for rows, whole_ND in zip(self._batches(), self._whole, strict=True):
            soft_ND = whole_ND / temperature
            said = {"vocabulary": ids.vocabulary, "banned": ids.banned}
            entropy_N = token_measures(
                whole_ND, soft_ND, self._head_VD, rows.targets_N, **said
            ).entropy_N
            found += [entropy_N[start:stop].mean() for start, stop in rows.spans]
        return float(torch.stack(found).mean())

    def temperature_of(self, entropy: float) -> float:
        """The temperature, at least 1, of that entropy."""
        low, high = 1.0, 16.0
        for _ in range(24):
            middle = (low + high) / 2
            low, high = (middle, high) if self.entropy_at(middle) < entropy else (low, middle)
        return (low + high) / 2


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("profile")
    asked = parser.parse_args()
    recipe = load_recipe("masters", profile=asked.profile)
    configure(recipe.runtime)
    opened = open_model(
        asked.teacher, recipe.prompt, recipe.runtime, precision="fp32", teacher=True
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
    thresholds = measure_thresholds(asked.teacher, RATIOS)
    teacher = Matching(opened, thresholds, prompts, asking, lambda done, total, note: None)
    whole = teacher.unmasked()
    print(f"ratio 0: entropy {whole.entropy.value:.4f}")
    for ratio in RATIOS:
        row = teacher.masked(ratio)
        temperature = teacher.temperature_of(row.entropy.value)
        print(
            f"ratio {ratio / 1e4:g}: entropy {row.entropy.value:.4f}, temperature {temperature:.3f}"
        )


if __name__ == "__main__":
    main()
