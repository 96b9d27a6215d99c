// How it went in the last minutes, with rebalances shaded: balancedness, expert time over the best, steps, tokens.

import { byId } from "./dom.js";
import * as format from "./format.js";
import { LineChart } from "./chart.js";
import { isBusy, spans } from "./rebalances.js";

// What is kept of a state for the charts. recent: a window of the last seconds.
export function pointOf(state, recent) {
    const { experts } = state;
    const latency = (name, share) => recent.quantile(name, share)?.value;
    const isMeasured = experts.window_tokens > 0;
    return {
        time: state.time,
        isBusy: isBusy(experts.balancer),
        balancedness: isMeasured ? experts.balancedness : undefined,
        least: isMeasured ? Math.min(...experts.layers.map((layer) => layer.balancedness)) : undefined,
        excess: isMeasured && experts.best_us > 0 ? experts.predicted_us / experts.best_us : undefined,
        p50: experts.step_p50_ms > 0 ? experts.step_p50_ms / 1000 : undefined,
        p99: experts.step_p99_ms > 0 ? experts.step_p99_ms / 1000 : undefined,
        between50: latency("step35_inter_token_latency_seconds", 0.5),
        between99: latency("step35_inter_token_latency_seconds", 0.99),
    };
}

export class TimelinesView {
    #charts;

    constructor() {
        const parent = byId("charts");
        const share = (value) => format.fixed(value);
        const fromZero = (_, high) => [0, high || 1];
        this.#charts = [
            new LineChart(parent, {
                title: "Balancedness (1: even)",
                lines: [
                    { key: "balancedness", label: "mean" },
                    { key: "least", label: "worst layer" },
                ],
                format: share,
                fit: (low) => [Math.min(0.8, low), 1],
            }),
            new LineChart(parent, {
                title: "Expert time over the best map's",
                lines: [{ key: "excess", label: "predicted / best" }],
                format: (value) => `${value.toFixed(2)}×`,
                fit: (_, high) => [1, Math.max(1.1, high)],
            }),
            new LineChart(parent, {
                title: "Engine step",
                lines: [
                    { key: "p50", label: "p50" },
                    { key: "p99", label: "p99" },
                ],
                format: format.seconds,
                fit: fromZero,
            }),
            new LineChart(parent, {
                title: "Between tokens, at the client",
                lines: [
                    { key: "between50", label: "p50" },
                    { key: "between99", label: "p99" },
                ],
                format: format.seconds,
                fit: fromZero,
            }),
        ];
    }

    show({ state, points }) {
        const shaded = spans(state.experts.balancer, points, state.time);
        for (const chart of this.#charts) chart.draw(points, shaded);
    }
}
