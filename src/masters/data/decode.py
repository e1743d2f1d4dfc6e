"""Images from strangers: encoded bytes to upright RGB within limits, or refused with the reason."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masters.data.bad_rows import BadRowError

if TYPE_CHECKING:
    from PIL.Image import Image

#: What is decoded. Pillow knows more, among them formats that start other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """The largest image that is opened.

    Args:
        bytes: of the encoded file.
        pixels: width times height, known from the header before anything is decoded.
    """

    bytes: int = 64 * 2**20
    pixels: int = 64_000_000


def decode_image(data: bytes, name: str, limits: ImageLimits) -> Image:
    """The image as RGB, turned upright, transparency on white, the first frame of several.

    Args:
        data: the encoded file.
        name: what errors call it.

    Raises:
        BadRowError: it is over a limit, of another format, broken or cut short.
    """
    with _opened(data, name, limits) as image:
        image.load()
        return _rgb(_upright(image))


def check_image(data: bytes, name: str, limits: ImageLimits) -> None:
    """Raises what ``decode_image`` would, at less cost where the format allows it.

    PNG files are checked by their checksums; JPEG is decoded at an eighth of its size, since its
    header says nothing about a cut end.
    """
    with _opened(data, name, limits) as image:
        if image.format == "PNG":
            image.verify()
        else:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()


def check_size(size: int, name: str, limits: ImageLimits) -> None:
    """Raises BadRowError when an encoded image is empty or larger than the limit."""
    if size == 0:
        raise broken_image(name, ValueError("0 bytes"))
    if size > limits.bytes:
        raise BadRowError(
            "image too large",
            got=f"image {name} of {size:,} bytes",
            expected=f"at most {limits.bytes:,}",
            remedy="Shrink it, remove the row or raise `max_image_bytes`",
        )


def broken_image(name: str, error: Exception) -> BadRowError:
    """The bad row of an image that cannot be opened or decoded."""
    said = str(error) or type(error).__name__
    return BadRowError(
        "broken image",
        got=f"image {name}, which cannot be decoded ({said})",
        expected=f"a whole image file ({', '.join(FORMATS)})",
        remedy="Replace the file or remove the row",
    )


@contextmanager
def _opened(data: bytes, name: str, limits: ImageLimits) -> Iterator[Image]:
    """The image with its header read and nothing decoded yet; any failure within is a bad row."""
    from PIL import Image as PillowImage

    check_size(len(data), name, limits)
    try:
        with PillowImage.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise _too_many_pixels(name, f"{width:,} x {height:,}", limits)
            yield image
    except BadRowError:
        raise
    # Pillow's own guard, for sizes so large that it does not wait for ours.
    except PillowImage.DecompressionBombError as error:
        raise _too_many_pixels(name, str(error), limits) from error
    except PillowImage.UnidentifiedImageError as error:
        raise broken_image(name, ValueError("its first bytes are those of no such file")) from error
    # Its decoders raise many kinds (SyntaxError for a broken PNG among them).
    except Exception as error:
        raise broken_image(name, error) from error


def _too_many_pixels(name: str, got: str, limits: ImageLimits) -> BadRowError:
    return BadRowError(
        "too many pixels",
        got=f"image {name} of {got} pixels",
        expected=f"at most {limits.pixels:,} in all",
        remedy="Shrink it, remove the row or raise `max_image_pixels`",
    )


def _upright(image: Image) -> Image:
    """The image turned as its EXIF orientation says."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    # A camera's broken notes are no reason to lose its picture.
    except Exception:
        return image


def _rgb(image: Image) -> Image:
    from PIL import Image as PillowImage

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image)
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = PillowImage.new("RGBA", layered.size, "white")
        return PillowImage.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


def _from_deep_grey(image: Image) -> Image:
    """Grey of 16 bits as RGB of 8: Pillow itself would cut everything above 255 to white.

    Raises:
        ValueError: the values are no 16-bit ones, so what is black and what is white is unknown.
    """
    import numpy as np
    from PIL import Image as PillowImage

    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF or image.mode == "F":
        raise ValueError(f"pixels of mode {image.mode} without a known range")
    return PillowImage.fromarray((values // 257).astype(np.uint8)).convert("RGB")
