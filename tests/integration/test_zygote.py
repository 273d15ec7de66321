"""What kernels that were forked from one launcher do not share, and what a cold one shares not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from integration.cells import begin, finish
from integration.remains import Ground, end_of, kernel_pid, provisioner_of, standing
from integration.sandboxes import connected, inside, manager, run_cell, started, value

from sandbox_kernel.errors import KernelStartError, SpecError

COLD = {"zygote": False}


def draws() -> list[Any]:
    """Run inside: something of every source of chance."""
    import os
    import random
    import secrets
    import ssl
    import tempfile
    import uuid

    import IPython
    import numpy as np

    handle, name = tempfile.mkstemp()
    os.close(handle)
    return [
        random.random(),
        random.SystemRandom().random(),
        secrets.token_hex(),
        ssl.RAND_bytes(16).hex(),
        os.path.basename(name),
        tempfile.mktemp(),
        str(uuid.uuid1()),
        str(uuid.uuid4()),
        np.random.random(),
        np.random.default_rng().random(),
        IPython.get_ipython().kernel.session.session,
        __import__("multiprocessing").current_process().authkey.hex(),
    ]


@pytest.mark.parametrize("config", [{}, {"preload": ["numpy"]}, COLD], ids=str)
def test_two_kernels_share_no_chance(here: Ground, config: dict[str, Any]) -> None:
    with started(here.folder, config) as (_, one), started(here.folder, config) as (_, other):
        found = zip(inside(one, draws), inside(other, draws), strict=True)
        assert [first for first, second in found if first == second] == []


def layout() -> list[int]:
    """Run inside: where things lie, and what a string hashes to."""
    with open("/proc/self/maps") as file:
        maps = file.read().splitlines()
    places = {}
    for line in maps:
        fields = line.split(maxsplit=5)
        if len(fields) == 6:
            places.setdefault(fields[5], int(fields[0].split("-")[0], 16))
    libc = next(where for name, where in places.items() if "libc.so" in name)
    return [libc, places["[stack]"], places["[heap]"], hash("sandbox")]


def test_kernels_of_a_zygote_have_one_layout_and_cold_ones_their_own(here: Ground) -> None:
    """What SECURITY.md says of both."""
    seen = {}
    for name, config in (("zygote", {}), ("cold", COLD)):
        with started(here.folder, config) as (_, one), started(here.folder, config) as (_, other):
            seen[name] = [inside(one, layout), inside(other, layout)]
    assert seen["zygote"][0] == seen["zygote"][1]
    assert all(a != b for a, b in zip(*seen["cold"], strict=True))


# -- cold ------------------------------------------------------------------------------------------


def test_a_cold_kernel_is_a_new_program_with_the_same_walls(here: Ground) -> None:
    with started(here.folder) as (warm, _), started(here.folder, COLD) as (cold, client):
        assert value(client, "__import__('os').getpid()") == 2
        assert "sandbox_kernel.kernel" in value(client, "open('/proc/self/cmdline').read()")
        assert value(client, "__import__('sys').path[0]") != str(here.work)
        assert standing(warm) == standing(cold)
        assert not provisioner_of(cold).observed_walls().missing()


def test_nothing_in_the_workspace_stands_in_for_what_is_installed(here: Ground) -> None:
    for name in ("json", "zmq", "sandbox_kernel", "ipykernel"):
        (here.work / f"{name}.py").write_text("raise SystemExit(7)")
    with started(here.folder, COLD, cwd=here.work) as (_, client):
        assert value(client, "1 + 1") == 2


def test_a_cold_kernel_is_interrupted(here: Ground) -> None:
    with started(here.folder, COLD) as (km, client):
        cell = begin(client, "while True: pass")
        km.interrupt_kernel()
        assert finish(client, cell).ename == "KeyboardInterrupt"


def test_a_cold_kernel_that_is_killed(here: Ground) -> None:
    with started(here.folder, COLD) as (km, client):
        client.execute("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
        assert "SIGSEGV" in end_of(km).reason
    with started(here.folder, COLD) as (km, _):
        os.kill(kernel_pid(km), signal.SIGKILL)
        assert "SIGKILL" in end_of(km).reason


def test_a_cold_kernel_that_cannot_be_imported_says_so(here: Ground) -> None:
    """Without the interpreter's own site, as where the package is not visible inside."""
    km = manager(here.folder, COLD, fields={"env": {"PYTHONHOME": "/nowhere"}})
    with pytest.raises(KernelStartError, match="did not come up"):
        km.start_kernel(cwd=str(here.work))


# -- preload ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, COLD], ids=str)
def test_a_kernel_with_arguments_has_a_shell_of_its_own(
    here: Ground, config: dict[str, Any]
) -> None:
    """The one that the launcher made for all does not know them."""
    km = manager(here.folder, config)
    km.start_kernel(cwd=str(here.work), extra_arguments=["--InteractiveShell.colors=nocolor"])
    with connected(km) as client:
        assert value(client, "get_ipython().colors") == "nocolor"
    km.shutdown_kernel(now=True)


def test_what_the_launcher_makes_for_all_lies_nowhere(here: Ground) -> None:
    def own() -> set[str]:
        found = [*os.scandir("/"), *os.scandir("/tmp"), *os.scandir(Path.home())]
        mine = [e for e in found if e.stat(follow_symlinks=False).st_uid == os.getuid()]
        return {entry.path for entry in mine}

    before = own()
    with started(here.folder, {"preload": ["colorsys"]}):  # a launcher of its own
        assert own() == before


def test_a_module_is_there_before_the_first_cell(here: Ground) -> None:
    there = "'numpy' in __import__('sys').modules"
    with started(here.folder, {"preload": ["numpy", "json.tool"]}) as (_, client):
        assert value(client, there)
        cell = run_cell(client, "import numpy; numpy.ones((300, 300)) @ numpy.ones((300, 300))")
        assert cell.ok
    with started(here.folder) as (_, client):
        assert not value(client, there)


def test_a_module_that_is_not_there_stops_the_start(here: Ground) -> None:
    km = manager(here.folder, {"preload": ["no_such_module"]})
    with pytest.raises(KernelStartError) as caught:
        km.start_kernel(cwd=str(here.work))
    assert "no_such_module cannot be preloaded" in caught.value.message
    assert "ModuleNotFoundError" in caught.value.message


def test_preload_is_for_a_zygote(here: Ground) -> None:
    with pytest.raises(SpecError, match="zygote"):
        manager(here.folder, COLD | {"preload": ["numpy"]}).start_kernel(cwd=str(here.work))
