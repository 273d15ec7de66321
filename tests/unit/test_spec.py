"""A kernelspec's config becomes a spec or an error that can be acted on; nothing in between."""

from __future__ import annotations

import dataclasses
import json
import os.path
from typing import Any

import pytest

from sandbox_kernel.errors import SpecError
from sandbox_kernel.spec import (
    CAP_KEYS,
    GIB,
    KEYS,
    MEMORY_MINIMUM,
    MIB,
    SPEC_VERSION,
    SYSTEM_TARGETS,
    Caps,
    Identity,
    IoLimit,
    MemoryPressure,
    MissingCap,
    Mount,
    MountMode,
    NetworkPolicy,
    SandboxSpec,
    Table,
    TmpfsLimits,
    Transport,
    UserTotal,
    WorkspaceMode,
    check_workspace,
    parse_change,
    parse_size,
    parse_spec,
    spec_from_dict,
)

#: Every key with a value that is not its default, and what the spec then says.
EVERY_KEY: dict[str, tuple[Any, Any]] = {
    "identity": ("isolated", Identity.ISOLATED),
    "id_range": (65_535, 65_535),
    "workspace": ("overlay", WorkspaceMode.OVERLAY),
    "workspace_path": ("/srv//data/", "/srv/data"),
    "mounts": (
        [{"source": "/srv/in", "target": "/data", "mode": "rw"}],
        (Mount("/srv/in", "/data", MountMode.RW),),
    ),
    "hide": (["/srv/data/keys"], ("/srv/data/keys",)),
    "memory": ("512M", 512 * MIB),
    "memory_high": ("256M", 256 * MIB),
    "memory_low": ("64M", 64 * MIB),
    "cpus": (1.5, 1.5),
    "cpu_weight": (300, 300),
    "cpuset_cpus": ("3,0-1,1", "0-1,3"),
    "cpuset_mems": ("0", "0"),
    "cpu_rt": (0.25, 0.25),
    "pids": (64, 64),
    "io": (
        [{"path": "~/data/", "write_bps": "10M"}, {"device": "8:0", "read_iops": 50, "weight": 10}],
        (
            IoLimit(path=os.path.expanduser("~/data"), write_bps=10 * MIB),
            IoLimit(device="8:0", read_iops=50, weight=10),
        ),
    ),
    "hugetlb": ({"2MB": "64M", "1GB": 0}, Table([("1GB", 0), ("2MB", 64 * MIB)])),
    "net_classid": (0x100001, 0x100001),
    "net_prio": ({"eth0": 5}, Table([("eth0", 5)])),
    "devices": (["/dev/urandom"], ("/dev/urandom",)),
    "rlimits": ({"nofile": 1024, "fsize": "1G"}, Table([("fsize", GIB), ("nofile", 1024)])),
    "user": (
        {"memory": "4G", "memory_swap": 0, "kernels": 3},
        UserTotal(Caps(memory=4 * GIB, memory_swap=0), 3),
    ),
    "on_missing_cap": ("warn", MissingCap.WARN),
    "home_size": ("2G", 2 * GIB),
    "tmp_size": ("3M", 3 * MIB),
    "shm_size": (MIB, MIB),
    "run_size": ("4MiB", 4 * MIB),
    "overlay_size": ("0.5G", GIB // 2),
    "inodes": (1000, 1000),
    "on_memory_pressure": ("interrupt", MemoryPressure.INTERRUPT),
    "warn_throttled": (1, 1.0),
    "output_bytes_per_second": ("1M", MIB),
    "output_messages_per_second": (100, 100),
    "output_bytes_per_cell": (4096, 4096),
    "output_messages_per_cell": (1, 1),
    "network": ("none", NetworkPolicy.NONE),
    "env_pass": (["MY_VARIABLE"], ("MY_VARIABLE",)),
    "hostname": ("notebook-1", "notebook-1"),
    "transport": ("tcp", Transport.TCP),
    "start_timeout": (5, 5.0),
    "cell_timeout": (90, 90.0),
    "lifetime": (86400, 86400.0),
    "idle_timeout": (1.5, 1.5),
    "time_grace": (0.5, 0.5),
    "zygote": (False, False),
    "preload": (["numpy", "a.b_c"], ("numpy", "a.b_c")),
    "pool": (2, 2),
    "audit_log": ("/var/log/audit.jsonl", "/var/log/audit.jsonl"),
    "audit_code": (False, False),
}


def read(spec: SandboxSpec, key: str) -> Any:
    """The value of a flat key in the nested spec."""
    if key in CAP_KEYS:
        return getattr(spec.caps, key)
    if key == "inodes" or key.endswith("_size"):
        return getattr(spec.tmpfs, key.removesuffix("_size"))
    if key.startswith("output_"):
        return getattr(spec.output, key.removeprefix("output_"))
    return getattr(spec, key)


def error_of(key: str, value: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse_spec({key: value})
    return caught.value


# -- what is accepted --------------------------------------------------------------------------


def test_the_table_above_is_complete() -> None:
    assert {*EVERY_KEY, "memory_swap"} == set(KEYS)


def test_swap_is_what_there_is_besides_memory() -> None:
    caps = parse_spec({"memory": "1G", "memory_swap": 0}).caps
    assert (caps.memory, caps.memory_swap) == (GIB, 0)
    assert caps.asked() == {"memory": GIB, "memory_swap": 0}
    error = error_of("memory_swap", 0)
    assert (error.key, error.allowed) == ("memory_swap", "a size beside one of memory")


@pytest.mark.parametrize("key", EVERY_KEY)
def test_each_key_alone(key: str) -> None:
    value, expected = EVERY_KEY[key]
    spec = parse_spec({key: value})
    assert read(spec, key) == expected
    assert type(read(spec, key)) is type(expected)
    for other in EVERY_KEY.keys() - {key}:
        assert read(spec, other) == read(SandboxSpec(), other)


def test_all_keys_together_cross_a_process_border() -> None:
    together = EVERY_KEY.keys() - {"preload"}  # which is nothing for a program of its own
    spec = parse_spec({key: EVERY_KEY[key][0] for key in together})
    assert {key: read(spec, key) for key in together} == {
        key: EVERY_KEY[key][1] for key in together
    }
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_no_key_at_all_is_the_default() -> None:
    assert parse_spec({}) == SandboxSpec()
    assert spec_from_dict(SandboxSpec().to_dict()) == SandboxSpec()


def test_the_default_is_what_the_documentation_says() -> None:
    spec = SandboxSpec()
    assert spec.caps == Caps(memory=None, cpus=None, pids=None)
    assert spec.caps.asked() == {}
    assert spec.on_missing_cap is MissingCap.ERROR
    assert spec.network is NetworkPolicy.NONE
    assert spec.transport is Transport.IPC
    assert spec.identity is Identity.KEEP_ID
    assert spec.tmpfs == TmpfsLimits(GIB, GIB, GIB, 64 * MIB, GIB, 100_000)


def test_a_spec_cannot_be_changed() -> None:
    spec = SandboxSpec()
    for changed in (spec, spec.caps, spec.tmpfs, Mount("/a", "/b")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(changed, dataclasses.fields(changed)[0].name, None)
    assert hash(spec) == hash(SandboxSpec())


def test_asked_names_only_the_caps_that_are_set() -> None:
    assert parse_spec({"memory": "1G", "pids": 100}).caps.asked() == {"memory": GIB, "pids": 100}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        ("1", 1),
        ("1K", 1024),
        ("1KiB", 1024),
        ("1.5K", 1536),
        ("512M", 512 * MIB),
        ("1.5GiB", GIB + GIB // 2),
        ("2T", 2048 * GIB),
        ("0.000000001T", 1099),
        ("0001M", MIB),
        (2**63 - 1, 2**63 - 1),
        ("9223372036854775807", 2**63 - 1),
        ("8388607T", 8388607 * 1024**4),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size("memory", text) == size


@pytest.mark.parametrize("value", [True, False])
def test_a_truth_value_is_no_size_even_where_1_would_do(value: bool) -> None:
    with pytest.raises(SpecError):
        parse_size("key", value, minimum=0)


@pytest.mark.parametrize("path", ["~", "~/", "~//"])
def test_a_tilde_is_the_home(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert parse_spec({"workspace_path": path}).workspace_path == "/home/alice"
    assert parse_spec({"hide": ["~/keys/"]}).hide == ("/home/alice/keys",)


@pytest.mark.parametrize("path", ["//srv", "///srv", "/srv/", "/srv/.", "/./srv", "/srv//"])
def test_a_path_has_one_spelling(path: str) -> None:
    assert parse_spec({"workspace_path": path}).workspace_path == "/srv"


def test_a_mount_is_read_only_and_at_its_own_place_unless_told() -> None:
    spec = parse_spec({"mounts": [{"source": "/srv/data"}, Mount("/a", "/b", MountMode.OVERLAY)]})
    assert spec.mounts == (
        Mount("/srv/data", "/srv/data", MountMode.RO),
        Mount("/a", "/b", MountMode.OVERLAY),
    )


# -- what is refused ---------------------------------------------------------------------------

#: (key, value, a word of what is allowed)
REFUSED: list[tuple[str, object, str]] = [
    ("identity", "keep_id", "'keep-id'"),
    ("identity", None, "'keep-id'"),
    ("identity", ["root"], "'root'"),
    ("id_range", -1, "0 to 2147483647"),
    ("id_range", 2**31, "0 to 2147483647"),
    ("id_range", True, "whole number"),
    ("id_range", "5", "whole number"),
    ("id_range", 5.0, "whole number"),
    ("workspace", "RW", "'rw'"),
    ("workspace", "", "'overlay'"),
    ("workspace_path", "srv", "absolute path"),
    ("workspace_path", "", "absolute path"),
    ("workspace_path", "~bob/x", "absolute path"),
    ("workspace_path", "/srv/../etc", "without '..'"),
    ("workspace_path", "/srv/..", "without '..'"),
    ("workspace_path", "/srv/a\nb", "control characters"),
    ("workspace_path", "/srv/a\0b", "control characters"),
    ("workspace_path", "/srv/a\x7fb", "control characters"),
    ("workspace_path", b"/srv", "absolute path"),
    ("workspace_path", 7, "absolute path"),
    ("workspace_path", "/" + "a" * 4000, "absolute path"),
    ("mounts", {"source": "/a"}, "list of tables"),
    ("mounts", "/a:/b", "list of tables"),
    ("mounts", None, "list of tables"),
    ("hide", "~/.ssh", "list of absolute paths"),
    ("hide", {"/a"}, "list of absolute paths"),
    ("memory", "512MB", "suffix K, M, G or T"),
    ("memory", "512m", "suffix K, M, G or T"),
    ("memory", "512 M", "suffix K, M, G or T"),
    ("memory", "1GiB ", "suffix K, M, G or T"),
    ("memory", "1GiB\n", "suffix K, M, G or T"),
    ("memory", "1iB", "suffix K, M, G or T"),
    ("memory", "1e9", "suffix K, M, G or T"),
    ("memory", "0x10", "suffix K, M, G or T"),
    ("memory", "1_000M", "suffix K, M, G or T"),
    ("memory", "+1G", "suffix K, M, G or T"),
    ("memory", "-1G", "suffix K, M, G or T"),
    ("memory", "1.5", "suffix K, M, G or T"),
    ("memory", ".5G", "suffix K, M, G or T"),
    ("memory", "1.G", "suffix K, M, G or T"),
    ("memory", "१G", "suffix K, M, G or T"),
    ("memory", "\uff19G", "suffix K, M, G or T"),
    ("memory", "", "suffix K, M, G or T"),
    ("memory", "max", "suffix K, M, G or T"),
    ("memory", 1e9, "size in bytes"),
    ("memory", float("nan"), "size in bytes"),
    ("memory", True, "size in bytes"),
    ("memory", None, "size in bytes"),
    ("memory", 0, str(MEMORY_MINIMUM)),
    ("memory", -1, str(MEMORY_MINIMUM)),
    ("memory", MEMORY_MINIMUM - 1, str(MEMORY_MINIMUM)),
    ("memory", "0.9M", str(MEMORY_MINIMUM)),
    ("memory", 2**63, "size in bytes"),
    ("memory", "8388608T", "size in bytes"),
    ("memory", "9" * 19, "size in bytes"),
    ("memory", "9" * 5000, "size in bytes"),
    ("cpus", 0, "0.01 to 4096"),
    ("cpus", 0.009, "0.01 to 4096"),
    ("cpus", -1.5, "0.01 to 4096"),
    ("cpus", 4096.1, "0.01 to 4096"),
    ("cpus", float("nan"), "0.01 to 4096"),
    ("cpus", float("inf"), "0.01 to 4096"),
    ("cpus", float("-inf"), "0.01 to 4096"),
    ("cpus", True, "a number"),
    ("cpus", "2", "a number"),
    ("cpus", None, "a number"),
    ("cpus", 10**400, "0.01 to 4096"),
    ("pids", 31, "32 to 4194304"),
    ("pids", 4_194_305, "32 to 4194304"),
    ("pids", 0, "32 to 4194304"),
    ("pids", -1, "32 to 4194304"),
    ("pids", 2**63, "32 to 4194304"),
    ("pids", 100.0, "whole number"),
    ("pids", float("nan"), "whole number"),
    ("pids", True, "whole number"),
    ("pids", "100", "whole number"),
    ("memory_swap", -1, "at least 0"),
    ("memory_swap", "1GiB ", "suffix K, M, G or T"),
    ("memory_high", MEMORY_MINIMUM - 1, str(MEMORY_MINIMUM)),
    ("memory_low", MIB - 1, str(MIB)),
    ("cpu_weight", 0, "1 to 10000"),
    ("cpu_weight", 10_001, "1 to 10000"),
    ("cpu_weight", 100.0, "whole number"),
    ("cpuset_cpus", "", "such as '0-1,3'"),
    ("cpuset_cpus", "1-0", "such as '0-1,3'"),
    ("cpuset_cpus", "0,", "such as '0-1,3'"),
    ("cpuset_cpus", "8192", "up to 8191"),
    ("cpuset_cpus", "0 1", "such as '0-1,3'"),
    ("cpuset_cpus", 0, "such as '0-1,3'"),
    ("cpuset_mems", "0-", "such as '0-1,3'"),
    ("cpu_rt", 0, "0.001 to 1"),
    ("cpu_rt", 1.1, "0.001 to 1"),
    ("io", {"path": "/srv", "read_bps": 1}, "a list of tables"),
    ("hugetlb", [["2MB", 0]], "a table of sizes"),
    ("net_classid", 0, "1 to 4294967295"),
    ("net_classid", 2**32, "1 to 4294967295"),
    ("net_prio", "eth0 5", "a table of priorities"),
    ("devices", "/dev/null", "a list of nodes"),
    ("rlimits", ["nofile"], "a table of limits by name"),
    ("user", 3, "a table of caps"),
    ("on_missing_cap", "ignore", "'error', 'warn'"),
    ("on_missing_cap", False, "'error', 'warn'"),
    ("home_size", MIB - 1, str(MIB)),
    ("tmp_size", "1K", str(MIB)),
    ("shm_size", 0, str(MIB)),
    ("run_size", -1, str(MIB)),
    ("overlay_size", "0M", str(MIB)),
    ("inodes", 999, "1000 to 2147483647"),
    ("inodes", 0, "1000 to 2147483647"),
    ("on_memory_pressure", "kill", "'warn', 'interrupt'"),
    ("warn_throttled", 0, "0.01 to 1"),
    ("output_bytes_per_second", "4095", "4096"),
    ("output_messages_per_second", 0, "1 to 2147483647"),
    ("output_bytes_per_cell", 0, "4096"),
    ("output_messages_per_cell", True, "1 to 2147483647"),
    ("network", "full", "'none'"),
    ("network", None, "'none'"),
    ("env_pass", "PATH", "list of names"),
    ("hostname", "", "host name"),
    ("hostname", "Sandbox", "small letters"),
    ("hostname", "-a", "small letters"),
    ("hostname", "a-", "small letters"),
    ("hostname", "a.b", "small letters"),
    ("hostname", "a\n", "small letters"),
    ("hostname", "a" * 64, "up to 63"),
    ("transport", "unix", "'ipc', 'tcp'"),
    ("start_timeout", 0.5, "1 to 600"),
    ("start_timeout", 601, "1 to 600"),
    ("start_timeout", "30", "a number"),
    ("cell_timeout", 0, "1 to 31536000"),
    ("cell_timeout", "1h", "a number"),
    ("lifetime", 0.9, "1 to 31536000"),
    ("idle_timeout", 31_536_001, "1 to 31536000"),
    ("idle_timeout", True, "a number"),
    ("time_grace", 0, "0.1 to 3600"),
    ("zygote", "no", "true or false"),
    ("zygote", 0, "true or false"),
    ("preload", "numpy", "list of names of modules"),
    ("pool", -1, "0 to 32"),
    ("pool", 33, "0 to 32"),
    ("pool", True, "0 to 32"),
    ("audit_log", True, "an absolute path"),
    ("audit_log", "log", "an absolute path"),
    ("audit_log", "/var/log/", "the path of a file, or 'off'"),
    ("audit_code", 1, "true or false"),
    ("audit_code", True, "false where audit_log is off"),
]


def test_an_audit_log_is_off_if_it_says_so() -> None:
    assert parse_spec({"audit_log": "off"}) == parse_spec({})
    assert parse_spec({"audit_log": "/l", "audit_code": True}).audit_code


@pytest.mark.parametrize(("key", "value", "allowed"), REFUSED)
def test_a_refusal_says_key_value_and_what_is_allowed(
    key: str, value: object, allowed: str
) -> None:
    error = error_of(key, value)
    assert (error.key, error.value) == (key, value) or value != value
    assert error.message.startswith(f"{key} = {value!r} is not possible: allowed is ")
    assert allowed in error.message.partition("allowed is ")[2]
    assert isinstance(error, ValueError)


def test_every_key_refuses_something() -> None:
    assert {key for key, _, _ in REFUSED} == set(KEYS)


#: (key, value, the key that the error names, the value that it names)
REFUSED_WITHIN: list[tuple[str, Any, str, object]] = [
    ("io", [{"read_bps": 1}], "io[0]", {"read_bps": 1}),
    ("io", [{"path": "/srv"}], "io[0]", {"path": "/srv"}),
    ("io", [3], "io[0]", 3),
    ("preload", ["numpy; import os"], "preload[0]", "numpy; import os"),
    ("preload", ["a..b"], "preload[0]", "a..b"),
    ("io", [{"path": "srv", "weight": 10}], "io[0].path", "srv"),
    ("io", [{"device": "sda", "weight": 10}], "io[0].device", "sda"),
    ("io", [{"device": "8:0", "weight": 9}], "io[0].weight", 9),
    ("io", [{"device": "8:0", "read_bps": 0}], "io[0].read_bps", 0),
    ("io", [{"device": "8:0", "write_iops": 2**32}], "io[0].write_iops", 2**32),
    ("hugetlb", {"2M": 0}, "hugetlb", "2M"),
    ("hugetlb", {"2MB": "x"}, "hugetlb.2MB", "x"),
    ("net_prio", {"eth/0": 5}, "net_prio", "eth/0"),
    ("net_prio", {"eth0": -1}, "net_prio.eth0", -1),
    ("devices", ["/dev/null", "/dev/kvm"], "devices[1]", "/dev/kvm"),
    ("rlimits", {"files": 9}, "rlimits", "files"),
    ("rlimits", {"nofile": 63}, "rlimits.nofile", 63),
    ("rlimits", {"stack": "1K"}, "rlimits.stack", "1K"),
    ("user", {"memory": 0}, "user.memory", 0),
    ("user", {"kernels": 0}, "user.kernels", 0),
    ("user", {"devices": []}, "user.devices", []),
    ("user", {"memory_swap": 0}, "user.memory_swap", 0),
    ("hide", ["/a", "b"], "hide[1]", "b"),
    ("hide", ["/a", 3], "hide[1]", 3),
    ("env_pass", ["A", "B=C"], "env_pass[1]", "B=C"),
    ("env_pass", ["1A"], "env_pass[0]", "1A"),
    ("env_pass", ["A\n"], "env_pass[0]", "A\n"),
    ("env_pass", [""], "env_pass[0]", ""),
    ("env_pass", ["Ä"], "env_pass[0]", "Ä"),
    ("mounts", ["/a"], "mounts[0]", "/a"),
    ("mounts", [{"target": "/a"}], "mounts[0]", {"target": "/a"}),
    ("mounts", [{"source": "/a", "ro": True}], "mounts[0]", {"source": "/a", "ro": True}),
    ("mounts", [{"source": "a"}], "mounts[0].source", "a"),
    ("mounts", [{"source": "/a", "target": "b"}], "mounts[0].target", "b"),
    ("mounts", [{"source": "/a"}, {"source": "/b", "mode": "w"}], "mounts[1].mode", "w"),
    ("mounts", [{"source": "/a", "mode": None}], "mounts[0].mode", None),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "named", "item"), REFUSED_WITHIN)
def test_a_refusal_within_a_list_names_the_place(
    key: str, value: list[Any], named: str, item: object
) -> None:
    error = error_of(key, value)
    assert (error.key, error.value) == (named, item)
    assert error.message.startswith(f"{named} = {item!r} is not possible: allowed is ")
    assert len(error.allowed) > 10


@pytest.mark.parametrize("key", ["memroy", "Memory", "memory ", "caps", "version", ""])
def test_an_unknown_key_is_an_error_and_the_known_ones_are_listed(key: str) -> None:
    error = error_of(key, "2G")
    assert error.message.startswith(f"{key} = '2G' is not possible")
    for known in KEYS:
        assert known in error.allowed


@pytest.mark.parametrize("target", ["/", *SYSTEM_TARGETS, *(f"{t}/x" for t in SYSTEM_TARGETS)])
def test_nothing_stands_in_for_the_system(target: str) -> None:
    error = error_of("mounts", [{"source": "/srv", "target": target}])
    assert error.message.startswith(f"mounts[0].target = {target!r} is not possible")
    assert "/proc" in error.allowed and "/etc" in error.allowed
    # without a target the source is the target
    assert error_of("mounts", [{"source": target}]).key == "mounts[0].target"

    error = error_of("workspace_path", target)
    assert error.message.startswith(f"workspace_path = {target!r} is not possible")
    assert "/proc" in error.allowed and "/etc" in error.allowed
    with pytest.raises(SpecError):
        check_workspace(target)


def test_a_system_folder_cannot_be_spelled_differently() -> None:
    for spelling in ("//etc", "/./etc", "/etc/", "/etc/.", "//", "/."):
        assert error_of("workspace_path", spelling).key == "workspace_path"


@pytest.mark.parametrize(
    "path", ["/etcetera", "/user", "/lib33", "/srv/etc", "/home/usr", "/proc1"]
)
def test_a_name_that_only_begins_like_the_system_is_fine(path: str) -> None:
    assert check_workspace(path) == path
    assert parse_spec({"mounts": [{"source": path}]}).mounts[0].target == path


def test_a_system_folder_may_be_shown_elsewhere() -> None:
    assert parse_spec({"mounts": [{"source": "/etc", "target": "/host-etc"}]}).mounts


def test_a_path_for_no_workspace_is_a_contradiction() -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec({"workspace": "none", "workspace_path": "/srv"})
    assert caught.value.message == (
        "workspace_path = '/srv' is not possible: allowed is no path when workspace is 'none'"
    )


def test_a_path_that_no_file_can_have() -> None:
    assert error_of("workspace_path", "/srv/\ud800").key == "workspace_path"


@pytest.mark.parametrize("key", ["memory", "cpus", "pids"])
def test_a_number_too_long_to_print(key: str) -> None:
    assert error_of(key, 10**5000).key == key


# -- the other side of a process border --------------------------------------------------------


@pytest.mark.parametrize("version", [None, 0, SPEC_VERSION + 1, str(SPEC_VERSION)])
def test_another_version_is_refused(version: object) -> None:
    data = SandboxSpec().to_dict() | {"version": version}
    with pytest.raises(SpecError, match=f"^version = {version!r} is not possible"):
        spec_from_dict(data)


def test_a_missing_version_is_refused() -> None:
    data = SandboxSpec().to_dict()
    del data["version"]
    with pytest.raises(SpecError, match=r"^version = None"):
        spec_from_dict(data)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        (None, "memroy", 1),
        (None, "network", "full"),
        ("caps", "memory", 1),
        ("caps", "gpus", 1),
        ("tmpfs", "home", 0),
        ("tmpfs", "inode", 5000),
    ],
)
def test_what_arrives_is_validated_again(part: str | None, key: str, value: object) -> None:
    data = SandboxSpec().to_dict()
    (data if part is None else data[part])[key] = value
    with pytest.raises(SpecError):
        spec_from_dict(data)


# -- other caps for a kernel that runs -------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "key", "allowed"),
    [
        ({}, "caps", "at least one of the caps memory, "),
        ({"io": []}, "caps", "at least one of the caps memory, "),
        ({"user": {}}, "caps", "at least one of the caps memory, "),
        ({"mem": 1}, "mem", "one of the caps memory, "),
        ({"network": "none"}, "network", "one of the caps memory, "),
        ({"pids": None}, "pids", "a value: a cap is changed, it cannot be lifted"),
        ({"pids": 1}, "pids", "a whole number from "),
        ({"user": {"kernels": 2}}, "user.kernels", "no such key for a kernel that runs"),
        ({"user": {"pids": 1}}, "user.pids", "a whole number from "),
        ({"user": 5}, "user", "a table of caps"),
        ({"memory_swap": "1G"}, "memory_swap", "a size beside one of memory"),
    ],
)
def test_what_is_no_change(config: dict[str, Any], key: str, allowed: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_change(config)
    assert caught.value.key == key
    assert caught.value.allowed.startswith(allowed)


def test_a_change_replaces_what_it_names() -> None:
    here, there = IoLimit("/a", read_bps=1), IoLimit("/b", read_bps=1)
    caps = Caps(memory=4 * GIB, memory_swap=GIB, pids=100, io=(here, there))
    other = IoLimit("/a", read_bps=2)
    assert caps.changed(Caps(pids=200)) == dataclasses.replace(caps, pids=200)
    assert caps.changed(Caps(io=(other,))).io == (there, other)
    assert caps.changed(Caps(memory=GIB)) == dataclasses.replace(caps, memory=GIB, memory_swap=None)


def test_a_change_must_go_with_what_stays() -> None:
    with pytest.raises(SpecError, match=r"^user\.memory_low = .* up to that of memory"):
        Caps(memory_low=GIB).changed(Caps(memory=512 * MIB), "user.")
