"""Predictors by name: their control, their settings, what is refused, and plugins."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest
import torch

from qpack import plugins
from qpack.errors import ConfigError, SetupError
from qpack.eval.checks import CheckSettings, check
from qpack.eval.network import Network
from qpack.eval.predictor import Mixture, Predictor
from qpack.eval.registry import ADAPTATIONS, MIXTURES, build, contenders, plain, settings_tables
from qpack.plugins import PREDICTORS
from qpack.tokenizer import Tokenizer
from tests.unit.trainer.model.tiny import tiny

from .test_predictor import Unigram


@pytest.fixture
def network(tokenizer: Tokenizer) -> Network:
    return Network(
        tiny(dtype=torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size), window=8, stride=4
    )


def echo(network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Predictor:
    """What an installed package may provide."""
    del tokenizer, settings
    return Mixture(network, Unigram())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("echo", f"{__name__}:echo", PREDICTORS)
    monkeypatch.setattr(
        plugins, "entry_points", lambda *, group: EntryPoints([point]).select(group=group)
    )


def broken(network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Predictor:
    raise RuntimeError("boom")


def nothing(network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> Any:
    return 3


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("broken", '"mine" could not be built: RuntimeError: boom'),
        ("nothing", '"mine" is none: int'),
    ],
)
def test_a_package_at_fault_is_named(
    attribute: str,
    words: str,
    network: Network,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    point = EntryPoint("mine", f"{__name__}:{attribute}", PREDICTORS)
    monkeypatch.setattr(
        plugins, "entry_points", lambda *, group: EntryPoints([point]).select(group=group)
    )
    with pytest.raises(SetupError, match=words):
        build("mine", network, tokenizer, {})


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_beside_the_network_that_it_mixes(
    name: str, network: Network, tokenizer: Tokenizer
) -> None:
    made = build(name, network, tokenizer, {})
    assert made.control is network
    assert made.predictor.name == f"sliding by 4 + {name}"
    assert made.settings["window"] == 8
    assert made.settings[name]
    assert made.rehearsal is made.predictor


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_an_adaptation_has_the_control_of_its_own_windows(
    name: str, network: Network, tokenizer: Tokenizer
) -> None:
    chunks = {"chunk_tokens": 4} if name == "lora" else {}
    made = build(name, network, tokenizer, chunks, rehearsal_tokens=40)
    assert isinstance(made.control, Network)
    assert made.control.isolate == (tokenizer.bos if name == "lora" else None)
    assert made.predictor.name == f"{made.control.name} + {name}"


def test_a_rehearsal_learns_within_its_tokens(network: Network, tokenizer: Tokenizer) -> None:
    settings = {"learning_rate": 0.5, "epochs": 1}
    made = build("sgd", network, tokenizer, settings, rehearsal_tokens=24)
    tokens = np.random.default_rng(0).integers(4, tokenizer.vocab_size, size=24)
    control = network.score(tokens)
    np.testing.assert_array_equal(made.predictor.score(tokens), control)
    assert not np.allclose(made.rehearsal.score(tokens), control)
    assert all(probe.passed for probe in check(made.rehearsal, tokens))


def test_a_rehearsal_of_adapters_has_chunks_that_divide_the_window(
    network: Network, tokenizer: Tokenizer
) -> None:
    settings = {"chunk_tokens": 8}
    for tokens, chunk in ((31, 4), (28, 4), (12, 2), (33, 8), (0, 8)):
        made = build("lora", network, tokenizer, settings, rehearsal_tokens=tokens)
        assert made.rehearsal.how.chunk_tokens == chunk  # type: ignore[attr-defined]
        assert made.settings["lora"]["chunk_tokens"] == 8


def test_windows_that_overlap_or_end_with_documents_are_beside_disjoint_ones() -> None:
    model = tiny()
    assert plain(Network(model, window=8)).control is None
    for reading in ({"stride": 4}, {"isolate": 1}):
        control = plain(Network(model, window=8, **reading)).control
        assert isinstance(control, Network)
        assert control.settings == {"window": 8, "stride": 8, "isolate": None}


def test_all_of_them_in_order(network: Network, tokenizer: Tokenizer) -> None:
    tables = {"adapt": {"epochs": 2}, "ngram": {"max_order": 3}}
    made = contenders(network, tokenizer, ["sgd", "ngram"], tables, checks=CheckSettings())
    assert [one.predictor.name for one in made] == [
        "sliding by 4", "sliding by 4 + sgd", "sliding by 4 + ngram",
    ]  # fmt: skip
    assert made[1].settings["adapt"]["epochs"] == 2
    assert made[1].settings["adapt"]["optimizer"] == "sgd"


@pytest.mark.usefixtures("installed")
def test_what_a_package_provides(network: Network, tokenizer: Tokenizer) -> None:
    made = build("echo", network, tokenizer, {"loud": True})
    assert made.predictor.name == "sliding by 4 + counts"
    assert made.settings["echo"] == {"loud": True}
    with pytest.raises(ConfigError, match='"ecko" \\(did you mean "echo"') as error:
        build("ecko", network, tokenizer, {})
    assert "ngram, tilt, ppm, token_ppm, sgd, adamw, lora, echo" in str(error.value)


def test_settings_as_tables() -> None:
    tables = settings_tables(["ngram.rate=0.5", "adapt.reset=chunk"], ["ngram", "adamw"])
    assert tables == {"ngram": {"rate": 0.5}, "adapt": {"reset": "chunk"}}
    with pytest.raises(ConfigError) as error:
        settings_tables(["ppm.order=3", "rate=1", "ngram.rate=1"], ["ngram"])
    assert error.value.items == ("ppm.order", "rate")


def test_settings_that_are_wrong_are_all_named(network: Network, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError) as error:
        build("ngram", network, tokenizer, {"zzz": 1, "max_ordr": 3})
    assert error.value.items == (
        "ngram.zzz: unknown", 'ngram.max_ordr: unknown (did you mean "max_order"?)',
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        build("lora", network, tokenizer, {"rank": "many", "targets": ["head", 3]})
    assert len(error.value.items) == 2
