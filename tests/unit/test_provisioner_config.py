"""Traits and config of the provisioner: a typing error never removes a limit; nothing starts."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory
from traitlets.config import Application, Config
from traitlets.config.loader import DeferredConfigString

from sandbox_kernel import client
from sandbox_kernel.errors import SpecError
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.spec import KEYS, MIB, Mount, SandboxSpec, kernelspec_config, parse_spec


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a launcher was started")

    monkeypatch.setattr(client.subprocess, "Popen", refuse)


def make(config: dict[str, Any] | None = None, **own: Any) -> SandboxProvisioner:
    """As jupyter_client makes one: the kernelspec's config as arguments, the server's as config."""
    return SandboxProvisioner(
        kernel_id="k1",
        kernel_spec=KernelSpec(),
        config=Config({"SandboxProvisioner": config or {}}),
        **own,
    )


# -- what is accepted --------------------------------------------------------------------------


def test_without_any_config() -> None:
    made = make()
    assert made.spec == SandboxSpec()
    assert not made.has_process
    assert made.sandbox is None and made.process is None and made.directory is None


def test_every_key_is_a_trait_with_help_and_no_other_is() -> None:
    own = SandboxProvisioner.class_own_traits(config=True)
    assert set(own) == set(KEYS)
    assert all(len(trait.help) > 10 for trait in own.values())


VALUES: dict[str, Any] = {
    "memory": "512M",
    "cpus": 1.5,
    "pids": 64,
    "workspace": "ro",
    "mounts": [{"source": "/srv"}],
    "env_pass": ["A"],
    "transport": "tcp",
}


@pytest.mark.parametrize("key", VALUES)
def test_the_kernelspec_and_the_servers_config_mean_the_same(key: str) -> None:
    expected = parse_spec({key: VALUES[key]})
    assert expected != SandboxSpec()
    assert make(**{key: VALUES[key]}).spec == expected
    assert make({key: VALUES[key]}).spec == expected


def test_the_kernelspec_beats_the_servers_config_key_by_key() -> None:
    spec = make({"memory": "1G", "pids": 64}, memory="512M").spec
    assert (spec.caps.memory, spec.caps.pids) == (512 * MIB, 64)


def test_two_provisioners_share_nothing() -> None:
    first, second = make(mounts=[{"source": "/srv"}]), make()
    assert first.spec.mounts == (Mount("/srv", "/srv"),)
    assert second.spec.mounts == ()


def test_as_the_factory_makes_it() -> None:
    manager = KernelManager(config=Config({"SandboxProvisioner": {"pids": 64}}))
    factory = KernelProvisionerFactory(parent=manager)
    spec = kernelspec(config={"memory": "512M"})
    made = factory.create_provisioner_instance("k1", spec, parent=manager)
    assert isinstance(made, SandboxProvisioner)
    assert made.spec.caps.asked() == {"memory": 512 * MIB, "pids": 64}


def kernelspec(**stanza: Any) -> KernelSpec:
    made = {"provisioner_name": "sandbox-provisioner"} | stanza
    return KernelSpec(metadata={"kernel_provisioner": made})


#: What a command line says → the value.
TEXTS: dict[str, tuple[str, Any]] = {
    "memory": ("512M", "512M"),
    "cpus": ("1.5", 1.5),
    "pids": ("64", 64),
    "workspace": ("ro", "ro"),
    "workspace_path": ("/srv/a b", "/srv/a b"),
    "hide": ('["/srv/a", "/srv/b"]', ["/srv/a", "/srv/b"]),
    "mounts": ('[{"source": "/srv", "mode": "rw"}]', [{"source": "/srv", "mode": "rw"}]),
    "env_pass": ("[]", []),
}


@pytest.mark.parametrize("key", TEXTS)
def test_a_value_of_a_command_line_is_json_or_text(key: str) -> None:
    """jupyter's applications do not know this class: they leave the text for it to read."""
    text, value = TEXTS[key]
    assert make({key: DeferredConfigString(text)}).spec == make({key: value}).spec
    assert getattr(make({key: DeferredConfigString(text)}), key) == value


@pytest.mark.parametrize("known", [False, True])
def test_a_command_line_from_end_to_end(known: bool) -> None:
    class App(Application):
        classes = [SandboxProvisioner] if known else []

    app = App()
    app.parse_command_line(
        [f"--SandboxProvisioner.{key}={TEXTS[key][0]}" for key in ("memory", "pids", "hide")]
    )
    made = SandboxProvisioner(kernel_id="k1", kernel_spec=KernelSpec(), config=app.config)
    assert made.spec == parse_spec({key: TEXTS[key][1] for key in ("memory", "pids", "hide")})


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["memory", "cpus", "pids", "hide", "mounts", "workspace"])
@pytest.mark.parametrize("text", ["null", "None", "", " null ", "NaN", "true", "{}", "Infinity"])
def test_a_text_of_a_command_line_that_means_nothing_removes_no_cap(key: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        make({key: DeferredConfigString(text)})
    assert caught.value.message.startswith(f"{key} = ")


@pytest.mark.parametrize("key", ["memory", "pids", "hide"])
def test_none_in_the_servers_config_is_no_value(key: str) -> None:
    with pytest.raises(SpecError) as caught:
        make({key: None})
    assert (
        caught.value.message == f"{key} = None is not possible: allowed is a value, or no such key"
    )


@pytest.mark.parametrize(
    ("stanza", "key"),
    [
        ({"confg": {"memory": "2G"}}, "kernel_provisioner.confg"),
        ({"config": {}, "Config": {}}, "kernel_provisioner.Config"),
        ({"memory": "2G"}, "kernel_provisioner.memory"),
        ({"config": {"memory": "2G"}, "pids": 64}, "kernel_provisioner.pids"),
        ({"name": None}, "kernel_provisioner.name"),
    ],
)
def test_caps_in_another_place_of_the_kernelspec_are_not_lost(
    stanza: dict[str, Any], key: str
) -> None:
    allowed = " is not possible: allowed is a table with the keys provisioner_name, config"
    with pytest.raises(SpecError) as caught:
        SandboxProvisioner(kernel_id="k1", kernel_spec=kernelspec(**stanza))
    assert caught.value.message.startswith(f"{key} = ") and caught.value.message.endswith(allowed)
    manager = KernelManager()
    factory = KernelProvisionerFactory(parent=manager)
    with pytest.raises(SpecError):
        factory.create_provisioner_instance("k1", kernelspec(**stanza), parent=manager)


@pytest.mark.parametrize("stanza", [None, "sandbox-provisioner", ["config"], 5])
def test_a_stanza_that_is_no_table(stanza: object) -> None:
    with pytest.raises(SpecError) as caught:
        kernelspec_config({"kernel_provisioner": stanza})
    assert caught.value.message == (
        f"kernel_provisioner = {stanza!r} is not possible: allowed is a table with the keys "
        "provisioner_name, config"
    )


@pytest.mark.parametrize("config", [None, "memory", ["memory"], 5])
def test_a_config_that_is_no_table(config: object) -> None:
    with pytest.raises(SpecError) as caught:
        kernelspec_config({"kernel_provisioner": {"config": config}})
    assert caught.value.message == (
        f"kernel_provisioner.config = {config!r} is not possible: allowed is a table"
    )


def test_the_config_of_a_kernelspec() -> None:
    config = {"memory": "2G"}
    metadata = {"debugger": True, "kernel_provisioner": {"config": config}}
    found = kernelspec_config(metadata)
    assert found == config and found is not config
    assert kernelspec_config({}) == kernelspec_config({"kernel_provisioner": {}}) == {}


@pytest.mark.parametrize("key", ["memroy", "Memory", "caps", "ip", "pid", "ports_cached", "cwd"])
def test_an_unknown_key_of_the_kernelspec(key: str) -> None:
    """Even one that is a trait of the base class: it is none of the spec."""
    with pytest.raises(SpecError) as caught:
        make(**{key: "2G"})
    assert caught.value.message.startswith(f"{key} = '2G' is not possible: allowed is one of")
    for known in KEYS:
        assert known in caught.value.message


@pytest.mark.filterwarnings("ignore")  # traitlets says it too, but only as a warning
@pytest.mark.parametrize("key", ["memroy", "Memory", "caps"])
def test_an_unknown_key_of_the_servers_config(key: str) -> None:
    with pytest.raises(SpecError) as caught:
        make({key: "2G"})
    assert caught.value.message.startswith(f"{key} = '2G' is not possible: allowed is one of")
    assert "memory" in caught.value.allowed


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory", "2GB"), ("memory", 1), ("pids", True), ("network", "full"), ("mounts", "/srv")],
)
def test_a_value_that_cannot_be(key: str, value: object) -> None:
    for attempt in ({key: value}, {}):
        with pytest.raises(SpecError) as caught:
            make(attempt, **({} if attempt else {key: value}))
        assert caught.value.message.startswith(f"{key} = {value!r} is not possible: allowed is ")


def test_the_factory_hands_the_error_on() -> None:
    manager = KernelManager()
    factory = KernelProvisionerFactory(parent=manager)
    with pytest.raises(SpecError, match=r"^memroy = '512M' is not possible"):
        factory.create_provisioner_instance(
            "k1", kernelspec(config={"memroy": "512M"}), parent=manager
        )


def test_a_value_from_the_command_line_is_text_and_is_held_against_the_key() -> None:
    """``--SandboxProvisioner.memory=512M`` works, ``…pids=64x`` is an error."""
    assert make({"memory": "512M"}).spec.caps.memory == 512 * MIB
    with pytest.raises(SpecError, match=r"^pids = '64x' is not possible"):
        make({"pids": "64x"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", ["below the parent", "of the base class"])
def test_an_unknown_key_in_another_section_that_counts(where: str) -> None:
    """traitlets reads ``c.KernelManager.SandboxProvisioner`` and base classes' sections too."""

    class Derived(SandboxProvisioner):
        pass

    section = {"SandboxProvisioner": {"memroy": "1G"}}
    below = where == "below the parent"
    config = Config({"KernelManager": section} if below else section)
    kind = SandboxProvisioner if below else Derived
    with pytest.raises(SpecError):
        kind(kernel_id="k1", kernel_spec=KernelSpec(), parent=KernelManager(config=config))


def test_null_in_the_kernelspec_removes_no_cap() -> None:
    """The foreground command refuses it; both routes should."""
    with pytest.raises(SpecError):
        make({"memory": "1G"}, memory=None)


def test_a_list_cannot_be_appended_to_in_the_servers_config() -> None:
    """traitlets would drop it in silence, as the trait has no list to append to."""
    config = Config()
    config.SandboxProvisioner.hide.append("/srv/keys")
    with pytest.raises(SpecError, match="a list is set, not appended to"):
        SandboxProvisioner(kernel_id="k1", kernel_spec=KernelSpec(), config=config)
