// Who takes part: hosts, their processes, whether each is ready and when it last reported.

import { byId, fillRows } from "./dom.js";
import * as format from "./format.js";

const LATE_S = 3;
const ORDER = ["coordinator", "gateway", "attention", "expert"];

export class TopologyView {
    show({ state }) {
        const members = [...state.members].sort(byHost);
        fillRows(
            byId("members"),
            members.map((member, idx) => cells(member, member.host !== members[idx - 1]?.host)),
        );
    }
}

function cells(member, isFirst) {
    return [
        { text: isFirst ? member.host : "", className: "host" },
        member.ep_rank === null ? member.role : `${member.role}, EP rank ${member.ep_rank}`,
        format.memberName(member.member),
        { text: member.is_ready ? "ready" : "NOT READY", className: member.is_ready ? "" : "bad" },
        { text: `${format.seconds(member.age_s)} ago`, className: member.age_s > LATE_S ? "number warn" : "number" },
    ];
}

function byHost(one, other) {
    return (
        one.host.localeCompare(other.host, "en", { numeric: true }) ||
        ORDER.indexOf(one.role) - ORDER.indexOf(other.role) ||
        (one.ep_rank ?? 0) - (other.ep_rank ?? 0)
    );
}
