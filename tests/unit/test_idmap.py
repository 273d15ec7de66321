"""Which host ids a kernel gets: decided as data, from subordinate ranges in temporary files."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine import idmap
from sandbox_kernel.engine.idmap import (
    ISOLATED_ID,
    IdMapping,
    IdPlan,
    SubordinateRange,
    check_helper,
    plan,
    subordinate_ranges,
)
from sandbox_kernel.errors import IdMapError
from sandbox_kernel.spec import Identity

UID, GID = 1000, 1001


@dataclass
class Tables:
    """/etc/subuid and /etc/subgid of an imaginary host."""

    folder: Path

    def write(self, subuid: str, subgid: str | None = None) -> None:
        (self.folder / "subuid").write_text(subuid)
        (self.folder / "subgid").write_text(subuid if subgid is None else subgid)

    def plan(
        self, identity: Identity, id_range: int = 0, *, uid: int = UID, gid: int = GID
    ) -> IdPlan:
        return plan(
            identity,
            id_range,
            uid=uid,
            gid=gid,
            user="root" if uid == 0 else "alice",
            subuid=self.folder / "subuid",
            subgid=self.folder / "subgid",
        )


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


# -- without subordinate ids -------------------------------------------------------------------


def test_keep_id_needs_nobody(tables: Tables) -> None:
    made = tables.plan(Identity.KEEP_ID)  # and no table exists
    assert made.uid_map == (IdMapping(UID, UID, 1),)
    assert made.gid_map == (IdMapping(GID, GID, 1),)
    assert (made.uid, made.gid) == (UID, GID)
    assert (made.outside_uid(), made.outside_gid()) == (UID, GID)
    assert (made.helper, made.privileged, made.denies_setgroups) == (False, False, True)


def test_root_inside_is_the_user_outside(tables: Tables) -> None:
    made = tables.plan(Identity.ROOT)
    assert made.uid_map == (IdMapping(0, UID, 1),)
    assert made.gid_map == (IdMapping(0, GID, 1),)
    assert (made.outside_uid(), made.outside_gid()) == (UID, GID)
    assert made.denies_setgroups


def test_a_line_of_a_map() -> None:
    assert IdMapping(0, 100_000, 65_536).line() == "0 100000 65536"


def test_an_id_that_is_not_mapped_has_no_outside(tables: Tables) -> None:
    made = IdPlan((IdMapping(5, 100, 2),), (), 7, 0, helper=False, privileged=False)
    with pytest.raises(IdMapError, match="id 7 is not mapped"):
        made.outside_uid()


# -- with subordinate ids ----------------------------------------------------------------------


def test_isolated_is_a_subordinate_id(tables: Tables) -> None:
    tables.write("alice:100000:65536\n", "alice:200000:65536\n")
    made = tables.plan(Identity.ISOLATED)
    assert made.uid_map == (IdMapping(ISOLATED_ID, 100_000, 1),)
    assert made.gid_map == (IdMapping(ISOLATED_ID, 200_000, 1),)
    assert (made.helper, made.denies_setgroups) == (True, False)


def test_a_range_leaves_the_own_id_in_its_place(tables: Tables) -> None:
    tables.write("alice:100000:65536\n")
    made = tables.plan(Identity.KEEP_ID, 65_536)
    assert made.uid_map == (
        IdMapping(0, 100_000, UID),
        IdMapping(UID, UID, 1),
        IdMapping(UID + 1, 100_000 + UID, 65_536 - UID),
    )
    assert made.outside_uid() == UID
    assert made.helper and not made.denies_setgroups


def test_a_range_for_root_inside_begins_at_one(tables: Tables) -> None:
    tables.write("alice:100000:65536\n")
    made = tables.plan(Identity.ROOT, 10)
    assert made.uid_map == (IdMapping(0, UID, 1), IdMapping(1, 100_000, 10))


def test_isolated_with_a_range_never_has_the_users_id(tables: Tables) -> None:
    tables.write("alice:100000:65536\n")
    made = tables.plan(Identity.ISOLATED, 2000)
    outside = {m.outside + i for m in made.uid_map for i in range(m.count)}
    assert outside == set(range(100_000, 102_001))
    assert made.outside_uid() == 100_000


def test_several_blocks_are_joined(tables: Tables) -> None:
    tables.write("alice:100000:3\nbob:1:9\nalice:300000:10\n")
    assert tables.plan(Identity.ROOT, 5).uid_map == (
        IdMapping(0, UID, 1),
        IdMapping(1, 100_000, 3),
        IdMapping(4, 300_000, 2),
    )


def test_run_by_root_no_map_holds_host_id_0(tables: Tables) -> None:
    tables.write("root:0:70000\n")
    for identity in Identity:
        for id_range in (0, 1, 100):
            made = tables.plan(identity, id_range, uid=0, gid=0)
            for mappings in (made.uid_map, made.gid_map):
                assert min(m.outside for m in mappings) == 1
            assert (made.privileged, made.helper, made.denies_setgroups) == (True, False, False)


def test_run_by_root_without_a_range_is_refused(tables: Tables) -> None:
    with pytest.raises(IdMapError) as caught:
        tables.plan(Identity.KEEP_ID, uid=0, gid=0)
    path = tables.folder / "subuid"
    assert caught.value.message == (
        f"{path} gives user 'root' 0 of 1 ids: run by root, a kernel never gets host id 0 and "
        "needs a subordinate id; remedy: as root: usermod --add-subuids 524288-589823 root (or "
        "another range that is free)"
    )


def test_too_few_ids_say_how_many_and_what_to_do(tables: Tables) -> None:
    tables.write("alice:100000:65536\n", "alice:100000:10\n")
    with pytest.raises(IdMapError) as caught:
        tables.plan(Identity.KEEP_ID, 100)
    error = caught.value
    path = str(tables.folder / "subgid")
    assert error.fact == f"{path} gives user 'alice' 10 of 100 ids"
    assert error.cause == "identity 'keep-id' with id_range needs 100 subordinate ids"
    assert error.remedy is not None and "usermod --add-subgids" in error.remedy
    assert error.path == path


def test_a_range_of_host_id_0_alone_gives_nothing(tables: Tables) -> None:
    tables.write("alice:0:1\n")
    with pytest.raises(IdMapError, match="0 of 1 ids"):
        tables.plan(Identity.ISOLATED)


def test_a_range_that_is_there_under_name_and_uid_counts_once(tables: Tables) -> None:
    tables.write(f"alice:100000:10\n{UID}:100000:10\n")
    with pytest.raises(IdMapError, match="10 of 11 ids"):
        tables.plan(Identity.KEEP_ID, 11)


# -- reading a table ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "ranges"),
    [
        ("", []),
        ("alice:100000:65536", [(100_000, 65_536)]),
        ("1000:100000:65536\n", [(100_000, 65_536)]),
        ("  alice:5:6  \n\n", [(5, 6)]),
        ("bob:1:2\nalice:3:4\nalice:5:6\n", [(3, 4), (5, 6)]),
        ("alice2:1:2\nali:1:2\n10000:1:2\n", []),
        ("# alice:1:2\n", []),
        ("alice:1:0\nalice:-5:6\nalice:x:6\nalice:1\nalice:1:2:3\nalice::\n", []),
        ("alice:1:2\n\xff\xfe", [(1, 2)]),
    ],
)
def test_reading_a_table(text: str, ranges: list[tuple[int, int]], tmp_path: Path) -> None:
    path = tmp_path / "subuid"
    path.write_bytes(text.encode("latin-1"))
    assert subordinate_ranges(path, "alice", UID) == tuple(SubordinateRange(*r) for r in ranges)


def test_a_table_that_is_not_there_gives_nothing(tmp_path: Path) -> None:
    assert subordinate_ranges(tmp_path / "absent", "alice", UID) == ()
    assert subordinate_ranges(tmp_path, "alice", UID) == ()  # a directory


# -- the helpers -------------------------------------------------------------------------------


def test_a_plan_without_helpers_asks_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmap.shutil, "which", lambda *args, **kwargs: None)
    check_helper(IdPlan((), (), 0, 0, helper=False, privileged=False))


def test_a_helper_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        idmap.shutil, "which", lambda name, **kwargs: None if name == "newgidmap" else "/x"
    )
    with pytest.raises(IdMapError) as caught:
        check_helper(IdPlan((), (), 0, 0, helper=True, privileged=False))
    error = caught.value
    assert error.fact == "newgidmap is not installed"
    assert error.cause == "mapping subordinate ids needs it"
    assert error.remedy is not None
    assert "apt-get install uidmap" in error.remedy and "dnf install shadow-utils" in error.remedy


def test_a_helper_in_the_users_path_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be run with the user's rights only, but it could lie about its success."""
    fake = tmp_path / "newuidmap"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    try:
        assert not idmap._find_helper("newuidmap").startswith(str(tmp_path))
    except IdMapError as error:
        assert "not installed" in error.message  # noqa: PT017 - this machine has none


# -- for all plans -----------------------------------------------------------------------------


@settings(derandomize=True, database=None, deadline=None)
@given(
    identity=st.sampled_from(Identity),
    id_range=st.integers(0, 300),
    uid=st.sampled_from([0, 1, 99, 1000, 65_534]),
    gid=st.sampled_from([0, 1, 100, 1000, 65_534]),
    blocks=st.lists(st.integers(1, 200), max_size=4),
)
def test_every_plan_is_one_to_one_and_holds_what_was_asked(
    tmp_path_factory: pytest.TempPathFactory,
    identity: Identity,
    id_range: int,
    uid: int,
    gid: int,
    blocks: list[int],
) -> None:
    tables = Tables(tmp_path_factory.getbasetemp())
    name = "root" if uid == 0 else "alice"
    # root's first block begins at 0, as a careless administrator may write it
    first = 0 if uid == 0 else 1
    tables.write("".join(f"{name}:{i * 100_000}:{n}\n" for i, n in enumerate(blocks, first)))
    try:
        made = tables.plan(identity, id_range, uid=uid, gid=gid)
    except IdMapError:
        spare = sum(blocks) - (1 if blocks and uid == 0 else 0)
        assert spare < id_range + (1 if identity is Identity.ISOLATED or uid == 0 else 0)
        return
    for mappings, own, inside in ((made.uid_map, uid, made.uid), (made.gid_map, gid, made.gid)):
        pairs = [(m.inside + i, m.outside + i) for m in mappings for i in range(m.count)]
        assert len(pairs) == id_range + 1
        assert len({i for i, _ in pairs}) == len({o for _, o in pairs}) == len(pairs)
        assert inside in {i for i, _ in pairs}
        outside = dict(pairs)[inside]
        if identity is Identity.ISOLATED or uid == 0:
            assert outside != 0
        else:
            assert outside == own
        if uid == 0:
            assert 0 not in {o for _, o in pairs}
        # as few lines as can be: no two that could be one
        for a, b in itertools.pairwise(mappings):
            assert a.inside + a.count <= b.inside
            assert (a.inside + a.count, a.outside + a.count) != (b.inside, b.outside)


@pytest.mark.parametrize(
    ("identity", "id_range", "uid", "by_itself"),
    [
        (Identity.KEEP_ID, 0, UID, True),
        (Identity.ROOT, 0, UID, True),
        (Identity.KEEP_ID, 5, UID, False),
        (Identity.ISOLATED, 0, UID, False),
        (Identity.KEEP_ID, 0, 0, False),
    ],
)
def test_only_the_map_of_the_own_id_needs_no_mapper(
    identity: Identity, id_range: int, uid: int, by_itself: bool, tables: Tables
) -> None:
    tables.write("alice:100000:65536\nroot:300000:65536\n")
    ids = tables.plan(identity, id_range, uid=uid, gid=GID if uid else 0)
    assert ids.denies_setgroups is by_itself
    if by_itself:
        assert [(m.outside, m.count) for m in ids.uid_map] == [(uid, 1)]
