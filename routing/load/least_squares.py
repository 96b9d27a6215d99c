"""Least squares of a few terms, none of which may count negatively: prices are learnt this way. Pure."""

from __future__ import annotations

from itertools import product

import numpy as np

from routing.load.sums import FloatArray


def non_negative_fit(normal: FloatArray, target: FloatArray, *, ridge: float = 0.0) -> FloatArray:
    """[F], the coefficients >= 0 with the least squared error, given sums of products of features, [F, F], and of
    features with what they predict, [F].

    The solution of every subset of terms is tried, so F must be small. ridge: draws terms that only vary together
    towards equal shares; relative to each term's own size.
    """
    num_terms = len(target)
    scale = np.sqrt(np.maximum(np.diag(normal), 1e-300))
    scaled, wanted = normal / np.outer(scale, scale) + ridge * np.eye(num_terms), target / scale
    best: FloatArray = np.zeros(num_terms)
    least = 0.0
    for chosen in product((True, False), repeat=num_terms):
        terms = np.flatnonzero(chosen)
        if not len(terms):
            continue
        found = np.linalg.lstsq(scaled[np.ix_(terms, terms)], wanted[terms], rcond=None)[0]
        if found.min() < 0.0:
            continue
        if all(chosen):
            best = found  # the least error of all, and allowed
            break
        error = float(found @ scaled[np.ix_(terms, terms)] @ found - 2.0 * found @ wanted[terms])
        if error < least:
            best, least = np.zeros(num_terms), error
            best[terms] = found
    return best / scale
