// GateSums for the CPU: the same sums as routing/load/gate_sums.py, whose names it follows, in one pass over the
// tokens. The caller holds the interpreter's lock throughout.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <vector>

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

constexpr int64_t kNumMeasures = 3;  // mass, entropy, margin; the runner-up follows them in a gate's table
constexpr float kContestedShare = 0.5f;

template <typename Element>
const Element* read_at(Address address) {
    return reinterpret_cast<const Element*>(address);
}

float finite(float value) {
    if (std::isnan(value)) return 0.0f;
    return std::clamp(value, -FLT_MAX, FLT_MAX);
}

// One layer of a group: R tokens with K experts each.
struct Layer {
    const int64_t* ids;      // [R, K], the contested one last
    const float* weights;    // [R, K]
    const float* measures;   // [3, R] with `stride` floats from one to the next
    const float* runner_up;  // [R]
    int64_t stride;
};

class GateSums {
  public:
    // edges: float32 [3, num_edges], ascending for each measure.
    GateSums(int64_t num_layers, int64_t num_experts, Address edges, int64_t num_edges)
        : num_layers_(num_layers),
          num_experts_(num_experts),
          num_buckets_(num_edges + 1),
          edges_(read_at<float>(edges), read_at<float>(edges) + kNumMeasures * num_edges),
          tokens_(num_layers * num_experts),
          gate_mass_(num_layers * num_experts),
          shift_(num_layers * num_experts),
          distinct_(num_layers),
          buckets_(kNumMeasures * num_layers * num_buckets_),
          measure_sums_(kNumMeasures * num_layers),
          touched_(num_experts) {}

    // inputs: ids int64 [L, R, K], weights float32 [L, R, K], table float32 [4, L, R], tokens of each step int64 [S],
    // margin unit float32 [L] or 0 for the group's own means. sizes: R, K, S. mean_margins: float32 [L], written.
    void add(std::tuple<Address, Address, Address, Address, Address> inputs,
             std::tuple<int64_t, int64_t, int64_t> sizes, Address mean_margins) {
        const auto [ids, weights, table, step_tokens, margin_unit] = inputs;
        const auto [num_tokens, top_k, num_steps] = sizes;
        const int64_t num_ids = num_layers_ * num_tokens * top_k;
        if (std::any_of(read_at<int64_t>(ids), read_at<int64_t>(ids) + num_ids,
                        [this](int64_t id) { return id < 0 || id >= num_experts_; }))
            throw std::invalid_argument("a gate has chosen an expert that is not there");
        const float* const runners_up = read_at<float>(table) + kNumMeasures * num_layers_ * num_tokens;
        if (std::any_of(runners_up, runners_up + num_layers_ * num_tokens,
                        [this](float id) { return finite(id) >= static_cast<float>(num_experts_); }))
            throw std::invalid_argument("a runner-up is not there");
        for (int64_t layer = 0; layer < num_layers_; ++layer) {
            const int64_t first = layer * num_tokens, stride = num_layers_ * num_tokens;
            const float* column = read_at<float>(table) + first;
            const Layer part{read_at<int64_t>(ids) + first * top_k, read_at<float>(weights) + first * top_k, column,
                             column + kNumMeasures * stride, stride};
            float& mean = reinterpret_cast<float*>(mean_margins)[layer];
            mean = mean_margin(part, num_tokens);
            const float unit = margin_unit ? read_at<float>(margin_unit)[layer] : mean;
            count_experts(layer, part, num_tokens, top_k, std::max(unit, FLT_MIN));
            count_distinct(layer, part.ids, top_k, read_at<int64_t>(step_tokens), num_steps);
            count_measures(layer, part, num_tokens);
        }
    }

    // outputs: float64 tokens, gate_mass, shift [L, E], distinct [L], histograms [3, L, B], measure_sums [3, L].
    void write(std::tuple<Address, Address, Address, Address, Address, Address> outputs) const {
        const auto [tokens, gate_mass, shift, distinct, histograms, measure_sums] = outputs;
        copy(tokens_, tokens);
        copy(gate_mass_, gate_mass);
        copy(shift_, shift);
        copy(distinct_, distinct);
        copy(buckets_, histograms);
        copy(measure_sums_, measure_sums);
    }

  private:
    static float mean_margin(const Layer& part, int64_t num_tokens) {
        double sum = 0.0;
        for (int64_t token = 0; token < num_tokens; ++token) sum += finite(part.measures[2 * part.stride + token]);
        return static_cast<float>(sum / static_cast<double>(num_tokens));
    }

    void count_experts(int64_t layer, const Layer& part, int64_t num_tokens, int64_t top_k, float margin_unit) {
        double* const tokens = tokens_.data() + layer * num_experts_;
        double* const mass = gate_mass_.data() + layer * num_experts_;
        double* const shift = shift_.data() + layer * num_experts_;
        for (int64_t token = 0; token < num_tokens; ++token) {
            const int64_t* ids = part.ids + token * top_k;
            const float* weights = part.weights + token * top_k;
            float total = 0.0f;
            for (int64_t k = 0; k < top_k; ++k) total += weights[k];
            for (int64_t k = 0; k < top_k; ++k) {
                const float share = weights[k] / total;
                tokens[ids[k]] += 1.0;
                mass[ids[k]] += std::isfinite(share) ? share : 0.0f;  // of a broken token nothing can be said
            }
            const float runner_up = finite(part.runner_up[token]);
            if (runner_up < 0.0f) continue;
            const double share =
                kContestedShare * std::exp(-finite(part.measures[2 * part.stride + token]) / margin_unit);
            shift[ids[top_k - 1]] -= share;
            shift[static_cast<int64_t>(runner_up)] += share;
        }
    }

    void count_distinct(int64_t layer, const int64_t* ids, int64_t top_k, const int64_t* step_tokens,
                        int64_t num_steps) {
        for (int64_t step = 0; step < num_steps; ++step) {
            std::fill(touched_.begin(), touched_.end(), uint8_t{0});
            const int64_t* const end = ids + step_tokens[step] * top_k;
            for (; ids < end; ++ids) touched_[*ids] = 1;
            distinct_[layer] += static_cast<double>(std::count(touched_.begin(), touched_.end(), 1));
        }
    }

    void count_measures(int64_t layer, const Layer& part, int64_t num_tokens) {
        for (int64_t measure = 0; measure < kNumMeasures; ++measure) {
            const float* const edges = edges_.data() + measure * (num_buckets_ - 1);
            double* const buckets = buckets_.data() + (measure * num_layers_ + layer) * num_buckets_;
            double& sum = measure_sums_[measure * num_layers_ + layer];
            for (int64_t token = 0; token < num_tokens; ++token) {
                const float value = finite(part.measures[measure * part.stride + token]);
                buckets[std::upper_bound(edges, edges + num_buckets_ - 1, value) - edges] += 1.0;
                sum += value;
            }
        }
    }

    static void copy(const std::vector<double>& values, Address target) {
        std::copy(values.begin(), values.end(), reinterpret_cast<double*>(target));
    }

    int64_t num_layers_, num_experts_, num_buckets_;
    std::vector<float> edges_;
    std::vector<double> tokens_, gate_mass_, shift_, distinct_, buckets_, measure_sums_;
    std::vector<uint8_t> touched_;
};

}  // namespace
}  // namespace step35

NB_MODULE(_gate_sums, module) {
    module.doc() = "What the gates of some steps chose, added up.";
    nb::class_<step35::GateSums>(module, "GateSums")
        .def(nb::init<int64_t, int64_t, step35::Address, int64_t>())
        .def("add", &step35::GateSums::add)
        .def("write", &step35::GateSums::write);
}
