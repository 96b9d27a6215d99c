// Drafts of the MTP modules: how many are accepted by position, how many are made, and why so many.

import { byId, fillRows, setText } from "./dom.js";
import * as format from "./format.js";

export class DraftsView {
    show({ window }) {
        const drafted = window.increases("step35_draft_tokens_total");
        const accepted = new Map(window.increases("step35_accepted_tokens_total"));
        fillRows(byId("acceptance"), acceptanceRows(drafted, accepted, window.seconds));
        fillRows(byId("draft-lengths"), shareRows(window.increases("step35_draft_length_choices_total")));
        fillRows(byId("draft-reasons"), shareRows(window.increases("step35_draft_length_reasons_total")));
        setText(byId("acceptance-length"), lengthText(window));
    }
}

function acceptanceRows(drafted, accepted, seconds) {
    if (drafted === undefined) return [[format.NO_DATA]];
    return byNumber(drafted).map(([position, number]) => {
        const taken = accepted.get(position) ?? 0;
        const share = number > 0 ? taken / number : undefined;
        return [
            { text: String(1 + Number(position)), isHeader: true },
            { text: number > 0 ? format.percent(share) : format.NONE, share: share ?? 0, className: "number" },
            { text: format.rate(number / seconds), className: "number" },
        ];
    });
}

// The target's own token counts, as everywhere.
function lengthText(window) {
    const verified = window.increase("step35_verifications_total");
    if (verified === undefined) return format.NO_DATA;
    if (verified === 0) return `${format.NONE}: nothing was verified`;
    const accepted = window.increase("step35_accepted_tokens_total") ?? 0;
    return `${format.fixed(1 + accepted / verified)} tokens of a verification`;
}

function shareRows(increases) {
    if (increases === undefined) return [[format.NO_DATA]];
    const sum = increases.reduce((total, [, number]) => total + number, 0);
    if (sum === 0) return [[format.NONE]];
    return byNumber(increases).map(([label, number]) => [
        { text: label, isHeader: true },
        { text: format.percent(number / sum), share: number / sum, className: "number" },
    ]);
}

// Positions and lengths in their order, reasons by how often.
function byNumber(pairs) {
    const isNumbered = pairs.every(([label]) => /^\d+$/.test(label));
    return [...pairs].sort((one, other) => (isNumbered ? one[0] - other[0] : other[1] - one[1]));
}
