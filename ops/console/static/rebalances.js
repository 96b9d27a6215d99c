// What rebalances cost and gained, from the coordinator's records and from the steps that this page has seen. Pure.

const AROUND_S = 60;

export function isBusy(balancer) {
    return balancer.phase !== "idle";
}

// Times to shade in a chart: [{ from, to, isBad, isOpen }].
export function spans(balancer, points, now) {
    const past = balancer.history.map((record) => ({
        from: record.started_at,
        to: record.started_at + record.seconds,
        isBad: record.outcome !== "done",
        isOpen: false,
    }));
    if (!isBusy(balancer)) return past;
    const lastIdle = points.findLastIndex((point) => !point.isBusy);
    const from = points[lastIdle + 1]?.time ?? now - balancer.phase_seconds;
    return [...past, { from, to: now, isBad: balancer.is_stalled, isOpen: true }];
}

// Median step p99 in seconds before, during and after a rebalance; undefined where the page was not open.
export function stepTimes(record, points) {
    const end = record.started_at + record.seconds;
    const between = (from, to) => median(points.filter(({ time }) => time >= from && time < to).map(({ p99 }) => p99));
    return {
        before: between(record.started_at - AROUND_S, record.started_at),
        during: between(record.started_at, end),
        after: between(end, end + AROUND_S),
    };
}

function median(values) {
    const known = values.filter((value) => value !== undefined).sort((one, other) => one - other);
    return known.length === 0 ? undefined : known[Math.floor(known.length / 2)];
}
