// Every layer in numbers: what heatmaps and bars draw, as a table. Filled only while it is open.

import { byId, fillRows } from "./dom.js";
import * as format from "./format.js";

export class LayersView {
    #frame = null;

    constructor() {
        byId("layers-details").addEventListener("toggle", () => this.#frame !== null && this.show(this.#frame));
    }

    show(frame) {
        this.#frame = frame;
        if (!byId("layers-details").open) return;
        const { state } = frame;
        fillRows(
            byId("layers"),
            state.experts.layers.map((layer, idx) =>
                cells(layer, state.load[idx] ?? [], state.experts.window_tokens > 0),
            ),
        );
    }
}

function cells(layer, load, isMeasured) {
    const number = (text) => ({ text, className: "number" });
    const measured = (value, digits) => number(isMeasured ? format.fixed(value, digits) : format.NO_DATA);
    return [
        { text: String(layer.layer_id), isHeader: true },
        measured(layer.balancedness, 2),
        hottest(load, "expert"),
        hottest(layer.rank_pairs, "EP rank"),
        number(String(layer.num_copies)),
        measured(layer.mass, 2),
        measured(layer.entropy, 2),
        measured(layer.margin, 3),
        layer.norm_low === null || layer.norm_high === null
            ? format.NO_DATA
            : `${format.fixed(layer.norm_low)}× to ${format.fixed(layer.norm_high, 1)}×`,
        { text: layer.is_drifting ? "drifts" : "", className: layer.is_drifting ? "warn" : "" },
    ];
}

function hottest(values, name) {
    const sum = values.reduce((total, value) => total + value, 0);
    if (sum === 0) return format.NO_DATA;
    const most = Math.max(...values);
    return `${name} ${values.indexOf(most)}: ${format.times((most * values.length) / sum)}`;
}
