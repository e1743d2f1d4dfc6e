"""The tables that are printed, in Markdown."""

from __future__ import annotations

from typing import Any

Row = list[str]


def tables(result: dict[str, Any]) -> str:
    """All that was measured."""
    parts: list[str] = []
    if "steps" in result:
        parts += _steps(result["steps"])
    if "memory" in result:
        parts += _memory(result["memory"])
    if "growth" in result:
        parts += _growth(result["growth"])
    if "small" in result:
        parts += _small(result["small"])
    if "forms" in result:
        parts += _forms(result["forms"])
    machine = result["machine"]
    before, after = (machine[name][0] for name in ("load_before", "load_after"))
    parts.append(
        f"{machine['cores']} cores, {machine['threads']} thread(s), load {before:.1f} before and "
        f"{after:.1f} after, torch {machine['torch']}"
    )
    return "\n\n".join(parts)


def _table(head: Row, rows: list[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _times(values: list[float], digits: int = 2) -> str:
    middle, least, most = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({least} to {most})"


def _steps(steps: dict[str, Any]) -> list[str]:
    limits, parts, wholes, trl = [], [], [], []
    for name, shape in steps["shapes"].items():
        for form, values in shape["speedup"].items():
            limits.append([
                name, form, f"{shape['limit_tokens']:.2f}", f"{shape['limit_counted']:.2f}",
                _times(values), f"{100 * shape['share_of_limit'][form]:.0f} %",
            ])  # fmt: skip
        parts += [[name, part, _times(values, 3)] for part, values in shape["parts"].items()]
        for way, values in shape["step_seconds"].items():
            speed = shape["response_tokens_per_second"][way]
            busy = shape["mfu"].get(way)
            share = "" if busy is None else f"{100 * busy:.0f} %"
            wholes.append([name, way, _times(values), f"{speed:.0f}", share])
        for way, values in shape.get("trl_ratio", {}).items():
            trl.append([name, way, _times(values)])
    errors = {
        f"{name} {kind}": f"{value:.1e}"
        for name, shape in steps["shapes"].items()
        for kind, value in shape["errors"].items()
    }
    found = [
        "Forward and backward of the student, times faster than repeated prompts",
        _table(
            ["P:R", "form", "limit by tokens", "limit counted", "measured", "share of the limit"],
            limits,
        ),
        "Parts of a step, seconds",
        _table(["P:R", "part/form", "seconds"], parts),
        f"Whole steps (matmul peak {steps['matmul_gflops']:.0f} GFLOP/s)",
        _table(["P:R", "way", "seconds", "response tokens/s", "student's share of peak"], wholes),
        "Differences from repeated prompts: " + ", ".join(f"{k} {v}" for k, v in errors.items()),
    ]
    if trl:
        found += ["TRL's functions, times slower", _table(["P:R", "than", "measured"], trl)]
    return found


def _memory(memory: dict[str, Any]) -> list[str]:
    saved, peak = memory["saved_bytes"], memory["peak_bytes"]
    rows = [
        [
            form, f"{size / 1e6:.0f}", f"{saved['repeat'] / size:.1f}",
            "" if peak is None else f"{peak[form] / 1e6:.0f}",
            "" if peak is None else f"{peak['repeat'] / peak[form]:.1f}",
        ]
        for form, size in saved.items()
    ]  # fmt: skip
    head = ["form", "saved activations, MB", "times less", "peak, MB", "times less"]
    return ["Memory of the student's forward and backward at 16:1", _table(head, rows)]


def _growth(growth: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["varied"], str(row["value"]), *(f"{row['gflop'][n]:.0f}" for n in row["seconds"]),
            *(_times(values) for values in row["seconds"].values()),
            f"{row['limit_counted']:.2f}", _times(row["speedup"]),
            f"{100 * row['share_of_limit']:.0f} %",
        ]
        for row in growth
    ]  # fmt: skip
    head = ["varied", "value", "GFLOP repeat", "GFLOP attention", "repeat, s", "attention, s",
            "limit counted", "measured", "share of the limit"]  # fmt: skip
    return ["Growth of the student's part, from P 192, R 48, G 8, V 4096", _table(head, rows)]


def _small(small: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            str(row["distinct"]), str(row["row_tokens"]),
            *(_times(values, 0) for values in row["milliseconds"].values()), row["auto"],
        ]
        for row in small
    ]  # fmt: skip
    head = ["distinct responses", "longest row", "repeat, ms", "mask, ms", "attention, ms", "auto"]
    return ["The demo's step: 16 questions, live teacher", _table(head, rows)]


def _forms(forms: list[dict[str, Any]]) -> list[str]:
    rows = [
        [
            row["model"],
            str(row["row_tokens"]),
            *(_times([1e3 * s for s in values], 1) for values in row["seconds"].values()),
            _times(row["mask_over_attention"]),
        ]
        for row in forms
    ]
    head = ["model", "row, tokens", "mask, ms", "attention, ms", "mask / attention"]
    return ["Which packed form: the student's part by length of the row", _table(head, rows)]
