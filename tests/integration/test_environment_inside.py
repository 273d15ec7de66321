"""What of the server's environment and memory reaches a kernel: what is named, and nothing else.

A secret is looked for in the whole memory of the kernel, by a scan that is first shown to find
what is there. It goes inside written backwards, so that the search itself puts it nowhere.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.sandboxes import (
    environment_files,
    inside,
    own_launcher,
    run_cell,
    started,
    value,
)
from jupyter_client.blocking import BlockingKernelClient

SECRETS = (
    "JUPYTERHUB_API_TOKEN", "JUPYTER_TOKEN", "JUPYTERHUB_COOKIE_SECRET", "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN", "AZURE_CLIENT_SECRET", "GOOGLE_APPLICATION_CREDENTIALS", "OPENAI_API_KEY",
    "GITHUB_TOKEN", "PGPASSWORD", "DATABASE_URL", "SSH_AUTH_SOCK", "KUBECONFIG", "PIP_INDEX_URL",
    "LD_PRELOAD_OF_NOBODY", "PYTHONSTARTUP_OF_NOBODY", "LC_SECRET1", "lc_all_secret", "MEM_LIMIT",
)  # fmt: skip


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Secrets in the environment of this process, which starts a launcher of its own."""
    values = {name: secrets.token_hex(16) for name in SECRETS}
    for name, secret in values.items():
        monkeypatch.setenv(name, secret)
    with own_launcher():
        yield values


def occurrences(backwards: list[str]) -> list[int]:
    """How often each text, written backwards here, stands in the memory of the kernel.

    What is searched is a fork that stands still, made before the texts are turned round.
    """
    import os
    import signal

    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    try:
        needles = [text[::-1].encode() for text in backwards]
        counts = [0] * len(needles)
        with open(f"/proc/{child}/maps") as file:
            regions = [line.split() for line in file]
        with open(f"/proc/{child}/mem", "rb", buffering=0) as memory:
            for fields in regions:
                if not fields[1].startswith("r") or fields[-1].startswith(("[vvar", "[vsyscall")):
                    continue
                start, end = (int(n, 16) for n in fields[0].split("-"))
                content = os.pread(memory.fileno(), end - start, start)
                for index, needle in enumerate(needles):
                    counts[index] += content.count(needle)
        return counts
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(write_end)


def found(client: BlockingKernelClient, *texts: str) -> list[int]:
    counts: list[int] = inside(client, occurrences, [text[::-1] for text in texts])
    return counts


def test_no_secret_of_the_server_arrives(tmp_path: Path, canaries: dict[str, str]) -> None:
    in_this_heap = secrets.token_hex(16)
    with started(tmp_path) as (_, client):
        variables = value(client, "dict(__import__('os').environ)")
        assert not set(canaries.values()) & set(variables.values())
        assert not set(canaries) & set(variables)
        text = inside(client, environment_files)
        assert "HOME=" in text
        assert not [name for name, secret in canaries.items() if secret in text]
        counts = found(client, *canaries.values(), in_this_heap)
        assert set(counts) == {0}, dict(zip([*canaries, "heap"], counts, strict=True))


def test_what_is_there_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan that finds no secret does find a variable, and an object on the heap."""
    passed, kept = secrets.token_hex(16), secrets.token_hex(16)
    monkeypatch.setenv("PASSED", passed)
    with started(tmp_path, {"env_pass": ["PASSED"]}) as (_, client):
        assert run_cell(client, f"kept = {kept[::-1]!r}[::-1]").ok
        counts = found(client, passed, kept, secrets.token_hex(16))
        assert counts[0] > 0
        assert counts[1] > 0
        assert counts[2] == 0


def test_no_key_of_another_kernel(tmp_path: Path) -> None:
    """Not of one that was started before by the same launcher, nor of one started later."""
    with started(tmp_path) as (first, one), started(tmp_path) as (second, other):
        keys = [km.session.key.decode() for km in (first, second)]
        assert keys[0] != keys[1]
        counts = [found(client, *keys) for client in (one, other)]
        assert counts[0][0] > 0, "its own key is known to a kernel"
        assert counts[1][1] > 0
        assert counts[0][1] == counts[1][0] == 0


def test_names_that_are_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSED", "from the server")
    monkeypatch.setenv("NOT_PASSED", "from the server")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    fields = {"env": {"FROM_SPEC": "from the kernelspec", "MPLBACKEND": "agg"}}
    config = {"env_pass": ["PASSED", "NOT_THERE"]}
    with started(tmp_path, config, fields=fields) as (_, client):
        variables = value(client, "dict(__import__('os').environ)")
    assert variables["PASSED"] == "from the server"
    assert variables["FROM_SPEC"] == "from the kernelspec"
    assert (variables["LC_TIME"], variables["TZ"]) == ("C", "Pacific/Auckland")
    assert not {"NOT_PASSED", "NOT_THERE"} & set(variables)


def test_reserved_names_are_the_sandboxes_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server has them, the kernelspec sets them or ``env_pass`` names them."""
    names = ("HOME", "SHELL", "TMPDIR", "USER", "LOGNAME", "XDG_RUNTIME_DIR", "IPYTHONDIR",
             "JUPYTER_RUNTIME_DIR", "JPY_PARENT_PID")  # fmt: skip
    with started(tmp_path) as (_, client):
        plain = value(client, "dict(__import__('os').environ)")
    monkeypatch.setenv("IPYTHONDIR", "/evil")
    monkeypatch.setenv("SHELL", "/evil")
    fields = {"env": dict.fromkeys(names, "/evil")}
    with started(tmp_path, {"env_pass": list(names)}, fields=fields) as (_, client):
        variables = value(client, "dict(__import__('os').environ)")
    assert {name: variables.get(name) for name in names} == {n: plain.get(n) for n in names}
    assert "/evil" not in variables.values()
    assert "JPY_PARENT_PID" not in variables


def test_nothing_of_the_clients_environment_becomes_a_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MEM_LIMIT", "CPU_LIMIT", "KERNEL_MEMORY", "SANDBOX_KERNEL_MEMORY"):
        monkeypatch.setenv(name, "1")
    with own_launcher(), started(tmp_path) as (_, client):
        variables = value(client, "dict(__import__('os').environ)")
    assert not {n for n in variables if "LIMIT" in n or "KERNEL" in n}


def test_folders_that_the_environment_names_are_there_and_writable(tmp_path: Path) -> None:
    def usable() -> dict[str, bool]:
        import os
        import tempfile

        names = ("HOME", "XDG_RUNTIME_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
        found = {name: os.access(os.environ[name], os.W_OK) for name in names}
        found["tmp"] = os.access(tempfile.gettempdir(), os.W_OK)
        found["path"] = all(os.path.isdir(p) for p in os.environ["PATH"].split(":"))
        return found

    with started(tmp_path) as (_, client):
        assert set(inside(client, usable).values()) == {True}
        assert os.environ["IPYTHONDIR"] != value(client, "__import__('os').environ['IPYTHONDIR']")
