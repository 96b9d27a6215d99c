// CallTally for the CPU: the same sums as routing/load/tally.py, whose names it follows, added up call by call.
// The caller holds the interpreter's lock throughout, so `add` and `take` never meet.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

constexpr int64_t kNumTerms = 4;  // distinct slots, pairs, the call itself, seconds (cost_fit.py)

// Sums over some calls, in the layout of an ExpertSample: [layers] and [layers, slots].
struct Sums {
    std::vector<double> num_calls, rows, distinct, pairs, seconds, cost;

    Sums(int64_t num_layers, int64_t num_slots)
        : num_calls(num_layers),
          rows(num_layers),
          distinct(num_layers),
          pairs(num_layers * num_slots),
          seconds(num_layers * num_slots),
          cost(kNumTerms * kNumTerms) {}
};

class CallTally {
  public:
    CallTally(int64_t num_layers, int64_t num_slots)
        : num_layers_(num_layers), num_slots_(num_slots), counts_(num_slots), sums_(num_layers, num_slots) {}

    // pair_slot: int32 [num_pairs] in host memory.
    void add(int64_t moe_layer_idx, Address pair_slot, int64_t num_pairs, int64_t num_rows, double seconds) {
        if (moe_layer_idx < 0 || moe_layer_idx >= num_layers_) throw std::invalid_argument("no such MoE layer");
        const auto* slots = reinterpret_cast<const int32_t*>(pair_slot);
        if (std::any_of(slots, slots + num_pairs, [this](int32_t slot) { return slot < 0 || slot >= num_slots_; }))
            throw std::invalid_argument("a pair points at no slot");
        std::fill(counts_.begin(), counts_.end(), 0);
        for (int64_t pair = 0; pair < num_pairs; ++pair) ++counts_[slots[pair]];
        add_counts(moe_layer_idx, seconds / static_cast<double>(std::max<int64_t>(num_pairs, 1)));
        const double distinct = static_cast<double>(num_slots_ - std::count(counts_.begin(), counts_.end(), 0));
        sums_.num_calls[moe_layer_idx] += 1.0;
        sums_.rows[moe_layer_idx] += static_cast<double>(num_rows);
        sums_.distinct[moe_layer_idx] += distinct;
        add_cost({distinct, static_cast<double>(num_pairs), 1.0, seconds});
    }

    // Writes the sums since the last call to float64 arrays of the sample's shapes, and begins again.
    // outputs: num_calls, rows, distinct, pairs, seconds, cost.
    void take(std::tuple<Address, Address, Address, Address, Address, Address> outputs) {
        const Sums taken = std::exchange(sums_, Sums(num_layers_, num_slots_));
        const auto [num_calls, rows, distinct, pairs, seconds, cost] = outputs;
        write(taken.num_calls, num_calls);
        write(taken.rows, rows);
        write(taken.distinct, distinct);
        write(taken.pairs, pairs);
        write(taken.seconds, seconds);
        write(taken.cost, cost);
    }

  private:
    void add_counts(int64_t moe_layer_idx, double seconds_each) {
        double* pairs = sums_.pairs.data() + moe_layer_idx * num_slots_;
        double* seconds = sums_.seconds.data() + moe_layer_idx * num_slots_;
        for (int64_t slot = 0; slot < num_slots_; ++slot) {
            pairs[slot] += static_cast<double>(counts_[slot]);
            seconds[slot] += static_cast<double>(counts_[slot]) * seconds_each;
        }
    }

    void add_cost(const double (&terms)[kNumTerms]) {
        for (int64_t row = 0; row < kNumTerms; ++row)
            for (int64_t column = 0; column < kNumTerms; ++column)
                sums_.cost[row * kNumTerms + column] += terms[row] * terms[column];
    }

    static void write(const std::vector<double>& values, Address target) {
        std::copy(values.begin(), values.end(), reinterpret_cast<double*>(target));
    }

    int64_t num_layers_, num_slots_;
    std::vector<int64_t> counts_;
    Sums sums_;
};

}  // namespace
}  // namespace step35

NB_MODULE(_tally, module) {
    module.doc() = "What one expert rank computed, call by call.";
    nb::class_<step35::CallTally>(module, "CallTally")
        .def(nb::init<int64_t, int64_t>())
        .def("add", &step35::CallTally::add)
        .def("take", &step35::CallTally::take);
}
