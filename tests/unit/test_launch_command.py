"""The foreground command: which kernelspec, which connection file, and what it says without them.

Nothing is started here: each test ends before a sandbox is asked for.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from sandbox_kernel import launch, request
from sandbox_kernel.errors import ChannelError, SetupError, SpecError
from sandbox_kernel.launch import (
    PROVISIONER,
    load_kernelspec,
    main,
    read_connection_file,
    spec_of,
)
from sandbox_kernel.spec import GIB, SandboxSpec

SPEC: dict[str, Any] = {
    "argv": ["python", "-m", "sandbox_kernel.launch", "-f", "{connection_file}", "--name", "x"],
    "display_name": "Sandboxed Python",
    "language": "python",
    "env": {"SET_BY_KERNELSPEC": "1"},
    "metadata": {"kernel_provisioner": {"provisioner_name": PROVISIONER}},
}


class Kernels:
    """A Jupyter data folder with kernelspecs of our own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "kernels"

    def add(self, name: str, **changes: Any) -> Path:
        return self.add_text(name, json.dumps(SPEC | changes))

    def add_text(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.mkdir(parents=True)
        (path / "kernel.json").write_text(text)
        return path


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share"))
    return Kernels(tmp_path / "share")


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a sandbox was asked for")

    monkeypatch.setattr(launch.Sandbox, "launch", refuse)
    monkeypatch.setattr(launch, "_SignalPipe", object)  # it would take the test runner's signals


def provisioner(name: str | None = PROVISIONER, **config: Any) -> dict[str, Any]:
    return {"metadata": {"kernel_provisioner": {"provisioner_name": name, "config": config}}}


# -- the kernelspec ----------------------------------------------------------------------------


def test_a_kernelspec_of_this_provisioner(kernels: Kernels) -> None:
    path = kernels.add("boxed", **provisioner(memory="2G", workspace="ro"))
    kernelspec = load_kernelspec("boxed")
    assert kernelspec.resource_dir == str(path)
    assert kernelspec.env == {"SET_BY_KERNELSPEC": "1"}
    spec = spec_of(kernelspec)
    assert spec.caps.memory == 2 * GIB
    assert spec.workspace.value == "ro"


def test_a_kernelspec_without_config_is_the_default(kernels: Kernels) -> None:
    kernels.add("boxed")
    assert spec_of(load_kernelspec("boxed")) == SandboxSpec()


@pytest.mark.parametrize("name", ["absent", "", "../boxed", "a/b", "-f"])
def test_a_kernelspec_that_is_not_there(name: str, kernels: Kernels) -> None:
    kernels.add("boxed")
    with pytest.raises(SetupError) as caught:
        load_kernelspec(name)
    assert caught.value.message == (
        f"there is no kernelspec named {name!r}: the caps and mounts of the sandbox are read from "
        "it; remedy: install sandbox-kernel in an environment that the front end sees"
    )


def test_a_kernelspec_of_another_provisioner(kernels: Kernels) -> None:
    path = kernels.add("plain", **provisioner("local-provisioner"))
    with pytest.raises(SetupError) as caught:
        load_kernelspec("plain")
    assert caught.value.message == (
        f"the kernelspec 'plain' is not a sandbox ({path}): its provisioner is 'local-provisioner'"
    )


@pytest.mark.parametrize("other", [None, "", "sandbox-provisioner2"])
def test_a_kernelspec_of_a_provisioner_that_is_not_there(
    other: str | None, kernels: Kernels
) -> None:
    """jupyter_client lists none of these; whoever finds it, it is no sandbox."""
    kernels.add("plain", **provisioner(other))
    with pytest.raises(SetupError, match="'plain'"):
        load_kernelspec("plain")


def test_an_ordinary_kernelspec(kernels: Kernels) -> None:
    kernels.add("plain", metadata={})
    with pytest.raises(SetupError, match=r"'plain' is not a sandbox .*: its provisioner is None$"):
        load_kernelspec("plain")


def test_the_kernelspec_of_ipykernel_is_no_sandbox() -> None:
    with pytest.raises(SetupError):
        load_kernelspec("python3")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"memroy": "2G"}, "memroy = '2G' is not possible: allowed is one of the keys identity, "),
        ({"memory": "2GB"}, "memory = '2GB' is not possible: allowed is a size in bytes "),
        ({"memory": None}, "memory = None is not possible: allowed is a size in bytes "),
    ],
)
def test_a_config_that_cannot_be(config: dict[str, Any], message: str, kernels: Kernels) -> None:
    kernels.add("boxed", **provisioner(**config))
    with pytest.raises(SpecError) as caught:
        spec_of(load_kernelspec("boxed"))
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("config", [None, [], "memory", 5])
def test_a_config_that_is_no_table(config: object, kernels: Kernels) -> None:
    stanza = {"provisioner_name": PROVISIONER, "config": config}
    kernelspec = KernelSpec(metadata={"kernel_provisioner": stanza})
    with pytest.raises(SpecError) as caught:
        spec_of(kernelspec)
    assert caught.value.message == (
        f"kernel_provisioner.config = {config!r} is not possible: allowed is a table"
    )


@pytest.mark.parametrize("place", [{"confg": {"memory": "2G"}}, {"memory": "2G"}, {"caps": None}])
def test_caps_in_another_place_are_not_lost(
    place: dict[str, Any], kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.add("boxed", metadata={"kernel_provisioner": {"provisioner_name": PROVISIONER} | place})
    assert main(["-f", "/nonexistent", "--name", "boxed"]) == 1
    ((key, value),) = place.items()
    assert capsys.readouterr().err == (
        f"sandbox-kernel: kernel_provisioner.{key} = {value!r} is not possible: allowed is a table "
        "with the keys provisioner_name, config\n"
    )


@pytest.mark.parametrize("stanza", ["sandbox-provisioner", [PROVISIONER], 5])
def test_a_provisioner_that_is_no_table(stanza: object) -> None:
    with pytest.raises(SpecError) as caught:
        spec_of(KernelSpec(metadata={"kernel_provisioner": stanza}))
    assert caught.value.message.startswith(f"kernel_provisioner = {stanza!r} is not possible: ")


# -- the connection file -----------------------------------------------------------------------


def test_a_connection_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    info = {"transport": "tcp", "ip": "127.0.0.1", "shell_port": 1, "key": "ä"}
    path.write_text(json.dumps(info, ensure_ascii=False), encoding="utf-8")
    assert read_connection_file(str(path)) == info


def test_a_connection_file_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    with pytest.raises(ChannelError) as caught:
        read_connection_file(str(path))
    assert caught.value.message == (
        f"the connection file cannot be read ({path}): no such file or directory (ENOENT)"
    )


def test_a_connection_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match=r"cannot be read .*: is a directory \(EISDIR\)"):
        read_connection_file(str(tmp_path))


@pytest.mark.parametrize("raw", [b"", b"{", b"{'a': 1}", b"\xff\xfe{", b"{} {}"])
def test_a_connection_file_that_is_not_json(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_bytes(raw)
    with pytest.raises(ChannelError) as caught:
        read_connection_file(str(path))
    assert caught.value.message.startswith(f"the connection file is not JSON ({path}): ")


@pytest.mark.parametrize("raw", ["[]", "null", '"x"', "5"])
def test_a_connection_file_that_is_no_object(raw: str, tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(raw)
    with pytest.raises(ChannelError) as caught:
        read_connection_file(str(path))
    assert caught.value.message == f"the connection file is not an object ({path})"


# -- the command -------------------------------------------------------------------------------


def test_a_failure_is_one_line_and_status_1(
    kernels: Kernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.add("boxed")
    missing = str(tmp_path / "absent.json")
    assert main(["-f", missing, "--name", "boxed"]) == 1
    assert capsys.readouterr().err == (
        f"sandbox-kernel: the connection file cannot be read ({missing}): no such file or "
        "directory (ENOENT)\n"
    )


def test_a_limit_that_is_misspelt_is_found_before_anything_is_read(
    kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    kernels.add("boxed", **provisioner(memroy="2G"))
    assert main(["-f", "/nonexistent", "--name", "boxed"]) == 1
    assert "memroy = '2G' is not possible" in capsys.readouterr().err


def test_without_a_kernelspec_nothing_runs(
    kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-f", "/nonexistent", "--name", "absent"]) == 1
    assert "there is no kernelspec named 'absent'" in capsys.readouterr().err


def test_a_connection_file_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--name", "boxed"])
    assert caught.value.code == 2
    assert "required: -f/--connection-file" in capsys.readouterr().err


def test_a_kernelspec_must_be_named(
    kernels: Kernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No default: its caps would stand in for those of the kernelspec that was meant."""
    kernels.add("sandboxed-python")
    with pytest.raises(SystemExit) as caught:
        main(["-f", str(tmp_path / "absent.json")])
    assert caught.value.code == 2
    assert "required: --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argument",
    [
        "--nam=other",
        "--Name=other",
        "--kernel",
        "--matplotlib=inline",
        "--IPKernelApp",
        "--IPKernelApp.matplotlib",
        "--ipkernel.matplotlib=inline",
        "--memory=2G",
        "--IPKernelApp=x",
        "-x",
        "-IPKernelApp.x=1",
        "--debug=1",
        "--debugx",
        "--debug\n",
        "extra",
        "",
    ],
)
def test_an_option_that_is_none_is_refused(
    argument: str, kernels: Kernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelt ``--name`` would remove every cap."""
    kernels.add("boxed")
    path = tmp_path / "kernel.json"
    path.write_text("{}")
    for arguments in ([argument], ["--IPKernelApp.matplotlib=inline", argument, "--debug"]):
        with pytest.raises(SystemExit) as caught:
            main(["-f", str(path), "--name", "boxed", *arguments])
        assert caught.value.code == 2
        assert f"{argument!r} is neither an option nor a trait" in capsys.readouterr().err


def test_a_cap_on_the_command_line_is_not_lost(kernels: Kernels, tmp_path: Path) -> None:
    """ipykernel inside would ignore the provisioner's trait in silence."""
    kernels.add("boxed")
    path = tmp_path / "kernel.json"
    path.write_text("{}")
    with pytest.raises(SystemExit) as caught:
        main(["-f", str(path), "--name", "boxed", "--SandboxProvisioner.memory=2G"])
    assert caught.value.code == 2


REST = (
    "--debug",
    "--IPKernelApp.matplotlib=inline",
    "--InteractiveShellApp.exec_lines=['a = 1',\n'b = 2']",
    "--Application.log_level=10",
    "--IPKernelApp.InteractiveShell.x=",
)


def test_all_the_rest_is_for_the_kernel(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the kernelspec's variables reach it, but none of the front end's."""
    asked: list[Any] = []

    class Asked(Exception):
        pass

    def ask(request: Any, command: object, environment: object) -> None:
        asked.append(request)
        raise Asked

    monkeypatch.setattr(launch.Sandbox, "launch", ask)
    monkeypatch.setenv("JUPYTER_TOKEN", "secret")
    monkeypatch.chdir(tmp_path)
    kernels.add("boxed")
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps({"key": "k"}))
    with pytest.raises(Asked):
        main(["-f", str(path), *REST[:2], "--name", "boxed", *REST[2:]])
    (sent,) = asked
    assert sent.arguments == REST
    assert sent.connection == {"key": "k"}
    assert sent.cwd == os.getcwd()
    assert sent.environment["SET_BY_KERNELSPEC"] == "1"
    assert "secret" not in sent.environment.values()


# -- the request, which both routes share ------------------------------------------------------


def build(**changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "kernel_id": "0b4f8c1e-77aa-4e0c",
        "connection": {"key": b"bytes", "shell_port": 5},
        "cwd": "/srv",
        "environment": {},
    }
    return request.build_request(SandboxSpec(hide=("/srv/keys",)), **arguments | changes)


def test_a_request_is_plain_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    made = build(cwd="sub", connection_file="kernel.json", arguments=["-x"])
    assert made.connection == {"key": "bytes", "shell_port": 5}
    assert made.cwd == f"{os.getcwd()}/sub"
    assert made.connection_file == f"{os.getcwd()}/kernel.json"
    assert made.arguments == ("-x",)
    assert json.loads(json.dumps(made.to_message()))


@pytest.mark.parametrize("kernel_id", ["", "../..", "a/b", "\n", "x" * 300, "ä"])
def test_no_kernel_id_names_another_cgroup(kernel_id: str) -> None:
    name = build(kernel_id=kernel_id).sandbox_id
    assert name.isascii() and name.isalnum() and len(name) <= 32


def test_jupyters_own_folders_are_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable, name in (
        ("JUPYTER_CONFIG_DIR", "config"),
        ("JUPYTER_DATA_DIR", "data"),
        ("JUPYTER_RUNTIME_DIR", "run"),
    ):
        monkeypatch.setenv(variable, str(tmp_path / name))
    hidden = build().spec.hide
    assert hidden[0] == "/srv/keys"
    assert {str(tmp_path / name) for name in ("config", "data", "run")} <= set(hidden)
