// What the balancer does now and what it did: phase, progress, alarms, the last rebalances with their cost and gain.

import { byId, fillRows, setText } from "./dom.js";
import * as format from "./format.js";
import { isBusy, stepTimes } from "./rebalances.js";

const MAX_RECORDS = 8;

export class BalancerView {
    #orders;
    #isPaused = false;

    constructor(orders) {
        this.#orders = orders;
        byId("dry-run").addEventListener("click", () => this.#orders.dryRun());
        byId("rebalance").addEventListener("click", () => this.#orders.rebalance());
        byId("pause-balancer").addEventListener("click", () => this.#orders.setPaused(!this.#isPaused));
    }

    show({ state, points }) {
        const { balancer } = state.experts;
        this.#isPaused = balancer.is_paused;
        setText(byId("pause-balancer"), balancer.is_paused ? "Resume balancer…" : "Pause balancer…");
        setText(byId("phase"), phaseText(balancer));
        this.#showProgress(balancer);
        this.#showAlarm(
            "stalled",
            balancer.is_stalled,
            `STALLED: ${balancer.phase} for ${format.seconds(balancer.phase_seconds)}`,
        );
        this.#showAlarm("paused", balancer.is_paused, "PAUSED: no rebalance begins by itself");
        setText(byId("decision"), balancer.last_decision);
        setText(byId("map-facts"), mapText(state.experts));
        const records = balancer.history.slice(-MAX_RECORDS).reverse();
        fillRows(
            byId("rebalances"),
            records.length === 0
                ? [["None since the coordinator started."]]
                : records.map((each) => cells(each, points, state.time)),
        );
    }

    #showProgress(balancer) {
        const bar = byId("progress");
        const [loaded, total] = isBusy(balancer) ? balancer.progress : [0, 0];
        if (bar.hidden !== !isBusy(balancer)) bar.hidden = !isBusy(balancer);
        bar.max = Math.max(1, total);
        bar.value = loaded;
        setText(byId("progress-text"), isBusy(balancer) ? `${loaded} of ${total} slots of this stage loaded` : "");
    }

    #showAlarm(id, isOn, text) {
        const node = byId(id);
        if (node.hidden === isOn) node.hidden = !isOn;
        setText(node, isOn ? text : "");
    }
}

function phaseText(balancer) {
    const mode = balancer.mode === "auto" ? "" : ` (mode ${balancer.mode})`;
    if (!isBusy(balancer)) return `Idle${mode}`;
    // Of a rebalance that a restarted coordinator found under way the stages are not known.
    const stage = balancer.num_stages > 0 ? `, stage ${balancer.stage} of ${balancer.num_stages}` : "";
    const verb = balancer.phase === "preparing" ? "Preparing: ranks read experts" : "Adopting: both maps are served";
    return `${verb}${stage}, for ${format.seconds(balancer.phase_seconds)}${mode}`;
}

function mapText(experts) {
    return (
        `Map epoch ${experts.map_epoch}: ` +
        `${format.many(experts.ep_size, "rank")} × ${experts.slots_per_rank} slots in each layer, ` +
        `${format.count(experts.num_redundant)} redundant copies, ` +
        `${format.count(experts.num_free_slots)} slots free. ` +
        `Fitted: ${format.fixed(experts.per_expert_us)} µs to touch an expert, ` +
        `${format.fixed(experts.per_pair_us, 3)} µs a pair.`
    );
}

function cells(record, points, now) {
    const { before, during, after } = stepTimes(record, points);
    const isDone = record.outcome === "done";
    return [
        format.clock(record.started_at, now),
        record.trigger,
        number(format.count(record.num_moves)),
        number(String(record.num_stages)),
        number(format.seconds(record.seconds)),
        number(unknown(record.gain, (gain) => format.percent(gain, 1))),
        [record.balancedness_before, record.balancedness_planned, record.balancedness_after]
            .map((value) => unknown(value, format.fixed))
            .join(" → "),
        during === undefined
            ? "not seen"
            : [before, during, after].map((value) => (value === undefined ? "?" : format.seconds(value))).join(" → "),
        { text: isDone ? "done" : `ABANDONED: ${record.reason}`, className: isDone ? "" : "bad" },
    ];
}

// What nobody measured yet, or what a restarted coordinator no longer knows.
function unknown(value, text) {
    return value === null ? "?" : text(value, 2);
}

function number(text) {
    return { text, className: "number" };
}
