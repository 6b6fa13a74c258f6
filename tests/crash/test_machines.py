"""Two machines that learn as one, by plain torchrun: two hosts on a network of their own, and a disk that they share.

The hosts are network namespaces with names and addresses, so what crosses a network here really does: the cable can be
pulled, and a host killed with all that runs on it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cutline.engine import journal

pytestmark = pytest.mark.slow
HANG_MINUTES = 0.3
EPOCHS = 8


@dataclass(frozen=True)
class Host:
    name: str
    cable: str
    """Its end of the wire between the two."""

    def start(self, command: list[object], output: Path) -> subprocess.Popen[bytes]:
        named = ["unshare", "--uts", "sh", "-c", f'hostname {self.name} && exec "$@"', "sh"]
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        with output.open("ab") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *named, *map(str, command)],
                stdout=file, stderr=subprocess.STDOUT, env=environment,
            )  # fmt: skip

    def kill(self) -> None:
        for pid in ip("netns", "pids", self.name).split():
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(int(pid), signal.SIGKILL)

    def pull_cable(self, *, out: bool) -> None:
        ip("-n", self.name, "link", "set", self.cable, "down" if out else "up")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("making a network of one's own takes root and iproute2")
    both = [Host(f"cutline-{os.getpid()}-{letter}", f"wire-{letter}") for letter in "ab"]
    try:
        for host in both:
            ip("netns", "add", host.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network of one's own here: {error.stderr}")
    addresses = [f"10.77.0.{number}" for number in (1, 2)]
    known = "127.0.0.1 localhost\n" + "".join(f"{at} {host.name}\n" for at, host in zip(addresses, both, strict=True))
    try:
        one, two = both
        ip("-n", one.name, "link", "add", one.cable, "type", "veth", "peer", two.cable, "netns", two.name)
        for address, host in zip(addresses, both, strict=True):
            names = Path("/etc/netns", host.name, "hosts")  # which `ip netns exec` puts in the place of /etc/hosts
            names.parent.mkdir(parents=True)
            names.write_text(known)
            ip("-n", host.name, "address", "add", f"{address}/24", "dev", host.cable)
            ip("-n", host.name, "link", "set", host.cable, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield one, two
    finally:
        for host in both:
            host.kill()
            ip("netns", "delete", host.name)
            shutil.rmtree(Path("/etc/netns", host.name), ignore_errors=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    file = tmp_path_factory.mktemp("machines") / "machines.toml"
    text = tiny_config.read_text().replace("epochs = 2", f"epochs = {EPOCHS}")
    file.write_text(text + f"\n[health]\nhang_minutes = {HANG_MINUTES}\n")
    return file


@pytest.fixture(scope="module")
def slow_to_judge(tmp_path_factory: pytest.TempPathFactory, config: Path) -> Path:
    """The same with validations of a second or more, long enough to aim at."""
    file = tmp_path_factory.mktemp("slow") / "slow.toml"
    file.write_text(
        config.read_text()
        .replace("beam = 2", "beam = 16\nmin_length = 300")
        .replace("max_length = 16", "max_length = 300")
    )
    return file


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, scenes_folder: Path, config: Path) -> Path:
    """What two processes of one machine learn, undisturbed."""
    return undisturbed(tmp_path_factory.mktemp("alone"), scenes_folder, config)


def undisturbed(output: Path, data: Path, config: Path) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "cutline", *training(data, config, output)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    subprocess.run(command, check=True, timeout=240, capture_output=True, env=environment)
    return the_run(output)


def training(data: Path, config: Path, output: Path) -> list[str]:
    return ["train", "--preset", "scenes", "--config", str(config), "--data", str(data), "--output", str(output)]


def torchrun(head: Host, data: Path, config: Path, output: Path) -> list[object]:
    """The command of the docs, the same on all machines."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 5,
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{head.name}:29500", "--rdzv-id", "captions",
        "-m", "cutline", *training(data, config, output),
    ]  # fmt: skip


def the_run(output: Path) -> Path:
    (run,) = (path for path in output.iterdir() if path.is_dir() and not path.is_symlink())
    return run


def events(output: Path) -> list[str]:
    """The kinds of those told so far."""
    try:
        text = (the_run(output) / "events.jsonl").read_text()
    except (ValueError, FileNotFoundError):
        return []
    whole = text[: text.rfind("\n") + 1]  # the last line may be only half written
    return [json.loads(line)["kind"] for line in whole.splitlines()]


def steps(output: Path) -> int:
    return events(output).count("step")


def wait_for(what: str, until: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.1)


@pytest.mark.parametrize("fault", ["none", "killed", "power cut", "first killed"])
def test_a_run_over_two_machines_ends_as_on_one(
    fault: str, hosts: tuple[Host, Host], tmp_path: Path, scenes_folder: Path, config: Path, alone: Path
) -> None:
    """Though a machine is killed, or loses power, which nobody tells the other, and then comes back."""
    output = tmp_path / "runs"
    command = torchrun(hosts[0], scenes_folder, config, output)
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [host.start(command, log) for host, log in zip(hosts, logs, strict=True)]
    if fault != "none":
        wait_for("step", lambda: steps(output) > 8)
        lost = 0 if fault == "first killed" else 1
        if fault == "power cut":
            hosts[lost].pull_cable(out=True)
        hosts[lost].kill()
        assert steps(output) < EPOCHS * 3, "it was over before the fault"
        if fault == "power cut":
            wait_for("hang noticed", lambda: "Timed out" in logs[0].read_text(), HANG_MINUTES * 60 + 60)
            hosts[lost].pull_cable(out=False)
        if fault == "first killed":  # what the machines meet by is gone, so torchrun ends on the second as well
            assert processes[1].wait(120) != 0, logs[1].read_text()
            processes[1] = hosts[1].start(command, logs[1])
        processes[lost] = hosts[lost].start(command, logs[lost])
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(240) == 0, log.read_text()
    assert (the_run(output) / "events.jsonl").read_bytes() == (alone / "events.jsonl").read_bytes()
    # A run that had begun anew would have the same log.
    resumed = resumed_at(output)
    assert all(step >= 6 for step in resumed)  # it was past step 8, and saves every 3
    assert bool(resumed) == (fault != "none")


def test_each_machine_looks_after_itself(
    hosts: tuple[Host, Host], tmp_path: Path, scenes_folder: Path, config: Path
) -> None:
    """And what one of them told is told to whoever asks of the run."""
    worried = tmp_path / "worried.toml"
    worried.write_text(config.read_text() + "memory = 0.0001\ndisk_gb = 1e9\nsample_seconds = 0.2\n")
    output = tmp_path / "runs"
    command = torchrun(hosts[0], scenes_folder, worried, output)
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    processes = [host.start(command, log) for host, log in zip(hosts, logs, strict=True)]
    name = hosts[1].name
    wait_for("alert of the second machine", lambda: steps(output) > 0 and f"{name} memory" in asked(output))
    assert {"memory", "disk"} <= asked(output).keys()
    assert f"{name} disk" not in asked(output), "of the disk that they share the first tells"
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(240) == 0, log.read_text()
        assert log.read_text().count("of memory is in use") == 1
        assert log.read_text().count("alert over: memory") == 1
    assert not asked(output)
    told = journal.entries(journal.of_machines(the_run(output))[name])
    assert told[0]["kind"] == "started"
    assert told[0]["host"] == name
    seen = next(entry for entry in told if entry["kind"] == "health")
    assert seen["memory_used"] > 0
    assert "step" not in seen


def asked(output: Path) -> dict[str, object]:
    """The alerts that `cutline runs show` names."""
    command = [sys.executable, "-m", "cutline", "runs", "show", str(the_run(output)), "--format", "json"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    return dict(json.loads(shown.stdout)["alerts"])


def resumed_at(output: Path) -> list[int]:
    return [entry["step"] for entry in journal.read(the_run(output)) if entry["kind"] == "resumed"]


def test_a_power_cut_while_the_others_validate(
    hosts: tuple[Host, Host], tmp_path: Path, scenes_folder: Path, slow_to_judge: Path
) -> None:
    """When ranks wait for each other's pictures to be judged, for as long as that takes."""
    output, log, (first, second) = tmp_path / "runs", tmp_path / "first.log", hosts
    command = torchrun(first, scenes_folder, slow_to_judge, output)
    waits = first.start(command, log)
    lost = second.start(command, tmp_path / "second.log")
    wait_for("validation", lambda: judging(output) and steps(output) > 8)
    second.pull_cable(out=True)
    second.kill()
    lost.wait()
    assert judging(output), "it had been validated before the fault"
    wait_for("loss noticed", lambda: "another process is gone" in log.read_text(), HANG_MINUTES * 60 + 60)
    second.pull_cable(out=False)
    lost = second.start(command, tmp_path / "second.log")
    assert (waits.wait(240), lost.wait(240)) == (0, 0), log.read_text()
    alone = undisturbed(tmp_path / "alone", scenes_folder, slow_to_judge)
    assert (the_run(output) / "events.jsonl").read_bytes() == (alone / "events.jsonl").read_bytes()
    assert all(step >= 6 for step in resumed_at(output))
    assert resumed_at(output)


def judging(output: Path) -> bool:
    """Whether all steps of an epoch are done, and the epoch's validation is not."""
    told = events(output)
    return told[-1:] == ["step"] and told.count("step") % 3 == 0
