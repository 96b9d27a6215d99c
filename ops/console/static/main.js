// Puts the page together: a token, a poll, a history of states, and views that are shown each new one.

import { Api } from "./api.js";
import { byId, setText } from "./dom.js";
import { Freshness } from "./freshness.js";
import { History } from "./history.js";
import { Orders } from "./orders.js";
import { Placement } from "./placement.js";
import { Poll } from "./poll.js";
import { Session } from "./session.js";
import { startTheme } from "./theme.js";
import { AnswersView } from "./view_answers.js";
import { AutoscalerView } from "./view_autoscaler.js";
import { BalancerView } from "./view_balancer.js";
import { DraftsView } from "./view_drafts.js";
import { EventsView } from "./view_events.js";
import { ExpertsView } from "./view_experts.js";
import { GatesView } from "./view_gates.js";
import { HottestView } from "./view_hottest.js";
import { LayersView } from "./view_layers.js";
import { PipelineView } from "./view_pipeline.js";
import { StreamsView } from "./view_streams.js";
import { TimelinesView, pointOf } from "./view_timelines.js";
import { TopologyView } from "./view_topology.js";
import { UsersView } from "./view_users.js";
import { Window } from "./window.js";

const PERIOD_MS = 1000;
const WINDOW_S = 30; // of rates and quantiles
const RECENT_S = 10; // of a point in a chart
const LONG_S = 120;

const api = new Api();
const history = new History();
const freshness = new Freshness();
const poll = new Poll(ask, PERIOD_MS);
const session = new Session((token) => {
    api.setToken(token);
    poll.release();
});
const orders = new Orders(api, () => poll.now());
const experts = new ExpertsView(orders);
const views = [
    new AnswersView(),
    experts,
    new BalancerView(orders),
    new TimelinesView(),
    new HottestView((layerId, logicalId) => experts.selectByLayerId(layerId, logicalId)),
    new GatesView(),
    new DraftsView(),
    new PipelineView(),
    new UsersView(),
    new StreamsView(),
    new AutoscalerView(),
    new TopologyView(),
    new EventsView(),
    new LayersView(),
];

let registry; // of metrics: buckets of histograms
let placement = null;

startTheme(byId("theme"), show);
byId("pause-page").addEventListener("click", () => setPaused(!poll.isPaused));
session.start();

// One round with the coordinator.
async function ask() {
    try {
        registry ??= await api.get("admin/registry");
        const state = await api.get("admin/state");
        if (placement?.mapEpoch !== state.experts.map_epoch) placement = placementOf(await api.get("admin/map"), state);
        freshness.answered();
        receive(state);
    } catch (error) {
        if (error.status === 401) {
            poll.hold();
            freshness.answered("The coordinator does not know your token.");
            session.refused();
        } else if (error.status !== undefined) freshness.answered(error.message);
        else throw error; // a bug: for the browser's console
    }
}

// A state, wherever it comes from.
export function receive(state) {
    if (!history.push(state)) return;
    history.pushPoint(pointOf(state, new Window(history.last(RECENT_S), registry)));
    freshness.changed();
    setText(byId("model"), state.model.name);
    show();
}

function show() {
    const state = history.latest;
    if (state === undefined) return;
    const window = new Window(history.last(WINDOW_S), registry);
    const longWindow = new Window(history.last(LONG_S), registry);
    const frame = { state, window, longWindow, placement, points: history.points };
    for (const view of views) {
        try {
            view.show(frame);
        } catch (error) {
            reportError(error); // a panel that fails, fails alone
        }
    }
}

function placementOf(map, state) {
    return new Placement(map, state.model.num_logical_experts, state.model.ep_size);
}

function setPaused(isPaused) {
    poll.setPaused(isPaused);
    freshness.setPaused(isPaused);
    setText(byId("pause-page"), isPaused ? "Resume page" : "Pause page");
    byId("pause-page").setAttribute("aria-pressed", String(isPaused));
}
