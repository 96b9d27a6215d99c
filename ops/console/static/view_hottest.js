// The hottest experts and the pinned ones, with the ranks of their copies. A row leads to the expert in the heatmap.

import { button, byId, element, setText } from "./dom.js";
import * as format from "./format.js";

export class HottestView {
    #onSelect;
    #shown = new Map(); // body -> rows as they are

    constructor(onSelect) {
        this.#onSelect = onSelect;
    }

    show({ state }) {
        this.#fill(byId("hottest"), state.experts.hottest, "No load has been measured yet.");
        this.#fill(byId("pinned"), state.experts.pinned, "No expert is pinned.");
    }

    #fill(body, experts, nothing) {
        const most = Math.max(1, ...experts.map((expert) => expert.load));
        const rows = this.#rows(body, Math.max(1, experts.length));
        rows.forEach((row, idx) => {
            const expert = experts[idx];
            row.choose.hidden = expert === undefined;
            row.expert = expert;
            setText(row.choose, expert === undefined ? "" : `Layer ${expert.layer_id}, expert ${expert.logical_id}`);
            setText(row.none, expert === undefined ? nothing : "");
            setText(row.load, expert === undefined ? "" : format.times(expert.load));
            row.load.style.setProperty(
                "--share",
                expert === undefined ? "0%" : `${Math.round((100 * expert.load) / most)}%`,
            );
            setText(row.ranks, expert === undefined ? "" : expert.ep_ranks.join(", ") || "none");
            setText(row.pin, expert?.is_pinned ? "pinned" : "");
        });
    }

    // Kept from second to second, so that a button keeps its focus.
    #rows(body, number) {
        const rows = this.#shown.get(body) ?? [];
        this.#shown.set(body, rows);
        while (rows.length > number) rows.pop().node.remove();
        while (rows.length < number) rows.push(this.#newRow(body));
        return rows;
    }

    #newRow(body) {
        const row = { expert: undefined };
        row.choose = button("", () => this.#onSelect(row.expert.layer_id, row.expert.logical_id), { class: "link" });
        row.none = element("span", { className: "hint" });
        row.load = element("td", { className: "bar number" });
        row.ranks = element("td");
        row.pin = element("td");
        row.node = element(
            "tr",
            {},
            element("th", { scope: "row" }, row.choose, row.none),
            row.load,
            row.ranks,
            row.pin,
        );
        body.append(row.node);
        return row;
    }
}
