// A grid of coloured cells on a canvas, one pixel each and then enlarged, with a cursor for mouse and keyboard.
// Knows nothing of what a cell means: the owner gives colours and sentences.

import { element, setText } from "./dom.js";
import { chartColours } from "./palette.js";
import { fitted } from "./canvas.js";

const LABEL_HEIGHT = 16;
const TOP = 4; // so that the first row's label is whole
const LABEL_WIDTH = 26;
const LEAST_LABEL_PX = 11; // between the middles of two row labels
const STEPS = {
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    Home: [0, -Infinity],
    End: [0, Infinity],
    PageUp: [-Infinity, 0],
    PageDown: [Infinity, 0],
};

export class Heatmap {
    #host;
    #describe;
    #onSelect;
    #canvas = element("canvas", { "aria-hidden": "true" });
    #cursor = element("div", { className: "cursor" });
    #readout;
    #cells = document.createElement("canvas");
    #image = null;
    #rows = [];
    #columns = [];
    #cellWidth = 1;
    #cellHeight = 1;
    #left = 0;
    #at = null; // [row, column] under the cursor

    // describe(row, column): a sentence. onSelect(row, column), or null where nothing can be selected.
    constructor(host, readout, { label, hasRowLabels, describe, onSelect }) {
        this.#host = host;
        this.#readout = readout;
        this.#describe = describe;
        this.#onSelect = onSelect;
        this.#left = hasRowLabels ? LABEL_WIDTH : 2;
        // An application, so that a screen reader leaves the arrow keys to the page.
        for (const [name, value] of Object.entries({ tabindex: "0", role: "application", "aria-label": label })) {
            host.setAttribute(name, value);
        }
        host.append(this.#canvas, this.#cursor);
        this.#cursor.hidden = true;
        host.addEventListener("mousemove", (event) => this.#moveTo(this.#cellAt(event)));
        host.addEventListener("mouseleave", () => document.activeElement !== host && this.#moveTo(null));
        host.addEventListener("blur", () => this.#moveTo(null));
        host.addEventListener("focus", () => this.#at ?? this.#moveTo([0, 0]));
        host.addEventListener("keydown", (event) => this.#onKey(event));
        host.addEventListener("click", (event) => this.#select(this.#cellAt(event)));
    }

    // Widths in CSS pixels of what a layout of cells takes.
    static widthOf(numColumns, cellWidth, hasRowLabels) {
        return (hasRowLabels ? LABEL_WIDTH : 2) + numColumns * cellWidth + 2;
    }

    setLayout(rows, columns, cellWidth, cellHeight) {
        this.#rows = rows;
        this.#columns = columns;
        this.#cellWidth = cellWidth;
        this.#cellHeight = cellHeight;
        this.#cells.width = columns.length;
        this.#cells.height = rows.length;
        this.#image = new ImageData(columns.length, rows.length);
        this.#cursor.style.width = `${cellWidth}px`;
        this.#cursor.style.height = `${cellHeight}px`;
        if (this.#at !== null && (this.#at[0] >= rows.length || this.#at[1] >= columns.length)) this.#moveTo(null);
    }

    // colourAt(row, column): packed as in palette.js. marks: [{ row, column, isSelected }] get a frame.
    draw(colourAt, marks) {
        const pixels = new Uint32Array(this.#image.data.buffer);
        const [numRows, numColumns] = [this.#rows.length, this.#columns.length];
        for (let row = 0, at = 0; row < numRows; row++) {
            for (let column = 0; column < numColumns; column++, at++) pixels[at] = colourAt(row, column);
        }
        this.#cells.getContext("2d").putImageData(this.#image, 0, 0);
        const [width, height] = [numColumns * this.#cellWidth, numRows * this.#cellHeight];
        const context = fitted(this.#canvas, this.#left + width + 2, TOP + height + LABEL_HEIGHT);
        context.imageSmoothingEnabled = false;
        context.drawImage(this.#cells, this.#left, TOP, width, height);
        this.#drawLabels(context, TOP + height);
        for (const mark of marks) this.#drawMark(context, mark);
        // Under the mouse the sentence follows the load. Under the keyboard it would be read aloud each second.
        if (this.#at !== null && document.activeElement !== this.#host)
            setText(this.#readout, this.#describe(...this.#at));
    }

    #drawLabels(context, height) {
        context.fillStyle = chartColours().text;
        context.textBaseline = "middle";
        context.textAlign = "right";
        const every = Math.ceil(LEAST_LABEL_PX / this.#cellHeight);
        if (this.#left === LABEL_WIDTH) {
            for (let row = 0; row < this.#rows.length; row += every) {
                context.fillText(this.#rows[row], this.#left - 5, TOP + (row + 0.5) * this.#cellHeight);
            }
        }
        context.textAlign = "center";
        const between = [1, 2, 4, 8, 16, 32, 64].find((step) => step * this.#cellWidth >= 18) ?? 128;
        for (let column = 0; column < this.#columns.length; column += between) {
            context.fillText(
                this.#columns[column],
                this.#left + (column + 0.5) * this.#cellWidth,
                height + LABEL_HEIGHT / 2,
            );
        }
    }

    #drawMark(context, { row, column, isSelected }) {
        context.strokeStyle = isSelected ? chartColours().strong : chartColours().markEdge;
        context.lineWidth = 2;
        const [left, top] = [this.#left + column * this.#cellWidth, TOP + row * this.#cellHeight];
        context.strokeRect(left - 1, top - 1, this.#cellWidth + 2, this.#cellHeight + 2);
    }

    #cellAt(event) {
        const box = this.#canvas.getBoundingClientRect();
        const column = Math.floor((event.clientX - box.left - this.#left) / this.#cellWidth);
        const row = Math.floor((event.clientY - box.top - TOP) / this.#cellHeight);
        const isInside = row >= 0 && row < this.#rows.length && column >= 0 && column < this.#columns.length;
        return isInside ? [row, column] : null;
    }

    #onKey(event) {
        const step = STEPS[event.key];
        if (step === undefined && event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        if (step === undefined) this.#select(this.#at);
        else {
            const [row, column] = this.#at ?? [0, 0];
            this.#moveTo([within(row + step[0], this.#rows.length), within(column + step[1], this.#columns.length)]);
        }
    }

    #moveTo(cell) {
        this.#at = cell;
        this.#cursor.hidden = cell === null;
        if (cell === null) return;
        const [left, top] = [this.#left + cell[1] * this.#cellWidth, TOP + cell[0] * this.#cellHeight];
        this.#cursor.style.transform = `translate(${left}px, ${top}px)`;
        setText(this.#readout, this.#describe(...cell));
    }

    #select(cell) {
        if (cell !== null && this.#onSelect !== null) this.#onSelect(...cell);
    }
}

function within(position, number) {
    return Math.min(number - 1, Math.max(0, position));
}
