"""The project's own files agree with each other: package, kernelspec, make and its scripts."""

from __future__ import annotations

import ast
import json
import os
import re
import struct
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import sandbox_kernel
from sandbox_kernel.spec import KEYS

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
KERNELSPEC = ROOT / "kernelspec" / "sandboxed-python"
SCRIPTS = (
    ".ci/run",
    "tests/as_user/run",
    "tests/vm/base/configure",
    "tools/checks",
    "tools/copy-tree",
    "tools/install",
    "tools/prerequisites",
    "tools/run",
    "tools/venv",
    "tools/vm/image",
    "tools/vm/prerequisites",
    "tools/vm/run",
)


# -- the package -----------------------------------------------------------------------------------


def test_there_is_one_version() -> None:
    assert metadata.version("sandbox-kernel") == sandbox_kernel.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in changelog
    assert re.search(
        rf"^## \[({re.escape(sandbox_kernel.__version__)}|Unreleased)\]", changelog, re.M
    )


def test_the_provisioner_is_found_by_its_entry_point() -> None:
    (entry,) = (
        point
        for point in metadata.entry_points(group="jupyter_client.kernel_provisioners")
        if point.name == "sandbox-provisioner"
    )
    assert entry.value == "sandbox_kernel.provisioner:SandboxProvisioner"


def test_what_the_code_imports_is_a_dependency() -> None:
    """A package that only the test environment has would be missing at the user's."""
    ours = {"sandbox_kernel", *sys.stdlib_module_names, "setuptools"}
    tops: set[str] = set()
    for path in (ROOT / "sandbox_kernel").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                tops |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                tops.add(node.module.split(".")[0])
    names = {re.split(r"[^A-Za-z0-9_-]", d)[0] for d in PYPROJECT["project"]["dependencies"]}
    known = {"pyzmq": {"zmq"}, "cffi": {"cffi", "_cffi_backend"}, "ipykernel": {"IPython"}}
    allowed = {top for name in names for top in known.get(name, set()) | {name}}
    allowed |= {"ipykernel", "jupyter_core", "tornado"}  # ipykernel and jupyter_client require them
    optional = {"jupyterhub", "jupyter_server", "nbformat"}  # only who configures them needs them
    assert tops - ours - allowed - optional == set()


def test_the_readme_has_a_row_for_every_key() -> None:
    rows = [
        v for v in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if v[:2] == "| "
    ]
    first = [row.split(" | ")[0] for row in rows]
    assert [key for key in KEYS if not any(f"`{key}`" in cell for cell in first)] == []


def test_types_are_announced() -> None:
    assert (ROOT / "sandbox_kernel" / "py.typed").exists()


def test_other_systems_get_a_clear_message() -> None:
    """setup.py is run as on another system."""
    code = (
        "import sys, runpy; sys.platform = 'darwin'; sys.argv = ['setup.py', '--version'];"
        "runpy.run_path('setup.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sandbox-kernel needs Linux: ")
    assert "darwin" in done.stderr


# -- the kernelspec --------------------------------------------------------------------------------


def _spec(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "kernel.json").read_text(encoding="utf-8"))


def test_the_kernelspec_leads_to_a_sandbox_by_both_routes() -> None:
    spec = _spec(KERNELSPEC)
    # -P: the working directory is what kernels write to, and a zmq.py in it would run out here
    argv = ["python", "-P", "-m", "sandbox_kernel.launch", "-f", "{connection_file}"]
    # the caps are read from the kernelspec of that name, which is this folder's
    assert spec["argv"] == [*argv, "--name", KERNELSPEC.name]
    assert KERNELSPEC.name == "sandboxed-python"
    assert set(spec["metadata"]["kernel_provisioner"]) == {"provisioner_name", "config"}
    assert spec["metadata"]["kernel_provisioner"]["provisioner_name"] == "sandbox-provisioner"
    assert spec["display_name"] == "Sandboxed Python"
    assert spec["language"] == "python"
    assert spec["interrupt_mode"] == "signal"
    assert spec["metadata"]["debugger"] is True
    assert spec["metadata"]["supported_encryption"] == ["curve"]


def test_the_kernelspec_is_installed_with_the_package() -> None:
    installed = Path(sys.prefix, "share", "jupyter", "kernels", "sandboxed-python")
    assert {p.name for p in installed.iterdir()} == {p.name for p in KERNELSPEC.iterdir()}
    assert _spec(installed) == _spec(KERNELSPEC)


@pytest.mark.parametrize("size", [32, 64])
def test_the_logos_have_the_sizes_that_front_ends_ask_for(size: int) -> None:
    head = (KERNELSPEC / f"logo-{size}x{size}.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (size, size)


def test_the_drawn_logo_is_well_formed() -> None:
    root = ElementTree.parse(KERNELSPEC / "logo-svg.svg").getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


# -- make, CI and their scripts --------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_stop_at_the_first_error(script: str) -> None:
    path = ROOT / script
    text = path.read_text(encoding="utf-8")
    assert os.access(path, os.X_OK)
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=30)


def test_make_alone_lists_its_targets() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for target in (
        "demo",
        "test",
        "test-browser",
        "test-vm",
        "lint",
        "format",
        "wheel",
        "sdist",
        "clean",
        "bench",
        "caps-table",
    ):
        assert f"make {target} " in done.stdout


def test_dev_requirements_hold_those_of_every_other_extra() -> None:
    def asked(extra: str) -> set[str]:
        command = [sys.executable, str(ROOT / "tools" / "requirements.py"), extra]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return set(done.stdout.split("\n")) - {""}

    for extra in PYPROJECT["project"]["optional-dependencies"]:
        assert asked(extra) <= asked("dev")
        assert not [line for line in asked(extra) if line.startswith("sandbox-kernel")]
    assert set(PYPROJECT["build-system"]["requires"]) <= asked("demo")


# -- skips in CI -----------------------------------------------------------------------------------

_SKIPPING = """
import pytest

def test_runs(): pass

@pytest.mark.skip(reason="because")
def test_skips(): pass

@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""


@pytest.mark.parametrize(
    ("ci", "may_skip", "status", "words"),
    [
        ("", "", 0, "1 skipped"),
        ("true", "", 1, "skipped where nothing may be skipped: Skipped: because"),
        ("true", "because", 0, "1 skipped"),
    ],
)
def test_a_skip_is_a_failure_in_ci(
    tmp_path: Path, ci: str, may_skip: str, status: int, words: str
) -> None:
    for name in ("conftest.py", "probes.py", "traces.py"):
        (tmp_path / name).write_bytes((ROOT / "tests" / name).read_bytes())
    (tmp_path / "test_it.py").write_text(_SKIPPING, encoding="utf-8")
    environment = {
        "PATH": os.defpath,
        "PYTHONPATH": str(tmp_path),
        "CI": ci,
        "SANDBOX_KERNEL_MAY_SKIP": may_skip,
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
    ]
    done = subprocess.run(
        [*command, "--rootdir", str(tmp_path), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stdout
    assert "1 xfailed" in done.stdout
