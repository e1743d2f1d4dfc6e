"""What a recipe may say of how and where it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from masters.recipe_engines import Vllm
from masters.recipe_judge import ServerAddress
from masters.recipe_parts import Count, Section, Whole


class Runtime(Section):
    """How and where it runs: recorded, bounded by tests, never part of a fingerprint."""

    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda, cuda:0 ..."""
    teacher_device: str = Field(default="same", pattern=r"^(same|cpu|offload|cuda(:[0-9]+)?)$")
    """Where a teacher computes: on the same device; cpu; cuda:1, say; or offload: on the same
    device, its layers kept in the host's memory and brought over when they run."""
    engine: Literal["single", "fsdp2", "deepspeed"] = "single"
    """What trains: one process; or those that torchrun started, weights, gradients and moments
    spread over them by torch's fully_shard, or by DeepSpeed ZeRO-3 (package deepspeed);
    docs/training_engines.md."""
    activation_offload: bool = False
    """What a layer keeps for its backward pass waits in the host's memory; layers are run again
    (`gradient_checkpointing`), so that this is their inputs alone."""
    jobs: Count = 1
    """Independent stages at the same time, each in a process of its own."""
    threads: Count | None = None
    """CPU threads of each stage; null: torch's choice."""
    micro_batch_questions: Count = 1
    """Questions in one forward and backward pass."""
    micro_batch_responses: Count | None = None
    """A question with more distinct responses than this is split over passes; null: never."""
    group_forward: Literal["auto", "attention", "mask", "repeat"] = "auto"
    """How the responses to a question share its prompt and image. attention and mask: one row for
    all of them; repeat: a row for each. auto: what suits the model. Checked on the first batch."""
    generation_batch: Count = 64
    """Responses generated (or questions answered) at a time."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """flash_attention_2: package flash-attn, a CUDA device and bf16."""
    checkpoint_every: Count = 200
    """Optimiser steps between checkpoints."""
    gradient_checkpointing: Literal["auto", True, False] = "auto"
    """Recompute activations in the backward pass; auto: on a CUDA device."""
    images_checked: Count | None = 20_000
    """Images decoded before the work: all where a data set has no more, else those of so many
    questions spread over it, and the others when their turn comes. null: always all."""
    workers: Whole = 2
    """Threads that read and encode coming questions; 0: done when they are needed."""
    feature_cache_gb: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Host memory (GB) for the features of pictures that frozen vision towers make: the teacher's,
    and the student's where `freeze` names it. auto: 4 where questions come again; 0: none, and
    each answer to a prompt encodes its picture anew."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Who reads metrics.jsonl along, where installed."""
    server: ServerAddress | None = None
    """Where a judge with model: server is, and what answers with engine: server."""
    vllm: Vllm | None = None
    """Where vLLM is, for engine: vllm."""
    engine_check: bool = True
    """Before vLLM or a server answers, compare a sample of it with transformers: loads the model
    here. false, where it has no room: what is served is taken on trust, and the record says so."""
