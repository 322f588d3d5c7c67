"""Predictors by name: what `--mix` and `--adapt` ask for, and what compressed files record.

A mixture or an adaptation is built on the network whose windows it reads, and that network is its
control. Nothing is imported before it is asked for: counts need numba, adaptation does not. Other
names are those that installed packages register in the entry-point group `qpack.predictors`, as
`build(network, tokenizer, settings) -> Predictor`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qpack.errors import ConfigError, QpackError, SetupError
from qpack.eval.checks import CheckSettings
from qpack.eval.network import Network
from qpack.eval.predictor import Mixture, Predictor
from qpack.plugins import PREDICTORS, did_you_mean, load_plugin, names
from qpack.runs.overrides import apply_overrides, parse_overrides
from qpack.tokenizer import Tokenizer

MIXTURES = ("ngram", "tilt", "ppm", "token_ppm")
ADAPTATIONS = ("sgd", "adamw", "lora")
SETTINGS = {
    "ngram": ("qpack.eval.ngram", "NgramSettings"),
    "tilt": ("qpack.eval.tilt", "TiltSettings"),
    "ppm": ("qpack.eval.ppm_mixer", "PpmSettings"),
    "token_ppm": ("qpack.eval.token_ppm", "TokenPpmSettings"),
    "sgd": ("qpack.eval.adapt_settings", "AdaptSettings"),
    "adamw": ("qpack.eval.adapt_settings", "AdaptSettings"),
    "lora": ("qpack.eval.lora_settings", "LoraSettings"),
}
"""Where each name's settings are declared."""
SECTIONS = {"sgd": "adapt", "adamw": "adapt"}
"""The table of settings of each name, where it has another one's."""
CHECK = "check"
"""The table of settings of the probes."""
REHEARSAL_CHUNKS = 4
"""Chunks that the stream of a rehearsal has at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A predictor and what it is compared with."""

    predictor: Predictor
    control: Predictor | None
    """The same windows without what the name adds; of windows that overlap or keep documents apart,
    disjoint ones; of those, None."""
    settings: Mapping[str, Any]
    """Of the network, then of what was added to it; plain values."""
    rehearsal: Predictor
    """What probes run on: the predictor, with chunks so short that it learns within the probes."""


def contenders(
    network: Network,
    tokenizer: Tokenizer,
    names: Sequence[str],
    tables: Mapping[str, Mapping[str, Any]],
    *,
    checks: CheckSettings | None = None,
) -> list[Contender]:
    """The network as it is, then what each name makes of it with its table of settings.

    Raises as `build`; all are built before any of them runs.
    """
    rehearsal_tokens = 0 if checks is None else checks.num_tokens
    return [
        plain(network),
        *(
            build(
                name,
                network,
                tokenizer,
                tables.get(section_of(name), {}),
                rehearsal_tokens=rehearsal_tokens,
            )
            for name in names
        ),
    ]


def settings_tables(changes: Iterable[str], names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`ngram.max_order=5` and the like as tables, for the predictors of `names`.

    Raises `ConfigError` naming every change that nothing reads.
    """
    overrides = parse_overrides(changes)
    sections = {section_of(name) for name in names}
    lost = [".".join(key) for key, _ in overrides if len(key) < 2 or key[0] not in sections]
    if lost:
        raise ConfigError(
            "--set changes what nothing here reads",
            items=lost,
            hint=f"tables that are read: {', '.join(sorted(sections)) or 'none'}",
        )
    return apply_overrides({}, overrides)


def plain(network: Network) -> Contender:
    """The network itself."""
    disjoint = network.stride == network.window and network.isolate is None
    return Contender(
        predictor=network,
        control=None if disjoint else Network(network.model, window=network.window),
        settings=network.settings,
        rehearsal=network,
    )


def beside(control: Network, network: Network) -> Contender:
    """Another network in the windows of the control."""
    return Contender(
        predictor=network, control=control, settings=network.settings, rehearsal=network
    )


def build(
    name: str,
    network: Network,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    *,
    rehearsal_tokens: int = 0,
) -> Contender:
    """What `name` makes of the network with these settings; a rehearsal is that many tokens long.

    Raises `ConfigError` for unknown names and settings and for values out of range, `SetupError`
    where a package is missing.
    """
    check_names([name])
    if name in MIXTURES:
        return _mixture(name, network, tokenizer, settings)
    if name in ADAPTATIONS:
        return _adaptation(name, network, tokenizer, settings, rehearsal_tokens)
    predictor = _plugin(name, network, tokenizer, settings)
    return Contender(
        predictor=predictor,
        control=network,
        settings={**network.settings, name: dict(settings)},
        rehearsal=predictor,
    )


def _plugin(
    name: str, network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]
) -> Predictor:
    """What another package makes of the network. Raises `SetupError` where that is no predictor."""
    build = load_plugin(PREDICTORS, name)
    try:
        made = build(network, tokenizer, settings)
    except QpackError:
        raise
    except Exception as error:
        raise SetupError(
            f'the predictor "{name}" could not be built: {type(error).__name__}: {error}',
            hint="its package is at fault, not qpack",
        ) from error
    if not isinstance(made, Predictor):
        raise SetupError(
            f'the predictor "{name}" is none: {type(made).__name__}',
            hint="its package must give name, vocab_size, start and score",
        )
    return made


def check_names(wanted: Sequence[str]) -> None:
    """Raise `ConfigError` naming every name that nobody provides or that is asked for twice."""
    known = (*MIXTURES, *ADAPTATIONS, *names(PREDICTORS))
    problems = [
        f'unknown predictor "{name}"{did_you_mean(name, known)}'
        for name in dict.fromkeys(wanted)
        if name not in known
    ]
    problems += [f"{name}: asked for twice" for name in sorted({*wanted}) if wanted.count(name) > 1]
    if problems:
        raise ConfigError(
            "what is asked for cannot be added to the model",
            items=problems,
            hint=f"known: {', '.join(known)}; or install the package that provides it",
        )


def check_settings(wanted: Sequence[str], tables: Mapping[str, Mapping[str, Any]]) -> None:
    """All that can be told before there is a model. Raises as `build`."""
    check_names(wanted)
    for name in wanted:
        if name in SETTINGS:
            own_settings(name, tables.get(section_of(name), {}))


def section_of(name: str) -> str:
    """The table of settings that a predictor reads: its name, but `adapt` for full weights."""
    return SECTIONS.get(name, name)


def _mixture(
    name: str, network: Network, tokenizer: Tokenizer, settings: Mapping[str, Any]
) -> Contender:
    chosen = own_settings(name, settings)
    module: Any = importlib.import_module(SETTINGS[name][0])
    if name == "ppm":
        mixer = module.PpmMixer(chosen, tokenizer)
    elif name == "token_ppm":
        mixer = module.TokenPpmMixer(chosen, network.vocab_size)
    elif name == "ngram":
        mixer = module.NgramMixer(chosen, network.vocab_size)
    else:
        mixer = module.TiltMixer(chosen, network.vocab_size)
    predictor = Mixture(network, mixer)
    return Contender(
        predictor=predictor,
        control=network,
        settings={**network.settings, name: asdict(chosen)},
        rehearsal=predictor,
    )


def _adaptation(
    name: str,
    network: Network,
    tokenizer: Tokenizer,
    settings: Mapping[str, Any],
    rehearsal_tokens: int,
) -> Contender:
    kind: Any
    chosen = own_settings(name, settings)
    if name == "lora":
        kind = importlib.import_module("qpack.eval.lora").LoraAdapted
        if network.isolate is None:  # adapters are a document's own
            network = Network(network.model, window=network.window, isolate=tokenizer.bos)
    else:
        kind = importlib.import_module("qpack.eval.adapt").Adapted
    predictor = kind(network, chosen)
    rehearsal = predictor
    shortest = rehearsal_tokens // REHEARSAL_CHUNKS
    if 0 < shortest < chosen.chunk_tokens:
        if name == "lora":  # whose chunks divide the window
            shortest = next(n for n in range(shortest, 0, -1) if network.window % n == 0)
        rehearsal = kind(network, replace(chosen, chunk_tokens=shortest))
    return Contender(
        predictor=predictor,
        control=predictor.control,
        settings=predictor.settings,
        rehearsal=rehearsal,
    )


def own_settings(name: str, table: Mapping[str, Any]) -> Any:
    """What `name`, one of qpack's own, is to be: its settings dataclass from the values of `table`.

    Raises as `read_settings`, and `SetupError` where a package is missing.
    """
    module, kind = SETTINGS[name]
    section = section_of(name)
    if section == "adapt":
        if table.get("optimizer", name) != name:
            raise ConfigError(
                "--set cannot be used",
                items=[f"adapt.optimizer = {table['optimizer']!r}, and {name} was asked for"],
                hint=f"--adapt {table['optimizer']}",
            )
        table = {"optimizer": name, **table}
    return read_settings(getattr(importlib.import_module(module), kind), table, section)


S = TypeVar("S")


def read_settings(kind: type[S], table: Mapping[str, Any], section: str) -> S:
    """Settings of the dataclass `kind` from plain values, the rest at their defaults.

    Raises `ConfigError` naming every unknown key, with the likely one, and every wrong value.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    problems = [
        f"{section}.{key}: unknown{did_you_mean(key, known)}" for key in table if key not in known
    ]
    if problems:
        raise ConfigError("--set cannot be used", items=problems)
    try:
        return TypeAdapter(kind).validate_python(dict(table))
    except ValidationError as error:
        problems = [
            f"{section}.{'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("--set cannot be used", items=problems) from None
