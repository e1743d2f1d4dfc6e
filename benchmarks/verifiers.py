"""Our rules against the scoring functions of lmms-eval and VLMEvalKit, on the same responses.

500 seeded cases a rule (``verifying/cases.py``: questions, gold answers and responses in the forms
models write), each scored by our rule and by the toolkit's own function, imported as it is. Every
difference is counted under the form of its response, and has to have an explanation
(``verifying/explanations.py``): one that has none ends with status 1.

    pip download lmms-eval==0.7.3 --no-deps -d kits && unzip -q kits/lmms_eval-*.whl -d kits/lmms
    git clone https://github.com/open-compass/VLMEvalKit kits/vlm
    python benchmarks/verifiers.py --lmms-eval kits/lmms --vlmeval kits/vlm

A toolkit that is not there, or does not import, is skipped and the reason printed. None of their
dependencies is needed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, cast

from verifying.cases import Case, cases
from verifying.explanations import explanation
from verifying.toolkits import Theirs, toolkits, versions

from masters.rewards.verifiers import Rule, verify

#: Two scores that differ by less are the same: both compute in floats, in another order.
SAME = 1e-9


def compare(theirs: Theirs, count: int, seed: int) -> dict[str, Any]:
    """The agreement of one function with our rule, and its differences by the responses' form."""
    row: dict[str, Any] = {"theirs": theirs.name, "rule": theirs.rule, "cases": count}
    if theirs.score is None:
        return row | {"skipped": theirs.reason}
    differences: dict[str, list[tuple[Case, float, float]]] = defaultdict(list)
    for case in cases(theirs.rule, count, seed):
        random.seed(0)  # MMMU's parser guesses where it finds no letter
        ours = verify(cast("Rule", theirs.rule), case.response, case.question).reward
        other = theirs.score(case.response, case.question, case.golds)
        if abs(ours - other) > SAME:
            differences[case.form].append((case, ours, other))
    found = [_difference(theirs, form, rows) for form, rows in sorted(differences.items())]
    found.sort(key=lambda one: -one["count"])
    return row | {"agree": count - sum(one["count"] for one in found), "differences": found}


def _difference(theirs: Theirs, form: str, rows: list[tuple[Case, float, float]]) -> dict[str, Any]:
    case, ours, other = rows[0]
    return {
        "form": form,
        "count": len(rows),
        "ours_higher": sum(one > two for _, one, two in rows),
        "response": case.response,
        "golds": list(dict.fromkeys(case.golds)),
        "ours": round(ours, 3),
        "other": round(other, 3),
        "why": explanation(theirs.name, form),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The tables of docs/verifiers.md."""
    lines = ["| their function | our rule | the same | of |", "| --- | --- | --- | --- |"]
    for row in rows:
        agree = row.get("agree", "skipped: " + row.get("skipped", ""))
        lines.append(f"| {row['theirs']} | `{row['rule']}` | {agree} | {row['cases']} |")
    for row in rows:
        # Functions that differ from ours in the same cases share a table.
        alike = [one for one in rows if one.get("differences") == row.get("differences")]
        if not row.get("differences") or row is not alike[0]:
            continue
        lines += ["", f"**{' and '.join(one['theirs'] for one in alike)}**", ""]
        lines += ["| response is | times | for example | gold | ours | theirs | why |"]
        lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
        for one in row["differences"]:
            golds = ", ".join(one["golds"][:3])
            lines.append(
                f"| {one['form']} | {one['count']} | {_cell(one['response'])} | {_cell(golds)} | "
                f"{one['ours']:g} | {one['other']:g} | {one['why'] or 'NOT EXPLAINED'} |"
            )
    return "\n".join(lines)


def _cell(text: str) -> str:
    short = text if len(text) <= 40 else text[:37] + "..."
    return "`" + short.replace("\n", "\u23ce").replace("|", "\\|") + "`"


def main() -> int:
    """Compares, prints, and says by its status whether every difference is explained."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lmms-eval", type=Path, help="folder that holds lmms_eval/")
    parser.add_argument("--vlmeval", type=Path, help="folder that holds vlmeval/")
    parser.add_argument("--cases", type=int, default=500, help="per function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    rows = [
        compare(theirs, options.cases, options.seed)
        for theirs in toolkits(options.lmms_eval, options.vlmeval)
    ]
    said = versions(options.lmms_eval, options.vlmeval)
    result = {"versions": said, "seed": options.seed, "comparisons": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(markdown(rows))
    unexplained = [
        f"{row['theirs']}: {one['form']}"
        for row in rows
        for one in row.get("differences", [])
        if not one["why"]
    ]
    if unexplained:
        print("\nnot explained: " + "; ".join(unexplained), file=sys.stderr)
    return 1 if unexplained else 0


if __name__ == "__main__":
    raise SystemExit(main())
