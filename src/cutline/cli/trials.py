"""The runs of a grid, one after another: each as `cutline train` does it, and with its care."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cutline.console import duration, say
from cutline.errors import ConfigError, CutlineError

if TYPE_CHECKING:
    from cutline.config import Config
    from cutline.engine.grid import Grid, Trial


def make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}", fix="another --out") from None


def see_data(configs: list[Config]) -> None:
    """Look at all data before anything is learned: a mistake there is better told now than in the last row."""
    from cutline.data.sources import read

    seen = []
    for config in configs:
        if (config.data, config.pictures.size) not in seen:
            seen.append((config.data, config.pictures.size))
            read(config, quiet=True)


def see_encoders(configs: list[Config]) -> None:
    """Build all encoders that learning begins with, for the same reason; without weights, which may be far away."""
    from cutline.models.encoders import build_encoder

    seen = []
    for first in (config.stage(0) for config in configs):
        encoder = replace(first.encoder, weights="none")
        if (encoder, first.pictures) not in seen:
            seen.append((encoder, first.pictures))
            build_encoder(encoder, first.pictures)


def dry_run(planned: Grid, quiet: bool) -> int:
    """What is left to do, and what that would take; 1 where a run could not begin."""
    from cutline.cli.grid_table import ToDo, show_plan
    from cutline.engine import estimate

    plan = []
    for cell in planned.cells:
        left = [trial for trial in planned.trials if trial.cell == cell and trial.result is None]
        if not left:
            plan.append(ToDo(cell.name, 0, note="done"))
        elif (learner := left[0].learner) != left[0]:
            plan.append(ToDo(cell.name, len(left), note=f"with the weights of {learner.cell.name}"))
        else:
            say(f"trying {cell.name}", quiet=quiet)
            try:
                plan.append(ToDo(cell.name, len(left), estimate.dry_run(left[0].config, quiet=True)))
            except CutlineError as error:
                plan.append(ToDo(cell.name, len(left), wrong=str(error)))
    show_plan(planned, plan)
    return 1 if any(each.wrong for each in plan) else 0


def do_all(planned: Grid, failed: dict[str, str], write: Callable[[], None], *, quiet: bool) -> int:
    """Learn what is not learned yet, note what failed, and `write` the table after each; 1 where some failed.

    128 + the signal, at once, when stopped.
    """
    trials = planned.trials
    left = [trial for trial in trials if trial.result is None]
    write()
    if not left:
        return 0
    from torch.distributed.elastic.multiprocessing import SignalException

    trial, began = left[0], time.monotonic()
    try:
        for done, trial in enumerate(left):
            each = (time.monotonic() - began) / max(done, 1)
            time_left = f", about {duration(each * (len(left) - done))} left" if done else ""
            say(f"{trials.index(trial) + 1} of {len(trials)}: {_title(trial)}{time_left}", quiet=quiet)
            code = _do(trial, quiet, failed)
            write()  # also when stopped: a run may have come to its end just then
            if code >= 128:
                return _stopped(code, trial, planned.out)
            if trial.name in failed:
                say(f"{_title(trial)} failed: {failed[trial.name]}", quiet=quiet)
    except SignalException as stopped:  # between two runs: who has supervised one has taken over the signals
        return _stopped(128 + int(stopped.sigval), trial, planned.out)
    except KeyboardInterrupt:
        return _stopped(128 + signal.SIGINT, trial, planned.out)
    return 1 if failed else 0


def _title(trial: Trial) -> str:
    return f"{trial.cell.name}, seed {trial.seed}"


def _stopped(code: int, trial: Trial, out: Path) -> int:
    say(f"{out} was stopped at {_title(trial)}; the same command goes on from there")
    return code


def _do(trial: Trial, quiet: bool, failed: dict[str, str]) -> int:
    """Learn the run of a trial, or go on with it; or search with the weights of another's."""
    learner, code = trial.learner, 0
    if learner.name in failed:  # it was tried a moment ago
        failed[trial.name] = failed[learner.name]
        return 1
    if learner.learned is None:
        code, why = _learn(learner, quiet)
        if 0 < code < 128:
            failed[trial.name] = why
    if code == 0 and trial.searches:
        try:
            trial.keep(_search(trial, quiet))
        except CutlineError as error:
            failed[trial.name] = error.what
            return 2
        except (RuntimeError, MemoryError, OSError) as error:  # of memory or disk, and only this search's
            failed[trial.name] = f"{type(error).__name__}: {error}".splitlines()[0]
            code = 1
        if code:  # not above: the error holds the model, and the next run is another process's
            from cutline.engine.runtime import free_memory

            free_memory()
    return code


def _learn(trial: Trial, quiet: bool) -> tuple[int, str]:
    """As cutline train does, and with its care; how it ended, and why if badly."""
    from cutline import config as configuration
    from cutline.engine import folder, journal
    from cutline.engine.supervise import supervise

    settings = trial.place / "settings.toml"
    command = ["cutline", "train", "--config", str(settings), "--no-bundle", *["--quiet"] * quiet]
    try:
        trial.place.mkdir(exist_ok=True)
        settings.write_text(configuration.to_toml(trial.config), encoding="utf-8")
        run = trial.run or folder.make(trial.config)
        try:
            with _printing_aside(quiet):
                code = supervise(run, trial.config, command)
            causes = [str(entry["cause"]) for entry in journal.read(run) if entry.get("cause")]
        finally:
            folder.unmake(run)
    except (CutlineError, OSError) as error:  # such as a full disk
        code, causes = 2, [getattr(error, "what", str(error))]
    return code, causes[-1] if code and causes else ""


@contextmanager
def _printing_aside(quiet: bool) -> Iterator[None]:
    """What a run prints is news here, if anything, for standard error: standard output is for the table."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno() if quiet else 2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _search(trial: Trial, quiet: bool) -> dict[str, float]:
    """The validation scores of the best weights of its run, or of another's, with the search of this one."""
    from cutline.engine import agree, folder, run, trained, weights
    from cutline.engine.checkpoint import Checkpoints
    from cutline.engine.classes import BothTask
    from cutline.engine.known import Known
    from cutline.engine.task import CaptioningTask

    config, path = trial.config, trial.learner.learned
    assert path
    start, best = weights.named(trained.load_model(path)[0]), Checkpoints(path, folder.identity(path)).best().stage
    config = run.as_begun(config, path)
    prepared = run.prepare(config, known=Known.load(path, config.task), stage=best, start=start, quiet=True)
    if config.search.consensus:
        model, words, _ = trained.load_captioner(path)
        captions = prepared.task.captions if isinstance(prepared.task, BothTask) else prepared.task
        assert isinstance(captions, CaptioningTask)
        agreed = agree.load(path) or agree.learn(
            path, model, words, prepared.config, prepared.corpus.split("train"), quiet=quiet
        )
        captions.opinions = agreed.opinions()
    batch = prepared.task.config.training.batch
    validation = prepared.task.validate(batch, prepared.device.torch, lambda count: None)
    assert validation
    say(f"with the weights of {trial.learner.name}: {validation}", quiet=quiet)
    return validation.to_dict()
