// What members counted between the first and the last state of a window: rates and quantiles from differences.
// Pure. Three answers are kept apart: undefined, nobody records it; null, nothing happened; a value.

export class Window {
    #newest;
    #firsts = new Map(); // member -> as it was first seen in the window
    #registry;

    // states: oldest first. members: only these, by default all.
    constructor(states, registry = {}, members = states.at(-1)?.members ?? []) {
        this.#newest = members;
        this.#registry = registry;
        this.seconds = states.length < 2 ? 0 : states.at(-1).time - states[0].time;
        for (const state of states) {
            for (const member of state.members) {
                if (!this.#firsts.has(member.member)) this.#firsts.set(member.member, { time: state.time, ...member });
            }
        }
        this.states = states;
    }

    // The same window for one member.
    of(member) {
        return new Window(this.states, this.#registry, [member]);
    }

    // A gauge or total as it is now, added up over members; labels: the first ones, or none for all label sets.
    sum(name, ...labels) {
        let sum;
        for (const member of this.#newest) {
            for (const [values, value] of member.metrics[name] ?? []) {
                if (labels.every((label, idx) => values[idx] === label)) sum = (sum ?? 0) + value;
            }
        }
        return sum;
    }

    // The same by the first label: [[label, sum], ...], or undefined.
    sums(name) {
        return this.#byLabel(this.#newest.flatMap((member) => member.metrics[name] ?? []));
    }

    // By how much a counter rose, over all its label sets.
    increase(name) {
        return this.increases(name)?.reduce((sum, [, value]) => sum + value, 0);
    }

    // The same by the first label: [[label, increase], ...], or undefined.
    increases(name) {
        const rises = this.#pairs(name).flatMap(([newest, first]) =>
            newest.map(([labels, value]) => [labels, rise(value, valueOf(first, labels))]),
        );
        return this.#byLabel(rises);
    }

    // The same of one label set.
    increaseOf(name, ...labels) {
        const pairs = this.#pairs(name).filter(([newest]) => newest.some(([others]) => isSame(others, labels)));
        if (pairs.length === 0) return undefined;
        return pairs.reduce((sum, [newest, first]) => sum + rise(valueOf(newest, labels), valueOf(first, labels)), 0);
    }

    rate(name) {
        const increase = this.increase(name);
        return increase === undefined ? undefined : increase / this.seconds;
    }

    // A histogram over the window: { counts, total }, or undefined.
    counts(name) {
        let sum;
        for (const [newest, first] of this.#pairs(name)) {
            const [now, then] = [newest[0][1], first[0]?.[1]];
            sum ??= { counts: now.counts.map(() => 0), total: 0 };
            now.counts.forEach((count, idx) => (sum.counts[idx] += rise(count, then?.counts[idx] ?? 0)));
            sum.total += rise(now.total, then?.total ?? 0);
        }
        return sum;
    }

    // { value, isAbove } of a histogram; isAbove: past the last bound, which is the value.
    quantile(name, share) {
        const found = this.counts(name);
        const buckets = this.#registry[name]?.buckets;
        return found === undefined || buckets === undefined ? undefined : quantile(buckets, found.counts, share);
    }

    // Mean of a histogram's values, null where there were none.
    mean(name) {
        const found = this.counts(name);
        if (found === undefined) return undefined;
        const number = found.counts.reduce((sum, count) => sum + count, 0);
        return number === 0 ? null : found.total / number;
    }

    // [newest, first] values of each member that records this and was seen twice.
    #pairs(name) {
        const pairs = [];
        for (const member of this.#newest) {
            const first = this.#firsts.get(member.member);
            const newest = member.metrics[name];
            const wasSeenBefore = first !== undefined && first.time < (this.states.at(-1)?.time ?? 0);
            if (newest !== undefined && wasSeenBefore) pairs.push([newest, first.metrics[name] ?? []]);
        }
        return pairs;
    }

    #byLabel(values) {
        if (values.length === 0) return undefined;
        const sums = new Map();
        for (const [labels, value] of values) sums.set(labels[0] ?? "", (sums.get(labels[0] ?? "") ?? 0) + value);
        return [...sums];
    }
}

// counts: per bucket, the last one above every bound. Linear within a bucket.
export function quantile(buckets, counts, share) {
    const number = counts.reduce((sum, count) => sum + count, 0);
    if (number === 0) return null;
    let left = share * number;
    for (const [idx, bound] of buckets.entries()) {
        if (left <= counts[idx]) {
            const below = idx === 0 ? 0 : buckets[idx - 1];
            return { value: below + (bound - below) * (left / counts[idx]), isAbove: false };
        }
        left -= counts[idx];
    }
    return { value: buckets.at(-1), isAbove: true };
}

// A total that fell was begun anew.
function rise(now, before) {
    return now >= before ? now - before : now;
}

function valueOf(values, labels) {
    return values.find(([others]) => isSame(others, labels))?.[1] ?? 0;
}

function isSame(some, others) {
    return some.length === others.length && some.every((label, idx) => label === others[idx]);
}
