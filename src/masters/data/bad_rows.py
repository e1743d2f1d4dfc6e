"""What is wrong with a row of a data file, and how that is said."""

from __future__ import annotations


class BadRowError(Exception):
    """A row that cannot be used.

    Args:
        reason: what it is counted under when it is skipped, e.g. "empty answer".
        got: what was found.
        expected: what should have been there.
        remedy: what to do, without a full stop.
    """

    def __init__(self, reason: str, *, got: str, expected: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.got, self.expected, self.remedy = reason, got, expected, remedy


def message(place: str, identity: object, bad: BadRowError, remedy: str = "") -> str:
    """Where the row is, which question, what was got, what was expected and what to do."""
    return (
        f"{place}: question {identity!r}: {bad.got}; expected {bad.expected}. "
        f"{remedy or bad.remedy + '.'}"
    )
