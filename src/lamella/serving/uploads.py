"""Checks of what clients send: images, and archives of class folders of images or texts.

Every image is checked by its header before it is decoded, every archive by its list of entries before it is unpacked.
"""

import re
import stat
import unicodedata
import warnings
import zipfile
from collections.abc import Callable, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NamedTuple

from fastapi import HTTPException
from PIL import Image

from lamella.common.files import DISK_FULL
from lamella.serving.kind import Unpacked
from lamella.serving.limits import MB, Limits

__all__ = ["Packed", "check_image", "unpack"]

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""The formats that are decoded: those of the file name extensions that are images in a folder."""
UNSAFE = re.compile(r"[\\:\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that names may not contain: separators and drives of other systems, control characters, line breaks."""


class Packed(NamedTuple):
    """What an archive holds.

    Attributes:
        noun: what one sample is called.
        ending: of a usual file, for messages.
        endings: the endings of the names of files that are samples, in small letters.
        others: the endings of the names of samples of other kinds, in small letters.
        check: called with each unpacked file and its name in the archive; raises an HTTPException if it is no sample.
    """

    noun: str
    ending: str
    endings: Sequence[str]
    others: Set[str]
    check: Callable[[Path, str], None]

    @property
    def advice(self) -> str:
        """What to send."""
        return f"send a zip of CLASS/*{self.ending}"


def check_image(source: BinaryIO, name: str, limits: Limits) -> float:
    """Check the header of an image, without decoding the image.

    Args:
        source: the image file.
        name: the name of the file, for messages.
        limits: the bound on its pixels.

    Returns:
        Its size, in units of 1,000,000 pixels.

    Raises:
        HTTPException: 415, the format is unknown; 413, the image has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below is stricter
            with Image.open(source, formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        raise HTTPException(
            413, f"'{name}' has too many pixels; {limits.megapixels:g} megapixels are allowed"
        ) from None
    except Exception:  # each format raises errors of its own for damaged files
        raise HTTPException(415, f"'{name}' is no image of a known format ({', '.join(FORMATS)})") from None
    if width * height > limits.megapixels * 1e6:
        fault = f"'{name}' has {width} x {height} pixels; {limits.megapixels:g} megapixels are allowed"
        raise HTTPException(413, fault)
    return width * height / 1e6


def unpack(archive: BinaryIO, folder: Path, packed: Packed, limits: Limits) -> Unpacked:
    """Unpack the samples of a zip file of class folders.

    A single folder around the class folders is left out. Names are normalised to the Unicode form NFC. Some systems
    store "é" as two characters, which would otherwise become a second class.

    Args:
        archive: the zip file.
        folder: an empty folder that receives the class folders.
        packed: what the archive should hold.
        limits: the bounds on the archive.

    Raises:
        HTTPException: 415, the archive is no zip file, or a file in it with the name of a sample is none; 413, it has
            too many files, bytes or pixels; 422, it is damaged or encrypted, a name leads out of the folder, or it has
            no class folders; 507, the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            samples, ignored = _sorted_out(content.infolist(), packed, limits)
            places = _without_wrapper([_safe_path(sample.filename) for sample in samples], packed)
            for sample, place in zip(samples, places, strict=True):
                _write(content, sample, folder / place)
                packed.check(folder / place, sample.filename)
    except zipfile.BadZipFile as error:
        is_zip = zipfile.is_zipfile(archive)
        status, what = (422, "is damaged") if is_zip else (415, "is no zip file")
        raise HTTPException(status, f"the archive {what} ({error}); {packed.advice}") from None
    except (NotImplementedError, RuntimeError, EOFError, UnicodeError) as error:
        raise HTTPException(422, f"the archive cannot be read ({error}); send an ordinary zip file") from None
    return Unpacked(len(places), ignored)


def _sorted_out(
    entries: Sequence[zipfile.ZipInfo], packed: Packed, limits: Limits
) -> tuple[list[zipfile.ZipInfo], tuple[str, ...]]:
    """Return the entries that are samples, and the names of the other files. All entries are checked."""
    if len(entries) > limits.files:
        raise HTTPException(413, f"the archive has {len(entries)} entries; {limits.files} are allowed")
    if sum(entry.file_size for entry in entries) > limits.unpacked_mb * MB:
        raise HTTPException(
            413, f"the files of the archive have more than the {limits.unpacked_mb:g} MB that are allowed"
        )
    samples: list[zipfile.ZipInfo] = []
    ignored: list[str] = []
    for entry in entries:
        place = _safe_path(entry.filename)
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise HTTPException(422, f"'{entry.filename}' in the archive is a link or a device; send ordinary files")
        if entry.is_dir():
            continue
        hidden = any(part.startswith((".", "__MACOSX")) for part in place.parts)
        if hidden or place.suffix.lower() not in packed.endings:
            ignored.append(entry.filename)
        else:
            samples.append(entry)
    if not samples:
        others = {PurePosixPath(name).suffix.lower() for name in ignored} & packed.others
        if others:
            fault = f"the archive holds no {packed.noun}s but {', '.join(sorted(others))} files; {packed.advice}"
            raise HTTPException(415, fault)
        raise HTTPException(422, f"the archive has no {packed.noun}; {packed.advice}")
    return samples, tuple(ignored)


def _safe_path(name: str) -> PurePosixPath:
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    if path.is_absolute() or ".." in path.parts or UNSAFE.search(name) or not path.parts:
        raise HTTPException(422, f"the archive has an entry {name!r}, whose name is not allowed; use CLASS/FILE")
    return path


def _without_wrapper(paths: Sequence[PurePosixPath], packed: Packed) -> list[PurePosixPath]:
    """Return the paths without the folders around the class folders, such as "photos" in "photos/cat/1.jpg"."""
    while len({p.parts[0] for p in paths}) == 1 and all(len(p.parts) > 2 for p in paths):
        paths = [p.relative_to(p.parts[0]) for p in paths]
    if loose := next((p for p in paths if len(p.parts) < 2), None):
        raise HTTPException(422, f"'{loose}' in the archive is in no class folder; {packed.advice}")
    return list(paths)


def _write(content: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Unpack one file. A `ZipFile` never returns more bytes than the entry announces."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file, content.open(entry) as packed:
            while block := _block(packed, entry.filename):
                file.write(block)
    except FileExistsError:
        raise HTTPException(422, f"'{entry.filename}' in the archive has the name of another entry") from None
    except OSError as error:
        full = error.errno in DISK_FULL
        raise HTTPException(507 if full else 422, f"'{entry.filename}' cannot be unpacked: {error.strerror}") from None


def _block(packed: IO[bytes], name: str) -> bytes:
    """Read the next part of a file in an archive; b"" at its end."""
    try:
        return packed.read(1 << 20)
    except zipfile.BadZipFile:
        raise
    except Exception as error:  # each way of compressing has errors of its own
        raise HTTPException(422, f"'{name}' in the archive is damaged ({error})") from None
