"""Schedules, averages, events, devices: the small parts that the loop stands on."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cutline import config as configuration
from cutline import cpus
from cutline.config import TrainingConfig
from cutline.engine import events, folder, journal, run, runtime, weights
from cutline.engine.average import Average
from cutline.engine.known import Known
from cutline.engine.runtime import Precision, choose_device, choose_precision, readers, reseed, use_threads
from cutline.engine.schedule import GROWN, grown, rate_factor
from cutline.engine.watch import FOLDER
from cutline.errors import ConfigError
from cutline.models.linear import gain_of_bf16

BASE = TrainingConfig(epochs=10, warmup=10)


def factors(config: TrainingConfig, steps: range, drops: int = 0) -> list[float]:
    return [rate_factor(config, step, 20, drops) for step in steps]


def test_warm_up_rises_to_the_full_rate() -> None:
    rising = factors(replace(BASE, schedule="constant"), range(12))
    assert rising[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert rising[10:] == [1, 1]


def test_cosine_falls_to_nothing_at_the_end() -> None:
    falling = factors(replace(BASE, schedule="cosine"), range(10, 201))
    assert falling[0] == 1
    assert all(a > b for a, b in pairwise(falling))
    assert falling[95] == pytest.approx(0.5, abs=0.01)
    assert falling[-1] == pytest.approx(0, abs=1e-9)


def test_step_drops_every_few_epochs() -> None:
    config = replace(BASE, schedule="step", warmup=0, step_epochs=2, drop=0.1)
    assert factors(config, range(0, 160, 20)) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


def test_plateau_drops_once_for_each_plateau() -> None:
    config = replace(BASE, schedule="plateau", warmup=0, drop=0.5)
    assert [rate_factor(config, 50, 20, drops) for drops in range(3)] == [1, 0.5, 0.25]


@pytest.mark.parametrize("side", [64, 224, 30])
@pytest.mark.parametrize("first", [0.5, 0.3, 0.99])
def test_pictures_grow_to_their_size_in_even_parts(side: int, first: float) -> None:
    sides = [grown(side, first, share / 100) for share in range(101)]
    assert sides[0] == int(side * first) // 8 * 8
    assert sides == sorted(sides)
    assert {each for each in sides if each % 8} <= {side}
    assert sides[round(100 * GROWN)] == side > sides[round(100 * GROWN) - 1]


def test_pictures_that_do_not_grow_or_cannot_have_their_size_at_once() -> None:
    assert [grown(64, 1.0, share) for share in (0, 0.5, 1)] == [64] * 3
    assert grown(7, 0.5, 0) == 7


def test_average_is_the_weighted_mean_and_leaves_the_model_alone() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = Average(model.state_dict(), decay=0.5)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average.mean["weight"].fill_(3.0)
    average.update(step=10**6)
    assert torch.equal(average.mean["weight"], torch.full((1, 2), 2.0))
    with average.in_place():
        assert torch.equal(model.weight.data, torch.full((1, 2), 2.0))
    assert torch.equal(model.weight.data, torch.ones(1, 2))


def test_average_forgets_the_random_start() -> None:
    model = torch.nn.Linear(2, 1, bias=False)
    average = Average(model.state_dict(), decay=0.999)
    average.mean["weight"].fill_(100.0)
    with torch.no_grad():
        model.weight.fill_(1.0)
    for step in range(1, 200):
        average.update(step)
    assert torch.allclose(average.mean["weight"], torch.ones(1, 2), atol=0.01)


def test_average_comes_back_when_scoring_fails() -> None:
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    average = Average(model.state_dict(), decay=0.9)
    average.mean["weight"].zero_()
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert torch.equal(model.weight, before)


def test_events_are_appended_and_a_cut_line_is_left_out(tmp_path: Path) -> None:
    path, seen = tmp_path / "events.jsonl", []
    log = events.Events(path, seen.append)
    log.write("step", 1, loss=2.5)
    size = log.size
    log.write("step", 2, loss=2.0, norm=float("inf"))
    log.close()
    assert json.loads(path.read_text().splitlines()[1], parse_constant=pytest.fail)["norm"] is None
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 3, "lo')
    assert [event["step"] for event in events.read(path)] == [1, 2]
    assert [event["loss"] for event in seen] == [2.5, 2.0]

    log = events.Events(path, keep_bytes=size)  # as a run does that goes on from step 1
    log.write("step", 2, loss=1.0)
    log.close()
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [2.5, 1.0]


def test_what_a_full_disk_kept_back_is_forgotten_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = events.Events(tmp_path / "events.jsonl")
    log.write("step", 1)
    size = log.size
    with monkeypatch.context() as patch:

        def write(*_: object) -> int:
            raise OSError(28, "No space left on device")

        patch.setattr(os, "write", write)
        log.write("step", 2)
        log.cut(size)
    log.write("step", 3)
    log.close()
    assert [event["step"] for event in events.read(log.path)] == [1, 3]
    assert log.path.stat().st_size == log.size


@pytest.mark.parametrize("cut", [b'{"kind": "saved", "pa', b"\xc3"])
def test_an_entry_after_one_that_was_cut_short_is_whole(tmp_path: Path, cut: bytes) -> None:
    story = journal.Journal(tmp_path)
    assert story.write("started")
    with story.path.open("ab") as file:
        file.write(cut)
    assert story.write("finished")
    assert story.write("again")
    assert [entry["kind"] for entry in journal.read(tmp_path)] == ["started", "finished", "again"]


def test_a_process_goes_on_without_its_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told twice to end, and has taken its folder along; what is to be saved is saved all the same."""
    code = (
        "import shutil, sys; from cutline.engine.watch import Watched; watched = Watched(0)\n"
        "watched.beat(); shutil.rmtree(sys.argv[1]); watched.beat(); watched.report('stopped')\n"
    )
    place = tmp_path / "watched"
    place.mkdir()
    monkeypatch.setenv(FOLDER, str(place))
    done = subprocess.run([sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_line_of_a_log_ends_only_where_it_was_ended(tmp_path: Path) -> None:
    """The name of a picture may hold what ends a line of text, in Unicode's view; and that of a folder any bytes."""
    log, names = events.Events(tmp_path / "events.jsonl"), ["a\u2028b.png", "c\x85d.png"]
    log.write("unreadable", 1, pictures=names)
    log.close()
    assert [event["pictures"] for event in events.read(log.path)] == [names]
    told = journal.Journal(tmp_path)
    assert told.write("save_failed", why="no room in caf\udce9")
    assert [entry["why"] for entry in journal.read(tmp_path)] == ["no room in caf\udce9"]


def test_what_a_model_makes_for_its_own_size_is_no_weight() -> None:
    """As the masks of a Swin transformer, which for larger pictures are more."""

    class Masked(torch.nn.Module):
        def __init__(self, windows: int) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)
            self.register_buffer("mask", torch.zeros(windows), persistent=False)

    small, large = Masked(4), Masked(9)
    weights.put(large, weights.named(small))
    assert torch.equal(large.layer.weight, small.layer.weight)


def test_a_disk_that_takes_nothing_for_tensorboard_costs_the_run_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    log = events.Events(tmp_path / "events.jsonl", events.tensorboard(tmp_path / "file"))
    log.write("step", 1, loss=2.0)
    log.write("step", 2, loss=1.0)
    log.close()
    assert len(events.read(tmp_path / "events.jsonl")) == 2
    assert capsys.readouterr().err.count("nothing more is written for TensorBoard") == 1


def test_tensorboard_shows_every_figure(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    sink = events.tensorboard(tmp_path)
    sink({"kind": "step", "step": 3, "loss": 0.25, "note": "words are not figures"})
    found = accumulator.EventAccumulator(str(tmp_path))
    found.Reload()
    assert found.Tags()["scalars"] == ["step/loss"]
    assert [(e.step, e.value) for e in found.Scalars("step/loss")] == [(3, 0.25)]


def test_auto_says_what_it_chose_and_why() -> None:
    chosen = choose_device("auto")
    assert chosen.torch.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert chosen.reason
    assert str(choose_device("cpu")) == "cpu (as asked)"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpu", "unknown device 'gpu'"),
        ("cuda:99", "device 'cuda:99' is not there"),
        ("meta", "does not learn on 'meta'"),
    ],
)
def test_devices_that_are_not_there(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_device(name)


def test_random_choices_depend_on_seed_and_step_alone() -> None:
    def draw(seed: int, step: int, rank: int = 0) -> list[float]:
        torch.rand(7)
        reseed(seed, step, rank)
        return torch.rand(3).tolist()

    assert draw(1, 5) == draw(1, 5)
    assert draw(1, 5) != draw(1, 6)
    assert draw(1, 5) != draw(2, 5)
    assert draw(1, 5, 0) == draw(1, 5)
    assert draw(1, 5, 1) != draw(1, 5)  # processes that learn together do not drop out the same


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_every_precision_learns_on_the_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    precision = Precision(name, torch.device("cpu"))
    inputs = torch.randn(64, 8)
    wanted = inputs.sum(1, keepdim=True)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with precision.autocast():
            loss = (model(inputs).float() - wanted).square().mean()
        precision.scaler.scale(loss).backward()
        precision.scaler.unscale_(optimizer)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 20


@pytest.mark.parametrize(
    ("cores", "here", "device", "count"),
    [(1, 1, "cpu", 0), (2, 1, "cpu", 1), (2, 2, "cpu", 0), (64, 1, "cpu", 1), (64, 4, "cuda", 8), (4, 1, "cuda", 3)],
)
def test_readers_take_what_those_who_learn_leave(
    cores: int, here: int, device: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "count", lambda: cores)
    monkeypatch.setattr(runtime, "FORKS", True)
    monkeypatch.setattr(runtime, "ROOM", 0)
    assert readers(torch.device(device), here) == count
    monkeypatch.setattr(runtime, "ROOM", 2**60)  # as in a container
    assert readers(torch.device(device), here) == 0
    monkeypatch.setattr(runtime, "ROOM", 0)
    monkeypatch.setattr(runtime, "FORKS", False)
    assert readers(torch.device(device), here) == 0


def test_threads_are_those_asked_for_or_those_there_is_time_for(monkeypatch: pytest.MonkeyPatch) -> None:
    used = torch.get_num_threads()
    try:
        for asked, here, cores, expected in [(0, 1, 64, 6), (0, 2, 64, 3), (0, 1, 4, 4), (0, 3, 4, 1), (5, 2, 4, 5)]:
            torch.set_num_threads(6)
            monkeypatch.setattr(cpus, "count", lambda cores=cores: cores)
            use_threads(asked, here)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(used)


@pytest.mark.parametrize(("gain", "name"), [(2.0, "bf16"), (0.7, "fp32"), (0.0, "fp32")])
def test_bf16_is_taken_where_it_is_faster(gain: float, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "gain_of_bf16", lambda: gain)
    assert choose_precision(torch.device("cpu"))[0] == name


def test_how_fast_bf16_is_can_be_measured_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    assert 0.001 < gain_of_bf16.__wrapped__() < 1000
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert gain_of_bf16.__wrapped__() == 0
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: pytest.fail("it need not be there"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert gain_of_bf16.__wrapped__() == 0


@pytest.mark.parametrize("measured", ["fp32", "bf16"])
def test_an_open_precision_is_settled_once(
    measured: str, tmp_path: Path, scenes_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run begins; on another machine, where another would be faster, it goes on with the same."""
    small = {"task": "classes", "pictures": {"size": 16}, "encoder": {"name": "cnn:width=8,stages=2"}}
    asked = configuration.from_dict(
        {**small, "training": {"precision": "auto"}, "output": str(tmp_path), "data": {"path": str(scenes_folder)}}
    )
    monkeypatch.setattr(run, "choose_precision", lambda device: (measured, "so it was"))
    prepared = run.prepare(asked, quiet=True)
    path = run.create(prepared, folder.make(asked))
    assert folder.unfinished(asked) == path
    assert folder.settings(path).training.precision == measured
    assert run.trainer(prepared, path).precision.dtype == {"fp32": None, "bf16": torch.bfloat16}[measured]
    monkeypatch.setattr(run, "choose_precision", lambda device: pytest.fail("it is settled"))
    again = run.prepare(run.as_begun(asked, path), known=Known.load(path, "classes"), quiet=True)
    assert again.config == prepared.config


def test_a_scale_is_there_before_anything_is_scaled() -> None:
    """A rank that has no picture in its first step has gradients all the same, of the others, to be unscaled."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    new, resumed = (Precision("fp16", torch.device("cpu")) for _ in range(2))
    resumed.scaler.load_state_dict({**new.scaler.state_dict(), "scale": 1024.0})
    for precision, scale in ((new, 65536.0), (resumed, 1024.0)):
        assert precision.scaler.get_scale() == scale
        parameter.grad = torch.full((2,), scale)
        precision.scaler.unscale_(optimizer)
        assert parameter.grad.tolist() == [1, 1]


def test_a_stage_names_its_precision() -> None:
    with pytest.raises(ConfigError, match="stage 2 leaves its precision open"):
        configuration.from_dict({"stages": [{}, {"training": {"precision": "auto"}}]})


FAULTS = """
import contextlib, os, resource, sys
import torch
from cutline.cli.work import work

if sys.argv[1] == "learn":
    os.environ.pop("RANK", None)
    with contextlib.suppress(KeyError):  # it ends before it learns: it is none of a run's processes
        work(None, None)

def step():
    torch.empty(2**24).fill_(1)  # 64 MB, as large as activations are

for _ in range(20):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have other ways")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("learn") < 100 < 10_000 < faults("look on")
