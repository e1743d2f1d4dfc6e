"""The shape of a model, read off its modules: on any device, meta included."""

from __future__ import annotations

from typing import Any

from torch import nn

from masters.models.counts import ModelShape
from masters.models.families import family_of
from masters.models.layers import CONVOLUTIONS, maskable_layers
from masters.models.offload import blocks_of


def model_shape(model: Any) -> ModelShape:
    """The shape of a vision-language model."""
    family, config = family_of(model), model.config.get_text_config()
    weights = {"language": 0.0, "vision": 0.0, "projector": 0.0}
    for name, module in model.named_modules():
        part = family.part_of(name)
        if part is not None:
            weights[part] += _multiplied(module, config)
    vision = model.config.vision_config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model).values()]
    hidden = vision.hidden_size
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        weights=weights["language"],
        layers=config.num_hidden_layers,
        width=heads * head_dim,
        hidden=config.hidden_size,
        feed_forward=_feed_forward(config),
        key_width=(getattr(config, "num_key_value_heads", None) or heads) * head_dim,
        head_rows=model.get_output_embeddings().weight.shape[0],
        layer_parameters=sum(blocks),
        largest_layer=max(blocks),
        tower_weights=int(weights["vision"]),
        tower_layers=_first(vision, "depth", "num_hidden_layers"),
        tower_hidden=hidden,
        tower_feed_forward=getattr(vision, "intermediate_size", 4 * hidden),
        tower_span=_span(vision),
        projector_weights=int(weights["projector"]),
        patches=patches_per_token(model.config),
        matrices=len(maskable_layers(model)),
    )


def _multiplied(module: nn.Module, config: Any) -> float:
    """Weights of a module by which a token is multiplied, its children's left out."""
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return module.weight.numel()
    found = 0.0
    if "Experts" in type(module).__name__:
        for weight in module.parameters(recurse=False):
            if weight.ndim == 3:
                found += weight.numel() * config.num_experts_per_tok / weight.shape[0]
    return found


def _feed_forward(config: Any) -> int:
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen * config.moe_intermediate_size if chosen else config.intermediate_size


def _first(config: Any, *names: str) -> Any:
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


def _side(value: Any) -> int:
    return value if isinstance(value, int) else value[0]


def _span(vision: Any) -> float | None:
    """Patches that see each other: a tile's, a window's on average, or all of a picture."""
    window = getattr(vision, "window_size", None)
    if window:
        whole = len(vision.fullatt_block_indexes) / vision.depth
        # A picture of 1,000 tokens has 4,000 patches; windows see their own only.
        return whole * 4096 + (1 - whole) * (window / vision.patch_size) ** 2
    size = getattr(vision, "image_size", None)
    return None if size is None else (_side(size) // _side(vision.patch_size)) ** 2


def patches_per_token(config: Any) -> float:
    """Patches that the projector makes one image token of."""
    vision = config.vision_config
    if merge := getattr(vision, "spatial_merge_size", None):
        return merge**2
    if ratio := getattr(config, "downsample_ratio", None):
        return (1 / ratio) ** 2
    if factor := getattr(config, "scale_factor", None):
        return factor**2
    if tokens := getattr(config, "mm_tokens_per_image", None):
        return (vision.image_size // vision.patch_size) ** 2 / tokens
    return 1.0
