// CallTally for the CPU: the same sums as routing/load/tally.py, whose names it follows, added up call by call.
#include "tally.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <deque>
#include <tuple>

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

class CallTally {
  public:
    CallTally(int64_t num_layers, int64_t num_slots, int64_t outputs_every) : num_slots_(num_slots) {
        for (int64_t layer = 0; layer < num_layers; ++layer) layers_.emplace_back(num_slots, outputs_every);
    }

    CallTally(const CallTally&) = delete;
    CallTally& operator=(const CallTally&) = delete;

    LayerTally& layer(int64_t moe_layer_idx) { return layers_.at(moe_layer_idx); }

    // Writes the sums since the last call over float64 arrays in the layout of an ExpertSample, and begins again.
    // per_layer: num_calls, rows, distinct, [layers]. per_slot: pairs, seconds, norm_sums, norm_counts, [layers,
    // slots]. cost: [kNumTerms, kNumTerms], over all layers; added to.
    void take(std::tuple<Address, Address, Address> per_layer, std::tuple<Address, Address, Address, Address> per_slot,
              Address cost) {
        const auto [num_calls, rows, distinct] = per_layer;
        const auto [pairs, seconds, norm_sums, norm_counts] = per_slot;
        for (size_t layer = 0; layer < layers_.size(); ++layer) {
            const LayerTally::Sums taken = layers_[layer].take();
            at(num_calls)[layer] = taken.num_calls;
            at(rows)[layer] = taken.rows;
            at(distinct)[layer] = taken.distinct;
            write(taken.pairs, pairs, layer);
            write(taken.seconds, seconds, layer);
            write(taken.norm_sums, norm_sums, layer);
            write(taken.norm_counts, norm_counts, layer);
            for (int64_t i = 0; i < LayerTally::kNumTerms * LayerTally::kNumTerms; ++i) at(cost)[i] += taken.cost[i];
        }
    }

  private:
    static double* at(Address address) { return reinterpret_cast<double*>(address); }

    void write(const std::vector<double>& values, Address target, int64_t layer) const {
        std::copy(values.begin(), values.end(), at(target) + layer * num_slots_);
    }

    int64_t num_slots_;
    std::deque<LayerTally> layers_;  // which never move: kernels hold their addresses
};

bool add(LayerTally& layer, Address pair_slot, int64_t num_pairs, int64_t num_rows, double seconds) {
    return layer.add(reinterpret_cast<const int32_t*>(pair_slot), num_pairs, num_rows, seconds);
}

void look_at(LayerTally& layer, Address pair_slot, int64_t num_pairs, Address outputs, int64_t width) {
    const auto* slots = reinterpret_cast<const int32_t*>(pair_slot);
    layer.look_at(slots, num_pairs, reinterpret_cast<const float*>(outputs), width);
}

}  // namespace
}  // namespace step35

NB_MODULE(_tally, module) {
    using step35::CallTally, step35::LayerTally;
    module.doc() = "What one expert rank computed, call by call.";
    nb::class_<LayerTally>(module, "LayerTally")
        .def("add", &step35::add)
        .def("look_at", &step35::look_at)
        .def_prop_ro("address", [](LayerTally& layer) { return reinterpret_cast<step35::Address>(&layer); });
    nb::class_<CallTally>(module, "CallTally")
        .def(nb::init<int64_t, int64_t, int64_t>())
        .def("layer", &CallTally::layer, nb::rv_policy::reference_internal)
        .def("take", &CallTally::take);
}
