"""What client, launcher and supervisor say to each other: there and back, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from signal import NSIG
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine import messages
from sandbox_kernel.engine.cgroups import CgroupUsage, IoUsage, Pressure
from sandbox_kernel.errors import KernelStartError, MountError, ProtocolError, SpecError
from sandbox_kernel.protocol import (
    VERSION,
    Accepted,
    Done,
    Exited,
    Failed,
    FromClient,
    FromSupervisor,
    GetUsage,
    Kill,
    LaunchRequest,
    Notice,
    Pause,
    Refused,
    Resume,
    Signal,
    Start,
    Started,
    Update,
    Usage,
    parse_from_client,
    parse_from_supervisor,
)
from sandbox_kernel.spec import SandboxSpec, parse_spec

CONNECTION: Final = {"transport": "ipc", "ip": "/run/x/k", "shell_port": 1, "key": "SECRET"}
REQUEST: Final = LaunchRequest(
    sandbox_id="0b4f8c1e",
    spec=parse_spec({"memory": "2G", "mounts": [{"source": "/srv"}], "env_pass": ["A"]}),
    connection=CONNECTION,
    cwd="/home/alice/ü\udc80",
    environment={"LANG": "C.UTF-8", "A": "\udcff TOKEN"},
    connection_file="/run/kernel.json",
    arguments=("--IPKernelApp.matplotlib=inline",),
    buses=("unix:path=/run/user/1000/bus",),
    previous=Exited(-9, "the kernel reached its memory cap", "MemoryCapExceeded"),
)
STARTED: Final = Started(10, 11, CONNECTION, ("no swap cap",), 5)


def wire(message: Mapping[str, Any]) -> dict[str, Any]:
    """As it arrives."""
    return messages.decode(json.dumps(message).encode())


# -- there and back ----------------------------------------------------------------------------


def test_a_request() -> None:
    assert LaunchRequest.from_message(wire(REQUEST.to_message())) == REQUEST


def test_a_request_with_as_little_as_can_be() -> None:
    request = LaunchRequest("x", SandboxSpec(), {}, "/", {})
    assert LaunchRequest.from_message(wire(request.to_message())) == request


@pytest.mark.parametrize(
    "message",
    [
        Accepted(10),
        STARTED,
        Started(1, 2, {}),
        Notice("a line"),
        Exited(-9, "the kernel was ended as asked"),
        Exited(0, ""),
        Exited(-9, "the kernel reached its memory cap", "MemoryCapExceeded"),
        Done(0),
        Done(2**63 - 1),
        Usage(7, CgroupUsage()),
        Usage(
            8,
            CgroupUsage(
                memory_current=1, cpu_usec=2, io=(IoUsage("8:0", 1, 2, 3, 4),),
                pressure=(Pressure("cpu", 1, None, 0.5), Pressure("io", 1, 2, 99.0)),
            ),
        ),
    ],
)  # fmt: skip
def test_what_a_supervisor_says(message: FromSupervisor) -> None:
    assert parse_from_supervisor(wire(message.to_message())) == message


@pytest.mark.parametrize(
    "error",
    [
        MountError("fact", cause="cause", remedy="remedy", path="/path"),
        KernelStartError("fact"),
        SpecError("pids", 3, "more"),
    ],
)
def test_a_failure_keeps_its_type_and_its_words(error: MountError) -> None:
    back = parse_from_supervisor(wire(Failed(error).to_message()))
    assert isinstance(back, Failed)
    assert type(back.error) is type(error)
    assert back.error.message == error.message
    refused = parse_from_supervisor(wire(Refused(5, error).to_message()))
    assert isinstance(refused, Refused) and refused.request == 5
    assert type(refused.error) is type(error)
    assert refused.error.message == error.message


ORDERS: Final = (
    Pause(1), Resume(2), Update(3, {"memory": "1G", "user": {"pids": 100}}), GetUsage(4),
)  # fmt: skip


@pytest.mark.parametrize("message", [Signal(1), Signal(2), Signal(64), Kill(), *ORDERS])
def test_what_a_client_says(message: FromClient) -> None:
    assert parse_from_client(wire(message.to_message())) == message


def test_start_says_its_version() -> None:
    assert Start().to_message() == {"type": "start", "version": VERSION}


def test_the_types_are_all_different() -> None:
    said = [REQUEST, Accepted(1), STARTED, Failed(MountError("x")), Notice(""), Exited(0, "")]
    said += [Signal(1), Kill(), *ORDERS, Done(1), Refused(1, MountError("x"))]
    said += [Usage(1, CgroupUsage())]
    types = [m.to_message()["type"] for m in [*said, Start()]]
    assert len(set(types)) == len(types) == 16


# -- no secret in a log ------------------------------------------------------------------------


def test_neither_key_nor_environment_is_in_a_repr() -> None:
    for message in (REQUEST, STARTED):
        assert "SECRET" not in repr(message) and "TOKEN" not in repr(message)


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"version": VERSION + 1}, {"version": None}, {"version": "1"}, {"type": "start"}]
)
def test_a_request_of_another_version_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        LaunchRequest.from_message(REQUEST.to_message() | change)
    assert caught.value.cause == (
        f"this launcher speaks version {VERSION}; two installations are mixed"
    )
    for value in change.values():
        assert repr(value) in caught.value.fact


def test_a_request_with_a_spec_that_cannot_be_is_refused() -> None:
    message = REQUEST.to_message()
    message["spec"]["caps"]["memory"] = 1
    with pytest.raises(SpecError, match=r"^memory = 1 is not possible"):
        LaunchRequest.from_message(message)


@pytest.mark.parametrize("key", sorted(REQUEST.to_message().keys() - {"type", "version"}))
def test_a_request_with_a_key_missing_is_refused(key: str) -> None:
    message = REQUEST.to_message()
    del message[key]
    with pytest.raises((ProtocolError, KeyError)):  # the supervisor makes one of the other
        LaunchRequest.from_message(message)


MALFORMED_FROM_SUPERVISOR: Final[list[dict[str, Any]]] = [
    {},
    {"type": None},
    {"type": "accepted"},
    {"type": "accepted", "supervisor_pid": "many"},
    {"type": "accepted", "supervisor_pid": None},
    {"type": "started"},
    {"type": "failed"},
    {"type": "failed", "error": {"type": "SpecError"}},
    {"type": "notice"},
    {"type": "exited"},
    {"type": "exited", "returncode": "x", "reason": ""},
    {"type": "exited", "returncode": None, "reason": ""},
    {"type": "exited", "returncode": [], "reason": ""},
    {"type": "exited", "returncode": float("nan"), "reason": ""},
    STARTED.to_message() | {"supervisor_pid": "many"},
    STARTED.to_message() | {"init_pid": None},
    STARTED.to_message() | {"connection": 5},
    STARTED.to_message() | {"connection": ["abc"]},
    STARTED.to_message() | {"warnings": 5},
    STARTED.to_message() | {"landlock_abi": {}},
    *({k: v for k, v in STARTED.to_message().items() if k != key} for key in STARTED.to_message()),
]


@pytest.mark.parametrize("message", MALFORMED_FROM_SUPERVISOR, ids=repr)
def test_what_a_supervisor_does_not_say(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse_from_supervisor(message)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"type":"failed","error":null}',
        b'{"type":"failed","error":"text"}',
        b'{"type":"failed","error":[1]}',
        b'{"type":"exited","returncode":1e999,"reason":""}',
        b'{"type":"exited","returncode":Infinity,"reason":""}',
    ],
)
def test_what_a_supervisor_does_not_say_either(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_from_supervisor(messages.decode(raw))


@pytest.mark.parametrize("kind", ["launch", "start", "signal", "kill", "Started", "", "x" * 50])
def test_a_supervisor_says_nothing_that_is_a_clients(kind: str) -> None:
    with pytest.raises(ProtocolError, match=f"the supervisor said {kind!r}, which is not in the"):
        parse_from_supervisor({"type": kind})


@pytest.mark.parametrize("kind", ["launch", "start", "accepted", "started", "exited", "Kill", ""])
def test_a_client_says_nothing_that_is_a_supervisors(kind: str) -> None:
    with pytest.raises(ProtocolError, match=f"the client said {kind!r}, which is not in the"):
        parse_from_client({"type": kind})


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"type": "signal"},
        {"type": "signal", "number": None},
        {"type": "signal", "number": "INT"},
        {"type": "signal", "number": []},
        {"type": "signal", "number": float("nan")},
        # what int() would take and kill(2) would not, or would take for another
        {"type": "signal", "number": 0},
        {"type": "signal", "number": -1},
        {"type": "signal", "number": -9},
        {"type": "signal", "number": NSIG},
        {"type": "signal", "number": 2**31},
        {"type": "signal", "number": 2**200},
        {"type": "signal", "number": "9"},
        {"type": "signal", "number": 9.0},
        {"type": "signal", "number": True},
    ],
    ids=repr,
)
def test_what_a_client_does_not_say(message: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        parse_from_client(message)


def test_every_signal_is_one() -> None:
    for number in range(1, NSIG):
        assert parse_from_client(Signal(number).to_message()) == Signal(number)


@pytest.mark.parametrize("number", [0, -9, NSIG, 9.5, False])
def test_what_is_no_signal_is_said(number: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_from_client({"type": "signal", "number": number})
    assert caught.value.message == f"{number!r} is no signal number"


@pytest.mark.parametrize("kind", ["pause", "resume", "update", "get_usage", "done", "usage"])
@pytest.mark.parametrize("value", [None, -1, 2**63, True, 1.0, "1", [], {}], ids=repr)
def test_the_number_of_a_request_is_one(kind: str, value: object) -> None:
    message = {"type": kind, "request": value, "caps": {}, "usage": {"format": 1}}
    parse = parse_from_supervisor if kind in ("done", "usage") else parse_from_client
    with pytest.raises(ProtocolError) as caught:
        parse(message)
    assert caught.value.message == f"request = {value!r} is no number of a request"
    del message["request"]
    with pytest.raises(ProtocolError, match="request = None is no number"):
        parse(message)


@pytest.mark.parametrize("value", [None, 5, "memory", [], [["memory", 1]], True], ids=repr)
def test_caps_are_a_table(value: object) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_from_client({"type": "update", "request": 1, "caps": value})
    assert caught.value.message == f"caps = {value!r} is no table of caps"


@pytest.mark.parametrize(
    ("usage", "said"),
    [
        ({"format": 2}, "format 2 of a usage is not 1"),
        ({"memory_peak": -1}, "memory_peak = -1 is no count"),
        ({"cpu_usec": 1.5}, "cpu_usec = 1.5 is no count"),
        ({"pids_current": True}, "pids_current = True is no count"),
        ({"io": {}}, "io = {} is no list of tables"),
        ({"io": [5]}, "io = [5] is no list of tables"),
        ({"io": [{}]}, "io[0].device = None is no text"),
        (
            {"io": [{"device": "8:0", "read_bytes": "5"}]},
            "io[0].read_bytes = '5' is no count",
        ),
        ({"pressure": [{"some_percent": "1"}]}, "pressure[0].some_percent = '1' is no number"),
    ],
)
def test_what_is_wrong_in_a_usage_is_named(usage: dict[str, Any], said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse_from_supervisor({"type": "usage", "request": 1, "usage": {"format": 1} | usage})
    assert caught.value.message == said


def test_a_signal_without_end() -> None:
    with pytest.raises(ProtocolError):
        parse_from_client(messages.decode(b'{"type":"signal","number":1e999}'))


# -- whatever comes ----------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "fact", "key", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)
KINDS = ["accepted", "started", "notice", "exited", "signal", "kill", "pause", "resume", "update"]
KINDS += ["get_usage", "done", "refused", "usage", "x"]
NAMES = [*STARTED.to_message(), "text", "reason", "returncode", "number"]
NAMES += ["request", "caps", "error", "usage"]
FIELDS = st.dictionaries(st.sampled_from(NAMES), VALUES)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(fields=FIELDS, kind=st.sampled_from(KINDS))
def test_fields_are_a_message_or_a_protocol_error(fields: dict[str, Any], kind: str) -> None:
    for parse in (parse_from_supervisor, parse_from_client):
        try:
            message = parse(fields | {"type": kind})
        except ProtocolError:
            continue
        assert message.to_message()["type"] == kind
        assert not isinstance(message, Signal) or 0 < message.number < NSIG


# -- there and back, whatever is in it ---------------------------------------------------------

NUMBERS = st.integers(0, 2**63 - 1)
COUNTS = st.none() | NUMBERS
USAGES = st.builds(
    CgroupUsage,
    **{name: COUNTS for name in CgroupUsage.__dataclass_fields__ if name not in ("io", "pressure")},
    io=st.none() | st.lists(st.builds(IoUsage, st.text(), *[NUMBERS] * 4), max_size=3).map(tuple),
    pressure=st.none()
    | st.lists(st.builds(Pressure, st.text(), NUMBERS, COUNTS, st.floats(0, 100)), max_size=3).map(
        tuple
    ),
)
TABLES = st.dictionaries(st.text(), VALUES, max_size=3)
ASKED = (
    st.builds(Pause, NUMBERS)
    | st.builds(Resume, NUMBERS)
    | st.builds(Update, NUMBERS, TABLES)
    | st.builds(GetUsage, NUMBERS)
)


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(order=ASKED, answer=st.builds(Done, NUMBERS) | st.builds(Usage, NUMBERS, USAGES))
def test_orders_and_answers_arrive_as_they_were(order: Any, answer: Any) -> None:
    assert parse_from_client(wire(order.to_message())) == order
    assert parse_from_supervisor(wire(answer.to_message())) == answer
