"""The folder of a run: made once, owned by one process at a time, found again by the command that made it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutline import config as configuration
from cutline import durable
from cutline.config import Config
from cutline.engine import journal
from cutline.errors import ConfigError, CutlineError

ABOUT = "run.json"
LATEST = "latest"
"""The link to the newest run of a folder."""
LOCK = "lock"
WORKERS_LOCK = "worker.lock"


def make(config: Config) -> Path:
    """A new folder for a run with these settings, never one that is there."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path(config.output) / f"{stamp}-{re.sub(r'[^A-Za-z0-9._-]+', '-', config.name)}"
    try:
        durable.make(base.parent)
        for path in (base, *(base.with_name(f"{base.name}-{attempt}") for attempt in range(2, 1000))):
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                break
    except OSError as error:
        raise ConfigError(f"{base} cannot be made: {error.strerror}", fix="another --output or --name") from None
    about = {"id": uuid.uuid4().hex, "asked": _asked(config), "made": stamp}
    durable.write(path / ABOUT, json.dumps(about).encode())
    durable.sync(path.parent)
    return path


def unmake(path: Path) -> None:
    """Remove a folder in which no work has begun, and what `make` made to hold it; but not one that somebody has."""
    own = {ABOUT, LOCK, WORKERS_LOCK, journal.NAME}
    with contextlib.suppress(CutlineError), held(path), held(path, WORKERS_LOCK):
        if not own.issuperset(each.name for each in path.iterdir()):
            return
        for name in own:
            (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # others are in the folder that holds it
            path.rmdir()
            path.parent.rmdir()


def identity(run: Path) -> str:
    """What tells this run's checkpoints from any other's."""
    return str(_about(run).get("id", ""))


def point_to(run: Path) -> None:
    """Let `latest` name the newest run, where the file system has links and the name is not something else's."""
    link = run.parent / LATEST
    draft = link.with_name(f".{run.name}.link")
    with contextlib.suppress(OSError):
        if link.is_symlink() or not link.exists():
            draft.symlink_to(run.name, target_is_directory=True)
            draft.replace(link)


def unfinished(config: Config) -> Path | None:
    """The newest run that the same settings have begun and not brought to its end, be it that they only prepare it."""
    asked, output = _asked(config), Path(config.output)
    found = [path.parent for path in output.glob(f"*/{ABOUT}") if not path.parent.is_symlink()]
    for run in sorted(found, reverse=True):
        if _about(run).get("asked") == asked:
            return None if ended(run) == "finished" else run
    return None


@contextlib.contextmanager
def held(run: Path, name: str = LOCK, *, patience: float = 0.0) -> Iterator[None]:
    """Own a run folder, which only one process can; wait so many seconds for another to let go of it."""
    import fcntl

    try:
        handle = os.open(run / name, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CutlineError(f"{run} cannot be written to: {error.strerror}", fix="mend its permissions") from None
    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if not isinstance(error, BlockingIOError | InterruptedError):
                    raise CutlineError(
                        f"{run} cannot be kept from other processes: {error.strerror}",
                        expected="a file system with locks",
                        fix="--output on another disk, or mount this one with locks",
                    ) from None
                if time.monotonic() >= deadline:
                    holder = os.read(handle, 200).decode() or "another process"
                    raise CutlineError(
                        f"{run} is in use by {holder}",
                        fix="wait for it, or end it; cutline train --new starts another run beside it",
                    ) from None
                time.sleep(0.1)
        if not _is(run / name, handle):  # whoever had it has removed it, and the lock is of nothing
            raise CutlineError(f"{run} is no longer there", fix="start the same command again")
        with contextlib.suppress(OSError):  # a full disk: who has it is good to know, and no more
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(handle)


def _is(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def made(run: Path) -> float:
    """When the folder was made."""
    return (run / ABOUT).stat().st_mtime


def settings(run: Path) -> Config:
    return configuration.load(file_of(run, "config.toml"))


def file_of(run: Path, name: str) -> Path:
    if not (run / name).is_file():
        raise ConfigError(f"{run} is not a run folder: it has no {name}", expected="a folder that cutline train made")
    return run / name


def ended(run: Path) -> str:
    """How the work on a run last ended, as its journal has it: finished, stopped, gave_up; empty when it did not."""
    ways = ("started", "finished", "stopped", "gave_up")
    last = next((entry for entry in reversed(journal.read(run)) if entry["kind"] in ways), None)
    return "" if last is None or last["kind"] == "started" else str(last["kind"])


def _about(run: Path) -> dict[str, Any]:
    try:
        about = json.loads((run / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _asked(config: Config) -> str:
    """A hash of all settings but how the run is looked after, and by how many processes, which resuming compares."""
    tables = configuration.to_dict(config)
    tables.pop("health")
    tables.pop("processes")
    if tables["training"]["optimizer"] == "adamw":  # as of a run from before there was another
        tables["training"].pop("optimizer")
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()[:32]
