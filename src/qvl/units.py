"""Bytes, tokens and seconds, written the way people read them. GiB is 2**30 bytes, GB is 10**9."""

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
GB = 10**9


def format_bytes(num_bytes: float) -> str:
    """`7.0 GiB`, `36.0 KiB`, `12 B`: binary units, one decimal."""
    for unit, size in (("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes:.0f} B"


def format_count(count: float) -> str:
    """`8.29 B`, `151.9 K`, `409`: decimal units for tokens and parameters."""
    for unit, size, digits in (("T", 1e12, 2), ("B", 1e9, 2), ("M", 1e6, 1), ("K", 1e3, 1)):
        if abs(count) >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count:g}"


def format_seconds(seconds: float) -> str:
    """`0.42 ms`, `85 ms`, `1.20 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if seconds < 7200:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
