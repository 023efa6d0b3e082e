"""The least rights that a Redis user needs, as docs/howto/run-redis.md gives them."""

from tests.support.programs.servers import CHECKOUT

USER = "realtime"
PASSWORD = "acl-secret"


def rights(layer: str) -> list[str]:
    """Return the rules of the page's ACL line for this layer, "core" or "pubsub"."""
    page = (CHECKOUT / "docs/howto/run-redis.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith(f"ACL SETUSER {USER} ")]
    (line,) = [line for line in lines if ("+zadd" in line) == (layer == "core")]
    return line.replace(">PASSWORD", f">{PASSWORD}").split()[3:]


def history() -> list[str]:
    """Return the page's rules that are added if groups keep history."""
    page = (CHECKOUT / "docs/howto/run-redis.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("~asgi:* ")]
    return line.split()


def limits() -> list[str]:
    """Return the page's rules that are added for the limits on connections."""
    page = (CHECKOUT / "docs/howto/run-redis.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("~asgi:realtime.limits* ")]
    return line.split()


def commands(rules: list[str]) -> list[str]:
    """Return the commands that these rules allow."""
    return [rule.removeprefix("+") for rule in rules if rule.startswith("+")]
