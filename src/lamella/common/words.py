"""Formats numbers for reading: percentages, durations, counts and sizes, and a dash for a missing value."""

from collections.abc import Sequence

__all__ = ["MINUS", "NOTHING", "all_of", "count", "duration", "listed", "many", "number", "size"]

NOTHING = "\N{EM DASH}"
MINUS = "\N{MINUS SIGN}"


def number(fraction: float, *, signed: bool = False) -> str:
    """Format a fraction as a percentage with one decimal and a typographic minus sign.

    >>> number(0.7224), number(0.05, signed=True), number(-0.00001)
    ('72.2', '+5.0', '0.0')
    """
    rounded = round(100 * fraction, 1) + 0.0  # turns -0.0 into 0.0
    return f"{rounded:{'+' if signed and rounded else ''}.1f}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Format seconds as seconds, minutes or hours.

    >>> duration(4.26), duration(95), duration(7500)
    ('4.3 s', '1 min 35 s', '2 h 5 min')
    """
    if seconds is None:
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def count(value: float | None) -> str:
    """Format a number with separators of thousands.

    >>> count(1234567.0)
    '1,234,567'
    """
    return NOTHING if value is None else f"{round(value):,}"


def many(number: int, noun: str, plural: str = "s") -> str:
    """Format a number of things.

    >>> many(1, "image"), many(1200, "image"), many(3, "class", "es")
    ('1 image', '1,200 images', '3 classes')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}{plural}"


def all_of(number: int, noun: str) -> str:
    """Format the whole of some things.

    >>> all_of(1, "image"), all_of(12, "text")
    ('the only image', 'all 12 texts')
    """
    return f"the only {noun}" if number == 1 else f"all {number:,} {noun}s"


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does.

    >>> listed(["images"]), listed(["images", "texts"]), listed(["images", "texts", "answers"])
    ('images', 'images and texts', 'images, texts and answers')
    """
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def size(value: float | None) -> str:
    """Format bytes with a decimal unit.

    >>> size(512), size(23_400_000)
    ('512 B', '23.4 MB')
    """
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.0f} B"
    for unit in ("kB", "MB"):
        value /= 1000
        if value < 999.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1000:.1f} GB"
