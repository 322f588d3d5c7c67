"""How a PPM counts and how it is mixed with a network, over bytes or over tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qpack.errors import ConfigError
from qpack.eval.gate import Gate, fixed_gate, learned_gate

MAX_ORDER = 6
MAX_RATE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PpmSettings:
    """How to count and how to mix."""

    order: int = 4
    """Bytes of the longest context"""
    gate: Literal["learned", "fixed"] = "learned"
    """Whether the network's weight is learned from the scored text, or is one of two constants"""
    rate: float = 0.5
    """Of the learned gate: how far a first gradient moves a weight"""
    threshold: float = 0.9
    """Of the fixed gate: the confidence above which the counts are trusted"""
    sure: float = 0.05
    """Of the fixed gate: the network's weight above the threshold"""
    unsure: float = 0.9
    """Of the fixed gate: the network's weight elsewhere"""

    def __post_init__(self) -> None:
        """Raises ConfigError naming every setting that cannot be."""
        shares = {"threshold": self.threshold, "sure": self.sure, "unsure": self.unsure}
        wrong = [
            f"{name} = {value}: not from 0 to 1"
            for name, value in shares.items()
            if not 0 <= value <= 1
        ]
        if not 0 <= self.order <= MAX_ORDER:
            wrong.append(f"order = {self.order}: not from 0 to {MAX_ORDER}")
        if self.gate not in ("learned", "fixed"):
            wrong.append(f"gate = {self.gate!r}: neither 'learned' nor 'fixed'")
        if not 0 <= self.rate <= MAX_RATE:
            wrong.append(f"rate = {self.rate}: not from 0 to {MAX_RATE}")
        if wrong:
            raise ConfigError("the PPM mixer cannot be set so", items=wrong)

    def new_gate(self) -> Gate:
        """The gate of these settings, before anything was scored."""
        if self.gate == "learned":
            return learned_gate(rate=self.rate)
        return fixed_gate(threshold=self.threshold, sure=self.sure, unsure=self.unsure)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPpmSettings(PpmSettings):
    """The same over whole tokens."""

    order: int = 3
    """Tokens of the longest context"""
