"""Writes a suite's results, and the pages over all suites whose results lie in the folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from masters.ablation.pages import MARK, claim_page, summary_table
from masters.ablation.plots import differences
from masters.ablation.results import MADE_BY, as_text, read_suites
from masters.ablation.verdict import Finding, findings
from masters.artifacts import atomic_write_bytes, atomic_write_text
from masters.errors import StageError
from masters.evaluation.readings import Row

SUMMARY = "summary"


def check_place(folder: Path, name: str) -> None:
    """Refuses a suite whose results would take the place of something else.

    Raises:
        StageError: there is a file of that name that no suite made.
    """
    path = folder / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        ours = isinstance(content, dict) and content.get("made_by") == MADE_BY
    except FileNotFoundError:
        ours = name != SUMMARY
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise StageError(f"{path}: no suite's results go there. Give the suite's file another name")


def write_results(folder: Path, results: Row) -> list[Path]:
    """Writes ``<suite>.json``, then what follows from all suites there; returns what was written.

    The same results give the same bytes. A README beside them is left as it is.
    """
    check_place(folder, results["suite"])
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / f"{results['suite']}.json", as_text(results))
    suites = {suite["suite"]: suite for suite in read_suites(folder)}
    by_claim: dict[str, list[Finding]] = {}
    for suite in suites.values():
        for one in findings(suite):
            by_claim.setdefault(one.claim["id"], []).append(one)
    found = [one for name in sorted(by_claim) for one in by_claim[name]]
    files = pages(by_claim, suites)
    files["table.md"] = summary_table(found).encode()
    files[f"{SUMMARY}.json"] = _summary(found).encode()
    for name, content in files.items():
        atomic_write_bytes(folder / name, content)
    _remove_others(folder, set(by_claim))
    return [folder / name for name in (f"{results['suite']}.json", *files)]


def pages(by_claim: Mapping[str, Sequence[Finding]], suites: Mapping[str, Row]) -> dict[str, bytes]:
    """File name -> content of every claim's page and picture."""
    files: dict[str, bytes] = {}
    for name, found in sorted(by_claim.items()):
        several = len({one.suite for one in found}) > 1
        drawn = differences(
            {f"{one.data} ({one.suite})" if several else one.data: one for one in found}
        )
        picture = f"claim_{name}.png"
        if drawn is not None:
            files[picture] = drawn
        page = claim_page(found, suites, None if drawn is None else picture)
        files[f"claim_{name}.md"] = page.encode()
    return files


def _summary(found: Sequence[Finding]) -> str:
    rows = [one.as_json() for one in found]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _remove_others(folder: Path, claims: set[str]) -> None:
    """Pages of claims that no suite makes any more; never one that a person wrote."""
    for page in folder.glob("claim_*.md"):
        if page.stem.removeprefix("claim_") in claims:
            continue
        if page.read_text(encoding="utf-8").startswith(MARK):
            page.unlink()
            page.with_suffix(".png").unlink(missing_ok=True)
