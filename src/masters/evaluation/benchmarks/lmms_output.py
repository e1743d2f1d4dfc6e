"""Reads what lmms-eval leaves in its output folder.

OUTPUT/<model>/<date>_<time>_results.json            metrics of the tasks of one run
OUTPUT/<model>/<date>_<time>_samples_<task>.jsonl    a line for each question (--log_samples)
OUTPUT/submissions/...                               files for leaderboards; not read
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masters.errors import DataError
from masters.evaluation.benchmarks.catalogue import BENCHMARKS, Benchmark
from masters.evaluation.benchmarks.questions import Question
from masters.evaluation.benchmarks.scores import Score, check_agreement, interval_of

RESULTS = re.compile(r"^(\d{8}_\d{6})_results\.json$")
_LAYOUT = "<date>_<time>_results.json in a folder named after the model"


@dataclass(frozen=True, kw_only=True)
class _Task:
    """One task of one results file.

    Args:
        name: lmms-eval's.
        file: the results file.
        metrics: its entry.
        asked: how many lines were asked; None where the file does not say.
        partial: whether a limit cut the data set.
    """

    name: str
    file: Path
    metrics: Mapping[str, Any]
    asked: int | None
    partial: bool


def holds_lmms_output(folder: Path) -> bool:
    """Whether a results file of lmms-eval's lies anywhere below."""
    return next(_results_files(folder), None) is not None


def read_lmms_output(
    folder: Path, *, judge: str | None = None, version: str = ""
) -> dict[str, Score]:
    """The scores by benchmark, of every benchmark whose tasks are all there.

    Args:
        folder: lmms-eval's ``--output_path``, of one model.
        judge: the judge's name where it is known.
        version: lmms-eval's, where it is known. What its results call ``lmms_eval_version`` is the
            commit of the folder that it was started in, so it is not used.

    Raises:
        DataError: there is no results file, one is cut or of another layout, a task is there
            twice, a benchmark lacks one of its tasks or its metric, or the log of questions does
            not give the reported number.
    """
    tasks: dict[str, _Task] = {}
    for file in _results_files(folder):
        for task in _tasks_of(file):
            if task.name in tasks:
                raise DataError(
                    f"{folder}: two runs of {task.name}, {tasks[task.name].file.name} and "
                    f"{file.name}; expected one. Name the folder of one run, or move the other."
                )
            tasks[task.name] = task
    if not tasks:
        raise DataError(
            f"{folder}: holds no results of lmms-eval; expected {_LAYOUT}, as --output_path makes"
        )
    scores = {}
    for benchmark in BENCHMARKS:
        found = [tasks[name] for name in benchmark.tasks if name in tasks]
        if not found:
            continue
        if missing := [name for name in benchmark.tasks if name not in tasks]:
            raise DataError(
                f"{folder}: {benchmark.name} has {len(found)} of its {len(benchmark.tasks)} tasks; "
                f"{', '.join(missing)} missing. Run the benchmark again."
            )
        scores[benchmark.name] = _score(benchmark, found, judge, version)
    return scores


def _results_files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*_results.json")) if RESULTS.match(path.name))


def _tasks_of(file: Path) -> Iterator[_Task]:
    """Every task of a results file that reports a metric; groups are worked out from tasks."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{file}: is no whole JSON ({error}); the run was cut while writing. Run it again."
        ) from None
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or not results:
        raise DataError(
            f'{file}: has no "results" of tasks; expected lmms-eval\'s layout, '
            '{"results": {TASK: {"METRIC,FILTER": number}}, "n-samples": ...}'
        )
    sizes = content.get("n-samples") or {}
    stopped = bool((content.get("usage") or {}).get("budget_exceeded"))
    for name, metrics in results.items():
        if not isinstance(metrics, dict):
            raise DataError(f"{file}: results of {name} are {metrics!r}; expected metrics by name")
        size = sizes.get(name)
        if size is None and name not in {t for b in BENCHMARKS for t in b.tasks}:
            continue
        asked = None if size is None else int(size["effective"])
        cut = size is not None and int(size["effective"]) < int(size["original"])
        yield _Task(name=name, file=file, metrics=metrics, asked=asked, partial=cut or stopped)


def _score(benchmark: Benchmark, tasks: list[_Task], judge: str | None, version: str) -> Score:
    logs = [_questions(benchmark, task) for task in tasks]
    questions = _merged(benchmark, tasks, logs)
    values = [_value(benchmark, task, log) for task, log in zip(tasks, logs, strict=True)]
    value = sum(values) / len(values)
    source = tasks[0].file
    low = high = n = failed = None
    if questions:
        check_agreement(benchmark, value, questions, source)
        low, high = interval_of(benchmark, value, questions)
        n = len(questions)
        # What happens to an answer that MMBench's judge gave no letter for is not logged.
        if benchmark.name not in ("mmbench", "mmbench_cn"):
            failed = sum(question.judge_failed for question in questions.values())
    return Score(
        benchmark=benchmark, value=value, low=low, high=high, n=n,
        partial=any(task.partial for task in tasks),
        judge=judge if benchmark.judge else "",
        judge_failed=failed if benchmark.judge else 0,
        harness=f"lmms-eval {version}".strip(), questions=questions, source=source,
    )  # fmt: skip


def _value(benchmark: Benchmark, task: _Task, log: Mapping[str, Question]) -> float:
    """The task's metric as a share of a perfect score."""
    if benchmark.metric not in task.metrics:
        known = [key for key in task.metrics if "," in key and "_stderr" not in key]
        raise DataError(
            f"{task.file}: {task.name} has no metric {benchmark.metric!r} but "
            f"{', '.join(known) or 'none'}; expected what the pinned lmms-eval reports. Run it "
            "with the version that docs/benchmarks.md names."
        )
    value = task.metrics[benchmark.metric]
    if value is None and log and not any(question.score for question in log.values()):
        return 0.0  # MathVista reports nothing where nothing is right
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"{task.file}: {benchmark.metric} of {task.name} is {value!r}; expected a number"
        )
    if not 0 <= value <= benchmark.full:
        raise DataError(
            f"{task.file}: {benchmark.metric} of {task.name} is {value}; expected 0 to "
            f"{benchmark.full:g}"
        )
    return value / benchmark.full


def _questions(benchmark: Benchmark, task: _Task) -> dict[str, Question]:
    """The logged questions of a task; none where there is no log."""
    stamp = RESULTS.match(task.file.name)
    assert stamp is not None
    path = task.file.with_name(f"{stamp[1]}_samples_{task.name}.jsonl")
    if not path.is_file():
        return {}
    found: dict[str, Question] = {}
    seen: set[Any] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            sample = json.loads(line)
            seen.add(sample["doc_id"])
            question = benchmark.question(sample)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}: is no logged question of {task.name} ({error!r}); expected what "
                "lmms-eval's --log_samples writes. Run the benchmark again."
            ) from None
        if question is not None:
            found[question.key] = question
    if task.asked is not None and len(seen) != task.asked:
        raise DataError(
            f"{path}: logs {len(seen):,} questions, but {task.file.name} says that "
            f"{task.asked:,} were asked; the log is cut. Run the benchmark again."
        )
    return found


def _merged(
    benchmark: Benchmark, tasks: list[_Task], logs: list[dict[str, Question]]
) -> dict[str, Question]:
    """One table of questions over a benchmark's tasks; none where a task has no log."""
    if not all(logs):
        return {}
    if len(logs) == 1:
        return logs[0]
    if benchmark.counting == "pairs" and all(log.keys() == logs[0].keys() for log in logs):
        return {
            key: Question(
                key=key,
                score=sum(log[key].score or 0.0 for log in logs) / len(logs),
                target=" ".join(log[key].target for log in logs),
            )
            for key in logs[0]
        }
    return {
        f"{task.name}/{key}": question
        for task, log in zip(tasks, logs, strict=True)
        for key, question in log.items()
    }
