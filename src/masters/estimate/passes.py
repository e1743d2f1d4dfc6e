"""The work of passes that stages are made of: reading, generating, training on a group."""

from __future__ import annotations

import math
from dataclasses import dataclass

from masters.estimate.cluster import Cluster
from masters.estimate.work import Work
from masters.estimate.workload import Workload
from masters.models import counts
from masters.models.counts import ModelShape
from masters.recipe import Precision, Runtime

ITEM: dict[Precision, int] = {"bf16": 2, "fp32": 4}
#: Longest row that a CPU packs under a mask: `training/group_forward.py`.
SHORT_ROW = 256
#: Bytes of a chunk's logits on CPU and accelerator: `training/token_scores.py`.
CHUNK_BYTES = {"cpu": 3 << 24, "cuda": 1 << 30}


@dataclass(frozen=True, kw_only=True)
class Row:
    """How the responses to a question lie before a model.

    Args:
        tokens: in all.
        pairs: of tokens that attention computes.
        pictures: times the prompt's pictures are encoded.
        length: of the row, padding left out.
    """

    tokens: float
    pairs: float
    pictures: float
    length: float


def group_row(
    workload: Workload, response: float, group: float, runtime: Runtime, device: str
) -> Row:
    """The responses to one question, as ``runtime.group_forward`` lays them out."""
    form = runtime.group_forward
    tokens, pairs = counts.packed(workload.prompt, response, group)
    if group <= 1 or form == "repeat":
        tokens, _ = counts.repeated(workload.prompt, response, group)
        length = workload.prompt + response
        return Row(tokens=tokens, pairs=tokens * length, pictures=group, length=length)
    masked = form == "mask" or (form == "auto" and (device == "cuda" or tokens <= SHORT_ROW))
    # A mask hides pairs, but their products are made.
    return Row(tokens=tokens, pairs=tokens**2 if masked else pairs, pictures=1, length=tokens)


def layers_of(shape: ModelShape) -> int:
    """Layers of the language model and the tower: what is launched in a pass."""
    return shape.layers + shape.tower_layers


def read(shape: ModelShape, workload: Workload, row: Row) -> Work:
    """A pass without gradient over a question's row."""
    flops = counts.language(shape, row.tokens, row.pairs)
    flops += row.pictures * counts.tower(shape, workload.image_tokens)
    return Work(forward_flops=flops, layer_passes=layers_of(shape), passes=1)


def generated(
    shape: ModelShape,
    workload: Workload,
    cluster: Cluster,
    *,
    prompts: float,
    samples: int,
    batch: int,
    limit: int,
    precision: Precision,
    engine: str = "transformers",
    sampled: bool = True,
) -> Work:
    """Answers to prompts, ``samples`` each.

    transformers repeats the prompt for each sample (its pictures are encoded once) and goes on
    until the longest of a batch has ended; other engines read it once and fill the batch again.

    Args:
        prompts: how many.
        batch: responses at a time.
        limit: tokens that a response may have.
        sampled: not greedy.
    """
    mean, longest = workload.answer(limit)
    own = engine == "transformers"
    at_once = max(1, batch // samples)
    batches = math.ceil(prompts / at_once) if own else prompts / at_once
    rows = min(at_once, prompts) * samples if own else at_once * samples
    steps = longest if own else mean
    prompt = workload.prompt
    readings = prompts * (samples if own else 1)
    reading = counts.language(shape, prompt, prompt**2) + counts.logits(shape, 1)
    seeing = counts.tower(shape, workload.image_tokens)
    # Where a prompt has several samples its picture is encoded by itself.
    towers = prompts if samples > 1 and workload.image_tokens else batches
    overhead = 1.0 if own else cluster.efficiency.vllm_share.value
    context = prompt + steps / 2
    flops = counts.language(shape, rows, rows * context) + counts.logits(shape, rows)
    item = ITEM[precision]
    cache = rows * context * 2 * shape.key_width * shape.layers * item
    # Transformers' cache grows by copying: it is read, read again and written.
    weights = (shape.weights + shape.head) * item
    moved = weights + cache * (3 if own else 1)
    peak = cluster.tflops.of(precision) * cluster.efficiency.generate.value
    bandwidth = 1e9 * cluster.bandwidth_gb_s * cluster.efficiency.decode.value
    bound = moved / bandwidth > flops / peak
    decoded = batches * max(0.0, steps - 1)
    return Work(
        generate_flops=readings * reading + prompts * seeing + (0 if bound else decoded * flops),
        decode_bytes=decoded * moved if bound else 0,
        layer_passes=overhead * (towers * shape.tower_layers + batches * steps * shape.layers),
        passes=overhead * batches * steps,
        logits=overhead * batches * steps * rows * shape.head_rows * (1 if sampled else 0.5),
        rows=prompts * samples,
    )


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How the student takes a group.

    Args:
        group: responses to a question.
        response: tokens of each.
        checkpointing: layers are run again in the backward pass.
        frozen_tower: it has no backward pass.
        pieces: passes that the responses are split over.
        lora: only adapters are trained: weights have no gradient of their own.
    """

    group: float
    response: float
    checkpointing: bool
    frozen_tower: bool
    pieces: int
    lora: bool


def trained(
    student: ModelShape,
    teacher: ModelShape | None,
    live: bool,
    workload: Workload,
    how: Trained,
    runtime: Runtime,
    device: str,
    precision: Precision,
) -> Work:
    """A question's forward and backward passes, the teacher's with it.

    Args:
        teacher: whose distribution is compared with; None: none.
        live: the teacher's trunk runs here; else its states are read from a stored signal.
    """
    pieces = how.pieces
    row = group_row(workload, how.response, how.group / pieces, runtime, device)
    trunk = counts.language(student, row.tokens, row.pairs)
    pictures = row.pictures * counts.tower(student, workload.image_tokens)
    again = (1 if how.checkpointing else 0) + (1 if pieces > 1 else 0)
    backward = 1 if how.lora else 2
    flops = trunk * (1 + backward + again)
    flops += pictures * (1 + again + (0 if how.frozen_tower else backward))
    tokens = how.group * how.response
    chunk = chunk_tokens(student, device, precision)
    found = Work(
        train_flops=pieces * flops,
        head_flops=counts.scoring(student, teacher, tokens, chunk),
        layer_passes=pieces * layers_of(student) * (3 + again),
        passes=pieces * (3 + again),
    )
    if teacher is not None and live:
        found += read(teacher, workload, row) * (pieces * (2 if pieces > 1 else 1))
    return found


def chunk_tokens(shape: ModelShape, device: str, precision: Precision) -> float:
    """Tokens whose logits are there at once."""
    fitting = CHUNK_BYTES[device] // (shape.head_rows * ITEM[precision])
    return min(max(fitting, 192), 4096)
