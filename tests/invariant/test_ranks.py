"""Two gloo processes share an optimiser step: the summed gradient is the single process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from masters.training.groups import Group, Response

from .conftest import Tiny, load_tiny, make_groups
from .test_step import distance, gradient
from .two_ranks import on_two_ranks


def identical(groups: list[Group]) -> list[Group]:
    """The groups with eight copies of one response each, all right."""
    made = []
    for group in groups:
        ids = group.responses[1].token_ids
        copies = tuple(
            Response(token_ids=ids, source="student", accuracy=1.0, reference=(-1.0,) * len(ids))
            for _ in range(8)
        )
        made.append(
            Group(
                question_id=group.question_id,
                student_prompt=group.student_prompt,
                teacher_prompt=group.teacher_prompt,
                responses=copies,
            )
        )
    return made


def rank_main(rank: int, folders: tuple[Path, Path]) -> dict[str, Any]:
    student, teacher = load_tiny(folders[0]), load_tiny(folders[1])
    groups = make_groups(student, teacher)
    counts = torch.tensor([len(groups[rank::2])])
    dist.all_reduce(counts)
    questions = int(counts)
    grads, _ = gradient(student, teacher, [groups[rank::2]], micro_batch=2, questions=questions)
    for name in sorted(grads):
        dist.all_reduce(grads[name])
    _, sums = gradient(student, teacher, [identical(groups)[rank::2]], micro_batch=2, questions=8)
    silent = torch.tensor([sums.silent_groups])
    dist.all_reduce(silent)
    return {"grads": grads, "silent": int(silent)}


@pytest.mark.slow
def test_two_ranks_equal_one(
    student: Tiny, teacher: Tiny, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ranks = on_two_ranks(rank_main, tmp_path, folders)[0]
    whole, _ = gradient(
        student, teacher, [make_groups(student, teacher)], micro_batch=8, questions=8
    )
    assert distance(whole, ranks["grads"]) < 1e-5
    assert ranks["silent"] == 8
