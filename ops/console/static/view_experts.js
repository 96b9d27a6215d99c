// Where the load is: layers x experts and layers x ranks, side by side; and the one expert that is selected.

import { byId, button, element, setText } from "./dom.js";
import * as format from "./format.js";
import { Heatmap } from "./heatmap.js";
import { onWidth } from "./canvas.js";
import { MOST_COPIES, copyColours, copySwatches, loadColours, loadGradient } from "./palette.js";

const EXPERT_REACH = 8; // the colours end at an eighth and at eight times the mean
const RANK_REACH = 2;
const GAP = 18;
const HEIGHT = 384;

export class ExpertsView {
    #experts;
    #ranks;
    #frame = null;
    #width = 0;
    #layout = "";
    #quantity = "load";
    #selected = null; // [layer idx, logical id]
    #orders;
    #boxes = [];

    constructor(orders) {
        this.#orders = orders;
        this.#experts = new Heatmap(byId("experts-map"), byId("experts-readout"), {
            label: "Experts: rows are layers, columns are logical experts. Arrow keys move, Enter selects.",
            hasRowLabels: true,
            describe: (layer, expert) => this.#describe(layer, expert),
            onSelect: (layer, expert) => this.select(layer, expert),
        });
        this.#ranks = new Heatmap(byId("ranks-map"), byId("experts-readout"), {
            label: "EP ranks: rows are layers, columns are ranks. Arrow keys move.",
            hasRowLabels: false,
            describe: (layer, rank) => this.#describeRank(layer, rank),
            onSelect: null,
        });
        for (const choice of document.querySelectorAll("input[name=quantity]")) {
            choice.addEventListener("change", () => this.#choose(choice.value));
        }
        this.#addOrders();
        onWidth(byId("heatmaps"), (width) => {
            this.#width = width;
            if (this.#frame !== null) this.show(this.#frame);
        });
    }

    show(frame) {
        this.#frame = frame;
        if (this.#width > 0 && frame.state.load.length > 0) {
            this.#lay(frame.state);
            this.#draw(frame);
        }
        this.#showLegend();
        this.#showSelected();
    }

    select(layerIdx, logicalId) {
        this.#selected = [layerIdx, logicalId];
        this.#boxes.length = 0; // ticked anew, as the copies are now
        byId("selected-ranks").replaceChildren();
        this.show(this.#frame);
        byId("selected").scrollIntoView({ block: "nearest" });
    }

    selectByLayerId(layerId, logicalId) {
        this.select(this.#frame.state.model.layer_ids.indexOf(layerId), logicalId);
    }

    // As large as whole pixels allow.
    #lay(state) {
        const { layer_ids: layers, num_logical_experts: numExperts, ep_size: epSize } = state.model;
        const leastRanks = Heatmap.widthOf(epSize, 14, false);
        const room = this.#width - leastRanks - GAP - Heatmap.widthOf(0, 0, true);
        const cellWidth = Math.min(16, Math.max(2, Math.floor(room / numExperts)));
        const left = this.#width - Heatmap.widthOf(numExperts, cellWidth, true) - GAP;
        const rankWidth = Math.min(36, Math.max(14, Math.floor((left - 4) / epSize)));
        const cellHeight = Math.min(26, Math.max(6, Math.floor(HEIGHT / layers.length)));
        const layout = [cellWidth, rankWidth, cellHeight, layers.length, numExperts, epSize].join();
        if (layout === this.#layout) return;
        this.#layout = layout;
        const numbers = (length) => Array.from({ length }, (_, number) => String(number));
        this.#experts.setLayout(layers.map(String), numbers(numExperts), cellWidth, cellHeight);
        this.#ranks.setLayout(layers.map(String), numbers(epSize), rankWidth, cellHeight);
    }

    #draw({ state, placement }) {
        const marks = state.experts.pinned.map((pin) => ({
            row: state.model.layer_ids.indexOf(pin.layer_id),
            column: pin.logical_id,
        }));
        if (this.#selected !== null)
            marks.push({ row: this.#selected[0], column: this.#selected[1], isSelected: true });
        if (this.#quantity === "copies") {
            const colour = copyColours();
            this.#experts.draw((layer, expert) => colour(placement?.copies(layer, expert) ?? 1), marks);
            this.#ranks.draw((layer, rank) => colour(1 + (placement?.shared[layer][rank] ?? 0)), []);
            return;
        }
        const [expertColour, rankColour] = [loadColours(EXPERT_REACH), loadColours(RANK_REACH)];
        const means = state.load.map((layer) => mean(layer) || 1);
        const rankMeans = state.experts.layers.map((layer) => mean(layer.rank_pairs) || 1);
        this.#experts.draw((layer, expert) => expertColour(state.load[layer][expert] / means[layer]), marks);
        this.#ranks.draw(
            (layer, rank) => rankColour(state.experts.layers[layer].rank_pairs[rank] / rankMeans[layer]),
            [],
        );
    }

    #describe(layerIdx, logicalId) {
        const { state, placement } = this.#frame;
        const load = state.load[layerIdx][logicalId];
        const average = mean(state.load[layerIdx]);
        const relative = average > 0 ? `${format.times(load / average)} its layer's mean` : "no load measured yet";
        const where =
            placement === null ? "copies: no data" : `on ${format.ranks(placement.ranksOf(layerIdx, logicalId))}`;
        const pin = this.#pinOf(layerIdx, logicalId) === undefined ? "not pinned" : "pinned";
        const place = `Layer ${state.model.layer_ids[layerIdx]}, expert ${logicalId}`;
        return `${place}: ${relative} (${format.fixed(load, 1)} pairs a step); ${where}; ${pin}.`;
    }

    #describeRank(layerIdx, rank) {
        const { state, placement } = this.#frame;
        const layer = state.experts.layers[layerIdx];
        const average = mean(layer.rank_pairs);
        const relative =
            average > 0 ? `${format.times(layer.rank_pairs[rank] / average)} the layer's mean` : "no load measured yet";
        const extra =
            placement === null
                ? ""
                : `; ${format.many(placement.shared[layerIdx][rank], "expert")} that other ranks hold too`;
        return (
            `Layer ${layer.layer_id}, EP rank ${rank}: ${relative} ` +
            `(${format.fixed(layer.rank_pairs[rank], 1)} pairs, ` +
            `${format.fixed(layer.rank_experts[rank], 1)} distinct experts a step)${extra}.`
        );
    }

    #choose(quantity) {
        this.#quantity = quantity;
        if (this.#frame !== null) this.show(this.#frame);
    }

    #showLegend() {
        const isLoad = this.#quantity === "load";
        setText(byId("experts-title"), isLoad ? "Experts: load over the layer's mean" : "Experts: copies");
        setText(byId("ranks-title"), isLoad ? "EP ranks: load" : "EP ranks: also elsewhere");
        const isPinned = (this.#frame?.state.experts.pinned.length ?? 0) > 0;
        byId("pinned-key").hidden = !isPinned;
        legend(
            byId("experts-legend"),
            isLoad ? scale(EXPERT_REACH) : swatches(["none", "1", "2", "3", `${MOST_COPIES} or more`]),
        );
        legend(byId("ranks-legend"), isLoad ? scale(RANK_REACH) : swatches(["", "0", "1", "2", "3 or more"]));
    }

    #showSelected() {
        byId("selected").hidden = this.#selected === null;
        if (this.#selected === null) return;
        const [layerIdx, logicalId] = this.#selected;
        setText(byId("selected-text"), this.#describe(layerIdx, logicalId));
        const isPinned = this.#pinOf(layerIdx, logicalId) !== undefined;
        const unpin = byId("unpin");
        if (unpin.disabled === isPinned) unpin.disabled = !isPinned;
        if (this.#boxes.length === 0) this.#addBoxes(layerIdx, logicalId);
    }

    #addBoxes(layerIdx, logicalId) {
        const { state, placement } = this.#frame;
        const held = placement?.ranksOf(layerIdx, logicalId) ?? [];
        this.#boxes = Array.from({ length: state.model.ep_size }, (_, rank) => {
            const box = element("input", { type: "checkbox", value: String(rank) });
            box.checked = held.includes(rank);
            byId("selected-ranks").append(element("label", {}, box, ` ${rank}`));
            return box;
        });
    }

    #addOrders() {
        const ticked = () => this.#boxes.filter((box) => box.checked).map((box) => Number(box.value));
        const place = () => [this.#frame.state.model.layer_ids[this.#selected[0]], this.#selected[1]];
        byId("selected-orders").append(
            button("Pin to these ranks…", () => this.#orders.pin(...place(), ticked()), { id: "pin" }),
            button("Unpin…", () => this.#orders.unpin(...place()), { id: "unpin" }),
        );
    }

    #pinOf(layerIdx, logicalId) {
        const { state } = this.#frame;
        const layerId = state.model.layer_ids[layerIdx];
        return state.experts.pinned.find((pin) => pin.layer_id === layerId && pin.logical_id === logicalId);
    }
}

function mean(values) {
    return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function legend(node, { key, parts }) {
    const name = `${key} ${loadGradient()}`;
    if (node.dataset.name === name) return;
    node.dataset.name = name;
    node.replaceChildren(...parts());
}

function scale(reach) {
    const parts = () => {
        const ramp = element("span", { className: "ramp", text: "1×" });
        ramp.style.background = loadGradient();
        return [element("span", { text: `≤ 1/${reach}×` }), ramp, element("span", { text: `≥ ${reach}×` })];
    };
    return { key: `load ${reach}`, parts };
}

function swatches(labels) {
    const parts = () =>
        copySwatches().flatMap((colour, idx) => {
            if (labels[idx] === "") return [];
            const swatch = element("span", { className: "swatch" });
            swatch.style.background = colour;
            return [swatch, element("span", { text: labels[idx] })];
        });
    return { key: labels.join(), parts };
}
