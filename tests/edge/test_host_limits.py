"""Threads and memory: affinity, control groups of both versions, and the threads that a process really starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.device.memory import free_bytes
from edge_runtime.host.cgroups import cpu_quota, groups_of, memory_free_bytes
from edge_runtime.host.sysfs import Sysfs
from edge_runtime.host.threads import BLAS_VARIABLES, TOKENIZERS_VARIABLE, limit_libraries, usable_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_runtime.bundle.folder import Bundle

V2_MOUNT = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw shared:10 - cgroup cgroup rw,memory\n"
    "34 31 0:31 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw\n"
)
SERVICE = "system.slice/covey-edge.service"


def machine(root: Path, files: dict[str, str]) -> Sysfs:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Sysfs(root)


def v2(root: Path, files: dict[str, str], path: str = f"/{SERVICE}", mount: str = V2_MOUNT) -> Sysfs:
    """A machine with version 2 alone, as Raspberry Pi OS and JetPack 6 have it."""
    below = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return machine(root, {"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": mount, **below})


def v1(root: Path, files: dict[str, str]) -> Sysfs:
    """A machine with version 1 beside an empty version 2 (systemd's hybrid), as JetPack 5 has it."""
    own = f"4:memory:/{SERVICE}\n3:cpu,cpuacct:/{SERVICE}\n1:name=systemd:/{SERVICE}\n0::/{SERVICE}\n"
    below = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    return machine(root, {"proc/self/cgroup": own, "proc/self/mountinfo": V1_MOUNTS, **below})


def threads(files: Sysfs, cores: int = 4, of: int = 4) -> tuple[int, str]:
    found = usable_threads(files, lambda: set(range(cores)), lambda: of)
    return found.count, found.why


# -- processors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu_max", "count", "why"),
    [
        ("max 100000\n", 4, "4 cores"),
        ("150000 100000\n", 2, "cgroup quota 150%"),
        ("50000 100000\n", 1, "cgroup quota 50%"),
        ("100000 100000\n", 1, "cgroup quota 100%"),
        ("1000 100000\n", 1, "cgroup quota 1%"),
        ("30000 20000\n", 2, "cgroup quota 150%"),
        ("800000 100000\n", 4, "4 cores"),
        ("", 4, "4 cores"),
        ("nonsense\n", 4, "4 cores"),
    ],
)
def test_a_quota_of_systemd_counts(tmp_path: Path, cpu_max: str, count: int, why: str) -> None:
    assert threads(v2(tmp_path, {f"{SERVICE}/cpu.max": cpu_max})) == (count, why)


def test_the_tightest_of_nested_groups_holds(tmp_path: Path) -> None:
    limits = {f"{SERVICE}/cpu.max": "300000 100000\n", "system.slice/cpu.max": "150000 100000\n"}
    assert threads(v2(tmp_path, limits)) == (2, "cgroup quota 150%")


def test_version_1_counts_too(tmp_path: Path) -> None:
    cpu = "cpu,cpuacct"
    files = v1(
        tmp_path,
        {
            f"{cpu}/{SERVICE}/cpu.cfs_quota_us": "-1\n",
            f"{cpu}/{SERVICE}/cpu.cfs_period_us": "100000\n",
            f"{cpu}/system.slice/cpu.cfs_quota_us": "250000\n",
            f"{cpu}/system.slice/cpu.cfs_period_us": "100000\n",
            f"unified/{SERVICE}/cgroup.procs": "1\n",
        },
    )
    assert threads(files) == (3, "cgroup quota 250%")


@pytest.mark.parametrize(
    ("path", "mount"),
    [
        ("/", V2_MOUNT),  # a container with a namespace of its own
        ("/../../init.scope", V2_MOUNT),  # entered from outside of it
        ("/docker/12ab", V2_MOUNT.replace(" / /sys", " /docker/12ab /sys")),  # a container without one
        ("/elsewhere", V2_MOUNT.replace(" / /sys", " /docker/12ab /sys")),
    ],
)
def test_a_container_reads_the_group_that_it_sees(tmp_path: Path, path: str, mount: str) -> None:
    files = v2(tmp_path, {"cpu.max": "100000 100000\n"}, path, mount)
    assert threads(files) == (1, "cgroup quota 100%")


def test_a_mount_may_have_a_space_in_its_name(tmp_path: Path) -> None:
    files = v2(tmp_path, {}, mount=V2_MOUNT.replace("/sys/fs/cgroup", "/odd\\040place"))
    (tmp_path / "odd place" / SERVICE).mkdir(parents=True)
    (tmp_path / "odd place" / SERVICE / "cpu.max").write_text("100000 100000\n")
    assert cpu_quota(files) == 1.0


def test_affinity_counts_and_the_less_of_both(tmp_path: Path) -> None:
    none = machine(tmp_path / "none", {})
    assert threads(none, cores=2) == (2, "affinity to 2 of 4 cores")
    assert threads(none, cores=1, of=1) == (1, "1 core")
    assert usable_threads(none, lambda: None, lambda: 6).count == 6
    assert usable_threads(none, lambda: None, lambda: None).count == 1
    files = v2(tmp_path / "quota", {f"{SERVICE}/cpu.max": "350000 100000\n"})
    assert threads(files, cores=2) == (2, "affinity to 2 of 4 cores")
    assert threads(files, cores=4) == (4, "cgroup quota 350%")


@given(st.lists(st.one_of(st.none(), st.integers(1, 10**6)), min_size=3, max_size=3), st.integers(1, 16))
def test_threads_are_at_least_one_and_at_most_what_every_limit_allows(
    tmp_path_factory: pytest.TempPathFactory, quotas: list[int | None], cores: int
) -> None:
    folders = ("cpu.max", "system.slice/cpu.max", f"{SERVICE}/cpu.max")
    texts = {name: f"{'max' if quota is None else quota} 100000\n" for name, quota in zip(folders, quotas, strict=True)}
    found = usable_threads(v2(tmp_path_factory.mktemp("m"), texts), lambda: set(range(cores)), lambda: 16)
    tightest = min([quota / 1e5 for quota in quotas if quota is not None] + [float(cores)])
    assert 1 <= found.count <= cores
    assert found.count - 1 < max(tightest, 1e-9)
    assert found.count >= min(cores, tightest)


# -- memory -----------------------------------------------------------------------------------------------------------

MEMINFO = {"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    2000 kB\n"}


def test_free_memory_is_the_machines_or_the_services(tmp_path: Path) -> None:
    limits = {f"{SERVICE}/memory.max": "1000000\n", f"{SERVICE}/memory.current": "900000\n"}
    limits[f"{SERVICE}/memory.stat"] = "anon 1\nfile 500000\nshmem 200000\nactive_file 100000\ninactive_file 200000\n"
    files = v2(tmp_path, limits)
    machine(tmp_path, MEMINFO)
    assert free_bytes(files) == 400_000  # a tmpfs counts as file, and cannot be dropped
    (tmp_path / "sys/fs/cgroup" / SERVICE / "memory.high").write_text("700000\n")
    assert free_bytes(files) == 100_000
    for name in ("memory.max", "memory.high"):
        (tmp_path / "sys/fs/cgroup" / SERVICE / name).write_text("max\n")
    assert free_bytes(files) == 2000 * 1024
    assert free_bytes(Sysfs(tmp_path / "none")) is None


def test_the_slice_above_limits_the_service(tmp_path: Path) -> None:
    files = v2(
        tmp_path,
        {
            f"{SERVICE}/memory.max": "max\n",
            f"{SERVICE}/memory.current": "100\n",
            "system.slice/memory.max": "500000\n",
            "system.slice/memory.current": "450000\n",
        },
    )
    machine(tmp_path, MEMINFO)
    assert free_bytes(files) == 50_000
    (tmp_path / "sys/fs/cgroup/system.slice/memory.current").write_text("600000\n")
    assert free_bytes(files) == 0


def test_memory_of_version_1(tmp_path: Path) -> None:
    place = f"memory/{SERVICE}/memory"
    files = v1(
        tmp_path,
        {
            f"{place}.limit_in_bytes": "1000000\n",
            f"{place}.usage_in_bytes": "900000\n",
            f"{place}.stat": "cache 9\ntotal_active_file 50000\ntotal_inactive_file 50000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
            "memory/memory.usage_in_bytes": "999999999\n",
        },
    )
    assert memory_free_bytes(files) == 200_000
    (tmp_path / f"sys/fs/cgroup/{place}.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory_free_bytes(files) is None


# -- what is started --------------------------------------------------------------------------------------------------


def test_libraries_are_told_and_owners_are_left() -> None:
    environment = {"OMP_NUM_THREADS": "3"}
    limit_libraries(environment, blas=1, tokenizers=2)
    assert environment.pop("OMP_NUM_THREADS") == "3"
    assert environment == {**dict.fromkeys(set(BLAS_VARIABLES) - {"OMP_NUM_THREADS"}, "1"), TOKENIZERS_VARIABLE: "2"}


STEP = """
import json, os, sys
from pathlib import Path
for place in json.loads(sys.argv[2]):
    Path(place).write_text(str(os.getpid()))
if sys.argv[3]:
    os.sched_setaffinity(0, {int(sys.argv[3])})
from edge_runtime.host.threads import usable_threads
told = usable_threads()
path = sys.argv[1]
sys.argv[1:] = ["predict", "--bundle", path, "good", "bad", "good and bad"]
from edge_runtime import cli
code = cli.main()
from edge_runtime.bundle.folder import open_bundle
from edge_runtime.engines.choose import Engines
from edge_runtime.engines.golden import golden_cases
from edge_runtime.forward_only.directions import step_seeds
from edge_runtime.forward_only.step import spzo_step
from edge_runtime.protocol.step_rule import StepRule
bundle = open_bundle(Path(path))
batch = next(golden_cases(bundle)).batch
engine, rule = Engines().make_engine(bundle, 1), StepRule()
result = spzo_step(engine, bundle.initial_adapter(), batch, rule, step_seeds(rule, 0, 0, "pi", 0))
print(json.dumps([code, told.count, told.why, result.loss, len(os.listdir("/proc/self/task"))]))
"""


def threads_of_a_step(bundle: Bundle, groups: list[str], core: int | None) -> tuple[int, str, int]:
    """Predict and take a step in a process; return how many threads it may run, why, and how many it then has."""
    arguments = [str(bundle.path), json.dumps(groups), "" if core is None else str(core)]
    clean = {k: v for k, v in os.environ.items() if k not in {*BLAS_VARIABLES, TOKENIZERS_VARIABLE}}
    done = subprocess.run(
        [sys.executable, "-c", STEP, *arguments], capture_output=True, text=True, check=False, env=clean, timeout=100
    )
    assert done.returncode == 0, done.stderr
    code, count, why, loss, tasks = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stdout
    assert loss > 0
    return count, why, tasks


@pytest.fixture(scope="module")
def least_tasks() -> int:
    """Threads of a process that has only loaded ONNX Runtime (which starts one that computes nothing), and one more.

    The one more encodes rows.
    """
    code = "import os, onnxruntime; print(len(os.listdir('/proc/self/task')))"
    environment = os.environ | dict.fromkeys(BLAS_VARIABLES, "1")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout) + 1


def test_a_process_on_one_core_starts_no_threads_for_others(tiny_bundle: Bundle, least_tasks: int) -> None:
    core = min(os.sched_getaffinity(0))
    count, _why, tasks = threads_of_a_step(tiny_bundle, [], core)
    assert count == 1
    assert tasks <= least_tasks


@pytest.fixture
def half_a_core() -> Iterator[str]:
    """The file that moves a process into a real control group of half a core."""
    for kind, limit, text in (("cpu", "cpu.cfs_quota_us", "50000"), ("", "cpu.max", "50000 100000")):
        group = Path("/sys/fs/cgroup", kind, f"covey-test-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(text)
            yield str(group / "cgroup.procs")
        except OSError:
            continue
        else:
            return
        finally:
            group.rmdir()
    pytest.skip("no control group of processors can be made here: it needs root and a cgroup mount that can be written")


def test_a_process_with_half_a_core_runs_one_thread(tiny_bundle: Bundle, half_a_core: str, least_tasks: int) -> None:
    count, why, tasks = threads_of_a_step(tiny_bundle, [half_a_core], None)
    assert (count, why) == (1, "cgroup quota 50%")
    assert tasks <= least_tasks


def test_the_groups_of_this_process_are_found() -> None:
    own = Path("/proc/self/cgroup").read_text()
    if "memory" not in own and not own.startswith("0::"):
        pytest.skip("this kernel has no control groups")
    assert all(group.folder.is_dir() for group in groups_of("memory"))


@pytest.mark.parametrize("main", ["edge_runtime.cli", "server.cli"])
def test_numpy_is_not_loaded_before_it_is_told(main: str) -> None:
    code = f"import sys, {main}; print(sorted({{'numpy', 'tokenizers', 'onnxruntime'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
