// What clients feel: latencies, answers, and requests that were sent away or refused.

import { byId, fillRows, setText } from "./dom.js";
import * as format from "./format.js";

const LATENCIES = [
    ["first token", "step35_time_to_first_token_seconds"],
    ["between tokens", "step35_inter_token_latency_seconds"],
    ["per output token", "step35_time_per_output_token_seconds"],
    ["whole request", "step35_request_latency_seconds"],
    ["in the queue", "step35_queue_time_seconds"],
];
// What it counts, and which of its labels are a loss to clients.
const FLOWS = [
    ["finished", "step35_requests_finished_total", ["error"]],
    ["sent away", "step35_requests_shed_total", ["concurrency", "overloaded", "not_ready", "unavailable", "deadline"]],
    ["rejected", "step35_requests_rejected_total", []],
    ["HTTP answers", "step35_http_responses_total", ["5xx"]],
    ["continuations", "step35_continuations_total", ["failed"]],
];

export class UsersView {
    show({ window }) {
        fillRows(
            byId("latencies"),
            LATENCIES.map(([title, name]) => latencyRow(title, window, name)),
        );
        fillRows(
            byId("flows"),
            FLOWS.flatMap(([title, name, losses]) => flowRows(title, window, name, losses)),
        );
        const open = format.count(window.sum("step35_requests_open"));
        const [prompt, completion] = ["step35_prompt_tokens_total", "step35_completion_tokens_total"].map((name) =>
            format.rate(window.rate(name)),
        );
        setText(byId("traffic"), `Open requests: ${open}. Prompt tokens: ${prompt}. Completion tokens: ${completion}.`);
    }
}

function latencyRow(title, window, name) {
    const quantiles = [0.5, 0.9, 0.99].map((share) => format.quantile(window.quantile(name, share)));
    return [{ text: title, isHeader: true }, ...quantiles.map((text) => ({ text, className: "number" }))];
}

function flowRows(title, window, name, losses) {
    const now = window.increases(name);
    const ever = new Map(window.sums(name));
    if (now === undefined && ever.size === 0) return [[{ text: title, isHeader: true }, format.NO_DATA, "", ""]];
    const recent = new Map(now);
    return [...ever].map(([label, sum]) => {
        const rate = recent.has(label) ? format.rate(recent.get(label) / window.seconds) : format.NO_DATA;
        const isLoss = recent.get(label) > 0 && losses.includes(label);
        return [
            { text: title, isHeader: true },
            label,
            { text: rate, className: isLoss ? "number warn" : "number" },
            { text: format.count(sum), className: "number" },
        ];
    });
}
