"""From a question to what a model reads: chat prompt, ids, image tensors, padded batches.

Shape suffixes: R rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from masters.data.questions import Question
from masters.errors import ModelError

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
        """Bytes of its image tensors."""
        return sum(value.nbytes for value in self.images.values())


def chat_messages(question: Question, prompt: PromptText) -> list[dict[str, Any]]:
    """The conversation a question is asked in: system, image and history, question with suffix."""
    messages: list[dict[str, Any]] = []
    if prompt.system:
        messages.append({"role": "system", "content": [{"type": "text", "text": prompt.system}]})
    turns = [*((turn.question, turn.answer) for turn in question.history), (question.text, None)]
    for i, (asked, answered) in enumerate(turns):
        last = answered is None and prompt.suffix
        said = f"{asked}\n{prompt.suffix}" if last else asked
        content: list[dict[str, str]] = [{"type": "text", "text": said}]
        if i == 0 and question.image is not None:
            content.insert(0, {"type": "image"})
        messages.append({"role": "user", "content": content})
        if answered is not None:
            parts = [{"type": "text", "text": answered}]
            messages.append({"role": "assistant", "content": parts})
    return messages


def fit_pixels(image: Image, max_pixels: int) -> Image:
    """The image, scaled down (aspect kept) to at most ``max_pixels`` when it is larger."""
    width, height = image.size
    if width * height <= max_pixels:
        return image
    scale = (max_pixels / (width * height)) ** 0.5
    return image.resize((max(1, int(width * scale)), max(1, int(height * scale))))


def encode_prompt(
    processor: Any, question: Question, image: Image | None, prompt: PromptText
) -> EncodedPrompt:
    """The question as ids and image tensors through the model's own processor and chat template.

    Raises:
        ModelError: the processor refuses the image or text, or has no chat template.
    """
    messages = chat_messages(question, prompt)
    try:
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images = None if image is None else [image]
        inputs = processor(
            text=[text], images=images, return_tensors="pt", **_special_tokens(processor, text)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"question {question.id}: the processor refuses it: {error}") from error
    ids = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask", None)
    types = {k: inputs.pop(k)[0].tolist() for k in TOKEN_TYPES if k in inputs}
    return EncodedPrompt(text=text, ids=ids, token_types=types, images=dict(inputs))


def _special_tokens(processor: Any, text: str) -> dict[str, bool]:
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
    return {name: value.to(device) for name, value in inputs.items()}


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
