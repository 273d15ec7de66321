"""What each cap writes on v1 and on v2, what neither can hold, and what is read: on fake files."""

from __future__ import annotations

import errno
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel.engine.cgroups import (
    CgroupEvents,
    CgroupUsage,
    IoUsage,
    KernelCgroup,
    Leaf,
    Pressure,
    Version,
    blockdev,
    limits,
    total,
)
from sandbox_kernel.engine.cgroups.interface import Files, has_line, same_numbers
from sandbox_kernel.errors import CgroupError
from sandbox_kernel.spec import DEVICE_NODES, Caps, MissingCap, UserTotal, parse_spec

MIB = 1024**2
V1_OF = {
    "memory": ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes",
               "memory.soft_limit_in_bytes", "memory.oom_control"],
    "cpu": ["cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.shares", "cpu.rt_period_us",
            "cpu.rt_runtime_us"],
    "cpuset": ["cpuset.cpus", "cpuset.mems"],
    "pids": ["pids.max"],
    "io": [f"blkio.throttle.{n}_{u}_device" for n in ("read", "write") for u in ("bps", "iops")]
    + ["blkio.bfq.weight_device"],
    "hugetlb": ["hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"],
    "net_cls": ["net_cls.classid"],
    "net_prio": ["net_prio.ifpriomap"],
    "devices": ["devices.deny", "devices.allow", "devices.list"],
}  # fmt: skip
V2_OF = {
    "memory": ["memory.max", "memory.high", "memory.low", "memory.swap.max"],
    "cpu": ["cpu.max", "cpu.weight"],
    "cpuset": ["cpuset.cpus", "cpuset.mems", "cpuset.cpus.effective", "cpuset.mems.effective"],
    "pids": ["pids.max"],
    "io": ["io.max", "io.weight", "io.bfq.weight"],
    "hugetlb": ["hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"],
}


class Fake(Files):
    """Files in a temporary directory; what is shown elsewhere is shown there."""

    def __init__(self, top: Path) -> None:
        self.sys = top / "sys"
        self.calls: list[tuple[str, str]] = []
        self.refuse: dict[str, int] = {}
        self.nodes: dict[str, tuple[int, int, bool]] = {}

    def write(self, path: Path, value: str) -> None:
        self.calls.append((path.name, value))
        if path.name in self.refuse:
            raise OSError(self.refuse[path.name], "refused")
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "gone")
        path.write_text(value)
        if path.name.startswith("cpuset.") and (path.parent / f"{path.name}.effective").exists():
            (path.parent / f"{path.name}.effective").write_text(value)
        if path.name == "devices.deny":
            (path.parent / "devices.list").write_text("")
        if path.name == "devices.allow":
            with (path.parent / "devices.list").open("a") as file:
                file.write(value + "\n")

    def device_of(self, path: Path) -> tuple[int, int, bool]:
        if str(path) not in self.nodes:
            raise FileNotFoundError(errno.ENOENT, "gone")
        return self.nodes[str(path)]

    def disk(self, number: str, name: str, scheduler: str = "none [mq-deadline] bfq") -> None:
        real = self.sys / "devices" / name
        (real / "queue").mkdir(parents=True)
        (real / "dev").write_text(number + "\n")
        (real / "queue/scheduler").write_text(scheduler + "\n")
        (self.sys / "dev/block").mkdir(parents=True, exist_ok=True)
        (self.sys / "dev/block" / number).symlink_to(real)

    def partition(self, number: str, disk: str, name: str) -> None:
        real = self.sys / "devices" / disk / name
        real.mkdir()
        (real / "partition").write_text("1\n")
        (self.sys / "dev/block" / number).symlink_to(real)


@pytest.fixture
def files(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def leaf(tmp_path: Path, version: Version, *controllers: str) -> Leaf:
    path = tmp_path / "given" / "kernel-a.1.1.1-1"
    path.mkdir(parents=True)
    table = V1_OF if version is Version.V1 else V2_OF
    for controller in controllers:
        for name in table[controller]:
            (path / name).write_text("")
    return Leaf(version, path, controllers)


def written(group: Leaf, config: dict[str, Any], files: Fake) -> list[tuple[str, str]]:
    """By name of file, in order. The caps are those of a kernelspec, devices by number."""
    assert limits.apply(group, parse_spec(config).caps, MissingCap.ERROR, files) == []
    return files.calls


# -- one value, two spellings --------------------------------------------------------------------

PAGE_MORE = 4096
ALL: list[tuple[str, dict[str, Any], list[tuple[str, str]], list[tuple[str, str]] | str]] = [
    (
        "memory", {"memory": "256M", "memory_swap": "64M"},
        [("memory.limit_in_bytes", str(256 * MIB)),
         ("memory.memsw.limit_in_bytes", str(320 * MIB + PAGE_MORE))],
        [("memory.max", str(256 * MIB)), ("memory.swap.max", str(64 * MIB))],
    ),
    (
        "memory", {"memory_low": "64M"},
        [("memory.soft_limit_in_bytes", str(64 * MIB))], [("memory.low", str(64 * MIB))],
    ),
    (
        "cpu", {"cpus": 0.5, "cpu_weight": 300},
        [("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000"), ("cpu.shares", "3072")],
        [("cpu.max", "50000 100000"), ("cpu.weight", "300")],
    ),
    (
        "cpu", {"cpu_rt": 0.25},
        [("cpu.rt_period_us", "1000000"), ("cpu.rt_runtime_us", "250000")],
        "cgroup v2 has no such limit",
    ),
    (
        "cpuset", {"cpuset_cpus": "0-1,3", "cpuset_mems": "0"},
        [("cpuset.cpus", "0-1,3"), ("cpuset.mems", "0")],
        [("cpuset.cpus", "0-1,3"), ("cpuset.mems", "0")],
    ),
    ("pids", {"pids": 64}, [("pids.max", "64")], [("pids.max", "64")]),
    (
        "io", {"io": [{"device": "8:0", "read_bps": "1M", "write_bps": "2M", "read_iops": 5,
                       "write_iops": 6}]},
        [("blkio.throttle.read_bps_device", f"8:0 {MIB}"),
         ("blkio.throttle.write_bps_device", f"8:0 {2 * MIB}"),
         ("blkio.throttle.read_iops_device", "8:0 5"),
         ("blkio.throttle.write_iops_device", "8:0 6")],
        [("io.max", f"8:0 rbps={MIB} wbps={2 * MIB} riops=5 wiops=6")],
    ),
    (
        "hugetlb", {"hugetlb": {"2MB": "4M"}},
        [("hugetlb.2MB.rsvd.limit_in_bytes", str(4 * MIB)),
         ("hugetlb.2MB.limit_in_bytes", str(4 * MIB))],
        [("hugetlb.2MB.rsvd.max", str(4 * MIB)), ("hugetlb.2MB.max", str(4 * MIB))],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("controller", "config", "v1", "v2"), ALL)
def test_one_value_in_two_spellings(
    tmp_path: Path, files: Fake, controller: str, config: dict[str, Any],
    v1: list[tuple[str, str]], v2: list[tuple[str, str]] | str,
) -> None:  # fmt: skip
    group = leaf(tmp_path, Version.V1, controller)
    for name in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        if controller == "memory":
            (group.path / name).write_text(str(2**62))
    assert written(group, config, files) == v1
    shutil.rmtree(group.path.parent)
    files.calls.clear()
    group = leaf(tmp_path, Version.V2, controller)
    if isinstance(v2, list):
        assert written(group, config, files) == v2
    else:
        with pytest.raises(CgroupError, match=v2):
            written(group, config, files)
        assert files.calls == []


def test_high_is_of_v2_alone(tmp_path: Path, files: Fake) -> None:
    config = {"memory_high": "64M", "memory": "128M"}
    group = leaf(tmp_path, Version.V2, "memory")
    assert written(group, config, files) == [
        ("memory.high", str(64 * MIB)), ("memory.max", str(128 * MIB)), ("memory.swap.max", "0"),
    ]  # fmt: skip
    shutil.rmtree(group.path.parent)
    files.calls.clear()
    group = leaf(tmp_path, Version.V1, "memory")
    caps = parse_spec({"memory_high": "64M"}).caps
    with pytest.raises(CgroupError, match="cgroup v1 has no such limit"):
        limits.apply(group, caps, MissingCap.ERROR, files)
    (warning,) = limits.apply(group, caps, MissingCap.WARN, files)
    assert warning.startswith("the cap memory_high is not enforced: ")
    assert files.calls == []


@pytest.mark.parametrize("version", list(Version))
def test_swap_that_nobody_accounts_cannot_be_capped(
    tmp_path: Path, files: Fake, version: Version
) -> None:
    group = leaf(tmp_path, version, "memory")
    for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        (group.path / name).unlink(missing_ok=True)
    with pytest.raises(CgroupError, match="does not account swap"):
        written(group, {"memory": "64M", "memory_swap": "1M"}, files)


def test_v1_marks_packets_and_maps_interfaces(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V1, "net_cls", "net_prio")
    config = {"net_classid": 0x100001, "net_prio": {"eth0": 5, "lo": 1}}
    assert written(group, config, files)[:2] == [
        ("net_cls.classid", "1048577"), ("net_prio.ifpriomap", "eth0 5"),
    ]  # fmt: skip


def test_v1_devices_are_denied_first(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V1, "devices")
    assert written(group, {"devices": ["/dev/urandom", "/dev/null"]}, files) == [
        ("devices.deny", "a"), ("devices.allow", "c 1:3 rw"), ("devices.allow", "c 5:2 rw"),
        ("devices.allow", "c 136:* rw"), ("devices.allow", "c 1:9 rw"),
    ]  # fmt: skip


def test_every_device_of_the_sandbox_has_a_number() -> None:
    from sandbox_kernel.engine.cgroups import v1
    from sandbox_kernel.engine.rootfs.plan import DEVICES

    assert tuple(f"/dev/{name}" for name, _, _ in DEVICES) == DEVICE_NODES
    assert {f"/dev/{n}": f"{major}:{minor}" for n, major, minor in DEVICES} == v1._NODES


@pytest.mark.parametrize("version", list(Version))
def test_huge_pages_of_a_size_that_is_not_there(
    tmp_path: Path, files: Fake, version: Version
) -> None:
    group = leaf(tmp_path, version, "hugetlb")
    with pytest.raises(CgroupError, match="there are no huge pages of 1GB"):
        written(group, {"hugetlb": {"1GB": 0}}, files)


def test_an_empty_cpuset_of_v1_gets_what_is_above(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V1, "cpuset")
    (group.path.parent / "cpuset.cpus").write_text("0-3\n")
    (group.path.parent / "cpuset.mems").write_text("0\n")
    assert written(group, {"cpuset_cpus": "2"}, files) == [
        ("cpuset.cpus", "2"), ("cpuset.mems", "0"),
    ]  # fmt: skip
    files.calls.clear()
    assert written(group, {"cpuset_mems": "0"}, files) == [("cpuset.mems", "0")]


def test_cpus_that_v2_takes_and_does_not_give(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V2, "cpuset")
    (group.path / "cpuset.cpus.effective").unlink()
    (group.path / "cpuset.cpus.effective").symlink_to("effective")
    (group.path / "effective").write_text("0-1\n")

    class Given(Fake):
        def write(self, path: Path, value: str) -> None:
            path.write_text(value)

    with pytest.raises(CgroupError, match=r"cpuset.cpus.effective shows '0-1'"):
        written(group, {"cpuset_cpus": "5"}, Given(tmp_path))


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("controller", "config", "file", "number", "above", "fact", "cause"),
    [
        ("cpu", {"cpu_rt": 0.5}, "cpu.rt_runtime_us", errno.EINVAL, "0\n",
         "the cap cpu_rt = 0.5 was refused by the kernel", "is 0, and children get a part"),
        ("cpuset", {"cpuset_cpus": "4"}, "cpuset.cpus", errno.EACCES, "0-1\n",
         "the cap cpuset_cpus = 4 was refused by the kernel", "cpuset.cpus is 0-1"),
        ("pids", {"pids": 50}, "pids.max", errno.EPERM, "",
         "pids.max did not take '50'", "operation not permitted (EPERM)"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_is_above(
    tmp_path: Path, files: Fake, controller: str, config: dict[str, Any], file: str, number: int,
    above: str, fact: str, cause: str,
) -> None:  # fmt: skip
    group = leaf(tmp_path, Version.V1, controller)
    (group.path.parent / file).write_text(above)
    files.refuse[file] = number
    with pytest.raises(CgroupError) as caught:
        written(group, config, files)
    assert fact in caught.value.fact
    assert cause in (caught.value.cause or "")


def test_memory_that_cannot_be_reclaimed(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V1, "memory")
    (group.path / "memory.memsw.limit_in_bytes").write_text(str(2**62))
    (group.path / "memory.usage_in_bytes").write_text("99999\n")
    files.refuse["memory.limit_in_bytes"] = errno.EBUSY
    with pytest.raises(CgroupError, match="99999 bytes are in use and cannot be reclaimed"):
        written(group, {"memory": "64M"}, files)


# -- other limits for a kernel that runs ---------------------------------------------------------

BEFORE_V1 = {
    "cpu.cfs_period_us": "100000\n", "cpu.cfs_quota_us": "-1\n",
    "blkio.throttle.write_bps_device": "8:16 7\n", "blkio.throttle.read_bps_device": "8:0 9\n",
    "net_prio.ifpriomap": "lo 0\neth0 3\n",
}  # fmt: skip
BEFORE_V2 = {"cpu.max": "max 100000\n", "cpuset.cpus": "\n", "io.max": "8:16 rbps=5 wbps=max\n"}


@pytest.mark.parametrize(
    ("version", "controllers", "config", "before", "undone"),
    [
        (
            Version.V1, ("cpu", "io", "net_prio", "pids"),
            {"cpus": 1, "net_prio": {"eth0": 5},
             "io": [{"device": "8:0", "write_bps": 1000, "read_bps": 1000}]},
            BEFORE_V1,
            [("net_prio.ifpriomap", "eth0 3"), ("blkio.throttle.write_bps_device", "8:0 0"),
             ("blkio.throttle.read_bps_device", "8:0 9"), ("cpu.cfs_quota_us", "-1\n"),
             ("cpu.cfs_period_us", "100000\n")],
        ),
        (
            Version.V2, ("cpu", "cpuset", "io", "pids"),
            {"cpus": 1, "cpuset_cpus": "0", "io": [{"device": "8:0", "write_bps": 1000}]},
            BEFORE_V2,
            [("io.max", "8:0 rbps=max wbps=max riops=max wiops=max"), ("cpuset.cpus", "\n"),
             ("cpu.max", "max 100000\n")],
        ),
    ],
)  # fmt: skip
def test_what_was_written_before_a_refusal_is_written_back(
    tmp_path: Path, files: Fake, version: Version, controllers: tuple[str, ...],
    config: dict[str, Any], before: dict[str, str], undone: list[tuple[str, str]],
) -> None:  # fmt: skip
    group = leaf(tmp_path, version, *controllers)
    for name, text in before.items():
        (group.path / name).write_text(text)
    last = Leaf(version, tmp_path / "given/kernel-b.1.1.1-1", ("pids",))
    last.path.mkdir()
    (last.path / "pids.max").write_text("64\n")
    files.refuse["pids.max"] = errno.EBUSY
    caps, pids = parse_spec(config).caps, parse_spec({"pids": 96}).caps
    with pytest.raises(CgroupError, match=r"pids\.max did not take '96'"):
        limits.change([(group, caps), (last, pids)], files)
    back = files.calls[-len(undone) - 1 :]
    assert back == [("pids.max", "64\n"), *undone]


def test_what_cannot_be_held_is_known_before_anything_is_written(
    tmp_path: Path, files: Fake
) -> None:
    first = leaf(tmp_path, Version.V1, "pids")
    second = Leaf(Version.V1, first.path, ("memory",))
    caps = parse_spec({"pids": 96, "memory_high": "64M"}).caps
    with pytest.raises(CgroupError, match="cgroup v1 has no such limit"):
        limits.change([(first, caps), (second, caps)], files)
    assert files.calls == []


# -- block devices -------------------------------------------------------------------------------


def resolved(config: list[dict[str, Any]], files: Fake, top: Path) -> list[str | None]:
    caps = blockdev.resolve(parse_spec({"io": config}).caps, top / "proc", files)
    assert all(limit.path is None for limit in caps.io)
    return [limit.device for limit in caps.io]


def test_a_path_is_its_whole_disk(tmp_path: Path, files: Fake) -> None:
    files.disk("8:0", "sda")
    files.partition("8:1", "sda", "sda1")
    files.nodes |= {"/srv": (8, 1, False), "/dev/sda1": (8, 1, True), "/dev/sda": (8, 0, True)}
    for where in ({"path": "/srv"}, {"device": "/dev/sda1"}, {"device": "/dev/sda"},
                  {"device": "8:0"}, {"device": "8:1"}):  # fmt: skip
        assert resolved([where | {"read_bps": 1}], files, tmp_path) == ["8:0"]


def test_a_path_on_btrfs_is_what_is_mounted_there(tmp_path: Path, files: Fake) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 0:1 / / rw - overlay overlay rw\n"
        "2 1 0:41 / /srv rw shared:1 - btrfs /dev/sda rw\n"
        "3 1 0:42 / /srv/tmp rw - tmpfs tmpfs rw\n"
    )
    files.disk("8:0", "sda")
    files.nodes |= dict.fromkeys(("/srv/a", "/srv/tmp/a", "/home"), (0, 41, False))
    files.nodes["/dev/sda"] = (8, 0, True)
    assert resolved([{"path": "/srv/a", "weight": 10}], files, tmp_path) == ["8:0"]
    for path, source in (("/srv/tmp/a", "tmpfs"), ("/home", "overlay")):
        with pytest.raises(CgroupError) as caught:
            resolved([{"path": path, "weight": 10}], files, tmp_path)
        assert caught.value.fact == f"no block device is behind {path}"
        assert caught.value.cause == f"it lies on {source}"


def test_a_mount_point_is_read_as_mountinfo_spells_it(tmp_path: Path, files: Fake) -> None:
    """Or it would be the disk of the folder above that is limited."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(
        "1 0 0:40 / /srv rw - btrfs /dev/sda rw\n"
        "2 1 0:41 / /srv/a\\040\\043b\\134c rw - btrfs /dev/sdb rw\n"
    )
    for number, name in ((0, "sda"), (16, "sdb")):
        files.disk(f"8:{number}", name)
        files.nodes[f"/dev/{name}"] = (8, number, True)
    path = "/srv/a #b\\c/data"
    files.nodes[path] = (0, 41, False)
    assert resolved([{"path": path, "weight": 10}], files, tmp_path) == ["8:16"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([{"path": "/nowhere", "read_bps": 1}], "the block device of /nowhere cannot be found"),
        ([{"device": "/dev/null", "read_bps": 1}], "/dev/null is no block device"),
        ([{"device": "9:9", "read_bps": 1}], "there is no block device 9:9"),
        (
            [{"path": "/srv", "read_bps": 1}, {"device": "8:0", "weight": 10}],
            "the cap io names the block device 8:0 more than once",
        ),
    ],
)
def test_what_is_no_disk(
    tmp_path: Path, files: Fake, config: list[dict[str, Any]], message: str
) -> None:
    files.disk("8:0", "sda")
    files.nodes |= {"/srv": (8, 0, False), "/dev/null": (0, 5, False)}
    with pytest.raises(CgroupError) as caught:
        resolved(config, files, tmp_path)
    assert caught.value.fact == message


WEIGHT = {"io": [{"device": "8:0", "weight": 500}]}


@pytest.mark.parametrize("version", list(Version))
def test_a_weight_that_no_scheduler_obeys(tmp_path: Path, files: Fake, version: Version) -> None:
    files.disk("8:0", "sda")
    with pytest.raises(CgroupError) as caught:
        written(leaf(tmp_path, version, "io"), WEIGHT, files)
    assert "that of sda is mq-deadline" in (caught.value.cause or "")
    assert caught.value.remedy == "as root: echo bfq > /sys/block/sda/queue/scheduler"


def test_a_weight_for_bfq_is_the_same_number_and_for_iocost_another(
    tmp_path: Path, files: Fake
) -> None:
    files.disk("8:0", "sda", "none mq-deadline [bfq]")
    group = leaf(tmp_path, Version.V1, "io")
    assert written(group, WEIGHT, files) == [("blkio.bfq.weight_device", "8:0 500")]
    shutil.rmtree(group.path.parent)
    files.calls.clear()
    group = leaf(tmp_path, Version.V2, "io")
    assert written(group, WEIGHT, files) == [("io.bfq.weight", "8:0 500")]
    files.calls.clear()
    files.disk("8:16", "sdb", "[none]")
    (tmp_path / "io.cost.qos").write_text("8:16 enable=1 ctrl=auto rpct=0.00\n")
    config = {"io": [{"device": "8:16", "weight": 1000}]}
    assert written(group, config, files) == [("io.weight", "8:16 10000")]


# -- judging what is shown -----------------------------------------------------------------------


def test_a_line_is_found_by_its_first_word() -> None:
    accepts = has_line("8:0", "wbps=5")
    assert accepts("8:16 wbps=1\n8:0 rbps=max wbps=5 riops=max\n")
    assert not accepts("8:16 wbps=5\n8:0 rbps=5 wbps=max\n")
    assert not accepts("")


def test_lists_are_compared_as_sets() -> None:
    assert same_numbers("0,1,2")("0-2\n")
    assert not same_numbers("0,1")("0-2\n")
    assert not same_numbers("0,1")("\n")


# -- pause and resume ----------------------------------------------------------------------------


class Freezer(Fake):
    """v1: freezes at the nth write, thaws at once."""

    def __init__(self, top: Path, needed: int) -> None:
        super().__init__(top)
        self.needed = needed

    def write(self, path: Path, value: str) -> None:
        super().write(path, value)
        asked = self.calls.count(("freezer.state", "FROZEN"))
        if value == "FROZEN" and asked < self.needed:
            path.write_text("FREEZING\n")


def frozen_group(tmp_path: Path, files: Fake) -> KernelCgroup:
    path = tmp_path / "freezer/kernel-a.1.1.1-1"
    path.mkdir(parents=True)
    (path / "freezer.state").write_text("THAWED\n")
    return KernelCgroup(path.name, (Leaf(Version.V1, path, ("freezer",)),), files=files)


def test_v1_freezes_again_until_it_is_frozen(tmp_path: Path) -> None:
    files = Freezer(tmp_path, needed=3)
    group = frozen_group(tmp_path, files)
    group.pause()
    assert files.calls == [("freezer.state", "FROZEN")] * 3
    group.resume()
    assert files.calls[3:] == [("freezer.state", "THAWED")]


def test_v1_thaws_what_would_not_freeze(tmp_path: Path) -> None:
    files = Freezer(tmp_path, needed=10**9)
    group = frozen_group(tmp_path, files)
    with pytest.raises(CgroupError, match=r"could not be paused.* not all of its processes are"):
        group.pause(timeout=0.01)
    assert files.calls[-1] == ("freezer.state", "THAWED")
    assert (group.leaves[0].path / "freezer.state").read_text() == "THAWED"


def test_v2_waits_for_frozen_and_lets_go_if_it_does_not_come(tmp_path: Path, files: Fake) -> None:
    path = tmp_path / "kernel-a.1.1.1-1"
    path.mkdir()
    (path / "cgroup.freeze").write_text("0")
    (path / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    group = KernelCgroup(path.name, (Leaf(Version.V2, path, ("pids",)),), files=files)
    group.pause()
    assert files.calls == [("cgroup.freeze", "1")]
    (path / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    begin = time.monotonic()
    with pytest.raises(CgroupError, match="could not be paused"):
        group.pause(timeout=0.05)
    assert time.monotonic() - begin < 5
    assert files.calls[1:] == [("cgroup.freeze", "1"), ("cgroup.freeze", "0")]


def test_without_a_freezer_nothing_is_paused(tmp_path: Path, files: Fake) -> None:
    group = KernelCgroup("kernel-a.1.1.1-1", (leaf(tmp_path, Version.V1, "pids"),), files=files)
    assert not group.can_pause
    with pytest.raises(CgroupError, match="it has no cgroup with a freezer"):
        group.pause()


# -- the total of a user -------------------------------------------------------------------------


def test_a_directory_with_a_kernel_in_it_stays(tmp_path: Path, files: Fake) -> None:
    used, empty, other = (tmp_path / n for n in ("user-1/kernel-a.1.1.1-1", "user-2", "given"))
    for path in (used, empty, other):
        path.mkdir(parents=True)
    total.leave([used.parent, empty, other, tmp_path / "user-3"], files)
    assert used.is_dir() and other.is_dir() and not empty.exists()


def test_what_a_total_asks_for() -> None:
    assert not UserTotal().asked()
    assert UserTotal(kernels=1).asked() and UserTotal(Caps(pids=50)).asked()


# -- reading -------------------------------------------------------------------------------------


def test_the_snapshot_of_v1(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V1, "memory", "cpu", "io", "pids")
    group = Leaf(Version.V1, group.path, (*group.controllers, "cpuacct"))
    for name, text in {
        "memory.usage_in_bytes": "100", "memory.memsw.usage_in_bytes": "130",
        "memory.max_usage_in_bytes": "500", "cpuacct.usage": "9000", "cpuacct.usage_user": "6000",
        "cpuacct.usage_sys": "3000", "pids.current": "2",
        "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 5000\n",
        "blkio.throttle.io_service_bytes": "8:0 Read 512\n8:0 Write 1024\n8:0 Total 1536\nTotal 1",
        "blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\nTotal 3\n",
    }.items():  # fmt: skip
        (group.path / name).write_text(text)
    assert KernelCgroup("k", (group,), files=files).usage() == CgroupUsage(
        memory_current=100, memory_peak=500, memory_swap=30, pids_current=2, cpu_usec=9,
        cpu_user_usec=6, cpu_system_usec=3, cpu_throttled_usec=5, cpu_throttled_periods=4,
        io=(IoUsage("8:0", 512, 1024, 1, 2),),
    )  # fmt: skip


def test_the_snapshot_of_v2(tmp_path: Path, files: Fake) -> None:
    group = leaf(tmp_path, Version.V2, "memory", "cpu", "io", "pids")
    for name, text in {
        "memory.current": "100", "memory.peak": "500", "memory.swap.current": "30",
        "cpu.stat": "usage_usec 9\nuser_usec 6\nsystem_usec 3\nnr_periods 9\nnr_throttled 4\n"
        "throttled_usec 5\n",
        "io.stat": "8:0 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n",
        "cpu.pressure": "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n",
        "memory.pressure": "some avg10=0.00 avg60=0.00 avg300=0.00 total=8\n"
        "full avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        "memory.events": "low 0\nhigh 3\nmax 5\noom 2\noom_kill 1\n",
    }.items():  # fmt: skip
        (group.path / name).write_text(text)
    (group.path.parent / "memory.events.local").write_text("max 9\noom 7\n")
    (group.path / "pids.current").write_text("2")
    kernel = KernelCgroup("k", (group,), files=files)
    assert kernel.usage() == CgroupUsage(
        memory_current=100, memory_peak=500, memory_swap=30, memory_failcnt=5, oom_kills=1,
        pids_current=2, cpu_usec=9, cpu_user_usec=6, cpu_system_usec=3, cpu_throttled_usec=5,
        cpu_throttled_periods=4, io=(IoUsage("8:0", 512, 1024, 1, 2),),
        pressure=(Pressure("cpu", 77, None, 1.5), Pressure("memory", 8, 5, 0.0)),
    )  # fmt: skip
    assert kernel.events() == CgroupEvents(
        oom_kill=1, memory_limit=5, memory_limit_above=9, memory_high=3, oom=2, oom_above=7,
    )  # fmt: skip


def test_events_since_an_earlier_look() -> None:
    earlier = CgroupEvents(oom_kill=1, oom_above=7)
    now = CgroupEvents(oom_kill=3, oom_above=7, oom=1, pids_limit=None)
    assert now.since(earlier) == CgroupEvents(oom_kill=2, oom_above=0, oom=1)
