"""What can be known to fail before anything is computed: data, models, vocabularies."""

from __future__ import annotations

import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from masters.artifacts import canonical_json
from masters.data.questions import Questions
from masters.data.sources import open_questions, verify_images
from masters.errors import ServerError, StageError
from masters.recipe import DataSource, Judge, Runtime
from masters.rewards.judging.cache import VerdictCache
from masters.rewards.verifiers import Rule, verify
from masters.specs import EvaluateSpec, GenerateSpec, JudgeSpec, ModelRef, StageSpec, TrainSpec

Folders = dict[ModelRef, Path]
_LABELS_CHECKED = 500


def check(specs: Iterable[StageSpec], *, images_checked: int | None = None) -> None:
    """Looks at every data set and every model that these stages will open.

    Images are decoded (``images_checked``: see ``verify_images``), labels must be such that the
    rule can compare with them (some hundred are tried), models must be vision-language models,
    whole where they are on disk, a teacher must share its student's vocabulary, and what is to be
    trained of a student must be there. Of a model on the hub everything but the weights is fetched
    for that.

    Raises:
        DataError, ModelError: the first thing that a stage would fail on.
    """
    from masters.models.load import local_folder

    specs = list(specs)
    sources: dict[str, Any] = {}
    models: dict[ModelRef, None] = {}
    for spec in specs:
        for part in _parts(spec):
            if isinstance(part, ModelRef):
                if part.path is not None:
                    models[part] = None
            elif hasattr(part, "on_bad"):
                sources.setdefault(canonical_json(part.model_dump(mode="json")), part)
    rules: dict[str, set[Rule]] = defaultdict(set)
    for source, rule in (found for spec in specs for found in _by_rule(spec)):
        rules[canonical_json(source.model_dump(mode="json"))].add(rule)
    for key, source in sources.items():
        questions = open_questions(source)
        verify_images(questions, images_checked)
        for rule in sorted(rules[key]):
            _fits(rule, questions)
    folders: Folders = {
        ref: local_folder(str(ref.path), revision=ref.revision, weights=False) for ref in models
    }
    for ref, folder in folders.items():
        _vlm(folder, whole=Path(str(ref.path)).expanduser().is_dir())
    trained = [spec for spec in specs if isinstance(spec, TrainSpec)]
    students = dict.fromkeys(spec.init for spec in trained if spec.init in folders)
    for spec in trained:
        # A later phase goes on with the student of the one before.
        own = [spec.init] if spec.init in folders else list(students)
        if spec.teacher in folders and len(own) == 1:
            _same_vocabulary(spec.teacher, own[0], folders, spec.prompt.image_backend)
        _trainable(spec)


def check_servers(asking: Iterable[tuple[str, StageSpec, Runtime]], verdicts: Path) -> None:
    """Looks whether the servers are there that these stages, given by name, will ask to judge.

    One whose verdicts are kept is not asked: they may be all that is needed.

    Args:
        verdicts: the cache, where there is one.

    Raises:
        StageError: one is not, or does not serve what it is to judge with.
    """
    first: dict[str, tuple[str, Judge, Runtime]] = {}
    for name, spec, runtime in asking:
        judge = spec.rule.judge if isinstance(spec, JudgeSpec | EvaluateSpec) else None
        if judge is not None and judge.model == "server":
            first.setdefault(f"{judge.name} {runtime.server}", (name, judge, runtime))
    for name, judge, runtime in first.values():
        from masters.stages.asking import ServerAsker, server_of

        server = server_of(judge, runtime)
        if verdicts.exists():
            with VerdictCache(verdicts) as cache:
                if next(cache.read(judge=ServerAsker(server).name), None) is not None:
                    continue
        try:
            server.check()
        except ServerError as error:
            raise StageError(
                f"{name} will ask a server to judge: {error}. What comes before it can be "
                "done without it: --until STAGE"
            ) from error


def check_engines(asking: Iterable[tuple[str, StageSpec, Runtime]]) -> None:
    """Looks whether the engines are there that will answer, or train, in these stages, by name.

    Raises:
        StageError: a server does not serve a model by its name, vLLM is not where it should be, or
            DeepSpeed is not installed.
    """
    seen: set[tuple[str, str]] = set()
    for name, spec, runtime in asking:
        if isinstance(spec, TrainSpec) and runtime.engine == "deepspeed":
            _check_deepspeed(name)
        if not isinstance(spec, GenerateSpec) or spec.engine == "transformers":
            continue
        later = f"{name} will need it. What comes before can be done without it: --until STAGE"
        if spec.engine == "vllm":
            if runtime.vllm is not None and ("vllm", runtime.vllm.python) not in seen:
                seen.add(("vllm", runtime.vllm.python))
                _check_vllm(runtime.vllm.python, later)
            continue
        for served in spec.served or ():
            if (served.model, str(runtime.server)) in seen:
                continue
            seen.add((served.model, str(runtime.server)))
            from masters.stages.servers import open_server

            try:
                open_server(runtime, served.model, does="answers").check()
            except ServerError as error:
                raise StageError(f"{error}. {later}") from error


def _check_deepspeed(stage: str) -> None:
    if find_spec("deepspeed") is None:
        raise StageError(
            f"runtime.engine is deepspeed, which is not installed here; {stage} needs it: "
            "DS_BUILD_OPS=0 pip install 'masters[deepspeed]', or set runtime.engine=fsdp2. What "
            "comes before can be done without it: --until STAGE"
        )


def _check_vllm(python: str, later: str) -> None:
    found = "import importlib.util as u; raise SystemExit(u.find_spec('vllm') is None)"
    try:
        done = subprocess.run(
            [python, "-I", "-c", found], capture_output=True, timeout=60, check=False
        )
        wrong = "has no package vllm" if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = f"cannot be started ({error})"
    if wrong:
        raise StageError(
            f"runtime.vllm.python is {python!r}, which {wrong}; expected the interpreter of an "
            f"environment with vLLM. {later}"
        )


def _parts(value: object) -> Iterable[BaseModel]:
    """The spec's blocks at any depth."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from _parts(getattr(value, name))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)


def _by_rule(spec: StageSpec) -> Iterable[tuple[DataSource, Rule]]:
    """The data whose labels a rule is to be compared with, in a stage, and the rule."""
    if isinstance(spec, JudgeSpec | EvaluateSpec) and spec.rule.judge is None:
        yield spec.data, spec.rule.rule
    if isinstance(spec, TrainSpec) and spec.validation is not None:
        yield spec.validation.data, spec.validation.rule.rule


def _fits(rule: Rule, questions: Questions) -> None:
    # What the response is makes no difference; some hundred labels tell of a wrong rule.
    for place in range(0, len(questions), max(1, len(questions) // _LABELS_CHECKED)):
        verify(rule, "?", questions[place])


def _vlm(folder: Path, *, whole: bool) -> None:
    from masters.models.checkpoint import checkpoint_tensors
    from masters.models.load import load_config

    load_config(str(folder))
    if whole:
        checkpoint_tensors(folder)


def _trainable(spec: TrainSpec) -> None:
    if spec.lora is not None or spec.freeze or spec.optimiser.moments != "fp32":
        from masters.stages.trained_student import check_settings

        check_settings(spec)


def _same_vocabulary(teacher: ModelRef, student: ModelRef, folders: Folders, backend: str) -> None:
    from masters.models.vocabulary import check_end_tokens, common_vocabulary, vocabulary_of
    from masters.stages.opening import describe_model

    vocabularies, ends = [], []
    for ref in (teacher, student):
        model = describe_model(folders[ref], image_backend=backend)
        rows = model.model.get_output_embeddings().weight.shape[0]
        vocabularies.append(vocabulary_of(model.processor, rows=rows, name=str(ref.path)))
        ends.append(model.ids.end)
    common_vocabulary(*vocabularies)
    check_end_tokens(*vocabularies, teacher_ends=ends[0], student_ends=ends[1])
