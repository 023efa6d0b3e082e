"""Words for times and clients. The functions are pure: the current time is an argument."""

import re
from datetime import timedelta

MINUTE, HOUR, DAY = 60, 3600, 86400

_BROWSERS = (
    # Browsers that also claim to be Chrome or Safari come first.
    ("Edge", re.compile(r"\bEdg(?:A|iOS)?/(\d{1,4})")),
    ("Opera", re.compile(r"\bOPR/(\d{1,4})")),
    ("Samsung Internet", re.compile(r"\bSamsungBrowser/(\d{1,4})")),
    ("Firefox", re.compile(r"\b(?:Firefox|FxiOS)/(\d{1,4})")),
    ("Chrome", re.compile(r"(?:Chrome|\bCriOS)/(\d{1,4})")),
    ("Safari", re.compile(r"\bVersion/(\d{1,4})\S* (?:Mobile/\S+ )?Safari/")),
)
_SYSTEMS = (
    ("iPhone", re.compile(r"\biPhone\b")),
    ("iPad", re.compile(r"\biPad\b")),
    ("Android", re.compile(r"\bAndroid\b")),
    ("ChromeOS", re.compile(r"\bCrOS\b")),
    ("Windows", re.compile(r"\bWindows\b")),
    ("macOS", re.compile(r"\bMac OS X\b")),
    ("Linux", re.compile(r"\bLinux\b")),
)
_PRODUCT = re.compile(r"([\w.+-]{1,40})(?:/(\d{1,5}(?:\.\d{1,5})?))?")


def duration(length: timedelta) -> str:
    """Return a length of time in its two largest units: "12 s", "3 min 12 s", "2 h 5 min", "3 d 4 h"."""
    seconds = max(0, int(length.total_seconds()))
    for unit, size, smaller, smaller_size in (
        ("d", DAY, "h", HOUR),
        ("h", HOUR, "min", MINUTE),
        ("min", MINUTE, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit} {rest} {smaller}" if rest else f"{seconds // size} {unit}"
    return f"{seconds} s"


def ago(length: timedelta) -> str:
    """Return the time since an event in its largest unit: "12 s ago", "3 min ago"."""
    seconds = max(0, int(length.total_seconds()))
    for unit, size in (("d", DAY), ("h", HOUR), ("min", MINUTE)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def device(user_agent: str) -> str:
    """Return a short name for a user agent, like "Chrome 142 on Windows" or "okhttp 4.12"; may be empty.

    Only the most common browsers and systems are known. A database of all others has a thousand regular
    expressions and needs an update each month, and a client may claim anything.
    """
    browser = next((f"{name} {found[1]}" for name, by in _BROWSERS if (found := by.search(user_agent))), "")
    system = next((name for name, by in _SYSTEMS if by.search(user_agent)), "")
    if browser and system:
        return f"{browser} on {system}"
    if browser:
        return browser
    products = _PRODUCT.findall(re.sub(r"\([^()]*\)", "", user_agent))
    # A library often comes after the language that it is written in.
    named = [product for product in products if product[0] not in ("Mozilla", "Python")]
    if user_agent.startswith("Mozilla/") and system:
        return system
    return " ".join(filter(None, next(iter(named or products), ())))
