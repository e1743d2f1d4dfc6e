"""Looked at before a stage's work, on real samples: does the picture reach the model?

Each finding is an error that names the model, its role, the question, what was got and what to do.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from masters.data.questions import Questions
from masters.errors import ModelError
from masters.models.encode import EncodedPrompt
from masters.models.sight import (
    distance,
    evaluating,
    image_features,
    next_log_probs,
    placeholders,
)
from masters.stages.opening import OpenedModel, Prompts

if TYPE_CHECKING:
    from PIL.Image import Image

#: Questions looked at: the first ones that have a picture, and as many drawn from all.
FIRST = 2
DRAWN = 2
#: Rows read to find them; a data set with no picture among these counts as text.
READ = 100
#: Another picture must move a log-probability by this much (nats): below is rounding.
LEAST = 1e-3
#: ... and by this many times what the same picture moves it when asked twice.
TIMES = 10.0


def check_sees_image(
    opened: OpenedModel,
    prompts: Prompts,
    *,
    role: str,
    precision: torch.dtype = torch.float32,
) -> None:
    """Raises ModelError unless the pictures of a few questions reach the model.

    For each of them: the processor makes image tensors, as many placeholders stand in the prompt as
    the model makes features, the next token's distribution is finite, and it moves when the picture
    is replaced by another of the same size, by more than LEAST and TIMES its change from running
    the same input twice.

    Args:
        opened: the model with its processor.
        prompts: questions as that processor encodes them.
        role: teacher, student or model, for messages.
        precision: that the stage computes in (autocast).
    """
    device = torch.device(opened.model.device)
    autocast = torch.autocast(device.type, dtype=precision, enabled=precision != torch.float32)
    with evaluating(opened.model), autocast:
        for index in sampled(prompts.questions):
            try:
                _check(opened, prompts, index)
            except _FindingError as finding:
                question = prompts.questions[index].id
                said = f"{opened.folder}: the {role} {finding} (question {question})"
                raise ModelError(said) from finding


class _FindingError(Exception):
    """What is wrong with one question, without naming the model."""


def sampled(questions: Questions) -> list[int]:
    """The questions to look at: the first with a picture, and some from anywhere."""
    count = len(questions)
    drawn = random.Random(0).sample(range(count), min(READ, count))
    found: dict[int, None] = {}
    for order, wanted in ((range(min(READ, count)), FIRST), (drawn, FIRST + DRAWN)):
        for index in order:
            if len(found) >= wanted:
                break
            if questions[index].images:
                found[index] = None
    return list(found)


def other_picture(image: Image) -> Image:
    """Another picture of the same size: large blocks of colours that come out the same each time.

    Blocks survive resizing. A negative would not do: that of a grey picture is the picture.
    """
    from PIL import Image as PillowImage

    noise = random.Random(0).randbytes(4 * 4 * 3)
    blocks = PillowImage.frombytes("RGB", (4, 4), noise)
    return blocks.resize(image.size, PillowImage.Resampling.NEAREST)


def _check(opened: OpenedModel, prompts: Prompts, index: int) -> None:
    try:
        encoded, other = prompts(index), prompts.encode(index, change=other_picture)
    except ModelError as error:
        said = str(error).removeprefix(f"question {prompts.questions[index].id}: ")
        raise _FindingError(
            f"cannot be given the image: {said}. Its chat template or processor is not its own: "
            "take chat_template.jinja and preprocessor_config.json of the published checkpoint"
        ) from error
    _check_placeholders(opened, encoded)
    if all(torch.equal(encoded.images[k], other.images[k]) for k in encoded.images):
        raise _FindingError(
            "does not see the image: its processor makes the same numbers of another picture. "
            "Compare its preprocessor_config.json (rescale_factor, image_mean, image_std) with "
            "that of the published checkpoint"
        )
    first, again, swapped = (
        next_log_probs(opened.model, prompt, pad=opened.ids.pad, vocabulary=opened.ids.vocabulary)
        for prompt in (encoded, encoded, other)
    )
    if not torch.isfinite(first).all():
        raise _FindingError(
            "gives NaN or infinite logits; expected finite ones. Its weights are damaged, or its "
            "precision does not suit it: fetch it again, or use precision fp32"
        )
    noise, change = distance(first, again), distance(first, swapped)
    least = max(LEAST, TIMES * noise)
    if not change > least:
        raise _FindingError(
            f"does not see the image: another picture moves its next token's log-probabilities by "
            f"{change:.1e} at most, the same picture again by {noise:.1e}; expected more than "
            f"{least:.1e}. Its vision tower or projector is missing or damaged: check the "
            "checkpoint, and that its chat template and processor are its own"
        )


def _check_placeholders(opened: OpenedModel, encoded: EncodedPrompt) -> None:
    seats = placeholders(opened.model, encoded)
    if not encoded.images:
        raise _FindingError(
            "does not see the image: its processor makes no image tensors of it. Its "
            "preprocessor_config.json or processor_config.json is missing or not its own"
        )
    if seats == 0:
        raise _FindingError(
            f"does not see the image: no image placeholder stands in its prompt {encoded.text!r}. "
            "Its chat template drops the image: use the chat_template.jinja of the published "
            "checkpoint"
        )
    try:
        features = image_features(opened.model, encoded)
    except ModelError as error:
        raise _FindingError(
            f"cannot make features of the image tensors of its processor ({error}). Processor and "
            "model come from different checkpoints: take both from the same one"
        ) from error
    if features is not None and seats != features:
        raise _FindingError(
            f"gets {seats} image placeholders from its processor and makes {features} image "
            "features; expected one feature for each. Processor and model come from different "
            "checkpoints, or settings of one were changed (image size, patch_size, merge_size), or "
            "the chat template drops one of several images: take all from the same checkpoint"
        )
