"""What is measured: the step at some shapes, its growth, its memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from masters.training.group_forward import Form
from masters.training.groups import Group
from stepping import counts, trl_step
from stepping.clock import Times, matmul_peak, spread
from stepping.memory import peak_of, saved_bytes
from stepping.shapes import Case, question
from stepping.ways import Models, apart

FORMS: tuple[Form, ...] = ("repeat", "mask", "attention")
PACKED: tuple[Form, ...] = ("mask", "attention")
#: Log-probs, where the way gives them, and the gradient by parameter.
Found = tuple[torch.Tensor | None, dict[str, torch.Tensor]]


class StepAtShape:
    """All parts of a step at one shape, measured in turn in every round."""

    def __init__(self, models: Models, case: Case) -> None:
        self.models, self.case, self.times = models, case, Times()
        self.errors: dict[str, float] = {}
        self._group = question(case)
        self._trl = trl_step.TrlStep(models, case) if trl_step.installed() else None

    def round(self) -> None:
        """One repeat of everything; what reads repeated prompts is the same for TRL and repeat."""
        group, hidden_T = self._before()
        found = {form: self._student(form, group, hidden_T) for form in FORMS}
        if self._trl is not None:
            found["trl"] = self._by_trl(self._trl, group, hidden_T)
        if not self.errors:
            self._compare(found)

    def _before(self) -> tuple[Group, torch.Tensor]:
        """What a step must know of reference and teacher, by the attention function."""
        models, times = self.models, self.times
        models.see_groups("attention")
        group = times("reference/attention", lambda: models.referred(self._group, "attention"))

        def told(form: Form) -> torch.Tensor:
            models.see_groups(form)
            return times(f"teacher/{form}", lambda: models.teacher_states(group, form))

        return group, [told(form) for form in FORMS][-1]

    def _student(self, form: Form, group: Group, hidden_T: torch.Tensor) -> Found:
        models = self.models
        models.see_groups(form)
        logp_N = self.times(f"student/{form}", lambda: models.gradient(group, form, hidden_T))
        return logp_N, self._taken()

    def _by_trl(self, trl: trl_step.TrlStep, group: Group, hidden_T: torch.Tensor) -> Found:
        self.models.see_groups("repeat")
        reference_N = self.times("reference/trl", lambda: trl.reference(group))
        self.times("student/trl", lambda: trl.gradient(group, hidden_T, reference_N))
        return None, self._taken()

    def _taken(self) -> dict[str, torch.Tensor]:
        """The gradient, in the first round only; it is applied in all."""
        gradients = {} if self.errors else self.models.gradients()
        self.times("update", self.models.update)
        return gradients

    def _compare(self, found: dict[str, Found]) -> None:
        logp_N, gradient = found["repeat"]
        assert logp_N is not None
        for name, (other_N, other) in found.items():
            if name == "repeat":
                continue
            self.errors[f"gradient/{name}"] = apart(gradient, other)
            if other_N is not None:
                self.errors[f"logprob/{name}"] = (other_N - logp_N).abs().max().item()

    def whole(self, name: str) -> list[float]:
        """Seconds of a whole step: with its reference where the name says so."""
        parts = {
            "repeat": ("teacher/repeat", "student/repeat"),
            "mask": ("teacher/mask", "student/mask"),
            "attention": ("teacher/attention", "student/attention"),
            "attention + reference": (
                "reference/attention", "teacher/attention", "student/attention",
            ),
            "stored": ("student/attention",),
            "trl": ("reference/trl", "teacher/repeat", "student/trl"),
        }  # fmt: skip
        update = median(self.times.seconds["update"])  # the same for all ways
        return [seconds + update for seconds in self.times.rounds(*parts[name])]

    def result(self, peak: float) -> dict[str, Any]:
        """Everything about this shape, times in seconds as [median, least, most]."""
        case, student, teacher = self.case, self.models.student.vlm, self.models.teacher
        counted = counts.training(student, teacher, case)
        taught = counts.trunk_and_tower(teacher, case)
        work = {"repeat": counted.repeated, "mask": counted.packed, "attention": counted.packed}
        speedups = {
            form: spread(self.times.ratios(("student/repeat",), (f"student/{form}",)))
            for form in PACKED
        }
        names = ["repeat", "mask", "attention", "attention + reference", "stored"]
        names += ["trl"] if self._trl is not None else []
        steps = {name: spread(self.whole(name)) for name in names}
        tokens = case.group * case.response
        return {
            "prefix": case.prefix, "response": case.response, "group": case.group,
            "vocabulary": case.vocabulary, "picture": case.picture,
            "limit_tokens": case.token_limit,
            "limit_counted": counted.limit,
            "limit_counted_teacher": taught.limit,
            "speedup": speedups,
            "share_of_limit": {form: speedups[form][0] / counted.limit for form in PACKED},
            "parts": {name: spread(values) for name, values in self.times.seconds.items()},
            "step_seconds": steps,
            "response_tokens_per_second": {n: tokens / s[0] for n, s in steps.items()},
            "mfu": {
                form: work[form] / median(self.times.seconds[f"student/{form}"]) / peak
                for form in FORMS
            },
            "errors": self.errors,
            **self._against_trl(),
        }  # fmt: skip

    def _against_trl(self) -> dict[str, Any]:
        if self._trl is None:
            return {}
        theirs = self.whole("trl")
        ratios = {
            name: spread([a / b for a, b in zip(theirs, self.whole(name), strict=True)])
            for name in ("attention + reference", "attention", "stored")
        }
        return {"trl_ratio": ratios}


def measure_steps(models: Models, cases: dict[str, Case], rounds: int) -> dict[str, Any]:
    """Every shape in every round, the machine's peak beside them."""
    shapes = {name: StepAtShape(models, case) for name, case in cases.items()}
    StepAtShape(models, replace(cases["1:1"], prefix=16, response=4, group=2)).round()  # warms up
    peaks = []
    for done in range(rounds):
        for name, shape in shapes.items():
            peaks.append(matmul_peak())
            shape.round()
            print(f"  round {done + 1} of {rounds}: {name}", flush=True)
    peak = median(peaks)
    found = {name: shape.result(peak) for name, shape in shapes.items()}
    return {"matmul_gflops": peak / 1e9, "shapes": found}


def measure_growth(
    build: Callable[[int], Models], base: Case, varied: dict[str, list[int]], rounds: int
) -> list[dict[str, Any]]:
    """The student's part, repeated and packed, with one number of the shape changed at a time.

    Args:
        build: makes the models of a vocabulary.
        base: the shape that is changed.
        varied: values by field of the shape.
        rounds: repeats of each.
    """
    changes = [(key, value) for key, values in varied.items() for value in values]
    points = [(key, value, replace(base, **{key: value}), Times()) for key, value in changes]
    models = {case.vocabulary: build(case.vocabulary) for *_, case, _ in points}
    for _ in range(rounds):
        for *_, case, times in points:
            _gradients_in_turn(models[case.vocabulary], case, times)
    rows = []
    for key, value, case, times in points:
        built = models[case.vocabulary]
        counted = counts.training(built.student.vlm, built.teacher, case)
        gain = spread(times.ratios(("repeat",), ("attention",)))
        rows.append(
            {
                "varied": key,
                "value": value,
                "limit_tokens": case.token_limit,
                "limit_counted": counted.limit,
                "speedup": gain,
                "share_of_limit": gain[0] / counted.limit,
                "gflop": {"repeat": counted.repeated / 1e9, "attention": counted.packed / 1e9},
                "seconds": {name: spread(values) for name, values in times.seconds.items()},
            }
        )
    return rows


def measure_forms(built: dict[str, Models], cases: list[Case], rounds: int) -> list[dict[str, Any]]:
    """Seconds of the student's part, masked and with the attention function, by length of the row.

    Args:
        built: models by what they are called.
        cases: shapes, from short to long.
        rounds: repeats of each.
    """
    rows = []
    for name, models in built.items():
        for case in cases:
            times = Times()
            for _ in range(rounds + 1):
                _gradients_in_turn(models, case, times, PACKED)
            for seconds in times.seconds.values():
                del seconds[0]  # warms up
            rows.append(
                {
                    "model": name,
                    "row_tokens": case.prefix + case.group * case.response,
                    "mask_over_attention": spread(times.ratios(("mask",), ("attention",))),
                    "seconds": {form: spread(values) for form, values in times.seconds.items()},
                }
            )
    return rows


def _gradients_in_turn(
    models: Models, case: Case, times: Times, forms: tuple[Form, ...] = ("repeat", "attention")
) -> None:
    models.see_groups("attention")
    group, hidden_T = models.referred(question(case), "attention"), models.any_states(case)

    def measured(form: Form) -> None:
        models.see_groups(form)
        times(form, lambda: models.gradient(group, form, hidden_T))
        models.clear()

    for form in forms:
        measured(form)


def saved_activations(models: Models, case: Case) -> dict[str, int]:
    """Bytes that the student's forward pass keeps, by form."""

    def kept(form: Form) -> int:
        models.see_groups(form)
        group, hidden_T = question(case), models.any_states(case)
        return saved_bytes(models.student, lambda: models.scores(group, form, hidden_T))

    return {form: kept(form) for form in FORMS}


def peak_resident(models: Models, case: Case, form: Form) -> int:
    """Peak of the student's forward and backward pass beyond the weights, in bytes."""
    models.see_groups(form)

    def once(case: Case) -> None:
        group = models.referred(question(case), form)
        models.gradient(group, form, models.any_states(case))

    once(replace(case, prefix=16, response=4, group=2))  # libraries set themselves up first
    models.clear()
    return peak_of(lambda: once(case))
