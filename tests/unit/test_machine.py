"""Memory, disk and GPUs as the system tells them; control groups from folders of files as the kernel writes them."""

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from tests.control_group import control_group

from cutline import control_groups
from cutline.engine import machine

GB = 10**9
V1_NO_LIMIT = "9223372036854771712"


def system(root: Path, groups: str, mounts: str, files: dict[str, dict[str, str]]) -> Path:
    """A root with `/proc/self/cgroup`, `/proc/self/mountinfo` and the files of groups, by folder."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(groups)
    (proc / "mountinfo").write_text(f"23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n{mounts}")
    for folder, texts in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (root / folder / name).write_text(text + "\n")
    return root


def v2(limit: int | str, current: int, inactive_file: int = 0, kills: int = 0) -> dict[str, str]:
    return {
        "memory.max": str(limit),
        "memory.current": str(current),
        "memory.stat": f"anon 1000\nfile 3000\nactive_file 10\ninactive_file {inactive_file}\nworkingset_nodes 0",
        "memory.events": f"low 0\nhigh 0\nmax 7\noom {kills + 1}\noom_kill {kills}\noom_group_kill 0",
    }


V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    """A container of a pod, seen from outside: the pod's limit is the tighter, and it has a busy neighbour."""
    group = "sys/fs/cgroup/kubepods/pod1"
    return system(
        tmp_path, "0::/kubepods/pod1/train\n", V2_MOUNT,
        {
            "sys/fs/cgroup": {"memory.stat": "anon 1"},
            "sys/fs/cgroup/kubepods": v2("max", 40 * GB, kills=9),
            group: v2(2 * GB, 1_900_000_000, 100_000_000, kills=5),
            f"{group}/train": v2(3 * GB, 1_500_000_000, 200_000_000, kills=2),
            f"{group}/beside": v2(GB // 100, GB // 100),
        },
    )  # fmt: skip


def test_the_tightest_limit_up_the_hierarchy_counts(pod: Path) -> None:
    # What only caches files can be had: 2.0 - (1.9 - 0.1) is less than 3.0 - (1.5 - 0.2).
    assert machine.memory_available(pod) == 200_000_000
    sample = machine.sample(pod, pod)
    assert (sample.limit, sample.limit_used) == (2 * GB, 1_800_000_000)


def test_kills_are_those_of_the_own_group(pod: Path) -> None:
    assert control_groups.oom_kills(pod) == 2
    (pod / "sys/fs/cgroup/kubepods/pod1/train/memory.events").unlink()  # its memory is not counted by itself
    assert control_groups.oom_kills(pod) == 5


def test_a_container_that_sees_itself_as_the_top(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\n", V2_MOUNT, {"sys/fs/cgroup": v2(GB, GB // 2, kills=1)})
    assert machine.sample(root, root).limit == GB
    assert control_groups.oom_kills(root) == 1


def test_a_container_that_is_told_its_path_outside(tmp_path: Path) -> None:
    mount = V2_MOUNT.replace("0:26 / /", "0:26 /docker/ab /")
    root = system(tmp_path, "0::/docker/ab\n", mount, {"sys/fs/cgroup": v2(GB, GB // 2)})
    assert machine.sample(root, root).limit == GB
    for outside in ("/system.slice/x", "/../x"):
        (root / "proc/self/cgroup").write_text(f"0::{outside}\n")
        assert machine.sample(root, root).limit == GB


def test_a_group_outside_what_is_mounted_is_left_alone(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup": v2(GB, GB // 2), "sys/fs/x": v2(1000, 900)}
    root = system(tmp_path, "0::/../x\n", V2_MOUNT, files)
    assert machine.sample(root, root).limit == GB


def test_version_1_and_a_mount_with_a_space_in_its_name(tmp_path: Path) -> None:
    groups = "5:cpu,cpuacct:/\n4:hugetlb,memory:/slurm/job_7/step\n3:cpuset:/\n0::/\n"
    mounts = (
        "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n"
        "35 31 0:32 / /sys/fs/cgroup/my\\040memory rw,relatime shared:3 - cgroup cgroup rw,hugetlb,memory\n"
        "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
    )

    def v1(limit: int | str, usage: int, idle: int, kills: int) -> dict[str, str]:
        return {
            "memory.limit_in_bytes": str(limit),
            "memory.usage_in_bytes": str(usage),
            "memory.stat": f"inactive_file 1\ntotal_cache 5\ntotal_inactive_file {idle}",
            "memory.oom_control": f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}",
        }

    memory = "sys/fs/cgroup/my memory"
    root = system(
        tmp_path, groups, mounts,
        {
            "sys/fs/cgroup/unified": {"cgroup.procs": "1"},
            memory: v1(V1_NO_LIMIT, 60 * GB, 0, 0),
            f"{memory}/slurm/job_7": v1(4 * GB, 2 * GB, GB, 1),
            f"{memory}/slurm/job_7/step": v1(V1_NO_LIMIT, 2 * GB, GB, 3),
        },
    )  # fmt: skip
    assert machine.sample(root, root).limit == 4 * GB
    assert machine.memory_available(root) == 3 * GB
    assert control_groups.oom_kills(root) == 3
    (root / memory / "slurm/job_7/memory.limit_in_bytes").write_text(V1_NO_LIMIT)
    assert machine.sample(root, root).limit == 0


@pytest.mark.parametrize(
    ("own", "above", "count"),
    [("max 100000", "max 100000", None), ("150000 100000", "max 100000", 2), ("400000 100000", "50000 100000", 1)],
)
def test_shares_of_processors(own: str, above: str, count: int | None, tmp_path: Path) -> None:
    files = {"sys/fs/cgroup": {}, "sys/fs/cgroup/pod": {"cpu.max": above}, "sys/fs/cgroup/pod/train": {"cpu.max": own}}
    root = system(tmp_path, "0::/pod/train\n", V2_MOUNT, files)
    assert control_groups.processors(root) == count


def test_shares_of_processors_in_version_1(tmp_path: Path) -> None:
    def v1(quota: int) -> dict[str, str]:
        return {"cpu.cfs_quota_us": str(quota), "cpu.cfs_period_us": "50000"}

    mounts = (
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    )
    top = "sys/fs/cgroup/cpu,cpuacct"
    files = {top: v1(-1), f"{top}/job": v1(120_000), f"{top}/job/step": v1(-1), "sys/fs/cgroup/memory": v1(1)}
    root = system(tmp_path, "5:cpu,cpuacct:/job/step\n4:memory:/\n", mounts, files)
    assert control_groups.processors(root) == 3
    (root / top / "job/cpu.cfs_quota_us").write_text("-1")
    assert control_groups.processors(root) is None


@pytest.fixture
def half_a_processor() -> Iterator[Path]:
    with control_group("cpu", "cpu.cfs_quota_us", "cpu.max", 50_000) as path:
        yield path


def test_a_process_with_half_a_processor(half_a_processor: Path) -> None:
    """What libraries are told; of several processors, that is: of one it is what they find by themselves."""
    code = (
        "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('0')\n"
        "from cutline import cpus; print(cpus.count(), cpus.threads(0), cpus.threads(3))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(half_a_processor / "cgroup.procs")],
        capture_output=True, text=True, check=True, timeout=100,
    ).stdout.split()  # fmt: skip
    alone = len(os.sched_getaffinity(0)) == 1
    assert told == ["1", "0" if alone else "1", "3"]


def test_without_groups_the_machine_counts(tmp_path: Path) -> None:
    """Against `/proc/meminfo` itself."""
    whole = int(re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert 0 < machine.memory_available(tmp_path) < whole
    assert control_groups.oom_kills(tmp_path) == 0
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 9\noom_kill 4\ndrop_pagecache 0\n")
    assert control_groups.oom_kills(tmp_path) == 4
    sample = machine.sample(tmp_path, tmp_path)
    assert (sample.limit, sample.limit_used) == (0, 0)


def test_this_machine() -> None:
    here = Path(__file__).parent
    sample = machine.sample(here)
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    assert sample.memory_used == pytest.approx(sample.memory_total - available, abs=2 * GB)
    disk = os.statvfs(here)
    assert sample.disk_total == disk.f_blocks * disk.f_frsize
    assert sample.disk_free == pytest.approx(disk.f_bavail * disk.f_frsize, abs=2 * GB)
    assert 0 < machine.memory_available() < sample.memory_total
    assert 0 < sample.process_memory < sample.memory_total
    assert 0 <= sample.cpu <= 1
    assert control_groups.oom_kills() >= 0


def test_children_count(tmp_path: Path) -> None:
    before = machine.sample(tmp_path).process_memory
    code = "block = bytearray(100_000_000); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = machine.sample(tmp_path).process_memory
        child.communicate(b"\n")
    assert with_child - before > 90_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is shared")
def test_what_children_share_counts_once(tmp_path: Path) -> None:
    block = bytearray(b"1") * 300_000_000
    before = machine.sample(tmp_path).process_memory
    assert before > len(block)
    ready, wait = multiprocessing.Event(), multiprocessing.Event()
    child = multiprocessing.get_context("fork").Process(target=lambda: (ready.set(), wait.wait(60)), daemon=True)
    child.start()
    try:
        assert ready.wait(60)
        assert machine.sample(tmp_path).process_memory - before < 150_000_000
    finally:
        wait.set()
        child.join()


UUIDS = ["GPU-aaaa-1", "GPU-bbbb-2", "GPU-cccc-3"]


@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        (None, UUIDS),
        ("", []),
        ("-1", []),
        ("2, 0", ["GPU-cccc-3", "GPU-aaaa-1"]),
        ("0,7,1", ["GPU-aaaa-1"]),
        ("GPU-bb", ["GPU-bbbb-2"]),
        ("GPU-zz,0", []),
        ("MIG-dddd", ["MIG-dddd"]),
    ],
)
def test_cuda_visible_devices(setting: str | None, seen: list[str]) -> None:
    assert machine.visible(UUIDS, setting) == seen


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """NVIDIA's library not yet started, and not kept as the test has left it."""
    machine._nvml.cache_clear()
    yield monkeypatch
    machine._nvml.cache_clear()


def test_without_the_library_or_a_driver_there_are_no_gpus(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    fresh.setattr(pynvml, "CDLL", absent)
    fresh.setattr(pynvml, "nvmlLib", None)
    assert machine.sample(tmp_path).gpus == ()
    machine._nvml.cache_clear()
    fresh.setitem(sys.modules, "pynvml", None)
    assert machine.sample(tmp_path).gpus == ()


def test_gpus_tell_what_they_can(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No driver is needed to test what is made of its answers: one GPU tells all, one little, one is lost."""

    def lost(number: int) -> Any:
        if number == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return UUIDS[number]

    def unless_first(answer: Any) -> Any:
        def ask(handle: str, *which: int) -> Any:
            if handle == UUIDS[0]:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer

        return ask

    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 3,
        "nvmlDeviceGetHandleByIndex": lost,
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetName": lambda handle: f"Model {handle[4]}",
        "nvmlDeviceGetUtilizationRates": unless_first(SimpleNamespace(gpu=0, memory=9)),
        "nvmlDeviceGetMemoryInfo": unless_first(SimpleNamespace(total=80 * GB, used=20 * GB, free=60 * GB)),
        "nvmlDeviceGetTemperature": unless_first(61),
    }
    for name, answer in answers.items():
        fresh.setattr(pynvml, name, answer)
    fresh.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [gpu.index for gpu in machine.sample(tmp_path, gpus=range(1, 2)).gpus] == [1]
    assert machine.sample(tmp_path, gpus=()).gpus == ()
    assert machine.sample(tmp_path).gpus == (
        machine.Gpu(0, "Model c", 0.0, 20 * GB, 80 * GB, 61),
        machine.Gpu(1, "Model a", None, None, None, None),
    )
