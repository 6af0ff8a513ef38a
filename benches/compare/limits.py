"""Programs inside a memory limit: a control group of their own (version 1 or 2), which needs root."""

import os
import subprocess
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")


class Group:
    """A control group with at most so many bytes, page cache included, as the kernel counts it."""

    def __init__(self, limit):
        self.limit = limit
        first = (ROOT / "memory").is_dir()
        base = ROOT / "memory" if first else ROOT
        names = ("memory.limit_in_bytes", "memory.max_usage_in_bytes") if first else ("memory.max", "memory.peak")
        self.path = base / f"airllm-compare-{os.getpid()}"
        self.max, self.peak_file = (self.path / name for name in names)

    def __enter__(self):
        self.path.mkdir()
        if not self.max.exists():
            self.path.rmdir()
            raise SystemExit(f"{self.path}: no memory controller here: limits need one")
        self.max.write_text(str(self.limit))
        return self

    def __exit__(self, *_):
        self.path.rmdir()

    def peak(self):
        """The most bytes that it held."""
        return int(self.peak_file.read_text())

    def join(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))


def run(args, limit=None, env=None):
    """Standard output of a program, and the most bytes it held; None where there is no limit."""
    args = [str(arg) for arg in args]

    def go(group):
        done = subprocess.run(
            args, capture_output=True, text=True, env={**os.environ, **(env or {})}, preexec_fn=group and group.join
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip().splitlines()[-8:]
            raise SystemExit(f"{' '.join(args)}: exit {done.returncode}: " + "\n".join(said))
        return done.stdout

    if limit is None:
        return go(None), None
    with Group(limit) as group:
        return go(group), group.peak()


def forget(path):
    """Drops a file's (or a folder's files') pages from the page cache, so that a limit counts what is read."""
    path = Path(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "rb") as open_file:
            os.fdatasync(open_file.fileno())
            os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
