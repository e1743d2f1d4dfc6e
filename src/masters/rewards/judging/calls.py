"""The versioned prompts, and the two calls they make of a response."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from masters.data.answers import accepted_answers
from masters.data.questions import IMAGE_MARKER
from masters.errors import StageError
from masters.rewards.judging.asking import Chat, Message
from masters.rewards.judging.items import JudgeItem
from masters.rewards.judging.material import block, mark_of

#: Raised when the same texts are shown in another way; part of every kept verdict's key.
_BUILDER = 1
#: The second call prints one digit; a judge that puts words around it should be seen to do so.
SCORE_TOKENS = 16

_FOLDER = Path(__file__).parent / "prompts"
_SLOT = re.compile(r"\{\{(\w+)\}\}")
_SLOTS = {
    "explain": {"mark", "question", "reference", "response", "again"},
    "again": {"attempt", "cause"},
    "score": {"mark", "tag", "remark"},
}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """One version of the prompts.

    Args:
        name: the version and a digest of its texts and of how they are filled in, such as
            "v1-3f9a1c2b": another text is another judge, and never answers from kept verdicts.
        explain: of the first call.
        again: what a further try adds to it.
        score: of the second call.
    """

    name: str
    explain: str
    again: str
    score: str


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call, and the mark that its reply is read by."""

    chat: Chat
    mark: str


def load_prompts(version: str) -> Prompts:
    """The prompts of a version, from ``prompts/<version>/``.

    Raises:
        StageError: there is no such version, or a text lacks a slot or has one too many.
    """
    known = sorted(path.name for path in _FOLDER.iterdir() if path.is_dir())
    if version not in known:
        raise StageError(
            f"judge's prompts {version!r}: there is no such version; expected one of {known}. "
            "Correct method.rewards.accuracy.judge.prompt."
        )
    texts: dict[str, str] = {}
    for part, slots in _SLOTS.items():
        path = _FOLDER / version / f"{part}.txt"
        texts[part] = path.read_text(encoding="utf-8").strip()
        found = set(_SLOT.findall(texts[part]))
        if found != slots:
            raise StageError(
                f"{path}: has the slots {sorted(found)}; expected {sorted(slots)}. "
                "Write each as {{name}}."
            )
    content = "\0".join([str(_BUILDER), *texts.values()])
    digest = hashlib.sha256(content.encode()).hexdigest()[:8]
    return Prompts(name=f"{version}-{digest}", **texts)


def first_call(
    prompts: Prompts, item: JudgeItem, max_tokens: int, attempt: int = 0, cause: str = ""
) -> Call:
    """Explain, then score in a tag that carries the mark.

    Args:
        attempt: 0 for the first try.
        cause: why the try before could not be used; words of ours.
    """
    question, labels = _question(item), accepted_answers(item.question)
    mark = mark_of([question, *labels, item.response], f"explain {attempt}")
    again = _filled(prompts.again, {"attempt": str(attempt + 1), "cause": cause}) + "\n"
    text = _filled(
        prompts.explain,
        {
            "mark": mark,
            "question": block("question", question, mark),
            "reference": _references(labels, mark),
            "response": block("response", item.response, mark, cut=True),
            "again": again if attempt else "",
        },
    )
    return Call(chat=_chat(text, max_tokens), mark=mark)


def second_call(prompts: Prompts, remark: str, tag: str, attempt: int = 0) -> Call:
    """Read what the first call said, and print its score.

    Args:
        remark: the reply to the first call, whole.
        tag: the first call's mark.
    """
    mark = mark_of([remark, tag], f"score {attempt}")
    slots = {"mark": mark, "tag": tag, "remark": block("remark", remark, mark, cut=True)}
    return Call(chat=_chat(_filled(prompts.score, slots), SCORE_TOKENS), mark=mark)


def _question(item: JudgeItem) -> str:
    text = item.question.text.replace(IMAGE_MARKER, "").strip()
    options = [
        f"{chr(ord('A') + index)}. {choice}" if index < 26 else choice
        for index, choice in enumerate(item.question.choices)
    ]
    return "\n".join([text, *options])


def _references(labels: Sequence[str], mark: str) -> str:
    """A block for each: one list of them would read as if all had to be said."""
    titles = ["reference answer", *["another reference answer, any one will do"] * len(labels)]
    return "\n\n".join(
        block(title, label, mark) for title, label in zip(titles, labels, strict=False)
    )


def _filled(template: str, slots: Mapping[str, str]) -> str:
    # In one pass: what looks like a slot within a slot's text stays as it is.
    return _SLOT.sub(lambda match: slots[match[1]], template)


def _chat(text: str, max_tokens: int) -> Chat:
    # One message of the user's: not every chat template has a system role.
    return Chat(messages=(Message(role="user", text=text),), max_tokens=max_tokens)
