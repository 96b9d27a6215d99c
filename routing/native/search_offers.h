// What can be done between two ranks of a layer: the same as routing/placement/tier_offers.py, whose names it follows.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "search_layer.h"

namespace step35 {

struct Room {
    int64_t place, expert;
    bool is_there;
    double freed, rise;
};

inline Room room_on(const Layer& layer, int64_t rank) {
    const auto price = [&](int64_t place) {
        const int64_t expert = layer.expert(rank, place);
        if (expert == layer.nobody()) return -1.0;
        return layer.is_spare(expert) ? layer.seconds_of_copy[expert] : kInfinity;
    };
    Room room{};
    room.place = first_smallest(layer.sizes.slots, price);
    room.is_there = price(room.place) < kInfinity;
    room.expert = room.is_there ? layer.expert(rank, room.place) : layer.nobody();
    room.freed = layer.seconds_of_copy[room.expert];
    room.rise = layer.seconds_if(room.expert, layer.copies[room.expert] - 1) - room.freed;
    return room;
}

// What an expert that comes for one of the calm rank should take.
struct Wanted {
    float seconds;
    int64_t place;

    bool operator<(const Wanted& other) const { return seconds < other.seconds; }
};

struct Offer {
    double gain;
    int64_t given, taken;
    bool is_copy, is_swap;
};

// What can be done between the busy and the calm rank.
class Pair {
  public:
    Pair(Layer& layer, int64_t busy, int64_t calm)
        : layer_(layer), busy_(busy), calm_(calm), gap_(layer.seconds[busy] - layer.seconds[calm]) {}

    Offer offer(int64_t max_redundant) const {
        const Offer one = one_way(max_redundant);
        if (!(one.gain < gap_ / 4.0)) return one;
        const Offer both = swap();
        return both.gain / 2.0 > one.gain ? both : one;
    }

    void carry_out(const Offer& offer) {
        const int64_t expert = layer_.expert(busy_, offer.given), partner = layer_.expert(calm_, offer.taken);
        if (partner != layer_.nobody()) layer_.take(calm_, offer.taken);
        if (!offer.is_copy) layer_.take(busy_, offer.given);
        layer_.put(calm_, offer.taken, expert);
        if (offer.is_swap) layer_.put(busy_, offer.given, partner);
    }

  private:
    bool can_go(int64_t expert, int64_t target) const { return layer_.is_free[expert] && !layer_.has(target, expert); }

    Offer one_way(int64_t max_redundant) const {
        const Room room = room_on(layer_, calm_);
        const bool is_possible = room.is_there && is_safe(room);
        const bool has_share = *layer_.num_redundant < max_redundant || room.expert != layer_.nobody();
        const double rise = layer_.has(busy_, room.expert) ? room.rise : 0.0, gap = gap_ + room.freed;
        double move_gain = -kInfinity, copy_gain = -kInfinity;
        int64_t move = 0, copy = 0;
        for (int64_t place = 0; is_possible && place < layer_.sizes.slots; ++place) {
            const int64_t expert = layer_.expert(busy_, place);
            if (!can_go(expert, calm_)) continue;
            const double seconds = layer_.seconds_of_copy[expert];
            const double shared = layer_.seconds_if(expert, layer_.copies[expert] + 1);
            const double moves = std::min(seconds - rise, gap - seconds);
            const double copies = std::min(seconds - shared - rise, gap - shared);
            if (moves > move_gain) move_gain = moves, move = place;
            if (has_share && copies > copy_gain) copy_gain = copies, copy = place;
        }
        const bool is_copy = copy_gain > move_gain;
        return {is_copy ? copy_gain : move_gain, is_copy ? copy : move, room.place, is_copy, false};
    }

    bool is_safe(const Room& room) const {
        for (int64_t rank = 0; rank < layer_.sizes.ranks; ++rank)
            if (rank != busy_ && rank != calm_ && layer_.has(rank, room.expert) &&
                layer_.seconds[rank] + room.rise >= layer_.seconds[busy_])
                return false;
        return true;
    }

    // As the one large table of tier_offers.py: the least miss, of equals that of the first slots. Sorted, what comes
    // next to a number lies beside it; a miss never gets less on the way from there.
    Offer swap() const {
        const std::vector<Wanted> wanted = sorted_wanted();
        float least = std::numeric_limits<float>::infinity();
        int64_t give = 0, take = 0;
        for (int64_t place = 0; place < layer_.sizes.slots; ++place) {
            const int64_t expert = layer_.expert(busy_, place);
            if (!can_go(expert, calm_)) continue;
            const float given = static_cast<float>(layer_.seconds_of_copy[expert]);
            const auto above = std::lower_bound(wanted.begin(), wanted.end(), Wanted{given, 0});
            float miss = std::numeric_limits<float>::infinity();
            if (above != wanted.end()) miss = std::abs(given - above->seconds);
            if (above != wanted.begin()) miss = std::min(miss, std::abs(given - (above - 1)->seconds));
            if (!(miss < least)) continue;
            least = miss, give = place, take = layer_.sizes.slots;
            const auto is_equal = [&](const Wanted& want) { return std::abs(given - want.seconds) == miss; };
            for (auto want = above; want != wanted.end() && is_equal(*want); ++want) take = std::min(take, want->place);
            for (auto want = above; want != wanted.begin() && is_equal(*--want);) take = std::min(take, want->place);
        }
        const double more =
            layer_.seconds_of_copy[layer_.expert(busy_, give)] - layer_.seconds_of_copy[layer_.expert(calm_, take)];
        const bool is_there = least < std::numeric_limits<float>::infinity();
        return {is_there ? std::min(more, gap_ - more) : -kInfinity, give, take, false, true};
    }

    std::vector<Wanted> sorted_wanted() const {
        std::vector<Wanted> wanted;
        wanted.reserve(layer_.sizes.slots);
        for (int64_t place = 0; place < layer_.sizes.slots; ++place)
            if (const int64_t expert = layer_.expert(calm_, place); can_go(expert, busy_))
                wanted.push_back({static_cast<float>(layer_.seconds_of_copy[expert] + gap_ / 2.0), place});
        std::sort(wanted.begin(), wanted.end());
        return wanted;
    }

    Layer& layer_;
    int64_t busy_, calm_;
    double gap_;
};

}  // namespace step35
