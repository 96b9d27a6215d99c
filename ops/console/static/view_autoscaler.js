// How many replicas the autoscaler wants of each tier, and there are, and what it decided last.

import { byId, fillList, fillRows } from "./dom.js";
import * as format from "./format.js";

const TIERS = ["attention", "expert"];
const DECISIONS = ["up", "down", "hold"];
const MAX_EVENTS = 3;

export class AutoscalerView {
    show({ state, window, longWindow }) {
        const desired = new Map(window.sums("step35_autoscaler_desired_replicas"));
        const present = new Map(window.sums("step35_autoscaler_replicas"));
        fillRows(
            byId("autoscaler"),
            TIERS.map((tier) => cells(tier, desired.get(tier), present.get(tier), decisions(longWindow, tier))),
        );
        const events = state.events
            .filter((event) => event.kind === "autoscaler")
            .slice(-MAX_EVENTS)
            .reverse();
        const texts = events.map((event) => `${format.clock(event.time, state.time)} ${event.text}`);
        const nothing = "It has changed nothing since the coordinator started.";
        fillList(byId("autoscaler-events"), texts.length === 0 ? [nothing] : texts);
    }
}

function cells(tier, desired, present, decided) {
    const isApart = desired !== undefined && present !== undefined && desired !== present;
    return [
        { text: tier, isHeader: true },
        { text: format.count(desired), className: isApart ? "number warn" : "number" },
        { text: format.count(present), className: "number" },
        decided,
    ];
}

function decisions(window, tier) {
    const known = DECISIONS.map((decision) => [
        decision,
        window.increaseOf("step35_autoscaler_decisions_total", tier, decision),
    ]).filter(([, number]) => number !== undefined);
    return known.length === 0
        ? format.NO_DATA
        : known.map(([decision, number]) => `${decision} ${format.count(number)}`).join(", ");
}
