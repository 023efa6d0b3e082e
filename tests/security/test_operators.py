"""Strangers who want to be operators: through the HAProxy of the documentation, and past it.

Every client has a loopback address of its own, so that the servers see different clients on one machine.
"""

import http.client
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from realtime.conf import Settings
from tests.support.assertions.eventually import eventually
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings
from tests.support.programs.servers import CHECKOUT, DaphneServer, Program, WebServer, free_port
from tests.support.programs.site import Site

pytestmark = pytest.mark.acceptance

PAGE = CHECKOUT / "docs/howto/behind-a-proxy.md"
PROXY, OPERATOR, STRANGER = "127.0.0.9", "127.0.0.50", "127.0.0.66"
GUARDED = ("/metrics", "/health/ready")
HEADER_TIMEOUT = 2.0

#: What a stranger may try. Each client sends these before the proxy adds its own.
FORGED: list[dict[str, str]] = [
    {},
    {"X-Forwarded-For": "127.0.0.1"},
    {"X-Forwarded-For": OPERATOR},
    {"X-Forwarded-For": f"{OPERATOR}, {PROXY}"},
    {"X-Forwarded-For": f"{OPERATOR}," * 30},
    {"X-Forwarded-For": ""},
    {"X-Forwarded-For": "unknown"},
    {"X-Forwarded-For": f"[::ffff:{OPERATOR}]:1"},
    {"x_forwarded_for": OPERATOR},
    {"Forwarded": f"for={OPERATOR}"},
    {"X-Real-IP": OPERATOR},
    {"Via": "1.1 127.0.0.1"},
    {"Connection": "X-Forwarded-For"},
    {"Connection": "close, X-Forwarded-For", "X-Forwarded-For": OPERATOR},
]


class HAProxy(Program):
    """HAProxy with the configuration of the documentation, in front of one server.

    Args:
        server: The address of the server as HAProxy writes it.
        log: The file of its log.
    """

    def __init__(self, server: str, log: Path) -> None:
        self.port = free_port()
        text = re.search(r"## HAProxy.*?```text\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]  # type: ignore[index]
        for old, new in (
            ("bind :443 ssl crt /etc/haproxy/example.com.pem", f"bind 127.0.0.1:{self.port}"),
            ("timeout http-request 10s", f"timeout http-request {HEADER_TIMEOUT:g}s"),
            # A busy machine must not take the only server out.
            (
                "option httpchk",
                "timeout check 20s\n    default-server inter 200ms fall 100\n    option httpchk",
            ),
            ("hdr Host example.com", "hdr Host localhost"),
            (
                "server one 10.0.4.1:8000",
                f"server one {server}{'' if server.startswith('unix') else f' source {PROXY}'}",
            ),
            ("    server two 10.0.4.2:8000 check\n", ""),
        ):
            assert old in text
            text = text.replace(old, new)
        # Not under pytest's folder: the kernel refuses a socket path of 108 bytes and more.
        self.folder = tempfile.mkdtemp(prefix="haproxy-")
        self.console = f"{self.folder}/console"
        configuration = Path(self.folder, "haproxy.cfg")
        configuration.write_text(f"global\n    stats socket {self.console}\n{text}")
        program = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if program is None:
            pytest.skip("there is no haproxy")
        super().__init__([program, "-db", "-f", configuration], log=log)

    def is_ready(self) -> bool:
        """True if its own check of /health/ready was answered with 200."""
        with socket.socket(socket.AF_UNIX) as console:
            if console.connect_ex(self.console) != 0:
                return False
            console.settimeout(5)
            console.sendall(b"show stat\n")
            return b",L7OK," in b"".join(iter(lambda: console.recv(65_536), b""))

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        shutil.rmtree(self.folder, ignore_errors=True)


def ask(port: int, path: str, client: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """Ask from the address of a client; return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20, source_address=(client, 0))
    try:
        connection.request("GET", path, headers={"Host": "localhost", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def recorded_address(site: Site, path: str) -> str:
    rows = site.database.query("SELECT path, remote_address FROM realtime_connection")
    return {row["path"]: row["remote_address"] for row in rows}.get(path, "")


@pytest.fixture(scope="module", params=pairings("pubsub-daphne-sqlite"))
def site(request: pytest.FixtureRequest, start_shared_site: StartSite) -> Site:
    return start_shared_site(request.param, TRUSTED_PROXIES=[PROXY], OPERATORS=[OPERATOR, "proxies"])


@pytest.fixture(scope="module")
def server(site: Site) -> WebServer:
    return site.serve()


@pytest.fixture(scope="module")
def proxy(server: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HAProxy]:
    with HAProxy(server.address, tmp_path_factory.mktemp("proxy") / "haproxy.log") as proxy:
        yield proxy


@pytest.mark.parametrize("path", GUARDED)
def test_no_forged_header_opens_the_views_behind_a_proxy(proxy: HAProxy, path: str) -> None:
    for headers in FORGED:
        assert ask(proxy.port, path, STRANGER, headers) == (403, b"Only operators may see this.\n"), headers


@pytest.mark.parametrize("path", GUARDED)
def test_no_forged_header_opens_the_views_past_the_proxy(server: WebServer, path: str) -> None:
    for headers in FORGED:
        assert ask(server.port, path, STRANGER, headers)[0] == 403, headers


@pytest.mark.parametrize("path", GUARDED)
def test_an_operator_is_known_behind_the_proxy(proxy: HAProxy, path: str) -> None:
    assert ask(proxy.port, path, OPERATOR)[0] == 200
    # What it sends itself is not read.
    assert ask(proxy.port, path, OPERATOR, {"X-Forwarded-For": STRANGER})[0] == 200


def test_many_refusals_are_one_line_of_the_log(proxy: HAProxy, server: WebServer) -> None:
    for _ in range(30):
        ask(proxy.port, "/metrics", STRANGER)

    assert server.log_text().count("Refused /") == 1
    assert "OPERATORS" in server.log_text()


def test_a_forged_address_is_not_recorded(proxy: HAProxy, site: Site) -> None:
    for number, headers in enumerate(FORGED):
        if "Connection" in headers or "X-Forwarded-For" not in headers:
            continue
        path = f"/ws/public.forged{number}/"
        mine = socket.create_connection(("127.0.0.1", proxy.port), timeout=20, source_address=(STRANGER, 0))
        with connect(f"ws://localhost:{proxy.port}{path}", sock=mine, additional_headers=headers):
            eventually(lambda path=path: recorded_address(site, path), within=20)
            assert recorded_address(site, path) == STRANGER


def test_a_header_that_dribbles_in_is_cut_off_by_the_proxy(proxy: HAProxy) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=20) as client:
        client.sendall(b"GET /ws/ HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        answer = b""
        while not answer and time.monotonic() - began < 20:
            client.sendall(b"a")
            client.settimeout(0.2)
            try:
                answer = client.recv(100)
            except TimeoutError:
                continue
    assert b" 408 " in answer


def test_an_undeclared_proxy_of_this_machine_opens_nothing(
    start_site: StartSite, tmp_path: Path, site: Site
) -> None:
    """With the default settings, as a project that forgot TRUSTED_PROXIES."""
    server = start_site(site.pairing, OPERATORS=Settings().OPERATORS).serve()
    assert ask(server.port, "/metrics", "127.0.0.1")[0] == 200
    # Its check of /health/ready comes from this machine and is answered.
    with HAProxy(server.address, tmp_path / "haproxy.log") as proxy:
        for path in GUARDED:
            for headers in FORGED:
                assert ask(proxy.port, path, "127.0.0.1", headers)[0] == 403, headers


class DaphneOnUnixSocket(DaphneServer):
    """Daphne with the flags of the Procfile, on a Unix socket."""

    def command_for(self, application: str) -> list[str]:
        self.folder = tempfile.mkdtemp(prefix="daphne-")
        self.socket = f"{self.folder}/daphne.sock"
        command = super().command_for(application)
        command[2] = f"unix:{self.socket}"
        return command

    def is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(self.socket) == 0

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        shutil.rmtree(self.folder, ignore_errors=True)


def test_a_proxy_on_a_unix_socket_names_its_clients(start_site: StartSite, tmp_path: Path) -> None:
    site = start_site(
        Pairing("pubsub", "daphne", "sqlite"), TRUSTED_PROXIES=["unix"], OPERATORS=[OPERATOR, "unix"]
    )
    log, environment = tmp_path / "daphne.log", {**site.environment, "ALLOWED_HOSTS": "localhost"}
    with (
        DaphneOnUnixSocket(log=log, environment=environment) as server,
        HAProxy(f"unix@{server.socket}", tmp_path / "haproxy.log") as proxy,
    ):
        assert ask(proxy.port, "/metrics", OPERATOR)[0] == 200
        for headers in FORGED:
            assert ask(proxy.port, "/metrics", STRANGER, headers)[0] == 403, headers
