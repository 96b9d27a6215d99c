// Where a step's time goes, and which tier waits for the other.

import { byId, fillRows, setText } from "./dom.js";
import * as format from "./format.js";

const NAMES = {
    attention: "attention",
    draft: "drafts",
    dispatch: "dispatch",
    combine_wait: "waiting for experts, and combine",
};
const MUCH = 0.25; // of a step: from here on, waiting is what to look at

export class PipelineView {
    show({ window, state }) {
        const parts = window.increases("step35_step_part_seconds_total");
        const steps = window.counts("step35_step_seconds");
        const busy = busyRanks(window, state);
        fillRows(byId("parts"), partRows(parts, steps));
        fillRows(byId("busy"), busyRows(busy));
        setText(byId("who-waits"), whoWaits(parts, steps, busy));
        setText(byId("steps"), stepText(window));
    }
}

function partRows(parts, steps) {
    if (parts === undefined || steps === undefined) return [[format.NO_DATA]];
    const number = steps.counts.reduce((sum, each) => sum + each, 0);
    if (number === 0 || steps.total === 0) return [["no steps in this window"]];
    const rest = Math.max(0, steps.total - parts.reduce((sum, [, value]) => sum + value, 0));
    return [...parts, ["other", rest]].map(([part, value]) => [
        { text: NAMES[part] ?? part, isHeader: true },
        { text: format.percent(value / steps.total), share: value / steps.total, className: "number" },
        { text: format.seconds(value / number), className: "number" },
    ]);
}

// [[EP rank, share of the time that it computes], ...], or undefined.
function busyRanks(window, state) {
    const ranks = state.members
        .filter((member) => member.role === "expert" && member.ep_rank !== null)
        .map((member) => [member.ep_rank, window.of(member).rate("step35_expert_busy_seconds_total")])
        .filter(([, share]) => share !== undefined)
        .sort(([one], [other]) => one - other);
    return ranks.length === 0 ? undefined : ranks;
}

function busyRows(busy) {
    if (busy === undefined) return [[format.NO_DATA]];
    return busy.map(([rank, share]) => [
        { text: String(rank), isHeader: true },
        { text: format.percent(share, 1), share, className: "number" },
    ]);
}

function whoWaits(parts, steps, busy) {
    const waiting = parts?.find(([part]) => part === "combine_wait")?.[1];
    if (waiting === undefined || !steps?.total) return "Who waits for whom: no data.";
    const share = waiting / steps.total;
    const known = busy === undefined ? "" : busyText(busy);
    return share > MUCH
        ? `Attention waits for experts: ${format.percent(share)} of a step is waiting for their answers. ${known}`
        : `Experts wait for attention: only ${format.percent(share)} of a step is waiting for their answers. ${known}`;
}

function busyText(busy) {
    const mean = busy.reduce((sum, [, share]) => sum + share, 0) / busy.length;
    const [rank, most] = busy.reduce((one, other) => (other[1] > one[1] ? other : one));
    const busiest = `the busiest is EP rank ${rank}, ${format.percent(most)}`;
    return `Ranks compute ${format.percent(mean)} of the time; ${busiest}.`;
}

function stepText(window) {
    const [p50, p99] = [0.5, 0.99].map((share) => format.quantile(window.quantile("step35_step_seconds", share)));
    const rows = format.fixed(window.mean("step35_step_rows"), 0);
    const rate = window.counts("step35_step_seconds")?.counts.reduce((sum, each) => sum + each, 0);
    const retries = window.increase("step35_step_retries_total");
    return (
        `Steps: p50 ${p50}, p99 ${p99}; ${format.rate(rate === undefined ? undefined : rate / window.seconds)}; ` +
        `rows of a step ${rows}; repeated ${format.count(retries)}.`
    );
}
