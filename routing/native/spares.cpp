// Meetings of ranks that back each other: the same as `Spares.meet` in routing/placement/tier_spares.py, whose names it
// follows, with equal bits.
// L MoE layers, R EP ranks, S slots of a rank, E logical experts; expert number E is in empty slots.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

template <typename Value>
Value* pointer(Address address) {
    return reinterpret_cast<Value*>(address);
}

// The arrays of a Spares, changed in place.
struct Spares {
    int64_t layers, ranks, slots, experts;  // experts: E + 1
    const int64_t* queue;                   // [L, R, S]
    bool* is_open;                          // [L, R, S]
    const double* alone;                    // [L, R, S]
    const double* shared;                   // [L, R, S]
    double* left;                           // [L, R]
    int64_t* num_empty;                     // [L, R]
    int64_t* max_added;                     // [L]
    bool* added;                            // [L, R, E + 1]
    int64_t max_moves;

    int64_t rank(int64_t layer, int64_t ep_rank) const { return layer * ranks + ep_rank; }

    // A place in the queue of a rank, or the number of slots if there is none.
    template <typename Is>
    int64_t first(int64_t rank, Is is) const {
        int64_t place = 0;
        while (place < slots && !(is_open[rank * slots + place] && is(rank * slots + place))) ++place;
        return place;
    }

    void give(int64_t place, int64_t target, int64_t layer) {
        added[target * experts + queue[place]] = true;
        --num_empty[target];
        left[target] -= shared[place];
        --max_added[layer];
        --max_moves;
    }
};

// Two ranks of a layer, and what they can do for each other. one, other: layer * R + rank. hot, partner: places of L *
// R * S.
struct Meeting {
    int64_t layer, one, other, hot, partner, num_copies;
};

Meeting prepared(const Spares& spares, int64_t layer, int64_t one, int64_t other, int64_t hot) {
    const double comes = spares.shared[hot], goes = spares.alone[hot] - comes;
    const auto fits = [&](int64_t place) {
        const double back = spares.shared[place], gone = spares.alone[place] - back;
        return back - goes <= spares.left[one] && comes - gone <= spares.left[other];
    };
    const int64_t partner = spares.num_empty[one] > 0 ? spares.first(other, fits) : spares.slots;
    const bool has_partner = partner < spares.slots;
    const int64_t num_copies = has_partner ? 2 : comes <= spares.left[other] ? 1 : 0;
    return {layer, one, other, hot, other * spares.slots + partner, num_copies};
}

// Which are within what a layer and all layers may get; the hottest come first.
std::vector<bool> within(const Spares& spares, const std::vector<Meeting>& meetings) {
    std::vector<int64_t> order(meetings.size()), of_layer(spares.layers);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t one, int64_t other) {
        return spares.shared[meetings[one].hot] > spares.shared[meetings[other].hot];
    });
    std::vector<bool> is_allowed(meetings.size());
    int64_t total = 0;
    for (const int64_t row : order) {
        const auto& [layer, one, other, hot, partner, num_copies] = meetings[row];
        total += num_copies;
        of_layer[layer] += num_copies;
        is_allowed[row] = num_copies > 0 && total <= spares.max_moves && of_layer[layer] <= spares.max_added[layer];
    }
    return is_allowed;
}

// The hottest of the first ranks have their turn; says whether anything was given. pairs: [P, 2].
bool meet(Spares& spares, const int64_t* pairs, int64_t num_pairs) {
    std::vector<Meeting> meetings;
    for (int64_t layer = 0; layer < spares.layers; ++layer)
        for (int64_t pair = 0; pair < num_pairs; ++pair) {
            const int64_t one = spares.rank(layer, pairs[2 * pair]), other = spares.rank(layer, pairs[2 * pair + 1]);
            const int64_t hot = spares.first(one, [](int64_t) { return true; });
            if (hot < spares.slots && spares.num_empty[other] > 0)
                meetings.push_back(prepared(spares, layer, one, other, one * spares.slots + hot));
        }
    const std::vector<bool> is_given = within(spares, meetings);
    for (size_t row = 0; row < meetings.size(); ++row) {
        const auto& [layer, one, other, hot, partner, num_copies] = meetings[row];
        spares.is_open[hot] = false;
        if (!is_given[row]) continue;
        spares.give(hot, other, layer);
        if (num_copies == 2) {
            spares.is_open[partner] = false;
            spares.give(partner, one, layer);
        }
        spares.left[one] += spares.alone[hot] - spares.shared[hot];
        if (num_copies == 2) spares.left[other] += spares.alone[partner] - spares.shared[partner];
    }
    return std::find(is_given.begin(), is_given.end(), true) != is_given.end();
}

// arrays: queue, is_open, alone, shared, left, num_empty, max_added, added. sizes: L, R, S, E + 1. turns: int64 [T]
// pairs of each turn, and int64 [sum of them, 2].
void hold_meetings(std::tuple<Address, Address, Address, Address, Address, Address, Address, Address> arrays,
                   std::tuple<int64_t, int64_t, int64_t, int64_t> sizes, int64_t max_moves,
                   std::tuple<Address, Address, int64_t> turns, int64_t num_meetings) {
    const auto [num_layers, ranks, slots, experts] = sizes;
    const auto [queue, is_open, alone, shared, left, num_empty, max_added, added] = arrays;
    Spares spares{
        .layers = num_layers,
        .ranks = ranks,
        .slots = slots,
        .experts = experts,
        .queue = pointer<const int64_t>(queue),
        .is_open = pointer<bool>(is_open),
        .alone = pointer<const double>(alone),
        .shared = pointer<const double>(shared),
        .left = pointer<double>(left),
        .num_empty = pointer<int64_t>(num_empty),
        .max_added = pointer<int64_t>(max_added),
        .added = pointer<bool>(added),
        .max_moves = max_moves,
    };
    const auto [num_pairs_at, pairs_at, num_turns] = turns;
    const auto* num_pairs = pointer<const int64_t>(num_pairs_at);
    const auto* pairs = pointer<const int64_t>(pairs_at);
    for (int64_t number = 0, num_idle = 0; number < num_meetings && num_idle < num_turns; ++number) {
        const int64_t turn = number % num_turns;
        if (turn == 0) pairs = pointer<const int64_t>(pairs_at);
        num_idle = meet(spares, pairs, num_pairs[turn]) ? 0 : num_idle + 1;
        pairs += 2 * num_pairs[turn];
    }
}

}  // namespace
}  // namespace step35

NB_MODULE(_spares, module) {
    module.doc() = "Ranks that give each other's experts a second copy.";
    module.def("hold_meetings", &step35::hold_meetings, nb::arg("arrays"), nb::arg("sizes"), nb::arg("max_moves"),
               nb::arg("turns"), nb::arg("num_meetings"));
}
