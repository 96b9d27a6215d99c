// LayerTally: sums over the calls of one MoE layer on one expert rank, as routing/load/tally.py, whose names it
// follows.
//
// Expert kernels count here by address and without the interpreter's lock, so it has a lock of its own: both sides are
// built together and include this file.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

namespace step35 {

// Any thread may call anything.
class LayerTally {
  public:
    static constexpr int64_t kNumTerms = 4;  // distinct slots, pairs, the call itself, seconds (cost_fit.py)

    // per slot: pairs, seconds, norm_sums, norm_counts.
    struct Sums {
        double num_calls = 0.0, rows = 0.0, distinct = 0.0;
        std::vector<double> pairs, seconds, norm_sums, norm_counts;
        double cost[kNumTerms * kNumTerms] = {};

        explicit Sums(int64_t num_slots)
            : pairs(num_slots), seconds(num_slots), norm_sums(num_slots), norm_counts(num_slots) {}
    };

    LayerTally(int64_t num_slots, int64_t outputs_every)
        : num_slots_(num_slots), outputs_every_(outputs_every), counts_(num_slots), sums_(num_slots) {}

    // pair_slot: [num_pairs]. Returns whether it is the turn of this call's outputs to be looked at.
    bool add(const int32_t* pair_slot, int64_t num_pairs, int64_t num_rows, double seconds) {
        check(pair_slot, num_pairs);
        const std::lock_guard guard(lock_);
        std::fill(counts_.begin(), counts_.end(), 0);
        for (int64_t pair = 0; pair < num_pairs; ++pair) ++counts_[pair_slot[pair]];
        const double seconds_each = seconds / static_cast<double>(std::max<int64_t>(num_pairs, 1));
        double distinct = 0.0;
        for (int64_t slot = 0; slot < num_slots_; ++slot) {
            sums_.pairs[slot] += static_cast<double>(counts_[slot]);
            sums_.seconds[slot] += static_cast<double>(counts_[slot]) * seconds_each;
            distinct += counts_[slot] ? 1.0 : 0.0;
        }
        sums_.num_calls += 1.0;
        sums_.rows += static_cast<double>(num_rows);
        sums_.distinct += distinct;
        add_cost({distinct, static_cast<double>(num_pairs), 1.0, seconds});
        if (--until_outputs_) return false;
        until_outputs_ = outputs_every_;
        return true;
    }

    // outputs: [num_pairs, width].
    void look_at(const int32_t* pair_slot, int64_t num_pairs, const float* outputs, int64_t width) {
        check(pair_slot, num_pairs);
        const std::lock_guard guard(lock_);
        for (int64_t pair = 0; pair < num_pairs; ++pair) {
            sums_.norm_sums[pair_slot[pair]] += root_mean_square(outputs + pair * width, width);
            sums_.norm_counts[pair_slot[pair]] += 1.0;
        }
    }

    // The sums since the last call; begins again.
    Sums take() {
        Sums fresh(num_slots_);
        const std::lock_guard guard(lock_);
        return std::exchange(sums_, std::move(fresh));
    }

  private:
    void check(const int32_t* pair_slot, int64_t num_pairs) const {
        if (std::any_of(pair_slot, pair_slot + num_pairs,
                        [this](int32_t slot) { return slot < 0 || slot >= num_slots_; }))
            throw std::invalid_argument("a pair points at no slot");
    }

    void add_cost(const double (&terms)[kNumTerms]) {
        for (int64_t row = 0; row < kNumTerms; ++row)
            for (int64_t column = 0; column < kNumTerms; ++column)
                sums_.cost[row * kNumTerms + column] += terms[row] * terms[column];
    }

    // Of a broken vector: 0.
    static double root_mean_square(const float* vector, int64_t width) {
        double sum = 0.0;
        for (int64_t i = 0; i < width; ++i) sum += static_cast<double>(vector[i]) * vector[i];
        return std::isfinite(sum) ? std::sqrt(sum / static_cast<double>(width)) : 0.0;
    }

    const int64_t num_slots_, outputs_every_;
    std::mutex lock_;
    int64_t until_outputs_ = 1;  // a layer's first call is looked at
    std::vector<int32_t> counts_;
    Sums sums_;
};

}  // namespace step35
