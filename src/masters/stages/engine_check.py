"""Before another engine answers, a sample of it is compared with transformers' (`engine.json`)."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from masters.artifacts import StageContext, atomic_write_text
from masters.data.questions import Questions
from masters.data.tables import list_shards
from masters.errors import StageError
from masters.generation.engine import Completion, Request, TransformersEngine
from masters.generation.engine_check import (
    Finding,
    GreedyPair,
    compare_greedy,
    compare_logprobs,
)
from masters.generation.sampling import SampleKey, Sampling
from masters.models.load import DTYPES
from masters.specs import GenerateSpec
from masters.stages.opening import (
    OpenedModel,
    Prompts,
    model_folder,
    open_model,
    open_teacher,
)
from masters.stages.scoring import Scorer
from masters.stages.sight import check_sees_image, sampled
from masters.training.groups import Group, Response
from masters.training.student import Student

NOTES = "engine.json"
_QUESTIONS = 8
_SAMPLES = 2
_TOKENS = 32
#: Tokens with log-probs that say enough; with fewer the greedy answers' text is compared.
_ENOUGH = 16

Ask = Callable[[Sequence[int], Sequence[tuple[SampleKey, ...]], Sampling], list[list[Completion]]]
"""(indices of questions, the keys of each, sampling) -> completions."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What an engine answered to a few questions.

    Args:
        name: what it calls the model.
        drawn: two samples of each question, as the recipe draws them.
        greedy: one greedy answer of each; None where enough of the samples' tokens have log-probs.
    """

    name: str
    indices: tuple[int, ...]
    drawn: list[list[Completion]]
    greedy: list[list[Completion]] | None


class EngineNotes:
    """``engine.json`` of a stage: who answers here, and what the comparisons found.

    Args:
        folder: of the stage.
        engine: name and version.

    Raises:
        StageError: another version made shards that are here.
    """

    def __init__(self, folder: Path, engine: str) -> None:
        self._path = folder / NOTES
        self._notes: dict[str, Any] = {"engine": engine, "checks": {}}
        if self._path.is_file():
            before = json.loads(self._path.read_text(encoding="utf-8"))
            if before["engine"] == engine:
                self._notes = before
            elif list_shards(folder / "responses"):
                raise StageError(
                    f"{folder}: its first shards were made by {before['engine']}, and this is "
                    f"{engine}; expected one engine for all. Use that one, or delete the folder"
                )

    def passed(self, name: str, ratio: int) -> bool:
        """Whether this model at this ratio has been found to be the right one."""
        return bool(self._notes["checks"].get(_key(name, ratio), {}).get("same"))

    def note(self, name: str, ratio: int, finding: Finding | None) -> None:
        """Keeps a finding; None: nothing was compared, because the recipe says so."""
        if self._path.is_file():  # another worker of the stage may have found something
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if found["engine"] == self._notes["engine"]:
                self._notes = found
        said = {"skipped": True} if finding is None else {**asdict(finding), "same": finding.same}
        self._notes["checks"][_key(name, ratio)] = said
        atomic_write_text(self._path, json.dumps(self._notes, indent=1) + "\n")


def engine_facts(folder: Path) -> dict[str, Any]:
    """What the record of the stage keeps of its engine: nothing where transformers answered."""
    path = folder / NOTES
    return {"engine": json.loads(path.read_text(encoding="utf-8"))} if path.is_file() else {}


def _key(name: str, ratio: int) -> str:
    return f"{name} at ratio {ratio}/10000"


def take_sample(
    spec: GenerateSpec,
    questions: Questions,
    wanted: Sequence[int],
    sampling: Sampling,
    name: str,
    ask: Ask,
) -> Sample:
    """Asks the engine a few questions, those with pictures first.

    Raises:
        StageError: it answers none of them.
    """
    indices = tuple(dict.fromkeys([*sampled(questions), *wanted[:_QUESTIONS]]))[:_QUESTIONS]
    short = replace(sampling, max_new_tokens=min(_TOKENS, sampling.max_new_tokens))
    drawn = ask(indices, [_keys(spec, questions, i, _SAMPLES) for i in indices], short)
    flat = [completion for own in drawn for completion in own]
    if all(completion.finish == "failed" for completion in flat):
        raise StageError(refused(name, flat[0].error))
    greedy = None
    if sum(len(completion.logprobs or ()) for completion in flat) < _ENOUGH:
        keys = [_keys(spec, questions, i, 1) for i in indices]
        greedy = ask(indices, keys, Sampling.greedy(short.max_new_tokens))
    return Sample(name=name, indices=indices, drawn=drawn, greedy=greedy)


def _keys(
    spec: GenerateSpec, questions: Questions, index: int, samples: int
) -> tuple[SampleKey, ...]:
    question = questions[index].id
    return tuple(
        SampleKey(
            seed=spec.seed, question_id=question, source="check", ratio=0, round=0, sample=sample
        )
        for sample in range(samples)
    )


def refused(name: str, error: str) -> str:
    """The message about a server that answers none, or too few, of the questions."""
    return (
        f"{name} gives no answer to what it is asked: {error}. If it does not know top_k or "
        "repetition_penalty, do without: --set method.responses.top_k=0 --set "
        "method.responses.repetition_penalty=1.0"
    )


def check_engine(
    spec: GenerateSpec,
    context: StageContext,
    questions: Questions,
    sampling: Sampling,
    notes: EngineNotes,
    samples: Mapping[int, Sample],
) -> None:
    """Loads the model with transformers, compares each ratio's sample, and lets go of it again.

    Raises:
        StageError: what the engine runs is another model.
    """
    opened = open_model(
        model_folder(spec.model, context.inputs), spec.prompt, context.runtime,
        precision=spec.precision, teacher=spec.source == "teacher",
    )  # fmt: skip
    teacher = open_teacher(opened, context)
    prompts = Prompts(questions, opened.processor, spec.prompt)
    check_sees_image(opened, prompts, role=spec.source, precision=DTYPES[spec.precision])
    try:
        for ratio, sample in samples.items():
            teacher.set_ratio(ratio)
            if sample.greedy is None:
                finding = _by_logprobs(spec, context, opened, prompts, sample)
            else:
                finding = _by_text(spec, context, opened, prompts, sampling, sample)
            notes.note(sample.name, ratio, finding)
            if not finding.same:
                raise StageError(
                    f"{sample.name} is not {opened.folder} at masking ratio {ratio}/10000: "
                    f"{finding.said}. Serve that model, and look at tie_word_embeddings in its "
                    "config.json (docs/engines.md); the comparison is in "
                    f"{context.folder / NOTES}"
                )
    finally:
        del opened, teacher, prompts
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _scored(
    spec: GenerateSpec,
    context: StageContext,
    opened: OpenedModel,
    prompts: Prompts,
    groups: Sequence[tuple[int, Sequence[Sequence[int]]]],
    vocabulary: int,
) -> list[list[list[float]]]:
    """Our log-probs of (question, its responses), one question at a time."""
    student = Student(opened.model, precision=DTYPES[spec.precision]).eval()
    scorer = Scorer(student, opened, context.runtime, vocabulary=vocabulary)
    found = []
    for index, responses in groups:
        group = Group(
            question_id=prompts.questions[index].id,
            student_prompt=prompts(index),
            teacher_prompt=None,
            responses=tuple(Response(token_ids=tuple(ids), source="check") for ids in responses),
        )
        found += scorer([group])
    return found


def _by_logprobs(
    spec: GenerateSpec,
    context: StageContext,
    opened: OpenedModel,
    prompts: Prompts,
    sample: Sample,
) -> Finding:
    own = [[c for c in drawn if c.logprobs] for drawn in sample.drawn]
    pairs = [(i, [c.token_ids for c in c_s]) for i, c_s in zip(sample.indices, own, strict=True)]
    # Engines know nothing of rows that only fill the head up: their softmax has them.
    rows = opened.model.get_output_embeddings().weight.shape[0]
    scores = _scored(spec, context, opened, prompts, [pair for pair in pairs if pair[1]], rows)
    theirs = [c.logprobs or [] for drawn in own for c in drawn]
    return compare_logprobs(theirs, [logp for group in scores for logp in group], spec.precision)


def _by_text(
    spec: GenerateSpec,
    context: StageContext,
    opened: OpenedModel,
    prompts: Prompts,
    sampling: Sampling,
    sample: Sample,
) -> Finding:
    assert sample.greedy is not None
    engine = TransformersEngine(
        opened.model, opened.processor, opened.ids,
        batch_rows=context.runtime.generation_batch, precision=DTYPES[spec.precision],
    )  # fmt: skip
    short = min(_TOKENS, sampling.max_new_tokens)
    requests = [
        Request(prompt=prompts(i), keys=_keys(spec, prompts.questions, i, _SAMPLES))
        for i in sample.indices
    ]
    alone = [replace(request, keys=request.keys[:1]) for request in requests]
    ours = [own[0] for own in engine.generate(alone, Sampling.greedy(short))]
    drawn = engine.generate(requests, replace(sampling, max_new_tokens=short))
    theirs = [own[0] for own in sample.greedy]
    _check_sampling(sample, ours=_share_alike(drawn))
    chosen = {i: own.token_ids for i, own in zip(sample.indices, ours, strict=True)}
    tokenizer, end = opened.processor.tokenizer, opened.ids.end[0]
    pairs = []
    for index, server, own in zip(sample.indices, theirs, ours, strict=True):
        if server.finish != "failed":
            # Kept apart from the text, and by some servers cut off.
            raw = tokenizer.decode(own.token_ids, skip_special_tokens=True)
            lead = raw[: len(raw) - len(raw.lstrip())]
            both = [_read_again(tokenizer, lead, answer, end) for answer in (server, own)]
            pairs.append((index, both))
    pairs = [pair for pair in pairs if all(pair[1])]
    scores = _scored(spec, context, opened, prompts, pairs, opened.ids.vocabulary)
    return compare_greedy(
        [
            GreedyPair(
                theirs=a,
                ours=b,
                theirs_logprobs=of_a,
                ours_logprobs=of_b,
                sure=_alike_until(b, chosen[index]),
            )
            for (index, (a, b)), (of_a, of_b) in zip(pairs, scores, strict=True)
        ],
        spec.precision,
    )


def _read_again(tokenizer: Any, lead: str, answer: Completion, end: int) -> list[int]:
    """The ids of the answer's text behind the white space it begins with."""
    encoded = tokenizer(lead + answer.text, add_special_tokens=False, split_special_tokens=True)
    return [*encoded["input_ids"], *([end] if answer.finish == "stop" else [])]


def _alike_until(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are the same."""
    differ = (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _share_alike(drawn: Sequence[Sequence[Completion]]) -> float:
    """The share of questions of which all samples say the same."""
    return sum(len({c.text for c in own}) == 1 for own in drawn) / len(drawn)


def _check_sampling(sample: Sample, *, ours: float) -> None:
    """Raises StageError where samples of other seeds never differ, and ours mostly do."""
    if _share_alike(sample.drawn) == 1.0 and ours <= 0.5:
        raise StageError(
            f"{sample.name} does not sample: other seeds gave the same answers to all of "
            f"{len(sample.indices)} questions, and transformers gives the same to {ours:.0%}. "
            "`transformers serve` samples where the model's generation_config.json has do_sample: "
            "true"
        )
