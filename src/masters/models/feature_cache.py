"""Features of pictures, encoded once while the tower that makes them does not change.

What lies between the pixels and the language model is frozen as a whole, or up to its projector:
then the features, or what goes into the projector, are kept in the host's memory and given back
when the picture is seen again. Every picture is encoded alone, the first time as at any other, so
that what was kept before, or was lost with a killed run, moves no value. Against pictures encoded
side by side the difference is rounding.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from types import SimpleNamespace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from masters.models.devices import to_device
from masters.models.encode import EncodedPrompt
from masters.models.families import FAMILIES, Family, family_of
from masters.models.shards import is_sharded

#: Name of the model input that says which prompts' pictures a batch shows, in its order.
PICTURES = "masters_pictures"
#: The fields of a family's image features that its language model reads.
FIELDS = ("pooler_output", "deepstack_features")
_LOG = logging.getLogger(__name__)

Level = Literal["features", "projector_inputs"]
Kept = Any  # a tensor, or lists of such, on the host


class FeatureStore:
    """Host memory for the features of several models.

    When it is full nothing new is kept, except in the place of what the same model made under
    another version of its weights: the questions of an epoch come in another order than those of
    the one before, and whoever kept the newest would drop what comes back first.

    Args:
        room: bytes; 0: a picture is encoded once in each forward pass.
    """

    def __init__(self, room: int) -> None:
        self.room, self.held, self.refused = room, 0, 0
        self._entries: dict[tuple[str, int], OrderedDict[bytes, tuple[Kept, int, float]]] = {}

    def get(self, owner: str, version: int, key: bytes) -> tuple[Kept, float] | None:
        """(what was kept, the seconds it took to make), or None."""
        found = self._entries.get((owner, version), {}).get(key)
        return None if found is None else (found[0], found[2])

    def put(self, owner: str, version: int, key: bytes, value: Kept, seconds: float) -> None:
        """Keeps it if there is room, or if older versions make room."""
        size = _bytes(value)
        for other in [o for o in self._entries if o[0] == owner and o[1] != version]:
            while self.held + size > self.room and self._entries[other]:
                _, (_, freed, _) = self._entries[other].popitem(last=False)
                self.held -= freed
        if self.held + size > self.room:
            self.refused += 1
            if self.refused == 1:
                _LOG.warning(
                    "the feature cache is full (%.1f GB): further pictures are encoded each time. "
                    "Raise runtime.feature_cache_gb if the host has room", self.room / 1e9,
                )  # fmt: skip
            return
        self._entries.setdefault((owner, version), OrderedDict())[key] = value, size, seconds
        self.held += size


@dataclass(kw_only=True)
class Counts:
    """What a cache saved: pictures found and encoded, and the seconds that the found ones took."""

    hits: int = 0
    misses: int = 0
    seconds_saved: float = 0.0


def cacheable(model: Any) -> tuple[Level | None, str]:
    """(what of a picture can be kept, why nothing can): by what of the model is frozen now.

    Weights, adapters included, count as trained where they require a gradient.
    """
    if model.config.model_type not in FAMILIES:
        return None, f"model type '{model.config.model_type}' is none whose features are known"
    family = family_of(model)
    if any(is_sharded(parameter) for parameter in model.get_submodule(family.vision).parameters()):
        return None, "its vision tower is spread over ranks, all of which must run it as often"
    trained = {_place(family, n) for n, p in model.named_parameters() if p.requires_grad}
    if "vision" in trained:
        return None, "its vision tower is trained"
    vision = model.get_submodule(family.vision)
    drops = {
        key: value for key, value in vision.config.to_dict().items()
        if "drop" in key and isinstance(value, float) and value > 0
    }  # fmt: skip
    if vision.training and drops:
        return None, f"its vision tower drops out ({', '.join(drops)})"
    return ("projector_inputs" if trained - {"language"} else "features"), ""


def _place(family: Family, name: str) -> str:
    if name == family.head or name.startswith(f"{family.head}."):
        return "language"
    return family.part_of(name) or "other"


#: The cache of each model that has one.
_CACHES: WeakKeyDictionary[nn.Module, FeatureCache] = WeakKeyDictionary()


def feature_cache(model: Any) -> FeatureCache | None:
    """The cache of this model, if it has one."""
    return _CACHES.get(model)


class FeatureCache:
    """Has a model's features come from a store; made once, by `attach_features`.

    Args:
        model: its tower is frozen; its own ``get_image_features`` is wrapped.
        store: where features are kept.
        owner: a name for the model in the store.
        level: what is kept.
        version: of the weights that make the features; asked for in each forward pass.
    """

    def __init__(
        self, model: Any, store: FeatureStore, owner: str, level: Level, version: Callable[[], int]
    ) -> None:
        self._prompts: Sequence[EncodedPrompt] | None
        self._shown: Sequence[EncodedPrompt] | None
        self.level, self.counts = level, Counts()
        self._device = model.device
        self._store, self._owner, self._version = store, owner, version
        self._prompts = self._shown = None
        core = model.base_model
        self._original = core.get_image_features
        self._names = list(inspect.signature(self._original).parameters)
        # Generation reads the signature to see which inputs are pixels.
        core.get_image_features = wraps(self._original)(lambda *a, **k: self._features(*a, **k))
        core.register_forward_pre_hook(self._begin, with_kwargs=True)
        core.register_forward_hook(self._end, always_call=True)
        self._tap = _Tap(model) if level == "projector_inputs" else None

    def _begin(self, core: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self._prompts = inputs.pop(PICTURES, None)
        return args, inputs

    def _end(self, core: Any, args: Any, output: Any) -> None:
        self._prompts = None

    @contextmanager
    def showing(self, prompts: Sequence[EncodedPrompt]) -> Iterator[None]:
        """For calls that take no inputs of ours (``generate``): these are the pictures within."""
        self._shown = prompts
        try:
            yield
        finally:
            self._shown = None

    def _features(self, *args: Any, **kwargs: Any) -> Any:
        """In the place of the model's ``get_image_features``."""
        prompts = self._shown if self._prompts is None else self._prompts
        if prompts is None:
            return self._original(*args, **kwargs)
        given = dict(zip(self._names, args, strict=False)) | kwargs
        known: dict[bytes | int, Any] = {}
        parts = []
        for prompt in prompts:
            if prompt.images:
                # Where nothing is kept no digest is needed: rows of one prompt hold one object.
                key = prompt.image_key if self._store.room else id(prompt)
                if key not in known:
                    known[key] = self._of(prompt, given)
                parts.append(known[key])
        return SimpleNamespace(
            **{name: _joined([part[name] for part in parts]) for name in parts[0]}
        )

    def _of(self, prompt: EncodedPrompt, given: dict[str, Any]) -> dict[str, Any]:
        """The features of one prompt's pictures, by field, on the model's device."""
        version = self._version()
        room = self._store.room
        found = self._store.get(self._owner, version, prompt.image_key) if room else None
        if found is not None:
            self.counts.hits += 1
            self.counts.seconds_saved += found[1]
            value = _moved(found[0], self._device)
            if self._tap is None:
                return value
            with self._tap.playing(value):
                return self._encode(prompt, given)
        self.counts.misses += 1
        begin = time.perf_counter()
        if self._tap is None:
            # Kept for passes with a gradient, whatever this one is.
            with torch.inference_mode(False), torch.no_grad():
                value = result = self._encode(prompt, given)
        else:
            with self._tap.recording() as value:
                result = self._encode(prompt, given)
        if room:
            kept = _moved(value, "cpu", copy=True)  # waits for the device, so that the time is true
            seconds = time.perf_counter() - begin
            self._store.put(self._owner, version, prompt.image_key, kept, seconds)
        return result

    def _encode(self, prompt: EncodedPrompt, given: dict[str, Any]) -> dict[str, Any]:
        own = {name: value for name, value in prompt.images.items() if name in self._names}
        output = self._original(**{**given, **to_device(own, self._device)})
        return {n: value for n in FIELDS if (value := getattr(output, n, None)) is not None}


class _Tap:
    """What goes into the projector's modules: noted, or put there while the tower stands still.

    While it plays, the tower's blocks pass their input through and every module of the projector
    gets what it got when it was recorded.
    """

    def __init__(self, model: Any) -> None:
        family = family_of(model)
        self._recorded: list[torch.Tensor] | None = None
        self._played: Iterator[torch.Tensor] | None = None
        for name in family.projector:
            module = model.get_submodule(name)
            for part in module if isinstance(module, nn.ModuleList) else (module,):
                part.register_forward_pre_hook(self._enter)
        lists = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and family.part_of(name) == "vision"
        ]
        for name, blocks in lists:
            if not any(name.startswith(f"{outer}.") for outer, _ in lists):
                for block in blocks:
                    block.forward = self._skippable(block.forward)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        if self._played is not None:
            return (next(self._played), *args[1:])
        if self._recorded is not None:
            self._recorded.append(args[0].detach())
        return args

    def _skippable(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def passed(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._played is not None:
                return hidden_states
            return forward(hidden_states, *args, **kwargs)

        return passed

    @contextmanager
    def recording(self) -> Iterator[list[torch.Tensor]]:
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @contextmanager
    def playing(self, inputs: Sequence[torch.Tensor]) -> Iterator[None]:
        self._played = iter(inputs)
        try:
            yield
        finally:
            self._played = None


def attach_features(
    model: Any, store: FeatureStore, owner: str, *, version: Callable[[], int] = lambda: 0
) -> FeatureCache | None:
    """Has the model take the features of known pictures from ``store``; None where it cannot.

    Batches that say which pictures they show (`with_pictures`) are served, all others computed.

    Args:
        model: as it is trained or masked; what is frozen must stay so.
        store: shared by the models of a stage.
        owner: the model's name in it.
        version: changes whenever the weights before the language model do.
    """
    level, reason = cacheable(model)
    if level is None:
        _LOG.info("%s: features are not kept: %s", owner, reason)
        return None
    cache = _CACHES[model] = FeatureCache(model, store, owner, level, version)
    return cache


def _joined(parts: list[Any]) -> Any:
    """One field of several pictures' features as it would be of all of them together."""
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    if isinstance(parts[0][0], torch.Tensor):
        return [image for part in parts for image in part]
    return [_joined([part[level] for part in parts]) for level in range(len(parts[0]))]


def _moved(value: Any, device: torch.device | str, *, copy: bool = False) -> Any:
    """Tensors in dicts and lists, elsewhere; a copy holds no larger storage alive."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device, copy=copy)
    if isinstance(value, dict):
        return {name: _moved(part, device, copy=copy) for name, part in value.items()}
    return [_moved(part, device, copy=copy) for part in value]


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    return sum(map(_bytes, value.values() if isinstance(value, dict) else value))
