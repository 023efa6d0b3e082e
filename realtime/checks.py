"""System checks: they find wrong settings of a project when it starts, and say how to mend them.

An error is a setting that cannot work. A warning is a setting that seems to work, but fails when it is
needed. A project can silence a warning by its id.

Private: docs/reference.md lists the public names.
"""

import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Warning
from django.db import router
from django.utils.module_loading import import_string

from realtime import conf
from realtime.layers import CoreLayer, MemoryLayer, PubSubLayer
from realtime.layers.core import EXPIRY
from realtime.layers.stamped import CAPACITY

#: The name under which this package is distributed. Another distribution has the same import name.
DISTRIBUTION = "django-channels-realtime"

#: The default of Daphne's `--application-close-timeout`, in seconds.
DAPHNES_LIMIT = 10.0
#: The longest DISCONNECT_TIMEOUT below it. A consumer takes half a second more.
LONGEST_DISCONNECT = 9.0

_OUR_LAYER = 'Set BACKEND to "realtime.layers.PubSubLayer" or "realtime.layers.CoreLayer".'


def check_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """E001: keys, values and relations of `REALTIME`; E002: its policy."""
    given = getattr(settings, "REALTIME", {})
    if found := conf.problems(given):
        return [
            Error(problem, hint="See docs/reference.md#settings.", id="realtime.E001") for problem in found
        ]
    policy = given.get("POLICY", conf.Settings().POLICY)
    hint = "Set POLICY to the dotted path of `policy(scope, action, group) -> bool`."
    try:
        found_policy = import_string(policy)
    except ImportError as error:
        return [Error(f"POLICY {policy!r} cannot be imported: {error}.", hint=hint, id="realtime.E002")]
    if not callable(found_policy):
        return [Error(f"POLICY {policy!r} is not a function.", hint=hint, id="realtime.E002")]
    return []


def check_layer(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """E003-E008, W003, W004 and W006-W008: the channel layers and their options."""
    layers = getattr(settings, "CHANNEL_LAYERS", {})
    if "default" not in layers:
        return [Error('CHANNEL_LAYERS has no "default" layer.', hint=_OUR_LAYER, id="realtime.E003")]
    found = []
    for alias, config in layers.items():
        problems = _layer(config)
        # Another alias may be a layer that only other code uses.
        found += [each for each in problems if alias == "default" or each.id != "realtime.E003"]
    return found


def _layer(config: dict[str, Any]) -> list[CheckMessage]:
    name = config.get("BACKEND", "")
    try:
        backend = import_string(name)
    except ImportError as error:
        return [
            Error(
                f"The channel layer {name!r} cannot be imported: {error}.",
                hint=_OUR_LAYER,
                id="realtime.E003",
            )
        ]
    if not issubclass(backend, CoreLayer | MemoryLayer | PubSubLayer):
        problem = f"The channel layer {name!r} does not say which group a message was sent to."
        return [Error(problem, hint=_OUR_LAYER, id="realtime.E003")]
    if issubclass(backend, MemoryLayer):
        return [] if settings.DEBUG else [_memory_layer()]
    return list(_redis_options(config.get("CONFIG", {}), core=issubclass(backend, CoreLayer)))


def _memory_layer() -> CheckMessage:
    problem = (
        "The in-memory channel layer connects nothing outside its own process, not even `reap_connections`."
    )
    return Warning(problem, hint=_OUR_LAYER, id="realtime.W003")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """An option of a layer or of its Redis, and the values that it must not have."""

    option: str
    is_wrong: Callable[[Any], bool]
    level: type[Error | Warning]
    id: str
    text: str
    """`{value}` in it stands for the option's value."""
    hint: str

    def check(self, options: dict[str, Any]) -> Iterator[CheckMessage]:
        """Yield a message if the option is given and wrong."""
        value = options.get(self.option)
        if self.option in options and self.is_wrong(value):
            yield self.level(self.text.format(value=value), hint=self.hint, id=self.id)


#: For each Redis of a layer.
_OF_A_HOST = (
    _Rule(
        option="socket_timeout",
        is_wrong=lambda seconds: seconds is not None,
        level=Error,
        id="realtime.E004",
        text="socket_timeout is {value!r} for a Redis of CHANNEL_LAYERS.",
        hint="Leave it out: it ends idle reads and, before Python 3.12, loses cancellations.",
    ),
    _Rule(
        option="socket_keepalive",
        is_wrong=lambda on: str(on).lower() in ("false", "0", "f", "no", "n"),
        level=Warning,
        id="realtime.W006",
        text="socket_keepalive is off for a Redis of CHANNEL_LAYERS: if that Redis is gone, "
        "a read from it waits for ever.",
        hint="Leave it out: it is on by default.",
    ),
)

#: The schemes of addresses that redis-py knows.
_SCHEMES = ("redis", "rediss", "unix")

#: Options that only a client of Redis Cluster takes.
_OF_A_CLUSTER = frozenset(
    {"startup_nodes", "cluster_enabled", "cluster_error_retry_attempts", "read_from_replicas"}
)


def _is_cluster(options: dict[str, Any]) -> bool:
    """Return True if the options of a host are certainly those of Redis Cluster.

    A plain address may lead to a cluster as well. The layers find that out when they connect.
    """
    address = options.get("address")
    url = urlsplit(address) if isinstance(address, str) else urlsplit("")
    host = url.hostname or options.get("host") or ""
    return (
        "cluster" in url.scheme
        # The configuration endpoint of Amazon's clusters.
        or str(host).startswith("clustercfg.")
        or not _OF_A_CLUSTER.isdisjoint(options)
    )


def _host_problems(options: dict[str, Any]) -> Iterator[CheckMessage]:
    """Yield E006-E008 for the options of one Redis."""
    address = options.get("address")
    if _is_cluster(options):
        yield Error(
            "A Redis of CHANNEL_LAYERS is a cluster. The core layer sends all commands to one node, which "
            "holds only some of the keys; the pub/sub layer asks one node for the subscribers of all.",
            hint="Use a Redis without cluster mode: with Sentinel for failover, or several hosts of "
            "realtime.layers.PubSubLayer for more throughput. See docs/howto/run-redis.md.",
            id="realtime.E007",
        )
    elif isinstance(address, str) and urlsplit(address).scheme not in _SCHEMES:
        yield Error(
            f"The address {_without_password(address)!r} in CHANNEL_LAYERS begins with no known scheme.",
            hint="Begin it with redis://, rediss:// (TLS) or unix://.",
            id="realtime.E006",
        )
    if ("sentinels" in options) != ("master_name" in options):
        missing = "master_name" if "sentinels" in options else "sentinels"
        yield Error(
            f"A host of CHANNEL_LAYERS is reached through Sentinel, but {missing} is missing.",
            hint='Set {"sentinels": [("host", 26379)], "master_name": "mymaster"}.',
            id="realtime.E008",
        )
    elif "sentinels" in options and isinstance(address, str):
        yield Error(
            "A host of CHANNEL_LAYERS has both sentinels and an address. The address wins, and nothing "
            "fails over.",
            hint="Leave address out.",
            id="realtime.E008",
        )


def _without_password(address: str) -> str:
    login, at, rest = address.rpartition("@")
    return f"{login.partition('://')[0]}://…@{rest}" if at else address


#: For each core layer.
_OF_THE_CORE_LAYER = (
    _Rule(
        option="hosts",
        is_wrong=lambda hosts: len(hosts or ()) > 1,
        level=Error,
        id="realtime.E005",
        text="The core layer with more than one Redis loses messages to single channels (channels#1492).",
        hint="Name one host, or use realtime.layers.PubSubLayer, which may be sharded.",
    ),
    _Rule(
        option="capacity",
        is_wrong=lambda capacity: capacity < CAPACITY,
        level=Warning,
        id="realtime.W004",
        text="The capacity of the core layer is {value}: one queue holds all messages of a process, "
        "and messages above its capacity are dropped silently.",
        hint=f"Leave it out, or set {CAPACITY} or more, in every process that sends.",
    ),
    _Rule(
        option="expiry",
        is_wrong=lambda seconds: seconds < EXPIRY,
        level=Warning,
        id="realtime.W007",
        text="The expiry of the core layer is {value} s: messages are stamped by their sender's "
        "clock, and a sender whose clock is ahead by more than this removes what others have just sent.",
        hint=f"Leave it out, or set {EXPIRY} or more, in every process that sends.",
    ),
    _Rule(
        option="group_expiry",
        is_wrong=lambda seconds: seconds < EXPIRY,
        level=Warning,
        id="realtime.W008",
        text="The group_expiry of the core layer is {value} s: memberships are stamped by "
        "their process's clock, and a sender whose clock is ahead by more than this removes them.",
        hint=f"Leave it out, or set {EXPIRY} or more, in every process that sends.",
    ),
)


def _redis_options(config: dict[str, Any], *, core: bool) -> Iterator[CheckMessage]:
    hosts = config.get("hosts") or []
    if not isinstance(hosts, list | tuple):
        yield Error(
            f"hosts is {hosts!r} in CHANNEL_LAYERS.",
            hint='Set a list, even of one: {"hosts": ["redis://localhost:6379/0"]}.',
            id="realtime.E006",
        )
        return
    for options in map(_options_of_host, hosts):
        yield from _host_problems(options)
        for rule in _OF_A_HOST:
            yield from rule.check(options)
    for rule in _OF_THE_CORE_LAYER if core else ():
        yield from rule.check(config)


def _options_of_host(host: Any) -> dict[str, Any]:
    """Return the options of one Redis. Those in the query of its URL override the others."""
    options = dict(host) if isinstance(host, dict) else {"address": host}
    address = options.get("address")
    query = urlsplit(address).query if isinstance(address, str) else ""
    return options | dict(parse_qsl(query))


def check_database(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W001: SQLite as Django opens it by default refuses most concurrent writes."""
    # The database of this app, which a router may choose. By name, because models cannot be imported yet.
    app = apps.get_containing_app_config(__name__)
    assert app is not None, "checks are registered by the app"  # noqa: S101
    database = settings.DATABASES[router.db_for_write(app.get_model("Process"))]
    if not database.get("ENGINE", "").endswith(("sqlite3", "spatialite")):
        return []
    options = database.get("OPTIONS", {})
    ready = str(options.get("transaction_mode", "")).upper() == "IMMEDIATE"
    if ready and "journal_mode=wal" in str(options.get("init_command", "")).lower().replace(" ", ""):
        return []
    return [
        Warning(
            'SQLite without WAL and IMMEDIATE transactions refuses concurrent writes ("locked").',
            hint='OPTIONS: {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": '
            '"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"}',
            id="realtime.W001",
        )
    ]


def check_installation(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W002, W011: other packages with this import name; W005: `runserver` serves no WebSockets."""
    found: list[CheckMessage] = []
    others = set(importlib.metadata.packages_distributions().get("realtime", ())) - {DISTRIBUTION}
    if others:
        found.append(
            Warning(
                f"Another distribution installs a package named realtime too: {', '.join(sorted(others))}.",
                hint=f"Uninstall it, then reinstall {DISTRIBUTION}: one has overwritten files of the other.",
                id="realtime.W002",
            )
        )
    found += [_shadow(package) for package in _packages_of_our_name()]
    names = [config.name for config in apps.get_app_configs()]
    static = "django.contrib.staticfiles"
    if "daphne" in names and static in names and names.index("daphne") > names.index(static):
        found.append(
            Warning(
                "daphne comes after django.contrib.staticfiles: `runserver` serves no WebSockets.",
                hint="Put daphne first.",
                id="realtime.W005",
            )
        )
    return found


def _packages_of_our_name() -> list[Path]:
    """Return other packages and modules `realtime` in the folders where Python looks for modules."""
    ours = Path(__file__).resolve().parent
    folders = dict.fromkeys(Path(entry).resolve() for entry in [*sys.path, "", _project_folder()])
    return [
        package
        for folder in folders
        for package in (folder / ours.name, folder / f"{ours.name}.py")
        if package != ours and (package.suffix or any(package.glob("*.py"))) and package.exists()
    ]


def _project_folder() -> str:
    """Return BASE_DIR of the project, from which `manage.py` is run; the current folder if there is none."""
    return str(getattr(settings, "BASE_DIR", ""))


def _shadow(package: Path) -> CheckMessage:
    return Warning(
        f"{package} has the import name of this package. A program that is started there imports it instead.",
        hint="Rename it: docs/howto/move-an-existing-project.md has the steps.",
        id="realtime.W011",
    )


def check_budget(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W009: Daphne would kill consumers before their handlers are cancelled."""
    given = getattr(settings, "REALTIME", {})
    if conf.problems(given) or (seconds := conf.Settings(**given).DISCONNECT_TIMEOUT) <= LONGEST_DISCONNECT:
        return []
    return [
        Warning(
            f"DISCONNECT_TIMEOUT is {seconds:g} s: Daphne kills a consumer {DAPHNES_LIMIT:g} s after its "
            "connection has ended.",
            hint=f"Set {LONGEST_DISCONNECT:g} or less. If you start Daphne with a longer "
            "--application-close-timeout, silence this warning.",
            id="realtime.W009",
        )
    ]


#: The distributions of servers with which clients without `realtime.v1` are pinged, or pinged by the server.
_PINGING_SERVERS = ("daphne", "uvicorn", "hypercorn")


def check_server(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W010: clients without `realtime.v1` are not pinged.

    A check cannot know which server will run. It knows the setting DIRECT_WRITES and the installed servers.
    """
    given = getattr(settings, "REALTIME", {})
    if not isinstance(given, dict) or given.get("UNPINGED_IDLE_TIMEOUT") or given.get("IDLE_TIMEOUT"):
        return []
    if given.get("DIRECT_WRITES", True) is False:
        cause, remedy = "DIRECT_WRITES is False", "Leave it out"
    elif _is_installed("granian") and not any(map(_is_installed, _PINGING_SERVERS)):
        cause, remedy = "granian is the only server that is installed", "Use another server"
    else:
        return []
    return [
        Warning(
            f"{cause}: clients without the subprotocol realtime.v1 are not pinged. "
            "If such a client vanishes, its connection and its groups stay.",
            hint=f"{remedy}, or set UNPINGED_IDLE_TIMEOUT. See docs/howto/servers.md.",
            id="realtime.W010",
        )
    ]


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def check_grace(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W012: users would leave and come back whenever a server process restarts."""
    given = getattr(settings, "REALTIME", {})
    if conf.problems(given):
        return []
    found = conf.Settings(**given)
    if not found.PRESENCE or found.PRESENCE_GRACE > found.RECONNECT_WINDOW:
        return []
    return [
        Warning(
            f"PRESENCE_GRACE is {found.PRESENCE_GRACE:g} s, and clients of a process that stops come back "
            f"within RECONNECT_WINDOW, {found.RECONNECT_WINDOW:g} s: with each restart, users leave for a "
            "moment.",
            hint="Set PRESENCE_GRACE above RECONNECT_WINDOW, by the time that a client needs to connect. "
            "See docs/howto/show-who-is-here.md.",
            id="realtime.W012",
        )
    ]


def check_proxies(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """W013: each client may choose its address."""
    given = getattr(settings, "REALTIME", {})
    if conf.problems(given):
        return []
    proxies = conf.Settings(**given).TRUSTED_PROXIES
    everywhere = [each for each in proxies if each.endswith("/0")]
    if not everywhere:
        return []
    return [
        Warning(
            f"TRUSTED_PROXIES has {', '.join(everywhere)}: all clients count as proxies, so each may choose "
            "the address that it is known by, with the header X-Forwarded-For.",
            hint="Name only the addresses and networks of your proxies.",
            id="realtime.W013",
        )
    ]


def register() -> None:
    """Register the checks with Django, under the tag "realtime"."""
    for check in (
        check_settings,
        check_layer,
        check_database,
        check_installation,
        check_budget,
        check_server,
        check_grace,
        check_proxies,
    ):
        checks.register(check, "realtime")
