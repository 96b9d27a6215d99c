// The gate that chooses experts, and how sure its choice is.
#pragma once

#include "numerics.h"
#include "product.h"

namespace step35::STEP35_ISA {

constexpr float kUncontestedMargin = 1.0f;  // as in contract.py: every expert is chosen
constexpr float kNoRunnerUp = -1.0f;

// A row's best experts by biased score, best first, the lowest id first among equals.
struct Best {
    int64_t* ids;
    float* biased;
    int64_t room;
    int64_t size;
};

// A NaN is never preferred, and never leaves an id unset.
static inline void offer(Best& best, int64_t id, float score) {
    if (best.size == best.room && !(score > best.biased[best.room - 1])) return;
    int64_t at = best.size < best.room ? best.size++ : best.room - 1;
    for (; at > 0 && score > best.biased[at - 1]; --at) {
        best.biased[at] = best.biased[at - 1];
        best.ids[at] = best.ids[at - 1];
    }
    best.biased[at] = score;
    best.ids[at] = id;
}

// The `room` largest of scores + bias. Sixteen at a time are passed over when none of them would get in.
static inline void choose_experts(const float* scores, const GateWeights& weights, Best& best) {
    best.size = 0;
    for_each_lanes(weights.router.rows, [&](int64_t first, int64_t count) {
        const Lanes lanes = load_up_to(scores + first, count) + load_up_to(weights.bias + first, count);
        if (best.size == best.room && !any_above(lanes, best.biased[best.room - 1])) return;
        float biased[kLanes];
        store(biased, lanes);
        for (int64_t i = 0; i < count; ++i) offer(best, first + i, biased[i]);
    });
}

// Weights come from the unbiased scores and sum to routed_scale. Returns the sum of the chosen scores.
static inline float weigh_experts(const float* scores, const GateWeights& weights, const int64_t* ids, float* out) {
    float total = 0.0f;
    for (int64_t i = 0; i < weights.top_k; ++i) total += scores[ids[i]];
    for (int64_t i = 0; i < weights.top_k; ++i) out[i] = scores[ids[i]] / (total + 1e-20f) * weights.routed_scale;
    return total;
}

// Of one row: the sum of all scores, and the entropy of scores / sum over the log of their number.
struct Spread {
    float total;
    float entropy;
};

// Logits become scores in place. With S the sum of scores s, the entropy is log S - (sum of s log s) / S.
static inline Spread score_row(float* values, int64_t count) {
    Lanes sums = broadcast(0.0f), weighted = broadcast(0.0f);
    for_each_lanes(count, [&](int64_t at, int64_t n) {
        store_up_to(values + at, sigmoid(load_up_to(values + at, n)), n);
        const Lanes scores = load_up_to(values + at, n);  // zeros behind the last one, which add nothing
        sums = sums + scores;
        weighted = multiply_add(scores, logarithm(scores), weighted);
    });
    float logs[kLanes] = {sum(sums) + 1e-20f, static_cast<float>(count)};
    const float total = logs[0], mean_log = sum(weighted) / total;
    store(logs, logarithm(load(logs)));
    const float entropy = count > 1 ? (logs[0] - mean_log) / logs[1] : 0.0f;
    return {total, entropy < 0.0f ? 0.0f : entropy};  // below for scores that are all 0
}

static void gate(Scratch& scratch, const GateWeights& weights, const float* hidden, int64_t num_rows,
                 const GateOutputs& out) {
    rms_norm_rows(hidden, num_rows, weights.norm, out.normed);
    const float* const* x = row_pointers<const float>(scratch, out.normed, num_rows, weights.router.cols);
    float** scores = linear_rows(scratch, x, num_rows, weights.router);
    const int64_t num_experts = weights.router.rows, top_k = weights.top_k;
    const bool is_contested = num_experts > top_k;
    const int64_t room = is_contested ? top_k + 1 : top_k;
    Best best{take<int64_t>(scratch, room), take<float>(scratch, room), room, 0};
    for (int64_t r = 0; r < num_rows; ++r) {
        const Spread spread = score_row(scores[r], num_experts);
        choose_experts(scores[r], weights, best);
        std::memcpy(out.topk_ids + r * top_k, best.ids, top_k * sizeof(int64_t));
        const float chosen = weigh_experts(scores[r], weights, best.ids, out.topk_weights + r * top_k);
        float* confidence = out.confidence + r;  // a column of the table
        confidence[0] = chosen / spread.total;
        confidence[num_rows] = spread.entropy;
        confidence[2 * num_rows] = is_contested ? best.biased[top_k - 1] - best.biased[top_k] : kUncontestedMargin;
        confidence[3 * num_rows] = is_contested ? static_cast<float>(best.ids[top_k]) : kNoRunnerUp;
    }
}

}  // namespace step35::STEP35_ISA
