"""What notebooks take for granted of an ordinary kernel, one thing a test."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import AsyncKernelManager

from ._wire import TIMEOUT, ZmqWire, type_of
from .conftest import REFERENCE, RunningKernel, running_kernel

PNG = b"\x89PNG\r\n\x1a\n"


def value_of(wire: ZmqWire, expression: str) -> str:
    """The ``text/plain`` of an expression in the kernel."""
    (shown,) = wire.execute(expression).ok().of_type("execute_result")
    return str(shown["content"]["data"]["text/plain"])


# -- what the kernel says of itself -----------------------------------------------------------


def test_kernel_info_is_that_of_python3(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    infos = []
    for name in (kernel_name, REFERENCE):
        wire = start_kernel(name).wire
        for channel in ("shell", "control"):
            info = wire.request(channel, "kernel_info_request")["content"]
            info["banner"] = re.sub(r"^Tip: .*$", "Tip: …", info["banner"], flags=re.DOTALL | re.M)
            infos.append(info)
    assert {"debugger", "kernel subshells"} <= set(infos[0]["supported_features"])
    assert all(info == infos[-1] for info in infos), infos


#: What a program may look at to learn how its interpreter was started; a zygote may get it wrong.
STATE = """
import gc, json, locale, logging, multiprocessing, os, signal, sys, time, warnings
print(json.dumps({
    "path": sys.path,
    "flags": repr(sys.flags),
    "prefixes": [sys.executable, sys.prefix, sys.base_prefix],
    "options": [sys.warnoptions, sys.dont_write_bytecode, sys.pycache_prefix],
    "cwd": os.getcwd(),
    "umask": os.umask(0o022),
    "locale": locale.getlocale(),
    "time zone": time.tzname,
    "encodings": [sys.getfilesystemencoding(), locale.getpreferredencoding(), sys.stdout.encoding],
    "signals": {s.name: repr(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)},
    "ignored": [s.name for s in signal.Signals if signal.getsignal(s) == signal.SIG_IGN],
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "log": [[repr(h) for h in logging.root.handlers], logging.root.level],
    "warnings": [repr(f) for f in warnings.filters],
    "limits": [sys.getrecursionlimit(), sys.getswitchinterval(), gc.get_threshold()],
    "main": [__name__, sys.modules["__main__"].__dict__ is globals()],
    "streams": [repr(type(s)) for s in (sys.stdin, sys.stdout, sys.stderr)],
    "processes": [multiprocessing.get_start_method(), multiprocessing.process.ORIGINAL_DIR],
    "home": os.path.expanduser("~"),
    "leader": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
}))
"""


def test_state_of_the_interpreter_is_that_of_python3(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    states = [
        json.loads(start_kernel(name).wire.execute(STATE).ok().text())
        for name in (kernel_name, REFERENCE)
    ]
    assert states[0] == states[1]


#: The shell of a sandboxed kernel is made before its process: what it knows of that may be stale.
SHELL = """
import json, os, sys
from ipykernel.kernelapp import IPKernelApp
def state():
    shell, app = get_ipython(), IPKernelApp.instance()
    history = shell.history_manager
    tools = [shell, *shell.configurables, shell.Completer, shell.display_pub, shell.displayhook]
    return {
        "owner": [shell.parent is app.kernel, shell.kernel is app.kernel, app.shell is shell],
        "main": [sys.modules["__main__"] is shell.user_module, shell.user_ns is globals()],
        "names": sorted(n for n in shell.user_ns if n != "state"),
        "hidden": sorted(shell.user_ns_hidden),
        "folders": [shell.starting_dir, shell.home_dir, [str(d) for d in shell.user_ns["_dh"]]],
        "profile": [shell.profile_dir is app.profile_dir, shell.ipython_dir == app.ipython_dir],
        "history": [history.session_number > 0, history.shell is shell, history.enabled],
        "tools": [type(c).__name__ for c in shell.configurables if c is not app],
        "owners": sorted({type(c.parent).__name__ for c in tools}),
        "loggers": [c.log is app.log for c in tools if hasattr(c, "log")],
        "magics": {k: sorted(set(v) - {"sandbox"}) for k, v in shell.magics_manager.magics.items()},
        "aliases": sorted(a for a, _ in shell.alias_manager.aliases),
        "streams": [type(v).__name__ for v in shell._orig_sys_module_state.values()],
        "hooks": [repr(type(sys.displayhook)), repr(shell.sys_excepthook is sys.excepthook)],
        "prompts": [sys.ps1, sys.ps2, sys.ps3],
        "compiler": type(shell.compile).__name__,
        "environment": {k: os.environ.get(k) for k in
            ("TERM", "CLICOLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PAGER", "GIT_PAGER")},
        "sessions": [t.session is app.session for t in (shell.display_pub, shell.displayhook)],
        "traits": sorted(f"{n}={v!r}" for n, v in shell.trait_values(config=True).items()
            if n not in ("banner1", "ipython_dir")),
        "config": sorted(set(shell.config) - {"HistoryManager"}),
        "completions": shell.complete("get_ipy")[1],
        "temporary": [shell.tempfiles, shell.tempdirs],
    }
print(json.dumps(state()))
"""


def test_state_of_the_shell_is_that_of_python3(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    address = re.compile("0x[0-9a-f]+")
    states = [
        json.loads(address.sub("0x…", start_kernel(name).wire.execute(SHELL).ok().text()))
        for name in (kernel_name, REFERENCE)
    ]
    assert states[0] == states[1]


def test_two_kernels_do_not_draw_the_same_numbers(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    """Seeds that were drawn before a fork would be the same in every kernel."""
    code = "import random, uuid, numpy; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    drawn = [start_kernel(kernel_name).wire.execute(code).ok().text().split() for _ in range(2)]
    assert all(one != other for one, other in zip(*drawn, strict=True)), drawn


def test_history_of_a_range(start_kernel: Callable[[str], RunningKernel], kernel_name: str) -> None:
    wire = start_kernel(kernel_name).wire
    for code in ("one = 1", "two = 2", "three = 3"):
        wire.execute(code).ok()
    asked = {"hist_access_type": "range", "session": 0, "start": 2, "stop": 4}
    options = {"output": False, "raw": True}
    reply = wire.request("shell", "history_request", asked | options)
    assert reply["content"]["history"] == [[0, 2, "two = 2"], [0, 3, "three = 3"]]


def test_heartbeat(kernel: RunningKernel) -> None:
    """A ping comes back as it went."""
    socket = kernel.km.connect_hb()
    try:
        socket.send(b"ping")
        assert socket.poll(round(TIMEOUT * 1000))
        assert socket.recv() == b"ping"
    finally:
        socket.close(linger=0)


# -- questions --------------------------------------------------------------------------------


def test_input(wire: ZmqWire) -> None:
    execution = wire.execute("print(input('first? ') + input('second? '))", ["a", "b"]).ok()
    assert execution.text() == "ab\n"
    assert [m["content"]["prompt"] for m in execution.input_requests] == ["first? ", "second? "]
    assert not any(m["content"]["password"] for m in execution.input_requests)


def test_getpass(wire: ZmqWire) -> None:
    code = "import getpass; print(len(getpass.getpass('secret? ')))"
    execution = wire.execute(code, ["åß∂"]).ok()
    assert execution.text() == "3\n"
    (question,) = execution.input_requests
    assert question["content"] == {"prompt": "secret? ", "password": True}


def test_input_where_nobody_can_answer(wire: ZmqWire) -> None:
    assert wire.execute("input()").content["ename"] == "StdinNotImplementedError"


def test_interrupt_of_a_question(kernel: RunningKernel, wire: ZmqWire) -> None:
    asking = wire.start("input('well? ')", allow_stdin=True)
    wire.wait_for(lambda channel, _: channel == "stdin", "question")
    kernel.km.interrupt_kernel()
    assert wire.finish(asking).content["ename"] == "KeyboardInterrupt"
    assert wire.execute("print(input())", ["again"]).ok().text() == "again\n"


# -- output -----------------------------------------------------------------------------------


def test_display_is_updated(wire: ZmqWire) -> None:
    code = "handle = display('before', display_id=True); handle.update('after')"
    first, second = wire.execute(code).ok().of_type("display_data", "update_display_data")
    assert [type_of(first), type_of(second)] == ["display_data", "update_display_data"]
    assert first["content"]["data"]["text/plain"] == "'before'"
    assert second["content"]["data"]["text/plain"] == "'after'"
    assert first["content"]["transient"] == second["content"]["transient"] != {}


@pytest.mark.parametrize("magic", ["", "%matplotlib inline\n"], ids=["default", "magic"])
def test_figure_is_inline(wire: ZmqWire, magic: str) -> None:
    code = (
        "import matplotlib.pyplot as plt\nplt.figure(figsize=(2, 1)); plt.plot([1, 2])\nplt.show()"
    )
    (figure,) = wire.execute(magic + code).ok().of_type("display_data")
    assert base64.b64decode(figure["content"]["data"]["image/png"]).startswith(PNG)


def test_output_of_children_arrives(wire: ZmqWire) -> None:
    """What is written to descriptor 1 beside Python's own streams; it may come after the reply."""
    running = wire.start("import os; os.system('echo from a child')")
    wire.wait_for_text(running, "from a child\n")
    wire.finish(running).ok()


def test_large_output_is_whole(wire: ZmqWire) -> None:
    text = wire.execute("for n in range(20_000): print(n)").ok().text()
    assert text == "".join(f"{n}\n" for n in range(20_000))


def test_binary_buffers_travel_both_ways(wire: ZmqWire) -> None:
    """A comm whose messages carry bytes, as those of pictures and arrays do."""
    code = """
from comm import create_comm
comm = create_comm(target_name="test", data={"n": 1}, buffers=[b"\\x00\\xff" * 1000])
comm.on_msg(lambda msg: print(bytes(msg["buffers"][0]), msg["content"]["data"]))
"""
    (opened,) = wire.execute(code).ok().of_type("comm_open")
    assert [bytes(b) for b in opened["buffers"]] == [b"\x00\xff" * 1000]
    session = wire.client.session
    content = {"comm_id": opened["content"]["comm_id"], "data": {"n": 2}}
    sent = session.send(
        wire.client.shell_channel.socket, "comm_msg", content, buffers=[b"\x00\x01"]
    )
    wire.wait_for_text(sent["header"]["msg_id"], "b'\\x00\\x01' {'n': 2}")


def test_browser_moves_a_slider(wire: ZmqWire) -> None:
    code = """
import ipywidgets as widgets
slider = widgets.IntSlider(value=3, max=10)
slider.observe(lambda change: print("moved to", change.new), names="value")
display(slider)
"""
    execution = wire.execute(code).ok()
    (view,) = execution.of_type("display_data")
    model = view["content"]["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert model in [m["content"]["comm_id"] for m in execution.of_type("comm_open")]
    data = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
    moved = wire.send("shell", "comm_msg", {"comm_id": model, "data": data})
    wire.wait_for_text(moved, "moved to 8")
    assert value_of(wire, "slider.value") == "8"
    infos = wire.request("shell", "comm_info_request", {"target_name": "jupyter.widget"})
    assert model in infos["content"]["comms"]


# -- programs and processes -------------------------------------------------------------------


def test_command(wire: ZmqWire) -> None:
    assert wire.execute("!echo $((6 * 7))").ok().text().split() == ["42"]
    assert value_of(wire, "lines = !printf 'a\\nb\\n'\nlines.n") == "'a\\nb'"
    assert value_of(wire, "!exit 3\n_exit_code") == "3"


def test_bash_cell(wire: ZmqWire) -> None:
    execution = wire.execute("%%bash\necho out; echo err >&2").ok()
    assert (execution.text(), execution.text("stderr")) == ("out\n", "err\n")


def test_bash_cell_that_fails(wire: ZmqWire) -> None:
    assert wire.execute("%%bash\nexit 3").content["ename"] == "CalledProcessError"


def test_interpreter_runs_again(wire: ZmqWire) -> None:
    """sys.executable is an interpreter with the same packages."""
    code = """
import subprocess, sys, numpy
program = "import sys, numpy; print(sys.prefix, numpy.__file__)"
found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
found.stdout.split() == [sys.prefix, numpy.__file__]
"""
    assert value_of(wire, code) == "True"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(wire: ZmqWire, method: str) -> None:
    """Workers import a module that lies in the workspace; /dev/shm carries their semaphores."""
    module = f"squares_{method}"
    wire.execute(f"%%writefile {module}.py\ndef square(n):\n    return n * n\n").ok()
    code = f"""
import multiprocessing, {module}
context = multiprocessing.get_context("{method}")
with context.Pool(2) as pool:
    squares = pool.map({module}.square, range(5))
squares
"""
    assert value_of(wire, code) == "[0, 1, 4, 9, 16]"


def test_shared_memory(wire: ZmqWire) -> None:
    code = """
from multiprocessing import shared_memory
block = shared_memory.SharedMemory(create=True, size=10)
other = shared_memory.SharedMemory(name=block.name)
block.buf[:3] = b"abc"
seen = bytes(other.buf[:3])
other.close(); block.close(); block.unlink()
seen
"""
    assert value_of(wire, code) == "b'abc'"


def test_top_level_await(wire: ZmqWire) -> None:
    assert value_of(wire, "import asyncio\nawait asyncio.sleep(0, 'slept')") == "'slept'"


def test_task_goes_on_after_its_cell(wire: ZmqWire) -> None:
    code = """
import asyncio
gone = asyncio.Event()
async def later():
    await gone.wait()
    return "later"
task = asyncio.create_task(later())
"""
    wire.execute(code).ok()
    assert value_of(wire, "gone.set()\nawait task") == "'later'"


def test_loopback_device_works(wire: ZmqWire) -> None:
    """A server and a client inside one kernel, as dask and others have them."""
    code = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    with socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"hello")
            received = peer.recv(5)
received
"""
    assert value_of(wire, code) == "b'hello'"


def test_files_in_the_workspace(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str, tmp_path: Path
) -> None:
    """What the kernel writes is on the host, and the other way round."""
    (tmp_path / "given.txt").write_text("given")
    wire = start_kernel(kernel_name).wire
    wire.execute("from pathlib import Path; Path('made.txt').write_text('made')").ok()
    assert (tmp_path / "made.txt").read_text() == "made"
    assert value_of(wire, "Path('given.txt').read_text()") == "'given'"
    assert value_of(wire, "str(Path.cwd())") == repr(str(tmp_path))


# -- subshells --------------------------------------------------------------------------------


def test_subshell_runs_while_the_main_shell_is_busy(wire: ZmqWire) -> None:
    """The main shell waits for an event that only the subshell sets."""
    created = wire.request("control", "create_subshell_request")["content"]
    subshell = created["subshell_id"]
    listed = wire.request("control", "list_subshell_request")["content"]["subshell_id"]
    assert listed == [subshell]

    wire.execute("import threading; event = threading.Event()").ok()
    waiting = wire.start(f"print('waiting'); event.wait({TIMEOUT})")
    wire.wait_for_text(waiting, "waiting")
    wire.finish(wire.start("event.set()", subshell=subshell)).ok()
    (shown,) = wire.finish(waiting).ok().of_type("execute_result")
    assert shown["content"]["data"]["text/plain"] == "True"

    wire.request("control", "delete_subshell_request", {"subshell_id": subshell})
    assert wire.request("control", "list_subshell_request")["content"]["subshell_id"] == []


# -- interrupts -------------------------------------------------------------------------------


def test_interrupt_of_sleep(kernel: RunningKernel, wire: ZmqWire) -> None:
    running = wire.start("import time\nprint('asleep')\ntime.sleep(600)")
    wire.wait_for_text(running, "asleep")
    kernel.km.interrupt_kernel()
    assert wire.finish(running).content["ename"] == "KeyboardInterrupt"


def test_interrupt_by_message(wire: ZmqWire) -> None:
    """``interrupt_mode: message``: not with a signal but on the control channel."""
    running = wire.start("print('running')\nwhile True: pass")
    wire.wait_for_text(running, "running")
    assert wire.request("control", "interrupt_request")["content"] == {"status": "ok"}
    assert wire.finish(running).content["ename"] == "KeyboardInterrupt"


def test_interrupt_of_a_command(kernel: RunningKernel, wire: ZmqWire) -> None:
    """The command ends, and the kernel is free again; no child of the kernel is left."""
    running = wire.start("!echo asleep; sleep 600")
    wire.wait_for_text(running, "asleep")
    kernel.km.interrupt_kernel()
    execution = wire.finish(running)
    assert execution.status == "ok", "IPython passes the interrupt on to the command"
    children = (
        "import psutil; [c.name() for c in psutil.Process().children() if c.name() == 'sleep']"
    )
    assert value_of(wire, children) == "[]"


def test_interrupt_of_a_bash_cell(kernel: RunningKernel, wire: ZmqWire) -> None:
    running = wire.start("%%bash\necho asleep\nsleep 600")
    wire.wait_for_text(running, "asleep")
    kernel.km.interrupt_kernel()
    wire.finish(running)
    assert value_of(wire, "1 + 1") == "2"


def test_interrupt_aborts_the_queue(kernel: RunningKernel, wire: ZmqWire) -> None:
    """Cells that wait behind an interrupted one are not executed."""
    running = wire.start("print('running')\nwhile True: pass")
    wire.wait_for_text(running, "running")
    queued = wire.start("ran = True")
    kernel.km.interrupt_kernel()
    assert wire.finish(running).content["ename"] == "KeyboardInterrupt"
    assert wire.reply_to(queued)["content"]["status"] == "aborted"


# -- life cycle -------------------------------------------------------------------------------


def test_restart_and_shutdown(kernel_name: str, tmp_path: Path) -> None:
    """A client stays connected over a restart."""
    with running_kernel(kernel_name, tmp_path) as running:
        running.wire.execute("kept = 1").ok()
        running.km.restart_kernel()
        running.wire.wait_until_subscribed()
        assert running.wire.execute("kept").content["ename"] == "NameError"
        assert value_of(running.wire, "import os; os.getcwd()") == repr(str(tmp_path))


def test_restart_now_of_a_busy_kernel(kernel_name: str, tmp_path: Path) -> None:
    with running_kernel(kernel_name, tmp_path) as running:
        busy = running.wire.start("print('running')\nwhile True: pass")
        running.wire.wait_for_text(busy, "running")
        running.km.restart_kernel(now=True)
        running.wire.wait_until_subscribed()
        assert value_of(running.wire, "1 + 1") == "2"


def test_quit_asks_the_front_end(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    """``quit`` tells the front end to end the kernel, and the kernel can then be ended."""
    (payload,) = start_kernel(kernel_name).wire.execute("quit").ok().content["payload"]
    assert payload == {"source": "ask_exit", "keepkernel": False}


def test_two_managers_at_once(kernel_name: str, tmp_path: Path) -> None:
    with (
        running_kernel(kernel_name, tmp_path) as first,
        running_kernel(kernel_name, tmp_path) as second,
    ):
        first.wire.execute("mine = 1").ok()
        assert value_of(second.wire, "'mine' in globals()") == "False"


def test_second_client_sees_what_the_first_one_does(kernel: RunningKernel, wire: ZmqWire) -> None:
    other = ZmqWire.open(kernel.km.connection_file)
    try:
        running = wire.start("print('to all')")
        other.wait_for_text(running, "to all")
        wire.finish(running).ok()
    finally:
        other.close()


def test_answer_to_one_client_does_not_go_to_the_other(
    kernel: RunningKernel, wire: ZmqWire
) -> None:
    """Both ask at once: replies and questions find the way home."""
    other = ZmqWire.open(kernel.km.connection_file)
    try:
        mine = wire.start("print(input('one? '))", allow_stdin=True)
        question = wire.wait_for(lambda channel, _: channel == "stdin", "question")
        wire.backlog.insert(0, question)
        theirs = other.start("print(input('two? '))", allow_stdin=True)
        assert wire.finish(mine, ["1"]).ok().text() == "1\n"
        execution = other.finish(theirs, ["2"]).ok()
        assert execution.text() == "2\n"
        assert [m["content"]["prompt"] for m in execution.input_requests] == ["two? "]
        assert not [m for _, m in wire.backlog if type_of(m).endswith("_reply")]
    finally:
        other.close()


def test_async_manager(kernel_name: str, tmp_path: Path) -> None:
    """What nbclient and jupyter_server use: start, execute, restart, shutdown, all awaited."""
    asyncio.run(_drive_async_manager(kernel_name, tmp_path))


async def _drive_async_manager(kernel_name: str, workspace: Path) -> None:
    km = AsyncKernelManager(kernel_name=kernel_name)
    await km.start_kernel(cwd=str(workspace))
    try:
        client = km.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=TIMEOUT)
            assert await _evaluate(client, "6 * 7", after="kept = 1") == "42"
            await km.restart_kernel()
            await client.wait_for_ready(timeout=TIMEOUT)
            assert await _evaluate(client, "'kept' in globals()") == "False"
        finally:
            client.stop_channels()
        assert await km.is_alive()
    finally:
        await km.shutdown_kernel()
    assert not await km.is_alive()
    assert not Path(km.connection_file).exists()


async def _evaluate(client: Any, expression: str, after: str = "") -> str:
    reply = await client.execute(
        after, user_expressions={"asked": expression}, reply=True, timeout=TIMEOUT
    )
    return str(reply["content"]["user_expressions"]["asked"]["data"]["text/plain"])


@pytest.mark.parametrize("death", ["os._exit(1)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_manager_learns_of_a_death(kernel_name: str, tmp_path: Path, death: str) -> None:
    """The wait returns, and a shutdown of what is dead already does not complain."""
    assert asyncio.run(_die(kernel_name, tmp_path, death)) != 0


async def _die(kernel_name: str, workspace: Path, death: str) -> int | None:
    """Start a kernel, have it end itself, and return what the provisioner says of its end."""
    km = AsyncKernelManager(kernel_name=kernel_name)
    await km.start_kernel(cwd=str(workspace))
    try:
        client = km.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=TIMEOUT)
            client.execute(f"import os\n{death}")
            assert km.provisioner is not None
            code = await asyncio.wait_for(km.provisioner.wait(), TIMEOUT)
        finally:
            client.stop_channels()
        assert not await km.is_alive()
    finally:
        await km.shutdown_kernel()
    assert not Path(km.connection_file).exists()
    return code
