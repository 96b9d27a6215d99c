// The top of the page: is it healthy, what is hot, are gates sure, what did the last rebalance bring, do users feel it.

import { byId, fillList, setText } from "./dom.js";
import * as format from "./format.js";
import { judge } from "./health.js";
import { isBusy, stepTimes } from "./rebalances.js";

const SIGNS = { ok: "●", warn: "▲", bad: "■" };

export class AnswersView {
    show({ state, window, placement, points }) {
        const health = judge(state, window, placement?.numLost ?? 0);
        this.#showHealth(health);
        this.#answer("hot", hot(state.experts));
        this.#answer("gate", gates(state.experts));
        this.#answer("last", lastRebalance(state, points));
        this.#answer("users", users(window));
        const title = `${SIGNS[health.level]} ${health.word} - ${state.model.name}`;
        if (document.title !== title) document.title = title;
    }

    #showHealth(health) {
        const banner = byId("health");
        if (banner.dataset.level !== health.level) banner.dataset.level = health.level;
        setText(byId("health-word"), `${SIGNS[health.level]} ${health.word}`);
        setText(byId("health-sentence"), `${health.sentence}.`);
        fillList(
            byId("problems"),
            health.problems.map(({ text }) => text),
        );
        [...byId("problems").children].forEach((item, idx) => (item.dataset.level = health.problems[idx].level));
        // Read aloud, so only when it changes: figures that move each second are left out.
        setText(
            byId("announcement"),
            `${health.word}: ${[health.ready, ...health.problems.map(({ text }) => text)].join(". ")}`,
        );
    }

    #answer(name, [answer, detail]) {
        setText(byId(`answer-${name}`), answer);
        setText(byId(`detail-${name}`), detail);
    }
}

// Each answer: [short, detail].

function hot(experts) {
    if (experts.window_tokens === 0) return ["no load measured yet", "Send some requests."];
    const { layer, rank, load } = hottestRank(experts.layers);
    const expert = experts.hottest[0];
    const over = experts.best_us > 0 ? experts.predicted_us / experts.best_us - 1 : undefined;
    const detail =
        `Over the means of their layers. ` +
        `Balancedness: ${format.fixed(layer.balancedness)} in layer ${layer.layer_id}, ` +
        `${format.fixed(experts.balancedness)} over all; expert time ${format.percent(over)} above the best map's.`;
    const hottest = `layer ${layer.layer_id}, EP rank ${rank}: ${format.times(load)}`;
    if (expert === undefined) return [hottest, detail];
    const place = `layer ${expert.layer_id}, expert ${expert.logical_id}`;
    return [`${hottest} · ${place}: ${format.times(expert.load)}`, detail];
}

export function hottestRank(layers) {
    let found = { layer: layers[0], rank: 0, load: 0 };
    for (const layer of layers) {
        const mean = layer.rank_pairs.reduce((sum, pairs) => sum + pairs, 0) / layer.rank_pairs.length;
        const most = Math.max(...layer.rank_pairs);
        if (mean > 0 && most / mean > found.load)
            found = { layer, rank: layer.rank_pairs.indexOf(most), load: most / mean };
    }
    return found;
}

function gates(experts) {
    if (experts.window_tokens === 0) return ["no load measured yet", "Send some requests."];
    const mean = (key) => experts.layers.reduce((sum, layer) => sum + layer[key], 0) / experts.layers.length;
    const least = experts.layers.reduce((one, other) => (other.mass < one.mass ? other : one));
    const number = experts.layers.filter((layer) => layer.is_drifting).length;
    const drift = number === 0 ? "no layer drifts" : `${number} of ${experts.layers.length} layers drift`;
    const detail =
        `Means over layers: entropy ${format.fixed(mean("entropy"))}, margin ${format.fixed(mean("margin"), 3)}. ` +
        `Least sure: layer ${least.layer_id}, mass ${format.fixed(least.mass)}.`;
    return [`mass ${format.fixed(mean("mass"))} on the chosen experts; ${drift}`, detail];
}

function lastRebalance(state, points) {
    const { balancer } = state.experts;
    if (isBusy(balancer)) {
        const [loaded, total] = balancer.progress;
        const stage = balancer.num_stages > 0 ? `stage ${balancer.stage} of ${balancer.num_stages}, ` : "";
        return [`one is under way: ${stage}${balancer.phase}`, `${loaded} of ${total} slots of this stage are loaded.`];
    }
    const last = balancer.history.at(-1);
    if (last === undefined) return ["none since the coordinator started", balancer.last_decision];
    const ago = format.seconds(Math.max(0, state.time - last.started_at));
    if (last.outcome !== "done")
        return [`abandoned after ${format.seconds(last.seconds)}, begun ${ago} ago`, `${last.reason}.`];
    return [
        `${benefit(last)}, for ${format.many(last.num_moves, "move")} in ${format.seconds(last.seconds)}`,
        cost(last, points, ago),
    ];
}

function benefit(last) {
    const after = last.balancedness_after ?? last.balancedness_planned;
    if (last.balancedness_before === null || after === null) return "what it gained is not known";
    const planned = last.balancedness_after === null ? " planned (not measured yet)" : "";
    return `balancedness ${format.fixed(last.balancedness_before)} → ${format.fixed(after)}${planned}`;
}

function cost(last, points, ago) {
    const { before, during, after } = stepTimes(last, points);
    const gain = last.gain === null ? "" : ` It was to save ${format.percent(last.gain, 1)} of expert time.`;
    const steps = [before, during, after].map(format.seconds).join(", then ");
    const seen = during === undefined ? "" : ` Step p99 before, during and after: ${steps}.`;
    return `Begun ${ago} ago.${gain}${seen}`;
}

function users(window) {
    const first = window.quantile("step35_time_to_first_token_seconds", 0.99);
    const between = window.quantile("step35_inter_token_latency_seconds", 0.99);
    const shed = window.increase("step35_requests_shed_total");
    const some = shed > 0 ? `${format.rate(shed / window.seconds)} sent away` : "none sent away";
    const sentAway = shed === undefined ? `sent away: ${format.NO_DATA}` : some;
    const median = format.quantile(window.quantile("step35_time_to_first_token_seconds", 0.5));
    const tokens = format.rate(window.rate("step35_completion_tokens_total"));
    return [
        `p99: first token ${format.quantile(first)}, between tokens ${format.quantile(between)}; ${sentAway}`,
        `Median first token ${median}; tokens produced: ${tokens}. Over the last ${format.seconds(window.seconds)}.`,
    ];
}
