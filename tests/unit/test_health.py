"""A run's health is watched to the end, told when bad, and cannot itself end the run."""

import dataclasses
import json
import math
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cutline.config import HealthConfig
from cutline.engine import health as module
from cutline.engine import journal as journals
from cutline.engine.alerts import Alerts
from cutline.engine.health import Health, check, readings
from cutline.engine.journal import Journal
from cutline.engine.machine import Gpu, Sample, sample
from cutline.errors import ConfigError, CutlineError

PATIENT = 60.0
GB = 10**9
FIGURES = {
    "step": 123_456, "total_steps": 200_000, "epoch": 3, "loss": 2.345678, "steps_per_second": 1.25,
    "loader_wait_share": 0.1, "checkpoint_age_seconds": 30.0, "checkpoint_step": 123_000, "best_score": 0.987,
    "skipped_steps": 4, "restarts": 1,
}  # fmt: skip
CALM = Sample(
    memory_used=8 * GB, memory_total=16 * GB, limit=0, limit_used=0, process_memory=GB,
    disk_free=50 * GB, disk_total=100 * GB, cpu=0.5,
    gpus=(Gpu(0, "Model", 0.9, 10 * GB, 80 * GB, 60.0), Gpu(1, "Model", None, None, None, None)),
)  # fmt: skip


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.01)


class Figures:
    """The run's own part, which a test may change; counts how often it is asked."""

    def __init__(self, **values: float) -> None:
        self.values: dict[str, float] = values
        self.asked = 0

    def __call__(self) -> dict[str, float]:
        self.asked += 1
        return dict(self.values)

    def wait(self, times: int) -> None:
        """Until it was asked so often from now on, and what came of the answers is done with."""
        wait_for(lambda until=self.asked + times + 1: self.asked >= until)


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.005)


def watch(run: Path, figures: Callable[[], dict[str, float]], **settings: Any) -> Health:
    config = HealthConfig(**{"sample_seconds": 0.02, "disk_gb": 0, "memory": 0} | settings)
    return Health(run, config, Journal(run), Alerts(run, config, Journal(run)), figures)


def entries(run: Path, kind: str) -> list[dict[str, Any]]:
    return [entry for entry in journals.read(run) if entry["kind"] == kind]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def scrape(port: int) -> dict[str, list[Any]]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://127.0.0.1:{port}/metrics", timeout=PATIENT) as page:
        families = text_string_to_metric_families(page.read().decode())
        return {each.name: [each.type, *((row.labels, row.value) for row in each.samples)] for each in families}


def test_a_look_is_journalled(tmp_path: Path) -> None:
    with watch(tmp_path, Figures(**FIGURES | {"loss": math.nan})) as health:
        wait_for(lambda: entries(tmp_path, "health"))
    assert not health._thread.is_alive()
    line = (tmp_path / journals.NAME).read_text().splitlines()[0]
    entry = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    real = sample(tmp_path)
    assert entry["memory_total"] == real.memory_total
    assert entry["disk_total"] == real.disk_total
    assert entry["disk_free"] > 0
    assert 0 <= entry["cpu"] <= 1
    assert entry["step"] == 123_456
    assert entry["loss"] is None
    assert entry["best_score"] == 0.987


def test_numbers_in_the_journal_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sample", lambda run, gpus: dataclasses.replace(CALM, cpu=0.1234567))
    with watch(tmp_path, Figures(loss=2.3456789, step=1234567.0)):
        wait_for(lambda: entries(tmp_path, "health"))
    entry = entries(tmp_path, "health")[0]
    assert (entry["cpu"], entry["loss"], entry["step"]) == (0.1235, 2.346, 1234567)
    assert entry["gpus"][0]["celsius"] == 60
    assert "limit" not in entry


def test_the_journal_does_not_grow_with_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [CALM]
    monkeypatch.setattr(module, "sample", lambda run, gpus: seen[0])
    figures = Figures()
    with watch(tmp_path, figures):
        figures.wait(20)
        assert len(entries(tmp_path, "health")) == 1
        seen[0] = dataclasses.replace(CALM, memory_used=10 * GB)  # what may explain an end is written at once
        figures.wait(5)
        assert [entry["memory_used"] for entry in entries(tmp_path, "health")] == [8 * GB, 10 * GB]
        monkeypatch.setattr(module, "JOURNAL_SECONDS", 0.0)
        figures.wait(5)
        assert len(entries(tmp_path, "health")) >= 5


def test_an_alert_begins_and_is_over(tmp_path: Path) -> None:
    figures = Figures(checkpoint_age_seconds=10.0)
    with watch(tmp_path, figures, checkpoint_minutes=60):
        figures.wait(3)
        figures.values["checkpoint_age_seconds"] = 61 * 60.0
        figures.wait(3)
        assert [entry["name"] for entry in entries(tmp_path, "alert")] == ["checkpoint"]
        figures.values["checkpoint_age_seconds"] = 58 * 60.0  # below the bound, but not yet calm
        figures.wait(3)
        figures.values["checkpoint_age_seconds"] = 61 * 60.0
        figures.wait(3)
        assert not entries(tmp_path, "alert_over")
        figures.values["checkpoint_age_seconds"] = 3.0
        figures.wait(3)
        assert [entry["name"] for entry in entries(tmp_path, "alert_over")] == ["checkpoint"]
        assert len(entries(tmp_path, "health")) == 3  # the first, that it began, that it was over
        figures.values["checkpoint_age_seconds"] = 58 * 60.0
        figures.wait(3)
    assert len(entries(tmp_path, "alert")) == 1
    assert "61 minutes old" in entries(tmp_path, "alert")[0]["what"]


def test_the_real_disk_is_watched(tmp_path: Path) -> None:
    with watch(tmp_path, Figures(), disk_gb=10**9):
        wait_for(lambda: entries(tmp_path, "alert"))
    assert entries(tmp_path, "alert")[0]["name"] == "disk"


def test_waiting_for_pictures_must_last(tmp_path: Path) -> None:
    shares = iter([0.9] * (module.LOADER_LOOKS - 1) + [0.1] + [0.9] * module.LOADER_LOOKS)
    alerts_before: list[int] = []

    def figures() -> dict[str, float]:
        alerts_before.append(len(entries(tmp_path, "alert")))
        return {"loader_wait_share": next(shares, 0.9)}

    with watch(tmp_path, figures, loader=0.5):
        wait_for(lambda: len(alerts_before) > 2 * module.LOADER_LOOKS + 1)
    assert alerts_before[2 * module.LOADER_LOOKS - 1] == 0
    assert alerts_before[2 * module.LOADER_LOOKS] == 1
    assert "--workers" in entries(tmp_path, "alert")[0]["fix"]


def test_an_alert_of_the_process_before_is_over(tmp_path: Path) -> None:
    Journal(tmp_path).write("alert", name="checkpoint", what="old", fix="save")
    figures = Figures(checkpoint_age_seconds=58 * 60.0)
    with watch(tmp_path, figures):
        figures.wait(3)
        assert not entries(tmp_path, "alert_over")
        figures.values["checkpoint_age_seconds"] = 1.0
        wait_for(lambda: entries(tmp_path, "alert_over"))


GPU = CALM.gpus[0]


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("memory", {"memory_used": 15 * GB}, "94 % of the machine's 16.0 GB"),
        ("memory", {"limit": 4 * GB, "limit_used": 3_800_000_000}, "95 % of the container's 4.0 GB"),
        ("disk", {"disk_free": GB // 2}, "0.5 GB are free"),
        ("disk", {"disk_free": 0}, "0.0 GB are free"),
        ("gpu0_memory", {"gpus": (dataclasses.replace(GPU, memory_used=79 * GB),)}, "99 % of the 80.0 GB of GPU 0"),
        ("gpu0_heat", {"gpus": (dataclasses.replace(GPU, celsius=91.0),)}, "GPU 0 (Model) is at 91 °C"),
        ("loader", {"loader_wait_share": 0.7}, "70 % of the time"),
        ("checkpoint", {"checkpoint_age_seconds": 7200.0}, "120 minutes old"),
    ],
)
def test_each_bound(name: str, change: dict[str, Any], says: str, tmp_path: Path) -> None:
    figures = {key: change.pop(key) for key in list(change) if key in FIGURES}
    config = HealthConfig()
    calm = list(readings(CALM, FIGURES, config, tmp_path))
    assert {reading.name for reading in calm} == {
        "memory", "disk", "gpu0_memory", "gpu0_heat", "loader", "checkpoint",
    }  # fmt: skip
    assert all(reading.load < module.CALM for reading in calm)
    found = list(readings(dataclasses.replace(CALM, **change), FIGURES | figures, config, tmp_path))
    assert [reading.name for reading in found if reading.load >= 1] == [name]
    assert says in next(reading.what for reading in found if reading.name == name)
    off = HealthConfig(
        disk_gb=0, memory=0, gpu_memory=0, gpu_celsius=0, loader=0, checkpoint_minutes=0
    )  # fmt: skip
    assert all(not r.load for r in readings(dataclasses.replace(CALM, **change), FIGURES | figures, off, tmp_path))


def test_a_look_that_fails_is_noted_once_and_does_not_end_the_watch(tmp_path: Path) -> None:
    figures = Figures(step=1)
    broken = threading.Event()

    def sometimes() -> dict[str, float]:
        values = figures()
        if broken.is_set():
            raise RuntimeError("the loop is not there yet")
        return values

    broken.set()
    with watch(tmp_path, sometimes):
        figures.wait(4)
        assert [entry["why"] for entry in entries(tmp_path, "health_failed")] == [
            "RuntimeError: the loop is not there yet"
        ]
        assert not entries(tmp_path, "health")
        broken.clear()
        wait_for(lambda: entries(tmp_path, "health"))
        broken.set()
        figures.wait(4)
    assert len(entries(tmp_path, "health_failed")) == 2  # one for each time that it began


def test_no_seconds_no_looks(tmp_path: Path) -> None:
    figures = Figures()
    before = threading.active_count()
    with watch(tmp_path, figures, sample_seconds=0):
        assert threading.active_count() == before
        time.sleep(0.1)
    assert figures.asked == 0


def test_what_cannot_tell_anybody_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check(HealthConfig(port=9999, webhook="https://example.org/", command="true"))
    with pytest.raises(ConfigError, match="sample_seconds"):
        check(HealthConfig(sample_seconds=0, port=9999))
    with pytest.raises(ConfigError, match=r"health\.webhook"):
        check(HealthConfig(webhook="example"))
    with pytest.raises(ConfigError, match=r"health\.command"):
        check(HealthConfig(command="no-such-program"))
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(CutlineError, match=r"cutline\[health\]"):
        check(HealthConfig(port=9999))


def test_prometheus_scrapes_every_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / 'a "strange" run'
    run.mkdir()
    contained = dataclasses.replace(CALM, limit=4 * GB, limit_used=GB)
    monkeypatch.setattr(module, "sample", lambda run, gpus: contained)
    port = free_port()
    figures = Figures(**FIGURES)
    with watch(run, figures, port=port):
        figures.wait(1)
        found = scrape(port)
        figures.values["step"] += 1
        figures.wait(2)
        assert scrape(port)["cutline_step"] == ["gauge", ({"run": run.name}, 123_457)]
    assert found["cutline_loss"] == ["gauge", ({"run": run.name}, 2.345678)]
    assert found["cutline_restarts"] == ["counter", ({"run": run.name}, 1)]
    assert found["cutline_skipped_steps"] == ["counter", ({"run": run.name}, 4)]
    assert found["cutline_memory_used_bytes"] == ["gauge", ({"run": run.name}, 8 * GB)]
    assert found["cutline_memory_limit_bytes"] == ["gauge", ({"run": run.name}, 4 * GB)]
    gpu = {"run": run.name, "gpu": "0", "model": "Model"}
    assert found["cutline_gpu_temperature_celsius"] == ["gauge", (gpu, 60)]
    assert len(found) == len(module._MACHINE) + len(module._GPU) + len(FIGURES)
    page = (Path(__file__).parent.parent.parent / "docs" / "health.md").read_text()
    for name, (kind, *_) in found.items():
        assert f"`{name}{'_total' if kind == 'counter' else ''}`" in page

    with pytest.raises(OSError):  # it has stopped with the run
        scrape(port)
    with watch(run, figures, port=port):  # and the next process gets the port at once
        scrape(port)
    assert not entries(run, "alert")


def test_real_metrics_of_this_machine(tmp_path: Path) -> None:
    port, figures = free_port(), Figures()
    with watch(tmp_path, figures, port=port):
        figures.wait(1)
        found = scrape(port)
    assert found["cutline_memory_size_bytes"][1][1] == sample(tmp_path).memory_total
    assert found["cutline_disk_size_bytes"][1][1] == sample(tmp_path).disk_total
    assert "cutline_step" not in found


def test_a_port_in_use_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    figures = Figures(step=1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with watch(tmp_path, figures, port=port):
            figures.wait(2)
    (alert,) = entries(tmp_path, "alert")
    assert alert["name"] == "metrics"
    assert str(port) in alert["what"]
    assert entries(tmp_path, "health")
