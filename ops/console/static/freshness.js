// How old what is shown is. Old data are greyed, and the page says why.

import { byId, setText } from "./dom.js";
import * as format from "./format.js";

const STALE_S = 5;

export class Freshness {
    #changedAt = null; // on this machine's clock
    #problem = "";
    #isPaused = false;

    constructor() {
        setInterval(() => document.hidden || this.#show(), 1000);
    }

    // A state that is newer than the last one.
    changed() {
        this.#changedAt = performance.now();
        this.#show();
    }

    // The coordinator answered, or the sentence that says why not.
    answered(problem = "") {
        this.#problem = problem;
        this.#show();
    }

    setPaused(isPaused) {
        this.#isPaused = isPaused;
        this.#show();
    }

    #show() {
        const age = this.#changedAt === null ? null : (performance.now() - this.#changedAt) / 1000;
        const isStale = age === null || age > STALE_S;
        setText(byId("age"), age === null ? "no data yet" : age < 2 ? "updated now" : `updated ${whole(age)} ago`);
        setText(byId("connection"), this.#isPaused ? "page paused" : this.#problem ? "not connected" : "connected");
        const level = this.#problem ? "bad" : this.#isPaused || isStale ? "warn" : "ok";
        if (byId("connection").dataset.level !== level) byId("connection").dataset.level = level;
        const stale = isStale ? "yes" : "no";
        if (document.body.dataset.stale !== stale) document.body.dataset.stale = stale;
        byId("stale").hidden = !isStale;
        setText(byId("stale"), isStale ? this.#sentence(age) : "");
    }

    #sentence(age) {
        const what = age === null ? "Nothing has been received yet." : `What you see is ${whole(age)} old.`;
        if (this.#isPaused) return `${what} You have paused this page.`;
        const standing = age === null ? "" : "The coordinator answers, but its clock stands still.";
        return `${what} ${this.#problem || standing}`.trim();
    }
}

function whole(age) {
    return age < 120 ? `${Math.floor(age)} s` : format.seconds(age);
}
