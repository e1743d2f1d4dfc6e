"""The server of a recipe, under the name that it has for a model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from masters.errors import StageError
from masters.recipe import Runtime

if TYPE_CHECKING:
    from masters.serving import Server


def open_server(runtime: Runtime, name: str, *, does: str) -> Server:
    """``runtime.server`` asked for the model of that name, with the key from the environment.

    Args:
        does: what it is there for, for the error.

    Raises:
        StageError: the recipe has no address.
    """
    from masters.serving import Server

    address = runtime.server
    if address is None:
        raise StageError(
            f"a server {does}, but runtime.server is null; expected its address: --set "
            "runtime.server.url=http://localhost:8000/v1"
        )
    return Server(
        url=address.url,
        model=name,
        key=os.environ.get(address.key_variable) or None,
        concurrency=address.concurrency,
        timeout=address.timeout,
        attempts=address.attempts,
    )
