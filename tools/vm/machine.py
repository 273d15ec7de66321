"""Boot the test machine, show what it prints, and fetch the results: the host's part.

Run by ``tools/vm/run`` as root, with ``--image`` (see ``tools/vm/image``) and ``--work``, a folder
whose ``disk`` becomes the second disk, and which is removed at the end. There is no network: the
machine gets the commands on that disk, prints through a virtio port into a file, and leaves the
results on the disk, which is read when it is off.

The exit status is that of the first command that failed; :data:`NO_RESULT` if one left no result,
because the machine crashed, hung or did not come up. Only the QEMU that was started here is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

NO_RESULT = 125
POLL = 0.2
"""Seconds between looks at the output."""
PLACES = ("delegated", "scope", "service", "login", "prepared", "root")


def main() -> int:
    options = parse()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda signum, _: sys.exit(128 + signum))
    try:
        return run(options, options.work)
    finally:
        shutil.rmtree(options.work, ignore_errors=True)


def run(options: argparse.Namespace, work: Path) -> int:
    runs = json.loads(options.job.read_text())["runs"] if options.job else [single(options)]
    (work / "disk" / "job.json").write_text(json.dumps({"runs": runs}))
    make_disk(work / "disk", work / "work.ext4")
    ended = boot(options, work)
    fetched = work / "result"
    fetch(work / "work.ext4", fetched)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        shutil.copytree(fetched, options.out, dirs_exist_ok=True)
        for name in ("console", "output"):
            shutil.copy(work / name, options.out / name)
    statuses = [status_of(fetched / f"{run['name']}.json") for run in runs]
    if NO_RESULT in statuses:
        print_end_of(work / "console")
        print(f"no result from the machine: {ended}", file=sys.stderr)
    return next((status for status in statuses if status), 0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/vm/run")
    parser.add_argument("--image", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--user", default="stock", choices=("stock", "deleg", "root"))
    parser.add_argument("--place", choices=PLACES, help="what the command's cgroup is")
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="for all of it, boot included"
    )
    parser.add_argument("--out", type=Path, help="a folder for the results and the console")
    parser.add_argument("--swap", default="0", help="size of the machine's swap, such as 512M")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--job", type=Path, help="a file with several commands")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.command[:1] == ["--"]:
        del options.command[0]
    if bool(options.job) == bool(options.command):
        parser.error("either a command or --job")
    return options


def single(options: argparse.Namespace) -> dict[str, Any]:
    default = "root" if options.user == "root" else "delegated"
    return {
        "name": "command",
        "user": options.user,
        "place": options.place or default,
        "argv": options.command,
        "environment": dict(pair.split("=", 1) for pair in options.env),
    }


# -- the disk --------------------------------------------------------------------------------------


def make_disk(folder: Path, disk: Path) -> None:
    """An ext4 of ``folder`` without a journal: nobody replays one before it is read."""
    os.truncate(os.open(disk, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600), 4 << 30)
    command = [
        "mkfs.ext4",
        "-q",
        "-O",
        "^has_journal",
        "-L",
        "sk-work",
        "-d",
        str(folder),
        str(disk),
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


def fetch(disk: Path, folder: Path) -> None:
    """Copy ``/result`` off the disk; a disk that cannot be read has none."""
    folder.mkdir()
    command = ["debugfs", "-R", f"rdump /result {folder}", str(disk)]
    subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True)
    inner = folder / "result"
    if inner.is_dir():
        for entry in list(inner.iterdir()):
            entry.rename(folder / entry.name)
        inner.rmdir()


def status_of(result: Path) -> int:
    try:
        status = json.loads(result.read_text())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return NO_RESULT
    return status if isinstance(status, int) else NO_RESULT


# -- the machine -----------------------------------------------------------------------------------


def command_line(options: argparse.Namespace, work: Path) -> list[str]:
    """QEMU without hardware acceleration: what every machine has, virtual ones included."""
    # setpriv: if this process is killed, so is the machine.
    line = ["setpriv", "--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"]
    line += ["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max,la57=off"]
    line += ["-smp", "2", "-m", "4G", "-nodefaults", "-no-user-config", "-no-reboot"]
    line += ["-display", "none", "-nic", "none"]
    line += ["-kernel", str(options.image / "vmlinuz"), "-initrd", str(options.image / "initrd")]
    # Without mitigations: emulated, they cost and protect nothing.
    line += [
        "-append",
        "root=/dev/vda rw console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable",
    ]
    drive = "if=virtio,format=raw,cache=unsafe"
    line += ["-drive", f"file={options.image / 'disk.ext4'},snapshot=on,{drive}"]
    line += ["-drive", f"file={work / 'work.ext4'},{drive}"]
    if options.swap != "0":
        swap = work / "swap"
        subprocess.run(["truncate", "-s", options.swap, swap], check=True)
        subprocess.run(["mkswap", "-q", swap], check=True)
        line += ["-drive", f"file={swap},{drive}"]
    line += ["-serial", f"file:{work / 'console'}"]
    line += ["-device", "virtio-serial", "-chardev", f"file,id=out,path={work / 'output'}"]
    line += ["-device", "virtserialport,chardev=out,name=out", "-device", "virtio-rng-pci"]
    return line


def boot(options: argparse.Namespace, work: Path) -> str:
    """Run the machine until it is off or its time is over; how that ended, in words."""
    begin = time.monotonic()
    for name in ("console", "output"):
        (work / name).touch()
    # The snapshot of the first disk is a file in TMPDIR: on the disk of the cache, not in memory.
    environment = {**os.environ, "TMPDIR": str(work)}
    with subprocess.Popen(
        command_line(options, work), stdin=subprocess.DEVNULL, env=environment
    ) as qemu:
        try:
            return follow(qemu, work / "output", begin + options.seconds, begin)
        finally:
            if qemu.poll() is None:
                qemu.kill()


def follow(qemu: subprocess.Popen[bytes], output: Path, deadline: float, begin: float) -> str:
    """Show what comes until the machine is off."""
    with output.open("rb") as stream:
        while True:
            over = qemu.poll() is not None
            show(stream)
            seconds = time.monotonic() - begin
            if over:
                return f"it was switched off after {seconds:.0f} s (qemu: {qemu.returncode})"
            if time.monotonic() > deadline:
                return f"it was ended after {seconds:.0f} s, all the time it had"
            time.sleep(POLL)


def show(stream: BinaryIO) -> None:
    while data := stream.read(65536):
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def print_end_of(console: Path, lines: int = 40) -> None:
    text = console.read_text(errors="replace").splitlines()
    print(f"-- the last {lines} lines of the console", *text[-lines:], sep="\n", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
