"""Whether a server is there and serves the model that is meant."""

from __future__ import annotations

from masters.errors import ServerError, ServerGoneError
from masters.serving.chat import body, read_json, same_model
from masters.serving.faults import Fault
from masters.serving.session import SMALL, Session


async def check(session: Session) -> tuple[str, ...]:
    """The names that the server lists, after the right model answered a small question.

    Raises:
        ServerGoneError: it cannot be reached.
        ServerError: it refuses, or does not serve the model.
    """
    try:
        answer = await session.attempt(SMALL, body(SMALL, session.model))
    except ServerGoneError:
        raise
    except ServerError as error:
        raise ServerError(f"{error}. {_serves(await _listed(session))}") from None
    if isinstance(answer, Fault):
        raise session.gone(answer)
    listed = await _listed(session)
    if answer.error:
        fault = Fault("fatal", f"a small question got no answer: {answer.error}")
        raise ServerError(f"{session.refusal(fault)}. {_serves(listed)}")
    # Some servers answer to any name and repeat it; one that adds a revision has looked it up.
    repeated = not answer.model.startswith(f"{session.model}@")
    if listed and repeated and not any(same_model(name, session.model) for name in listed):
        fault = Fault("fatal", "it answers to that name and does not list it")
        raise ServerError(f"{session.refusal(fault)}. {_serves(listed)}")
    return listed


def _serves(listed: tuple[str, ...]) -> str:
    if not listed:
        return "It lists no models"
    names = ", ".join(map(repr, listed[:20]))
    more = f" and {len(listed) - 20} more" if len(listed) > 20 else ""
    return f"It serves {names}{more}"


async def _listed(session: Session) -> tuple[str, ...]:
    """The listed names; none if the server has no such list, which the interface allows."""
    for failures in range(1, session.attempts + 1):
        try:
            entries = read_json(await session.wire.models()).get("data")
        except Fault as fault:
            if fault.kind in ("own", "fatal"):
                break
            await session.backoff.sleep(session.backoff.pause(failures))
            continue
        rows = entries if isinstance(entries, list) else []
        names = [row.get("id") for row in rows if isinstance(row, dict)]
        return tuple(name for name in names if isinstance(name, str))
    return ()
