"""From a question to what a model reads: chat prompt, ids, image tensors, padded batches.

Shape suffixes: R rows, T tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from masters.data.questions import IMAGE_MARKER, Question
from masters.errors import ModelError
from masters.models.devices import to_device

if TYPE_CHECKING:
    from PIL.Image import Image

#: Per-token inputs beside the ids; zero for response tokens (they are text).
TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True, kw_only=True)
class PromptText:
    """What is said around a question, the same for generation, judging, training and evaluation."""

    system: str | None = None
    suffix: str | None = None


@dataclass(frozen=True, kw_only=True)
class EncodedPrompt:
    """One question as one model reads it.

    Args:
        text: the rendered chat prompt, before image placeholders are multiplied.
        ids: its token ids, placeholders multiplied, up to where the response begins.
        token_types: per-token inputs by name, each as long as ``ids``.
        images: image tensors by input name; first dimension concatenates over rows.
    """

    text: str
    ids: list[int]
    token_types: dict[str, list[int]]
    images: dict[str, torch.Tensor]

    @property
    def size(self) -> int:
        """About how many bytes it takes: image tensors, ids (Python numbers) and text."""
        numbers = len(self.ids) * (1 + len(self.token_types))
        return sum(value.nbytes for value in self.images.values()) + 36 * numbers + len(self.text)

    @property
    def image_key(self) -> bytes:
        """A digest of its image tensors: equal pictures have equal keys in every question."""
        known = self.__dict__.get("_image_key")
        if known is None:
            digest = hashlib.blake2b(digest_size=16)
            for name, value in sorted(self.images.items()):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
                digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
            known = self.__dict__["_image_key"] = digest.digest()
        return known

    def without_pixels(self) -> EncodedPrompt:
        """The same with no rows in its pixels and pixel masks; sizes and grids stay."""
        images = {
            name: value[:0] if value.is_floating_point() or value.dim() > 2 else value
            for name, value in self.images.items()
        }
        return replace(self, images=images)


def chat_messages(question: Question, prompt: PromptText) -> list[dict[str, Any]]:
    """The conversation a question is asked in: system, images and history, question with suffix.

    Images stand where the turns have markers; without markers all stand before the first turn.
    """
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": prompt.system}]})
    turns = [*((turn.question, turn.answer) for turn in question.history), (question.text, None)]
    marked = bool(question.images) and any(IMAGE_MARKER in asked for asked, _ in turns)
    for i, (asked, answered) in enumerate(turns):
        last = answered is None and prompt.suffix
        said = f"{asked}\n{prompt.suffix}" if last else asked
        first = len(question.images) if i == 0 and not marked else 0
        content = [{"type": "image"}] * first
        content += _parts(said) if marked else [{"type": "text", "text": said}]
        messages.append({"role": "user", "content": content})
        if answered is not None:
            parts = [{"type": "text", "text": answered}]
            messages.append({"role": "assistant", "content": parts})
    return messages


def _parts(text: str) -> list[dict[str, str]]:
    """The text cut at its markers, an image in place of each."""
    found: list[dict[str, str]] = []
    for i, part in enumerate(text.split(IMAGE_MARKER)):
        found += [{"type": "image"}] if i else []
        found += [{"type": "text", "text": part}] if part else []
    return found


def fit_pixels(image: Image, max_pixels: int) -> Image:
    """The image, scaled down (aspect kept) to at most ``max_pixels`` when it is larger."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    return image.resize((max(1, int(width * scale)), max(1, int(height * scale))))


def encode_prompt(
    processor: Any, question: Question, images: Sequence[Image], prompt: PromptText
) -> EncodedPrompt:
    """The question as ids and image tensors through the model's own processor and chat template.

    Args:
        images: the question's images, in order; empty for a text-only question.

    Raises:
        ModelError: the processor refuses an image or the text, or has no chat template.
    """
    try:
        text = prompt_text(processor, question, prompt)
        inputs = processor(
            text=[text],
            # A list for each text: LLaVA-OneVision cuts up an only image, not one of several.
            images=[list(images)] if images else None,
            return_tensors="pt",
            **special_tokens(processor, text),
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"question {question.id}: the processor refuses it: {error}") from error
    ids = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask", None)
    types = {k: inputs.pop(k)[0].tolist() for k in TOKEN_TYPES if k in inputs}
    return EncodedPrompt(text=text, ids=ids, token_types=types, images=dict(inputs))


def prompt_text(processor: Any, question: Question, prompt: PromptText) -> str:
    """The question as the model's chat template renders it, with one placeholder an image."""
    messages = chat_messages(question, prompt)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return str(text)


def special_tokens(processor: Any, text: str) -> dict[str, bool]:
    """Keeps a tokenizer from putting a second start token before one the template has written."""
    start = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if start is not None and text.startswith(start) else {}


def pad_rows(
    rows: Sequence[tuple[EncodedPrompt, Sequence[int]]],
    *,
    pad: int,
    side: str = "right",
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Model inputs for rows of prompt + response ids, padded to the longest row.

    Args:
        rows: R pairs of a prompt and the response ids behind it (may be empty).
        pad: padding id; padding is known by ``attention_mask``, never by its id, so an end token
            with the same id stays real.
        side: ``right`` for scoring, ``left`` for generation.

    Returns:
        input_ids [R, T], attention_mask [R, T], token types [R, T], image tensors.
    """
    lengths = [len(prompt.ids) + len(response) for prompt, response in rows]
    width = max(lengths)
    ids_RT = torch.full((len(rows), width), pad, dtype=torch.long)
    mask_RT = torch.zeros((len(rows), width), dtype=torch.long)
    typed = sorted({name for prompt, _ in rows for name in prompt.token_types})
    types = {name: torch.zeros_like(ids_RT) for name in typed}
    for r, ((prompt, response), length) in enumerate(zip(rows, lengths, strict=True)):
        start = 0 if side == "right" else width - length
        ids_RT[r, start : start + length] = torch.tensor([*prompt.ids, *response])
        mask_RT[r, start : start + length] = 1
        for name, values in prompt.token_types.items():
            types[name][r, start : start + len(prompt.ids)] = torch.tensor(values)
    inputs = {"input_ids": ids_RT, "attention_mask": mask_RT, **types}
    names = {name for prompt, _ in rows for name in prompt.images}
    for name in sorted(names):
        parts = [prompt.images[name] for prompt, _ in rows if name in prompt.images]
        inputs[name] = _concatenate(parts)
    return to_device(inputs, device)


def _concatenate(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors behind one another; where other dimensions differ, zeros fill them up at the end.

    So rows may have different numbers of crops (Idefics3, LLaVA-OneVision) or sizes (Pixtral). The
    processors themselves fill up a batch so, and the models leave it out again: by the pixel mask,
    by the image sizes, or because it is all zero.
    """
    shape = [max(sizes) for sizes in zip(*(part.shape for part in parts), strict=True)]
    if all(list(part.shape[1:]) == shape[1:] for part in parts):
        return torch.cat(list(parts))
    filled = parts[0].new_zeros((sum(len(part) for part in parts), *shape[1:]))
    start = 0
    for part in parts:
        stop = start + len(part)
        filled[(slice(start, stop), *(slice(size) for size in part.shape[1:]))] = part
        start = stop
    return filled
