"""What to do about something that does not hold now: nearly always a clock is behind, or it ended.

A device without a clock that runs on a battery is years behind after power-on. What has not begun
yet, though somebody shows it already, is the sign of that.
"""

from __future__ import annotations

from datetime import datetime


def advice_at(now: datetime, begins: datetime, otherwise: str) -> str:
    """The advice for what holds from `begins` on and not at `now`; `otherwise` is for what ended.
    Both times have a time zone."""
    if now >= begins:
        return otherwise
    return f"set this machine's clock, which is behind: it says {now:%Y-%m-%d %H:%M} UTC"
