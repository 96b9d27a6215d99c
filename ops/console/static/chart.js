// Lines over time on a small canvas, with the times of rebalances shaded. Its numbers are also said in words.

import { element, setText } from "./dom.js";
import { chartColours } from "./palette.js";
import { fitted, onWidth } from "./canvas.js";

const HEIGHT = 132;
const MARGIN = { left: 50, right: 8, top: 8, bottom: 18 };
const SPAN_S = 600;
const MOST_TICKS = 4;

export class LineChart {
    #canvas = element("canvas", { role: "img" });
    #now = element("span", { className: "now" });
    #title;
    #lines;
    #format;
    #width = 0;
    #last = null;

    // lines: [{ key, label }], the first drawn solid, the second dashed. format: of a value. fit(low, high): the range.
    constructor(parent, { title, lines, format, fit }) {
        this.#title = title;
        this.#lines = lines;
        this.#format = format;
        this.fit = fit;
        const keys = lines.map(({ label }, idx) => element("span", { className: `key key-${idx}`, text: label }));
        const caption = element("figcaption", {}, element("strong", { text: title }), ...keys, this.#now);
        const figure = element("figure", {}, caption, this.#canvas);
        parent.append(figure);
        onWidth(figure, (width) => {
            this.#width = width;
            if (this.#last !== null) this.draw(...this.#last);
        });
    }

    // points: [{ time, key: value or undefined }], oldest first. spans: [{ from, to, isBad }].
    draw(points, spans) {
        this.#last = [points, spans];
        if (this.#width < MARGIN.left + MARGIN.right + 20) return;
        const context = fitted(this.#canvas, this.#width, HEIGHT);
        const now = points.at(-1)?.time ?? 0;
        const from = Math.min(now - 60, Math.max(now - SPAN_S, points[0]?.time ?? now));
        const values = points.flatMap((point) => this.#lines.map(({ key }) => point[key]).filter(isNumber));
        this.#say(points, values);
        if (values.length === 0) return;
        const ticks = ticksBetween(...this.fit(Math.min(...values), Math.max(...values)));
        const [low, high] = [ticks[0], ticks.at(-1)];
        const x = (time) => MARGIN.left + ((time - from) / (now - from)) * (this.#width - MARGIN.left - MARGIN.right);
        const y = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
        this.#drawSpans(context, spans, x, from, now);
        this.#drawGrid(context, y, ticks, now - from);
        this.#lines.forEach(({ key }, idx) => this.#drawLine(context, points, key, idx, x, y));
    }

    #say(points, values) {
        const latest = points.at(-1) ?? {};
        const now = this.#lines
            .map(({ key }) => (isNumber(latest[key]) ? this.#format(latest[key]) : "no data"))
            .join(" / ");
        setText(this.#now, now);
        const range =
            values.length === 0
                ? ""
                : `; from ${this.#format(Math.min(...values))} to ${this.#format(Math.max(...values))}`;
        const names = this.#lines.map(({ label }) => label).join(" / ");
        const label = `${this.#title}, ${names}: now ${now}${range} in the last minutes.`;
        if (this.#canvas.getAttribute("aria-label") !== label) this.#canvas.setAttribute("aria-label", label);
    }

    #drawSpans(context, spans, x, from, now) {
        const colours = chartColours();
        const height = HEIGHT - MARGIN.top - MARGIN.bottom;
        for (const span of spans.filter(({ to }) => to >= from)) {
            const [left, right] = [x(Math.max(from, span.from)), x(Math.min(now, span.to))];
            context.fillStyle = colours.mark;
            context.fillRect(left, MARGIN.top, Math.max(1.5, right - left), height);
            context.fillStyle = span.isBad ? colours.bad : colours.markEdge;
            context.fillRect(left, MARGIN.top, 1.5, height);
            if (!span.isOpen) context.fillRect(right, MARGIN.top, 1.5, height);
        }
    }

    #drawGrid(context, y, ticks, seconds) {
        const colours = chartColours();
        context.textBaseline = "middle";
        context.textAlign = "right";
        for (const value of ticks) {
            context.fillStyle = colours.grid;
            context.fillRect(MARGIN.left, Math.round(y(value)), this.#width - MARGIN.left - MARGIN.right, 1);
            context.fillStyle = colours.text;
            context.fillText(this.#format(value), MARGIN.left - 6, y(value));
        }
        context.fillText("now", this.#width - MARGIN.right, HEIGHT - MARGIN.bottom / 2 + 2);
        context.textAlign = "left";
        const ago = seconds < 120 ? `${Math.round(seconds)} s ago` : `${Math.round(seconds / 60)} min ago`;
        context.fillText(ago, MARGIN.left, HEIGHT - MARGIN.bottom / 2 + 2);
    }

    #drawLine(context, points, key, idx, x, y) {
        const colours = chartColours();
        context.strokeStyle = idx === 0 ? colours.a : colours.b;
        context.lineWidth = 1.75;
        context.setLineDash(idx === 0 ? [] : [5, 3]);
        context.beginPath();
        let isDown = false;
        for (const point of points) {
            if (!isNumber(point[key])) isDown = false;
            else if (isDown) context.lineTo(x(point.time), y(point[key]));
            else context.moveTo(x(point.time), y(point[key]));
            isDown = isNumber(point[key]);
        }
        context.stroke();
        context.setLineDash([]);
    }
}

// Round numbers from below `low` to above `high`.
function ticksBetween(low, high) {
    const rough = Math.max((high - low) / (MOST_TICKS - 1), 1e-9);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
    const first = Math.floor(low / step + 1e-6);
    const last = Math.max(first + 1, Math.ceil(high / step - 1e-6));
    return Array.from({ length: last - first + 1 }, (_, idx) => (first + idx) * step);
}

function isNumber(value) {
    return typeof value === "number" && Number.isFinite(value);
}
