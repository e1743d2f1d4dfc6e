"""The models of the suite and their shapes: published ones on a GPU, tiny ones to prove the script.

The student is trained as Masters trains it: float32 weights, bf16 autocast, AdamW, recomputed
layers. Teachers are bf16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from stepping import shapes
from stepping.shapes import Case, question
from stepping.ways import OPTIMISER, PAD

from masters.models.layers import meta_model
from masters.models.load import TokenIds, load_config
from masters.training.groups import Group
from masters.training.optimiser import make_optimiser
from masters.training.student import Student

CONFIGS = Path(__file__).resolve().parents[2] / "tests" / "configs"
FOLDERS = {
    "2B": "Qwen3-VL-2B-Instruct",
    "8B": "Qwen3-VL-8B-Instruct",
    "32B": "Qwen3-VL-32B-Instruct",
}
TINY = {
    "2B": shapes.QUICK_STUDENT,
    "8B": shapes.QUICK_TEACHER,
    "32B": replace(shapes.QUICK_TEACHER, layers=3),
}
TINY_VOCABULARY = 256
#: Of a trained weight: itself, its gradient and two moments; and of one in bf16.
TRAINED, FROZEN = 16, 2


@dataclass(frozen=True)
class Setting:
    """Where and what is measured.

    Args:
        device: of all models.
        small: tiny models and shapes.
        configs: folder with the published configurations.
    """

    device: torch.device
    small: bool
    configs: Path = CONFIGS

    @property
    def repeats(self) -> int:
        """Of each timed part."""
        return 1 if self.small else 3

    @property
    def precision(self) -> torch.dtype:
        """That all models compute in."""
        return torch.bfloat16

    @cached_property
    def vocabulary(self) -> int:
        """Rows of every head."""
        return TINY_VOCABULARY if self.small else self._config("2B").text_config.vocab_size

    @property
    def ids(self) -> TokenIds:
        """Special ids of `shapes.question`."""
        return TokenIds(end=(1,), pad=PAD, banned=(), vocabulary=self.vocabulary)

    @property
    def cases(self) -> dict[str, Case]:
        """A prompt four, sixteen times and once as long as a response: what matters most first."""
        response, group = (4, 3) if self.small else (60, 8)
        return {
            f"{ratio}:1": Case(
                prefix=ratio * response + (12 if self.small else 0), response=response,
                group=group, vocabulary=self.vocabulary,
            )
            for ratio in (4, 16, 1)
        }  # fmt: skip

    def _config(self, name: str) -> Any:
        return load_config(str(self.configs / FOLDERS[name]))

    def weights(self, name: str) -> int:
        """Of a model."""
        if self.small:
            return 0
        model = meta_model(self._config(name))
        if model.config.tie_word_embeddings:
            model.tie_weights()
        return sum(p.numel() for p in model.parameters())

    def model_layers(self, name: str) -> int:
        """Of a model's language model."""
        if self.small:
            return TINY[name].layers
        return self._config(name).text_config.num_hidden_layers

    def model(self, name: str, dtype: torch.dtype, layers: int | None = None) -> Any:
        """A frozen model on the device, random weights; ``layers`` cuts its language model."""
        if self.small:
            size = TINY[name] if layers is None else replace(TINY[name], layers=layers)
            built = shapes.random_model(size, self.vocabulary, seed=1)
            made: Any = built.to(self.device, dtype).eval()
        else:
            made = shapes.published_model(
                self.configs / FOLDERS[name], dtype=dtype, device=self.device, layers=layers
            )
        return made.requires_grad_(False)

    def student(self) -> tuple[Student, torch.optim.Optimizer]:
        """The 2B as a step trains it, and its optimiser (of rate 0: every repeat is the same)."""
        vlm = self.model("2B", torch.float32).requires_grad_(True)
        checkpointing(vlm, True)
        module = Student(vlm, precision=self.precision).train()
        return module, make_optimiser(module, OPTIMISER)


def checkpointing(vlm: Any, on: bool) -> None:
    """Whether layers run again in the backward pass instead of keeping what they computed."""
    if on:
        vlm.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        vlm.gradient_checkpointing_disable()


def scored_question(case: Case, *, seed: int = 0) -> Group:
    """A question whose responses have the reference's log-probs, as a score stage leaves them."""
    group = question(case, seed=seed)
    known = (-12.0,) * case.response
    return replace(
        group, responses=tuple(replace(response, reference=known) for response in group.responses)
    )
