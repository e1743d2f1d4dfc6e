"""Rows of a head that are no tokens change nothing: samples, scores, divergences, gradients.

Both models get padding rows with huge logits, as many or fewer than the other. Tokens, scores and
gradients are compared bit for bit, and the variant that forgets to cut the padding off is seen.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from masters.generation.engine import TransformersEngine
from masters.models.load import token_ids
from masters.training.objective import JsdTerm

from .conftest import Tiny, make_groups
from .test_generation import SAMPLING, requests
from .test_scoring import scores
from .test_step import gradient


def pad_head(tiny: Tiny, rows: int) -> None:
    """Appends padding rows with large weights to embedding and head, as a checkpoint would have."""
    generator = torch.Generator().manual_seed(rows)
    model = tiny.model
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        more = 20 * torch.randn(rows, module.weight.shape[1], generator=generator)
        module.weight = torch.nn.Parameter(torch.cat([module.weight.detach(), more]))
    model.get_output_embeddings().out_features += rows
    model.get_input_embeddings().num_embeddings += rows
    model.config.get_text_config().vocab_size += rows
    assert token_ids(model, tiny.processor) == tiny.ids, "padding is no vocabulary"


def forgetful(tiny: Tiny) -> Tiny:
    """The broken variant: every row of the head taken for a token."""
    rows = tiny.model.get_output_embeddings().weight.shape[0]
    return replace(tiny, ids=replace(tiny.ids, vocabulary=rows))


def test_samples_and_their_log_probs(student: Tiny) -> None:
    def completions(tiny: Tiny) -> list[tuple[list[int], list[float]]]:
        engine = TransformersEngine(tiny.model, tiny.processor, tiny.ids)
        answered = engine.generate(requests(tiny, samples=2), SAMPLING)
        return [(c.token_ids, c.logprobs) for own in answered for c in own]

    tight = completions(student)
    pad_head(student, 64)
    assert [ids for ids, _ in completions(student)] == [ids for ids, _ in tight]
    for (_, ours), (_, theirs) in zip(completions(student), tight, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert [ids for ids, _ in completions(forgetful(student))] != [ids for ids, _ in tight]


def test_reference_scores(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    tight = scores(student, groups)
    pad_head(student, 64)
    assert scores(student, groups) == tight
    assert scores(forgetful(student), groups) != tight


@pytest.mark.parametrize(("mine", "theirs"), [(64, 0), (0, 64), (64, 192), (192, 64)])
def test_a_step(student: Tiny, teacher: Tiny, mine: int, theirs: int) -> None:
    groups = make_groups(student, teacher)
    tight, before = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    tight = {name: grad.clone() for name, grad in tight.items()}
    tokens = student.model.get_output_embeddings().weight.shape[0]
    pad_head(student, mine)
    pad_head(teacher, theirs)
    loose, after = gradient(student, teacher, [groups], micro_batch=8, questions=8)
    assert before.loss == after.loss
    assert before.squared_norm == after.squared_norm
    assert tight.keys() == loose.keys()
    for name, grad in loose.items():
        assert torch.equal(grad[: len(tight[name])], tight[name]), name
    assert not loose["vlm.lm_head.weight"][tokens:].any(), "padding learns nothing"


def test_a_step_that_forgets_the_padding_would_be_seen(student: Tiny, teacher: Tiny) -> None:
    groups = make_groups(student, teacher)
    only = (JsdTerm(),)
    _, before = gradient(student, teacher, [groups], micro_batch=8, questions=8, terms=only)
    pad_head(student, 64)
    pad_head(teacher, 64)
    broken = forgetful(student)
    _, after = gradient(broken, teacher, [groups], micro_batch=8, questions=8, terms=only)
    assert abs(before.loss["jsd"] - after.loss["jsd"]) > 1e-2
