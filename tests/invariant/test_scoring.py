"""What a model says of a response must not depend on padding, batch size, or the engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from masters.artifacts import StageContext  # noqa: F401
from masters.errors import ModelError
from masters.models.encode import EncodedPrompt, pad_rows
from masters.training.groups import Group, Response, make_rows
from masters.training.student import Student
from masters.training.token_scores import ScoreSettings

from .conftest import Tiny, make_groups


def scores(
    tiny: Tiny, groups: list[Group], *, alter: Any = None, pad: int | None = None
) -> list[list[float]]:
    """Log-probs of every response of every group, in one batch."""
    rows = make_rows(groups)
    inputs, columns = rows.inputs(
        teacher=False, pad=tiny.ids.pad if pad is None else pad, device="cpu"
    )
    if alter is not None:
        alter(inputs)
    with torch.no_grad():
        _, logp = Student(tiny.model)(
            inputs, rows.row_N, columns, rows.targets_N, None, None,
            ScoreSettings(vocabulary=tiny.ids.vocabulary),
        )  # fmt: skip
    return [logp[slice(*rows.spans[u])].tolist() for own in rows.row_of for u in own]


def worst(a: list[list[float]], b: list[list[float]]) -> float:
    return max(abs(x - y) for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=True))


def test_padding_and_batch_size_change_nothing(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    together = scores(student, groups)
    alone = [row for group in groups for row in scores(student, [group])]
    assert worst(together, alone) < 1e-5


def test_scores_are_the_models_own_logits(student: Tiny, teacher: Tiny) -> None:
    group = make_groups(student, teacher)[0]
    ours = scores(student, [group])
    for response, logps in zip(group.responses, ours, strict=True):
        inputs = pad_rows([(group.student_prompt, response.token_ids)], pad=0)
        with torch.no_grad():
            logits = student.model(**inputs).logits[0, :, : student.ids.vocabulary].float()
        first = len(group.student_prompt.ids) - 1
        for t, token in enumerate(response.token_ids):
            expected = logits[first + t].log_softmax(-1)[token].item()
            assert logps[t] == pytest.approx(expected, abs=1e-5)


def test_text_positions_would_be_seen(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)

    def text_positions(inputs: dict[str, torch.Tensor]) -> None:
        width = inputs["input_ids"].shape[1]
        inputs["position_ids"] = torch.arange(width).expand(3, len(inputs["input_ids"]), width)

    assert worst(scores(student, groups), scores(student, groups, alter=text_positions)) > 1e-3


def test_a_lost_attention_mask_would_be_seen(student: Tiny, teacher: Tiny) -> None:
    # Right padding cannot be seen by what stands before it; positions counted from padding can.
    groups = make_groups(student, teacher)
    rows = [(g.student_prompt, g.responses[0].token_ids) for g in groups]
    left = pad_rows(rows, pad=student.ids.pad, side="left")
    with torch.no_grad():
        kept = student.model(**left).logits[:, -1]
        left["attention_mask"] = torch.ones_like(left["attention_mask"])
        lost = student.model(**left).logits[:, -1]
    assert (kept - lost).abs().max() > 1e-3


def test_left_and_right_padding_agree(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    rows = [(g.student_prompt, g.responses[0].token_ids) for g in groups]
    last = torch.tensor([len(p.ids) + len(r) - 1 for p, r in rows])
    with torch.no_grad():
        right = student.model(**pad_rows(rows, pad=0)).logits[torch.arange(len(rows)), last]
        left = student.model(**pad_rows(rows, pad=0, side="left")).logits[:, -1]
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


def test_pad_equal_to_the_end_token_keeps_the_end_token(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    end = student.ids.end[0]
    assert worst(scores(student, groups), scores(student, groups, pad=end)) < 1e-5
    # The broken way, mask by id, hides the real end token from the model and changes scores.
    ids = groups[0].responses[0].token_ids
    longer = Response(token_ids=(end, *ids), source="student")
    tail = [
        Group(
            question_id="e",
            student_prompt=student.prompts[0],
            teacher_prompt=None,
            responses=(longer,),
        )
    ]

    def by_id(inputs: dict[str, torch.Tensor]) -> None:
        prompt = len(student.prompts[0].ids)
        real = inputs["input_ids"] != end
        real[:, :prompt] = True
        inputs["attention_mask"] = inputs["attention_mask"] * real

    assert worst(scores(student, tail), scores(student, tail, alter=by_id)) > 1e-3


def test_another_image_changes_the_distribution(student: Tiny, teacher: Tiny) -> None:
    for tiny in (student, teacher):
        groups = make_groups(student, teacher)[:1]
        own = groups[0].student_prompt
        other = EncodedPrompt(
            text=own.text, ids=own.ids, token_types=own.token_types, images=tiny.prompts[1].images
        )
        swapped = Group(
            question_id="s",
            student_prompt=other,
            teacher_prompt=None,
            responses=groups[0].responses,
        )
        assert worst(scores(tiny, groups), scores(tiny, [swapped])) > 1e-3


def test_a_teacher_that_does_not_see_the_image_is_refused(student: Tiny) -> None:
    from masters.data.scenes import SceneQuestions
    from masters.recipe import Prompt
    from masters.stages.opening import OpenedModel, Prompts
    from masters.stages.sight import check_sees_image

    opened = OpenedModel(
        model=student.model, processor=student.processor, ids=student.ids, folder=student.folder
    )
    prompts = Prompts(SceneQuestions(count=2, seed=0), student.processor, Prompt(suffix=None))
    check_sees_image(opened, prompts, role="teacher")
    with torch.no_grad():
        for merger in (m for n, m in student.model.named_modules() if n.endswith("linear_fc2")):
            merger.weight.zero_()
            merger.bias.zero_()
    with pytest.raises(ModelError, match="the teacher does not see the image"):
        check_sees_image(opened, prompts, role="teacher")


def test_a_question_none_of_whose_responses_can_be_read(student: Tiny, teacher: Tiny) -> None:
    """They are emptied before they are scored; alone in a batch they make no token at all."""
    prompt = student.prompts[0]
    empty = Response(token_ids=(), source="teacher")
    group = Group(
        question_id="e", student_prompt=prompt, teacher_prompt=None, responses=(empty, empty)
    )
    assert scores(student, [group]) == [[], []]
    others = make_groups(student, teacher)[:2]
    together = scores(student, [others[0], group, others[1]])
    assert len(together) == sum(len(g.responses) for g in others) + 2
    assert worst([r for r in together if r], scores(student, others)) < 1e-5
