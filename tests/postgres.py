"""A PostgreSQL server of our own, on a Unix socket in a temporary directory: Debian's package, started by the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path


def find_postgres() -> Path | None:
    """Return the directory of PostgreSQL's programs, the newest version; None if it is not installed."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("initdb")
    return Path(found).parent if found else None


@contextlib.contextmanager
def serve_postgres(programs: Path) -> Iterator[str]:
    """Run a server; yield the address of its database."""
    # It refuses to run as root, and Debian's package comes with a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="router-r1-pg-") as directory:
        if user is not None:
            account = pwd.getpwnam(user)
            os.chown(directory, account.pw_uid, account.pw_gid)

        def run(program: str, *arguments: str) -> None:
            command = [programs / program, "-D", f"{directory}/data", *arguments]
            subprocess.run(command, check=True, capture_output=True, user=user, cwd=directory)

        run("initdb", "-U", "router", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
        settings = f"-c listen_addresses='' -c unix_socket_directories={directory} -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{directory}/log", "-o", settings, "start")
        try:
            yield f"postgresql://router@/postgres?host={directory}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
