// The last states, and a longer line of points made of them. Old ones fall off. Knows nothing of what they hold.

const MAX_STATES = 120;
const MAX_POINTS = 600;

export class History {
    #states = [];
    #points = [];

    get latest() {
        return this.#states.at(-1);
    }

    // Oldest first.
    get points() {
        return this.#points;
    }

    // False where the coordinator's clock has not moved: it is the state that is known already.
    push(state) {
        const latest = this.latest;
        if (latest !== undefined && latest.time === state.time) return false;
        if (latest !== undefined && state.time < latest.time) this.#clear(); // another coordinator, another clock
        this.#states.push(state);
        if (this.#states.length > MAX_STATES) this.#states.shift();
        return true;
    }

    pushPoint(point) {
        this.#points.push(point);
        if (this.#points.length > MAX_POINTS) this.#points.shift();
    }

    // The states of the last seconds, oldest first.
    last(seconds) {
        const from = (this.latest?.time ?? 0) - seconds - 0.5;
        return this.#states.filter((state) => state.time >= from);
    }

    #clear() {
        this.#states.length = 0;
        this.#points.length = 0;
    }
}
