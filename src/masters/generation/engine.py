"""The engine protocol, and the transformers engine that runs everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessor

from masters.generation.sampling import KeyedSampler, SampleKey, Sampling
from masters.models.encode import EncodedPrompt, pad_rows
from masters.models.feature_cache import FeatureCache
from masters.models.load import TokenIds


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and the samples wanted for it."""

    prompt: EncodedPrompt
    keys: tuple[SampleKey, ...]


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One response: ids (end token included when reached), raw log-prob of each, text, finish.

    Args:
        logprobs: None where the engine does not give them.
        finish: ``stop``, ``length``, or ``failed``: none could be had, and it has no ids.
        seed: that another engine drew it from; None: from its key.
        error: why it failed.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    text: str
    finish: str
    seed: int | None = None
    error: str = ""


class Engine(Protocol):
    """Something that answers requests; results come in request order, samples in key order."""

    def generate(
        self, requests: Sequence[Request], sampling: Sampling
    ) -> Sequence[Sequence[Completion]]: ...


class _Watched(LogitsProcessor):
    """Says that the sampler before it has chosen, and changes nothing."""

    def __init__(self, watch: Callable[[], None]) -> None:
        self._watch = watch

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._watch()
        return scores


class TransformersEngine:
    """``model.generate`` over length-sorted batches.

    Args:
        model: a VLM in eval mode.
        processor: its processor, for decoding.
        ids: its special ids.
        batch_rows: rows (prompt x sample) per call.
        precision: autocast dtype, or float32 for none.
        watch: called whenever a batch's next tokens are chosen (the device may still be at it).
        features: encodes a picture once for all samples of its prompt; None: once for each.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        ids: TokenIds,
        *,
        batch_rows: int = 64,
        precision: torch.dtype = torch.float32,
        watch: Callable[[], None] | None = None,
        features: FeatureCache | None = None,
    ) -> None:
        # Whatever a checkpoint's own configuration sets would merge into ours, silently.
        model.generation_config = GenerationConfig()
        self._model = model
        self._tokenizer = processor.tokenizer
        self._ids = ids
        self._batch_rows = batch_rows
        self._precision = precision
        self._watch = watch
        self._features = features

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """The completions of every request, all its samples in one call."""
        results: list[list[Completion]] = [[] for _ in requests]
        for batch in self._batches(requests):
            rows = [(i, key) for i in batch for key in requests[i].keys]
            prompts = [requests[i].prompt for i, _ in rows]
            completions = self._run(prompts, [key for _, key in rows], sampling)
            for (i, _), completion in zip(rows, completions, strict=True):
                results[i].append(completion)
        return results

    def _batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt.ids), i))
        batch: list[int] = []
        rows = 0
        for i in order:
            wanted = len(requests[i].keys)
            if batch and rows + wanted > self._batch_rows:
                yield batch
                batch, rows = [], 0
            batch.append(i)
            rows += wanted
        if batch:
            yield batch

    @torch.inference_mode()
    def _run(
        self, prompts: list[EncodedPrompt], keys: list[SampleKey], sampling: Sampling
    ) -> list[Completion]:
        device = self._model.device
        seen = [p.without_pixels() if self._features else p for p in prompts]
        inputs = pad_rows([(p, ()) for p in seen], pad=self._ids.pad, side="left", device=device)
        sampler = KeyedSampler(
            keys,
            sampling,
            prompt_mask_RT=inputs["attention_mask"],
            banned=self._ids.banned,
            vocabulary=self._ids.vocabulary,
        )
        enabled = self._precision != torch.float32
        shown = self._features.showing(prompts) if self._features else nullcontext()
        with shown, torch.autocast(device.type, dtype=self._precision, enabled=enabled):
            output_RT = self._model.generate(
                **inputs,
                generation_config=self._complete_config(sampling),
                logits_processor=[sampler, *([_Watched(self._watch)] if self._watch else [])],
            )
        width = inputs["input_ids"].shape[1]
        logp_RT = torch.stack(sampler.logps, dim=1).tolist()
        return [
            self._completion(ids, logps)
            for ids, logps in zip(output_RT[:, width:].tolist(), logp_RT, strict=True)
        ]

    def _complete_config(self, sampling: Sampling) -> Any:
        """A configuration that leaves nothing to a checkpoint's own, which merges in silently."""
        return GenerationConfig(
            do_sample=False, num_beams=1, num_return_sequences=1,
            temperature=1.0, top_p=1.0, top_k=50, repetition_penalty=1.0, min_new_tokens=0,
            no_repeat_ngram_size=0, encoder_no_repeat_ngram_size=0, length_penalty=1.0,
            max_new_tokens=sampling.max_new_tokens, use_cache=True, return_dict_in_generate=False,
            eos_token_id=list(self._ids.end), pad_token_id=self._ids.pad, bos_token_id=None,
        )  # fmt: skip

    def _completion(self, ids: list[int], logps: list[float]) -> Completion:
        ends = [t for t, token in enumerate(ids) if token in self._ids.end]
        length = ends[0] + 1 if ends else len(ids)
        text = self._tokenizer.decode(ids[:length], skip_special_tokens=True).strip()
        return Completion(
            token_ids=ids[:length],
            logprobs=logps[:length],
            text=text,
            finish="stop" if ends else "length",
        )
