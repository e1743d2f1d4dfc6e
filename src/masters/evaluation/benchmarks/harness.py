"""The two harnesses: what is pinned, the command of one benchmark, the environment it runs in."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masters.errors import StageError
from masters.evaluation.benchmarks.catalogue import Benchmark

HarnessName = Literal["lmms-eval", "vlmevalkit"]
LMMS_EVAL = "0.7.3"
"""The release of lmms-eval whose tasks, keys and layout are known here."""
VLMEVALKIT = "e8e78f05f3080fe28154f2130321f17951c3be94"
"""The commit of VLMEvalKit whose data sets, keys and layout are known here."""

_ADAPTERS: dict[str, dict[HarnessName, str]] = {
    "qwen2_5_vl": {"lmms-eval": "qwen2_5_vl", "vlmevalkit": "Qwen2VLChat"},
    "qwen3_vl": {"lmms-eval": "qwen3_vl", "vlmevalkit": "Qwen3VLChat"},
    "internvl": {"lmms-eval": "internvl_hf"},
}
"""``model_type`` of config.json -> the class of the harness that asks such a model."""
KIT_SETTINGS = "kit.json"
"""VLMEvalKit's ``--config``, in its output folder."""
_BASE = "https://api.openai.com/v1"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An LLM judge behind an OpenAI-compatible endpoint.

    Args:
        name: the served model, with its date where it has one: gpt-4o-2024-11-20, never gpt-4o.
        url: the endpoint's base, up to /v1.
        key_variable: the environment variable that holds the key. The key itself is never kept.
    """

    name: str
    url: str = _BASE
    key_variable: str = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class Request:
    """How a model is put through a harness; what a benchmark's record keeps and a rerun compares.

    Args:
        model: a folder or a hub name.
        adapter: the class of the harness that asks it.
        model_args: more of its arguments, as key=value.
        batch: lmms-eval's ``--batch_size``.
        limit: questions of each task, for a smoke run; None: all.
        judge: None where no benchmark needs one.
        version: lmms-eval's release or VLMEvalKit's commit.
    """

    harness: HarnessName = "lmms-eval"
    version: str
    model: str
    adapter: str
    model_args: tuple[str, ...] = ()
    batch: int = 1
    limit: int | None = None
    judge: Judge | None = None


def adapter_of(model: str, harness: HarnessName, given: str | None) -> str:
    """The harness's class for the model: the given one, or by ``model_type`` of its config.json.

    Raises:
        StageError: it cannot be told.
    """
    if given:
        return given
    config = Path(model) / "config.json"
    kind = "unknown"
    if config.is_file():
        kind = str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    found = _ADAPTERS.get(kind, {}).get(harness)
    if found is None:
        raise StageError(
            f"{model}: which class of {harness} asks a model of type {kind!r} is not known here; "
            f"expected a folder of type {', '.join(_ADAPTERS)}, or --adapter NAME (lmms-eval lists "
            "its names with: python -m lmms_eval models)"
        )
    return found


def command_of(
    benchmark: Benchmark, request: Request, python: str, output: Path, processes: int = 1
) -> list[str]:
    """The argument list that runs one benchmark.

    Args:
        python: the interpreter of the harness's own environment.
        output: the folder that the harness writes into; VLMEvalKit's settings are put there first.
        processes: GPUs that share the questions.

    Raises:
        StageError: lmms-eval would take the model's path for several arguments.
    """
    if request.harness == "vlmevalkit":
        start = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
        command = [python, *(start if processes > 1 else []), "run.py"]
        command += ["--config", str(output / KIT_SETTINGS), "--work-dir", str(output)]
        return command + ["--judge", request.judge.name if request.judge else "exact_matching"]
    if "," in request.model or "'" in request.model or '"' in request.model:
        raise StageError(
            f"{request.model}: has a comma or a quote in it, at which lmms-eval would cut it; "
            "give a folder without, such as a link to it"
        )
    start = ["-m", "accelerate.commands.launch", f"--num_processes={processes}"]
    command = [python, *(start if processes > 1 else []), "-m", "lmms_eval"]
    command += ["--model", request.adapter]
    command += ["--model_args", ",".join([f"pretrained={request.model}", *request.model_args])]
    command += ["--tasks", ",".join(benchmark.tasks), "--batch_size", str(request.batch)]
    command += ["--output_path", str(output), "--log_samples", "--verbosity", "INFO"]
    return command + (["--limit", str(request.limit)] if request.limit else [])


def kit_settings(benchmark: Benchmark, request: Request) -> dict[str, object]:
    """VLMEvalKit's ``--config``: the model under our name for it, and the data sets."""
    model: dict[str, object] = {"class": request.adapter, "model_path": request.model}
    for pair in request.model_args:
        key, value = pair.split("=", 1)
        try:
            model[key] = json.loads(value)
        except ValueError:
            model[key] = value
    data = {name: {"class": benchmark.kit_class, "dataset": name} for name in benchmark.kit}
    return {"model": {"model": model}, "data": data}


def variables_of(
    benchmark: Benchmark, request: Request, environment: Mapping[str, str]
) -> dict[str, str]:
    """What the judge's settings add to the environment, the key among it.

    lmms-eval reads one variable in two ways: MMBench's own client takes OPENAI_API_URL for the
    whole address, the client that MathVista and MM-Vet share for the base of it. So each benchmark
    is a process of its own.

    Raises:
        StageError: the key's variable is not set. An endpoint of one's own without a key is fine.
    """
    judge = request.judge
    if judge is None or not benchmark.judge:
        return {}
    key = environment.get(judge.key_variable, "")
    if not key and judge.url == _BASE:
        raise StageError(
            f"{judge.key_variable} is not set; expected the key of {judge.url} for the judge "
            f"{judge.name}. Export it, or name another variable with --judge-key-variable."
        )
    base = judge.url.rstrip("/")
    whole = f"{base}/chat/completions"
    if request.harness == "vlmevalkit":
        return {"OPENAI_API_KEY": key or "none", "OPENAI_API_BASE": whole}
    return {
        "API_TYPE": "openai",
        "MODEL_VERSION": judge.name,
        "OPENAI_API_KEY": key or "none",
        "OPENAI_API_URL": whole if benchmark.name.startswith("mmbench") else base,
    }


def check_judge(benchmarks: Sequence[Benchmark], request: Request) -> None:
    """That a judge is named where one is needed: harnesses go on without one and count zeros.

    Raises:
        StageError: it is not.
    """
    needing = [benchmark.name for benchmark in benchmarks if benchmark.judge]
    if needing and request.judge is None:
        raise StageError(
            f"{', '.join(needing)} need an LLM judge; expected --judge NAME (with its date, such "
            "as gpt-4o-2024-11-20) and the key in OPENAI_API_KEY, or --judge-url for an endpoint "
            "of your own. Or leave them out of --benchmarks."
        )
