"""PPM-D with exclusion, slowly."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction


class Reference:
    """From the formulas, in exact fractions."""

    def __init__(self, order: int, alphabet: int) -> None:
        self.order, self.alphabet = order, alphabet
        self.stream: list[int] = []
        self.counts: dict[tuple[int, ...], dict[int, int]] = defaultdict(dict)

    def contexts(self) -> list[tuple[int, ...]]:
        longest = min(self.order, len(self.stream))
        return [tuple(self.stream[len(self.stream) - k :]) for k in range(longest, -1, -1)]

    def probs(self) -> list[Fraction]:
        out: dict[int, Fraction] = {}
        left = Fraction(1)
        for context in self.contexts():
            new = {s: c for s, c in self.counts.get(context, {}).items() if s not in out}
            if not new:
                continue
            T, n = sum(new.values()), len(new)
            denominator = 2 * T - n if len(out) + n == self.alphabet else 2 * T
            out |= {s: left * Fraction(2 * c - 1, denominator) for s, c in new.items()}
            left *= Fraction(n, 2 * T)
        rest = self.alphabet - len(out)
        return [out[s] if s in out else left / rest for s in range(self.alphabet)]

    def observe(self, symbol: int) -> None:
        for context in self.contexts():
            followers = self.counts[context]
            known = symbol in followers
            followers[symbol] = followers.get(symbol, 0) + 1
            if known:
                break
        self.stream.append(symbol)
