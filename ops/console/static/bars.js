// One bar for each layer on a small canvas: a value, or the range between two. Its numbers are in the table of layers.

import { element, setText } from "./dom.js";
import { chartColours } from "./palette.js";
import { fitted, onWidth } from "./canvas.js";

const HEIGHT = 104;
const MARGIN = { left: 40, right: 4, top: 6, bottom: 18 };

export class LayerBars {
    #canvas = element("canvas", { role: "img" });
    #now = element("span", { className: "now" });
    #title;
    #format;
    #isLog;
    #width = 0;
    #last = null;

    // isLog: the axis is logarithmic and 1 is drawn as a line.
    constructor(parent, { title, format, isLog = false }) {
        this.#title = title;
        this.#format = format;
        this.#isLog = isLog;
        const figure = element(
            "figure",
            {},
            element("figcaption", {}, element("strong", { text: title }), this.#now),
            this.#canvas,
        );
        parent.append(figure);
        onWidth(figure, (width) => {
            this.#width = width;
            if (this.#last !== null) this.draw(...this.#last);
        });
    }

    // bars: [{ label, low, high, isMarked }]; low is 0 for a plain value. summary: the numbers in words.
    draw(bars, summary) {
        this.#last = [bars, summary];
        setText(this.#now, summary);
        const label = `${this.#title} of each layer: ${summary}. The table of layers has every number.`;
        if (this.#canvas.getAttribute("aria-label") !== label) this.#canvas.setAttribute("aria-label", label);
        if (this.#width < MARGIN.left + 40) return;
        const context = fitted(this.#canvas, this.#width, HEIGHT);
        if (bars.length === 0) return;
        const [low, high] = this.#range(bars);
        const scale = this.#isLog ? Math.log : (value) => value;
        const y = (value) =>
            MARGIN.top +
            (1 - (scale(value) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - MARGIN.top - MARGIN.bottom);
        this.#drawAxis(context, y, low, high);
        this.#drawBars(context, bars, y, low);
    }

    #range(bars) {
        const high = Math.max(...bars.map((bar) => bar.high));
        if (!this.#isLog) return [0, high > 0 ? high * 1.08 : 1];
        return [Math.min(0.5, ...bars.map((bar) => Math.max(1e-3, bar.low))), Math.max(2, high)];
    }

    #drawAxis(context, y, low, high) {
        const colours = chartColours();
        context.textBaseline = "middle";
        context.textAlign = "right";
        for (const value of this.#isLog ? [low, 1, high] : [low, high / 2, high]) {
            context.fillStyle = colours.grid;
            context.fillRect(MARGIN.left, Math.round(y(value)), this.#width - MARGIN.left - MARGIN.right, 1);
            context.fillStyle = colours.text;
            context.fillText(this.#format(value), MARGIN.left - 5, y(value));
        }
    }

    #drawBars(context, bars, y, low) {
        const colours = chartColours();
        const step = (this.#width - MARGIN.left - MARGIN.right) / bars.length;
        const every = Math.max(1, Math.ceil(22 / step));
        context.textAlign = "center";
        bars.forEach((bar, idx) => {
            const left = MARGIN.left + idx * step;
            const [top, bottom] = [y(bar.high), y(Math.max(low, bar.low))];
            context.fillStyle = bar.isMarked ? colours.b : colours.a;
            context.fillRect(left + 0.15 * step, top, Math.max(1, 0.7 * step), Math.max(1, bottom - top));
            context.fillStyle = colours.text;
            if (idx % every === 0) context.fillText(bar.label, left + step / 2, HEIGHT - MARGIN.bottom / 2 + 2);
        });
    }
}
