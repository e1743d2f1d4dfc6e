"""Image files of a data set: found when it is opened, decoded when they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from masters.data.bad_rows import BadRowError

if TYPE_CHECKING:
    from PIL.Image import Image


class Images:
    """Where the images of a data set are: files below a folder.

    Args:
        root: what relative paths in the rows are relative to.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sizes: dict[str, int] = {}
        self._names: dict[str, str] = {}
        self._verified: set[str] = set()

    def find(self, name: str) -> str:
        """The path of an image as a row names it.

        Raises:
            BadRowError: there is no such file, or it is empty.
        """
        reference = str(self._root / name)
        if reference not in self._sizes:
            path = Path(reference)
            if not path.is_file():
                raise BadRowError(
                    "missing image",
                    got=f"image {name!r}, but there is no file {path}",
                    expected=f"a path relative to {self._root}",
                    remedy="Correct the path or put the file there",
                )
            self._sizes[reference] = path.stat().st_size
            self._names[reference] = name
        return reference

    def stamp(self, reference: str) -> tuple[str, int]:
        """The image's name in its rows and its size in bytes: what a fingerprint covers."""
        return self._names[reference], self._sizes[reference]

    def verify(self, reference: str) -> None:
        """Checks, once per image, that it can be decoded.

        PNG files are checked by their checksums; others are decoded, at an eighth of their size
        where the format can do that (JPEG), since their headers say nothing about a cut end.

        Raises:
            BadRowError: the file is no image, or is cut short.
        """
        from PIL import Image as PillowImage

        if reference in self._verified:
            return
        try:
            with PillowImage.open(reference) as image:
                if image.format == "PNG":
                    image.verify()
                else:
                    image.draft("RGB", (image.width // 8, image.height // 8))
                    image.load()
        # Pillow's decoders raise many kinds (SyntaxError for a broken PNG among them).
        except Exception as error:
            raise broken_image(reference, error) from error
        self._verified.add(reference)

    def open(self, reference: str) -> Image:
        """The image as RGB.

        Raises:
            BadRowError: it cannot be decoded.
        """
        from PIL import Image as PillowImage

        try:
            with PillowImage.open(reference) as image:
                return image.convert("RGB")
        except Exception as error:
            raise broken_image(reference, error) from error


def broken_image(reference: str, error: Exception) -> BadRowError:
    """The bad row of an image that cannot be opened or decoded."""
    said = str(error) or type(error).__name__
    return BadRowError(
        "broken image",
        got=f"image {reference}, which cannot be decoded ({said})",
        expected="a whole image file",
        remedy="Replace the file or remove the row",
    )
