"""Device nodes: six of them, each what its name says, and no way to another."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from escape.attacks import Attack, pair_of_tests
from escape.weaknesses import Wall
from integration.constrained import Lack, run

from sandbox_kernel.engine.rootfs.plan import DEVICES

BLOCK, CHARACTER = 0o060000, 0o020000
DISK, MEMORY, WHITEOUT = os.makedev(8, 0), os.makedev(1, 1), 0


def make_node(kind: int, device: int) -> str:
    """In every place where something can be made."""
    import os

    from escape.attacker import outcome

    seen = {outcome(os.mknod, f"{p}/node", kind | 0o600, device) for p in ("/tmp", "/dev/shm", ".")}
    for place in ("/tmp", "/dev/shm", "."):
        if os.path.lexists(f"{place}/node"):
            os.unlink(f"{place}/node")
    return " ".join(sorted(seen))


def nodes() -> list[str]:
    import os
    import stat

    found = []
    for folder, _, names in os.walk("/dev"):
        if folder.startswith("/dev/pts"):
            continue
        for name in names:
            at = os.lstat(os.path.join(folder, name))
            if stat.S_ISCHR(at.st_mode) or stat.S_ISBLK(at.st_mode):
                found.append(f"{name} {os.major(at.st_rdev)}:{os.minor(at.st_rdev)}")
    return sorted(found)


def change_dev() -> str:
    """A file in the place of a device, or beside it."""
    import os

    from escape.attacker import outcome

    result = outcome(lambda: os.close(os.open("/dev/new", os.O_CREAT | os.O_WRONLY)))
    if result == "0":
        os.unlink("/dev/new")
    return result


def there(names: list[str]) -> list[str]:
    import os

    return [name for name in names if os.path.lexists(f"/dev/{name}")]


def replace_null() -> str:
    """For who is masked next (CVE-2025-31133, -52565, -52881)."""
    import os

    from escape.attacker import outcome

    return outcome(os.rename, "/dev/null", "/dev/null-old")


SIX = sorted(f"{name} {major}:{minor}" for name, major, minor in DEVICES)
#: What a control binds besides, see weaknesses.py: as far as this machine has it.
MORE = {"console": "5:1", "fuse": "10:229", "kmsg": "1:11", "mem": "1:1", "tty0": "4:0"}
MORE = {name: at for name, at in MORE.items() if os.path.exists(f"/dev/{name}")}
FORBIDDEN = [
    "console", "fuse", "hugepages", "kmem", "kmsg", "kvm", "loop0", "mapper", "mem", "mqueue",
    "net", "port", "sda", "snd", "tty0", "uinput", "vda", "vhost-net",
]  # fmt: skip
FIRST = "Linux itself asks for CAP_MKNOD of the first user namespace, and says EPERM as well"
ATTACKS = [
    Attack("mknod of a disk", make_node, "EPERM", arguments=(BLOCK, DISK), cannot_be_shown=FIRST),
    Attack("mknod of the memory", make_node, "EPERM", arguments=(CHARACTER, MEMORY),
           cannot_be_shown=FIRST),
    Attack("mknod of 0:0, which hides files in a layer", make_node, "EPERM",
           (Wall.SECCOMP, Wall.LANDLOCK), arguments=(CHARACTER, WHITEOUT)),
    Attack("nodes in /dev", nodes, SIX, (Wall.DEVICES,),
           through=sorted([*SIX, *(f"{name} {at}" for name, at in MORE.items())])),
    Attack("/dev/console, /dev/kmsg and their like", there, [], (Wall.DEVICES,),
           through=sorted(MORE), arguments=(FORBIDDEN,)),
    Attack("a file in /dev", change_dev, "EROFS", (Wall.SEAL,)),
    Attack("another /dev/null", replace_null, ("EROFS", "EBUSY"),
           cannot_be_shown="a mount point cannot be renamed, whoever asks"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


# -- the host's own /dev/null ----------------------------------------------------------------------

#: Starts a kernel, on a machine whose /dev/null is something else.
START = """
import sys
from pathlib import Path
from integration.sandboxes import started
try:
    with started(Path(sys.argv[1])) as (km, client):
        print("started")
except Exception as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["a file", "another device"])
def test_a_null_of_the_host_that_is_none_ends_the_start(what: str, tmp_path: Path) -> None:
    """CVE-2025-31133: what is bound over the masked files must be 1:3, whatever it is called."""
    (tmp_path / "file").touch()
    other = "/dev/zero" if what == "another device" else str(tmp_path / "file")
    lack = Lack(scratch=str(tmp_path), replaced=(("/dev/null", other),))
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-c", START, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(tests)}
    result = run(lack, command, env=environment, cwd=tests)
    assert "/dev/null is not the character device 1:3" in result.stdout, result.stdout
    lack = Lack(scratch=str(tmp_path))
    control = run(lack, command, env=environment, cwd=tests)
    assert control.stdout == "started\n", control.stdout
