"""A run's health while it learns: looked at every few seconds, journalled, served to Prometheus, and told when bad."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import psutil

from cutline.config import HealthConfig
from cutline.engine.alerts import ways
from cutline.engine.journal import Journal
from cutline.engine.machine import Gpu, Sample, sample
from cutline.errors import ConfigError, require

if TYPE_CHECKING:
    from cutline.engine.saver import Warn

JOURNAL_SECONDS = 60.0
"""Seconds between entries in the journal, under a megabyte a day; what may explain an end is written at once."""
JUMP = 0.05
"""So large a change of the share of memory in use is written at once."""
CALM = 0.95
"""Trouble begins at a bound and is over at this part of it, so that a figure on the bound does not flap."""
LOADER_LOOKS = 4
"""Looks in a row that must find waiting for pictures: the first batches of an epoch are always waited for."""
FIRST_SECONDS = 1.0
"""Seconds to the first look, over which the use of the processors is measured."""

Figures = Callable[[], Mapping[str, float]]
_METRICS = "serving metrics ('health.port')"


def check(config: HealthConfig) -> None:
    """Refuse, before a run begins, what could not tell anybody anything."""
    ways(config)
    if config.port and not config.sample_seconds:
        raise ConfigError(
            "'health.port' serves metrics, but 'health.sample_seconds' is 0: there are none", fix="set both or neither"
        )
    if config.port:
        require("prometheus_client", "health", _METRICS)


class Health:
    """Looks at machine and run in a thread of its own, from `with` to its end."""

    def __init__(
        self,
        run: Path,
        config: HealthConfig,
        journal: Journal,
        alerts: Warn,
        figures: Figures,
        gpus: Collection[int] | None = None,
    ) -> None:
        """`figures` is the run's own part: see `_FIGURES` for those that have a meaning here; `gpus` those that it
        computes on, if it is not on all that are there.
        """
        self.gpus = gpus
        self.run, self.config, self.journal, self.alerts, self.figures = run, config, journal, alerts, figures
        self._metrics = _Metrics(run.resolve().name) if config.port else None
        self._thread = Thread(target=self._work, name="health", daemon=True)
        self._stop = Event()
        self._looks: dict[str, int] = {}
        self._entry_time, self._entry_memory = -math.inf, 0.0
        self._failed = False

    def __enter__(self) -> Health:
        if self._metrics:
            self._serve(self._metrics)
        if self.config.sample_seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=5)  # a look may hang, as on the disk of a server that is gone
        if self._metrics:
            self._metrics.close()

    def _serve(self, metrics: _Metrics) -> None:
        try:
            metrics.serve(self.config.port)
        except OSError as error:
            what = f"no metrics are served on port {self.config.port}: {error.strerror or error}"
            self.alerts("metrics", what, "end what uses the port, or set another 'health.port', and resume the run")
        else:
            self.alerts("metrics", "", "")

    def _work(self) -> None:
        psutil.cpu_percent()  # counts from here
        pause = min(FIRST_SECONDS, self.config.sample_seconds)
        while not self._stop.wait(pause):
            pause = self.config.sample_seconds
            try:
                self._look()
                self._failed = False
            except Exception as error:  # a week's run must not lose its watch to one bad answer
                if not self._failed:
                    self.journal.write("health_failed", why=f"{type(error).__name__}: {error}")
                self._failed = True

    def _look(self) -> None:
        seen, figures = sample(self.run, gpus=self.gpus), dict(self.figures())
        if self._metrics:
            self._metrics.latest = seen, figures
        changed = False
        for reading in readings(seen, figures, self.config, self.run):
            changed |= self._judge(reading)
        memory, now = memory_share(seen), time.monotonic()
        if changed or now - self._entry_time >= JOURNAL_SECONDS or abs(memory - self._entry_memory) >= JUMP:
            self._entry_time, self._entry_memory = now, memory
            self.journal.write("health", **_compact(seen, figures))

    def _judge(self, reading: Reading) -> bool:
        """Begin or end an alert; whether this look has made a difference."""
        looks = self._looks.get(reading.name, 0)
        before = looks >= reading.looks
        if reading.load >= 1:
            looks += 1
        elif reading.load < CALM or not before:
            looks = 0
        self._looks[reading.name] = looks
        if looks >= reading.looks:
            self.alerts(reading.name, reading.what, reading.fix)
        elif reading.load < CALM:
            self.alerts(reading.name, "", "")  # at each calm look: it may have begun in a process before this one
        return before != (looks >= reading.looks)


@dataclasses.dataclass(frozen=True)
class Reading:
    """One watched figure, as a part of its bound: 1 is trouble."""

    name: str
    load: float
    what: str
    fix: str
    looks: int = 1
    """Looks in a row that must be bad before it is trouble."""


def memory_share(seen: Sample) -> float:
    """Share in use of the machine's memory or of the container's, whichever is fuller."""
    return max(seen.memory_used / seen.memory_total, seen.limit_used / seen.limit if seen.limit else 0.0)


def readings(seen: Sample, figures: Mapping[str, float], config: HealthConfig, run: Path) -> Iterator[Reading]:
    """All that is watched and known at this look."""
    share, free = memory_share(seen), seen.disk_free
    contained = bool(seen.limit) and seen.limit_used / seen.limit == share
    whole = f"the container's {_gb(seen.limit)}" if contained else f"the machine's {_gb(seen.memory_total)}"
    yield Reading(
        "memory", _load(share, config.memory),
        f"{_percent(share)} of {whole} of memory is in use, {_gb(seen.process_memory)} by training and its workers",
        "use fewer --workers or a smaller --batch, or end other programs; once it is full, the system ends the run",
    )  # fmt: skip
    yield Reading(
        "disk", config.disk_gb * 1e9 / max(free, 1),
        f"{_gb(free)} are free on the disk of {run}",
        "make room on it, by removing old runs for instance; on a full disk no checkpoint can be saved",
    )  # fmt: skip
    for gpu in seen.gpus:
        yield from _gpu_readings(gpu, config)
    if "loader_wait_share" in figures:
        waiting = figures["loader_wait_share"]
        yield Reading(
            "loader", _load(waiting, config.loader),
            f"{_percent(waiting)} of the time goes by in waiting for pictures",
            "use more --workers, or keep the pictures smaller or on a faster disk",
            LOADER_LOOKS,
        )  # fmt: skip
    if "checkpoint_age_seconds" in figures:
        minutes = figures["checkpoint_age_seconds"] / 60
        yield Reading(
            "checkpoint", _load(minutes, config.checkpoint_minutes),
            f"the newest checkpoint is {minutes:.0f} minutes old: as much work would be lost",
            "lower 'training.save_minutes'; if saving fails, an alert of its own says why",
        )  # fmt: skip


def _gpu_readings(gpu: Gpu, config: HealthConfig) -> Iterator[Reading]:
    name = f"GPU {gpu.index} ({gpu.name})"
    if gpu.memory_total and gpu.memory_used is not None:
        share = gpu.memory_used / gpu.memory_total
        yield Reading(
            f"gpu{gpu.index}_memory", _load(share, config.gpu_memory),
            f"{_percent(share)} of the {_gb(gpu.memory_total)} of {name} is in use",
            "end what else runs on it, or use a smaller --batch or 'training.checkpointing'",
        )  # fmt: skip
    if gpu.celsius is not None:
        yield Reading(
            f"gpu{gpu.index}_heat", _load(gpu.celsius, config.gpu_celsius),
            f"{name} is at {gpu.celsius:.0f} °C",
            "see to its cooling; when hot it slows down",
        )  # fmt: skip


def _load(value: float, bound: float) -> float:
    """A bound of 0 watches nothing."""
    return value / bound if bound else 0.0


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _compact(seen: Sample, figures: Mapping[str, float]) -> dict[str, Any]:
    """What is known, for the journal: four digits of fractions, and no number that JSON has not."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, float):
            if not math.isfinite(value):
                return None
            return int(value) if value.is_integer() else float(f"{value:.4g}")
        return value

    absent = set() if seen.limit else {"limit", "limit_used"}
    known = {key: value for key, value in dataclasses.asdict(seen).items() if key not in absent}
    return {key: plain(value) for key, value in (known | dict(figures)).items()}


_MACHINE = {
    "memory_used": ("cutline_memory_used_bytes", "Memory of the machine in use."),
    "memory_total": ("cutline_memory_size_bytes", "Memory of the machine."),
    "limit": ("cutline_memory_limit_bytes", "Memory that the container or control group allows."),
    "limit_used": ("cutline_memory_limit_used_bytes", "Memory in use of what the container or control group allows."),
    "process_memory": ("cutline_process_memory_bytes", "Memory of the training process and its children."),
    "disk_free": ("cutline_disk_free_bytes", "Free space of the disk that holds the run."),
    "disk_total": ("cutline_disk_size_bytes", "Size of the disk that holds the run."),
    "cpu": ("cutline_cpu_used_ratio", "Share of all processors in use."),
}
_GPU = {
    "use": ("cutline_gpu_used_ratio", "Share of the time that the GPU computes."),
    "memory_used": ("cutline_gpu_memory_used_bytes", "Memory of the GPU in use."),
    "memory_total": ("cutline_gpu_memory_size_bytes", "Memory of the GPU."),
    "celsius": ("cutline_gpu_temperature_celsius", "Temperature of the GPU."),
}
_FIGURES = {
    "step": ("cutline_step", "Steps that the run has taken."),
    "total_steps": ("cutline_planned_steps", "Steps that the run is to take."),
    "epoch": ("cutline_epoch", "Epoch that the run is in."),
    "loss": ("cutline_loss", "Loss of the latest steps."),
    "steps_per_second": ("cutline_steps_per_second", "Steps taken in a second."),
    "loader_wait_share": ("cutline_loader_wait_ratio", "Share of the time spent waiting for pictures."),
    "checkpoint_age_seconds": ("cutline_checkpoint_age_seconds", "Age of the newest checkpoint."),
    "checkpoint_step": ("cutline_checkpoint_step", "Step of the newest checkpoint."),
    "best_score": ("cutline_best_score", "Best validation score so far."),
    "skipped_steps": ("cutline_skipped_steps_total", "Steps left out because loss or gradient was no number."),
    "restarts": ("cutline_restarts_total", "Times that the processes were started again."),
}


class _Metrics:
    """The latest look, in the form that Prometheus asks for; built when it asks, so nothing old is ever served."""

    def __init__(self, run: str) -> None:
        self._client = require("prometheus_client", "health", _METRICS)
        self._core = require("prometheus_client.core", "health", _METRICS)
        self._labels = {"run": run}
        self._server: Any = None
        self.latest: tuple[Sample, Mapping[str, float]] | None = None

    def serve(self, port: int) -> None:
        registry = self._client.CollectorRegistry()
        registry.register(self)
        self._server, self._thread = self._client.start_http_server(port, registry=registry)

    def close(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def collect(self) -> Iterator[Any]:
        """What the library calls at each scrape."""
        if self.latest is None:
            return
        seen, figures = self.latest
        for key, (name, text) in _MACHINE.items():
            if key not in ("limit", "limit_used") or seen.limit:
                yield self._family(name, text, [({}, getattr(seen, key))])
        for key, (name, text) in _GPU.items():
            rows = [({"gpu": str(gpu.index), "model": gpu.name}, getattr(gpu, key)) for gpu in seen.gpus]
            if any(value is not None for _, value in rows):
                yield self._family(name, text, [row for row in rows if row[1] is not None])
        for key, (name, text) in _FIGURES.items():
            if key in figures:
                yield self._family(name, text, [({}, figures[key])])

    def _family(self, name: str, text: str, rows: list[tuple[dict[str, str], float]]) -> Any:
        counts = name.endswith("_total")
        kind = self._core.CounterMetricFamily if counts else self._core.GaugeMetricFamily
        family = kind(name, text, labels=[*self._labels, *rows[0][0]])
        for labels, value in rows:
            family.add_metric([*self._labels.values(), *labels.values()], value)
        return family
