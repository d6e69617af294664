"""What the words of layers are believed to do, corrected by what whole recipes were seen to do.

Errors of layers that were measured one at a time don't simply add up once many are quantized
together: some cancel out, some make others worse. So each recipe that is run teaches what its own
words do among others like them. The damages are unknown numbers, normally distributed around what
was measured alone; a recipe's squared error is their sum; and what is left of it is shared out
among its words by how uncertain each is (a Kalman filter). Plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..weights import REFERENCE
from .choosing_words import Group, Words, damages

if TYPE_CHECKING:
    import numpy as np

_DOUBT = 0.7  # of a damage that was measured alone, relative to itself
_NOISE = 0.1  # of a recipe's squared error: other pictures would say another
_LEAST = 0.05  # of what was measured alone: no word is believed to do less


class Beliefs:
    """Damages of all words, and how sure they are.

    Parameters
    ----------
    groups : sequence of Group
        All of them.
    floor : float
        The error of rounding alone.
    """

    def __init__(self, groups: Sequence[Group], floor: float) -> None:
        import numpy as np

        self._groups, self._floor = groups, floor
        alone = {
            (*group.key, word): harm
            for group in groups
            for word, harm in damages(group, floor).items()
            if word != REFERENCE
        }
        worst = max((h for h in alone.values() if np.isfinite(h)), default=1.0) or 1.0
        self._place = {key: at for at, key in enumerate(alone)}
        self._alone = np.array([h if np.isfinite(h) else 1e3 * worst for h in alone.values()])
        self._mean = self._alone.copy()
        self._covariance = np.diag((_DOUBT * self._alone) ** 2)

    def learn(self, words: Words, error: float) -> None:
        """Take in what a recipe did: its error, rounding included."""
        import numpy as np

        if not np.isfinite(error):
            return
        seen = max(error**2 - self._floor**2, (0.2 * self._floor) ** 2)
        taken = np.zeros(len(self._mean))
        for key, word in words.items():
            if word != REFERENCE:
                taken[self._place[*key, word]] = 1.0
        spread = self._covariance @ taken
        total = taken @ spread + (_NOISE * seen) ** 2
        self._mean = self._mean + spread * (seen - taken @ self._mean) / total
        self._covariance = self._covariance - np.outer(spread, spread) / total

    def expected(self) -> list[dict[str, float]]:
        """Return, of each group, what each word is believed to do."""
        return self._by_group(self._mean)

    def drawn(self, dice: np.random.Generator) -> list[dict[str, float]]:
        """Return damages as they may well be: what is least sure varies most."""
        import numpy as np

        small = np.diag(1e-9 * self._alone**2 + 1e-300)
        root = np.linalg.cholesky(self._covariance + small + 1e-6 * np.diag(self._alone**2))
        return self._by_group(self._mean + root @ dice.standard_normal(len(self._mean)))

    def _by_group(self, values: np.ndarray) -> list[dict[str, float]]:
        import numpy as np

        held = np.maximum(values, _LEAST * self._alone)
        return [
            {
                option.word: 0.0
                if option.word == REFERENCE
                else float(held[self._place[*group.key, option.word]])
                for option in group.options
            }
            for group in self._groups
        ]
