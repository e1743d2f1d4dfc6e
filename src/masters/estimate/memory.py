"""Bytes that a stage needs of each GPU, by what takes them."""

from __future__ import annotations

from masters.estimate.passes import ITEM, Row, Trained, chunk_tokens, group_row
from masters.estimate.workload import Workload
from masters.models.counts import ModelShape
from masters.recipe import ModelSource, Precision, Runtime
from masters.sizes import FROZEN_BYTES, TRAINED_BYTES

Bytes = dict[str, float]
#: Bytes of an activation that is kept: under bf16 autocast norms and residuals are float32.
KEPT: dict[Precision, float] = {"bf16": 3.0, "fp32": 4.0}
#: Numbers for each logit while a token is chosen: float32 and float64 copies, masks, counts.
SAMPLER_BYTES = 40


def kept_by_layers(shape: ModelShape, tokens: float) -> float:
    """Numbers that autograd keeps in the language model: inputs of norms, products and attention.

    A layer keeps three copies around each norm and one before the products of its attention and
    its MLP, heads as projected, normed, turned and put together, and four of its MLP's width.
    """
    layer = 8 * shape.hidden + 5 * shape.width + 5 * shape.key_width + 4 * shape.feed_forward
    return tokens * layer * shape.layers


def kept_by_tower(shape: ModelShape, image_tokens: float) -> float:
    """The same of the vision tower: pictures of so many tokens in all."""
    patches = image_tokens * shape.patches
    return patches * shape.tower_layers * (12 * shape.tower_hidden + 3 * shape.tower_feed_forward)


def inside(shape: ModelShape, tokens: float, image_tokens: float) -> float:
    """Numbers that one layer needs while it runs without gradient."""
    own = tokens * (4 * shape.hidden + 2 * shape.width + 3 * shape.feed_forward)
    patches = image_tokens * shape.patches
    return max(own, patches * (5 * shape.tower_hidden + 2 * shape.tower_feed_forward))


def weights(shape: ModelShape, precision: Precision, *, offload: bool = False) -> float:
    """Of a model that computes: all of it, or what stays on the device and one layer."""
    count = shape.parameters
    if offload:
        count += shape.largest_layer - shape.layer_parameters
    return ITEM[precision] * count


def answering(
    shape: ModelShape, workload: Workload, precision: Precision, *, rows: float, longest: float,
    prompt: float, image: float,
) -> Bytes:  # fmt: skip
    """Generating so many rows at a time, the weights left out."""
    item = ITEM[precision]
    cache = rows * (prompt + longest) * 2 * shape.key_width * shape.layers * item
    reading = inside(shape, rows * prompt, rows * image) * item
    return {
        "KV cache": cache,
        "activations": max(reading, rows * shape.head_rows * SAMPLER_BYTES),
    }


def scoring(student: ModelShape, teacher: ModelShape | None, tokens: float, chunk: float) -> float:
    """Logits of a chunk, in float32 as they are scored, and their gradient's block."""
    models = [student] if teacher is None else [student, teacher]
    return 4 * min(tokens, chunk) * sum(shape.head_rows for shape in models)


def trained_weights(source: ModelSource, shape: ModelShape, moments: str) -> float:
    """Weights, gradients and moments, adapters and frozen parts as the recipe has them."""
    if source.lora is not None:
        # Of the adapters' targets at most all of the language model's products.
        rows = 4 * (shape.width + shape.key_width) + 3 * (shape.hidden + shape.feed_forward)
        adapters = source.lora.rank * shape.layers * (rows + 2 * shape.hidden)
        return FROZEN_BYTES * shape.parameters + TRAINED_BYTES[moments] * adapters
    frozen = frozen_parameters(source, shape)
    return TRAINED_BYTES[moments] * (shape.parameters - frozen) + FROZEN_BYTES * frozen


def frozen_parameters(source: ModelSource, shape: ModelShape) -> float:
    """Parameters that ``freeze`` keeps, by the weights of the parts."""
    parts = {
        "vision": shape.tower_weights,
        "projector": shape.projector_weights,
        "language": shape.parameters - shape.tower_weights - shape.projector_weights,
    }
    return sum(parts[part] for part in source.freeze)


def training(
    student: ModelShape, teacher: ModelShape | None, live: bool, workload: Workload, how: Trained,
    runtime: Runtime, device: str, precision: Precision,
) -> Bytes:  # fmt: skip
    """Activations of the passes of a micro-batch, weights and their like left out."""
    row = group_row(workload, how.response, how.group / how.pieces, runtime, device)
    questions = runtime.micro_batch_questions if how.pieces == 1 else 1
    tokens, image = questions * row.tokens, questions * row.pictures * workload.image_tokens
    pairs = questions * _mask_bytes(row, runtime, device)
    tower_kept = 0.0 if how.frozen_tower else kept_by_tower(student, image)
    if how.checkpointing:
        # Another key of the training engines: layers' inputs wait in the host's memory.
        waiting = getattr(runtime, "activation_offload", False)
        saved = 0.0 if waiting else 4 * tokens * student.hidden * student.layers
        layer = kept_by_layers(student, tokens) / student.layers
        saved += KEPT[precision] * max(layer, tower_kept / max(1, student.tower_layers))
        if not how.frozen_tower:
            saved += 4 * image * student.patches * student.tower_hidden * student.tower_layers
    else:
        saved = KEPT[precision] * (kept_by_layers(student, tokens) + tower_kept)
    responses = questions * how.group / how.pieces * how.response
    chunk = chunk_tokens(student, device, precision)
    found = {"activations": saved + pairs, "logits": scoring(student, teacher, responses, chunk)}
    if teacher is not None and live:
        # Its pass is over when the student's begins: the larger of both counts.
        passing = inside(teacher, tokens, image) * ITEM[precision] + pairs
        found["activations"] = max(found["activations"], passing)
    return found


def _mask_bytes(row: Row, runtime: Runtime, device: str) -> float:
    """Of the mask over all pairs of a packed row: a byte each, and what sdpa makes of it."""
    short = device == "cpu" and row.length > 256
    return 0.0 if row.pictures > 1 or short else 5 * row.length**2
