"""The tiny configuration and processor files of every architecture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATCH = 8


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How large a tiny model is.

    Args:
        hidden: width of the language model.
        layers: of language model and vision tower each.
        vision_hidden: width of the vision tower.
        image: pixels a side that the tower sees at once.
        tied: input and output embeddings are one.
        head: width of an attention head.
    """

    hidden: int
    layers: int
    vision_hidden: int
    image: int
    tied: bool
    head: int = 16

    def text(self, tokenizer: Any) -> dict[str, Any]:
        """The keys that every language model has; heads share keys and values two by two."""
        return {
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            "hidden_size": self.hidden,
            "intermediate_size": 2 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // self.head,
            "num_key_value_heads": self.hidden // (2 * self.head),
            "max_position_embeddings": 4096,
            "initializer_range": 0.5 * self.hidden**-0.5,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id or tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "tie_word_embeddings": self.tied,
        }

    def tower(self, *, image: int | None = None) -> dict[str, Any]:
        """The keys that SigLIP-like vision towers share."""
        return {
            "hidden_size": self.vision_hidden,
            "intermediate_size": 2 * self.vision_hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.vision_hidden // self.head,
            "image_size": image or self.image,
            "patch_size": PATCH,
            "initializer_range": 0.5 * self.vision_hidden**-0.5,
        }

    def pixels(self) -> dict[str, int]:
        """The size of one view as image processors spell it."""
        return {"height": self.image, "width": self.image}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A configuration, an image processor, and the values of ``processor_config.json``."""

    config: Any
    images: Any
    processor: dict[str, Any]


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
    }


def _qwen_images(shape: Shape) -> Any:
    """Images keep their aspect; the larger model gets four times the pixels."""
    from transformers import Qwen2VLImageProcessorPil

    area = {"shortest_edge": (2 * PATCH) ** 2, "longest_edge": shape.image**2 * 6}
    return Qwen2VLImageProcessorPil(
        size=area, patch_size=PATCH, merge_size=2, temporal_patch_size=2
    )


def _qwen_vision(shape: Shape, **keys: Any) -> dict[str, Any]:
    return {
        "depth": shape.layers,
        "hidden_size": shape.vision_hidden,
        "intermediate_size": 2 * shape.vision_hidden,
        "num_heads": shape.vision_hidden // shape.head,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": shape.hidden,
        "initializer_range": 0.5 * shape.vision_hidden**-0.5,
        **keys,
    }


def _mrope(shape: Shape, **keys: Any) -> dict[str, Any]:
    """Sections sum to half a head."""
    sections = [shape.head // 4, shape.head // 8, shape.head // 8]
    return {"rope_type": "default", "rope_theta": 100.0, "mrope_section": sections, **keys}


def qwen2_5_vl(shape: Shape, tokenizer: Any) -> Built:
    """Window attention in the tower's first layer, tied embeddings as in the 3B."""
    from transformers import Qwen2_5_VLConfig

    text = shape.text(tokenizer) | {"rope_parameters": _mrope(shape), "tie_word_embeddings": True}
    vision = _qwen_vision(shape, window_size=4 * PATCH, fullatt_block_indexes=[shape.layers - 1])
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **_qwen_ids(tokenizer)
    )
    return Built(config=config, images=_qwen_images(shape), processor={})


def qwen3_vl(shape: Shape, tokenizer: Any) -> Built:
    """With deepstack: the tower's first layer feeds the language model too."""
    from transformers import Qwen3VLConfig

    text = shape.text(tokenizer) | {
        "rope_parameters": _mrope(shape, mrope_interleaved=True),
        "head_dim": shape.head,
    }
    vision = _qwen_vision(shape, num_position_embeddings=64, deepstack_visual_indexes=[0])
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    return Built(config=config, images=_qwen_images(shape), processor={})


def qwen3_vl_moe(shape: Shape, tokenizer: Any) -> Built:
    """Four experts of which two answer."""
    from transformers import Qwen3VLMoeConfig

    text = shape.text(tokenizer) | {
        "rope_parameters": _mrope(shape, mrope_interleaved=True),
        "head_dim": shape.head,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": shape.hidden * 3 // 4,
        "decoder_sparse_step": 1,
    }
    vision = _qwen_vision(shape, num_position_embeddings=64, deepstack_visual_indexes=[0])
    config = Qwen3VLMoeConfig(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **_qwen_ids(tokenizer)
    )
    return Built(config=config, images=_qwen_images(shape), processor={})


def _internvl(shape: Shape, tokenizer: Any, text: str, **keys: Any) -> Built:
    """Views of one size, as many as the image's shape asks for, and a thumbnail."""
    from transformers import AutoConfig, GotOcr2ImageProcessorPil, InternVLConfig

    side = shape.image // PATCH // 2
    config = InternVLConfig(
        text_config=AutoConfig.for_model(text, **shape.text(tokenizer), **keys),
        vision_config=shape.tower() | {"layer_scale_init_value": 1.0},
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=side**2,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    images = GotOcr2ImageProcessorPil(
        size=shape.pixels(), crop_to_patches=False, min_patches=1, max_patches=4
    )
    return Built(config=config, images=images, processor={"image_seq_length": side**2})


def internvl(shape: Shape, tokenizer: Any) -> Built:
    """InternVL3: a Qwen2 language model."""
    return _internvl(shape, tokenizer, "qwen2")


def internvl_qwen3(shape: Shape, tokenizer: Any) -> Built:
    """InternVL3.5: a Qwen3 language model, whose heads need not fill its width."""
    return _internvl(shape, tokenizer, "qwen3", head_dim=16)


def _idefics(shape: Shape, tokenizer: Any, config: Any, images: Any) -> Built:
    side = shape.image // PATCH // 2
    return Built(
        config=config(
            text_config={"model_type": "llama", **shape.text(tokenizer)},
            vision_config=shape.tower(),
            image_token_id=_id(tokenizer, "<image>"),
            scale_factor=2,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        ),
        images=images(
            size={"longest_edge": 2 * shape.image}, max_image_size={"longest_edge": shape.image}
        ),
        processor={"image_seq_len": side**2},
    )


def idefics3(shape: Shape, tokenizer: Any) -> Built:
    """The image cut into squares, and the whole of it once more."""
    from transformers import Idefics3Config, Idefics3ImageProcessorPil

    return _idefics(shape, tokenizer, Idefics3Config, Idefics3ImageProcessorPil)


def smolvlm(shape: Shape, tokenizer: Any) -> Built:
    """Idefics3 with a video processor."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessorPil

    return _idefics(shape, tokenizer, SmolVLMConfig, SmolVLMImageProcessorPil)


def llava_onevision(shape: Shape, tokenizer: Any) -> Built:
    """Views on a grid that fits the image, unpadded again after the tower, with line ends."""
    from transformers import LlavaOnevisionConfig, LlavaOnevisionImageProcessorPil

    side = shape.image
    grid = [[side * rows, side * cols] for rows in (1, 2, 3) for cols in (1, 2, 3)]
    config = LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **shape.text(tokenizer)},
        vision_config=shape.tower()
        | {"model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=grid,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = LlavaOnevisionImageProcessorPil(size=shape.pixels(), image_grid_pinpoints=grid)
    settings = {
        "num_image_tokens": (side // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "vision_aspect_ratio": "anyres_max_9",
    }
    return Built(config=config, images=images, processor=settings)


def gemma3(shape: Shape, tokenizer: Any) -> Built:
    """Image tokens see each other both ways; a window in the first layer, all in the last."""
    from transformers import Gemma3Config, Gemma3ImageProcessorPil

    side = shape.image // PATCH // 2
    text = shape.text(tokenizer) | {
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 24,
        "layer_types": ["sliding_attention"] * (shape.layers - 1) + ["full_attention"],
        "tie_word_embeddings": True,
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=shape.tower()
        | {"model_type": "siglip_vision_model", "vision_use_head": False},
        mm_tokens_per_image=side**2,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
    )
    images = Gemma3ImageProcessorPil(size=shape.pixels())
    return Built(config=config, images=images, processor={"image_seq_length": side**2})


def llava(shape: Shape, tokenizer: Any) -> Built:
    """LLaVA 1.5, which is not in the table of families: a CLIP tower, its last layer but one."""
    from transformers import CLIPImageProcessorPil, LlavaConfig

    config = LlavaConfig(
        text_config={"model_type": "llama", **shape.text(tokenizer)},
        vision_config=shape.tower()
        | {"model_type": "clip_vision_model", "projection_dim": shape.vision_hidden},
        image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=(shape.image // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": shape.image}, crop_size=shape.pixels())
    settings = {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    }
    return Built(config=config, images=images, processor=settings)


def glm4v(shape: Shape, tokenizer: Any) -> Built:
    """GLM-4.1V, not in the table either: projector inside the tower, half of each head rotates."""
    from transformers import Glm4vConfig, Glm4vImageProcessorPil

    text = shape.text(tokenizer) | {
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 0.5,
        }
    }
    ids = {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    config = Glm4vConfig(
        text_config=text,
        vision_config=_qwen_vision(shape, image_size=shape.image),
        **{key: _id(tokenizer, token) for key, token in ids.items()},
    )
    area = {"shortest_edge": 2 * (2 * PATCH) ** 2, "longest_edge": 12 * shape.image**2}
    images = Glm4vImageProcessorPil(size=area, patch_size=PATCH, merge_size=2)
    return Built(config=config, images=images, processor={})


BUILDERS: dict[str, Callable[[Shape, Any], Built]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "internvl": internvl,
    "internvl_qwen3": internvl_qwen3,
    "idefics3": idefics3,
    "smolvlm": smolvlm,
    "llava_onevision": llava_onevision,
    "gemma3": gemma3,
    "llava": llava,
    "glm4v": glm4v,
}
