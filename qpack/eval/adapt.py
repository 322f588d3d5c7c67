"""Score-first training of the full weights at test time (#461, #549, #1440; techniques.md 8.3).

The windows are the network's own, and so is what scores them; between two windows a copy of the
model learns from what has been scored, in the order of `lessons.py`, as `learner.py` does it. The
network given is the control on the same windows, and stays as it is.

The rate's schedule needs the number of tokens beforehand: `score` and `rows` take that of the
stream they are given, a session is told. Nothing else is known of what comes.

Over ranks each scores every world-th window of a chunk and trains on every world-th sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qpack.errors import ConfigError
from qpack.eval.adapt_settings import AdaptSettings
from qpack.eval.learner import Learner, trained_parameters
from qpack.eval.lessons import Moment, Timetable, sequences
from qpack.eval.network import Network
from qpack.eval.predictor import LogProbs, Session, Tokens
from qpack.eval.ranks import sum_array
from qpack.eval.windows import Window
from qpack.progress import SILENT, Progress


class Adapted:
    """A network that learns from each chunk after it is scored: a `RowPredictor`."""

    def __init__(self, network: Network, settings: AdaptSettings | None = None) -> None:
        """Raises `ConfigError` for settings that do not suit the network's model."""
        self.how = settings or AdaptSettings()
        if self.how.reset == "document" and network.isolate is None:
            raise ConfigError(
                "reset = 'document', and the network's context goes over documents",
                hint="isolate documents, or reset by chunk",
            )
        self.control = network
        """The same windows by the model as it was given."""
        self.vocab_size = network.vocab_size
        self.name = f"{network.name} + {self.how.optimizer}"
        trained_parameters(network.model, self.how)

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of it."""
        return {**self.control.settings, "adapt": asdict(self.how)}

    def start(self, first: int, *, num_tokens: int | None = None) -> Session:
        """As `Predictor.start`. Raises `ConfigError` where the schedule needs `num_tokens`."""
        if num_tokens is None and self.how.schedule == "cosine":
            raise ConfigError(
                "the learning rate falls over a stream whose length is not given",
                hint="give num_tokens, or set schedule = constant",
            )
        return AdaptedSession(_Course(self, num_tokens or 0), first)

    def score(self, tokens: Tokens, *, progress: Progress = SILENT) -> NDArray[np.float64]:
        """As `Predictor.score`. Over ranks, all of them must call it, and all have the answer."""
        out = np.zeros(len(tokens) - 1)
        course = _Course(self, len(tokens))
        with progress.stage(self.name, total=len(out), unit="tokens") as task:
            for plan in course.follow(tokens):
                network = course.network
                network.scatter(list(network.score_windows(tokens, network.share(plan))), out)
                task.advance(sum(item.length - item.skip for item in plan))
        return sum_array(out)

    def rows(
        self, tokens: Tokens, *, progress: Progress = SILENT
    ) -> Iterator[tuple[LogProbs, Tokens]]:
        """As `RowPredictor.rows`. Over ranks, all must read it to the end: each scores everything,
        and they share the training."""
        course = _Course(self, len(tokens))
        with progress.stage(self.name, total=len(tokens) - 1, unit="tokens") as task:
            for plan in course.follow(tokens):
                for rows, targets in course.network.window_rows(tokens, plan):
                    yield rows, targets
                    task.advance(len(targets))


class _Course:
    """One stream's way through the lessons."""

    def __init__(self, adapted: Adapted, num_tokens: int) -> None:
        settings, network = adapted.how, adapted.control
        self._learner = Learner(network.model, settings)
        self._settings = settings
        self._moment = Moment(0, 0)
        self._timetable = Timetable(
            num_targets=num_tokens - 1,
            chunk_tokens=settings.chunk_tokens,
            bos=network.isolate if settings.reset == "document" else None,
            constant=settings.schedule == "constant",
        )
        self.network = network.with_model(self._learner.model)
        """The control's windows by the model as it is by now."""

    def follow(self, tokens: Tokens) -> Iterator[list[Window]]:
        """Windows over `tokens` between which nothing is learned, after what comes before them."""
        plan = self.network.plan(tokens)
        firsts = [item.start + item.skip for item in plan]
        moments = self._timetable.moments(tokens, firsts)
        for moment, pairs in groupby(zip(moments, plan, strict=True), key=lambda pair: pair[0]):
            group = [item for _, item in pairs]
            self._reach(moment, tokens[: group[0].start + group[0].skip + 1])
            yield group

    def arrive(self, known: Sequence[int]) -> bool:
        """A window begins to score what follows the tokens `known`. True if the model changed."""
        tokens = np.asarray(known)
        (moment,) = self._timetable.moments(tokens, [len(tokens) - 1])
        return self._reach(moment, tokens)

    def _reach(self, moment: Moment, known: Tokens) -> bool:
        """Learn all that may be learned at `moment`, when the tokens `known` are."""
        before, self._moment = self._moment, moment
        lessons = list(self._timetable.lessons(before, moment))
        forgets = moment.document != before.document
        if forgets:
            self._learner.reset()
        for lesson in lessons:
            if self._settings.reset == "chunk":
                self._learner.reset()
            network = self.network
            inputs, targets = sequences(
                known, lesson.begin, lesson.end, length=network.window, bos=network.isolate
            )
            self._learner.learn(inputs, targets, lesson.rate)
        return forgets or bool(lessons)


class AdaptedSession:
    """One stream, read token by token, its model changing where a window begins."""

    def __init__(self, course: _Course, first: int) -> None:
        self._course = course
        self._session = course.network.start(first)
        self._known = [first]
        self._left = course.network.window
        """Targets that the present window has yet to score."""

    def log_probs(self) -> LogProbs:
        """As `Session.log_probs`."""
        return self._session.log_probs()

    def observe(self, token: int) -> None:
        """As `Session.observe`. Where a window ends, trains on the chunks that are complete."""
        network = self._course.network
        self._session.observe(token)
        self._known.append(token)
        self._left -= 1
        if token == network.isolate:
            self._left = network.window
        elif not self._left:
            self._left = network.stride
        else:
            return
        if self._course.arrive(self._known):
            self._session.reread()
