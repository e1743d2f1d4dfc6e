"""A chat of text as a model reads it; no text of a message becomes a token that means more."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from masters.errors import ModelError
from masters.models.encode import TOKEN_TYPES, EncodedPrompt, special_tokens

Turns = Sequence[tuple[str, str]]
"""(role, text) of each message: system, user or assistant."""

_MARK = "\ue000{}\ue001"  # private-use characters: in no template
_MARKED = re.compile("\ue000(\\d+)\ue001")


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """What a template writes around messages of certain roles.

    Args:
        pieces: the template's text before each message, and behind the last.
        order: the message behind each piece.
        special: the special tokens it has with harmless messages.
    """

    pieces: tuple[str, ...]
    order: tuple[int, ...]
    special: tuple[int, ...]


class ChatEncoder:
    """Chats of text through a model's own chat template and tokenizer.

    The template is rendered around marks that stand for the messages, so it can neither read nor
    change them: some cut off what they take for an earlier thought. A text that spells a special
    token (``<|im_end|>``, ``<image>``) is tokenised as the characters it is made of.

    Args:
        processor: of the model.
        forbidden: ids that no text may give, besides the tokenizer's special ones: pictures'.
    """

    def __init__(self, processor: Any, forbidden: Sequence[int] = ()) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        # Its own: reading special tokens as text is a setting that tokenizers keep.
        self._plain = copy.deepcopy(processor.tokenizer)
        added = self._tokenizer.added_tokens_decoder
        named = {i for i, token in added.items() if token.special} | set(forbidden)
        self._special = named - {self._tokenizer.unk_token_id}
        spelt = [added[i].content for i in self._special if i in added]
        spelt.sort(key=len, reverse=True)
        self._spelt = re.compile("|".join(map(re.escape, spelt)) or r"(?!)")
        self._frames: dict[tuple[str, ...], _Frame] = {}
        asked = processor(text=["x"])
        self._types = tuple(name for name in TOKEN_TYPES if name in asked)

    def __call__(self, turns: Turns) -> EncodedPrompt:
        """The chat as ids, up to where the reply begins.

        Raises:
            ModelError: the template does not take messages of these roles.
        """
        roles = tuple(role for role, _ in turns)
        if roles not in self._frames:
            self._frames[roles] = self._frame(roles)
        frame = self._frames[roles]
        texts = [turns[place][1] for place in frame.order]
        text = _filled(frame, texts)
        ids = self._ids(text)
        if self._specials(ids) != frame.special:
            ids = self._in_pieces(frame, texts)
        types = {name: [0] * len(ids) for name in self._types}
        return EncodedPrompt(text=text, ids=ids, token_types=types, images={})

    def _frame(self, roles: tuple[str, ...]) -> _Frame:
        marks = [(role, _MARK.format(place)) for place, role in enumerate(roles)]
        framed = self._rendered(marks)
        if framed is None and roles[0] == "system" and len(roles) > 1:
            # Some templates refuse a system message, others leave it out.
            first = (roles[1], f"{marks[0][1]}\n\n{marks[1][1]}")
            framed = self._rendered([first, *marks[2:]], count=len(roles))
        if framed is None:
            raise ModelError(
                f"{self._tokenizer.name_or_path}: its chat template does not render messages of "
                f"text by {', '.join(roles)}; expected one that does, so that the model can judge. "
                "Let another one judge: model: server"
            )
        parts = _MARKED.split(framed)
        order = tuple(int(place) for place in parts[1::2])
        frame = _Frame(pieces=tuple(parts[::2]), order=order, special=())
        harmless = self._ids(_filled(frame, ["x"] * len(order)))
        return _Frame(pieces=frame.pieces, order=order, special=self._specials(harmless))

    def _rendered(self, turns: Turns, count: int | None = None) -> str | None:
        """The template's text; None unless every one of the ``count`` marks is in it once."""
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
        ]
        try:
            text = self._processor.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # a template may refuse anything, in errors of its own
            return None
        found = sorted(int(place) for place in _MARKED.findall(text))
        return str(text) if found == list(range(count or len(turns))) else None

    def _ids(self, text: str) -> list[int]:
        options = special_tokens(self._processor, text)
        return list(self._tokenizer(text, **options)["input_ids"])

    def _specials(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(i for i in ids if i in self._special)

    def _in_pieces(self, frame: _Frame, texts: Sequence[str]) -> list[int]:
        """The template's pieces and the messages tokenised apart, messages as plain text."""
        ids = self._ids(frame.pieces[0])
        for text, piece in zip(texts, frame.pieces[1:], strict=True):
            ids += self._plain_ids(text)
            ids += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _plain_ids(self, text: str) -> list[int]:
        """Ids of a text cut within each spelling of a special token, so that none is left."""
        ids: list[int] = []
        start = 0
        for found in self._spelt.finditer(text):
            ids += self._text_ids(text[start : found.start() + 1])
            start = found.start() + 1
        ids += self._text_ids(text[start:])
        return [i for i in ids if i not in self._special]

    def _text_ids(self, text: str) -> list[int]:
        found = self._plain(text, add_special_tokens=False, split_special_tokens=True)
        return list(found["input_ids"])


def _filled(frame: _Frame, texts: Sequence[str]) -> str:
    pairs = zip(texts, frame.pieces[1:], strict=True)
    return frame.pieces[0] + "".join(text + piece for text, piece in pairs)
