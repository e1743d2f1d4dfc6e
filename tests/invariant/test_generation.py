"""Sampling is a pure function of its key: batch size, order and neighbours change nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from masters.generation.engine import Request, TransformersEngine
from masters.generation.sampling import SampleKey, Sampling, pick, uniform

from .conftest import Tiny
from .test_scoring import scores

SAMPLING = Sampling(max_new_tokens=6)


def requests(tiny: Tiny, samples: int = 3) -> list[Request]:
    return [
        Request(
            prompt=prompt,
            keys=tuple(
                SampleKey(seed=1, question_id=f"q{q}", source="student", ratio=0, round=0, sample=s)
                for s in range(samples)
            ),
        )
        for q, prompt in enumerate(tiny.prompts)
    ]


def test_batch_size_and_order_change_nothing(student: Tiny) -> None:
    asked = requests(student)
    one = TransformersEngine(student.model, student.processor, student.ids, batch_rows=3)
    many = TransformersEngine(student.model, student.processor, student.ids, batch_rows=64)
    first = [[c.token_ids for c in r] for r in one.generate(asked, SAMPLING)]
    second = [[c.token_ids for c in r] for r in many.generate(asked, SAMPLING)]
    backwards = [[c.token_ids for c in r] for r in many.generate(asked[::-1], SAMPLING)][::-1]
    assert first == second == backwards
    assert len({tuple(ids) for r in first for ids in r}) > 8


def test_recorded_log_probs_are_the_raw_models(student: Tiny, teacher: Tiny) -> None:
    engine = TransformersEngine(student.model, student.processor, student.ids)
    completions = engine.generate(requests(student, samples=2), SAMPLING)
    from masters.training.groups import Group, Response

    groups = [
        Group(
            question_id="g",
            student_prompt=prompt,
            teacher_prompt=None,
            responses=tuple(Response(token_ids=tuple(c.token_ids), source="student") for c in own),
        )
        for prompt, own in zip(student.prompts, completions, strict=True)
    ]
    recorded = [c.logprobs for own in completions for c in own]
    for ours, theirs in zip(scores(student, groups), recorded, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_banned_placeholders_are_never_sampled(student: Tiny) -> None:
    with torch.no_grad():
        head = student.model.get_output_embeddings().weight
        head[list(student.ids.banned)] = head.abs().max() * 50
    engine = TransformersEngine(student.model, student.processor, student.ids)
    for own in engine.generate(requests(student), SAMPLING):
        for completion in own:
            assert not set(completion.token_ids) & set(student.ids.banned)


def test_finish_and_limit(student: Tiny) -> None:
    engine = TransformersEngine(student.model, student.processor, student.ids)
    for own in engine.generate(requests(student), SAMPLING):
        for c in own:
            assert len(c.token_ids) == len(c.logprobs) <= 6
            ended = c.token_ids[-1] in student.ids.end
            assert c.finish == ("stop" if ended else "length")
            assert ended or len(c.token_ids) == 6
            assert not set(c.token_ids[:-1]) & set(student.ids.end)


def test_padding_is_not_penalised(student: Tiny) -> None:
    # A penalty this strong would change any token that padding touched.
    strong = Sampling(max_new_tokens=4, repetition_penalty=3.0)
    asked = requests(student, samples=1)
    assert len({len(r.prompt.ids) for r in asked}) > 1
    alone = TransformersEngine(student.model, student.processor, student.ids, batch_rows=1)
    padded = TransformersEngine(student.model, student.processor, student.ids, batch_rows=64)
    ids = [[c.token_ids for c in r] for r in alone.generate(asked, strong)]
    assert ids == [[c.token_ids for c in r] for r in padded.generate(asked, strong)]


def test_pick_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(5, 1)
    none = torch.zeros_like(logits, dtype=torch.bool)
    u = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.99], dtype=torch.float64)
    plain = Sampling(top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert pick(logits, none, u, plain).tolist() == [0, 0, 1, 1, 3]
    # top-k 2 renormalises to 5/8, 3/8; top-p 0.6 keeps the first token that crosses it.
    two = Sampling(top_p=1.0, top_k=2, repetition_penalty=1.0)
    assert pick(logits, none, u, two).tolist() == [0, 0, 0, 1, 1]
    nucleus = Sampling(top_p=0.6, top_k=0, repetition_penalty=1.0)
    assert pick(logits, none, u, nucleus).tolist() == [0, 0, 0, 1, 1]
    seen = none.clone()
    seen[:, 0] = True
    penalised = Sampling(temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=2.0)
    assert pick(logits, seen, u, penalised).tolist() == [1] * 5


def test_pick_follows_the_distribution() -> None:
    p = torch.tensor([0.6, 0.25, 0.1, 0.05])
    n = 20_000
    u = torch.tensor([uniform(f"k{i}".encode(), 0) for i in range(n)], dtype=torch.float64)
    logits = p.log().repeat(n, 1)
    drawn = Counter(
        pick(
            logits, torch.zeros_like(logits, dtype=torch.bool), u,
            Sampling(top_p=1.0, top_k=0, repetition_penalty=1.0),
        ).tolist()
    )  # fmt: skip
    chi = sum((drawn[v] - n * p[v].item()) ** 2 / (n * p[v].item()) for v in range(4))
    assert chi < 16.3  # 99.9 % point of chi-square with 3 degrees of freedom


def test_keys_have_their_own_streams() -> None:
    base: Any = {
        "seed": 0,
        "question_id": "q",
        "source": "student",
        "ratio": 0,
        "round": 0,
        "sample": 0,
    }
    others = [
        {"seed": 1}, {"question_id": "r"}, {"source": "teacher"}, {"ratio": 500}, {"round": 1},
        {"sample": 1},
    ]  # fmt: skip
    streams = {SampleKey(**base).stream, *(SampleKey(**base | o).stream for o in others)}
    assert len(streams) == 7
    values = [uniform(s, t) for s in streams for t in range(3)]
    assert len(set(values)) == 21 and all(0 <= v < 1 for v in values)
