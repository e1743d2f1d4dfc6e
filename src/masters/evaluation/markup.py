"""Small pieces of the report page: escaped text, numbers in words, figures, interval bars."""

from __future__ import annotations

import html
from collections.abc import Sequence

from masters.evaluation.examples import data_uri
from masters.shown import shown

LONGEST_ANSWER = 400
"""Characters of a model's answer shown before it is cut."""


def text(value: object) -> str:
    """``value`` escaped for HTML text and attributes; control characters become visible.

    Answers are whatever a model wrote: markup, control characters, marks that turn the reading
    direction. Callers put them inside ``<bdi>``.
    """
    return html.escape(shown(str(value)), quote=True)


def answer(value: object) -> str:
    """A model's answer as escaped, isolated text, cut after ``LONGEST_ANSWER`` characters."""
    words = str(value)
    if not words.strip():
        return '<em class="soft">nothing</em>'
    cut = f" … ({len(words):,} characters)" if len(words) > LONGEST_ANSWER else ""
    return f"<bdi>{text(words[:LONGEST_ANSWER])}</bdi>{cut}"


def parameters(count: int) -> str:
    """A parameter count in short: 52 k, 0.24 M, 2.1 B, 32.8 B."""
    for limit, divisor, unit in ((95_000, 1e3, "k"), (950_000_000, 1e6, "M")):
        if count < limit:
            return f"{_short(count / divisor)} {unit}"
    return f"{_short(count / 1e9)} B"


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:d} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def percent(value: float) -> str:
    """A share in 0..1 as a percentage with one decimal."""
    return f"{100 * value:.1f}\N{NO-BREAK SPACE}%"


def points(value: float) -> str:
    """A signed difference of shares in percentage points."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float, high: float) -> str:
    """An interval of shares in per cent."""
    return f"{100 * low:.1f} to {100 * high:.1f}".replace("-", "\N{MINUS SIGN}")


def section(title: str, *parts: str) -> str:
    """A titled section of the page."""
    return f"<section>\n<h2>{text(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(words: str, kind: str = "") -> str:
    """A paragraph of already escaped words."""
    return f'<p class="{kind}">{words}</p>' if kind else f"<p>{words}</p>"


def figure(png: bytes, title: str, caption: str = "", *, wide: bool = False) -> str:
    """A picture inside the page on its card, titled above and explained below."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f"<figure{' class=wide' if wide else ''}><strong>{text(title)}</strong>"
        f'<img src="{data_uri(png)}" alt="{text(f"{title}. {caption}")}">{below}</figure>'
    )


def interval_bar(
    value: float, low: float, high: float, scale: tuple[float, float], guides: Sequence[float] = ()
) -> str:
    """An interval with its middle on a scale shared by a table's rows; guides are dashed lines."""
    left, right = scale

    def at(number: float) -> float:
        return 100 * min(1.0, max(0.0, (number - left) / (right - left)))

    lines = "".join(f'<u style="left:{at(guide):.2f}%"></u>' for guide in guides)
    width = max(0.6, at(high) - at(low))
    band = f'<i style="left:{at(low):.2f}%;width:{width:.2f}%"></i>'
    return f'<div class="bar">{lines}{band}<b style="left:{at(value):.2f}%"></b></div>'


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 1 else f"{number:.1f}" if number < 100 else f"{number:.0f}"
