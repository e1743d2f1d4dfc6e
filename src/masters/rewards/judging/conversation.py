"""Judging many responses at once: two calls each, tried again where no verdict can be read.

Calls go out in rounds of many chats. In each round the second calls and further tries of the
conversations that have begun go first, and new ones fill it up; so a run that dies has lost at most
one round's first calls, and no verdict. A verdict depends on its own replies alone, never on the
order in which replies come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from masters.data.answers import accepted_answers
from masters.errors import DataError, StageError
from masters.rewards.judging.asking import Asker, Chat, Reply
from masters.rewards.judging.cache import KeptVerdict, VerdictCache, verdict_key
from masters.rewards.judging.calls import Call, Prompts, first_call, load_prompts, second_call
from masters.rewards.judging.items import JudgeItem, JudgeSettings, JudgeVerdict
from masters.rewards.judging.reading import Reading, read_explanation, read_score
from masters.rewards.judging.rules import without_judge

_DISAGREE = "the two calls disagree"


def judge_responses(
    items: Sequence[JudgeItem],
    asker: Asker,
    settings: JudgeSettings,
    cache: VerdictCache,
    *,
    round_size: int = 256,
) -> Iterator[tuple[int, JudgeVerdict]]:
    """Each item's place with its verdict, each exactly once, as they come.

    What a rule settles costs no call, nor does what the cache knows; equal responses to the same
    question are asked about once. Every verdict is in the cache before it is yielded.

    Args:
        asker: see ``Asker``; what it raises passes through, and everything yielded before stands.
        round_size: how many chats are handed to the asker at a time; more than it answers at once,
            or it idles. Moves no verdict.

    Raises:
        DataError: a question has no label.
        StageError: the cache cannot be used, the prompts are unknown, or the asker broke its
            contract (a chat answered twice, or not at all).
    """
    prompts = load_prompts(settings.prompt)
    asked: dict[str, _Conversation] = {}
    for index, item in enumerate(items):
        if item.question.label is None:
            raise DataError(
                f"question {item.question.id!r}: has no label; expected one to judge responses "
                "against. Add its answer to the data."
            )
        settled = without_judge(item, rules_first=settings.rules_first)
        if settled is not None:
            yield index, settled
            continue
        key = verdict_key(item, asker.name, prompts.name)
        if key in asked:
            asked[key].places.append(index)
        elif kept := cache.find(key):
            yield index, kept.verdict
        else:
            asked[key] = _Conversation(key, item, index, prompts, settings)
    for conversation, kept in _rounds(list(asked.values()), asker, round_size):
        cache.keep(conversation.key, kept)
        for index in conversation.places:
            yield index, kept.verdict


def check_missing(missing: Counter[str], total: int, max_missing: float) -> None:
    """Refuses a run in which more verdicts are missing than may be.

    Args:
        missing: how many verdicts are missing so far, by reason.
        total: how many responses the run judges in all, those still to come too: so a run stops
            as soon as the limit cannot be kept any more.
        max_missing: the largest share of ``total``.

    Raises:
        StageError: the limit is passed; with the reasons and what to do.
    """
    count = missing.total()
    if count <= max_missing * total:
        return
    reasons = ", ".join(f"{reason}: {times}" for reason, times in missing.most_common())
    raise StageError(
        f"the judge gave no verdict on {count} of {total} responses ({reasons}); expected at most "
        f"{max_missing:.1%}. Read them in the cache of verdicts; then take a judge that keeps to "
        "its instructions, give it more max_new_tokens or retries, or raise max_missing. Verdicts "
        "so far are kept."
    )


class _Conversation:
    """What is being asked about one response: which call is next, and what came of the last."""

    def __init__(
        self, key: str, item: JudgeItem, index: int, prompts: Prompts, settings: JudgeSettings
    ) -> None:
        self.key = key
        self.places = [index]
        self._item = item
        self._prompts = prompts
        self._settings = settings
        self._attempt = 0
        self._cause = ""
        self._call: Call | None = None
        self._first: Reading | None = None
        self._replies: list[str] = []

    @property
    def chat(self) -> Chat:
        """The next call's; made when it is wanted, for thousands may wait."""
        return self._next_call().chat

    def hear(self, reply: Reply, judge: str) -> KeptVerdict | None:
        """Takes the reply to ``chat``: the verdict where this ends it, None where a call follows.

        Whichever call fails, both are asked again, the first with another mark and a further line:
        a judge asked the same twice would say the same.
        """
        if reply.text is None:
            reason = f"no reply: {reply.error}" if reply.error else "no reply"
            return self._failed(reason, "there was no reply", judge)
        self._replies.append(reply.text)
        if self._first is None:
            call = self._next_call()
            first = read_explanation(reply.text, call.mark)
            if first.score is None:
                return self._failed(first.problem, first.problem, judge)
            self._first = first
            self._call = second_call(self._prompts, reply.text, call.mark, self._attempt)
            return None
        second = read_score(reply.text)
        if second.score is None:
            return self._failed(second.problem, second.problem, judge)
        if second.score != self._first.score:
            return self._failed(_DISAGREE, _DISAGREE, judge)
        reason = "right" if second.score else "wrong"
        explanation = self._first.explanation
        return self._kept(float(second.score), reason, judge, explanation)

    def _next_call(self) -> Call:
        if self._call is None:
            tokens = self._settings.max_tokens
            self._call = first_call(self._prompts, self._item, tokens, self._attempt, self._cause)
        return self._call

    def _failed(self, reason: str, cause: str, judge: str) -> KeptVerdict | None:
        if self._attempt >= self._settings.retries:
            return self._kept(None, reason, judge)
        self._attempt, self._cause = self._attempt + 1, cause
        self._call, self._first, self._replies = None, None, []
        return None

    def _kept(
        self, reward: float | None, reason: str, judge: str, explanation: str = ""
    ) -> KeptVerdict:
        question = self._item.question
        first, second = [*self._replies, "", ""][:2]
        return KeptVerdict(
            judge=judge,
            prompt=self._prompts.name,
            question_id=question.id,
            question=question.text,
            choices=question.choices,
            label="\n".join(accepted_answers(question)),
            response=self._item.response,
            verdict=JudgeVerdict(reward=reward, reason=reason, explanation=explanation),
            first_reply=first,
            second_reply=second,
            attempts=self._attempt + 1,
        )


def _rounds(
    waiting: list[_Conversation], asker: Asker, round_size: int
) -> Iterator[tuple[_Conversation, KeptVerdict]]:
    """Every conversation with what came of it, as it ends."""
    begun: list[_Conversation] = []
    waiting.reverse()
    while begun or waiting:
        # In the items' order, so that the rounds are the same whatever order replies came in.
        begun.sort(key=lambda conversation: conversation.places[0])
        now, begun = begun[:round_size], begun[round_size:]
        while waiting and len(now) < round_size:
            now.append(waiting.pop())
        answered: set[int] = set()
        for place, reply in asker.ask([conversation.chat for conversation in now]):
            if place in answered or not 0 <= place < len(now):
                raise _broken(asker, f"chat {place} of {len(now)} twice or out of range")
            answered.add(place)
            kept = now[place].hear(reply, asker.name)
            if kept is None:
                begun.append(now[place])
            else:
                yield now[place], kept
        if len(answered) < len(now):
            raise _broken(asker, f"only {len(answered)} of {len(now)} chats")


def _broken(asker: Asker, what: str) -> StageError:
    return StageError(
        f"judge {asker.name}: answered {what}; expected each chat exactly once. This is a fault of "
        "the program that asks it; verdicts so far are kept."
    )
