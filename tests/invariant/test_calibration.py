"""What calibration measures on a real (tiny) model, against slower and more direct ways."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from masters.calibration.groups import GRAINS, layer_groups
from masters.calibration.measuring import Answers, Asking, Measuring
from masters.data.scenes import SceneQuestions
from masters.models.encode import pad_rows
from masters.recipe import AccuracyRule, Prompt, Runtime
from masters.rewards.verifiers import Verdict
from masters.stages.opening import OpenedModel, Prompts
from masters.teachers.measuring import measure_thresholds
from masters.training.losses import jsd

from .conftest import Tiny

RATIOS = (2000, 5000, 8000)
SAMPLE = (1, 4, 5, 9, 10, 11, 17)
COUNT = 20


def measuring(tiny: Tiny, *, micro_batch: int = 3) -> Measuring:
    opened = OpenedModel(
        model=tiny.model, processor=tiny.processor, ids=tiny.ids, folder=tiny.folder
    )
    prompts = Prompts(SceneQuestions(count=COUNT, seed=7), tiny.processor, Prompt(suffix=None))
    asking = Asking(
        indices=SAMPLE,
        max_new_tokens=6,
        rule=AccuracyRule(),
        precision="fp32",
        runtime=Runtime(device="cpu", micro_batch_questions=micro_batch),
    )
    thresholds = measure_thresholds(tiny.folder, RATIOS)
    return Measuring(opened, thresholds, prompts, asking, lambda done, total, note: None)


def weights(tiny: Tiny) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tiny.model.named_parameters()}


def test_the_whole_teacher_differs_from_itself_in_nothing(teacher: Tiny) -> None:
    row = measuring(teacher).unmasked()
    assert row.n == len(SAMPLE) and row.ratio == 0
    assert abs(row.jsd.value) < 1e-6
    assert row.changed == 0 and row.zeros == 0
    assert row.entropy.value > 0.1
    difference = row.against(row)
    assert difference.value == 0 and difference.low < 0 < difference.high


def test_the_mask_moves_it_further_the_larger_it_is(teacher: Tiny) -> None:
    measured = measuring(teacher)
    whole = measured.unmasked()
    rows = [measured.masked(ratio) for ratio in RATIOS]
    values = [row.jsd.value for row in rows]
    assert 0 < values[0] < values[1] < values[2] <= math.log(2)
    assert [row.zeros for row in rows] == sorted(row.zeros for row in rows)
    assert whole.zeros < rows[0].zeros < 0.2


def test_divergence_and_entropy_are_those_of_the_full_logits(teacher: Tiny) -> None:
    """One question at a time, whole logits of two models: no chunks, no padding, no kept states."""
    measured = measuring(teacher)
    measured.unmasked()
    said = measured.answers.token_ids

    def all_logits() -> list[torch.Tensor]:
        found = []
        prompts = Prompts(
            SceneQuestions(count=COUNT, seed=7), teacher.processor, Prompt(suffix=None)
        )
        for index, ids in zip(SAMPLE, said, strict=True):
            prompt = prompts(index)
            with torch.no_grad():
                logits = teacher.model(**pad_rows([(prompt, ids)], pad=0)).logits[0]
            first = len(prompt.ids) - 1
            found.append(logits[first : first + len(ids), : teacher.ids.vocabulary].double())
        return found

    whole = all_logits()
    row = measured.masked(5000)
    masked = all_logits()
    divergence = [jsd(p, q).mean().item() for p, q in zip(whole, masked, strict=True)]
    assert row.jsd.value == pytest.approx(sum(divergence) / len(divergence), rel=1e-4)
    entropy = [-(q.softmax(-1) * q.log_softmax(-1)).sum(-1).mean().item() for q in masked]
    assert row.entropy.value == pytest.approx(sum(entropy) / len(entropy), rel=1e-4)


def test_batches_change_nothing(teacher: Tiny) -> None:
    found = []
    for size in (1, 3, 100):
        measured = measuring(teacher, micro_batch=size)
        measured.unmasked()
        found.append(measured.masked(5000))
        measured.unmasked(measured.answers)
    for row in found[1:]:
        assert row.correct == found[0].correct and row.changed == found[0].changed
        assert row.jsd.value == pytest.approx(found[0].jsd.value, rel=1e-4)


def test_answers_said_to_change_are_those_that_do(teacher: Tiny) -> None:
    """From one forward pass over the old answers it is known which would be given otherwise."""
    measured = measuring(teacher)
    measured.unmasked()
    before = measured.answers.token_ids
    shares = []
    for ratio in RATIOS:
        row = measured.masked(ratio)
        again = measured._ask(range(len(SAMPLE)), "again").token_ids
        other = sum(a != b for a, b in zip(before, again, strict=True))
        assert row.changed == other / len(SAMPLE)
        shares.append(row.changed)
    assert max(shares) > 0


def test_a_group_of_all_layers_is_the_whole_mask(
    teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained model is never right; a rule that some of its answers meet shows which are which.
    monkeypatch.setattr(
        "masters.calibration.measuring.verify",
        lambda rule, text, question: Verdict(reward=float(sum(text.encode()) % 2), reason="odd"),
    )
    measured = measuring(teacher)
    measured.unmasked()
    thresholds = measure_thresholds(teacher.folder, RATIOS)
    together = measured.only("all", list(thresholds.layers), 5000)
    whole_mask = measured.masked(5000)
    assert together.group == "all"
    assert 0 < sum(together.correct) < len(SAMPLE)
    assert together.correct != measured.answers.correct
    same = replace(together, group="", seconds=whole_mask.seconds)
    assert same == whole_mask


def test_one_group_after_the_other_leaves_no_trace(teacher: Tiny) -> None:
    original = weights(teacher)
    measured = measuring(teacher)
    measured.unmasked()
    measured.masked(8000)
    layers = measure_thresholds(teacher.folder, RATIOS).layers
    groups = layer_groups(teacher.model, layers, "part")
    assert list(groups) and set(groups) <= {"language", "projector", "vision"}
    first = {name: measured.only(name, names, 8000) for name, names in groups.items()}
    for name, weight in weights(teacher).items():
        assert torch.equal(weight, original[name]), name
    for name in reversed(groups):
        again = measured.only(name, groups[name], 8000)
        assert replace(again, seconds=first[name].seconds) == first[name]
        assert 0 < first[name].zeros < 0.8
    assert len({row.jsd.value for row in first.values()}) == len(groups)


def test_every_layer_is_in_one_group(teacher: Tiny) -> None:
    layers = list(measure_thresholds(teacher.folder, RATIOS).layers)
    sizes = []
    for grain in GRAINS:
        groups = layer_groups(teacher.model, layers, grain)
        assert sorted(name for names in groups.values() for name in names) == sorted(layers)
        sizes.append(len(groups))
    assert sizes == sorted(sizes) and sizes[0] == 3 and sizes[-1] == len(layers)


def test_known_answers_are_not_asked_for_again(
    teacher: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measuring(teacher)
    whole, masked = first.unmasked(), first.masked(5000)
    again = measuring(teacher)
    first._teacher.set_ratio(0)
    known = Answers(token_ids=first.answers.token_ids, correct=first.answers.correct)
    with monkeypatch.context() as patched:
        patched.setattr(again, "_ask", lambda *_: pytest.fail("asked again"))
        row = again.unmasked(known)
    assert replace(row, seconds=0) == replace(whole, seconds=0)
    assert replace(again.masked(5000), seconds=0) == replace(masked, seconds=0)
