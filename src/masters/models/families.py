"""Where the parts of each vision-language architecture live: one readable table.

Names are those of transformers' modules (`model.named_modules()`), whatever the checkpoint calls
its tensors. An architecture that is not in the table is inspected; what cannot be found is said.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from masters.errors import ModelError
from masters.parts import Part


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module names of one architecture.

    Args:
        language: the decoder; its ``layers`` are the language model's.
        vision: the vision tower. Where the projector lies inside it, ``projector`` wins.
        projector: what turns vision features into tokens; one module or several.
        head: the output head.
        image_id: key of the configuration with the id that image features replace, one feature a
            placeholder.
        marker_ids: further keys with ids that belong to pictures; a response never contains them.
    """

    language: str
    vision: str
    projector: tuple[str, ...]
    image_id: str
    marker_ids: tuple[str, ...] = ()
    head: str = "lm_head"
    bidirectional_images: bool = False

    def part_of(self, module: str) -> Part | None:
        """Which part a module belongs to; None for what is in none (the head, say)."""
        roots: dict[Part, tuple[str, ...]] = {
            "projector": self.projector,
            "vision": (self.vision,),
            "language": (self.language,),
        }
        for part, names in roots.items():
            if any(module == name or module.startswith(f"{name}.") for name in names):
                return part
        return None


_QWEN_MARKERS = ("video_token_id", "vision_start_token_id", "vision_end_token_id")
_QWEN2 = Family(
    language="model.language_model",
    vision="model.visual",
    projector=("model.visual.merger",),
    image_id="image_token_id",
    marker_ids=_QWEN_MARKERS,
)
_QWEN3 = Family(
    language="model.language_model",
    vision="model.visual",
    projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    image_id="image_token_id",
    marker_ids=_QWEN_MARKERS,
)
_IDEFICS = Family(
    language="model.text_model",
    vision="model.vision_model",
    projector=("model.connector",),
    image_id="image_token_id",
)


def _llava(*markers: str) -> Family:
    return Family(
        language="model.language_model",
        vision="model.vision_tower",
        projector=("model.multi_modal_projector",),
        image_id="image_token_id",
        marker_ids=markers,
    )


#: By ``config.model_type``.
FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "internvl": _llava(),
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "llava_onevision": _llava("video_token_id"),
    "gemma3": replace(_llava("boi_token_id", "eoi_token_id"), bidirectional_images=True),
}


def family_of(model: Any) -> Family:
    """The family of a model (on any device, meta included), from the table or by looking at it.

    Raises:
        ModelError: a part cannot be found; says which, and what the model's modules are called.
    """
    model_type = model.config.model_type
    family = FAMILIES.get(model_type) or _inspected(model)
    names = dict(model.named_modules())
    for part, name in [
        ("language", family.language),
        ("vision", family.vision),
        ("head", family.head),
        *(("projector", name) for name in family.projector),
    ]:
        if name not in names:
            raise ModelError(
                f"model type '{model_type}' ({type(model).__name__}): its {part} was expected at "
                f"{name}, which is not there; it has {', '.join(_top(model))}. This version of "
                "transformers arranges it otherwise: report it with the versions of both"
            )
    if getattr(model.config, family.image_id, None) is None:
        raise ModelError(
            f"model type '{model_type}': its configuration has no {family.image_id}; expected the "
            "id that stands for image features in a prompt"
        )
    return family


def _top(model: Any) -> list[str]:
    """The modules one looks at to see where the parts are."""
    base = getattr(model, "model", model)
    prefix = "model." if base is not model else ""
    return [prefix + name for name, _ in base.named_children()]


def _inspected(model: Any) -> Family:
    """The family of an architecture outside the table, by the classes of its modules."""
    model_type = model.config.model_type
    head = _name_of(model, model.get_output_embeddings())
    language = _name_of(model, model.get_decoder())
    towers = [
        name
        for name, module in model.named_modules()
        if getattr(module, "config", None) is getattr(model.config, "vision_config", None) and name
    ]
    vision = min(towers, key=len, default=None)
    if head is None or language is None or vision is None:
        lacking = [
            what
            for what, found in (("head", head), ("decoder", language), ("vision tower", vision))
            if found is None
        ]
        raise ModelError(
            f"model type '{model_type}' is not one that Masters knows ({', '.join(FAMILIES)}), and "
            f"its {' and '.join(lacking)} could not be told from its modules "
            f"({', '.join(_top(model))}). Add a row to FAMILIES in masters/models/families.py"
        )
    rest = [
        name
        for name in _top(model)
        if name not in (language, vision, head) and list(model.get_submodule(name).parameters())
    ]
    return Family(
        language=language,
        vision=vision,
        projector=tuple(rest),
        image_id="image_token_id",
        head=head,
    )


def _name_of(model: Any, wanted: nn.Module | None) -> str | None:
    if wanted is None or wanted is model:
        return None
    return next((name for name, module in model.named_modules() if module is wanted), None)
