"""A real PostgreSQL for the tests: started from the binaries of this machine in a temporary folder, ended by its id.

Where the binaries are missing the tests that need them are skipped, except in CI, where they fail. PostgreSQL refuses
to run as root, so under root it runs as `postgres` or `nobody`.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

_START_SECONDS = 60


class PostgresServer:
    """One server process. `new_database()` gives the URL of an empty database of its own."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="kudos-postgres-"))
        self.port = 0
        self._as_user: dict[str, object] = {}
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            self._as_user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._run(
            "initdb", "--pgdata", self._data, "--username=kudos", "--auth=trust", "--encoding=UTF8", "--no-sync",
            "--locale=C",
        )  # fmt: skip

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _run(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._binaries / name), *arguments],
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "HOME": str(self.folder)},
            capture_output=True,
            text=True,
            check=False,
            **self._as_user,  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            raise RuntimeError(f"{name} failed: {done.stdout}{done.stderr}")

    def start(self) -> None:
        """Starts on a port that the system gives; a restart keeps the port."""
        for _ in range(1 if self.port else 5):  # another process may take the port before PostgreSQL does
            port = self.port or _free_port()
            if self._try_start(port):
                self.port = port
                return
        raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()[-4000:]}")

    def _try_start(self, port: int) -> bool:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._binaries / "postgres"), "-D", self._data, "-p", str(port), "-h", "127.0.0.1",
                    "-k", str(self.folder),
                    # The tests kill clients, never the machine: what they check does not need PostgreSQL's own fsync.
                    "-c", "fsync=off", "-c", "autovacuum=off", "-c", "shared_buffers=32MB", "-c", "max_connections=60",
                ],
                cwd=self.folder,
                env={"LC_ALL": "C", "HOME": str(self.folder)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for pytest
                **self._as_user,  # type: ignore[call-overload]
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                psycopg.connect(self._dsn(port, "postgres"), connect_timeout=2).close()
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return True
        self.stop()
        return False

    def stop(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # "fast": ends the sessions, then itself
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGQUIT)  # "immediate": takes its children with it
                self._process.wait(timeout=20)
        self._process = None

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # nobody needs what a clean shutdown would save
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        name = f"kudos_{next(self._numbers)}"
        with psycopg.connect(self._dsn(self.port, "postgres"), autocommit=True) as connection:
            # template0 takes no connections; copying template1 fails while anything, say autovacuum, is looking at it.
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0'.encode())
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://kudos@127.0.0.1:{self.port}/{name}"

    @staticmethod
    def _dsn(port: int, name: str) -> str:
        return f"host=127.0.0.1 port={port} user=kudos dbname={name}"


def _account() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("PostgreSQL refuses to run as root, and there is neither a user `postgres` nor a `nobody`")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binaries() -> Path | None:
    if (found := shutil.which("initdb")) is not None and shutil.which("postgres") is not None:
        return Path(found).parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return installed[-1].parent if installed else None


def make_postgres_server() -> PostgresServer:
    """A server of the test's own, for one that stops it. The caller closes it."""
    binaries = _binaries()
    if binaries is None:
        reason = "PostgreSQL's initdb and postgres are neither on PATH nor below /usr/lib/postgresql"
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail(reason)
        pytest.skip(reason)
    server = PostgresServer(binaries)
    try:
        server.start()
    except BaseException:
        server.close()
        raise
    return server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    server = make_postgres_server()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> str:
    """An empty database that no other test sees."""
    return postgres_server.new_database()
