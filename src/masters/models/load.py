"""Loading and saving a vision-language model through transformers' Auto classes."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from masters.errors import ModelError
from masters.models.families import family_of
from masters.models.memory import is_out_of_memory
from masters.models.turns import answer_turn

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
#: Added tokens that stand for pictures or frame them: <|image_pad|>, </img>, <row_1_col_2> ...
PICTURE_TOKEN = re.compile(r"image|img|video|vision|row_\d+_col_\d+", re.IGNORECASE)
#: Everything of a model but its weights.
DESCRIPTIONS: tuple[str, ...] = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_config(path: str, *, revision: str | None = None) -> Any:
    """The configuration at a folder or hub name; raises ModelError unless it is a VLM's."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path}: its model is Python code beside the checkpoint, which Masters never runs "
                "(trust_remote_code); expected an architecture of transformers. Take the converted "
                "checkpoint of the same model (InternVL's names end in -hf)"
            ) from error
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
            trust_remote_code=False,
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
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        # InternVL's configurations leave it to a default that says tied; saved so, the head is lost
        # to whoever ties the weights anew.
        model.config.tie_word_embeddings = False
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
        options: dict[str, Any] = {} if backend == "auto" else {"backend": backend}
        options["trust_remote_code"] = False
        return _with_template(AutoProcessor.from_pretrained(path, revision=revision, **options))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: the processor could not be loaded: {error}") from error


def _processor_without_video(path: str, revision: str | None) -> Any:
    """What ``AutoProcessor`` would build from all of the checkpoint's files, less video."""
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
    from transformers.models.auto import processing_auto

    own: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
        cls: Any = getattr(
            transformers, str(names.get(AutoConfig.from_pretrained(path, **own).model_type)), None
        )
        if cls is None or "video_processor" not in cls.get_attributes():
            return _with_template(AutoProcessor.from_pretrained(path, **own))
        settings, _ = cls.get_processor_dict(path, revision=revision)
        parts = {
            "image_processor": AutoImageProcessor.from_pretrained(path, backend="pil", **own),
            "tokenizer": AutoTokenizer.from_pretrained(path, **own),
            # Chat templates of SmolVLM are rendered with these two.
            "video_processor": SimpleNamespace(model_input_names=[], num_frames=None, fps=None),
        }
        arguments = [parts[name] for name in cls.get_attributes()]
        return _with_template(_without_video(cls).from_args_and_dict(arguments, settings))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{path}: the processor could not be loaded: {error}") from error


def _without_video(cls: Any) -> Any:
    """The processor class, content with a stand-in where its video processor should be."""

    class WithoutVideo(cls):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

        def to_dict(self) -> dict[str, Any]:
            values: dict[str, Any] = super().to_dict()
            return {name: value for name, value in values.items() if name != "video_processor"}

    WithoutVideo.__name__ = cls.__name__
    return WithoutVideo


def _with_template(processor: Any) -> Any:
    """The processor with a chat template; older checkpoints keep it with the tokenizer only."""
    if processor.chat_template is None:
        processor.chat_template = getattr(processor.tokenizer, "chat_template", None)
    return processor


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


def local_folder(path: str, *, revision: str | None = None, weights: bool = True) -> Path:
    """The folder that holds a model's files: the path itself, or the hub's snapshot of it.

    Args:
        path: folder or hub name.
        revision: on the hub.
        weights: False fetches configuration, tokenizer and processor only: a few megabytes.

    Raises:
        ModelError: no such folder, and the hub gives no such model; says why.
    """
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        wanted = None if weights else list(DESCRIPTIONS)
        return Path(snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ModelError(
            f"{path}: neither a local folder nor a model the hub would give: {_hub_said(error)}"
        ) from error


def _hub_said(error: Exception) -> str:
    """Why the hub gave nothing and what to do about it, on one line."""
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return "access must be asked for on its page; then log in with `hf auth login`"
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            return "it has no model of that name; for a private one log in with `hf auth login`"
        case errors.RevisionNotFoundError():
            return "it has the model, but not this revision; correct models.*.revision"
        case errors.OfflineModeIsEnabled() | errors.LocalEntryNotFoundError():
            return (
                "it can't be reached, and there is no copy in the cache; fetch the model where "
                "there is a network (`hf download NAME`), or unset HF_HUB_OFFLINE"
            )
        case _:
            return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids of a model that mean more than text.

    Args:
        end: ids that end a response; the first is the one appended to labels.
        pad: the id used as padding.
        banned: ids a response may never contain (image, video, vision start / end ...).
        vocabulary: number of real tokens; rows of the output head beyond it are padding.
        lead: white space that the chat template puts before an answer.
    """

    end: tuple[int, ...]
    pad: int
    banned: tuple[int, ...]
    vocabulary: int
    lead: str = ""


def token_ids(model: Any, processor: Any) -> TokenIds:
    """Special ids read off configuration, tokenizer and chat template.

    An answer ends with what the chat template ends a turn with; where that is nothing, with the
    tokenizer's end token.

    Raises:
        ModelError: no end token, or an architecture whose parts cannot be told.
    """
    tokenizer = processor.tokenizer
    end = model.generation_config.eos_token_id
    if end is None:
        end = tokenizer.eos_token_id
    ends = tuple(end) if isinstance(end, list | tuple) else (end,)
    if ends[0] is None:
        raise ModelError(
            f"{model.name_or_path}: neither generation_config nor tokenizer has an end token"
        )
    turn = answer_turn(processor)
    first = turn.end
    if first is None:
        first = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    ends = (first, *(token for token in ends if token != first))
    banned = _picture_ids(model, tokenizer)
    pad = tokenizer.pad_token_id
    return TokenIds(
        end=ends,
        pad=ends[0] if pad is None else pad,
        banned=tuple(sorted(banned - set(ends))),
        vocabulary=min(len(tokenizer), model.get_output_embeddings().weight.shape[0]),
        lead=turn.lead,
    )


def _picture_ids(model: Any, tokenizer: Any) -> set[int]:
    """Ids of what belongs to pictures: the family's, the configuration's, and by their names."""
    family, config = family_of(model), model.config.to_dict()
    keys = {
        key
        for key in config
        if key.endswith(("_token_id", "_token_index"))
        and key.startswith(("image", "video", "vision", "boi", "eoi"))
    }
    named = (getattr(model.config, key, None) for key in (family.image_id, *family.marker_ids))
    ids = {value for value in (*named, *map(config.get, keys)) if isinstance(value, int)}
    added = tokenizer.get_added_vocab().items()
    return ids | {number for token, number in added if PICTURE_TOKEN.search(token)}


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
