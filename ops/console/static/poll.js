// Asks again and again: one request at a time, none while the tab is hidden, while the operator has paused the page, or
// while there is no token. Knows nothing of what is asked.

export class Poll {
    #ask;
    #periodMs;
    #timer = null;
    #isAsking = false;
    #isHeld = true;
    #isPaused = false;

    constructor(ask, periodMs) {
        this.#ask = ask;
        this.#periodMs = periodMs;
        document.addEventListener("visibilitychange", () => this.#soon());
    }

    get isPaused() {
        return this.#isPaused;
    }

    // Held while there is no token that is known to the coordinator.
    hold() {
        this.#isHeld = true;
        this.#soon();
    }

    release() {
        this.#isHeld = false;
        this.#soon();
    }

    setPaused(isPaused) {
        this.#isPaused = isPaused;
        this.#soon();
    }

    // After an order, whose effect should be seen at once.
    now() {
        this.#soon();
    }

    #soon() {
        clearTimeout(this.#timer);
        if (!this.#isHeld && !this.#isPaused && !document.hidden && !this.#isAsking) this.#turn();
    }

    async #turn() {
        this.#isAsking = true;
        const began = performance.now();
        try {
            await this.#ask();
        } finally {
            this.#isAsking = false;
            const rest = Math.max(0, this.#periodMs - (performance.now() - began));
            clearTimeout(this.#timer);
            this.#timer = setTimeout(() => this.#soon(), rest);
        }
    }
}
