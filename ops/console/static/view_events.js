// What happened, the newest first.

import { byId, fillRows } from "./dom.js";
import * as format from "./format.js";

const MAX_EVENTS = 40;
const BAD = new Set(["member_lost", "rank_lost"]);

export class EventsView {
    show({ state }) {
        const events = state.events.slice(-MAX_EVENTS).reverse();
        fillRows(
            byId("events"),
            events.length === 0
                ? [["Nothing since the coordinator started."]]
                : events.map((event) => cells(event, state.time)),
        );
    }
}

function cells(event, now) {
    return [
        format.clock(event.time, now),
        {
            text: event.kind.replaceAll("_", " "),
            className: BAD.has(event.kind) ? "bad" : event.kind === "drift" ? "warn" : "",
        },
        event.text,
    ];
}
