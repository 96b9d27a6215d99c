// Colours of what is drawn on canvas, for both themes. Blue is less and orange is more, which the colour-blind tell
// apart, and both differ from the middle in brightness.

import { isDark } from "./theme.js";

const STEPS = 256;
const DIVERGING = {
    light: ["#08306b", "#2f7fbf", "#c3daee", "#f4f4f2", "#fdd0a2", "#e8630a", "#6b1f02"],
    dark: ["#b9dcf5", "#3d88c4", "#173a5a", "#1f2329", "#4d2c12", "#e0701a", "#ffe3bf"],
};
const COPIES = {
    light: ["#d6006c", "#e9ecef", "#8fc7b5", "#35978f", "#01504a"],
    dark: ["#ff5fa8", "#262b32", "#2c6f63", "#4fb3a2", "#c7f0e4"],
};
const CHART = {
    light: {
        a: "#1a5fa8",
        b: "#b85300",
        text: "#51585f",
        strong: "#000000",
        grid: "#dfe3e7",
        mark: "#7b4fb326",
        markEdge: "#7b4fb3",
        bad: "#c4314b",
    },
    dark: {
        a: "#74b3f0",
        b: "#f0a050",
        text: "#a3abb5",
        strong: "#ffffff",
        grid: "#30363e",
        mark: "#b794f433",
        markEdge: "#b794f4",
        bad: "#ff7a8c",
    },
};

const tables = new Map();

export function chartColours() {
    return CHART[theme()];
}

// A colour for load over its layer's mean: the middle is 1, the ends are `reach` times less and more.
export function loadColours(reach) {
    const table = lookup("diverging", () => interpolated(DIVERGING[theme()]));
    const scale = (STEPS - 1) / (2 * Math.log2(reach));
    return (ratio) => {
        const step = Math.round((STEPS - 1) / 2 + scale * Math.log2(Math.max(ratio, 1e-6)));
        return table[Math.min(STEPS - 1, Math.max(0, step))];
    };
}

// A colour for a number of copies: none is an alarm, one is what most have.
export function copyColours() {
    const table = lookup("copies", () => Uint32Array.from(COPIES[theme()].map(packed)));
    return (number) => table[Math.min(table.length - 1, number)];
}

export const MOST_COPIES = COPIES.light.length - 1;

// The scale again, for a legend: as CSS.
export function loadGradient() {
    return `linear-gradient(90deg, ${DIVERGING[theme()].join(", ")})`;
}

export function copySwatches() {
    return COPIES[theme()];
}

function theme() {
    return isDark() ? "dark" : "light";
}

function lookup(name, make) {
    const key = `${name} ${theme()}`;
    if (!tables.has(key)) tables.set(key, make());
    return tables.get(key);
}

function interpolated(stops) {
    const colours = stops.map(channels);
    return Uint32Array.from({ length: STEPS }, (_, step) => {
        const position = (step / (STEPS - 1)) * (stops.length - 1);
        const idx = Math.min(stops.length - 2, Math.floor(position));
        const part = position - idx;
        return pack(colours[idx].map((channel, which) => channel + part * (colours[idx + 1][which] - channel)));
    });
}

function channels(colour) {
    return [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
}

function packed(colour) {
    return pack(channels(colour));
}

// As ImageData has it, on the little-endian machines that browsers run on.
function pack([red, green, blue]) {
    return ((255 << 24) | (Math.round(blue) << 16) | (Math.round(green) << 8) | Math.round(red)) >>> 0;
}
