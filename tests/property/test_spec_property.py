"""For all values: a number or a size is what it says or an error that says why; specs travel."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox_kernel.caps import format_numbers, parse_numbers
from sandbox_kernel.errors import SpecError
from sandbox_kernel.spec import (
    CAP_KEYS,
    CPUS_MAXIMUM,
    CPUS_MINIMUM,
    DEVICE_NODES,
    KEYS,
    MEMORY_MINIMUM,
    PIDS_MAXIMUM,
    PIDS_MINIMUM,
    RLIMITS,
    SYSTEM_TARGETS,
    SandboxSpec,
    change_to_dict,
    parse_change,
    parse_size,
    parse_spec,
    spec_from_dict,
)

#: The same examples in every run and for every user, and no database in a folder of somebody's.
bounded = settings(derandomize=True, database=None, deadline=None, max_examples=300)
LARGEST: Final = 2**63 - 1
_T = TypeVar("_T")
UNITS: Final = {
    "": 1, "K": 2**10, "KiB": 2**10, "M": 2**20, "MiB": 2**20, "G": 2**30, "GiB": 2**30,
    "T": 2**40, "TiB": 2**40,
}  # fmt: skip

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
EDGES = st.sampled_from(
    [
        0, -1, 1, 31, 32, 2**31 - 1, 2**31, 2**63 - 1, 2**63, -(2**63), True, False, 0.0, -0.0,
        0.01, 4096.0, 1e9, 1e308, float("nan"), float("inf"), float("-inf"), "1e9", "1GiB ", " 1G",
        "1G\n", "9" * 400, "\u096f", "1\u0968M", "\uff11\uff2d", "²", "0", "-1", "+1", "1_0", "0x1",
        "inf", "nan", "True", "",
    ]
)  # fmt: skip


def attempt(call: Callable[[], _T]) -> _T | SpecError:
    """The result, or the SpecError; any other exception is a failure of the test."""
    try:
        return call()
    except SpecError as error:
        return error


def outcome(key: str, value: object) -> Any:
    """The parsed cap, or the SpecError whose words have been checked."""
    result = attempt(lambda: parse_spec({key: value}))
    if isinstance(result, SpecError):
        assert result.message.startswith(f"{key} = {value!r} is not possible: allowed is ")
        assert isinstance(result, ValueError)
        return result
    return getattr(result.caps, key)


# -- sizes -------------------------------------------------------------------------------------


@bounded
@given(whole=st.integers(0, 10**19), unit=st.sampled_from(sorted(UNITS)))
@example(whole=2**63 - 1, unit="")
@example(whole=2**63, unit="")
@example(whole=2**53 - 1, unit="K")
@example(whole=2**53, unit="K")
@example(whole=0, unit="T")
def test_a_whole_size_is_exact_or_refused(whole: int, unit: str) -> None:
    text, size = f"{whole}{unit}", whole * UNITS[unit]
    result = attempt(lambda: parse_size("memory", text))
    if 1 <= size <= LARGEST and len(str(whole)) <= 19:
        assert result == size
    else:
        assert isinstance(result, SpecError)


@bounded
@given(
    whole=st.integers(0, 10**7),
    digits=st.text("0123456789", min_size=1, max_size=9),
    unit=st.sampled_from(sorted(UNITS)),
)
def test_a_broken_size_is_rounded_down_to_a_byte(whole: int, digits: str, unit: str) -> None:
    text = f"{whole}.{digits}{unit}"
    size = int(Fraction(f"{whole}.{digits}") * UNITS[unit])
    result = attempt(lambda: parse_size("memory", text))
    if unit and 1 <= size <= LARGEST:
        assert result == size
    else:
        assert isinstance(result, SpecError)
        assert repr(text) in result.message


@bounded
@given(value=ANYTHING | EDGES, minimum=st.integers(1, 2**40))
def test_whatever_is_given_for_a_size(value: object, minimum: int) -> None:
    size = attempt(lambda: parse_size("key", value, minimum=minimum))
    if isinstance(size, SpecError):
        assert size.message.startswith(f"key = {value!r} is not possible: allowed is a size")
        assert f"at least {minimum}" in size.allowed
        return
    assert type(size) is int
    assert minimum <= size <= LARGEST
    assert type(value) in (int, str)
    if isinstance(value, str):
        assert value.isascii() and value == value.strip() and value[0].isdigit()


@bounded
@given(size=st.integers(1, LARGEST))
def test_a_size_in_bytes_is_itself(size: int) -> None:
    assert parse_size("key", size) == parse_size("key", str(size)) == size


# -- numbers -----------------------------------------------------------------------------------


@bounded
@given(value=ANYTHING | EDGES)
def test_whatever_is_given_for_memory(value: object) -> None:
    result = outcome("memory", value)
    if not isinstance(result, SpecError):
        assert type(result) is int and MEMORY_MINIMUM <= result <= LARGEST


@bounded
@given(value=ANYTHING | EDGES | st.floats(-1, 5000) | st.integers(-1, 5000))
def test_whatever_is_given_for_cpus(value: object) -> None:
    result = outcome("cpus", value)
    possible = type(value) in (int, float) and CPUS_MINIMUM <= value <= CPUS_MAXIMUM  # type: ignore[operator]
    assert possible is not isinstance(result, SpecError)
    if possible:
        assert type(result) is float and result == value


@bounded
@given(value=ANYTHING | EDGES | st.integers(-1, PIDS_MAXIMUM + 1))
def test_whatever_is_given_for_pids(value: object) -> None:
    result = outcome("pids", value)
    possible = type(value) is int and PIDS_MINIMUM <= value <= PIDS_MAXIMUM  # type: ignore[operator]
    assert possible is not isinstance(result, SpecError)
    if possible:
        assert type(result) is int and result == value


@pytest.mark.parametrize("key", KEYS)
def test_whatever_is_given_for_a_key(key: str) -> None:
    @bounded
    @given(value=ANYTHING | EDGES)
    def check(value: object) -> None:
        spec = attempt(lambda: parse_spec({key: value}))
        if isinstance(spec, SpecError):
            assert spec.key == key or spec.key.startswith((f"{key}[", f"{key}."))
            assert len(spec.allowed) > 5
            return
        assert spec_from_dict(spec.to_dict()) == spec

    check()


@bounded
@given(key=st.text(max_size=20), value=ANYTHING)
def test_a_key_is_known_or_refused(key: str, value: object) -> None:
    if key in KEYS:
        return
    with pytest.raises(SpecError) as caught:
        parse_spec({key: value})
    assert caught.value.message.startswith(f"{key} = {value!r} is not possible")
    assert "memory" in caught.value.allowed


@bounded
@given(value=ANYTHING | EDGES | st.integers(-1, 10_001))
def test_whatever_is_given_for_cpu_weight(value: object) -> None:
    result = outcome("cpu_weight", value)
    possible = type(value) is int and 1 <= value <= 10_000
    assert possible is not isinstance(result, SpecError)


@bounded
@given(text=st.text("0123456789,-", max_size=12) | st.text(max_size=8))
@example(text="0-8191")
@example(text="0-8192")
@example(text="1-0")
@example(text="")
@example(text="٣")
def test_a_list_of_cpus_is_a_set_of_numbers_or_refused(text: str) -> None:
    numbers = parse_numbers(text)
    result = outcome("cpuset_cpus", text)
    if numbers is None:
        assert isinstance(result, SpecError)
        return
    assert numbers and max(numbers) <= 8191
    assert parse_numbers(result) == numbers
    assert result == format_numbers(numbers) and len(result) <= len(text) + 4


@bounded
@given(numbers=st.frozensets(st.integers(0, 8191), min_size=1, max_size=40))
def test_a_set_of_numbers_survives_its_text(numbers: frozenset[int]) -> None:
    assert parse_numbers(format_numbers(numbers)) == numbers


# -- whole specs -------------------------------------------------------------------------------

SEGMENTS = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1, max_size=8
).filter(lambda text: text not in (".", ".."))
PATHS = st.builds(
    lambda top, below: "/".join([top, *below]),
    st.sampled_from(["/srv", "/home/alice", "~", "//data", "/var/lib"]),
    st.lists(SEGMENTS, max_size=3),
)
SIZES = st.integers(2**20, LARGEST) | st.sampled_from(["1M", "1.5G", "2TiB", "1048576"])
MOUNTS = st.fixed_dictionaries(
    {"source": PATHS}, optional={"target": PATHS, "mode": st.sampled_from(["ro", "rw", "overlay"])}
)
LISTS = st.frozensets(st.integers(0, 8191), min_size=1, max_size=9).map(format_numbers)
IO = st.builds(
    lambda where, rates: where | rates,
    PATHS.map(lambda path: {"path": path})
    | st.sampled_from(["/dev/vda", "8:0"]).map(lambda device: {"device": device}),
    st.dictionaries(
        st.sampled_from(["read_bps", "write_bps", "read_iops", "write_iops", "weight"]),
        st.integers(10, 1000),
        min_size=1,
    ),
)
#: Whatever is together here is possible together.
CAPS: Final[dict[str, st.SearchStrategy[Any]]] = {
    "memory": st.integers(2**60, LARGEST),
    "memory_high": st.integers(MEMORY_MINIMUM, 2**60),
    "memory_low": st.integers(2**20, 2**60),
    "cpus": st.floats(CPUS_MINIMUM, CPUS_MAXIMUM),
    "cpu_weight": st.integers(1, 10_000),
    "cpuset_cpus": LISTS,
    "cpuset_mems": LISTS,
    "cpu_rt": st.floats(0.001, 1.0),
    "pids": st.integers(PIDS_MINIMUM, PIDS_MAXIMUM),
    "io": st.lists(IO, max_size=3),
    "hugetlb": st.dictionaries(st.sampled_from(["64KB", "2MB", "1GB"]), st.integers(0, LARGEST)),
    "net_classid": st.integers(1, 2**32 - 1),
    "net_prio": st.dictionaries(st.sampled_from(["eth0", "lo"]), st.integers(0, 2**31 - 1)),
}
VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    **CAPS,
    "devices": st.lists(st.sampled_from(DEVICE_NODES)),
    "user": st.fixed_dictionaries({}, optional=CAPS | {"kernels": st.integers(1, 10_000)}),
    "rlimits": st.dictionaries(st.sampled_from(sorted(RLIMITS)), st.integers(2**28, 2**31 - 1)),
    "identity": st.sampled_from(["keep-id", "root", "isolated"]),
    "id_range": st.integers(0, 2**31 - 1),
    "workspace": st.sampled_from(["rw", "ro", "overlay"]),
    "workspace_path": PATHS,
    "mounts": st.lists(MOUNTS, max_size=3),
    "hide": st.lists(PATHS, max_size=3),
    "on_missing_cap": st.sampled_from(["error", "warn"]),
    **{f"{name}_size": SIZES for name in ("home", "tmp", "shm", "run", "overlay")},
    "inodes": st.integers(1000, 2**31 - 1),
    "on_memory_pressure": st.sampled_from(["warn", "interrupt"]),
    "warn_throttled": st.floats(0.01, 1),
    **{f"output_bytes_per_{unit}": st.integers(4096, 2**40) for unit in ("second", "cell")},
    **{f"output_messages_per_{unit}": st.integers(1, 2**31 - 1) for unit in ("second", "cell")},
    "network": st.just("none"),
    "env_pass": st.lists(st.from_regex("[A-Za-z_][A-Za-z0-9_]*", fullmatch=True), max_size=3),
    "hostname": st.from_regex("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    "transport": st.sampled_from(["ipc", "tcp"]),
    "start_timeout": st.floats(1, 600) | st.integers(1, 600),
    **{key: st.floats(1, 3e7) for key in ("cell_timeout", "lifetime", "idle_timeout")},
    "time_grace": st.floats(0.1, 3600),
    "zygote": st.just(True),
    "preload": st.lists(st.sampled_from(["numpy", "pandas.core"]), max_size=2),
    "pool": st.integers(0, 32),
    "audit_log": st.sampled_from(["off", "/var/log/audit.jsonl"]),
    "audit_code": st.just(False),  # true is nothing without the log
}
CONFIGS = st.fixed_dictionaries({}, optional=VALUES)


def test_the_strategy_above_knows_every_key() -> None:
    assert {*VALUES, "memory_swap"} == set(KEYS)  # which is nothing without memory


@bounded
@given(config=CONFIGS)
def test_every_valid_spec_travels(config: dict[str, Any]) -> None:
    spec = parse_spec(config)
    assert spec_from_dict(spec.to_dict()) == spec
    assert spec_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(spec_from_dict(spec.to_dict()))


@bounded
@given(caps=st.fixed_dictionaries({}, optional=CAPS), user=st.fixed_dictionaries({}, optional=CAPS))
def test_every_valid_change_travels(caps: dict[str, Any], user: dict[str, Any]) -> None:
    config = caps | ({"user": user} if user else {})
    change = attempt(lambda: parse_change(config))
    if isinstance(change, SpecError):
        assert change.key == "caps"  # nothing is asked for
        return
    assert parse_change(json.loads(json.dumps(change_to_dict(change)))) == change


@bounded
@given(config=CONFIGS)
def test_every_path_of_a_valid_spec_is_absolute_normal_and_no_wall(config: dict[str, Any]) -> None:
    spec = parse_spec(config)
    targets = [mount.target for mount in spec.mounts]
    if spec.workspace_path is not None:
        targets.append(spec.workspace_path)
    for path in (*targets, *spec.hide, *(mount.source for mount in spec.mounts)):
        assert path.startswith("/") and not path.startswith("//")
        assert not path.endswith("/") or path == "/"
        assert not {"", ".", ".."} & set(path.split("/")[1:]) or path == "/"
    for path in targets:
        assert path != "/"
        assert not [t for t in SYSTEM_TARGETS if path == t or path.startswith(t + "/")]


@bounded
@given(config=CONFIGS)
def test_a_key_changes_nothing_but_itself(config: dict[str, Any]) -> None:
    together = parse_spec(config)
    for key, value in config.items():
        alone = parse_spec({key: value})
        for name in KEYS:
            if name not in config:
                assert _read(together, name) == _read(SandboxSpec(), name)
        assert _read(alone, key) == _read(together, key)


def _read(spec: SandboxSpec, key: str) -> Any:
    if key in CAP_KEYS:
        return getattr(spec.caps, key)
    if key == "inodes" or key.endswith("_size"):
        return getattr(spec.tmpfs, key.removesuffix("_size"))
    if key.startswith("output_"):
        return getattr(spec.output, key.removeprefix("output_"))
    return getattr(spec, key)
