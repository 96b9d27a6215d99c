// How sure each layer's gate is of its experts, how far apart activation norms are, and which layers drift.

import { byId, setText } from "./dom.js";
import * as format from "./format.js";
import { LayerBars } from "./bars.js";

const MEASURES = [
    { key: "mass", title: "Mass on the chosen experts", digits: 2 },
    { key: "entropy", title: "Entropy (1: no preference)", digits: 2 },
    { key: "margin", title: "Margin over the runner-up", digits: 3 },
];

export class GatesView {
    #bars;
    #norms;

    constructor() {
        const parent = byId("gates");
        this.#bars = MEASURES.map(
            ({ title, digits }) => new LayerBars(parent, { title, format: (value) => format.fixed(value, digits) }),
        );
        this.#norms = new LayerBars(parent, {
            title: "Activation norms over the median",
            format: (value) => `${value.toFixed(value < 1 ? 2 : 1)}×`,
            isLog: true,
        });
    }

    show({ state }) {
        const { experts } = state;
        const layers = experts.window_tokens > 0 ? experts.layers : [];
        MEASURES.forEach(({ key, digits }, idx) => this.#bars[idx].draw(...measured(layers, key, digits)));
        this.#norms.draw(...ranges(layers.filter((layer) => layer.norm_low !== null && layer.norm_high !== null)));
        setText(byId("drift"), driftText(experts, layers));
    }
}

function measured(layers, key, digits) {
    const bars = layers.map((layer) => ({
        label: String(layer.layer_id),
        low: 0,
        high: layer[key],
        isMarked: layer.is_drifting,
    }));
    if (bars.length === 0) return [bars, format.NO_DATA];
    const values = layers.map((layer) => layer[key]);
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const least = layers[values.indexOf(Math.min(...values))];
    return [
        bars,
        `mean ${format.fixed(mean, digits)}, least ${format.fixed(least[key], digits)} in layer ${least.layer_id}`,
    ];
}

function ranges(layers) {
    const bars = layers.map((layer) => ({
        label: String(layer.layer_id),
        low: layer.norm_low,
        high: layer.norm_high,
        isMarked: layer.is_drifting,
    }));
    if (bars.length === 0) return [bars, format.NO_DATA];
    const widest = layers.reduce((one, other) => (other.norm_high > one.norm_high ? other : one));
    return [bars, `most ${format.fixed(widest.norm_high, 1)}× in layer ${widest.layer_id}`];
}

function driftText(experts, layers) {
    if (layers.length === 0) return "No load has been measured yet.";
    const drifting = layers.filter((layer) => layer.is_drifting).map((layer) => layer.layer_id);
    if (drifting.length === 0 && !experts.drift) return "No layer drifts.";
    const layersText = drifting.join(", ") || "none";
    return `Drift: ${experts.drift || "single layers only"}. Layers, orange in the charts: ${layersText}.`;
}
