"""Whether responses are right, by a rule or by a judge, the same wherever it is asked."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from masters.artifacts import VERDICTS, StageContext, lock
from masters.data.tables import read_shard
from masters.errors import StageError
from masters.recipe import AccuracyRule, Judge
from masters.rewards.judging.asking import Asker
from masters.rewards.judging.cache import VerdictCache
from masters.rewards.judging.conversation import check_missing, judge_responses
from masters.rewards.judging.items import JudgeItem, JudgeSettings, JudgeVerdict
from masters.rewards.verifiers import verify
from masters.specs import LocalJudge
from masters.stages.asking import open_asker

UNDOUBTED = "rule:undoubted"
"""Who judged where a judge was not needed: nothing said, or, with ``rules_first``, settled."""
_ROUND = 256


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one response is worth; ``reward`` None: the verdict is missing."""

    reward: float | None
    reason: str
    judge: str


Told = Callable[[int], None]
"""Is told how many of the items have a finding so far."""

Jury = Callable[[Sequence[JudgeItem], Told], list[Finding]]
"""A finding for each item, in their order."""


@contextmanager
def open_jury(
    rule: AccuracyRule, local: LocalJudge | None, context: StageContext
) -> Iterator[Jury]:
    """The rule, or the judge with the verdicts that all runs of an output folder share.

    Args:
        local: the model that judges here, if one does.
    """
    if rule.judge is None:
        yield lambda items, _: [_by_rule(rule, item) for item in items]
        return
    asker = open_asker(rule.judge, local, context)
    server = context.runtime.server
    at_once = server.concurrency if local is None and server else context.runtime.generation_batch
    together = max(_ROUND, 4 * at_once)  # so that few wait for the last of a round
    with VerdictCache(_cache_path(context)) as cache:
        yield lambda items, told: _asked(items, rule, asker, cache, told, together)


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The table that findings go into, and its column that is null where one is missing."""

    paths: Sequence[Path]
    schema: pa.Schema
    column: str

    def forget_missing(self) -> None:
        """Removes shards with missing findings: the verdicts they have are in the cache."""
        for path in self.paths:
            if path.exists():
                found = read_shard(path, self.schema, [self.column])
                if found.column(0).null_count:
                    path.unlink()


def stop_if_missing(
    rule: AccuracyRule,
    missing: Counter[str],
    *,
    seen: int,
    total: int,
    shards: Shards,
    context: StageContext,
) -> None:
    """Refuses to go on where too many verdicts are missing, or all of those so far.

    Then the shards with missing ones go, so that these are asked again when the stage runs again.

    Args:
        missing: how many are missing, by reason.
        seen: of how many responses so far.
        total: how many there are in all.

    Raises:
        StageError: more than the judge's ``max_missing`` of the total are missing for certain.
    """
    if rule.judge is None:
        return
    # A judge that never gives a verdict is not asked millions of times before it is known.
    of = seen if missing.total() == seen else total
    try:
        check_missing(missing, of, rule.judge.max_missing)
    except StageError as error:
        shards.forget_missing()
        raise StageError(f"{error} The cache: {_cache_path(context)}") from None


def gather_verdicts(context: StageContext) -> None:
    """Puts what several workers kept on their machines' files into the file all stages share."""
    found = sorted(context.folder.glob(f"*-{VERDICTS}"))
    if not found:
        return
    whole = _shared_path(context)
    # Stages that end at the same time, on different machines, come one after the other.
    with lock(whole.parent, wait=True), VerdictCache(whole) as cache:
        for path in found:
            cache.absorb(path)
    for path in found:
        path.unlink()


def _cache_path(context: StageContext) -> Path:
    """``OUT/verdicts.sqlite``; of several workers, a file of this machine in the stage's folder.

    SQLite's files may be used by the processes of one machine at a time only.
    """
    if context.part.share.whole:
        return _shared_path(context)
    return context.folder / f"{socket.gethostname()}-{VERDICTS}"


def _shared_path(context: StageContext) -> Path:
    return context.folder.parents[1] / VERDICTS


def _by_rule(rule: AccuracyRule, item: JudgeItem) -> Finding:
    verdict = verify(rule.rule, item.response, item.question)
    return Finding(reward=verdict.reward, reason=verdict.reason, judge=f"rule:{rule.rule}")


def _asked(
    items: Sequence[JudgeItem],
    rule: AccuracyRule,
    asker: Asker,
    cache: VerdictCache,
    told: Told,
    together: int,
) -> list[Finding]:
    """Findings by the judge; equal responses to a question are judged once."""
    assert rule.judge is not None
    verdicts: dict[int, JudgeVerdict] = {}
    settings = _settings(rule.judge)
    for place, verdict in judge_responses(items, asker, settings, cache, round_size=together):
        verdicts[place] = verdict
        told(len(verdicts))
    names = {"judge": asker.name, "rule": UNDOUBTED}
    found = (verdicts[place] for place in range(len(items)))
    return [Finding(reward=v.reward, reason=v.reason, judge=names[v.by]) for v in found]


def _settings(judge: Judge) -> JudgeSettings:
    """The recipe's words as the judging's own."""
    return JudgeSettings(
        prompt=judge.prompt,
        max_tokens=judge.max_new_tokens,
        retries=judge.retries,
        rules_first=judge.rules_first,
        max_missing=judge.max_missing,
    )
