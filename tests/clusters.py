"""A cluster of real servers on this machine: three Galera nodes."""

import getpass
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.servers import MariaDB, free_port

LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise RuntimeError(f"waited in vain until {what}")


class GaleraNode(MariaDB):
    """One of several MariaDB servers that all take writes: a transaction is committed on all of them or on none."""

    # what copies the data to a new node gives up root's rights, so a node can't be root's
    account = "mysql" if os.geteuid() == 0 else getpass.getuser()

    @staticmethod
    def provider() -> Path | None:
        """Return MariaDB's plug-in for the replication."""
        return next((path for root in LIBRARIES for path in Path(root).glob("**/libgalera_smm.so")), None)

    def __init__(self, folder: Path, nodes: list["GaleraNode"]) -> None:
        self.nodes = nodes
        self.port, self.ist_port, self.sst_port = free_port(), free_port(), free_port()
        super().__init__(folder)
        nodes.append(self)

    def install(self) -> None:
        if not self.nodes:
            super().install()
        else:  # it gets its data from the first
            self.folder.mkdir()
            shutil.chown(self.folder, self.account)

    def command(self) -> list[str]:
        here = "127.0.0.1"
        # nobody to join: this one founds the cluster
        others = [f"{here}:{node.port}" for node in self.nodes if node is not self and node.process]
        provider_options = [
            f"base_host={here}",
            f"base_port={self.port}",
            f"gmcast.listen_addr=tcp://{here}:{self.port}",
            f"ist.recv_addr={here}:{self.ist_port}",
            "gcache.size=16M",
        ]
        return [
            "setsid",  # a process group of its own, so that kill reaches the scripts that copy the data
            *super().command(),
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            "--innodb-log-file-size=16M",
            "--wsrep-on=ON",
            f"--wsrep-provider={self.provider()}",
            f"--wsrep-provider-options={';'.join(provider_options)}",
            f"--wsrep-cluster-address=gcomm://{','.join(others)}",
            f"--wsrep-node-address={here}",
            f"--wsrep-sst-receive-address={here}:{self.sst_port}",
            "--wsrep-sst-method=rsync",
        ]

    def status(self, name: str) -> Any:
        with self.connect() as connection:
            cursor = connection.cursor()
            cursor.execute("SHOW STATUS LIKE %s", (name,))
            (_, value), *_ = cursor.fetchall()
        return value

    def start(self) -> None:
        super().start()
        wait_until(lambda: self.status("wsrep_local_state_comment") == "Synced", f"{self.folder} is in step")

    def kill(self) -> None:
        if self.process:
            with suppress(ProcessLookupError):  # it may have ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)
        super().kill()


@contextmanager
def galera_cluster() -> Iterator[list[GaleraNode]]:
    """Start three nodes; a node that is killed can be started again, as long as another one is up."""
    with TemporaryDirectory(prefix="galera-") as folder:
        shutil.chown(folder, GaleraNode.account)
        nodes: list[GaleraNode] = []
        try:
            for number in range(3):
                GaleraNode(Path(folder) / f"node{number}", nodes).start()
            yield nodes
        finally:
            for node in nodes:
                node.kill()
