"""The seccomp wall: a profile becomes a BPF program, the program becomes the caller's filter.

The launcher calls :func:`compile_profile` once and keeps the bytes; the init of each sandbox calls
:func:`load` as its last act before the kernel. Between the two there is no file, no library and
no Python object that could differ from one kernel to the next.

How the program is made
-----------------------
libseccomp compiles it, with EPERM for whatever no rule allows. Rules for one system call never
overlap: libseccomp drops a conditional rule beside an unconditional one without a word, and what
it does with two that both match is its own affair. So only *allowing* rules with a condition are
given to it, each cut into pieces of which at most one can match (:func:`_alternatives`).

libseccomp has one default for all numbers, and we need two: EPERM for the calls that we know and
refuse, ENOSYS for the numbers that we do not know. :func:`_unknown_first` therefore puts a few
instructions of ours before its program. They can return ENOSYS or go on, nothing else.
"""

from __future__ import annotations

import enum
import errno
import itertools
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from ..errors import FilterError, describe_errno
from ..syscalls import SyscallError, libseccomp, seccomp_set_mode_filter
from ..syscalls.libseccomp import Filter, LibseccompError, MaskedEqual, Seccomp
from .seccomp_profile import DEFAULT, Action, Condition, Match, Profile

#: The first libseccomp that builds a binary tree, which a filter of this size wants.
OLDEST_LIBSECCOMP: Final = (2, 5, 0)

#: The kernel's BPF_MAXINSNS.
LONGEST_PROGRAM: Final = 4096
INSTRUCTION_SIZE: Final = 8

_FACT: Final = "the seccomp filter cannot be compiled"
_X32_BIT: Final = 0x4000_0000
_NO_CALL: Final = 0xFFFF_FFFF
"""-1: what a tracer writes to skip a call. The kernel itself answers ENOSYS."""


class Arch(enum.IntEnum):
    """The architectures that the profile was written for; values are the kernel's AUDIT_ARCH."""

    X86_64 = libseccomp.ARCH_X86_64
    AARCH64 = libseccomp.ARCH_AARCH64


def compile_profile(profile: Profile = DEFAULT, arch: Arch | None = None) -> bytes:
    """The BPF program of ``profile``: an array of ``struct sock_filter`` for :func:`load`.

    ``arch`` is another architecture than this machine's, for inspection only: what libseccomp has
    no name for is then refused even where the profile allows it, as it numbers calls by names of
    the native architecture.

    Raises:
        FilterError: libseccomp is missing, too old or refused a rule; a name of the profile is
            known to nobody; the machine is neither x86_64 nor aarch64.
    """
    seccomp = _open()
    native = _native(seccomp)
    arch = native if arch is None else arch
    numbers = _numbers(seccomp, profile, arch)
    try:
        with seccomp.filter(
            default=libseccomp.ACT_ERRNO | errno.EPERM,
            foreign=libseccomp.ACT_KILL_PROCESS,
            arch=arch,
        ) as context:
            _add_rules(seccomp, context, profile, numbers)
            program = context.export()
    except LibseccompError as error:
        raise FilterError(_FACT, cause=f"libseccomp refused: {error}") from error
    program = _unknown_first(arch, set(numbers.values())) + program
    if len(program) > LONGEST_PROGRAM * INSTRUCTION_SIZE:
        raise FilterError(
            _FACT,
            cause=f"it has {len(program) // INSTRUCTION_SIZE} instructions, "
            f"and Linux takes {LONGEST_PROGRAM}",
        )
    return program


def load(program: bytes) -> None:
    """Put the calling thread, and all that it starts from now on, behind ``program``.

    The caller is single-threaded and has set no_new_privs. There is no way back.

    Raises:
        FilterError: it was not loaded; the process must not go on.
    """
    fact = "the seccomp filter cannot be loaded"
    try:
        seccomp_set_mode_filter(program)
    except (ValueError, OverflowError) as error:
        raise FilterError(fact, cause=str(error)) from error
    except SyscallError as error:
        raise FilterError(fact, cause=_why_not_loaded(error.errno or 0)) from error


def _why_not_loaded(number: int) -> str:
    """What seccomp(2) says about ``number``; where it gives several reasons, all of them."""
    if number == errno.EACCES:
        return "no_new_privs is not set and the process has no CAP_SYS_ADMIN"
    if number == errno.EINVAL:
        return "Linux took the program for invalid, or was built without CONFIG_SECCOMP_FILTER"
    if number == errno.ENOSYS:
        return "this Linux has no seccomp(2), or an outer filter hides it"
    if number == errno.ENOMEM:
        return "no memory, or the filters of this process have more than 32768 instructions"
    return describe_errno(number)


# -- the library ------------------------------------------------------------------------------


def _open() -> Seccomp:
    try:
        seccomp = libseccomp.open_library()
    except ImportError as error:
        raise FilterError(
            _FACT,
            cause=f"the installation of sandbox-kernel is incomplete: {error}",
            remedy="install it anew, or run sandbox_kernel/syscalls/_seccomp_build.py",
        ) from error
    except OSError as error:
        raise _cannot_open(error) from error
    if seccomp.version() < OLDEST_LIBSECCOMP:
        found, needed = (".".join(map(str, v)) for v in (seccomp.version(), OLDEST_LIBSECCOMP))
        raise FilterError(_FACT, cause=f"libseccomp is {found}, and at least {needed} is needed")
    return seccomp


def _cannot_open(error: OSError) -> FilterError:
    """Missing, or there and unusable: the dynamic loader says which, and only in words.

    The name must come first in them: a library that libseccomp itself needs can be missing too.
    """
    words = str(error).split("Additionally, ")[0].rstrip(" .")
    absent = (
        f"{libseccomp.SONAME}: cannot open shared object file: No such file or directory",  # glibc
        f"Error loading shared library {libseccomp.SONAME}: No such file or directory",  # musl
    )
    if any(text in words for text in absent):
        return FilterError(
            _FACT,
            cause=f"{libseccomp.SONAME} is not installed",
            remedy="apt-get install libseccomp2 (Debian, Ubuntu), "
            "dnf install libseccomp (Fedora, RHEL)",
        )
    return FilterError(_FACT, cause=f"{libseccomp.SONAME} cannot be used: {words}")


def _native(seccomp: Seccomp) -> Arch:
    token = seccomp.native_arch()
    try:
        return Arch(token)
    except ValueError:
        raise FilterError(
            _FACT,
            cause="the profile was written for x86_64 and aarch64, where calls have their "
            f"arguments in the places that it looks at; this machine is {token:#x}",
        ) from None


# -- from the profile to rules ----------------------------------------------------------------


def _numbers(seccomp: Seccomp, profile: Profile, arch: Arch) -> dict[str, int]:
    """Name → number of each call that the profile knows and ``arch`` has.

    The profile's own table is for names that this libseccomp is too old for; a name that neither
    knows would be a hole in the profile and is an error.
    """
    numbers = {}
    for name in sorted(profile.names()):
        number = seccomp.number(arch, name)
        if number is None:
            number = profile.numbers.get(name)
        if number is None:
            raise FilterError(_FACT, cause=f"libseccomp knows no system call named {name}")
        if number >= 0:
            numbers[name] = number
    return numbers


def _add_rules(
    seccomp: Seccomp, context: Filter, profile: Profile, numbers: Mapping[str, int]
) -> None:
    """Give libseccomp every rule that differs from its default, which is EPERM.

    ``numbers`` is what :func:`_numbers` found for the filter's architecture. libseccomp wants
    native numbers whatever that is, and translates them by the names that it has for them.
    """
    actions = {
        Action.ALLOW: libseccomp.ACT_ALLOW,
        Action.ENOSYS: libseccomp.ACT_ERRNO | errno.ENOSYS,
    }
    native = seccomp.native_arch()
    for rule in profile.rules:
        if rule.action is Action.EPERM:
            continue
        for name in rule.names:
            number = numbers.get(name)
            if number is not None and context.arch != native:
                number = seccomp.number(native, name)
            if number is None:
                continue
            for conditions in _products(rule.conditions):
                context.add(actions[rule.action], number, conditions)


def _products(conditions: Sequence[Condition]) -> Iterator[tuple[MaskedEqual, ...]]:
    """Every way to meet all ``conditions``, as comparisons; no two ways can hold at once."""
    return itertools.product(*(_alternatives(c) for c in conditions))


def _alternatives(condition: Condition) -> list[MaskedEqual]:
    """``condition`` as masked equalities of which at most one can hold.

    libseccomp's NE compares all 64 bits, so garbage in the upper half of a register would make
    any value unequal. *None of* is therefore spelt out as the subtrees of a binary trie, most
    significant bit first, that contain no listed value.
    """
    if condition.match is Match.ONE_OF:
        return [MaskedEqual(condition.arg, condition.mask, v) for v in condition.values]
    found = []
    branches = [(0, 0)]  # (mask so far, value so far)
    for bit in reversed(range(condition.mask.bit_length())):
        if not condition.mask >> bit & 1:
            continue
        forks = [(m | 1 << bit, v | side << bit) for m, v in branches for side in (0, 1)]
        branches = []
        for mask, value in forks:
            if any(listed & mask == value for listed in condition.values):
                branches.append((mask, value))
            else:
                found.append(MaskedEqual(condition.arg, mask, value))
    return found


# -- numbers that the profile does not know ---------------------------------------------------

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQ: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GT: Final = 0x25  # BPF_JMP | BPF_JGT | BPF_K
_JUMP_GE: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER_OFFSET: Final = 0  # of nr in struct seccomp_data
_ARCH_OFFSET: Final = 4  # of arch in struct seccomp_data


def _unknown_ranges(arch: Arch, known: set[int]) -> list[tuple[int, int]]:
    """The numbers outside ``known``, as (first, last), ascending; x32's are not among them."""
    end = _X32_BIT if arch is Arch.X86_64 else _NO_CALL
    borders = [-1, *sorted(known), end]
    gaps = [(low + 1, high - 1) for low, high in itertools.pairwise(borders) if high - low > 1]
    return [*gaps, (_NO_CALL, _NO_CALL)]


def _unknown_first(arch: Arch, known: set[int]) -> bytes:
    """Instructions to stand before libseccomp's: ENOSYS for numbers outside ``known``.

    ::

            load arch;    if it is another one, go on to the program
            load number;  for each range: if first <= number <= last, go to unknown
            go on to the program
        unknown:
            return ENOSYS
    """
    ranges = _unknown_ranges(arch, known)
    tests = 2 * len(ranges)
    code = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_JUMP_EQ, 0, tests + 3, int(arch)),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    for index, (first, last) in enumerate(ranges):
        to_unknown = tests - 2 * index - 1
        code += [(_JUMP_GE, 0, 1, first), (_JUMP_GT, 0, to_unknown, last)]
    code += [(_JUMP, 0, 0, 1), (_RETURN, 0, 0, libseccomp.ACT_ERRNO | errno.ENOSYS)]
    if tests + 3 > 0xFF:
        raise FilterError(_FACT, cause=f"the profile leaves {len(ranges)} gaps between numbers")
    order = "<" if sys.byteorder == "little" else ">"
    return b"".join(struct.pack(order + "HBBI", *instruction) for instruction in code)
