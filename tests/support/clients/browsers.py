"""Browsers that a test puts to sleep: Chromium, WebKit and Firefox, each with one page.

A browser has several processes. While the processes that run the page and its connections are stopped, the
page is like that of a phone in a pocket: the kernel takes packets for it, and no code of it runs.
"""

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import psutil
import pytest
from playwright.async_api import async_playwright
from selenium import webdriver
from selenium.webdriver.remote.client_config import ClientConfig
from selenium.webdriver.remote.remote_connection import RemoteConnection
from selenium.webdriver.webkitgtk.options import Options as WebKitOptions
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidMessage

from tests.support.assertions.eventually import eventually_async
from tests.support.faults.relay import Door
from tests.support.programs.servers import STARTUP, Program, free_port

CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30.0  # seconds that a busy machine may take for one command of a driver


class SleepingBrowser(ABC):
    """A browser with one page, which `asleep` and `awake` stop and continue.

    Args:
        folder: The folder of its logs, and of everything that it writes.
        prefix: Words before the command line of each program, to start it in a network namespace.
    """

    #: The programs that must be there, and the packages of Debian that have them.
    needs: ClassVar[dict[str, str]]

    def __init__(self, folder: Path, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.prefix = tuple(prefix)
        self._running = contextlib.AsyncExitStack()
        self._stopped: list[psutil.Process] = []

    @classmethod
    def require(cls) -> None:
        """Skip the test, with the reason, if a program of this browser is missing."""
        for program, package in cls.needs.items():
            if shutil.which(program) is None:
                pytest.skip(f"needs {program} (apt-get install {package})")

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._running.aclose()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        # A stopped process takes no SIGTERM.
        self.awake()
        await self._running.aclose()

    @abstractmethod
    async def _start(self) -> None:
        """Start all programs, and register the end of each in `_running`."""

    @abstractmethod
    async def open(self, url: str) -> None:
        """Open the page, and wait until it is loaded."""

    @abstractmethod
    async def _text(self, expression: str) -> str:
        """Return the value of an expression of JavaScript that is a string."""

    async def value(self, expression: str) -> Any:
        """Return the value in the page of an expression of JavaScript that has a form in JSON."""
        return json.loads(await self._text(f"JSON.stringify({expression})"))

    @property
    @abstractmethod
    def _root(self) -> psutil.Process:
        """The process from which all processes of the browser descend."""

    @abstractmethod
    def _sleeps(self, process: psutil.Process) -> bool:
        """Return True if this process runs the page or its connections."""

    def asleep(self) -> None:
        """Stop the processes that run the page and its connections."""
        for process in [self._root, *self._root.children(recursive=True)]:
            # A helper of the browser may end at any moment.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE and self._sleeps(process):
                    process.suspend()
                    self._stopped.append(process)
        assert self._stopped, "the browser has no such process"

    def awake(self) -> None:
        """Continue the processes that `asleep` stopped."""
        for process in self._stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped = []

    async def _enter(self, program: Program) -> Any:
        """Start a program, which stops with the browser."""
        return await asyncio.to_thread(self._running.enter_context, program)

    async def _let_in(self, port: int) -> None:
        """Let the test connect to this port in the network of the browser, as if it were one of the host."""
        if self.prefix:
            await self._enter(Door(self.prefix, port, log=self.folder / "door.log"))

    def _environment(self) -> dict[str, str]:
        """Return an environment in which a browser writes only into its folder."""
        home = self.folder / "home"
        (home / "run").mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            **os.environ,
            "HOME": str(home),
            "XDG_RUNTIME_DIR": str(home / "run"),
            # There is no session bus, and none is to be started.
            "DBUS_SESSION_BUS_ADDRESS": "disabled:",
            "NO_AT_BRIDGE": "1",
        }


class Chromium(SleepingBrowser):
    """Debian's Chromium, driven by Playwright. The renderer and the network service sleep."""

    needs: ClassVar = {"chromium": "chromium"}
    _asleep = re.compile(r"--type=renderer|--utility-sub-type=network\.mojom\.NetworkService")

    async def _start(self) -> None:
        # Playwright does not tell the pid: an argument of our own marks the process.
        self._mark = f"--test={uuid.uuid4()}"
        playwright = await self._running.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=self._executable(),
            args=[*CHROMIUM_ARGUMENTS, self._mark],
            env=self._environment(),
        )
        self._running.push_async_callback(browser.close)
        self._page = await browser.new_page()

    def _executable(self) -> str:
        program = shutil.which("chromium")
        assert program is not None
        if not self.prefix:
            return program
        # Playwright starts one program, without words before it.
        script = self.folder / "chromium"
        script.write_text(f'#!/bin/sh\nexec {" ".join(self.prefix)} {program} "$@"\n')
        script.chmod(0o755)
        return str(script)

    async def open(self, url: str) -> None:
        await self._page.goto(url, timeout=PATIENCE * 1000)

    async def _text(self, expression: str) -> str:
        return str(await self._page.evaluate(expression))

    @property
    def _root(self) -> psutil.Process:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if self._mark in process.cmdline():
                    return process
        raise AssertionError("Chromium does not run")

    def _sleeps(self, process: psutil.Process) -> bool:
        return bool(self._asleep.search(" ".join(process.cmdline())))


class WebKit(SleepingBrowser):
    """WebKitGTK in its MiniBrowser, driven by selenium. The web process and the network process sleep."""

    needs: ClassVar = {"WebKitWebDriver": "webkit2gtk-driver", "Xvfb": "xvfb"}

    async def _start(self) -> None:
        screen = await self._enter(Screen(self.folder))
        environment = {**self._environment(), "DISPLAY": screen.display}
        self._driver = await self._enter(WebKitDriver(self.folder, self.prefix, environment))
        await self._let_in(self._driver.port)
        await eventually_async(self._driver.answers, within=STARTUP)
        # Not a proxy of the environment, and not the selenium package's own long patience.
        config = ClientConfig(f"http://127.0.0.1:{self._driver.port}", timeout=int(PATIENCE))
        connection = RemoteConnection(client_config=config, ignore_proxy=True)
        self._remote = await asyncio.to_thread(
            webdriver.Remote, command_executor=connection, options=WebKitOptions()
        )
        self._running.push_async_callback(asyncio.to_thread, self._remote.quit)

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self._remote.get, url)

    async def _text(self, expression: str) -> str:
        return str(await asyncio.to_thread(self._remote.execute_script, f"return {expression}"))

    @property
    def _root(self) -> psutil.Process:
        return psutil.Process(self._driver.pid)

    def _sleeps(self, process: psutil.Process) -> bool:
        return process.name() in ("WebKitWebProcess", "WebKitNetworkProcess")


class Screen(Program):
    """An X server without a screen."""

    def __init__(self, folder: Path) -> None:
        # It chooses a free display, and writes its number into the log.
        super().__init__(
            ["Xvfb", "-displayfd", "1", "-nolisten", "tcp", "-screen", "0", "800x600x24"],
            log=folder / "xvfb.log",
        )

    def is_ready(self) -> bool:
        return bool(self._numbers())

    @property
    def display(self) -> str:
        return f":{self._numbers()[0]}"

    def _numbers(self) -> list[str]:
        return re.findall(r"^\d+$", self.log_text(), re.MULTILINE)


class WebKitDriver(Program):
    """Debian's driver of WebKit, which starts the browser when it is told to."""

    def __init__(self, folder: Path, prefix: Sequence[str], environment: Mapping[str, str]) -> None:
        self.port = free_port()
        super().__init__(
            [*prefix, "WebKitWebDriver", f"--port={self.port}"],
            log=folder / "webkit.log",
            environment=environment,
        )

    def answers(self) -> bool:
        """Return True if the driver takes commands at its port, as the test reaches it."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as asking:
            asking.sendall(b"GET /status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            return asking.recv(1) != b""
        return False


class Firefox(SleepingBrowser):
    """Debian's Firefox, driven by WebDriver BiDi, which it speaks itself. All its processes sleep."""

    needs: ClassVar = {"firefox-esr": "firefox-esr"}

    async def _start(self) -> None:
        self._numbers = itertools.count(1)
        self._program = await self._enter(FirefoxProgram(self.folder, self.prefix, self._environment()))
        await self._let_in(self._program.port)
        self._driver = await self._running.enter_async_context(await self._connected())
        await self._command("session.new", capabilities={})
        tree = await self._command("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]

    async def _connected(self) -> ClientConnection:
        address = f"ws://127.0.0.1:{self._program.port}/session"
        async with asyncio.timeout(STARTUP):
            while True:
                with contextlib.suppress(OSError, InvalidMessage):
                    return await connect(address, max_size=None, ping_interval=None)
                await asyncio.sleep(0.1)

    async def _command(self, method: str, **params: object) -> Any:
        number = next(self._numbers)
        await self._driver.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(PATIENCE):
            while (answer := json.loads(await self._driver.recv())).get("id") != number:
                pass
        assert answer["type"] == "success", answer
        return answer["result"]

    async def open(self, url: str) -> None:
        await self._command("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def _text(self, expression: str) -> str:
        done = await self._command(
            "script.evaluate", expression=expression, target={"context": self._context}, awaitPromise=False
        )
        assert done["type"] == "success", done
        return str(done["result"]["value"])

    @property
    def _root(self) -> psutil.Process:
        return psutil.Process(self._program.pid)

    def _sleeps(self, process: psutil.Process) -> bool:
        # Its main process has the connections.
        return True


class FirefoxProgram(Program):
    """Firefox with a profile of its own, which takes commands at `port`."""

    def __init__(self, folder: Path, prefix: Sequence[str], environment: Mapping[str, str]) -> None:
        self.port = free_port()
        profile = folder / "profile"
        profile.mkdir()
        # A browser that is driven would not tell its pages that the network went away and came back.
        (profile / "user.js").write_text('user_pref("network.manage-offline-status", true);\n')
        command = ["firefox-esr", "--headless", "--no-remote", "--profile", profile]
        super().__init__(
            [*prefix, *command, "--remote-debugging-port", str(self.port), "about:blank"],
            log=folder / "firefox.log",
            environment=environment,
        )

    def is_ready(self) -> bool:
        return "WebDriver BiDi listening" in self.log_text()
