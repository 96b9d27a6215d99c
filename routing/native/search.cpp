// The search for less time: the same as routing/placement/tier_search.py, whose names it follows, layer by layer.
// Equal bits: the same additions in the same order, the first of equals, and no contraction (CMakeLists.txt).
// L MoE layers, R EP ranks, S slots of a rank, E logical experts; expert number E is in empty slots.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <tuple>
#include <vector>

#include "search_layer.h"
#include "search_offers.h"

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;
using State = std::tuple<Address, Address, Address, Address, Address, Address, Address, Address, Address, Address>;
using Shape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

template <typename Value>
Value* pointer(Address address) {
    return reinterpret_cast<Value*>(address);
}

struct Limits {
    double tolerance, stuck, step, heavy;
    int64_t max_rounds, helpings, max_redundant;
};

// What is kept of all layers, picture by picture (tier_pictures.py).
struct Album {
    std::vector<int64_t> num_of_layer, num_added;
    std::vector<double> seconds;
    std::vector<int32_t> slots;
};

// The phases, in one layer.
class Run {
  public:
    Run(Layer& layer, const Limits& limits, double least, Album& album)
        : layer_(layer), limits_(limits), least_(least), album_(album), ranks_(layer.sizes.ranks) {}

    void search() {
        picture();
        while (copy_what_is_heavy()) picture();
        while (drop_what_costs()) picture();
        trade();
        split();
    }

  private:
    void picture() {
        const double seconds = layer_.seconds[layer_.busiest()];
        if (seconds >= fastest_ && *layer_.num_added >= added_of_fastest_) return;
        if (seconds < fastest_) fastest_ = seconds, added_of_fastest_ = *layer_.num_added;
        album_.seconds.push_back(seconds);
        album_.num_added.push_back(*layer_.num_added);
        album_.slots.insert(album_.slots.end(), layer_.slots, layer_.slots + ranks_ * layer_.sizes.slots);
        ++album_.num_of_layer.back();
    }

    bool copy_what_is_heavy() {
        const int64_t expert =
            first_largest(layer_.sizes.experts, [&](int64_t e) { return layer_.seconds_of_copy[e]; });
        const double heavy = layer_.seconds_of_copy[expert];
        if (!(heavy > limits_.heavy * layer_.mean()) || !layer_.is_free[expert]) return false;
        const int64_t rank = calmest([&](int64_t r) { return !layer_.has(r, expert) && has_room(r); });
        if (layer_.has(rank, expert) || !has_room(rank)) return false;
        const Room room = room_on(layer_, rank);
        const bool is_new = room.expert == layer_.nobody();
        if (!(is_new ? *layer_.num_redundant < limits_.max_redundant : room.freed + room.rise < heavy)) return false;
        if (!is_new) layer_.take(rank, room.place);
        layer_.put(rank, room.place, expert);
        return true;
    }

    bool has_room(int64_t rank) const {
        for (int64_t place = 0; place < layer_.sizes.slots; ++place)
            if (const int64_t expert = layer_.expert(rank, place); expert == layer_.nobody() || layer_.is_spare(expert))
                return true;
        return false;
    }

    // Of the ranks that can, or the first one if none can.
    template <typename Can>
    int64_t calmest(Can can) const {
        return first_smallest(ranks_, [&](int64_t rank) { return can(rank) ? layer_.seconds[rank] : kInfinity; });
    }

    bool drop_what_costs() {
        if (*layer_.num_redundant <= 0) return false;
        const int64_t busy = layer_.busiest();
        const double mean = layer_.mean();
        const auto gain = [&](int64_t place) { return gain_of_drop(busy, layer_.expert(busy, place), mean); };
        const int64_t place = first_largest(layer_.sizes.slots, gain);
        if (!(gain(place) > limits_.step * mean)) return false;
        layer_.take(busy, place);
        return true;
    }

    double gain_of_drop(int64_t busy, int64_t expert, double mean) const {
        const double seconds = layer_.seconds_of_copy[expert], now = layer_.seconds[busy];
        const double rise = layer_.seconds_if(expert, layer_.copies[expert] - 1) - seconds;
        if (!layer_.is_spare(expert) || !(seconds + rise <= limits_.heavy * mean)) return -kInfinity;
        double others = -kInfinity;
        for (int64_t rank = 0; rank < ranks_; ++rank)
            if (rank != busy && layer_.has(rank, expert)) others = std::max(others, layer_.seconds[rank]);
        return now - std::max(now - seconds, others + rise);
    }

    void trade() {
        std::vector<int64_t> order(ranks_);
        int64_t num_failed = 0, partner = 0;
        for (int64_t round = 0; round < limits_.max_rounds; ++round) {
            if (num_failed >= ranks_ - 1 || !layer_.is_slow(least_, limits_.tolerance)) return;
            std::iota(order.begin(), order.end(), 0);
            std::stable_sort(order.begin(), order.end(),
                             [&](int64_t one, int64_t other) { return layer_.seconds[one] > layer_.seconds[other]; });
            Pair pair(layer_, order[0], order[ranks_ - 1 - partner]);
            const Offer offer = pair.offer(limits_.max_redundant);
            if (offer.gain > limits_.step * layer_.mean()) {
                pair.carry_out(offer);
                num_failed = 0;
                picture();
            } else {
                ++num_failed;
                partner = (partner + 1) % (ranks_ - 1);
            }
        }
    }

    void split() {
        const int64_t size = limits_.max_redundant / limits_.helpings;
        for (int64_t helping = 0; helping < limits_.helpings; ++helping) {
            if (!layer_.is_slow(least_, limits_.stuck) || !copy_what_takes_longest()) return;
            for (int64_t copy = 1; copy < size && copy_what_takes_longest(); ++copy) continue;
            picture();
            trade();
        }
    }

    bool copy_what_takes_longest() {
        if (*layer_.num_redundant >= limits_.max_redundant) return false;
        const auto can_get = [&](int64_t expert) { return layer_.is_free[expert] && layer_.copies[expert] < ranks_; };
        const int64_t expert = first_largest(
            layer_.sizes.experts, [&](int64_t e) { return can_get(e) ? layer_.seconds_of_copy[e] : -kInfinity; });
        if (!can_get(expert)) return false;
        const int64_t rank = calmest([&](int64_t r) { return !layer_.has(r, expert); });
        if (!make_room(rank)) return false;
        layer_.put(rank, layer_.first_empty(rank), expert);
        return true;
    }

    bool make_room(int64_t rank) {
        if (layer_.num_empty(rank) > 0) return true;
        const int64_t target =
            first_largest(ranks_, [&](int64_t r) { return static_cast<double>(layer_.num_empty(r)); });
        if (layer_.num_empty(target) == 0) return false;
        const auto price = [&](int64_t place) {
            const int64_t expert = layer_.expert(rank, place);
            return layer_.is_free[expert] && !layer_.has(target, expert) ? layer_.seconds_of_copy[expert] : kInfinity;
        };
        const int64_t place = first_smallest(layer_.sizes.slots, price);
        if (!(price(place) < kInfinity)) return false;
        const int64_t gone = layer_.take(rank, place);
        layer_.put(target, layer_.first_empty(target), gone);
        return true;
    }

    Layer& layer_;
    const Limits& limits_;
    double least_;
    Album& album_;
    int64_t ranks_;
    double fastest_ = kInfinity;
    int64_t added_of_fastest_ = 0;
};

// The search of a whole TierState, and its pictures until they are fetched.
class Search {
  public:
    // state: slots, holds, began, is_free, copies, seconds_by_copies, seconds_of_copy, seconds, num_redundant,
    // num_added. sizes: L, R, S, E + 1, C. limits: tolerance, stuck, step, heavy. counts: max_rounds, helpings,
    // max_redundant.
    Search(State state, Shape sizes, Address least, std::tuple<double, double, double, double> limits,
           std::tuple<int64_t, int64_t, int64_t> counts) {
        const auto [num_layers, ranks, slots, experts, columns] = sizes;
        const auto [tolerance, stuck, step, heavy] = limits;
        const auto [max_rounds, helpings, max_redundant] = counts;
        const auto [slots_at, holds, began, is_free, copies, by_copies, of_copy, seconds, redundant, added] = state;
        const Limits all{tolerance, stuck, step, heavy, max_rounds, helpings, max_redundant};
        for (int64_t idx = 0; idx < num_layers; ++idx) {
            Layer layer{
                .sizes = {num_layers, ranks, slots, experts, columns},
                .slots = pointer<int64_t>(slots_at) + idx * ranks * slots,
                .holds = pointer<bool>(holds) + idx * ranks * experts,
                .began = pointer<const bool>(began) + idx * ranks * experts,
                .is_free = pointer<const bool>(is_free) + idx * experts,
                .copies = pointer<int64_t>(copies) + idx * experts,
                .seconds_by_copies = pointer<const double>(by_copies) + idx * experts * columns,
                .seconds_of_copy = pointer<double>(of_copy) + idx * experts,
                .seconds = pointer<double>(seconds) + idx * ranks,
                .num_redundant = pointer<int64_t>(redundant) + idx,
                .num_added = pointer<int64_t>(added) + idx,
            };
            album_.num_of_layer.push_back(0);
            Run(layer, all, pointer<const double>(least)[idx], album_).search();
        }
    }

    int64_t num_pictures() const { return static_cast<int64_t>(album_.seconds.size()); }

    // outputs: num_of_layer, seconds, num_added, slots, of the shapes in tier_pictures.py.
    void write(std::tuple<Address, Address, Address, Address> outputs) const {
        const auto [num_of_layer, seconds, num_added, slots] = outputs;
        std::copy(album_.num_of_layer.begin(), album_.num_of_layer.end(), pointer<int64_t>(num_of_layer));
        std::copy(album_.seconds.begin(), album_.seconds.end(), pointer<double>(seconds));
        std::copy(album_.num_added.begin(), album_.num_added.end(), pointer<int64_t>(num_added));
        std::copy(album_.slots.begin(), album_.slots.end(), pointer<int32_t>(slots));
    }

  private:
    Album album_;
};

}  // namespace
}  // namespace step35

NB_MODULE(_search, module) {
    module.doc() = "The search for less time of an expert tier.";
    nb::class_<step35::Search>(module, "Search")
        .def(nb::init<step35::State, step35::Shape, step35::Address, std::tuple<double, double, double, double>,
                      std::tuple<int64_t, int64_t, int64_t>>(),
             nb::arg("state"), nb::arg("sizes"), nb::arg("least"), nb::arg("limits"), nb::arg("counts"))
        .def_prop_ro("num_pictures", &step35::Search::num_pictures)
        .def("write", &step35::Search::write);
}
