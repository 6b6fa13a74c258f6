"""Alerts: what needs a person, said once on the terminal, in the journal, to a webhook and to a command.

A webhook that hangs or a command that fails must never cost the run anything, so each is served by a thread of its own
that nothing waits for, and what goes wrong there is a line in the journal.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from cutline.config import HealthConfig
from cutline.console import say
from cutline.engine import journal as journals
from cutline.engine.journal import Journal
from cutline.errors import ConfigError

WEBHOOK_SECONDS = 10.0
"""How long an answer of the webhook is waited for."""
COMMAND_SECONDS = 60.0
"""How long the command may take before it is ended."""
PAUSES = (2.0, 10.0)
"""Seconds before the webhook is tried again: an alert should outlast a moment without network."""
DELIVERY_SECONDS = (len(PAUSES) + 1) * WEBHOOK_SECONDS + sum(PAUSES)
"""How long all of that may take."""

Message = dict[str, str | float]


class Alerts:
    """Tells of each trouble when it begins and when it is over; may be called from any thread."""

    def __init__(self, run: Path, config: HealthConfig, journal: Journal) -> None:
        self.run, self.journal = run, journal
        self._lock = Lock()
        self._told: set[str] = set()
        # Of the processes before this one, too: who was told that something began is told when it is over.
        self._open = _left_open(journal)
        self._couriers = [_Courier(name, way, journal) for name, way in ways(config)]

    def __call__(self, name: str, what: str, fix: str) -> None:
        """`name` begins, or with no `what` is over. To say again what is so already does nothing."""
        with self._lock:
            if what and name not in self._told:
                self._told.add(name)
                self._open.add(name)
                self.journal.write("alert", name=name, what=what, fix=fix)
                self._tell(name, "begins", what, fix)
            elif not what and name in self._open:
                self._told.discard(name)
                self._open.discard(name)
                self.journal.write("alert_over", name=name)
                self._tell(name, "over", "", "")

    def over(self) -> None:
        """The run has ended: nothing that was is trouble any more."""
        for name in sorted(self._open):
            self(name, "", "")

    def close(self, timeout: float = 5.0) -> None:
        """Wait for what is still on its way, but no longer than this."""
        until = time.monotonic() + timeout
        for courier in self._couriers:
            courier.close()
        for courier in self._couriers:
            courier.thread.join(max(0.0, until - time.monotonic()))

    def _tell(self, name: str, state: str, what: str, fix: str) -> None:
        text = f"alert: {what}\n  to fix: {fix}" if what else f"alert over: {name}"
        with contextlib.suppress(OSError, ValueError):  # a terminal that has gone away
            say(text)
        message: Message = {
            "run": self.run.resolve().name, "host": socket.gethostname(), "time": round(time.time(), 3),
            "name": name, "state": state, "what": what, "fix": fix,
        }  # fmt: skip
        for courier in self._couriers:
            courier.take(message)


def ways(config: HealthConfig) -> list[tuple[str, Callable[[bytes], None]]]:
    """How alerts leave the machine, by name; an address or a program that cannot be one is refused."""
    found = []
    if config.webhook:
        found.append(("webhook", _webhook(config.webhook)))
    if config.command:
        found.append(("command", _command(config.command)))
    return found


def _left_open(journal: Journal) -> set[str]:
    found: set[str] = set()
    for entry in journals.entries(journal.path):
        if entry["kind"] == "alert":
            found.add(str(entry.get("name")))
        elif entry["kind"] == "alert_over":
            found.discard(str(entry.get("name")))
    return found


class _Courier:
    """Delivers messages one after the other in its own thread; notes the first of several failures."""

    def __init__(self, name: str, deliver: Callable[[bytes], None], journal: Journal) -> None:
        self.name, self.deliver, self.journal = name, deliver, journal
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        # A daemon, which an executor's thread is not: the end of the program never waits for a webhook that hangs.
        self.thread = Thread(target=self._work, name=f"alerts-{name}", daemon=True)
        self.thread.start()

    def take(self, message: Message) -> None:
        self._queue.put(message)

    def close(self) -> None:
        self._queue.put(None)

    def _work(self) -> None:
        failed = False
        while (message := self._queue.get()) is not None:
            try:
                self.deliver(json.dumps(message, ensure_ascii=False).encode())
                failed = False
            except Exception as error:
                if not failed:
                    why = str(error) or type(error).__name__
                    self.journal.write("alert_undelivered", by=self.name, name=message["name"], why=why)
                failed = True


def _webhook(address: str) -> Callable[[bytes], None]:
    if not _can_be_posted_to(address):  # and not shown, here or in the journal: an address often holds a secret
        raise ConfigError(
            "'health.webhook' is not an address to post to",
            expected="https://… or http://…, with no name and password in it, and %20 for a space",
            fix="correct it in the config file; what needs more than a post is for 'health.command', curl for instance",
        )
    opener = urllib.request.build_opener(_Unmoved)

    def post(message: bytes) -> None:
        headers = {"Content-Type": "application/json", "User-Agent": "cutline"}
        request = urllib.request.Request(address, message, headers)
        with opener.open(request, timeout=WEBHOOK_SECONDS):
            pass

    def deliver(message: bytes) -> None:
        for pause in PAUSES:
            try:
                return post(message)
            except OSError:
                time.sleep(pause)
        return post(message)

    return deliver


def _can_be_posted_to(address: str) -> bool:
    """What could not would be quoted in the error of the first alert, and that is too late."""
    try:
        parts = urlsplit(address)
        named = bool(parts.hostname) and parts.port != 0  # which also asks whether it is a number
    except ValueError:
        return False
    plain = address.isascii() and address.isprintable() and " " not in address
    return parts.scheme in ("http", "https") and named and parts.username is None and plain


class _Unmoved(urllib.request.HTTPRedirectHandler):
    """Where an address has moved, posting fails: to the new one it would be sent as a GET, without the alert."""

    def redirect_request(self, *asked: Any) -> None:
        return None


def _command(line: str) -> Callable[[bytes], None]:
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ConfigError(
            f"'health.command' cannot be read: {error}", fix="quote it as a shell's command line"
        ) from None
    if not words or not shutil.which(words[0]):
        raise ConfigError(
            f"'health.command' names a program that is not there: '{' '.join(words[:1])}'",
            expected="a program on the path, or the path of one, and its arguments",
            fix="correct it in the config file; what needs a shell goes as: sh -c '...'",
        )

    def deliver(message: bytes) -> None:
        # In a session of its own, so that a Ctrl-C for the run does not reach it and that it can be ended with all it
        # has started. No pipe but its input: one that a grandchild holds open would be waited for.
        process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.communicate(message, timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise TimeoutError(f"'{words[0]}' took more than {COMMAND_SECONDS:g} s and was ended") from None
        if process.returncode:
            raise RuntimeError(f"'{words[0]}' ended with exit code {process.returncode}")

    return deliver
