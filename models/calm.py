"""Motion that few coefficients leave open: of all signals that have them, the calmest.

A codec that keeps the lowest frequencies of each chunk says nothing of the others; taken as zero, a movement becomes a
staircase with a step at every chunk. What the chunks before and after keep tells where a movement comes from and goes.
"""

from __future__ import annotations

import numpy as np


def calmest(known: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[frames, coefficients] float64 operator: what is known of before, chunk and after, to the chunk's frames.

    known: [kept, frames] analysis of the chunk; before, after: the same of its neighbours, [0, 0] where there is none.

    The sum of squared first and second differences over all frames is least while every coefficient is what it is: a
    quadratic programme, solved by its Lagrangian. A constant signal stays constant.
    """
    from scipy.linalg import block_diag

    rows = block_diag(*[part for part in (before, known, after) if part.size])
    count, length = rows.shape
    steps, bends = (np.diff(np.eye(length), n=order, axis=0) for order in (1, 2))
    system = np.block([[steps.T @ steps + bends.T @ bends, rows.T], [rows, np.zeros((count, count))]])
    given = np.concatenate([np.zeros((length, count)), np.eye(count)])
    found: np.ndarray = np.linalg.solve(system, given)
    return found[before.shape[1] : before.shape[1] + known.shape[1]]
