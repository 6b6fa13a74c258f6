"""Disks that give trouble: small, read-only, somebody else's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


class SmallDisk:
    """A file system of a few megabytes, in memory, mounted where only one process sees it: that takes no root."""

    def __init__(self, place: Path, megabytes: int) -> None:
        self._place = place
        commands = 'while read -r line; do $line; echo "$?"; done'
        self._process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", commands],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._do(f"mount -t tmpfs -o size={megabytes}m tmpfs {place}")
        self.folder = Path(f"/proc/{self._process.pid}/root") / place.relative_to("/")

    def remount(self, options: str) -> None:
        self._do(f"mount -o remount,{options} tmpfs {self._place}")

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def fill(self, free: int) -> Path:
        """Leave so many bytes; the file that takes all others comes back."""
        ballast = self.folder / "ballast"
        ballast.unlink(missing_ok=True)
        handle = os.open(ballast, os.O_WRONLY | os.O_CREAT)
        os.posix_fallocate(handle, 0, self.free - free)
        os.close(handle)
        return ballast

    def close(self) -> None:
        self._process.communicate()

    def _do(self, command: str) -> None:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer.strip() != "0":
            why = self._process.communicate()[1].strip()
            pytest.skip(f"no file system can be mounted here: {why}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if sys.platform != "linux" or not shutil.which("unshare"):
        pytest.skip("a file system can be mounted without being root on Linux only, by `unshare`")
    disk = SmallDisk(tmp_path, megabytes=4)
    yield disk
    disk.close()


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of an ordinary user, who this process is meanwhile: nothing is forbidden to root."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, NOBODY, NOBODY)
            os.seteuid(NOBODY)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
