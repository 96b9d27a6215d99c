// Is it healthy? One word, one sentence, and what is wrong in the order in which it matters. Pure.

import * as format from "./format.js";

const SILENT_S = 5;
const KV_FULL = 0.95;
const WORDS = { ok: "Healthy", warn: "Warning", bad: "Broken" };
const RECENT_S = 900; // an abandoned rebalance is news for so long

// { level, word, sentence, problems }. window: of the last half minute. numLost: experts that have no copy.
export function judge(state, window, numLost) {
    const problems = [
        ...tierProblems(state, numLost),
        ...silentMembers(state),
        ...balancerProblems(state),
        ...trafficProblems(window),
    ].sort((one, other) => (one.level === other.level ? 0 : one.level === "bad" ? -1 : 1));
    const level = problems[0]?.level ?? "ok";
    return { level, word: WORDS[level], ready: readySentence(state), sentence: sentence(state, window), problems };
}

function sentence(state, window) {
    const p99 = state.experts.step_p99_ms;
    const steps = p99 > 0 ? `step p99 ${format.seconds(p99 / 1000)}` : "no steps in the last seconds";
    const running = format.count(window.sum("step35_requests_running"));
    const waiting = format.count(window.sum("step35_requests_waiting"));
    return `${readySentence(state)}; ${steps}; ${running} running, ${waiting} waiting`;
}

// Without numbers that change all the time, so that it can be read aloud when it changes.
function readySentence(state) {
    const attention = readyOf(state, "attention");
    return (
        `${readyRanks(state).size} of ${format.many(state.model.ep_size, "expert rank")}, ` +
        `${attention.ready} of ${format.many(attention.all, "attention actor")} ready`
    );
}

function readyRanks(state) {
    const ready = state.members.filter((member) => member.role === "expert" && member.is_ready);
    return new Set(ready.map((member) => member.ep_rank).filter((rank) => rank !== null && rank < state.model.ep_size));
}

function readyOf(state, role) {
    const members = state.members.filter((member) => member.role === role);
    return { all: members.length, ready: members.filter((member) => member.is_ready).length };
}

function* tierProblems(state, numLost) {
    const ready = readyRanks(state);
    const missing = Array.from({ length: state.model.ep_size }, (_, rank) => rank).filter((rank) => !ready.has(rank));
    if (missing.length > 0) yield bad(`No ready member holds ${format.ranks(missing)}: steps wait until one does.`);
    if (numLost > 0)
        yield bad(`${format.many(numLost, "expert")} of the map ${numLost === 1 ? "has" : "have"} no copy.`);
    for (const [role, names] of [
        ["attention", "attention actor"],
        ["gateway", "gateway"],
    ]) {
        const { all, ready: number } = readyOf(state, role);
        if (number === 0) yield bad(`No ${names} is ready: no request is answered.`);
        else if (number < all) yield warn(`${all - number} of ${format.many(all, names)} not ready.`);
    }
}

function* silentMembers(state) {
    for (const member of state.members.filter(({ age_s: age }) => age > SILENT_S)) {
        const which = member.ep_rank === null ? member.role : `EP rank ${member.ep_rank}`;
        yield warn(`${format.memberName(member.member)} (${which}) last reported ${format.seconds(member.age_s)} ago.`);
    }
}

function* balancerProblems(state) {
    const { balancer, drift } = state.experts;
    if (balancer.is_stalled) {
        const since = `${balancer.phase} for ${format.seconds(balancer.phase_seconds)}`;
        yield bad(
            `The rebalance is stalled: ${since}. Look at the expert ranks' logs; serving goes on with the map it has.`,
        );
    }
    const last = balancer.history.at(-1);
    if (last?.outcome === "abandoned" && state.time - last.started_at - last.seconds < RECENT_S) {
        yield warn(`The last rebalance was abandoned: ${last.reason}.`);
    }
    if (drift) yield warn(`Drift: ${drift}.`);
    if (balancer.is_paused) yield warn("The balancer is paused: no rebalance begins by itself.");
}

function* trafficProblems(window) {
    const shed = (window.increases("step35_requests_shed_total") ?? []).filter(([, number]) => number > 0);
    if (shed.length > 0) {
        const reasons = shed.map(([reason, number]) => `${reason} ${format.rate(number / window.seconds)}`);
        yield warn(`Requests are sent away: ${reasons.join(", ")}.`);
    }
    const failed = (window.increases("step35_http_responses_total") ?? []).find(([status]) => status === "5xx");
    if (failed !== undefined && failed[1] > 0)
        yield warn(`${format.count(failed[1])} answers failed (5xx) in the last half minute.`);
    const usage = window.sums("step35_kv_cache_usage_ratio") ?? [];
    if (usage.length > 0 && fullest(window) > KV_FULL)
        yield warn(`KV blocks run out: ${format.percent(fullest(window))} in use.`);
    const running = window.sum("step35_requests_running") ?? 0;
    if (running > 0 && window.seconds >= 20 && window.increase("step35_completion_tokens_total") === 0) {
        yield bad(`${format.count(running)} sequences run, but no token came in ${format.seconds(window.seconds)}.`);
    }
}

function fullest(window) {
    const members = window.states.at(-1).members;
    return Math.max(0, ...members.map((member) => member.metrics.step35_kv_cache_usage_ratio?.[0]?.[1] ?? 0));
}

function bad(text) {
    return { level: "bad", text };
}

function warn(text) {
    return { level: "warn", text };
}
