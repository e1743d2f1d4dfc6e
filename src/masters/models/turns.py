"""What a chat template puts around an answer: how it begins, and the token that ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

ANSWER = "xyzzy"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """The frame of an assistant's answer.

    Args:
        lead: white space to put before the answer's text when it is tokenised by itself.
        end: id of the special token behind the text; None where the template writes none.
    """

    lead: str
    end: int | None


def answer_turn(processor: Any) -> Turn:
    """The frame, read off the processor's own chat template by rendering an answer in it.

    The tokenizer's end token need not end a turn: Gemma3's is ``<eos>``, its turns end with
    ``<end_of_turn>``. Idefics3 asks with "Assistant:" and answers with " red".
    """
    question = {"role": "user", "content": [{"type": "text", "text": "?"}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": ANSWER}]}
    try:
        asked = _render(processor, [question], add_generation_prompt=True)
        answered = _render(processor, [question, answer])
    except Exception:  # a template may refuse anything, in errors of its own; then nothing is known
        return Turn(lead="", end=None)
    before, found, after = answered.rpartition(ANSWER)
    if not found:
        return Turn(lead="", end=None)
    lead = before.removeprefix(asked) if before.startswith(asked) else ""
    tokenizer = processor.tokenizer
    lead = "" if lead.strip() else _as_tokens(tokenizer, asked, lead)
    # Not all_special_ids: it lists the named ones, and Gemma3's <end_of_turn> has no name.
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    end = next((token for token in _ids(tokenizer, after) if token in special), None)
    return Turn(lead=lead, end=end)


def _as_tokens(tokenizer: Any, asked: str, lead: str) -> str:
    """The lead, unless the tokenizer puts one before a text itself (as Llama's does)."""
    whole, prompt = _ids(tokenizer, asked + lead + ANSWER), _ids(tokenizer, asked)
    fits = (own for own in (lead, "") if whole == prompt + _ids(tokenizer, own + ANSWER))
    return next(fits, "")


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _render(processor: Any, messages: list[dict[str, Any]], **options: bool) -> str:
    return str(processor.apply_chat_template(messages, tokenize=False, **options))
