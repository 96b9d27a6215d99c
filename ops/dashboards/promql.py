"""Expressions that panels are made of. Pure; knows PromQL and the name of the job variable, and no metric.

Counters are shown as rates. A ratio is one of sums, never a mean of ratios, and has no value where its denominator
is 0.
"""

from __future__ import annotations

WINDOW = "$__rate_interval"
JOB = 'job="$job"'

PERCENTILES = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))


def select(metric: str, *matchers: str) -> str:
    """The series of the chosen cluster. matchers: as PromQL writes them, such as position="0"."""
    return f"{metric}{{{', '.join((JOB, *matchers))}}}"


def over(function: str, expression: str, *by: str) -> str:
    """An aggregation, such as `sum by (layer) (...)`."""
    return f"{function} by ({', '.join(by)}) ({expression})" if by else f"{function}({expression})"


def rate(metric: str, *matchers: str, by: tuple[str, ...] = ()) -> str:
    """A counter's growth in a second, summed over processes."""
    return over("sum", f"rate({select(metric, *matchers)}[{WINDOW}])", *by)


def total_rate(metric: str, *matchers: str) -> str:
    """As `rate`, and 0 of what was never counted: in a sum with others it must not make them vanish."""
    return f"({rate(metric, *matchers)} or vector(0))"


def increase(metric: str, window: str, *matchers: str, by: tuple[str, ...] = ()) -> str:
    """A counter's growth over a window, for what happens seldom."""
    return over("sum", f"increase({select(metric, *matchers)}[{window}])", *by)


def ratio(numerator: str, denominator: str) -> str:
    """Both: one value, or values of equal labels."""
    return f"({numerator}) / ({denominator} > 0)"


def share_of_all(parts: str, whole: str) -> str:
    """Parts with labels over one number."""
    return f"({parts}) / on () group_left () ({whole} > 0)"


def quantile(q: float, histogram: str, window: str = WINDOW) -> str:
    """Of all processes together: buckets are summed first."""
    return f"histogram_quantile({q}, sum by (le) (rate({select(histogram + '_bucket')}[{window}])))"


def mean(histogram: str) -> str:
    """Of what was recorded in the window."""
    return ratio(rate(f"{histogram}_sum"), rate(f"{histogram}_count"))


def over_mean(expression: str, within: str) -> str:
    """Each value over the mean of those that share the label `within`."""
    return f"({expression}) / on ({within}) group_left () (avg by ({within}) ({expression}) > 0)"


def padded(expression: str, label: str, digits: int) -> str:
    """A number in a label with zeros before it, because Grafana sorts rows and columns as text."""
    for missing in range(digits - 1, 0, -1):
        pattern = "." * (digits - missing)
        expression = f'label_replace({expression}, "{label}", "{"0" * missing}$1", "{label}", "({pattern})")'
    return expression
