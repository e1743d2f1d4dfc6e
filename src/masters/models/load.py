"""Loading and saving a vision-language model through transformers' Auto classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from masters.errors import ModelError
from masters.models.memory import is_out_of_memory

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_config(path: str, *, revision: str | None = None) -> Any:
    """The configuration at a folder or hub name; raises ModelError unless it is a VLM's."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: no readable model configuration there ({error})") from error
    if getattr(config, "vision_config", None) is None:
        raise ModelError(
            f"{path}: model type '{config.model_type}' has no vision tower; expected a "
            "vision-language model (its config.json has a vision_config). A text-only teacher "
            "never sees the image: choose the -VL checkpoint of the family"
        )
    return config


def load_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> Any:
    """A VLM in eval mode with every weight found in its checkpoint.

    Raises:
        ModelError: not a VLM, unreadable, or weights missing or of other shapes than the
            configuration says (transformers would fill those at random).
    """
    from transformers import AutoModelForImageTextToText

    load_config(path, revision=revision)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
        model, report = loaded
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{path}: the model could not be loaded: {error}") from error
    absent = sorted(report["missing_keys"]) + sorted(str(k) for k in report["mismatched_keys"])
    if absent:
        raise ModelError(
            f"{path}: {len(absent)} weights are missing from the checkpoint or have another shape "
            f"(first: {', '.join(absent[:3])}); expected a complete checkpoint. Download it again"
        )
    return model.to(device).eval()


def load_processor(path: str, *, revision: str | None = None, backend: str = "auto") -> Any:
    """The model's processor; where torchvision is absent, the same one without its video part.

    Several families (Qwen-VL, InternVL, SmolVLM ...) refuse to load a processor without torchvision
    only because of video. Images and text need none of it.

    Args:
        path: folder or hub name.
        revision: on the hub.
        backend: of the image processor: pil, torchvision, or auto (torchvision where installed).

    Raises:
        ModelError: unreadable, or torchvision asked for and not installed.
    """
    from transformers import AutoProcessor
    from transformers.utils.import_utils import is_torchvision_available

    if backend == "torchvision" and not is_torchvision_available():
        raise ModelError(
            "prompt.image_backend is torchvision, which is not installed; install it or set pil"
        )
    if not is_torchvision_available():
        return _processor_without_video(path, revision)
    try:
        options = {} if backend == "auto" else {"backend": backend}
        return AutoProcessor.from_pretrained(path, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the processor could not be loaded: {error}") from error


def _processor_without_video(path: str, revision: str | None) -> Any:
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto import processing_auto

    try:
        names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
        model_type = AutoConfig.from_pretrained(path, revision=revision).model_type
        cls: Any = getattr(transformers, str(names.get(model_type)), None)
        if cls is None or "video_processor" not in cls.get_attributes():
            return AutoProcessor.from_pretrained(path, revision=revision)
        images: Any = AutoImageProcessor.from_pretrained(path, revision=revision, backend="pil")
        tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"{path}: the processor could not be loaded: {error}") from error

    class WithoutVideo(cls):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    WithoutVideo.__name__ = cls.__name__
    video = SimpleNamespace(model_input_names=[])
    return WithoutVideo(images, tokenizer, video, chat_template=tokenizer.chat_template)


def save_model(
    model: Any, folder: Path, *, source: Path | None, state: dict[str, Any] | None = None
) -> None:
    """Writes an ordinary transformers folder: weights, and everything else as the source has it.

    Processor, tokenizer, chat template and generation configuration are copied from ``source`` file
    by file, so nothing this machine lacks (torchvision, say) can change them. ``state`` is written
    instead of the model's own tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, state_dict=state)
    if source is None:
        return
    for file in sorted(source.iterdir()):
        kept = file.suffix not in WEIGHT_SUFFIXES and not file.name.endswith(".index.json")
        if file.is_file() and kept and file.name != "config.json":
            shutil.copyfile(file, folder / file.name)


def local_folder(path: str, *, revision: str | None = None) -> Path:
    """The folder that holds a model's files: the path itself, or the hub's snapshot of it."""
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision))
    except Exception as error:
        raise ModelError(
            f"{path}: neither a local folder nor a model the hub would give ({error})"
        ) from error


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids of a model that mean more than text.

    Args:
        end: ids that end a response; the first is the one appended to labels.
        pad: the id used as padding.
        banned: ids a response may never contain (image, video, vision start / end ...).
        vocabulary: number of real tokens; rows of the output head beyond it are padding.
    """

    end: tuple[int, ...]
    pad: int
    banned: tuple[int, ...]
    vocabulary: int


def token_ids(model: Any, processor: Any) -> TokenIds:
    """Special ids read off configuration and tokenizer (all_special_ids misses some)."""
    tokenizer = processor.tokenizer
    end = model.generation_config.eos_token_id
    if end is None:
        end = tokenizer.eos_token_id
    ends = tuple(end) if isinstance(end, list | tuple) else (end,)
    if ends[0] is None:
        raise ModelError(
            f"{model.name_or_path}: neither generation_config nor tokenizer has an end token"
        )
    if tokenizer.eos_token_id in ends:
        ends = (tokenizer.eos_token_id, *(i for i in ends if i != tokenizer.eos_token_id))
    config = model.config.to_dict()
    banned = {
        value
        for key, value in config.items()
        if key.endswith(("_token_id", "_token_index"))
        and key.startswith(("image", "video", "vision", "boi", "eoi"))
        and isinstance(value, int)
    }
    pad = tokenizer.pad_token_id
    return TokenIds(
        end=ends,
        pad=ends[0] if pad is None else pad,
        banned=tuple(sorted(banned - set(ends))),
        vocabulary=min(len(tokenizer), model.get_output_embeddings().weight.shape[0]),
    )


def check_shared_vocabulary(teacher: Any, student: Any) -> None:
    """Raises ModelError unless both processors' tokenizers give every id the same string."""
    ours, theirs = student.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if ours == theirs:
        return
    different = sorted(t for t in ours.keys() | theirs.keys() if ours.get(t) != theirs.get(t))
    shown = "; ".join(
        f"{t!r}: teacher {theirs.get(t, 'none')}, student {ours.get(t, 'none')}"
        for t in different[:3]
    )
    raise ModelError(
        f"teacher and student have different vocabularies: {len(different)} tokens differ "
        f"({shown}). Distillation compares distributions token by token; take models of one family"
    )


def check_head(model: Any) -> None:
    """Raises ModelError when the output head does more than one matrix product."""
    config = model.config.get_text_config()
    for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(config, key, None)
        if value not in (None, 1, 1.0):
            raise ModelError(
                f"{model.name_or_path}: its head applies {key}={value} to the logits, which the "
                "token scores do not; expected a plain linear output head"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear) or head.bias is not None:
        raise ModelError(
            f"{model.name_or_path}: its output head is {type(head).__name__} (or has a bias); "
            "expected a Linear without bias"
        )
