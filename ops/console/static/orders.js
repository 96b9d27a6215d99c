// Orders to the balancer. Whatever changes the cluster asks first, in a dialog; the page's foot says how it ended.

import { byId, element, setText } from "./dom.js";
import * as format from "./format.js";

export class Orders {
    #api;
    #onDone;
    #isBusy = false;
    #answer = null; // of the dialog that is open

    // onDone: called when an order was followed.
    constructor(api, onDone) {
        this.#api = api;
        this.#onDone = onDone;
        byId("confirm-yes").addEventListener("click", () => this.#close(true));
        byId("confirm-no").addEventListener("click", () => this.#close(false));
        byId("confirm").addEventListener("close", () => this.#answer?.(false)); // Escape
        byId("outcome-close").addEventListener("click", () => (byId("outcome").hidden = true));
    }

    dryRun() {
        return this.#run(async () => {
            const proposal = await this.#propose();
            return `Dry run. ${proposalLines(proposal).join(" ")}`;
        });
    }

    rebalance() {
        return this.#run(async () => {
            const proposal = await this.#propose();
            if (!proposal.is_accepted) return proposalLines(proposal).join(" ");
            if (!(await this.#confirm("Rebalance now?", proposalLines(proposal), "Rebalance now"))) return null;
            const begun = await this.#api.order("POST", "admin/experts/rebalance", { dry_run: false });
            return proposalLines(begun).join(" ");
        });
    }

    pin(layerId, logicalId, epRanks) {
        return this.#run(async () => {
            if (epRanks.length === 0) return "Tick at least one rank to pin the expert to.";
            const lines = [
                `The copies of expert ${logicalId} of layer ${layerId} shall stay on ${format.ranks(epRanks)}.`,
                "The next rebalance makes it so; until somebody unpins it the balancer leaves it there.",
            ];
            if (!(await this.#confirm("Pin this expert?", lines, "Pin"))) return null;
            const expert = await this.#api.order("PUT", pinPath(layerId, logicalId), { ep_ranks: epRanks });
            return `Pinned to ${format.ranks(epRanks)}. ${expertLine(expert)}`;
        });
    }

    unpin(layerId, logicalId) {
        return this.#run(async () => {
            const lines = [`The balancer may move expert ${logicalId} of layer ${layerId} again.`];
            if (!(await this.#confirm("Unpin this expert?", lines, "Unpin"))) return null;
            return `Unpinned. ${expertLine(await this.#api.order("DELETE", pinPath(layerId, logicalId)))}`;
        });
    }

    setPaused(isPaused) {
        return this.#run(async () => {
            const line = isPaused
                ? "No rebalance will begin by itself until somebody resumes it. One that is under way goes on."
                : "Rebalances may begin by themselves again.";
            const verb = isPaused ? "Pause" : "Resume";
            if (!(await this.#confirm(`${verb} the balancer?`, [line], verb))) return null;
            const balancer = await this.#api.order("PUT", "admin/balancer", { paused: isPaused });
            return `The balancer is ${balancer.is_paused ? "paused" : "resumed"}.`;
        });
    }

    #propose() {
        this.#say("Asking what a rebalance would do…", "ok");
        return this.#api.order("POST", "admin/experts/rebalance", { dry_run: true });
    }

    // work: gives the sentence of its outcome, or null where nothing was ordered.
    async #run(work) {
        if (this.#isBusy) return;
        this.#isBusy = true;
        document.body.dataset.ordering = "yes";
        try {
            const text = await work();
            this.#say(text ?? "Cancelled: nothing was ordered.", "ok");
            if (text !== null) this.#onDone();
        } catch (error) {
            this.#say(`Refused or failed: ${error.message}`, "bad");
        } finally {
            this.#isBusy = false;
            delete document.body.dataset.ordering;
        }
    }

    #confirm(title, lines, yes) {
        setText(byId("confirm-title"), title);
        byId("confirm-lines").replaceChildren(...lines.map((text) => element("p", { text })));
        setText(byId("confirm-yes"), yes);
        byId("confirm").showModal();
        byId("confirm-no").focus(); // Enter by habit must change nothing
        return new Promise((resolve) => (this.#answer = resolve));
    }

    #close(isYes) {
        this.#answer?.(isYes);
        this.#answer = null;
        byId("confirm").close();
    }

    #say(text, level) {
        byId("outcome").hidden = false;
        byId("outcome").dataset.level = level;
        setText(byId("outcome-text"), `${new Date().toLocaleTimeString("en-GB")}  ${text}`);
    }
}

export function proposalLines(proposal) {
    if (!proposal.is_accepted) return [`Nothing to do: ${proposal.reason}.`];
    const verb = proposal.is_dry_run ? "A rebalance would make" : "A rebalance begins:";
    return [
        `${verb} ${format.many(proposal.num_moves, "move")} in ${format.many(proposal.num_stages, "stage")}.`,
        `Gain: ${format.percent(proposal.gain, 1)} of the expert tier's time, ` +
            `${format.seconds(proposal.seconds_per_step)} a step. Cost: ${format.seconds(proposal.cost_s)} of serving.`,
        `Balancedness: ${format.fixed(proposal.balancedness_before)} now, ` +
            `${format.fixed(proposal.balancedness_after)} as predicted.`,
        `Why: ${proposal.reason}.`,
    ];
}

function expertLine(expert) {
    const state = expert.is_pinned ? "is pinned" : "is not pinned";
    const where = format.ranks(expert.ep_ranks);
    return `Expert ${expert.logical_id} of layer ${expert.layer_id} ${state}; its copies are now on ${where}.`;
}

function pinPath(layerId, logicalId) {
    return `admin/experts/${layerId}/${logicalId}/pin`;
}
