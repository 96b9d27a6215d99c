// Numbers as an operator reads them. undefined is "no data": nobody records it, which is never the same as 0.

export const NO_DATA = "no data";
export const NONE = "none"; // recorded, but nothing happened

export function count(value) {
    return known(value, (number) => Math.round(number).toLocaleString("en"));
}

export function fixed(value, digits = 2) {
    return known(value, (number) => number.toFixed(digits));
}

export function percent(value, digits = 0) {
    return known(value, (share) => `${(100 * share).toFixed(digits)} %`);
}

export function rate(value) {
    return known(value, (number) => `${number >= 100 ? count(number) : number.toFixed(number >= 10 ? 0 : 1)}/s`);
}

export function times(value) {
    return known(value, (ratio) => `${ratio.toFixed(ratio >= 9.95 ? 0 : ratio >= 1.995 ? 1 : 2)}×`);
}

// From microseconds to hours, with about two digits that mean something.
export function seconds(value) {
    return known(value, (number) => {
        if (number === 0) return "0 s";
        if (number < 0.001) return `${Math.round(1e6 * number)} µs`;
        if (number < 1) return `${(1e3 * number).toFixed(number < 0.01 ? 1 : 0)} ms`;
        if (number < 120) return `${number.toFixed(number < 10 ? 1 : 0)} s`;
        return number < 7200 ? `${Math.round(number / 60)} min` : `${Math.round(number / 3600)} h`;
    });
}

// Of `Window.quantile`.
export function quantile(found) {
    if (found === undefined) return NO_DATA;
    if (found === null) return NONE;
    return `${found.isAbove ? "> " : ""}${seconds(found.value)}`;
}

// A moment, seconds since the epoch, on the operator's clock; with the day where it is not that of `now`.
export function clock(time, now) {
    const moment = new Date(1000 * time);
    const isToday = moment.toDateString() === new Date(1000 * now).toDateString();
    const day = isToday ? "" : `${moment.toLocaleDateString("en-GB", { day: "numeric", month: "short" })} `;
    return `${day}${moment.toLocaleTimeString("en-GB")}`;
}

// "12 running" and "1 gateway", "2 gateways".
export function many(number, one, more = `${one}s`) {
    return `${number} ${number === 1 ? one : more}`;
}

export function ranks(epRanks) {
    if (epRanks.length === 0) return "no EP rank";
    return `EP rank${epRanks.length === 1 ? "" : "s"} ${epRanks.join(", ")}`;
}

// Ray's replica names without what they share.
export function memberName(member) {
    return member.replace(/^.*::/, "");
}

function known(value, text) {
    if (value === undefined || (typeof value === "number" && Number.isNaN(value))) return NO_DATA;
    return value === null ? NONE : text(value);
}
