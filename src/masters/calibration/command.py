"""``masters calibrate``: from TEACHER and questions to a recommended mask."""

from __future__ import annotations

import json
import os
import random
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from masters.artifacts import (
    atomic_write_bytes,
    atomic_write_text,
    disk_full_error,
    is_disk_full,
    lock,
    versions,
)
from masters.calibration.groups import Grain, layer_groups
from masters.calibration.kept import Kept
from masters.calibration.output import (
    check_writable,
    groups_table,
    mask_yaml,
    ratios_table,
    recommendation_json,
    row_json,
    write_recipe,
)
from masters.calibration.recommendation import Measured, Recommendation, recommend
from masters.calibration.request import Request
from masters.calibration.teacher import Subject, find_subject, folder_name
from masters.data.sources import open_questions
from masters.display import Display
from masters.fingerprints import Contents
from masters.plan import make_plan
from masters.ratios import ratio_text

if TYPE_CHECKING:
    from masters.calibration.measuring import Measuring, Progress
    from masters.data.questions import Questions
    from masters.teachers.thresholds import Thresholds

SCHEMA = 1
_SCOPE = {"parts", "include", "exclude"}


def calibrate(
    teacher: str,
    request: Request,
    *,
    name: str | None,
    questions: str | None,
    profile: str | None,
    overrides: Sequence[str],
    out: Path | None,
    command: Sequence[str],
    console: Console,
) -> Path:
    """Measures, recommends, writes; returns the folder of ``calibration.json``.

    Args:
        teacher, name, questions, profile, overrides: see `find_subject`.
        out: results go to OUT/calibrate/<teacher>; None: ``runs/<recipe>``, or ``runs``.
        command: what was typed, for the record.
        console: for the tables; progress goes to stderr.

    Raises:
        MastersError: whatever went wrong.
    """
    subject = find_subject(
        teacher, name=name, questions=questions, profile=profile, overrides=overrides
    )
    if request.write is not None:
        check_writable(request.write, subject)
    out = out or (Path("runs") / subject.recipe.name if subject.from_recipe else Path("runs"))
    asked = open_questions(subject.questions)
    folder = out / "calibrate" / folder_name(subject)
    model, identity = _model(subject, out)
    try:
        with lock(folder):
            work = _Work(subject, request, folder, model, identity, asked)
            found = _measured(work, command, console)
        _conclude(console, subject, request, folder, found, command)
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise disk_full_error(folder) from error
    return folder


def _measured(work: _Work, command: Sequence[str], console: Console) -> Recommendation:
    """Measures, shows and writes; nothing is recommended before all of it is there."""
    tolerance = work.request.tolerance
    rows = work.ratios()
    found = recommend(rows, tolerance)
    console.print(ratios_table(rows, tolerance))
    groups = work.groups(found, console)
    for grain, measured in groups.items():
        console.print(groups_table(measured, rows[0], grain))
    content = _content(work, rows, groups, found, command)
    _write(work.folder, content, rows, groups, found, tolerance)
    return found


class _Work:
    """One teacher's measurements: those kept are read, the missing ones made."""

    def __init__(
        self,
        subject: Subject,
        request: Request,
        folder: Path,
        model: Path,
        identity: Any,
        questions: Questions,
    ) -> None:
        self.subject, self.request, self.folder, self.model = subject, request, folder, model
        self.questions = questions
        size = min(request.sample, len(questions))
        drawn = random.Random(request.seed).sample(range(len(questions)), size)
        self.indices = tuple(sorted(drawn))
        recipe = subject.recipe
        scope = {} if subject.mask is None else subject.mask.model_dump(include=_SCOPE, mode="json")
        if subject.mask is not None and subject.mask.kind == "random":
            scope["kind"] = "random"
        self.scope: dict[str, Any] = scope
        limit = recipe.evaluation.max_new_tokens or recipe.method.responses.max_new_tokens
        self.settings: dict[str, Any] = {
            "teacher": identity,
            "questions": questions.fingerprint(),
            "sample": [questions.ids[index] for index in self.indices],
            "prompt": recipe.prompt.model_dump(mode="json"),
            "rule": recipe.evaluation.rule.model_dump(mode="json", exclude={"judge"}),
            "max_new_tokens": limit,
            "precision": recipe.method.optimiser.precision,
            "scope": scope,
        }
        self.kept = Kept(folder, self.settings)
        self._measuring: Measuring | None = None
        self._thresholds: Thresholds | None = None

    @property
    def all_ratios(self) -> tuple[int, ...]:
        """Every ratio that thresholds are needed for."""
        own = self.request.group_ratio
        return tuple(sorted({*self.request.ratios, *([] if own is None else [own])}))

    def ratios(self) -> list[Measured]:
        """The whole teacher and every ratio, rising."""
        missing = [r for r in (0, *self.request.ratios) if self.kept.get(r) is None]
        if missing:
            with _shown(f"calibrate/{self.folder.name}") as progress:
                measuring = self._open(progress)
                for ratio in missing:
                    if ratio:
                        self.kept.add(measuring.masked(ratio))
        found = [self.kept.get(ratio) for ratio in (0, *self.request.ratios)]
        return [row for row in found if row is not None]

    def groups(self, found: Recommendation, console: Console) -> dict[Grain, list[Measured]]:
        """Sensitivity by every grain asked for, in module order."""
        if not self.request.grains:
            return {}
        ratio = self.request.group_ratio or found.max_ratio or self.request.ratios[0]
        result: dict[Grain, list[Measured]] = {}
        with _shown(f"calibrate/{self.folder.name}/groups") as progress:
            measuring = self._open(progress)
            assert self._thresholds is not None
            for grain in self.request.grains:
                groups = layer_groups(measuring.model, self._thresholds.layers, grain)
                missing = [group for group in groups if self.kept.get(ratio, group) is None]
                if missing:
                    console.print(
                        f"{len(missing)} {grain}s at {ratio_text(ratio)}: for each, a pass over "
                        f"{len(self.indices):,} answers, and a new one wherever one changes",
                        highlight=False,
                        soft_wrap=True,
                    )
                for group in missing:
                    self.kept.add(measuring.only(group, groups[group], ratio))
                rows = [self.kept.get(ratio, group) for group in groups]
                result[grain] = [row for row in rows if row is not None]
        return result

    def _open(self, progress: Progress) -> Measuring:
        """The teacher in memory, its own answers known; once."""
        if self._measuring is not None:
            self._measuring.progress = progress
            return self._measuring
        from masters.calibration.measuring import Answers, Asking, Measuring
        from masters.dispatch import quiet_libraries
        from masters.models.load import DTYPES
        from masters.stages.opening import Prompts, open_model
        from masters.stages.sight import check_sees_image
        from masters.teachers.measuring import measure_thresholds
        from masters.workers import configure

        recipe = self.subject.recipe
        quiet_libraries()
        configure(recipe.runtime)
        precision = recipe.method.optimiser.precision
        opened = open_model(
            self.model, recipe.prompt, recipe.runtime, precision=precision, teacher=True
        )
        prompts = Prompts(self.questions, opened.processor, recipe.prompt)
        check_sees_image(opened, prompts, role="teacher", precision=DTYPES[precision])
        thresholds = measure_thresholds(
            self.model, self.all_ratios, progress=progress, **self.scope
        )
        asking = Asking(
            indices=self.indices,
            max_new_tokens=self.settings["max_new_tokens"],
            rule=recipe.evaluation.rule,
            precision=precision,
            runtime=recipe.runtime,
        )
        self._thresholds = thresholds
        self._measuring = Measuring(opened, thresholds, prompts, asking, progress)
        kept, known = self.kept.get(0), None
        if kept is not None and self.kept.answers is not None:
            said = tuple(tuple(ids) for ids in self.kept.answers)
            known = Answers(token_ids=said, correct=kept.correct)
        row = self._measuring.unmasked(known)
        if known is None:
            self.kept.add(row, [list(ids) for ids in self._measuring.answers.token_ids])
        return self._measuring


def _model(subject: Subject, out: Path) -> tuple[Path, Any]:
    """The teacher's folder and what identifies its weights; a tiny one is trained if it isn't."""
    from masters.models.load import local_folder

    if subject.source.tiny is not None:
        from masters.run import run_plan

        plan = make_plan(subject.recipe, out)
        stage = f"model/{subject.source.name}"
        run_plan(plan, until=stage)
        folder = plan.by_name[stage].folder / "model"
        identity: Any = {"stage": plan.by_name[stage].fingerprint}
    else:
        assert subject.source.path is not None
        folder = local_folder(subject.source.path, revision=subject.source.revision)
        identity = {}
    # Headers alone would not tell a model from the same one trained further.
    times = {file.name: file.stat().st_mtime_ns for file in sorted(folder.glob("*.safetensors"))}
    return folder, {**identity, "files": Contents().model(str(folder), None), "written": times}


@contextmanager
def _shown(name: str) -> Iterator[Progress]:
    """Progress on stderr as a stage shows it."""
    begin = time.monotonic()
    with Display(Console(stderr=True), 1) as display:
        display.start(name)
        try:
            yield lambda done, total, note: display.update(name, done, total, note)
        except BaseException:
            display.fail(name)
            raise
        display.end(name, time.monotonic() - begin)


def _content(
    work: _Work,
    rows: Sequence[Measured],
    groups: dict[Grain, list[Measured]],
    found: Recommendation,
    command: Sequence[str],
) -> dict[str, Any]:
    """calibration.json."""
    request, settings = work.request, work.settings
    return {
        "schema": SCHEMA,
        "command": shlex.join(command),
        "teacher": {"name": work.subject.source.name, "folder": str(work.model)},
        "questions": {
            "source": work.subject.questions.model_dump(mode="json"),
            "fingerprint": settings["questions"],
            "in_all": len(work.questions),
            "sample": len(work.indices),
            "seed": request.seed,
        },
        "settings": {k: settings[k] for k in ("prompt", "rule", "max_new_tokens", "precision")},
        "mask": work.scope,
        "tolerance": request.tolerance,
        "recommendation": recommendation_json(found),
        "rows": [row_json(row, rows[0], request.tolerance) for row in rows],
        "groups": {
            grain: [row_json(row, rows[0], request.tolerance) for row in measured]
            for grain, measured in groups.items()
        },
        "measurements": work.kept.path.name,
        "versions": versions(),
    }


def _write(
    folder: Path,
    content: dict[str, Any],
    rows: Sequence[Measured],
    groups: dict[Grain, list[Measured]],
    found: Recommendation,
    tolerance: float,
) -> None:
    """Each file whole or not at all, calibration.json last."""
    from masters.calibration.picture import curves, sensitivity

    atomic_write_bytes(folder / "calibration.png", curves(rows, found, tolerance))
    for grain, measured in groups.items():
        atomic_write_bytes(folder / f"per-{grain}.png", sensitivity(measured, grain))
    text = json.dumps(content, indent=1, ensure_ascii=False)
    atomic_write_text(folder / "calibration.json", text + "\n")


def _conclude(
    console: Console,
    subject: Subject,
    request: Request,
    folder: Path,
    found: Recommendation,
    command: Sequence[str],
) -> None:
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    say(found.reason + ".")
    if found.max_ratio:
        say(f"recommended, {found.stages} mask stages:  {mask_yaml(found)}")
    else:
        say(f"recommended, no mask:  {mask_yaml(found)}")
    for name in ("calibration.png", "calibration.json"):
        say(os.fspath(folder / name))
    if request.write is not None:
        said = f"{shlex.join(command)}\n{found.reason}."
        write_recipe(request.write, subject, found, said)
        say(os.fspath(request.write))
