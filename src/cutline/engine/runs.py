"""What is known of a run from its folder alone, whether or not anything of it still runs.

Everything here reads what others write, perhaps at this moment: a line may be half there, a file not yet or no longer.
What is missing is left out of the answer; nothing waits and nothing is locked for longer than it takes to ask.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from cutline.engine import folder, journal
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.lines import Entry, Tail, backwards
from cutline.errors import ConfigError, CutlineError, DataError

SIGNS = ("config.toml", "run.json", "words.json", "events.jsonl", "journal.jsonl", "checkpoints")
"""What is in a run folder; one with two of them is a run, or what is left of it."""
ENDINGS = {"finished": "finished", "stopped": "stopped", "gave_up": "failed", "failed": "failed"}
"""Entries of the journal after which nothing runs, and the state that they leave."""
UNREMARKABLE = {"health", "saved", "skipped", "unreadable"}
"""Entries that there may be thousands of: counted, not told one by one."""


def is_run(path: Path) -> bool:
    return sum((path / name).exists() for name in SIGNS) >= 2


def find(place: Path) -> list[Path]:
    """The run folders in `place` and in the folders in it; or itself, if it is one. Links are not followed."""
    if is_run(place):
        return [place]
    found = []
    for path in _folders(place):
        found += [path] if is_run(path) else [deeper for deeper in _folders(path) if is_run(deeper)]
    return sorted(found)


def lock_holder(run: Path, name: str = folder.LOCK) -> bool | None:
    """Whether a process holds the run's lock; None where that cannot be asked."""
    try:
        import fcntl
    except ImportError:
        return None
    try:
        handle = os.open(run / name, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that two that ask do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)  # which lets go of it
    return False


def held(run: Path) -> bool | None:
    """Whether anybody works on a run: its supervisor, or a process that has outlived that or never had one."""
    answers = {lock_holder(run, name) for name in (folder.LOCK, folder.WORKERS_LOCK)}
    return True if True in answers else None if None in answers else False


@dataclass
class History:
    """What the journal says, added up entry by entry."""

    starts: int = 0
    restarts: int = 0
    pid: int | None = None
    host: str = ""
    ended: str = ""
    """The state that the last ending left; empty while none was written since the last start."""
    cause: str = ""
    """Why processes ended badly the last time that they did."""
    first: float = math.nan
    last: float = math.nan
    begun: float = math.nan
    """When the work on it last began."""
    spent: float = 0.0
    """Seconds from each start to the last entry that followed it."""
    plan: Entry = field(default_factory=dict)
    """The last entry "training": what was to be done, and from where."""
    health: Entry = field(default_factory=dict)
    alerts: dict[str, Entry] = field(default_factory=dict)
    """Those that are on, by name."""
    counts: Counter[str] = field(default_factory=Counter)
    story: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        kind, when = entry["kind"], entry.get("time")
        if isinstance(when, int | float):
            if kind != "started" and self.starts:
                self.spent += max(0.0, when - self.last)
            self.first = when if math.isnan(self.first) else self.first
            self.last = when
        self.counts[kind] += 1
        if kind not in UNREMARKABLE:
            self.story.append(entry)
        if kind == "started":
            self.starts, self.ended, self.begun = self.starts + 1, "", self.last
            self.pid, self.host = entry.get("pid"), str(entry.get("host", ""))
            self.alerts.clear()  # whoever starts looks again
        elif kind == "training":
            self.plan = entry
        elif kind == "health":
            self.health = entry
        elif kind == "alert":
            self.alerts[str(entry.get("name"))] = entry
        elif kind == "alert_over":
            self.alerts.pop(str(entry.get("name")), None)
        elif kind == "restarting":
            self.restarts, self.ended = self.restarts + 1, ""
        elif kind in ENDINGS:
            self.ended = ENDINGS[kind]
            self.cause = str(entry.get("cause") or self.cause)


class Curve:
    """The last steps and validations of `events.jsonl`."""

    STEPS, VALIDATIONS = 400, 5

    def __init__(self, path: Path) -> None:
        self._tail = Tail(path)
        self._read()

    def refresh(self) -> None:
        added = self._tail.added()
        if added is None:  # a run that went on has cut the log to where its checkpoint was
            self._read()
        for event in added or ():
            self._add(event)

    def _read(self) -> None:
        path, end = self._tail.path, self._tail.skip()
        self.step = 0
        self.best: Entry = next(backwards(path, b'"best": true', end), {})
        self.losses: deque[float] = deque(maxlen=self.STEPS)
        self.validations: deque[Entry] = deque(maxlen=self.VALIDATIONS)
        self.rate: float | None = None
        """The learning rate."""
        for kind, count in ((b'"kind": "validation"', self.VALIDATIONS), (b'"kind": "step"', self.STEPS)):
            for event in reversed([*islice(backwards(path, kind, end), count)]):
                self._add(event)

    def _add(self, event: Entry) -> None:
        if isinstance(event.get("step"), int):
            self.step = event["step"]  # not the highest: a run may go back
        if event["kind"] == "step":
            self.rate = event.get("rate", self.rate)
            if isinstance(event.get("loss"), int | float):
                self.losses.append(event["loss"])
        elif event["kind"] == "validation":
            self.validations.append(event)
            if event.get("best") is True:
                self.best = event


@dataclass(frozen=True)
class Saved:
    """A checkpoint as its folder shows it: whether it is whole, only reading it tells."""

    path: Path
    step: int
    time: float
    bytes: int


@contextlib.contextmanager
def making_sense(path: Path) -> Iterator[None]:
    """Tell of what cannot be read or shown: anything may be written there, a number for a table, a word for a time."""
    try:
        yield
    except (CutlineError, OSError):
        raise
    except Exception as error:
        raise DataError(
            f"{path} is damaged: what it says of itself makes no sense ({error})",
            fix="look at its config.toml, journal.jsonl and events.jsonl; its checkpoints may be sound",
        ) from None


class Run:
    """A look at a run folder; `refresh` takes another and reads only what was added."""

    def __init__(self, path: Path) -> None:
        if not is_run(path):
            raise ConfigError(
                f"{path} is not a run folder" if path.exists() else f"there is no {path}",
                expected="a folder that cutline train made",
                fix="cutline runs lists those that there are",
            )
        self.path, self.name = path, path.resolve().name
        try:
            with making_sense(path):
                self._look()
        except OSError as error:
            raise DataError(f"{path} cannot be looked at: {error.strerror}", fix="mend its permissions") from None

    def _look(self) -> None:
        settings = _settings(self.path)
        self._training = settings.get("training", {})
        self.metric = str(self._training.get("metric", "auto"))
        if self.metric == "auto":
            self.metric = "accuracy" if settings.get("task") == "classes" else "cider"
        self.ending = {"cider": "_cider", "bleu4": "_bleu_4"}.get(self.metric, self.metric)
        """What that score's name ends with in a validation; that of captions has the language before it."""
        self._told: dict[Path, tuple[Tail, History]] = {}
        self.curve = Curve(self.path / "events.jsonl")
        self.refresh()
        self.to_dict()  # so that all that is asked of it later makes sense

    def refresh(self) -> None:
        worked_on = held(self.path)  # before the journal: who has let go of it has written its last entry
        self.history = self._history(self.path / journal.NAME)
        others = {name: self._history(path) for name, path in journal.of_machines(self.path).items()}
        self.machines = {name: each for name, each in others.items() if each.last >= self.history.begun}
        """What the machines beside the first tell of themselves, since the work last began."""
        self.curve.refresh()
        self.now = time.time()
        self.state = self._state(worked_on)
        self.saved = _saved(self.path)

    def _history(self, path: Path) -> History:
        tail, history = self._told.setdefault(path, (Tail(path), History()))
        added = tail.added()
        if added is None:  # it is no longer what was read
            tail, history = self._told[path] = (Tail(path), History())
            added = tail.added()
        for entry in added or ():
            history.add(entry)
        return history

    @property
    def alerts(self) -> dict[str, Entry]:
        """Those that are on, by name; those of another machine with its name before theirs."""
        machines = self.machines.items()
        return self.history.alerts | {f"{host} {name}": a for host, each in machines for name, a in each.alerts.items()}

    @property
    def total(self) -> int | None:
        return _whole(self.history.plan.get("total"))

    @property
    def epochs(self) -> int | None:
        return _whole(self.history.plan.get("epochs"))

    @property
    def epoch(self) -> int | None:
        """The epoch of its stage that is under way, counted from 1."""
        begun = _whole(self.history.plan.get("begun")) or 0
        if not self.total or not self.epochs or self.total <= begun:
            return None
        done = max(self.curve.step - begun, 0) * self.epochs // (self.total - begun)
        return min(done + 1, self.epochs)

    @property
    def best(self) -> float | None:
        return self.score(self.curve.best)

    @property
    def active(self) -> float:
        """When something last happened, as far as is known."""
        if self.state == "running":
            return self.now
        last = self.history.last
        return last if not math.isnan(last) else max(_time(self.path / name) for name in (*SIGNS, "."))

    @property
    def spent(self) -> float:
        """Seconds that the run has worked, without the pauses."""
        return self.history.spent + (max(self.now - self.history.last, 0) if self.state == "running" else 0)

    @property
    def speed(self) -> float | None:
        """Steps a second since the work began last, validations and all."""
        plan = self.history.plan
        done, seconds = self.curve.step - plan.get("step", 0), self.now - plan.get("time", self.now)
        return done / seconds if self.state == "running" and done > 0 and seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until the last step."""
        return max(self.total - self.curve.step, 0) / self.speed if self.speed and self.total else None

    def score(self, validation: Entry) -> float | None:
        """What picks the best weights: of captions, the mean over the languages."""
        of = {key: value for key, value in validation.items() if key.endswith(self.ending)}
        values = [value for value in of.values() if isinstance(value, int | float)]
        return sum(values) / len(values) if values else None

    def validations(self) -> list[Entry]:
        """All of them, oldest first."""
        return [*backwards(self.path / "events.jsonl", b'"kind": "validation"')][::-1]

    @property
    def facts(self) -> Entry:
        """What the newest checkpoint says of the run beside its weights: how far it is, its data, its settings."""
        try:
            facts = json.loads((self.saved[0].path / "state.json").read_text(encoding="utf-8"))
        except (IndexError, OSError, ValueError):
            return {}
        return facts if isinstance(facts, dict) else {}

    @property
    def data(self) -> str | None:
        """A hash of the data: scores of different data cannot be compared."""
        data = self.facts.get("data", {})
        return str(data["hash"]) if "hash" in data else None

    @property
    def keep_every(self) -> int:
        """A checkpoint of each so many steps is kept; of none where this is 0."""
        return _whole(self._training.get("keep_every")) or 0

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.path, folder.identity(self.path))

    def kept_why(self, saved: Saved) -> str:
        best = self.curve.best.get("step")
        reasons = ["newest"] if saved == self.saved[0] else []
        reasons += ["best"] if saved == next((each for each in self.saved if each.step == best), None) else []
        keep, every = _whole(self._training.get("keep", 2)) or 0, self.keep_every
        if not reasons and self.saved.index(saved) < keep:
            reasons = [f"among the {keep} newest"]
        if not reasons and every:
            reasons = [f"first of its {every} steps"]
        return ", ".join(reasons)

    def to_dict(self) -> Entry:
        """Everything, for programs."""
        newest = self.saved[0] if self.saved else None
        history = self.history
        return {
            "name": self.name, "path": str(self.path), "state": self.state, "pid": history.pid, "host": history.host,
            "step": self.curve.step, "total": self.total, "epoch": self.epoch, "epochs": self.epochs,
            "metric": self.metric, "best": self.best, "best_step": self.curve.best.get("step"),
            "checkpoint": newest
            and {"step": newest.step, "age": round(self.now - newest.time, 1), "bytes": newest.bytes},
            "starts": history.starts, "restarts": history.restarts, "cause": history.cause,
            "alerts": {name: {k: v for k, v in alert.items() if k in ("what", "fix")}
                       for name, alert in self.alerts.items()},
            "began": None if math.isnan(history.first) else history.first, "active": round(self.active, 1),
            "seconds_spent": round(self.spent, 1), "seconds_left": self.left and round(self.left, 1),
        }  # fmt: skip

    def _state(self, held: bool | None) -> str:
        if held:
            return "running"
        if self.history.starts:
            return self.history.ended or ("unknown" if held is None else "interrupted")
        if (self.path / "bundle" / "bundle.json").exists():  # its journal is lost
            return "finished"
        return "interrupted" if self.curve.step else "new"


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def size_of(path: Path) -> int:
    """Bytes in a file or folder, which may go while it is looked at."""
    if not path.is_dir():
        return _size(path)
    return sum(_size(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says: step-00001234, or step-00001234.1 where there was one before."""
    return int(checkpoint.name.removeprefix("step-").partition(".")[0])


def _saved(run: Path) -> list[Saved]:
    return [
        Saved(path, step_of(path), _time(path / "manifest.json") or _time(path), size_of(path))
        for path in Checkpoints(run, "").candidates()
    ]


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _settings(run: Path) -> Entry:
    try:
        return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
