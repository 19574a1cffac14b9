"""Writes numbers for people: bytes, seconds, durations, shares. Pure."""

UNITS = ("B", "kB", "MB", "GB", "TB")
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400


def bytes_text(count: float) -> str:
    """Three digits and a unit: 812 MB, 4.14 GB."""
    value, unit = float(count), 0
    while abs(value) >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    digits = 0 if unit == 0 or abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {UNITS[unit]}"


def seconds_text(seconds: float) -> str:
    """A time that somebody waits: 31 ms, 1.25 s, 12 s."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def duration_text(seconds: float) -> str:
    """A time that something has run: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    whole = int(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"


def number_text(value: float) -> str:
    """A rate or a count: 0, 0.04, 97.3, 1,240."""
    if value >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{round(value, 2):g}"


def share_text(share: float) -> str:
    return f"{100 * share:.0f}%"


def count_text(count: int, singular: str, plural: str = "") -> str:
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"
