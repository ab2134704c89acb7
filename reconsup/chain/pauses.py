"""How long an endpoint asks to be left alone: in a Retry-After header, or in the data of an error. Bounded."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

RETRY_AFTER_SECONDS_MAX = 3600.0


def from_header(retry_after: str | None) -> float | None:
    """Read a Retry-After header: seconds, or a date. None when it is neither."""
    text = (retry_after or "").strip()
    try:
        if re.fullmatch(r"\d{1,9}(\.\d+)?", text):
            seconds = float(text)
        else:
            seconds = (parsedate_to_datetime(text).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS_MAX)


def from_data(data: Any) -> float | None:
    """Read the pause that some providers put into an error's data: {"rate": {"backoff_seconds": 30}}."""
    rate = data.get("rate") if isinstance(data, dict) else None
    seconds = rate.get("backoff_seconds") if isinstance(rate, dict) else None
    if isinstance(seconds, int | float) and seconds >= 0:
        return min(float(seconds), RETRY_AFTER_SECONDS_MAX)
    return None
