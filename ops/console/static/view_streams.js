// Each attention actor: its streams, its KV blocks, its steps.

import { byId, fillRows } from "./dom.js";
import * as format from "./format.js";

export class StreamsView {
    show({ state, window }) {
        const actors = state.members.filter((member) => member.role === "attention");
        fillRows(
            byId("streams"),
            actors.length === 0
                ? [["No attention actor is a member."]]
                : actors.map((actor) => cells(actor, window.of(actor))),
        );
    }
}

function cells(actor, window) {
    const usage = window.sum("step35_kv_cache_usage_ratio");
    const number = (text) => ({ text, className: "number" });
    const hits = window.increase("step35_prefix_cache_hit_tokens_total");
    const queries = window.increase("step35_prefix_cache_query_tokens_total");
    return [
        { text: format.memberName(actor.member), isHeader: true },
        number(format.count(window.sum("step35_requests_running"))),
        number(format.count(window.sum("step35_requests_waiting"))),
        { text: format.percent(usage), share: usage ?? 0, className: "number" },
        number(format.count(window.increase("step35_preemptions_total"))),
        number(queries > 0 ? format.percent(hits / queries) : queries === 0 ? format.NONE : format.NO_DATA),
        number(format.quantile(window.quantile("step35_step_seconds", 0.5))),
        number(format.quantile(window.quantile("step35_step_seconds", 0.99))),
    ];
}
