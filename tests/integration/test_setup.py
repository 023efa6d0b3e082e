"""The surroundings of the app: its environment, private Redis, virtual environment, and rules for tests."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from project import private_redis
from realtime.conf import Settings
from tests.support.programs.servers import CHECKOUT

ENVIRONMENT = (
    "DATABASE_URL",
    "REDIS_URL",
    "CHANNEL_LAYER_BACKEND",
    "SECRET_KEY",
    "DEBUG",
    "ALLOWED_HOSTS",
    "PORT",
    "HTTPS",
    "TRUSTED_PROXIES",
    "OPERATORS",
)


def read_settings(monkeypatch: pytest.MonkeyPatch, **environment: str) -> dict[str, object]:
    """Read the project's settings with only these variables in the environment."""
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return runpy.run_path(str(CHECKOUT / "project/settings.py"))


class TestSettings:
    def test_on_one_machine_nothing_must_be_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = read_settings(monkeypatch)

        assert settings["DEBUG"] is True
        assert settings["PORT"] == 8000
        assert settings["PRIVATE_REDIS"] is True
        assert settings["CHANNEL_LAYERS"] == {
            "default": {
                "BACKEND": "realtime.layers.PubSubLayer",
                "CONFIG": {"hosts": [f"unix://{private_redis.socket_path()}"]},
            }
        }
        assert settings["DATABASES"]["default"]["NAME"] == CHECKOUT / "var/db.sqlite3"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("environment", "sentence"),
        [
            (
                {"DEBUG": "0"},
                "SECRET_KEY is not set; without DEBUG, set it to a long random string that you keep.",
            ),
            ({"PORT": "http"}, "PORT is 'http'; set it to a number from 1 to 65535."),
            ({"PORT": "0"}, "PORT is '0'; set it to a number from 1 to 65535."),
            ({"CHANNEL_LAYER_BACKEND": "x"}, "CHANNEL_LAYER_BACKEND is 'x'; set it to one of: pubsub, core."),
            ({"DATABASE_URL": "db.sqlite3"}, "DATABASE_URL cannot be read; write postgres://"),
            (
                {"DATABASE_URL": "postgres://host:port/name"},
                "DATABASE_URL cannot be read: Port could not be cast",
            ),
            ({"REDIS_URL": "localhost:6379"}, "REDIS_URL cannot be read; write redis://"),
            (
                {"CSRF_TRUSTED_ORIGINS": "example.com"},
                "CSRF_TRUSTED_ORIGINS has 'example.com'; write it with its scheme",
            ),
        ],
    )
    def test_a_value_that_cannot_work_is_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sentence: str
    ) -> None:
        with pytest.raises(ImproperlyConfigured, match="^" + re.escape(sentence)):
            read_settings(monkeypatch, **environment)

    def test_a_password_is_never_repeated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ImproperlyConfigured) as refusal:
            read_settings(monkeypatch, DATABASE_URL="mysql://me:hidden@host/name")

        assert "hidden" not in str(refusal.value)

    def test_a_secret_key_may_begin_with_a_dollar_sign(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert read_settings(monkeypatch, SECRET_KEY="$ecret", DEBUG="0")["SECRET_KEY"] == "$ecret"

    def test_hosts_may_be_written_with_spaces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert read_settings(monkeypatch, ALLOWED_HOSTS="a.example, b.example")["ALLOWED_HOSTS"] == [
            "a.example",
            "b.example",
        ]

    @pytest.mark.parametrize(
        ("environment", "secure"),
        [({}, False), ({"DEBUG": "0"}, True), ({"DEBUG": "0", "HTTPS": "0"}, False), ({"HTTPS": "1"}, True)],
    )
    def test_without_debug_cookies_need_https(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], secure: bool
    ) -> None:
        settings = read_settings(monkeypatch, SECRET_KEY="x", **environment)

        for name in ("SESSION_COOKIE_SECURE", "CSRF_COOKIE_SECURE", "LANGUAGE_COOKIE_SECURE"):
            assert settings[name] is secure

    def test_proxies_and_operators_come_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = read_settings(monkeypatch, TRUSTED_PROXIES="10.0.3.0/24, unix", OPERATORS="10.0.9.7")
        realtime: dict[str, object] = settings["REALTIME"]  # type: ignore[assignment]

        assert (realtime["TRUSTED_PROXIES"], realtime["OPERATORS"]) == (["10.0.3.0/24", "unix"], ["10.0.9.7"])
        assert tuple(read_settings(monkeypatch)["OPERATORS"]) == Settings().OPERATORS  # type: ignore[arg-type]

    def test_options_of_a_database_url_are_kept_beside_ours(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        settings = read_settings(monkeypatch, DATABASE_URL=f"sqlite:///{tmp_path}/db.sqlite3?timeout=5")

        assert settings["DATABASES"]["default"]["OPTIONS"]["timeout"] == 5  # type: ignore[index]
        assert settings["DATABASES"]["default"]["OPTIONS"]["transaction_mode"] == "IMMEDIATE"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("command", "variable", "value", "sentence"),
        [
            (
                "reap_connections",
                "CHANNEL_LAYER_BACKEND",
                "x",
                "CHANNEL_LAYER_BACKEND is 'x'; set it to one of",
            ),
            ("migrate", "DATABASE_URL", "postgres://127.0.0.1:1/none", "The database: connection failed"),
        ],
    )
    @pytest.mark.acceptance  # a Python of its own
    def test_manage_py_says_a_sentence_without_a_traceback(
        self, command: str, variable: str, value: str, sentence: str
    ) -> None:
        done = subprocess.run(
            [sys.executable, "manage.py", command],
            cwd=CHECKOUT,
            env={**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings", variable: value},
            capture_output=True,
            text=True,
            check=False,
        )

        assert done.returncode == 2
        assert done.stderr.startswith(sentence)
        assert "Traceback" not in done.stderr


class TestPrivateRedis:
    @pytest.fixture(autouse=True)
    def runtime_folder(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
        return tmp_path

    def claim(self) -> None:
        os.close(private_redis.claim())

    def test_its_folder_is_closed_to_other_users(self) -> None:
        self.claim()

        assert private_redis.socket_path().parent.stat().st_mode & 0o777 == 0o700

    def test_a_missing_runtime_folder_is_skipped(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
        monkeypatch.setattr(private_redis.tempfile, "gettempdir", lambda: "/elsewhere")

        assert private_redis.socket_path().is_relative_to("/elsewhere")

    def test_a_folder_that_others_can_enter_is_refused(self) -> None:
        private_redis.socket_path().parent.mkdir(mode=0o755)

        with pytest.raises(private_redis.CannotStart, match="is not a folder that only you can enter"):
            self.claim()

    def test_a_link_to_a_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        private_redis.socket_path().parent.symlink_to(tmp_path / "elsewhere")

        with pytest.raises(private_redis.CannotStart, match="is not a folder that only you can enter"):
            self.claim()

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
    def test_a_folder_of_another_user_is_refused(self) -> None:
        folder = private_redis.socket_path().parent
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, 12345)

        with pytest.raises(private_redis.CannotStart, match="is not a folder that only you can enter"):
            self.claim()

    def test_a_path_that_is_too_long_is_named_with_its_remedy(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        deep = tmp_path / ("x" * 100)
        deep.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))

        with pytest.raises(
            private_redis.CannotStart, match="set XDG_RUNTIME_DIR or TMPDIR to a folder with a shorter"
        ):
            self.claim()

    def test_a_second_server_is_refused(self) -> None:
        lock = private_redis.claim()
        try:
            with pytest.raises(private_redis.CannotStart, match="runs already"):
                private_redis.claim()
        finally:
            os.close(lock)
        self.claim()

    def test_the_wheels_server_is_used_if_none_is_on_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")

        server = Path(private_redis.server_program())

        assert server.name == "valkey-server"
        assert os.access(server, os.X_OK)

    def test_a_server_on_path_comes_first(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "redis-server"
        program.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

        assert private_redis.server_program() == str(program)

    def test_no_server_at_all_is_one_sentence(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(private_redis.importlib.metadata, "files", lambda _: None)

        with pytest.raises(private_redis.CannotStart, match="install one"):
            private_redis.server_program()


class TestMakeVenv:
    """Tests of project/make-venv.sh with a PATH of Pythons that the test wrote."""

    @pytest.fixture
    def machine(self, tmp_path: Path) -> Path:
        """A PATH with the programs that the script needs besides a Python."""
        for name in ("sh", "dirname"):
            (tmp_path / name).symlink_to(Path("/usr/bin") / name)
        return tmp_path

    def install(self, machine: Path, name: str, *, runs: bool = True, venv: bool = True) -> None:
        program = machine / name
        check = f'case "$2" in *venv*) exit {0 if venv else 1};; esac\n'
        program.write_text(
            "#!/bin/sh\n" + (check if runs else f"echo {name}: command not found >&2; exit 127\n")
        )
        program.chmod(0o755)

    def check(self, machine: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/sh", CHECKOUT / "project/make-venv.sh", "--check"],
            env={"PATH": str(machine)},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_a_shim_of_a_missing_version_is_skipped(self, machine: Path) -> None:
        self.install(machine, "python3.13", runs=False)
        self.install(machine, "python3.11")

        done = self.check(machine)

        assert (done.returncode, done.stderr) == (0, "")

    def test_a_python_with_venv_precedes_a_newer_one_without(self, machine: Path) -> None:
        self.install(machine, "python3.12", venv=False)
        self.install(machine, "python3")

        assert self.check(machine).returncode == 0

    def test_a_missing_venv_module_is_named_with_its_remedy(self, machine: Path) -> None:
        self.install(machine, "python3.12", venv=False)

        done = self.check(machine)

        assert done.returncode == 1
        assert done.stderr.startswith("python3.12 lacks the venv module")
        assert "apt-get install python3-venv" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_no_python_that_is_new_enough_is_one_sentence(self, machine: Path) -> None:
        self.install(machine, "python3", runs=False)

        done = self.check(machine)

        assert done.returncode == 1
        assert done.stderr.startswith("No Python 3.11 or newer was found")
        assert done.stderr.count("\n") == 1


@pytest.mark.acceptance  # a pytest of its own
class TestRequireAll:
    """Tests of tests/conftest.py with REQUIRE_ALL=1."""

    TESTS = """
import pytest

@pytest.mark.skip(reason="no nft here")
def test_marked(): pass

def test_inside(): pytest.skip("no chromium here")

@pytest.mark.xfail(reason="known")
def test_known_fault(): assert False

def test_passing(): pass
"""

    def run(self, tests: str, folder: Path, require_all: str) -> str:
        (folder / "test_sample.py").write_text(tests)
        command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rfE"]
        done = subprocess.run(
            [*command, "-c", os.devnull, "--rootdir", str(folder), str(folder)],
            cwd=CHECKOUT,
            env={**os.environ, "REQUIRE_ALL": require_all, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def test_a_skipped_test_fails_with_its_reason(self, tmp_path: Path) -> None:
        output = self.run(self.TESTS, tmp_path, "1")

        assert "REQUIRE_ALL=1, and this would be skipped: no nft here" in output
        assert "REQUIRE_ALL=1, and this would be skipped: no chromium here" in output
        assert "1 failed, 1 passed, 1 xfailed, 1 error" in output

    def test_a_skipped_module_fails_with_its_reason(self, tmp_path: Path) -> None:
        output = self.run('import pytest\npytest.importorskip("no_such_module")\n', tmp_path, "1")

        assert "REQUIRE_ALL=1, and this would be skipped: could not import 'no_such_module'" in output

    def test_without_the_option_skipping_is_allowed(self, tmp_path: Path) -> None:
        assert "1 passed, 2 skipped, 1 xfailed" in self.run(self.TESTS, tmp_path, "")


class TestWhatIsWritten:
    """Facts that two files state, so they must agree."""

    def test_ci_runs_the_readmes_own_test_command(self) -> None:
        script = (CHECKOUT / ".ci/run").read_text()
        pattern = re.search(r"sed -n '(s/.*/p)' README\.md", script)
        assert pattern is not None

        command = subprocess.run(
            ["sed", "-n", pattern[1], "README.md"], cwd=CHECKOUT, capture_output=True, text=True, check=True
        ).stdout

        assert command == "make test\n"

    def test_the_plain_commands_are_those_of_make(self) -> None:
        readme = (CHECKOUT / "README.md").read_text()
        makefile = (CHECKOUT / "Makefile").read_text()

        for part in ("manage.py migrate", "-m project.start"):
            assert f".venv/bin/python {part}" in readme
            assert f"$(PYTHON) {part}" in makefile

    def test_the_architecture_page_lists_every_module(self) -> None:
        page = (CHECKOUT / "docs/architecture.md").read_text()
        sections = re.findall(
            r"^### (?:`(\w+)/`|The top[^\n]*)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL
        )
        written = {
            package: {
                name
                for row in re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE)
                for name in re.findall(r"`(\w+)`", row)
            }
            for package, text in sections
        }
        package = CHECKOUT / "realtime"
        django = {"admin", "management"}
        there = {
            folder.name: {path.stem for path in folder.glob("*.py")} - {"__init__"}
            for folder in (each.parent for each in package.glob("*/__init__.py"))
            if folder.name not in {"migrations", *django}
        }
        there[""] = {path.stem for path in package.glob("*.py")} - {"__init__"} | django

        assert written == there

    def test_daphne_takes_larger_messages_than_clients_may_send(self) -> None:
        # Daphne's limit also ends connections to which the server sends more.
        web = re.search(
            r"^web: .*--websocket-max-message-size (\d+)", (CHECKOUT / "Procfile").read_text(), re.MULTILINE
        )
        assert web is not None

        assert int(web[1]) > Settings().MAX_MESSAGE_BYTES
