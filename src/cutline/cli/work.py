"""One process of a training run: what `cutline train` supervises, and what torchrun may start as well."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from cutline.cli import finish_classes
from cutline.cli.evaluate import Judgement, show
from cutline.cli.finish import finish
from cutline.config import Config
from cutline.console import say
from cutline.data.corpus import Corpus
from cutline.engine import folder, machine, results, run, trained, weights
from cutline.engine.alerts import Alerts
from cutline.engine.checkpoint import Checkpoints
from cutline.engine.estimate import Needs
from cutline.engine.events import tensorboard
from cutline.engine.health import Health
from cutline.engine.journal import Journal
from cutline.engine.known import Known
from cutline.engine.loop import Loop, Stopped
from cutline.engine.ranks import Ranks, joined
from cutline.engine.resume import resume, set_aside_failing
from cutline.engine.runtime import keep_memory
from cutline.engine.trainer import Progress, Trainer
from cutline.engine.watch import ATTEMPT, RUN, SPLIT, Watched, when_stopped
from cutline.errors import ConfigError, CutlineError, DataError

_FIRST_SAYS = 5.0
"""Seconds that the others leave the first to make the same mistake: it says so, and torchrun ends them meanwhile."""


def work(given: Any, config: Config) -> int:
    """Train to the end as one of the run's processes; the first exports and judges what came out."""
    keep_memory()
    machine.die_first()
    first = os.environ["RANK"] == "0"
    watched = Watched(int(os.environ["RANK"]))
    stopped: Stopped | None = None
    try:
        with joined(config) as ranks, _owned(given, config, ranks) as path:
            try:
                _train(given, config, ranks, path)
            except Stopped as together:  # all of them, so that they part as after the end
                stopped = together
        if stopped:
            say("the same command goes on from there", quiet=given.quiet or not first)
            watched.report("stopped", stopped)
            return 128 + stopped.number
        watched.report("finished")
        return 0
    except CutlineError as mistake:
        watched.report("mistake", mistake)
        if first:
            raise
        if not watched.folder:  # else the supervisor says it, where the first does not
            time.sleep(_FIRST_SAYS)
            say(f"rank {os.environ['RANK']}: {mistake}")
        return 2
    except Exception as error:
        watched.report("error", error)
        if not watched.folder:  # a supervisor tells it in its own words
            raise
        return 1


@contextlib.contextmanager
def _owned(given: Any, config: Config, ranks: Ranks) -> Iterator[Path]:
    """The run's folder, which the first rank owns: the supervisor's choice or, under torchrun, its own."""
    if not ranks.first:
        yield Path(ranks.told(""))
        return
    if RUN in os.environ:
        path = Path(os.environ[RUN])
    else:
        left = folder.unfinished(config)
        # Who starts this process again after a failure starts it with `--new` again; then the new run is there already.
        if given.new and left and folder.made(left) < psutil.Process(os.getppid()).create_time():
            left = None
        path = given.resume or left or folder.make(config)
    # Processes that have outlived their supervisor are still saving: wait for them.
    with folder.held(path, folder.WORKERS_LOCK, patience=30):
        if RUN not in os.environ:  # else the supervisor has
            Journal(path).started(processes=ranks.world)
        ranks.told(str(path))
        yield path


def _train(given: Any, config: Config, ranks: Ranks, path: Path) -> None:
    checkpoints = Checkpoints(path, folder.identity(path))
    begun = bool(given.resume or checkpoints.candidates() or checkpoints.set_aside()) if ranks.first else False
    if begun:
        set_aside_failing(path, checkpoints)
    first = checkpoints.latest().state["progress"]["stage"] if begun else 0
    begun, first = ranks.told((begun, first))
    stages = len(config.all_stages)
    if first >= stages:
        raise ConfigError(
            f"{path} has come to stage {first + 1}, and there are settings for {stages}",
            expected="the stages that it was begun with",
            fix="put them back; or --new for a new run",
        )
    at, corpus, peak = None, None, 0
    journal = Journal(path, "" if ranks.first else socket.gethostname())
    if ranks.local == 0 and not ranks.first:
        journal.started()
    with contextlib.closing(Alerts(path, config.health, journal)) as alerts:
        for stage in range(first, stages):
            at, corpus, config = _learn_stage(given, config, ranks, path, stage, at, begun and stage == first, alerts)
            gc.collect()  # the stage's model and optimizer, that the next one may have their memory
            peak = max(peak, machine.peak_memory() or 0)
        if ranks.local == 0:
            alerts.over()
    if ranks.first:
        assert at
        assert corpus
        with _stop_noted(path, at.step):
            judged = [] if given.no_bundle else _finish(config, corpus, path, peak, given.quiet)
        Journal(path).write("finished", step=at.step, peak_memory=peak or None)
        for scores in judged if not given.quiet else ():
            show(scores)
        print(path, flush=True)


@contextlib.contextmanager
def _stop_noted(path: Path, step: int) -> Iterator[None]:
    """All is learned and saved: told to stop meanwhile, end at once, but leave word that it was no accident."""

    def note(number: int, frame: FrameType | None) -> None:
        Journal(path).write("stopped", step=step, why=signal.Signals(number).name)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    with when_stopped(note):
        yield


def _finish(config: Config, corpus: Corpus, path: Path, memory: int, quiet: bool) -> list[Mapping[str, Judgement]]:
    """Bundle and page of what the task has taught; the scores of each."""
    judged: list[Mapping[str, Judgement]] = []
    if config.task != "classes":
        finished = finish(path, corpus, config, "val", quiet=quiet)
        judged.append({lang: each.scores for lang, each in finished.judged.items()})
    if config.task != "captions":
        held = max(memory, results.result(path).memory or 0)  # by earlier starts as well
        judged.append({"classes": finish_classes.finish(path, corpus, memory=held, quiet=quiet)})
    return judged


def _learn_stage(
    given: Any,
    config: Config,
    ranks: Ranks,
    path: Path,
    stage: int,
    before: Progress | None,
    resuming: bool,
    alerts: Alerts,
) -> tuple[Progress, Corpus, Config]:
    """A stage to its end: from where it was stopped, from the best weights of those before it, or from the start."""
    quiet = given.quiet or not ranks.first
    prepared = _prepared_in_turn(config, ranks, path, stage, before, resuming, quiet)
    trainer = run.trainer(prepared, path)
    seen = ranks.gather(trainer.facts["data"])
    if any(each != seen[0] for each in seen):
        counts = ", ".join(f"{each['train']} to learn from and {each['val']} to validate on" for each in seen)
        raise DataError(
            f"the processes do not see the same pictures and captions: {counts}",
            expected=f"the same {config.data.path} on every machine",
        )
    if before:
        trainer.begin_stage(before)
    elif resuming:
        resume(trainer, allow_changes=given.allow_changes, quiet=quiet)
    trainer.at.split = max(trainer.at.split, int(os.environ.get(SPLIT, "1")))
    ranks.share(list(prepared.model.state_dict().values()))
    _learn(given, trainer, quiet, alerts)
    return trainer.at, prepared.corpus, prepared.config


def _prepared_in_turn(
    config: Config, ranks: Ranks, path: Path, stage: int, before: Progress | None, resuming: bool, quiet: bool
) -> run.Prepared:
    """First the first rank, which learns the words and makes the folder; then one on each machine, then the others.

    Whoever comes later finds the words, the classes and the features of every picture there.
    """

    def prepare(anew: bool = False) -> run.Prepared:
        known = None if anew else Known.load(path, config.task)
        start = weights.named(trained.load_model(path)[0]) if before else trained.kept_encoder(path, stage)
        asked = config if anew else run.as_begun(config, path)
        return run.prepare(asked, known=known, stage=stage, start=start, ranks=ranks, quiet=quiet)

    prepared = None
    if ranks.first:
        anew = not (before or resuming)
        prepared = prepare(anew)
        if anew:
            Needs.of(prepared).check(path)
            run.create(prepared, path)
        elif before:
            run.keep_encoder(prepared, path, stage)
        if not before:
            Checkpoints(path, folder.identity(path)).sweep()
            if os.environ.get(ATTEMPT, "0") == "0":
                print(path, flush=True)
    ranks.told(None)
    if ranks.local == 0:
        prepared = prepared or prepare()
    ranks.gather(None)
    return prepared or prepare()


def _learn(given: Any, trainer: Trainer, quiet: bool, alerts: Alerts) -> None:
    """The loop, with someone to look after each machine beside it."""
    machine.forget_peak_memory()  # making features may have taken more than learning from them does
    sinks = [tensorboard(trainer.run / "tensorboard")] if given.tensorboard and trainer.ranks.first else []
    loop = Loop(trainer, alerts, *sinks, quiet=quiet)
    with _watch(loop, alerts) if trainer.ranks.local == 0 else nullcontext():
        loop.train()


def _watch(loop: Loop, alerts: Alerts) -> Health:
    """Of this machine; what all of them share, such as the disk and the newest checkpoint, the first one looks at."""
    trainer = loop.trainer
    config, figures = trainer.task.config.health, partial(_figures, loop)
    if not trainer.ranks.first:
        config, figures = replace(config, disk_gb=0), partial(_own_figures, loop)
    gpus = _gpus(trainer)  # others are somebody else's business
    return Health(trainer.run, config, alerts.journal, alerts, figures, gpus)


def _gpus(trainer: Trainer) -> Collection[int] | None:
    """The numbers of those that this run computes on here; None where it is not known."""
    if trainer.device.type != "cuda":
        return ()
    if trainer.ranks.world > 1:  # a launcher may show each process its own only, and need not say how many there are
        return range(trainer.ranks.here) if trainer.ranks.here > 1 else None
    return (trainer.device.index or 0,)


def _figures(loop: Loop) -> dict[str, float]:
    return loop.figures() | {"restarts": int(os.environ.get(ATTEMPT, "0"))}


def _own_figures(loop: Loop) -> dict[str, float]:
    return {name: value for name, value in loop.figures().items() if name == "loader_wait_share"}
