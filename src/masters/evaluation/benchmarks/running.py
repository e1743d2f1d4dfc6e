"""Runs benchmarks one by one, each in a process of the harness's own environment.

OUT/<benchmark>/benchmark.json    what was asked, with which versions and judge, and how it ended
OUT/<benchmark>/log.txt           what the harness printed; the judge's key is blotted out
OUT/<benchmark>/output-<n>/       what the harness wrote at the n-th attempt
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from masters.artifacts import atomic_write_text, lock
from masters.errors import DataError, MastersError, StageError
from masters.evaluation.benchmarks.catalogue import Benchmark
from masters.evaluation.benchmarks.harness import (
    KIT_SETTINGS,
    Request,
    command_of,
    kit_settings,
    variables_of,
)
from masters.evaluation.benchmarks.kit_output import read_kit_output
from masters.evaluation.benchmarks.lmms_output import read_lmms_output
from masters.evaluation.benchmarks.scores import Score

RECORD = "benchmark.json"
LOG = "log.txt"
SCHEMA = 1
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SECRETS = ("OPENAI_API_KEY", "HF_TOKEN")
_TAIL = 12
"""Lines of the log shown with an error."""
_UNJUDGED = {
    "lmms-eval": "GPT API failed to answer",
    "vlmevalkit": "API is not working properly",
}
"""What a harness prints where it goes on without its judge: by guessing, by exact matching."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where benchmarks run; none of it is what they are asked.

    Args:
        python: the interpreter of the harness's environment.
        out: a folder for each benchmark is made in it.
        installed: versions by package in that environment.
        variables: the environment handed down.
        checkout: the folder with VLMEvalKit's run.py.
        processes: GPUs that share the questions of one benchmark.
    """

    python: str
    out: Path
    installed: Mapping[str, str]
    variables: Mapping[str, str]
    checkout: Path | None = None
    processes: int = 1


def run_benchmarks(
    benchmarks: Sequence[Benchmark], request: Request, place: Place, say: Callable[[str], None]
) -> dict[str, Score]:
    """Runs what is not done yet; one that fails does not keep the others from running.

    Args:
        say: is told each benchmark's end.

    Returns:
        The scores by benchmark.

    Raises:
        StageError: some failed (named at the end, with the end of their logs), ``place.out`` is in
            use, or a benchmark in it was run with another model, version or judge.
    """
    scores: dict[str, Score] = {}
    failed: list[str] = []
    with lock(place.out):
        for benchmark in benchmarks:  # all of them before the first one starts
            _done(place.out / benchmark.name, benchmark, request)
            variables_of(benchmark, request, place.variables)
        for benchmark in benchmarks:
            folder = place.out / benchmark.name
            if score := _done(folder, benchmark, request):
                say(f"{benchmark.name}: {100 * score.value:.1f}, done before")
                scores[benchmark.name] = score
                continue
            began = time.time()
            try:
                scores[benchmark.name] = _run(benchmark, request, place, folder)
            except MastersError as error:
                failed.append(benchmark.name)
                say(f"{benchmark.name}: failed. {error}")
                continue
            minutes = (time.time() - began) / 60
            value = 100 * scores[benchmark.name].value
            say(f"{benchmark.name}: {value:.1f}, {minutes:.1f} minutes")
    if failed:
        raise StageError(
            f"{len(failed)} of {len(benchmarks)} benchmarks failed: {', '.join(failed)}; their "
            f"logs are {place.out}/<benchmark>/{LOG}. The same command again runs these alone."
        )
    return scores


def read_recorded(folder: Path) -> dict[str, Score]:
    """The score of a benchmark folder that ``run_benchmarks`` made; none where it is not done.

    Raises:
        DataError: the record or what it points to cannot be read.
    """
    record = _record(folder)
    if record is None or record.get("state") != "done":
        return {}
    return _read(folder, record)


def _done(folder: Path, benchmark: Benchmark, request: Request) -> Score | None:
    """The score of a benchmark that is done as it is asked for now.

    Raises:
        StageError: it was done as something else.
    """
    record = _record(folder)
    if record is None or record.get("state") != "done":
        return None
    asked = _asked(benchmark, request)
    differing = sorted(key for key in asked if record["request"].get(key) != asked[key])
    if differing:
        was, now = (
            {key: found.get(key) for key in differing} for found in (record["request"], asked)
        )
        raise StageError(
            f"{folder}: was run with {was}, now {now} is asked for; give another --out"
        )
    return _read(folder, record)[benchmark.name]


def _asked(benchmark: Benchmark, request: Request) -> dict[str, Any]:
    """The request as JSON, without a judge where none is asked."""
    asked = asdict(request) | {"benchmark": benchmark.name}
    if not benchmark.judge:
        asked["judge"] = None
    return json.loads(json.dumps(asked))


def _run(benchmark: Benchmark, request: Request, place: Place, folder: Path) -> Score:
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while (output := folder / f"output-{number}").exists():
        number += 1
    output.mkdir()
    output = output.resolve()
    if request.harness == "vlmevalkit":
        text = json.dumps(kit_settings(benchmark, request), indent=1)
        atomic_write_text(output / KIT_SETTINGS, text)
    command = command_of(benchmark, request, place.python, output, place.processes)
    variables = {**place.variables, **variables_of(benchmark, request, place.variables)}
    secrets = [variables[name] for name in _SECRETS if len(variables.get(name, "")) > 4]
    record = {
        "schema": SCHEMA, "state": "running", "request": _asked(benchmark, request),
        "command": command, "installed": dict(place.installed), "output": output.name,
        "start": time.time(),
    }  # fmt: skip
    _write(folder, record)
    # lmms-eval reads a .env in its working folder: an empty one of its own, nobody's settings.
    work = place.checkout if request.harness == "vlmevalkit" else output
    code, tail, unjudged = _spawn(
        command, variables, work or output, folder / LOG, secrets, _UNJUDGED[request.harness]
    )  # fmt: skip
    if request.harness == "vlmevalkit":
        _blot(output, secrets)
    record |= {"seconds": round(time.time() - record["start"], 1), "exit_code": code}
    record["unjudged_lines"] = unjudged
    try:
        if code != 0:
            raise StageError(f"{benchmark.name}: the harness ended with exit code {code}")
        if unjudged and request.harness == "vlmevalkit" and benchmark.judge:
            raise StageError(f"{benchmark.name}: VLMEvalKit went on without its judge")
        # lmms-eval ends with exit code 0 whatever happened: what it wrote is what counts.
        found = _read(folder, record)
        if benchmark.name not in found:
            raise DataError(f"{output}: holds no score of {benchmark.name}")
    except MastersError as error:
        _write(folder, record | {"state": "failed", "error": str(error)})
        shown = "\n".join(f"    {line}" for line in tail) or "    (nothing was printed)"
        raise StageError(f"{error}\n  the end of {folder / LOG}:\n{shown}") from None
    score = found[benchmark.name]
    if score.partial and request.limit is None:
        record["note"] = "the harness asked only some of the questions"
    _write(folder, record | {"state": "done", "value": score.value})
    return score


def _spawn(
    command: Sequence[str],
    variables: Mapping[str, str],
    work: Path,
    log: Path,
    secrets: Sequence[str],
    unjudged: str,
) -> tuple[int, list[str], int]:
    """Runs the command to its end.

    Args:
        secrets: are blotted out of what it prints (VLMEvalKit prints its judge's key).
        unjudged: is counted in what it prints.

    Returns:
        The exit code, the last lines, and the count.
    """
    tail: deque[str] = deque(maxlen=_TAIL)
    count = 0
    try:
        process = subprocess.Popen(
            command, cwd=work, env=dict(variables), text=True, errors="replace",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return 127, [str(error)], 0
    try:
        with open(log, "w", encoding="utf-8") as file:
            assert process.stdout is not None
            for line in process.stdout:
                line = _COLOUR.sub("", _blotted(line, secrets))
                file.write(line)
                file.flush()
                count += unjudged in line
                if line.strip():
                    tail.append(line.rstrip())
        return process.wait(), list(tail), count
    except BaseException:
        os.killpg(process.pid, signal.SIGTERM)  # its own session: workers of the harness end too
        process.wait()
        raise


def _blotted(words: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        words = words.replace(secret, "[key]")
    return words


def _blot(output: Path, secrets: Sequence[str]) -> None:
    """VLMEvalKit writes its judge's key into logs of its own too."""
    for path in output.rglob("*.log"):
        words = path.read_text(encoding="utf-8", errors="replace")
        if (clean := _blotted(words, secrets)) != words:
            path.write_text(clean, encoding="utf-8")


def _read(folder: Path, record: Mapping[str, Any]) -> dict[str, Score]:
    request = record["request"]
    output = folder / str(record["output"])
    if request["harness"] == "vlmevalkit":
        return read_kit_output(output, version=request["version"])
    judge = (request.get("judge") or {}).get("name")
    scores = read_lmms_output(output, judge=judge, version=request["version"])
    name = request["benchmark"]
    if name in scores and scores[name].judge_failed is None:
        # MMBench's log does not tell, but its client prints a line at each of three attempts.
        failed = math.ceil(record.get("unjudged_lines", 0) / 3)
        scores[name] = replace(scores[name], judge_failed=failed)
    return scores


def _record(folder: Path) -> dict[str, Any] | None:
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: is no whole JSON ({error}); move {folder} away") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "request" not in record:
        raise DataError(
            f"{path}: is no record of schema {SCHEMA}; expected what masters benchmark run writes"
        )
    return record


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    atomic_write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
