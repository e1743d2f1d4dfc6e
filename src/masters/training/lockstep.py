"""Ranks in step: as many forward and backward passes on each, whatever it has to train on.

A sharded model's weights are brought together in every pass, by all ranks at once, so one that has
fewer questions, or fewer pieces of them, passes something through all the same, with a gradient of
zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from masters import ranks
from masters.training.groups import Group, Rows, make_rows


def agreed_pieces(own: Sequence[int]) -> list[int]:
    """For each micro-batch of whoever has most, the most pieces that any rank makes of it.

    Args:
        own: pieces of this rank's micro-batches.
    """
    everyone = ranks.gathered(list(own))
    longest = max(map(len, everyone))
    return [max((one[k] for one in everyone if k < len(one)), default=1) for k in range(longest)]


def idle_rows(groups: Sequence[Group], own: Sequence[int], agreed: Sequence[int]) -> Rows | None:
    """One response to pass through where a rank has nothing; None where none will be idle.

    A rank without any group is given one by another.
    """
    if ranks.count() == 1:
        return None
    idle = list(own) != list(agreed)
    everyone = ranks.gathered((len(groups), idle))
    if not any(one for _, one in everyone):
        return None
    if any(held == 0 for held, _ in everyone):
        giver = next(r for r, (held, _) in enumerate(everyone) if held)
        given = ranks.given_by(giver, groups[0] if groups else None)
        groups = groups or [given] if given is not None else groups
    return make_rows(groups[:1]).part(0, 1) if idle else None
