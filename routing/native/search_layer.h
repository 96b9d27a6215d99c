// One layer of a TierState (routing/placement/tier_state.py), changed in place.
// R EP ranks, S slots of a rank, E logical experts; expert number E is in empty slots.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

namespace step35 {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Index of the first of the largest or smallest of values(0), values(1), ...
template <typename Values>
inline int64_t first_largest(int64_t size, Values values) {
    int64_t best = 0;
    double most = values(0);
    for (int64_t idx = 1; idx < size; ++idx)
        if (const double value = values(idx); value > most) most = value, best = idx;
    return best;
}

template <typename Values>
inline int64_t first_smallest(int64_t size, Values values) {
    return first_largest(size, [&values](int64_t idx) { return -values(idx); });
}

struct Sizes {
    int64_t layers, ranks, slots, experts, columns;  // experts: E + 1. columns: of seconds_by_copies
};

struct Layer {
    Sizes sizes;
    int64_t* slots;                   // [R, S]
    bool* holds;                      // [R, E + 1]
    const bool* began;                // [R, E + 1]
    const bool* is_free;              // [E + 1]
    int64_t* copies;                  // [E + 1]
    const double* seconds_by_copies;  // [E + 1, C]
    double* seconds_of_copy;          // [E + 1]
    double* seconds;                  // [R]
    int64_t* num_redundant;
    int64_t* num_added;

    int64_t nobody() const { return sizes.experts - 1; }
    int64_t expert(int64_t rank, int64_t place) const { return slots[rank * sizes.slots + place]; }
    bool has(int64_t rank, int64_t expert) const { return holds[rank * sizes.experts + expert]; }
    double seconds_if(int64_t expert, int64_t num_copies) const {
        return seconds_by_copies[expert * sizes.columns + std::max<int64_t>(num_copies, 1)];
    }
    double mean() const {
        double sum = seconds[0];
        for (int64_t rank = 1; rank < sizes.ranks; ++rank) sum += seconds[rank];
        return sum / static_cast<double>(sizes.ranks);
    }
    int64_t busiest() const {
        return first_largest(sizes.ranks, [this](int64_t rank) { return seconds[rank]; });
    }
    bool is_slow(double least, double tolerance) const {
        return seconds[busiest()] > (1.0 + tolerance) * std::max(mean(), least);
    }
    bool is_spare(int64_t expert) const { return is_free[expert] && copies[expert] > 1; }
    int64_t num_empty(int64_t rank) const {
        return std::count(slots + rank * sizes.slots, slots + (rank + 1) * sizes.slots, nobody());
    }
    int64_t first_empty(int64_t rank) const {
        const int64_t* begin = slots + rank * sizes.slots;
        return std::find(begin, begin + sizes.slots, nobody()) - begin;
    }

    void put(int64_t rank, int64_t place, int64_t expert) {
        slots[rank * sizes.slots + place] = expert;
        change(rank, expert, true);
    }

    int64_t take(int64_t rank, int64_t place) {
        const int64_t gone = std::exchange(slots[rank * sizes.slots + place], nobody());
        change(rank, gone, false);
        return gone;
    }

    void change(int64_t rank, int64_t expert, bool is_held) {
        const int64_t sign = is_held ? 1 : -1;
        for (int64_t other = 0; other < sizes.ranks; ++other)
            if (has(other, expert)) seconds[other] -= seconds_of_copy[expert];
        holds[rank * sizes.experts + expert] = is_held;
        copies[expert] += sign;
        *num_redundant += sign;
        if (!began[rank * sizes.experts + expert]) *num_added += sign;
        seconds_of_copy[expert] = seconds_if(expert, copies[expert]);
        for (int64_t other = 0; other < sizes.ranks; ++other)
            if (has(other, expert)) seconds[other] += seconds_of_copy[expert];
    }
};

}  // namespace step35
