"""Labels that several metrics share, and the bucket bounds of histograms. Pure."""

from __future__ import annotations

from ops.telemetry.spec import Label

LAYER = Label("layer", at_most=64)  # the model's number of an MoE layer; the full model has 42
EXPERT = Label("expert", at_most=512)  # a logical expert; the full model has 288
POSITION = Label("position", at_most=8)  # of a draft, from 0; the full model has 3
TIER = Label("tier", ("attention", "expert"))

# Upper bounds. Seconds of one step or token, of a wait, of a whole request, of an operator's patience.
STEP_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5)
WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
REQUEST_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 240.0, 600.0)
CHANGE_S = (0.5, 1.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
ROWS = tuple(float(2**exponent) for exponent in range(14))  # to 8,192
TOKENS = tuple(float(4**exponent) for exponent in range(10))  # to 262,144: the model's context
