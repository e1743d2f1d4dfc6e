"""What was asked and stored for one question at one stage, printed exactly."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from masters.artifacts import VERDICTS
from masters.data.tables import ANSWERS, RESPONSES, REWARDS, SCORES, list_shards, read_shard
from masters.errors import MastersError, StageError
from masters.shown import shown
from masters.specs import JudgeSpec, ModelRef, TinyInit

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from masters.data.questions import Question, Questions
    from masters.plan import Plan, Stage

Row = dict[str, Any]
Key = tuple[str, int, int, int]

_MAX_SUGGESTIONS = 5
_COMPARED = 20_000  # ids looked through for near ones: comparing texts is slow


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The tables' rows of one question around one stage; verdicts and scores by (source, ratio,
    round, sample); ``prompts``: the version of the prompts that each verdict of a judge took."""

    responses: list[Row]
    rewards: Mapping[Key, Row]
    prompts: Mapping[Key, str]
    scores: Mapping[Key, Row]
    answers: list[Row]


def show_question(plan: Plan, stage_name: str, question_id: str, console: Console) -> None:
    """Prints what a stage was asked and holds about one question; saves its images.

    They go to ``<out>/show/<question>.png``, or ``<question>-<n>.png`` (counted from 1) where there
    are several. Responses are shown with the verdicts and
    reference log-probabilities that other stages of the plan stored for them.

    Args:
        plan: whose stages to look into.
        stage_name: a stage that works on questions, e.g. ``generate/0-large/teacher``.
        question_id: as in the data.
        console: where to print.

    Raises:
        StageError: no such stage, a stage without questions, or an unknown question; the message
            names the nearest ids and the stages that hold the question.
        DataError: the data or a table can't be read.
    """
    stage = plan.stage(stage_name)
    question, questions = _find(plan, stage, question_id)
    stored = stored_rows(plan, stage, question_id)
    line(console, "stage", f"{stage.name} ({stage.status})")
    line(console, "folder", str(stage.folder))
    line(console, "question", question.id)
    line(console, "kind", question.kind)
    line(console, "asked", question.text)
    for turn in question.history:
        line(console, "earlier", f"{turn.question} -> {turn.answer}")
    if question.choices:
        line(console, "choices", " | ".join(question.choices))
    line(console, "label", question.label if question.label is not None else "none")
    if question.training_label not in (None, question.label):
        line(console, "trained on", str(question.training_label))
    show_images(plan, questions, question, console)
    processor = _show_prompt(plan, stage, question, questions, console)
    for row in stored.responses:
        _show_response(row, stored, processor, console)
        _show_explanation(plan, question, row, stored, console)
    for row in stored.answers:
        _show_answer(row, console)
    if not stored.responses and not stored.answers:
        _say_nothing_stored(plan, stage, question_id, console)


def stored_rows(plan: Plan, stage: Stage, question_id: str) -> Stored:
    """The rows of one question in the stage's tables and in those about the same responses.

    A stage that isn't done shows the whole shards it has so far.
    """
    sources = _response_stages(plan, stage)
    responses: list[Row] = []
    for source in sources:
        responses += _rows(source.folder / "responses", RESPONSES, question_id)
    rewards: dict[Key, Row] = {}
    prompts: dict[Key, str] = {}
    scores: dict[Key, Row] = {}
    names = {source.name for source in sources}
    for other in plan.stages:
        if other.inputs.get("responses") not in names:
            continue
        if other.kind == "judge":
            found = _rows(other.folder / "rewards", REWARDS, question_id)
            mine = {_key(row): row for row in found}
            rewards |= mine
            if isinstance(other.spec, JudgeSpec) and other.spec.rule.judge is not None:
                prompts |= dict.fromkeys(mine, other.spec.rule.judge.prompt)
        elif other.kind == "score":
            found = _rows(other.folder / "scores", SCORES, question_id)
            scores |= {_key(row): row for row in found}
    answers: list[Row] = []
    if stage.kind == "evaluate":
        answers = list(_rows(stage.folder / "answers", ANSWERS, question_id))
    return Stored(
        responses=sorted(responses, key=_key),
        rewards=rewards,
        prompts=prompts,
        scores=scores,
        answers=sorted(answers, key=lambda row: row["ratio"]),
    )


def _response_stages(plan: Plan, stage: Stage) -> list[Stage]:
    """The generate stages whose responses the stage made, judged, scored or trained on."""
    if stage.kind == "generate":
        return [stage]
    names = [
        name for role, name in stage.inputs.items() if role.split(".", maxsplit=1)[0] == "responses"
    ]
    return [plan.by_name[name] for name in names]


def _rows(folder: Path, schema: pa.Schema, question_id: str) -> Iterator[Row]:
    import pyarrow.compute as pc

    for path in list_shards(folder):
        table = read_shard(path, schema)
        yield from table.filter(pc.field("question_id") == question_id).to_pylist()


def _key(row: Row) -> Key:
    return row["source"], row["ratio"], row["round"], row["sample"]


# ---------------------------------------------------------------------------------- the question


def _find(plan: Plan, stage: Stage, question_id: str) -> tuple[Question, Questions]:
    """The question in the stage's data, and the data.

    Raises:
        StageError: the stage works on no questions, or not on this one.
    """
    questions = _open(stage)
    if questions is None:
        raise StageError(
            f"{stage.name}: a {stage.kind} stage reads weights, no questions. Name one of: "
            f"{', '.join(other.name for other in plan.stages if hasattr(other.spec, 'data'))}"
        )
    ids = questions.ids
    if question_id in ids:
        return questions[questions.find(question_id)], questions
    some = ids[:_COMPARED]
    near = difflib.get_close_matches(question_id, some, n=_MAX_SUGGESTIONS, cutoff=0.4)
    holders = _holders(plan, question_id)
    where = f"It is in: {', '.join(holders)}." if holders else "No stage of this plan has it."
    raise StageError(
        f"{stage.name}: no question {question_id!r} among its {len(ids):,}; nearest ids: "
        f"{', '.join(near or ids[:_MAX_SUGGESTIONS])}. {where}"
    )


def _open(stage: Stage) -> Questions | None:
    from masters.data.sources import open_questions

    source = getattr(stage.spec, "data", None)
    return None if source is None else open_questions(source)


def _holders(plan: Plan, question_id: str) -> list[str]:
    """The stages whose data has the question; each data set is opened once."""
    known: dict[str, bool] = {}
    found = []
    for stage in plan.stages:
        source = getattr(stage.spec, "data", None)
        if source is None:
            continue
        key = source.model_dump_json()
        if key not in known:
            try:
                questions = _open(stage)
            except MastersError:  # data that is gone holds nothing we could show
                questions = None
            known[key] = questions is not None and question_id in questions.ids
        if known[key]:
            found.append(stage.name)
    return found


def show_images(plan: Plan, questions: Questions, question: Question, console: Console) -> None:
    """Saves the question's images in ``OUT/show`` and says where."""
    images = questions.open_images(question)
    if not images:
        line(console, "image", "none (text only)")
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in question.id).lstrip(".")
    for number, (name, image) in enumerate(zip(question.images, images, strict=True), start=1):
        which = f"-{number}" if len(images) > 1 else ""
        path = plan.out / "show" / f"{safe or 'question'}{which}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        width, height = image.size
        line(console, "image", f"{name}, {width} x {height} pixels, saved as {path}")


# ------------------------------------------------------------------------------------ the prompt


def _show_prompt(
    plan: Plan, stage: Stage, question: Question, questions: Questions, console: Console
) -> Any:
    """Prints the prompt as rendered and its ids; returns the processor, or None without one."""
    asking = next(iter(_response_stages(plan, stage)), stage) if stage.kind == "judge" else stage
    model = model_of(plan, asking)
    prompt = getattr(asking.spec, "prompt", None)
    if model is None or prompt is None:
        line(console, "prompt", "not rendered: the stage names no model to render it with")
        return None
    path, revision = model
    try:
        from masters.models.encode import PromptText, encode_prompt, fit_pixels
        from masters.models.load import load_processor

        processor = load_processor(path, revision=revision, backend=prompt.image_backend)
        text = PromptText(system=prompt.system, suffix=prompt.suffix)
        images = questions.open_images(question)
        if prompt.max_pixels is not None:
            images = [fit_pixels(image, prompt.max_pixels) for image in images]
        encoded = encode_prompt(processor, question, images, text)
    except MastersError as error:
        line(console, "prompt", f"not rendered: {error}")
        return None
    line(console, "model", path)
    line(console, "prompt", encoded.text)
    line(console, "prompt ids", f"{_numbers(encoded.ids)}  ({len(encoded.ids)} tokens)")
    return processor


def model_of(plan: Plan, stage: Stage) -> tuple[str, str | None] | None:
    """Path and revision of the model that reads the stage's prompts; None where there is none."""
    spec: Any = stage.spec
    for name in ("model", "reference", "init", "teacher"):
        reference = getattr(spec, name, None)
        if isinstance(reference, TinyInit):
            return str(stage.folder / "model"), None
        if isinstance(reference, ModelRef):
            if reference.role is None:
                return (reference.path, reference.revision) if reference.path else None
            return str(plan.stage(stage.inputs[reference.role]).folder / "model"), None
    return None


# ------------------------------------------------------------------------------- what was stored


def _show_response(row: Row, stored: Stored, processor: Any, console: Console) -> None:
    ratio = f", ratio {row['ratio'] / 10_000:g}" if row["source"] == "teacher" else ""
    turn = f", round {row['round']}" if row["round"] else ""
    console.print()
    title = f"{row['source']}{ratio}{turn}, sample {row['sample']}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    line(console, "text", repr(row["text"]))
    line(console, "finish", f"{row['finish']}, {len(row['token_ids'])} tokens")
    line(console, "token ids", _numbers(row["token_ids"]))
    if processor is not None:
        pieces = processor.tokenizer.convert_ids_to_tokens(row["token_ids"])
        line(console, "pieces", " ".join(repr(piece) for piece in pieces))
    line(console, "log-probs", _log_probs(row["logprobs"]))
    score = stored.scores.get(_key(row))
    if score is not None:
        line(console, "reference", _log_probs(score["reference_logprobs"]))
    verdict = stored.rewards.get(_key(row))
    if verdict is not None:
        reward = "missing" if verdict["reward"] is None else f"{verdict['reward']:g}"
        line(console, "reward", f"{reward} by {verdict['judge']}: {verdict['reason']}")
    line(console, "model", row["model"])
    line(console, "seed", str(row["seed"]))


def _show_explanation(
    plan: Plan, question: Question, row: Row, stored: Stored, console: Console
) -> None:
    """What the judge said in its own words, where one was asked and the cache still has it."""
    version, verdict = stored.prompts.get(_key(row)), stored.rewards.get(_key(row))
    path = plan.out / VERDICTS
    if version is None or verdict is None or verdict["reward"] is None or not path.is_file():
        return
    from masters.rewards.judging.cache import VerdictCache, verdict_key
    from masters.rewards.judging.calls import load_prompts
    from masters.rewards.judging.items import JudgeItem

    item = JudgeItem(question=question, response=row["text"])
    try:
        key = verdict_key(item, verdict["judge"], load_prompts(version).name)
        with VerdictCache(path) as cache:
            kept = cache.find(key)
    except MastersError as error:
        line(console, "explained", f"cannot be read: {error}")
        return
    if kept is not None:
        line(console, "explained", kept.verdict.explanation or "in no words")


def _show_answer(row: Row, console: Console) -> None:
    mark = "right" if row["correct"] else "wrong"
    if row["score"] is None:
        mark = "missing"
    elif 0 < row["score"] < 1:
        mark = f"score {row['score']:g}"
    console.print()
    console.print(Text(f"answer at ratio {row['ratio'] / 10_000:g}", style="bold"))
    line(console, "text", repr(row["text"]))
    line(console, "verdict", f"{mark}, label {row['label']!r}")
    line(console, "finish", row["finish"])


def _say_nothing_stored(plan: Plan, stage: Stage, question_id: str, console: Console) -> None:
    """Says why there is nothing to show, and which stages have rows of the question."""
    holders = []
    for other in plan.stages:
        found = stored_rows(plan, other, question_id)
        if other.kind in ("generate", "evaluate") and (found.responses or found.answers):
            holders.append(other.name)
    console.print()
    if stage.kind == "train" and not _response_stages(plan, stage):
        words = "This stage trains on labels: it reads no responses."
    elif stage.status == "done":
        words = "The question is in the data, but this stage's plan doesn't use it."
    else:
        words = f"The stage is {stage.status}: nothing is stored for this question yet."
    where = f" Stored rows are in: {', '.join(holders)}." if holders else ""
    console.print(Text(words + where), soft_wrap=True)


def line(console: Console, name: str, value: str) -> None:
    """Prints one named value as it is, but for what would steer the terminal."""
    console.print(Text.assemble((f"{name:<11}", "dim"), shown(value)), soft_wrap=True)


def _numbers(values: Sequence[int]) -> str:
    return " ".join(str(value) for value in values)


def _log_probs(values: Sequence[float] | None) -> str:
    if values is None:
        return "not stored"
    return f"{' '.join(f'{value:.4f}' for value in values)}  (sum {math.fsum(values):.4f})"
