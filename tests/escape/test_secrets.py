"""Secrets: of the environment, of hidden folders, of the launcher's memory, of other kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from escape.attacks import LAUNCHER_CANARY, SECRET, Arena, Attack, pair_of_tests
from escape.weaknesses import Wall
from integration.sandboxes import inside

#: In pieces, so that the source of this module, which pytest may show, does not hold it whole.
SERVER_CANARY = "-".join(("canary", "of", "the", "server", "77aa"))
VARIABLES = ("JUPYTERHUB_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS",
             "DATABASE_URL", "SSH_AUTH_SOCK", "GITHUB_TOKEN", "LD_PRELOAD_CANARY")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """The environment of a server that has much to lose, and its heap."""
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.setenv(name, SERVER_CANARY)
        yield


def environment(names: list[str]) -> list[str]:
    """Of each process that there is: what of these it has, in whatever way it could be seen."""
    import glob
    import os

    found = {name for name in names if name in os.environ}
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path, "rb") as file:
                text = file.read().decode(errors="replace")
        except OSError:
            continue
        found |= {name for name in names if f"{name}=" in text}
    return sorted(found)


def search_memory(reversed_text: str) -> int:
    """How often a text is found in the kernel's own memory, page by page.

    It is given backwards and turned round for each page anew, so that the kernel's own copies of
    it are not what is found: it is compared in two halves.
    """
    import re

    half = len(reversed_text) // 2
    first = reversed_text[half:][::-1].encode()
    second = reversed_text[:half][::-1].encode()
    count = 0
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", buffering=0) as memory:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or "[v" in line:
                continue
            start, end = (int(group, 16) for group in match.groups())
            for at in range(start, end, 1 << 24):
                try:
                    memory.seek(at)
                    chunk = memory.read(min(end - at, (1 << 24) + 256))
                except (OSError, OverflowError, ValueError):
                    continue
                place = chunk.find(first)
                while place >= 0:
                    after = place + len(first)
                    if chunk[after : after + len(second)] == second:
                        count += 1
                    place = chunk.find(first, place + 1)
                del chunk
    return 1 if count else 0


def read_hidden(home: str, names: list[str], text: str) -> list[str]:
    import os

    found = []
    for name in names:
        try:
            with open(os.path.join(home, name)) as file:
                if text in file.read():
                    found.append(name)
        except OSError:
            pass
    return found


def who_may_read_the_key() -> list[str]:
    """The connection file inside: its mode, and whose it is."""
    import os

    path = os.path.join(os.environ["JUPYTER_RUNTIME_DIR"], "kernel.json")
    found = os.stat(path)
    folder = os.stat(os.path.dirname(path))
    own = found.st_uid == os.getuid()
    return [f"{found.st_mode & 0o7777:o}", f"{folder.st_mode & 0o7777:o}", str(own)]


HIDDEN = [
    ".ssh/id_ed25519", ".aws/credentials", ".gnupg/private-keys-v1.d/key", ".netrc",
    ".config/gcloud/credentials.db", ".local/share/jupyter/runtime/kernel.json", ".jupyter/token",
]  # fmt: skip

ATTACKS = [
    Attack("the server's environment", environment, [], (Wall.ENVIRONMENT,),
           through=sorted(VARIABLES), arguments=(list(VARIABLES),)),
    Attack("the server's secrets in the kernel's memory", search_memory, 0, (Wall.ENVIRONMENT,),
           through=1, arguments=(SERVER_CANARY[::-1],)),
    Attack("what a launcher held before it preloaded", search_memory, 0, (Wall.BARE_LAUNCHER,),
           through=1, arguments=(LAUNCHER_CANARY[::-1],)),
    Attack("the key of the connection", who_may_read_the_key, ["600", "700", "True"],
           cannot_be_shown="the kernel must have it; test_another_kernels_key looks for others"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


def test_hidden_folders_where_the_notebook_lies_in_the_home(arena: Arena) -> None:
    home = str(arena.host.home)
    attack = Attack(
        "~/.ssh, ~/.aws, ~/.gnupg, ~/.netrc, gcloud and Jupyter's folders", read_hidden, [],
        (Wall.HIDDEN,), through=HIDDEN, arguments=(home, HIDDEN, SECRET), shape="home",
    )  # fmt: skip
    arena.attack(attack)
    arena.control(attack)
    client = arena.box("home").client
    assert inside(client, read_hidden, home, ["private.txt"], SECRET) == ["private.txt"]


def test_another_kernels_key(arena: Arena) -> None:
    """Both were forked from one launcher, and neither has the other's."""
    ours, other = arena.box(), arena.box("home")
    own_key = ours.km.session.key.decode()
    other_key = other.km.session.key.decode()
    assert inside(ours.client, search_memory, own_key[::-1]) == 1, "the search finds what is there"
    assert inside(ours.client, search_memory, other_key[::-1]) == 0
    assert inside(other.client, search_memory, own_key[::-1]) == 0


def test_the_connection_file_of_the_host_is_not_inside(arena: Arena) -> None:
    box = arena.box()
    path = box.km.connection_file
    assert os.path.exists(path)

    def there(paths: list[str]) -> list[str]:
        import os

        return [path for path in paths if os.path.exists(path)]

    assert inside(box.client, there, [path]) == []
    assert os.stat(path).st_mode & 0o077 == 0
