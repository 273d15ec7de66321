"""Root's part inside the test machine: run the commands of ``job.json``, one after the other.

Started by ``sandbox-kernel-vm.service``, from the second disk, on a Python with nothing installed.
What the commands print goes to the host through a virtio port, and to nowhere if there is none.
Each one's end is written to ``result/<name>.json`` when it has ended, so that a machine that
crashed has no result. ``tools/vm/machine.py`` writes the job and reads the results.

Where a command runs (``place``), and so which cgroups it may write:

``delegated``
    in a scope of the user's own systemd with ``Delegate=yes``, moved to its leaf ``tests``;
    ``SANDBOX_KERNEL_CGROUP`` names the scope.
``scope``
    the same scope, nothing moved and nothing named: what ``systemd-run --user --scope
    -p Delegate=yes jupyter lab`` gives.
``service``
    a service of the user's own systemd without ``Delegate=``.
``login``
    a session of logind, as after ssh: nothing is delegated.
``prepared``
    a cgroup that root made for this user with every controller there is, as a hub would; the
    command is in its leaf ``tests``, and ``SANDBOX_KERNEL_CGROUP`` names it.
``root``
    the cgroup of this service. The only place for root, and only for root.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

BASE = Path("/opt/sandbox-kernel")
HUGE_PAGES = 8
"""Of two MiB, for the place ``prepared``: so that there is something to be refused."""
PORT = Path("/dev/virtio-ports/out")
SWAP = Path("/dev/vdc")
CGROUPS = Path("/sys/fs/cgroup")
RUNTIME_WAIT = 300.0
"""Seconds for the bus of a user's systemd to be there; it is started at boot."""

#: Run by a shell inside the place: to a leaf of its own cgroup, then the command.
TO_LEAF = """
cgroup=$(sed -n 's/^0:://p' /proc/self/cgroup)
mkdir "/sys/fs/cgroup$cgroup/tests"
echo $$ >"/sys/fs/cgroup$cgroup/tests/cgroup.procs"
export SANDBOX_KERNEL_CGROUP=$cgroup
"""
TO_TREE = 'cd "$HOME/sandbox-kernel/tests"\nexec "$@"\n'


def main() -> int:
    job = json.loads((BASE / "job.json").read_text())
    if SWAP.exists():
        subprocess.run(["swapon", str(SWAP)], check=True)
    with open_port() as port:
        status = 0
        for run in job["runs"]:
            begin = time.monotonic()
            try:
                code = execute(run, port)
            except Exception as error:  # reported, and the next one is run
                port.write(f"the command could not be started: {error}\n".encode())
                code = 255
            seconds = round(time.monotonic() - begin, 1)
            result = BASE / "result" / f"{run['name']}.json"
            result.write_text(json.dumps({"status": code, "seconds": seconds}))
            status = status or code
        port.flush()
    # The disk has no journal: what is written is all there.
    os.sync()
    return 1 if status else 0


def open_port() -> BinaryIO:
    return open(PORT if PORT.exists() else os.devnull, "wb", buffering=0)


def execute(run: dict[str, Any], port: BinaryIO) -> int:
    """Run one command to its end; its status as a shell would say it."""
    user = pwd.getpwnam(run["user"])
    tree = Path(user.pw_dir, "sandbox-kernel")
    if not tree.exists():
        shutil.copytree(BASE / "tree", tree, symlinks=True)
        subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", str(tree)], check=True)
    folder = BASE / "result" / run["name"]
    folder.mkdir()
    os.chown(folder, user.pw_uid, user.pw_gid)
    environment = {
        "PATH": f"{BASE}/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "VM_RESULT": str(folder),
        **run["environment"],
    }
    if user.pw_uid:
        environment |= session(user)
    done = subprocess.run(
        placed(run["place"], user, environment, run["argv"]),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=port,
        stderr=port,
        cwd="/",
    )
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def session(user: pwd.struct_passwd) -> dict[str, str]:
    """The variables of a login, when its bus is there."""
    folder = Path(f"/run/user/{user.pw_uid}")
    deadline = time.monotonic() + RUNTIME_WAIT
    while not (folder / "bus").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no bus of {user.pw_name} within {RUNTIME_WAIT:.0f} s")
        time.sleep(0.2)
    return {
        "XDG_RUNTIME_DIR": str(folder),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={folder}/bus",
    }


def placed(
    place: str, user: pwd.struct_passwd, environment: dict[str, str], argv: list[str]
) -> list[str]:
    """What root has to execute for ``argv`` to run as ``user`` in ``place``."""
    inner = ["/bin/bash", "-euc", TO_TREE, "bash", *argv]
    to_leaf = ["/bin/bash", "-euc", TO_LEAF + TO_TREE, "bash", *argv]
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups"]
    scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect", "-p", "Delegate=yes"]
    service = ["systemd-run", "--quiet", "--collect", "--pipe", "--wait"]
    service += [f"--setenv={name}={value}" for name, value in environment.items()]
    match place:
        case "root" if user.pw_uid == 0:
            return inner
        case "delegated":
            return [*as_user, *scope, *to_leaf]
        case "scope":
            return [*as_user, *scope, *inner]
        case "service":
            return [*as_user, *service, "--user", *inner]
        case "login":
            return [*service, "--uid", user.pw_name, "-p", "PAMName=login", *inner]
        case "prepared":
            group = prepare(user)
            enter = f"echo $$ >{CGROUPS}{group}/tests/cgroup.procs\n"
            enter += f'export SANDBOX_KERNEL_CGROUP={group}\nexec "$@"\n'
            return ["/bin/bash", "-euc", enter, "bash", *as_user, *inner]
    raise ValueError(f"no place {place!r} for {user.pw_name}")


def prepare(user: pwd.struct_passwd) -> str:
    """A cgroup with every controller for the user, relative to the mount; made once."""
    Path("/proc/sys/vm/nr_hugepages").write_text(str(HUGE_PAGES))
    group = f"/sandbox-kernel/u{user.pw_uid}"
    path = CGROUPS
    for part in ("", *group.strip("/").split("/")):
        path = path / part
        path.mkdir(exist_ok=True)
        wanted = "".join(f" +{c}" for c in (path / "cgroup.controllers").read_text().split())
        (path / "cgroup.subtree_control").write_text(wanted.strip())
    (path / "tests").mkdir(exist_ok=True)
    for owned in (path, path / "tests"):
        os.chown(owned, user.pw_uid, user.pw_gid)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
            os.chown(owned / name, user.pw_uid, user.pw_gid)
    return group


if __name__ == "__main__":
    sys.exit(main())
