"""What of a server's environment reaches a kernel: an allow-list, and no secret ever."""

from __future__ import annotations

import os
import sys
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.environment import (
    ALLOWED,
    RESERVED,
    THREADS,
    complete_environment,
    filter_environment,
    launcher_environment,
    user_buses,
)
from sandbox_kernel.spec import SandboxSpec, parse_spec

DEFAULT: Final = SandboxSpec()
#: What real servers hold, and what would steer a program that is run with it.
SECRETS: Final = (
    "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_API_URL", "JPY_API_TOKEN", "CONFIGPROXY_AUTH_TOKEN",
    "JUPYTERHUB_CRYPT_KEY", "JUPYTER_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET", "GITHUB_TOKEN", "HF_TOKEN",
    "OPENAI_API_KEY", "PGPASSWORD", "DATABASE_URL", "SSH_AUTH_SOCK", "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "XAUTHORITY", "KRB5CCNAME", "http_proxy", "HTTPS_PROXY",
    "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME",
    "BASH_ENV", "ENV", "PATH", "PROMPT_COMMAND", "GIT_SSH_COMMAND", "LC_API_TOKEN", "lang",
    "SANDBOX_KERNEL_CGROUP", "MEM_LIMIT", "CPU_LIMIT", "JPY_PARENT_PID", "",
)  # fmt: skip

NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(
    [*SECRETS, *ALLOWED, *RESERVED, "LC_ALL"]
)
ENVIRONMENTS = st.dictionaries(NAMES, st.text(max_size=8), max_size=12)
bounded = settings(derandomize=True, database=None, deadline=None)


def complete(
    filtered: dict[str, str] | None = None, spec: SandboxSpec = DEFAULT, *, uid: int = 1000
) -> dict[str, str]:
    return complete_environment(filtered or {}, spec, user="alice", home="/home/alice", uid=uid)


# -- the client's filter -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_passes(name: str) -> None:
    assert filter_environment({name: "secret"}, DEFAULT) == {}
    assert "secret" not in complete(filter_environment({name: "secret"}, DEFAULT)).values()


@pytest.mark.parametrize("name", [*sorted(ALLOWED), "LC_ALL", "LC_TIME"])
def test_what_is_harmless_passes(name: str) -> None:
    assert filter_environment({name: "v"}, DEFAULT) == {name: "v"}


def test_the_lists_do_not_meet() -> None:
    assert not ALLOWED & RESERVED
    assert not [n for n in ALLOWED if "TOKEN" in n or "KEY" in n or "SECRET" in n or "PASS" in n]


def test_what_the_kernelspec_and_the_spec_name_passes() -> None:
    source = {"FROM_SPEC": "1", "FROM_KERNELSPEC": "2", "OTHER": "3"}
    spec = parse_spec({"env_pass": ["FROM_SPEC", "ABSENT"]})
    assert filter_environment(source, spec, set_by_kernelspec=["FROM_KERNELSPEC"]) == {
        "FROM_SPEC": "1",
        "FROM_KERNELSPEC": "2",
    }


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_nobody_sets_what_the_sandbox_sets(name: str) -> None:
    spec = parse_spec({"env_pass": [name]})
    assert filter_environment({name: "v"}, spec, set_by_kernelspec=[name]) == {}


@bounded
@given(source=ENVIRONMENTS, passed=st.lists(st.sampled_from(SECRETS[:10])), set_=st.lists(NAMES))
def test_only_listed_names_pass_and_values_are_not_changed(
    source: dict[str, str], passed: list[str], set_: list[str]
) -> None:
    kept = filter_environment(source, parse_spec({"env_pass": passed}), set_by_kernelspec=set_)
    assert kept.items() <= source.items()
    for name in kept:
        named = (name in passed or name in set_) and name not in RESERVED
        language = name.startswith("LC_") and name[3:].isascii() and name[3:].isupper()
        assert named or name in ALLOWED or language
    for name in source.keys() - kept.keys():
        assert name not in ALLOWED


# -- the supervisor's completion ---------------------------------------------------------------


def test_the_environment_describes_the_sandbox() -> None:
    assert complete() == {
        "LANG": "C.UTF-8",
        "TERM": "xterm-color",
        "PATH": f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/alice",
        "USER": "alice",
        "LOGNAME": "alice",
        "SHELL": "/bin/bash",
        "XDG_RUNTIME_DIR": "/run/user/1000",
        "JUPYTER_RUNTIME_DIR": "/run/user/1000/jupyter",
        "IPYTHONDIR": "/run/user/1000/ipython",
    }


def test_defaults_give_way_and_the_rest_does_not() -> None:
    made = complete({"LANG": "de_DE.UTF-8", "PATH": "/x", "HOME": "/root", "USER": "root"})
    assert made["LANG"] == "de_DE.UTF-8"
    assert made["PATH"] == "/x"  # named by the kernelspec, or it would not be here
    assert (made["HOME"], made["USER"]) == ("/home/alice", "alice")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"memory": "2G"}, {"MEM_LIMIT": str(2 * 1024**3)}),
        ({"cpus": 1.5}, {"CPU_LIMIT": "1.5"}),
        ({"cpus": 2}, {"CPU_LIMIT": "2"}),
    ],
)
def test_the_caps_are_told(config: dict[str, object], expected: dict[str, str]) -> None:
    made = complete({}, parse_spec(config))
    assert {k: v for k, v in made.items() if k.endswith("_LIMIT")} == expected


def test_a_cap_beats_what_was_passed() -> None:
    assert complete({"MEM_LIMIT": "1"}, parse_spec({"memory": "64M"}))["MEM_LIMIT"] == "67108864"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, None),
        ({"cpuset_cpus": "0"}, None),  # which they see for themselves
        ({"cpus": 0.5}, "1"),
        ({"cpus": 1}, "1"),
        ({"cpus": 1.5}, "2"),
        ({"cpus": 64}, "4"),
        ({"cpus": 4, "cpuset_cpus": "1-2"}, "2"),
        ({"cpus": 4, "cpuset_cpus": "7"}, "1"),
    ],
)
def test_libraries_start_as_many_threads_as_the_quota_feeds(
    config: dict[str, object], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    made = complete({}, parse_spec(config))
    assert {made.get(name) for name in THREADS} == {expected}


def test_the_kernelspec_s_number_of_threads_beats_the_quota_s_and_the_server_s_does_not() -> None:
    source = {"OMP_NUM_THREADS": "7", "MKL_NUM_THREADS": "8", "OPENBLAS_NUM_THREADS": "9"}
    spec = parse_spec({"cpus": 1, "env_pass": ["MKL_NUM_THREADS"]})
    filtered = filter_environment(source, spec, set_by_kernelspec=["OMP_NUM_THREADS"])
    made = complete(filtered, spec)
    assert [made[name] for name in source] == ["7", "8", "1"]
    assert complete(filter_environment(source, DEFAULT)).items() >= source.items()


@bounded
@given(source=ENVIRONMENTS)
def test_no_parent_is_named_inside(source: dict[str, str]) -> None:
    """``JPY_PARENT_PID`` makes a kernel whose parent is pid 1 exit at once."""
    made = complete(filter_environment(source, DEFAULT, set_by_kernelspec=source))
    assert "JPY_PARENT_PID" not in made and "JPY_INTERRUPT_EVENT" not in made
    assert made["HOME"] == "/home/alice" and made["IPYTHONDIR"] == "/run/user/1000/ipython"


# -- the launcher's own ------------------------------------------------------------------------


@bounded
@given(source=ENVIRONMENTS)
def test_the_launcher_gets_nothing_that_steers_a_program(source: dict[str, str]) -> None:
    made = launcher_environment(source)
    fixed = {"LANG", "LANGUAGE", "TZ", "HOME", "PATH", "SANDBOX_KERNEL_CGROUP"}
    assert {n for n in made if not n.startswith("LC_")} <= fixed
    assert made["PATH"] == "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    assert made["LANG"] == source.get("LANG", "C.UTF-8")


@pytest.mark.parametrize("name", [n for n in SECRETS if n not in ("SANDBOX_KERNEL_CGROUP", "PATH")])
def test_the_launcher_holds_no_secret(name: str) -> None:
    assert name not in launcher_environment({name: "secret"})


def test_the_launcher_is_told_its_cgroup_and_its_home() -> None:
    made = launcher_environment({"SANDBOX_KERNEL_CGROUP": "g", "HOME": "/h", "LC_ALL": "C"})
    assert (made["SANDBOX_KERNEL_CGROUP"], made["HOME"], made["LC_ALL"]) == ("g", "/h", "C")


# -- where systemd is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({}, ()),
        ({"XDG_RUNTIME_DIR": "relative", "DBUS_SESSION_BUS_ADDRESS": ""}, ()),
        ({"DBUS_SESSION_BUS_ADDRESS": "unix:abstract=x"}, ("unix:abstract=x",)),
        (
            {"XDG_RUNTIME_DIR": "/r", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/r/bus"},
            ("unix:path=/r/systemd/private", "unix:path=/r/bus"),
        ),
        (
            {"XDG_RUNTIME_DIR": "/a,b%"},
            ("unix:path=/a%2cb%25/systemd/private", "unix:path=/a%2cb%25/bus"),
        ),
    ],
)
def test_where_systemd_is_looked_for(source: dict[str, str], expected: tuple[str, ...]) -> None:
    assert user_buses(source) == expected
