"""An ordinary ipykernel behind the proxy, Jupyter's own clients before it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from integration.proxies import (
    KINDS,
    TIMEOUT,
    KernelProcess,
    Message,
    ProxyProcess,
    client_of,
    front_info,
    kernel_process,
    load,
    nothing_on,
    proxy_process,
    published,
    reply_to,
    run,
    text,
    welcomed,
)
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.channels import HBChannel


@dataclass
class Stand:
    kernel: KernelProcess
    proxy: ProxyProcess
    stack: ExitStack

    def client(self) -> BlockingKernelClient:
        """A client that was welcomed, closed with the test."""
        client = self.stack.enter_context(client_of(self.proxy.info))
        welcomed(client)
        return client


def _stand(kind: str, folder: Path, *, connect: bool = True, **limits: int) -> Iterator[Stand]:
    front = front_info(kind, folder)
    with ExitStack() as stack:
        kernel = stack.enter_context(kernel_process(folder, front.key))
        proxy = stack.enter_context(proxy_process(front, kernel.info, **limits))
        if connect:
            proxy.do("connect")
        yield Stand(kernel, proxy, stack)


@pytest.fixture(params=KINDS)
def any_kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stand]:
    yield from _stand(request.param, tmp_path)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    yield from _stand("ipc", tmp_path)


@pytest.fixture
def unconnected(tmp_path: Path) -> Iterator[Stand]:
    yield from _stand("ipc", tmp_path, connect=False)


def test_output_that_is_too_large_for_one_message_is_said_to_be_lost(tmp_path: Path) -> None:
    """A kernel that is not asked to flush sends all that a cell has printed as one."""
    for stand in _stand("ipc", tmp_path, max_frame_bytes=2**20):
        client = stand.client()
        reply, output = run(client, "print('x' * 2_000_000)")
        assert "[sandbox] output was lost: a message of more than 1048576 bytes\n" in text(output)
        assert reply["status"] == "ok"
        assert text(run(client, "print('next')")[1]) == "next\n"


# -- every transport ----------------------------------------------------------------------------


def test_a_cell_and_a_question_on_every_transport(any_kind: Stand) -> None:
    client = any_kind.client()
    reply, messages = run(client, "print('hello')\n6 * 7")
    assert reply["status"] == "ok"
    assert text(messages) == "hello\n"
    assert [m["content"]["data"]["text/plain"] for m in messages if "data" in m["content"]] == [
        "42"
    ]
    msg_id = client.execute("name = input('who? ')\nprint('it is', name)", allow_stdin=True)
    asked = client.get_stdin_msg(timeout=TIMEOUT)
    assert asked["content"]["prompt"] == "who? "
    client.input("me")
    assert reply_to(client, msg_id)["content"]["status"] == "ok"
    assert text(published(client, msg_id)) == "it is me\n"
    state = any_kind.proxy.do("state")
    assert state == {"log": [], "dropped": {}, "pending": 0}


def test_a_client_without_the_curve_key_gets_nothing(tmp_path: Path) -> None:
    for stand in _stand("ipc+curve", tmp_path):
        data = stand.proxy.info.to_dict()
        del data["curve_publickey"], data["curve_secretkey"]
        plain = type(stand.proxy.info).from_dict(data)
        other = stand.client()
        with client_of(plain) as client:
            client.shell_channel.socket.sndtimeo = 100
            with suppress(zmq.Again):  # it has been turned away already, and would wait for ever
                client.kernel_info()
            assert run(other, "1")[0]["status"] == "ok"  # the proxy had its time
            assert nothing_on(client, "shell") and nothing_on(client, "iopub")


def test_ipc_files_go_with_the_proxy(tmp_path: Path) -> None:
    for stand in _stand("ipc", tmp_path):
        assert len(list(tmp_path.glob("k-*"))) == 5
        stand.proxy.do("close")
        assert list(tmp_path.glob("k-*")) == []


# -- what kernels do ----------------------------------------------------------------------------


def test_an_error_is_the_kernels_own(stand: Stand) -> None:
    reply, messages = run(stand.client(), "1 / 0")
    assert (reply["status"], reply["ename"]) == ("error", "ZeroDivisionError")
    assert [m["content"]["ename"] for m in messages if m["msg_type"] == "error"] == [
        "ZeroDivisionError"
    ]


def test_big_output(stand: Stand) -> None:
    reply, messages = run(stand.client(), "print('x' * 20_000_000)")
    assert reply["status"] == "ok"
    assert len(text(messages)) == 20_000_001


def test_comms_carry_buffers_both_ways(stand: Stand) -> None:
    client = stand.client()
    reply, _ = run(
        client,
        "from ipykernel.comm import Comm\n"
        "def opened(comm, message):\n"
        "    comm.send({'n': len(message['buffers'][0])}, buffers=[bytes(3_000_000), b'end'])\n"
        "get_ipython().kernel.comm_manager.register_target('echo', opened)",
    )
    assert reply["status"] == "ok"
    message = client.session.msg("comm_open", {"comm_id": "c", "target_name": "echo", "data": {}})
    client.session.send(client.shell_channel.socket, message, buffers=[bytes(2_000_000)])
    while (answer := client.get_iopub_msg(timeout=TIMEOUT))["msg_type"] != "comm_msg":
        pass
    assert answer["content"]["data"] == {"n": 2_000_000}
    assert [bytes(b) for b in answer["buffers"]] == [bytes(3_000_000), b"end"]


def test_control_passes_while_a_cell_runs(stand: Stand) -> None:
    client = stand.client()
    msg_id = client.execute("print('in', flush=True)\nimport time\ntime.sleep(600)")
    while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
        pass
    debug = client.session.msg(
        "debug_request", {"type": "request", "seq": 1, "command": "debugInfo"}
    )
    client.control_channel.send(debug)
    answer = reply_to(client, debug["header"]["msg_id"], "control")
    assert answer["content"]["command"] == "debugInfo"
    client.control_channel.send(client.session.msg("interrupt_request", {}))
    assert reply_to(client, msg_id)["content"]["ename"] == "KeyboardInterrupt"


def test_two_clients_each_with_its_own_stdin(stand: Stand) -> None:
    one, two = stand.client(), stand.client()
    code = "print('for', input('{}? '))"
    ids = [one.execute(code.format("one"), allow_stdin=True)]
    assert one.get_stdin_msg(timeout=TIMEOUT)["content"]["prompt"] == "one? "
    ids.append(two.execute(code.format("two"), allow_stdin=True))
    assert nothing_on(two, "stdin")
    one.input("1")
    assert reply_to(one, ids[0])["content"]["status"] == "ok"
    assert two.get_stdin_msg(timeout=TIMEOUT)["content"]["prompt"] == "two? "
    two.input("2")
    assert reply_to(two, ids[1])["content"]["status"] == "ok"
    for client in (one, two):
        assert text(published(client, ids[0])) == "for 1\n"
        assert text(published(client, ids[1])) == "for 2\n"
    assert nothing_on(one, "shell") and nothing_on(two, "shell")


# -- welcomes -----------------------------------------------------------------------------------


def test_every_client_is_welcomed_once(stand: Stand) -> None:
    first = stand.client()
    run(first, "1")
    late = stand.stack.enter_context(client_of(stand.proxy.info))
    welcome = welcomed(late)
    assert welcome["content"] == {"subscription": ""}
    assert welcome["parent_header"] == {}
    msg_id = late.execute("2")
    types = [m["msg_type"] for m in published(late, msg_id)]
    assert types[0] == "status" and "iopub_welcome" not in types
    seen: list[str] = []
    while not is_idle_of(first, seen, msg_id):
        pass
    assert seen.count("iopub_welcome") == 1, "it sees the late client's, as from a kernel"


def is_idle_of(client: BlockingKernelClient, seen: list[str], msg_id: str) -> bool:
    """Note the type of the next message; is it the idle of ``msg_id``?"""
    message: Message = client.get_iopub_msg(timeout=TIMEOUT)
    seen.append(message["msg_type"])
    state = message["content"].get("execution_state")
    return bool(message["parent_header"].get("msg_id") == msg_id and state == "idle")


def test_requests_and_subscriptions_wait_for_the_kernel(unconnected: Stand) -> None:
    client = unconnected.stack.enter_context(client_of(unconnected.proxy.info))
    msg_id = client.execute("print('early')")
    unconnected.proxy.do("connect")
    assert reply_to(client, msg_id)["content"]["status"] == "ok"
    while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "iopub_welcome":
        pass


# -- heartbeat ----------------------------------------------------------------------------------


class Pulse(HBChannel):
    """Jupyter's heartbeat, which tells when it is missed."""

    time_to_dead = 0.5

    def listen(self) -> None:
        self.missed = threading.Event()

    def call_handlers(self, since_last_heartbeat: float) -> None:
        self.missed.set()


def test_the_heartbeat_is_the_kernels(stand: Stand) -> None:
    client = BlockingKernelClient()
    client.hb_channel_class = Pulse
    load(client, stand.proxy.info)
    pulse = client.hb_channel
    pulse.listen()
    client.start_channels(shell=False, iopub=False, stdin=False, control=False)
    try:
        pulse.unpause()
        assert not pulse.missed.wait(2)
        assert pulse.is_beating()
        os.kill(stand.kernel.process.pid, signal.SIGSTOP)
        assert pulse.missed.wait(TIMEOUT)
        assert not pulse.is_beating()
    finally:
        os.kill(stand.kernel.process.pid, signal.SIGCONT)
        client.stop_channels()
        client.context.destroy(linger=0)


# -- the kernel's end ---------------------------------------------------------------------------


def test_a_dead_kernels_requests_are_finished(stand: Stand) -> None:
    client, other = stand.client(), stand.client()
    running = client.execute("print('last words', flush=True)\nimport time\ntime.sleep(600)")
    while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
        pass
    queued = client.execute("2")
    client.control_channel.send(question := client.session.msg("usage_request", {}))
    reply_to(client, question["header"]["msg_id"], "control")
    stand.kernel.process.kill()
    stand.kernel.process.wait()
    state = stand.proxy.do("fail", ename="MemoryCapExceeded", evalue="512 MiB, peak 511 MiB")
    assert state["pending"] == 0

    for msg_id in (running, queued):
        reply = reply_to(client, msg_id)
        assert reply["msg_type"] == "execute_reply"
        content = reply["content"]
        assert (content["status"], content["ename"]) == ("error", "MemoryCapExceeded")
        assert content["evalue"] == "512 MiB, peak 511 MiB"
        assert content["traceback"] == ["line 1", "line 2"]
    errors = [m for m in published(client, running) if m["msg_type"] == "error"]
    assert [e["content"]["evalue"] for e in errors] == ["512 MiB, peak 511 MiB"]
    assert not [m for m in published(client, queued) if m["msg_type"] == "error"]
    assert nothing_on(other, "shell") and nothing_on(other, "control")


def test_after_its_end_every_request_is_answered(stand: Stand) -> None:
    client = stand.client()
    stand.kernel.process.kill()
    stand.kernel.process.wait()
    stand.proxy.do("fail", ename="KernelCrashed", evalue="SIGSEGV")
    for _ in range(2):
        reply, messages = run(client, "1")
        assert (reply["status"], reply["ename"]) == ("error", "KernelCrashed")
        assert [m["msg_type"] for m in messages] == ["error", "status"]


def test_requests_before_the_connection_are_finished_too(unconnected: Stand) -> None:
    client = unconnected.stack.enter_context(client_of(unconnected.proxy.info))
    cell = client.execute("1")
    info = client.kernel_info()
    answers: dict[str, Message] = {}
    while len(answers) < 2:  # when the requests arrive is libzmq's affair; nothing dispatches here
        unconnected.proxy.do("fail", ename="KernelStartError", evalue="no")
        if client.shell_channel.msg_ready():
            message = client.get_shell_msg(timeout=TIMEOUT)
            answers[message["parent_header"]["msg_id"]] = message
    assert answers[cell]["content"]["ename"] == "KernelStartError"
    assert answers[info]["msg_type"] == "kernel_info_reply"
    assert answers[info]["content"]["status"] == "error"
