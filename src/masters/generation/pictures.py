"""A question's pictures as files for engines that read no tensors of ours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from masters.models.encode import fit_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

_FASTEST = 1


def png_files(images: Sequence[Image], max_pixels: int | None) -> list[bytes]:
    """The pictures as PNG, which loses nothing, scaled down where they have more pixels."""
    files = []
    for image in images:
        fitted = image if max_pixels is None else fit_pixels(image, max_pixels)
        written = io.BytesIO()
        fitted.save(written, "PNG", compress_level=_FASTEST)
        files.append(written.getvalue())
    return files
