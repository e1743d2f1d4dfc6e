"""A claim's page and the table of all claims, in Markdown, from the results of every suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from masters.ablation.verdict import Finding
from masters.ablation.views import gain_text, interval_text, percent, seeds_text, tuned_text
from masters.evaluation.readings import Row

MARK = "<!-- written by masters ablate: change the suite, not this page -->"
RULE = (
    "Differences are in points, paired by seed, with Student's 95 % t interval over seeds. Where a "
    "gain is claimed, it *held* (yes) if the interval lies above 0, and did not (no) if it lies "
    "below 0 or wholly within one point of 0. Where no difference is claimed: yes if the interval "
    "lies wholly within one point of 0, no if it leaves out 0 and reaches further. Else unclear."
)
Suites = Mapping[str, Row]
"""Results by the suite's name."""


def claim_page(found: Sequence[Finding], suites: Suites, picture: str | None) -> str:
    """The page of one claim.

    Args:
        found: what each suite and data set say of it; at least one.
        picture: the file beside the page.
    """
    claim = found[0].claim
    parts = [
        MARK,
        f"# {claim['id']}: {claim['says']}",
        f"Claimed in: {claim['source'] or 'nowhere named'}. Expected: {_expected(claim)}.",
        _table(
            ["data", "difference", "95 % interval", "seeds", "held"],
            [
                [_place(one, found), *interval_text(one), seeds_text(one), f"**{one.held}**"]
                for one in found
            ],
        ),
        *([f"![Differences by seed, their mean and its interval]({picture})"] if picture else []),
        *_readings(found),
        RULE,
        *(part for one in found for part in _section(one, suites[one.suite], found)),
    ]
    return "\n\n".join(parts) + "\n"


def summary_table(found: Sequence[Finding]) -> str:
    """All claims, a line for each suite and data set."""
    several = len({one.suite for one in found}) > 1
    headings = ["claim", "source", *(["suite"] if several else []), "data"]
    rows = [
        [
            f"[{one.claim['id']}](claim_{one.claim['id']}.md): {one.claim['says']}",
            one.claim["source"],
            *([one.suite] if several else []),
            one.data,
            *interval_text(one),
            seeds_text(one),
            f"**{one.held}**",
        ]
        for one in found
    ]
    table = _table([*headings, "difference", "95 % interval", "seeds", "held"], rows)
    return "\n\n".join([MARK, "# What held", RULE, table]) + "\n"


def _section(one: Finding, suite: Row, found: Sequence[Finding]) -> list[str]:
    """What one suite measured on one data set."""
    claim, runs = one.claim, _runs(one, suite)
    heading = found[0].claim
    said = [f"Here: {claim['says']} Expected: {_expected(claim)}."]
    differs = any(claim[key] != heading[key] for key in ("says", "first", "second", "expects"))
    return [
        f"## {_place(one, found)}",
        f"```bash\n{one.command}\n```",
        suite["about"],
        *(said if differs else []),
        *_notes(one, suite),
        *(_arms(one, suite, runs) if one.differences else []),
        *(_by_seed(one, runs) if one.differences else []),
        *_diagnostics(claim["diagnostics"], runs),
    ]


def _runs(one: Finding, suite: Row) -> dict[str, list[Row]]:
    """Arm -> its runs under the seeds that are complete, in their order."""
    by_seed = {(run["arm"], run["seed"]): run for run in suite["runs"] if run["data"] == one.data}
    return {arm: [by_seed[arm, seed] for seed in one.differences] for arm in _claim_arms(one)}


def _claim_arms(one: Finding) -> list[str]:
    return [*one.claim["first"], *one.claim["second"]]


def _notes(one: Finding, suite: Row) -> list[str]:
    """What a reader must know of how the numbers came about."""
    notes = []
    if not suite["models_vary"][one.data]:
        why = "are the same under every seed" if "models" not in suite["vary"] else (
            "are checkpoints, which no seed changes"
        )  # fmt: skip
        notes.append(f"Only the run's seed varies: the models {why}.")
    elif "run" not in suite["vary"]:
        notes.append("Only the models' seeds vary; the run's seed is the same.")
    else:
        notes.append("A seed changes both the run and the models (their weights and order).")
    if one.lacking:
        absent = [
            f"{row['arm']}, seed {row['seed']} ({row['why']})"
            for row in suite["missing"]
            if row["data"] == one.data and row["arm"] in _claim_arms(one)
        ]
        notes.append(f"**Missing**: {'; '.join(absent)}. Only seeds complete in every arm count.")
    if one.claim["unequal"]:
        notes.append("**The arms do not train alike**: see their steps and questions.")
    tune = suite["tune"]
    if tune is not None:
        values = ", ".join(f"{value:g}" for value in tune["values"])
        models = "" if tune["models_of"] is None else f", the models of seed {tune['models_of']}"
        notes.append(
            f"`{tune['key']}` was tried at {values} for each arm (seed {tune['seed']}{models}); "
            "the last validation decided."
        )
    return ["\n".join(f"- {note}" for note in notes)]


def _arms(one: Finding, suite: Row, runs: Mapping[str, Sequence[Row]]) -> list[str]:
    tuned = suite["tune"] is not None
    headings = [
        "arm", "accuracy (%)", "95 % interval", "over start", *(["tuned"] if tuned else []),
        "validation (%)", "steps", "questions", "response tokens", "seconds",
    ]  # fmt: skip
    rows = []
    for arm, of_arm in runs.items():
        mean, bounds = percent([run["accuracy"] for run in of_arm])
        checks = [run["validation"] for run in of_arm if run["validation"] is not None]
        rows.append(
            [
                arm, mean, bounds, gain_text(of_arm),
                *([tuned_text(one.data, arm, suite)] if tuned else []), percent(checks)[0],
                *(_range([run[key] for run in of_arm]) for key in ("steps", "questions")),
                *(f"{fmean(run[key] for run in of_arm):,.0f}" for key in ("tokens", "seconds")),
            ]
        )  # fmt: skip
    return [_table(headings, rows), _around(runs)]


def _around(runs: Mapping[str, Sequence[Row]]) -> str:
    """The untouched student and the teachers, beside the arms: mean over seeds."""
    every = [run for of_arm in runs.values() for run in of_arm]
    starts = {run["seed"]: run["start"] for run in every}
    lines = [f"Start: {percent(list(starts.values()))[0]} %."]
    teachers: dict[str, dict[str, dict[int, float]]] = {}
    for run in every:
        for name, curve in run["teachers"].items():
            for ratio, accuracy in curve.items():
                teachers.setdefault(name, {}).setdefault(ratio, {})[run["seed"]] = accuracy
    for name, curve in teachers.items():
        told = ", ".join(
            f"{percent(list(by_seed.values()))[0]} % at ratio {ratio}"
            for ratio, by_seed in sorted(curve.items(), key=lambda item: float(item[0]))
        )
        lines.append(f"Teacher {name}: {told}.")
    return " ".join(lines)


def _by_seed(one: Finding, runs: Mapping[str, Sequence[Row]]) -> list[str]:
    rows = [
        [str(seed), *(f"{100 * runs[arm][i]['accuracy']:.1f}" for arm in runs), f"{points:+.1f}"]
        for i, (seed, points) in enumerate(one.differences.items())
    ]
    mean, bounds = interval_text(one)
    closing = f"Difference: {mean} points ({bounds}), {one.seeds} seeds: **{one.held}**."
    return [_table(["seed", *runs, "difference"], rows), closing]


def _diagnostics(keys: Sequence[str], runs: Mapping[str, Sequence[Row]]) -> list[str]:
    """The keys asked for, by arm: means over steps and seeds."""
    rows = []
    for key in keys:
        for arm, of_arm in runs.items():
            found = [run["diagnostics"][key] for run in of_arm if key in run["diagnostics"]]
            if found:
                thirds = [_mean([one["thirds"][i] for one in found]) for i in range(3)]
                most = f"{max(one['max'] for one in found):.4g}"
                rows.append([f"`{key}`", arm, _mean([o["mean"] for o in found]), *thirds, most,
                             _ratios([one.get("by_ratio", {}) for one in found])])  # fmt: skip
    headings = [
        "diagnostic", "arm", "mean", "first third", "second", "last", "most", "by masking ratio",
    ]  # fmt: skip
    return [_table(headings, rows)] if rows else []


def _ratios(found: Sequence[Mapping[str, float | None]]) -> str:
    ratios = dict.fromkeys(ratio for one in found for ratio in one)
    return ", ".join(f"{ratio}: {_mean([one.get(ratio) for one in found])}" for ratio in ratios)


def _readings(found: Sequence[Finding]) -> list[str]:
    """What was written by hand after looking, each once."""
    readings = list(dict.fromkeys(one.claim["reading"].strip() for one in found))
    written = [reading for reading in readings if reading]
    return written or ["*Nobody has written down yet what this means.*"]


def _expected(claim: Row) -> str:
    if len(claim["first"]) == 2:
        (a, b), (c, d) = claim["first"], claim["second"]
        text = f"`{d}` less `{c}`, against `{b}` less `{a}`"
    else:
        text = f"`{claim['second'][0]}` against `{claim['first'][0]}`"
    ends = {"up": "is higher", "down": "is lower", "equal": "differs by no more than a point"}
    return f"{text}, {ends[claim['expects']]}"


def _place(one: Finding, found: Sequence[Finding]) -> str:
    """The data set; with the suite where several speak of the claim."""
    several = len({other.suite for other in found}) > 1
    return f"{one.data} ({one.suite})" if several else one.data


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{fmean(known):.4g}" if known else "-"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |"
        for line in lines
    )
