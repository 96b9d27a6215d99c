// Where copies are: the expert map turned round, from experts to ranks. Pure.

const EMPTY = -1;

export class Placement {
    #ranksOf; // [layer idx][logical id] -> EP ranks, ascending

    // map: the answer of /admin/map.
    constructor(map, numExperts, epSize) {
        this.mapEpoch = map.map_epoch;
        this.#ranksOf = map.physical_to_logical.map((slots) => {
            const ranks = Array.from({ length: numExperts }, () => []);
            slots.forEach((logicalId, slot) => {
                if (logicalId !== EMPTY) ranks[logicalId].push(Math.floor(slot / map.slots_per_rank));
            });
            return ranks;
        });
        this.shared = this.#ranksOf.map((layer) => sharedExperts(layer, epSize)); // [layer idx][EP rank]
    }

    ranksOf(layerIdx, logicalId) {
        return this.#ranksOf[layerIdx][logicalId];
    }

    copies(layerIdx, logicalId) {
        return this.#ranksOf[layerIdx][logicalId].length;
    }

    // Experts that are nowhere: nobody can compute them.
    get numLost() {
        return this.#ranksOf.reduce((sum, layer) => sum + layer.filter((ranks) => ranks.length === 0).length, 0);
    }
}

// Of each rank: how many of its experts another rank holds too.
function sharedExperts(layer, epSize) {
    const shared = new Array(epSize).fill(0);
    for (const ranks of layer) if (ranks.length > 1) for (const rank of ranks) shared[rank] += 1;
    return shared;
}
