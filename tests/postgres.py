"""A real PostgreSQL for the tests: on a free port of 127.0.0.1, in a temporary folder, as an unprivileged user."""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = sorted(
    glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[4]) if p.split("/")[4].isdigit() else 0
)


def programs():
    "Folder of initdb and postgres, None where there is none."
    if PROGRAMS:
        return Path(PROGRAMS[-1])
    postgres = shutil.which("postgres")
    return Path(postgres).resolve().parent if postgres and shutil.which("initdb") else None


def why_not():
    "Why PostgreSQL cannot be started here, '' if it can."
    if programs() is None:
        return "PostgreSQL is not installed (on Debian or Ubuntu: apt-get install postgresql)"
    if os.getuid() == 0:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "PostgreSQL does not run as root, and there is no user postgres"
    return ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Postgres:
    "One cluster. `start`, `stop`, `kill` (-9, all its processes) and `start` again; its data stay until `remove`."

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="gnn_postgres_"))
        self.data, self.port, self.process, self.names = self.folder / "data", free_port(), None, 0
        self.user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
        if self.user:
            shutil.chown(self.folder, "postgres", "postgres")
        self._run(
            "initdb",
            "--pgdata",
            self.data,
            "--auth=trust",
            "--username=shop",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )

    def _run(self, program, *args):
        done = subprocess.run(
            [str(programs() / program), *map(str, args)], cwd=self.folder, capture_output=True, text=True, **self.user
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"

    def start(self):
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": 60,
        }
        command = [str(programs() / "postgres"), "-D", str(self.data), *(f"--{k}={v}" for k, v in options.items())]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, **self.user
            )
        until = time.monotonic() + 30
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < until, (
                f"postgres did not start: {(self.folder / 'log').read_text()[-2000:]}"
            )
            time.sleep(0.05)
        return self

    def answers(self):
        import psycopg

        try:
            psycopg.connect(self.url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self):
        "As a crash does it: no process gets to say goodbye."
        all_of_them = [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]
        for process in all_of_them:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                pass
        self.process.wait()
        psutil.wait_procs(all_of_them, timeout=10)

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # at once: the folder is thrown away
            self.process.wait(timeout=30)

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database):
        return f"postgresql://shop@127.0.0.1:{self.port}/{database}"

    def database(self):
        "Address of a new, empty schema: to the store the same as a database, and made in no time."
        import psycopg

        self.names += 1
        with psycopg.connect(self.url("postgres"), autocommit=True) as con:
            con.execute(f"CREATE SCHEMA test{self.names}")
        return f"{self.url('postgres')}?options=-csearch_path%3Dtest{self.names}"
