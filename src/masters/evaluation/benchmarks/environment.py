"""What is installed where a harness runs: asked of its interpreter, without importing anything."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from masters.errors import StageError
from masters.evaluation.benchmarks.harness import LMMS_EVAL, VLMEVALKIT, HarnessName

_ASK = """
import json, platform
from importlib.metadata import PackageNotFoundError, distribution
found = {"python": platform.python_version()}
for name in ("lmms_eval", "torch", "transformers", "datasets", "accelerate", "openai"):
    try:
        made = distribution(name)
    except PackageNotFoundError:
        continue
    found[name] = made.version
    if name == "lmms_eval":
        source = json.loads(made.read_text("direct_url.json") or "{}")
        found["lmms_eval_commit"] = source.get("vcs_info", {}).get("commit_id", "")
print(json.dumps(found))
"""
_PATIENCE = 60
"""Seconds."""


def installed(python: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Versions by package in the environment of an interpreter.

    lmms-eval's ``lmms_eval_commit`` is "" where it was installed from a package index.

    Raises:
        StageError: the interpreter cannot be started or answers something else.
    """
    try:
        done = subprocess.run(
            [python, "-c", _ASK],
            env=dict(variables), capture_output=True, text=True, timeout=_PATIENCE, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        told = getattr(error, "stderr", "") or str(error)
        raise StageError(
            f"--python {python}: could not be asked what it has installed ({told.strip()[-300:]}); "
            "expected the interpreter of the harness's environment, such as lmms/bin/python"
        ) from None
    return {str(key): str(value) for key, value in found.items()}


def harness_version(
    harness: HarnessName,
    python: str,
    found: Mapping[str, str],
    checkout: Path | None,
    *,
    any_version: bool,
) -> str:
    """The release of lmms-eval or the commit of VLMEvalKit, held against the pinned one.

    Args:
        found: what is installed.
        checkout: the folder with VLMEvalKit's run.py.
        any_version: take another one; it is recorded.

    Raises:
        StageError: the harness is not there, or is another version.
    """
    if harness == "lmms-eval":
        version, pinned = found.get("lmms_eval", ""), LMMS_EVAL
        if not version:
            raise StageError(
                f"--python {python}: has no lmms-eval; expected an environment of its own with it: "
                f"python -m venv lmms && lmms/bin/pip install lmms-eval=={LMMS_EVAL}"
            )
        if found.get("lmms_eval_commit"):
            version += f"+{found['lmms_eval_commit'][:12]}"
    else:
        version, pinned = _commit(checkout), VLMEVALKIT
    if version != pinned and not any_version:
        raise StageError(
            f"{harness} is {version}; expected {pinned}, whose tasks and layout are known here. "
            "Install that, or say --any-version: the version found is recorded."
        )
    return version


def _commit(checkout: Path | None) -> str:
    if checkout is None or not (checkout / "run.py").is_file():
        raise StageError(
            f"--checkout {checkout}: holds no run.py; expected a clone of VLMEvalKit at "
            f"{VLMEVALKIT}"
        )
    done = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    if done.returncode:
        raise StageError(
            f"--checkout {checkout}: is no git clone ({done.stderr.strip()}); expected one, for "
            "its commit is recorded"
        )
    return done.stdout.strip()
