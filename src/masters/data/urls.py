"""Images named by URL, fetched once into the cache folder: only for sources that allow it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path

from masters.data.bad_rows import BadRowError
from masters.data.cache_folder import cache_folder
from masters.data.decode import ImageLimits, check_size

_SILENCE_S = 20.0
_WHOLE_S = 60.0


def local_copy(url: str) -> Path:
    """Where a URL's content is kept."""
    name = hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()
    return cache_folder() / "urls" / name[:2] / name


def fetch(url: str, limits: ImageLimits) -> None:
    """Fetches a URL into ``local_copy`` unless it is there.

    Raises:
        BadRowError: it cannot be had within a minute, or is over the limit.
    """
    path = local_copy(url)
    if path.is_file():
        return
    try:
        content = _content(url, limits.bytes)
    except (OSError, HTTPException, ValueError) as error:
        raise BadRowError(
            "image not fetched",
            got=f"image {url!r}, which cannot be fetched ({error})",
            expected="an image within a minute",
            remedy="Correct the URL or remove the row",
        ) from error
    check_size(len(content), url, limits)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    os.replace(partial, path)


def _content(url: str, at_most: int) -> bytes:
    """What a URL gives, cut one byte behind the limit."""
    opener = urllib.request.OpenerDirector()
    # Not the usual opener: that one would follow to FTP, and read files.
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    content, end = b"", time.monotonic() + _WHOLE_S
    with opener.open(url, timeout=_SILENCE_S) as answer:
        while len(content) <= at_most and (block := answer.read1(1 << 16)):
            content += block
            if time.monotonic() > end:
                raise TimeoutError(f"not whole after {_WHOLE_S:.0f} s")
        if len(content) <= at_most and answer.length:
            raise ValueError(f"it ends {answer.length:,} bytes early")
    return content[: at_most + 1]
