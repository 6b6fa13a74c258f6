"""What is read of run folders: by the real writers of journal, events and checkpoints, whole and half written."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cutline.cli import watch
from cutline.cli.runs import main
from cutline.engine import folder, lines, tidy
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.events import Events
from cutline.engine.journal import Journal
from cutline.engine.lines import Tail, backwards
from cutline.engine.runs import Run, find, lock_holder
from cutline.errors import ConfigError, CutlineError, DataError

HOLD = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX); print(flush=True); input()"


class Writer:
    """Writes a run folder with what training writes it with."""

    def __init__(self, path: Path, metric: str = "cider") -> None:
        self.path = path
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps({"id": "abc"}))
        (path / "config.toml").write_text(f'[training]\nmetric = "{metric}"\nkeep = 2\n')
        (path / "lock").touch()
        self.journal, self.events = Journal(path), Events(path / "events.jsonl")
        self.checkpoints, self.best = Checkpoints(path, "abc"), -1

    def start(self, step: int = 0, total: int = 100, attempt: int = 0) -> None:
        self.journal.write("started", pid=11, host="box", attempt=attempt, processes=1)
        self.journal.write("training", step=step, total=total, epoch=0, epochs=5, device="cpu", world=1)

    def step(self, step: int) -> None:
        self.events.write("step", step, loss=5.0 / step, norm=1.0, rate=1e-3)

    def validate(self, step: int, score: float, best: bool) -> None:
        self.best = step if best else self.best
        figures = {"en_cider": score - 2, "de_cider": score + 2, "en_bleu_4": 7.0, "de_bleu_4": 9.0}
        self.events.write("validation", step, epoch=step // 20, best=best, **figures)

    def save(self, step: int) -> Path:
        progress = {"best_step": self.best, "events": self.events.size}
        state = json.dumps({"progress": progress}).encode()
        return self.checkpoints.write(step, {"model.safetensors": os.urandom(3000), "state.json": state}).path


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "runs" / "one")


def damage(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)


def states(run: Path) -> dict[str, str]:
    return {found.what: found.state for found in tidy.verify(Run(run))}


def removed(run: Path) -> set[str]:
    return {removal.path.name for removal in tidy.removable(Run(run))}


# Files of lines


@pytest.mark.parametrize("block", [1, 2, 7, 20, 64, 1000])
def test_read_from_the_end_it_is_what_reading_from_the_front_gives(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "BLOCK", block)
    file = tmp_path / "events.jsonl"
    for seed in range(50):
        chance = random.Random(seed)
        rows = [{"kind": chance.choice("ab"), "v": "x" * chance.randint(0, 30)} for _ in range(chance.randint(0, 9))]
        whole = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file.write_bytes(whole + chance.choice([b"", b'{"kind"', b'{"kind": "b", "half": 1}']))
        assert [*backwards(file)] == rows[::-1]
        assert [*backwards(file, b'"kind": "a"')] == [row for row in rows[::-1] if row["kind"] == "a"]
        assert Tail(file).added() == rows
        tail = Tail(file)
        assert tail.skip() == len(whole)
        assert tail.added() == []


def test_what_is_added_is_read_once_and_only_when_it_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    tail = Tail(file)
    assert tail.added() == []
    with file.open("ab", buffering=0) as out:
        out.write(b'{"kind": "a"}\n{"kind"')
        assert tail.added() == [{"kind": "a"}]
        assert tail.added() == []
        out.write(b': "b"}\nno JSON\n[1]\n{"kind": "c"}\n')
        assert tail.added() == [{"kind": "b"}, {"kind": "c"}]
        out.write(b'{"kind": "d"}\n')
        assert tail.added() == [{"kind": "d"}]


def test_a_file_that_was_cut_and_has_grown_again_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_bytes(b'{"kind": "a", "n": 1}\n{"kind": "a", "n": 2}\n')
    tail = Tail(file)
    tail.skip()
    file.write_bytes(b'{"kind": "a", "n": 1}\n{"kind": "b", "n": 2}\n{"kind": "b", "n": 3}\n')
    assert tail.added() is None
    assert [entry["n"] for entry in tail.added() or ()] == [1, 2, 3]


# A run


def test_the_state_is_what_the_journal_says_last(writer: Writer) -> None:
    run = Run(writer.path)
    seen = [run.state]
    moves = [
        ("started", {"pid": 1, "host": "x"}), ("stopped", {"step": 3, "why": "asked"}), ("started", {}),
        ("failed", {"cause": "no memory"}), ("restarting", {"attempt": 1}), ("gave_up", {"cause": "a bug"}),
        ("started", {}), ("finished", {"step": 9}),
    ]  # fmt: skip
    for kind, values in moves:
        writer.journal.write(kind, **values)
        run.refresh()
        seen.append(run.state)
    assert seen == ["new", "interrupted", "stopped", "interrupted", "failed", "interrupted", "failed", "interrupted",
                    "finished"]  # fmt: skip
    assert run.history.cause == "a bug"
    assert (run.history.starts, run.history.restarts) == (3, 1)


@pytest.mark.parametrize("lock", ["lock", "worker.lock"])
def test_it_runs_while_its_lock_is_held_whatever_the_journal_says(writer: Writer, lock: str) -> None:
    """The supervisor's or, under torchrun, where there is none, the first process's."""
    writer.journal.write("started", pid=1)
    writer.journal.write("finished", step=9)
    (writer.path / lock).touch()
    command = [sys.executable, "-c", HOLD, str(writer.path / lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert lock_holder(writer.path, lock) is True
        assert Run(writer.path).state == "running"
        with pytest.raises(CutlineError, match="is in use"), tidy.held(writer.path):
            pass
        holder.kill()
    assert lock_holder(writer.path, lock) is False
    assert Run(writer.path).state == "finished"
    with folder.held(writer.path):  # asking has left nothing held
        pass


def test_where_there_is_no_lock_none_is_made(writer: Writer) -> None:
    (writer.path / "lock").unlink()
    assert lock_holder(writer.path) is False
    assert not (writer.path / "lock").exists()


def test_workers_whose_supervisor_is_gone_still_keep_others_off(writer: Writer) -> None:
    with folder.held(writer.path, "worker.lock"), pytest.raises(CutlineError, match="in use"), tidy.held(writer.path):
        pass


def test_epochs_are_those_of_the_stage(writer: Writer) -> None:
    writer.start()
    writer.journal.write("training", step=50, begun=50, total=100, epochs=10)
    assert Run(writer.path).epoch == 1  # its first step is yet to come
    writer.step(55)
    assert Run(writer.path).epoch == 2


@pytest.mark.parametrize(("metric", "best"), [("cider", 40.0), ("bleu4", 8.0)])
def test_progress_and_scores(metric: str, best: float, tmp_path: Path) -> None:
    writer = Writer(tmp_path / "run", metric)
    writer.start()
    for step in range(1, 56):
        writer.step(step)
        if step % 20 == 0:
            writer.validate(step, score=step, best=step == 40 or step == 20)
    run = Run(writer.path)
    assert (run.curve.step, run.total, run.epoch, run.epochs) == (55, 100, 3, 5)
    assert run.best == best
    assert [event["epoch"] for event in run.validations()] == [1, 2]
    assert list(run.curve.losses)[-2:] == [5 / 54, 5 / 55]

    writer.step(56)
    writer.validate(56, score=90, best=True)
    run.refresh()
    assert (run.curve.step, run.curve.best["step"]) == (56, 56)
    assert len(run.curve.losses) == 56


def test_after_going_on_from_a_checkpoint_nothing_of_later_steps_is_left(writer: Writer) -> None:
    for step in (1, 2):
        writer.step(step)
    kept = writer.events.size
    writer.step(3)
    writer.validate(3, score=50, best=True)
    run = Run(writer.path)
    assert run.best == 50
    writer.events.close()
    writer.events = Events(writer.path / "events.jsonl", keep_bytes=kept)
    for step in (3, 4, 5, 6, 7, 8, 9):  # longer than before, so that its length gives nothing away
        writer.step(step)
    run.refresh()
    assert (run.curve.step, run.best, len(run.curve.losses)) == (9, None, 9)


def test_time_at_work_leaves_out_the_pauses(writer: Writer) -> None:
    entries = [(100, "started"), (160, "saved"), (1000, "started"), (1030, "failed"), (1040, "restarting"),
               (1050, "started"), (1060, "stopped")]  # fmt: skip
    (writer.path / "journal.jsonl").write_text(
        "".join(json.dumps({"time": time, "kind": kind}) + "\n" for time, kind in entries)
    )
    assert Run(writer.path).spent == 60 + 40 + 10


def test_alerts_are_those_that_are_on(writer: Writer) -> None:
    writer.start()
    for name in ("disk", "memory"):
        writer.journal.write("alert", name=name, what=f"{name} is low", fix="more of it")
    writer.journal.write("alert_over", name="memory")
    run = Run(writer.path)
    assert [alert["what"] for alert in run.history.alerts.values()] == ["disk is low"]
    writer.start()  # who starts looks again
    run.refresh()
    assert run.history.alerts == {}


def test_other_machines_tell_of_themselves_while_the_run_is_on_them(writer: Writer) -> None:
    other = Journal(writer.path, "node8")
    other.path.write_text('{"time": 1, "kind": "alert", "name": "memory", "what": "of an earlier start"}\n')
    writer.start()
    run = Run(writer.path)
    assert run.machines == {}
    other.started()
    other.write("health", memory_used=3_000_000_000, memory_total=4_000_000_000, gpus=[{"index": 1, "celsius": 71}])
    other.write("alert", name="gpu1_heat", what="GPU 1 is hot", fix="cool it")
    writer.journal.write("alert", name="disk", what="disk is low", fix="more of it")
    run.refresh()
    assert {name: alert["what"] for name, alert in run.alerts.items()} == {
        "disk": "disk is low", "node8 gpu1_heat": "GPU 1 is hot",
    }  # fmt: skip
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(watch.view(watch.Watched(run)))
    shown = console.export_text()
    assert "node8: memory 3.0 GB of 4.0 GB" in shown
    assert "node8: GPU 1, 71 °C" in shown
    assert "node8 gpu1_heat: GPU 1 is hot" in shown
    other.write("alert_over", name="gpu1_heat")
    run.refresh()
    assert list(run.alerts) == ["disk"]
    (writer.path / "journal-node8.jsonl").unlink()
    run.refresh()
    assert run.machines == {}


def test_a_checkpoint_that_goes_while_it_is_looked_at(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.start()
    saved, look = writer.save(10), os.scandir

    def late(path: Any) -> Any:
        if Path(path) == saved:
            monkeypatch.setattr("os.scandir", look)
            shutil.rmtree(saved)
        return look(path)

    monkeypatch.setattr("os.scandir", late)
    assert Run(writer.path).state
    assert not saved.exists()


def test_half_of_a_run_folder_is_still_told_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.toml").write_bytes(b"\xff no TOML [")
    assert Run(run).to_dict()["state"] == "new"
    (run / "events.jsonl").write_bytes(b'{"kind": "step", "step": 7, "loss": null}\n\xff\xfe\n{"kind": "st')
    (run / "journal.jsonl").write_bytes(b'nonsense\n{"kind": "alert"}\n{"kind": "failed"}\n')
    facts = Run(run).to_dict()
    assert (facts["state"], facts["step"], facts["best"]) == ("interrupted", 7, None)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError):
            Run(path)


@pytest.mark.parametrize(
    ("settings", "entry"),
    [
        ("training = 3\n", {}),
        ("", {"time": "noon", "total": 100, "epochs": 5}),
        ("", {"time": 1.0, "step": "one", "total": 100, "epochs": 5}),
    ],
)
def test_one_damaged_run_does_not_hide_the_others(
    settings: str, entry: dict[str, object], writer: Writer, capsys: pytest.CaptureFixture[str]
) -> None:
    writer.start()
    odd = Writer(writer.path.with_name("odd"))
    if settings:
        (odd.path / "config.toml").write_text(settings)
    odd.start()
    with (odd.path / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "training", **entry}) + "\n")
    with folder.held(odd.path):  # at work, so that its speed is asked for
        odd.step(20)
        place = writer.path.parent
        assert main([str(place)]) == 0
        told = capsys.readouterr()
        assert [line.split()[:2] for line in told.out.splitlines()[1:]] == [["one", "interrupted"], ["odd", "damaged"]]
        assert f"{odd.path} is damaged" in told.err
        assert main([str(place), "--format", "json"]) == 0
        told = capsys.readouterr()
        assert [run["state"] for run in json.loads(told.out)] == ["interrupted", "damaged"]
        assert main(["verify", str(place)]) == 1
        assert main(["clean", str(place)]) == 0
        with pytest.raises(DataError, match="is damaged"):
            main(["show", str(odd.path)])


def test_a_number_of_checkpoints_that_is_none_keeps_nothing_by_it(writer: Writer) -> None:
    (writer.path / "config.toml").write_text('[training]\nkeep = "x"\nkeep_every = "y"\n')
    for step in (20, 40):
        writer.validate(step, 5.0, best=step == 40)
        writer.save(step)
    run = Run(writer.path)
    assert [run.kept_why(saved) for saved in run.saved] == ["newest, best", ""]


def test_runs_are_found_one_folder_deep_and_links_are_not_counted(tmp_path: Path, writer: Writer) -> None:
    other = Writer(tmp_path / "runs" / "more" / "two")
    Writer(tmp_path / "runs" / "more" / "much" / "too-deep")
    (tmp_path / "runs" / "latest").symlink_to("one")
    (tmp_path / "runs" / "config.toml").touch()
    assert find(tmp_path / "runs") == [other.path, writer.path]
    assert find(writer.path) == [writer.path]
    assert find(tmp_path / "nowhere") == []
    assert Run(tmp_path / "runs" / "latest").name == "one"


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("journal.jsonl", '{"kind": "health", "time": 1, "gpus": 5}'),
        ("events.jsonl", '{"kind": "step", "step": 3, "loss": NaN}'),
    ],
)
def test_what_cannot_be_shown_is_told_in_words(writer: Writer, file: str, line: str) -> None:
    writer.start()
    writer.step(1)
    with (writer.path / file).open("a") as end:
        end.write(line + "\n")
    with pytest.raises(DataError, match="is damaged"):
        watch.main(["--once", str(writer.path)])


@pytest.mark.parametrize("time", ["1e18", "1e15", "NaN", '"noon"'])
def test_a_time_that_no_clock_has_is_not_shown(writer: Writer, time: str, capsys: pytest.CaptureFixture[str]) -> None:
    writer.start()
    with (writer.path / "journal.jsonl").open("a") as end:
        end.write(f'{{"kind": "alert", "time": {time}, "name": "disk", "what": "full"}}\n')
    assert main(["show", str(writer.path)]) == 0
    assert "?  alert disk: full" in capsys.readouterr().out


# What is damaged, and what can go


def test_verify_finds_damage_and_a_log_that_is_too_short(writer: Writer) -> None:
    writer.step(1)
    first = writer.save(1)
    writer.step(2)
    second = writer.save(2)
    whole = {"step-00000001": "ok", "step-00000002": "ok", "events.jsonl": "ok"}
    assert states(writer.path) == whole
    writer.step(3)  # a log is ahead of its checkpoint
    with (writer.path / "events.jsonl").open("ab") as file:
        file.write(b'{"half')
    assert states(writer.path) == whole
    log = (writer.path / "events.jsonl").read_bytes()
    (writer.path / "events.jsonl").write_bytes(log[: log.index(b"\n") + 1])
    assert states(writer.path) == whole | {"events.jsonl": "damaged"}
    assert [found.why for found in tidy.verify(Run(writer.path))][2].startswith("has ")
    (writer.path / "events.jsonl").write_bytes(b"x" + log)
    assert states(writer.path) == whole | {"events.jsonl": "damaged"}
    (writer.path / "events.jsonl").write_bytes(log)
    damage(second)
    assert states(writer.path) == whole | {"step-00000002": "damaged"}
    damage(first)
    assert states(writer.path) == {"step-00000001": "damaged", "step-00000002": "damaged"}


def test_verify_tells_of_what_was_set_aside_and_left_over(writer: Writer) -> None:
    writer.checkpoints.quarantine(writer.save(1), "a bit flipped")
    (writer.checkpoints.folder / ".step-00000002.77.tmp").mkdir()
    assert states(writer.path) == {"quarantine/step-00000001": "set aside", ".step-00000002.77.tmp": "left over"}
    (writer.path / "run.json").unlink()
    assert states(writer.path)["run.json"] == "damaged"


def test_the_newest_that_verifies_and_the_best_stay(writer: Writer) -> None:
    for step in (1, 2, 3, 4, 5):
        if step == 2:
            writer.validate(step, score=9, best=True)
        newest = writer.save(step)
    damage(newest)
    (writer.checkpoints.folder / ".step-00000009.77.tmp").mkdir()
    old = writer.checkpoints.quarantine(writer.save(6), "a bit flipped")
    assert removed(writer.path) == {
        "step-00000001",
        "step-00000003",
        "step-00000005",
        ".step-00000009.77.tmp",
        old.name,
    }
    listed = tidy.removable(Run(writer.path))
    assert tidy.remove(listed) == sum(removal.bytes for removal in listed) > 4 * 3000
    assert sorted(path.name for path in writer.checkpoints.folder.iterdir()) == [
        "quarantine", "step-00000002", "step-00000004",
    ]  # fmt: skip
    assert removed(writer.path) == set()


def test_of_a_finished_run_with_its_bundle_the_best_stays(writer: Writer) -> None:
    writer.validate(2, score=9, best=True)
    best = writer.save(2)
    writer.save(3)
    writer.start()
    writer.journal.write("finished", step=3)
    assert removed(writer.path) == set()
    (writer.path / "bundle").mkdir()
    (writer.path / "bundle" / "bundle.json").touch()
    assert removed(writer.path) == {"step-00000003"}
    damage(best)
    assert removed(writer.path) == {"step-00000002"}


def test_what_was_asked_to_be_kept_stays(writer: Writer) -> None:
    with (writer.path / "config.toml").open("a") as file:
        file.write("keep_every = 10\n")
    for step in (10, 15, 24, 28, 30, 31):
        writer.save(step)
    assert removed(writer.path) == {"step-00000015", "step-00000028"}
    writer.start()
    writer.journal.write("finished", step=31)
    (writer.path / "bundle").mkdir()
    (writer.path / "bundle" / "bundle.json").touch()
    assert removed(writer.path) == {"step-00000015", "step-00000028"}  # the newest has no better one beside it


def test_where_nothing_verifies_nothing_goes(writer: Writer) -> None:
    for step in (1, 2, 3):
        damage(writer.save(step))
    assert removed(writer.path) == set()


def test_what_a_run_in_trouble_may_go_back_to_is_not_removed(writer: Writer) -> None:
    for step, trouble in ((1, 0), (2, 0), (3, 10), (4, 20)):
        state = json.dumps({"progress": {"best_step": -1, "trouble": trouble}}).encode()
        writer.checkpoints.write(step, {"model.safetensors": b"weights", "state.json": state})
    gone = tidy.removable(Run(writer.path))
    assert sorted(each.path.name for each in gone) == ["step-00000001", "step-00000003"]
