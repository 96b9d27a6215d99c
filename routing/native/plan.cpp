// plan_dispatch for the CPU: the same plan as routing/plan.py, whose names and rules it follows, in one pass of
// counting and one of placing. Whole numbers only, so that both choose the same copies.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

template <typename Element>
Element* at(Address address) {
    return reinterpret_cast<Element*>(address);
}

struct Routing {
    const int64_t* logical_to_physical;  // [num_experts, max_copies], -1 pads
    int64_t num_experts, max_copies, ep_size, slots_per_rank, pairs_per_touch;

    const int64_t* copies(int64_t logical_id) const { return logical_to_physical + logical_id * max_copies; }
    int64_t rank_of(int64_t physical) const { return physical / slots_per_rank; }
    int64_t num_copies(int64_t logical_id) const {
        const int64_t* first = copies(logical_id);
        return std::find(first, first + max_copies, -1) - first;
    }
};

// The first of `count` pairs that the idx-th of `num_used` copies takes.
int64_t first_turn(int64_t idx, int64_t count, int64_t num_used) {
    return (idx * count + num_used - 1) / num_used;
}

// Which copies of each expert a batch uses: `used` in the layout of logical_to_physical, `num_used` for each expert.
class CopyChoice {
  public:
    CopyChoice(const Routing& routing, const std::vector<int64_t>& num_pairs)
        : used(routing.num_experts * routing.max_copies),
          num_used(routing.num_experts, 1),
          routing_(routing),
          busy_(routing.ep_size, 0) {
        std::vector<int64_t> several;
        for (int64_t logical_id = 0; logical_id < routing.num_experts; ++logical_id) {
            const int64_t* copies = routing.copies(logical_id);
            used[logical_id * routing.max_copies] = copies[0];
            if (num_pairs[logical_id] == 0) continue;
            if (routing.num_copies(logical_id) == 1)
                busy_[routing.rank_of(copies[0])] += routing.pairs_per_touch + num_pairs[logical_id];
            else
                several.push_back(logical_id);
        }
        std::stable_sort(several.begin(), several.end(),
                         [&](int64_t a, int64_t b) { return num_pairs[a] > num_pairs[b]; });
        for (const int64_t logical_id : several) choose(logical_id, num_pairs[logical_id]);
    }

    std::vector<int64_t> used, num_used;

  private:
    void choose(int64_t logical_id, int64_t count) {
        const int64_t* copies = routing_.copies(logical_id);
        const int64_t num_copies = routing_.num_copies(logical_id);
        std::vector<int64_t> by_rank(copies, copies + num_copies);
        std::stable_sort(by_rank.begin(), by_rank.end(),
                         [&](int64_t a, int64_t b) { return busy_[routing_.rank_of(a)] < busy_[routing_.rank_of(b)]; });
        const int64_t chosen = std::min(num_copies, std::max<int64_t>(1, count / routing_.pairs_per_touch));
        std::sort(by_rank.begin(), by_rank.begin() + chosen);
        num_used[logical_id] = chosen;
        for (int64_t idx = 0; idx < chosen; ++idx) {
            used[logical_id * routing_.max_copies + idx] = by_rank[idx];
            const int64_t share = first_turn(idx + 1, count, chosen) - first_turn(idx, count, chosen);
            busy_[routing_.rank_of(by_rank[idx])] += routing_.pairs_per_touch + share;
        }
    }

    const Routing& routing_;
    std::vector<int64_t> busy_;  // of each rank, in pairs
};

struct Outputs {
    int64_t* row_token;
    int32_t* pair_row;
    int32_t* pair_slot;
    float* pair_weight;
    int64_t* pair_source;
};

std::vector<int64_t> count_pairs(const int64_t* ids, int64_t num_pairs, int64_t num_experts) {
    std::vector<int64_t> counts(num_experts, 0);
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        if (ids[pair] < 0 || ids[pair] >= num_experts) throw std::invalid_argument("topk_ids holds no logical expert");
        ++counts[ids[pair]];
    }
    return counts;
}

// The physical expert of each pair.
std::vector<int64_t> choose_physical(const int64_t* ids, int64_t num_pairs, const Routing& routing) {
    const std::vector<int64_t> counts = count_pairs(ids, num_pairs, routing.num_experts);
    const CopyChoice choice(routing, counts);
    std::vector<int64_t> turns(routing.num_experts, 0), physical(num_pairs);
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        const int64_t logical_id = ids[pair];
        const int64_t idx = turns[logical_id]++ * choice.num_used[logical_id] / counts[logical_id];
        physical[pair] = choice.used[logical_id * routing.max_copies + idx];
    }
    return physical;
}

nb::tuple as_tuple(const std::vector<int64_t>& values) {
    nb::list list;
    for (const int64_t value : values) list.append(value);
    return nb::tuple(list);
}

// Places pairs rank by rank, token by token; returns rows and pairs of each rank.
std::tuple<nb::tuple, nb::tuple> place(const std::vector<int64_t>& physical, const float* weights, int64_t num_tokens,
                                       int64_t top_k, const Routing& routing, const Outputs& out) {
    std::vector<int64_t> row_splits(routing.ep_size, 0), pair_splits(routing.ep_size, 0);
    for (const int64_t each : physical) ++pair_splits[routing.rank_of(each)];
    std::vector<int64_t> next_pair(routing.ep_size, 0);
    for (int64_t rank = 1; rank < routing.ep_size; ++rank)
        next_pair[rank] = next_pair[rank - 1] + pair_splits[rank - 1];
    std::vector<std::vector<int64_t>> tokens_of(routing.ep_size);
    for (int64_t token = 0; token < num_tokens; ++token) {
        for (int64_t k = 0; k < top_k; ++k) {
            const int64_t source = token * top_k + k, rank = routing.rank_of(physical[source]);
            std::vector<int64_t>& tokens = tokens_of[rank];
            if (tokens.empty() || tokens.back() != token) tokens.push_back(token);
            const int64_t pair = next_pair[rank]++;
            out.pair_row[pair] = static_cast<int32_t>(tokens.size() - 1);
            out.pair_slot[pair] = static_cast<int32_t>(physical[source] % routing.slots_per_rank);
            out.pair_weight[pair] = weights[source];
            out.pair_source[pair] = source;
        }
    }
    int64_t* row = out.row_token;
    for (int64_t rank = 0; rank < routing.ep_size; ++rank) {
        row_splits[rank] = static_cast<int64_t>(tokens_of[rank].size());
        row = std::copy(tokens_of[rank].begin(), tokens_of[rank].end(), row);
    }
    return {as_tuple(row_splits), as_tuple(pair_splits)};
}

// inputs: topk_ids, topk_weights, logical_to_physical. sizes: tokens, top_k, experts, max_copies.
// ranks: ep_size, slots_per_rank, pairs_per_touch. outputs: row_token, pair_row, pair_slot, pair_weight, pair_source.
std::tuple<nb::tuple, nb::tuple> plan_dispatch(std::tuple<Address, Address, Address> inputs,
                                               std::tuple<int64_t, int64_t, int64_t, int64_t> sizes,
                                               std::tuple<int64_t, int64_t, int64_t> ranks,
                                               std::tuple<Address, Address, Address, Address, Address> outputs) {
    const auto [ids, weights, table] = inputs;
    const auto [num_tokens, top_k, num_experts, max_copies] = sizes;
    const auto [ep_size, slots_per_rank, pairs_per_touch] = ranks;
    const auto [row_token, pair_row, pair_slot, pair_weight, pair_source] = outputs;
    const Routing routing{at<const int64_t>(table), num_experts, max_copies, ep_size, slots_per_rank, pairs_per_touch};
    const auto physical = choose_physical(at<const int64_t>(ids), num_tokens * top_k, routing);
    return place(physical, at<const float>(weights), num_tokens, top_k, routing,
                 {at<int64_t>(row_token), at<int32_t>(pair_row), at<int32_t>(pair_slot), at<float>(pair_weight),
                  at<int64_t>(pair_source)});
}

}  // namespace
}  // namespace step35

NB_MODULE(_plan, module) {
    module.doc() = "Top-k ids to the rows and pairs of each expert rank.";
    module.def("plan_dispatch", &step35::plan_dispatch);
}
