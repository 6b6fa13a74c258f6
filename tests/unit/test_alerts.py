"""Alerts reach who they should, once, and never hold up or end a run."""

import io
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cutline.config import HealthConfig
from cutline.engine import alerts as module
from cutline.engine import journal as journals
from cutline.engine.alerts import Alerts
from cutline.engine.journal import Journal
from cutline.errors import ConfigError

PATIENT = 60.0


class Webhook(ThreadingHTTPServer):
    """Keeps what is posted to it and answers with the next of `answers`, then with 200; 0 is no answer at all."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.let_go = threading.Event()
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/a-secret"


class Answer(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        self.server.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        answer = self.server.answers.pop(0) if self.server.answers else 200
        if answer == 0:
            self.server.let_go.wait()
            return
        self.send_response(answer)
        if answer == 302:
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Webhook() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()


def alerts(run: Path, **settings: Any) -> Alerts:
    run.mkdir(exist_ok=True)
    return Alerts(run, HealthConfig(**settings), Journal(run))


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in journals.read(run) if entry["kind"] == kind]


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_a_trouble_is_told_once_everywhere_and_so_is_its_end(
    tmp_path: Path, webhook: Webhook, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run-1"
    told = alerts(run, webhook=webhook.address)
    told("disk", "", "")  # nothing has begun
    for free in ("0.9", "0.8"):
        told("disk", f"{free} GB are free – little", "make room")
    told("disk", "", "")
    told("disk", "", "")
    told("disk", "0.7 GB are free", "make room")
    told.close(PATIENT)

    assert [(post["name"], post["state"], post["what"], post["fix"]) for post in webhook.posted] == [
        ("disk", "begins", "0.9 GB are free – little", "make room"),
        ("disk", "over", "", ""),
        ("disk", "begins", "0.7 GB are free", "make room"),
    ]
    assert set(webhook.posted[0]) == {"run", "host", "time", "name", "state", "what", "fix"}
    assert webhook.posted[0]["run"] == "run-1"
    assert abs(webhook.posted[0]["time"] - time.time()) < 600
    assert [entry["kind"] for entry in journals.read(run)] == ["alert", "alert_over", "alert"]
    assert entries(run, "alert")[0]["fix"] == "make room"
    shown = capsys.readouterr().err
    assert shown.count("alert: 0.9 GB are free – little\n  to fix: make room\n") == 1
    assert shown.count("alert over: disk\n") == 1
    assert "0.8" not in shown


def test_a_webhook_that_hangs_holds_up_nothing(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WEBHOOK_SECONDS", 30.0)
    monkeypatch.setattr(module, "PAUSES", ())
    webhook.answers = [0]
    heard = tmp_path / "heard"
    told = alerts(tmp_path, webhook=webhook.address, command=f"tee {shlex.quote(str(heard))}")
    told("disk", "the disk is full", "make room")
    told("memory", "the memory is full", "use less")
    wait_for(lambda: heard.exists() and "memory" in heard.read_text())  # the command is served beside it
    told.close(0.2)
    assert [post["name"] for post in webhook.posted] == ["disk"]
    assert not entries(tmp_path, "alert_undelivered")  # closing did not wait for its answer


def test_the_end_of_the_program_does_not_wait_for_a_webhook(tmp_path: Path, webhook: Webhook) -> None:
    webhook.answers = [0]
    code = """if True:
        import pathlib, sys
        from cutline.config import HealthConfig
        from cutline.engine import alerts, journal
        alerts.WEBHOOK_SECONDS = 1000.0
        run = pathlib.Path(sys.argv[1])
        told = alerts.Alerts(run, HealthConfig(webhook=sys.argv[2]), journal.Journal(run))
        told("disk", "the disk is full", "make room")
    """
    subprocess.run([sys.executable, "-c", code, tmp_path, webhook.address], check=True, timeout=2 * PATIENT)


def test_a_webhook_that_recovers_gets_the_alert(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    webhook.answers = [503, 500, 200]
    told = alerts(tmp_path, webhook=webhook.address)
    told("disk", "the disk is full", "make room")
    told.close(PATIENT)
    assert len(webhook.posted) == 3
    assert not entries(tmp_path, "alert_undelivered")


def test_failing_delivery_is_noted_once_until_it_works_again(
    tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSES", ())
    webhook.answers = [500, 500, 200, 404]
    told = alerts(tmp_path, webhook=webhook.address)
    for name in "abcd":
        told(name, f"{name} happened", "do something")
    told.close(PATIENT)
    noted = entries(tmp_path, "alert_undelivered")
    assert [(entry["by"], entry["name"]) for entry in noted] == [("webhook", "a"), ("webhook", "d")]
    assert "500" in noted[0]["why"]
    assert "a-secret" not in (tmp_path / journals.NAME).read_text()


def test_an_address_that_has_moved_is_noted(tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser would ask for the new address, and all would seem well; but the alert would not get there."""
    monkeypatch.setattr(module, "PAUSES", ())
    webhook.answers = [302]
    told = alerts(tmp_path, webhook=webhook.address)
    told("disk", "the disk is full", "make room")
    told.close(PATIENT)
    (noted,) = entries(tmp_path, "alert_undelivered")
    assert "302" in noted["why"]


def test_nobody_at_the_address_is_noted(tmp_path: Path, webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", ())
    webhook.socket.close()  # the port is ours no longer
    told = alerts(tmp_path, webhook=webhook.address)
    told("disk", "the disk is full", "make room")
    told.close(PATIENT)
    assert len(entries(tmp_path, "alert_undelivered")) == 1


def test_the_command_gets_the_alert_and_no_shell_its_words(tmp_path: Path) -> None:
    script = tmp_path / "told.py"
    script.write_text(
        "import json, sys\n"
        "alert = json.load(sys.stdin)\n"
        "open(sys.argv[1], 'a').write(json.dumps([alert['state'], alert['what'], *sys.argv[2:]]) + '\\n')\n"
    )
    heard = tmp_path / "heard"
    line = shlex.join([sys.executable, str(script), str(heard), "$HOME; touch x", "two words"])
    told = alerts(tmp_path, command=line)
    told("save", "step 7 could not be saved", "mend the disk")
    told("save", "", "")
    told.close(PATIENT)
    assert [json.loads(line) for line in heard.read_text().splitlines()] == [
        ["begins", "step 7 could not be saved", "$HOME; touch x", "two words"],
        ["over", "", "$HOME; touch x", "two words"],
    ]
    assert not entries(tmp_path, "alert_undelivered")


def test_a_command_that_fails_is_noted(tmp_path: Path) -> None:
    told = alerts(tmp_path, command="sh -c 'exit 3'")
    told("save", "step 7 could not be saved", "mend the disk")
    told.close(PATIENT)
    assert [entry["why"] for entry in entries(tmp_path, "alert_undelivered")] == ["'sh' ended with exit code 3"]


def test_a_command_that_hangs_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMAND_SECONDS", 2.0)
    child = tmp_path / "child"
    told = alerts(tmp_path, command=f"sh -c 'sleep 1000 & echo $! > {child}; wait'")
    told("save", "step 7 could not be saved", "mend the disk")
    told.close(PATIENT)
    assert "took more than 2 s" in entries(tmp_path, "alert_undelivered")[0]["why"]
    wait_for(lambda: not alive(int(child.read_text())))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_a_process_left_open_is_over_in_the_next(tmp_path: Path, webhook: Webhook) -> None:
    first = alerts(tmp_path, webhook=webhook.address)
    first("disk", "the disk is full", "make room")
    first("memory", "the memory is full", "use less")
    first("heat", "hot", "cool")
    first("heat", "", "")
    first.close(PATIENT)
    second = alerts(tmp_path, webhook=webhook.address)
    second("disk", "", "")
    second("heat", "", "")
    second("memory", "the memory is full", "use less")  # who starts a run again wants to know
    second.close(PATIENT)
    assert [(post["name"], post["state"]) for post in webhook.posted[4:]] == [("disk", "over"), ("memory", "begins")]


def test_threads_do_not_mix_up_begin_and_end(tmp_path: Path) -> None:
    told = alerts(tmp_path)

    def tell() -> None:
        for _ in range(50):
            told("disk", "the disk is full", "make room")
            told("disk", "", "")

    threads = [threading.Thread(target=tell) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kinds = [entry["kind"] for entry in journals.read(tmp_path)]
    assert kinds == ["alert", "alert_over"] * (len(kinds) // 2)


def test_no_run_ends_because_its_terminal_has_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with io.TextIOWrapper(os.fdopen(writer, "wb", buffering=0), write_through=True) as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        told = alerts(tmp_path)
        told("disk", "the disk is full", "make room")
        monkeypatch.undo()
    assert len(entries(tmp_path, "alert")) == 1


@pytest.mark.parametrize(
    "address",
    [
        "file:///etc/a-secret", "a-secret.example", "https://", "http://[a-secret", "https://me:a-secret@example.org",
        "https://example.org/a secret", "https://example.org/ä-secret", "https://example.org:secret/",
    ],
)  # fmt: skip
def test_an_address_that_cannot_be_posted_to_is_refused_and_not_shown(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"health\.webhook") as caught:
        alerts(tmp_path, webhook=address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("line", ["no-such-program --now", "sh -c 'unfinished", " "])
def test_a_command_that_cannot_be_run_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match=r"health\.command"):
        alerts(tmp_path, command=line)


def test_with_the_run_all_its_troubles_end(tmp_path: Path) -> None:
    told = alerts(tmp_path)
    told("loader", "slow", "more workers")
    told("memory", "full", "less")
    told("memory", "", "")
    told.over()
    told.close(PATIENT)
    assert [entry["name"] for entry in entries(tmp_path, "alert_over")] == ["memory", "loader"]
