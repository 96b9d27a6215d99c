// Python's door to the kernels: owns the choice of instruction set and checks what can change from call to call.
//
// Tensors enter as addresses, because unpacking a torch tensor costs more than a small product; kernels.py checks their
// types and shapes. Every operation releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "operations.h"
#include "routing/native/tally.h"
#include "scratch.h"

namespace nb = nanobind;

namespace step35 {
namespace {

using Address = std::uintptr_t;

template <typename Element>
Element* at(Address address) {
    return reinterpret_cast<Element*>(address);
}

// What this processor can run, best first.
std::vector<const Operations*> supported() {
    std::vector<const Operations*> found;
#ifdef STEP35_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f")) found.push_back(&operations_avx512());
    if (has_avx2) found.push_back(&operations_avx2());
#endif
    found.push_back(&operations_baseline());
    return found;
}

const Operations* selected = supported().front();

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Operations* operations : supported()) names.emplace_back(operations->isa);
    return names;
}

void select_isa(const std::string& name) {
    for (const Operations* operations : supported()) {
        if (operations->isa == name) {
            selected = operations;
            return;
        }
    }
    throw std::invalid_argument("this processor does not run " + name);
}

// The calling thread's working memory, emptied when the call ends.
class Call {
  public:
    Call() = default;
    ~Call() { memory().reset(); }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;
    Scratch& scratch() { return memory(); }

  private:
    static Scratch& memory() {
        thread_local Scratch scratch;
        return scratch;
    }
};

// invalid_argument reaches Python as ValueError.
void check_range(const char* what, int64_t value, int64_t end) {
    if (value < 0 || value >= end) {
        throw std::invalid_argument(std::string(what) + " " + std::to_string(value) + " is outside 0.." +
                                    std::to_string(end - 1));
    }
}

// The rows of a step that attention must know, with their sequences. Addresses stay the caller's to keep alive.
struct Batch {
    using Rows = std::tuple<int64_t, int64_t, int64_t, Address, int64_t>;

    Batch(Address positions, Address slot_mapping, int64_t num_rows, const std::vector<Rows>& rows)
        : positions(at<const int64_t>(positions)), slot_mapping(at<const int64_t>(slot_mapping)), num_rows(num_rows) {
        for (const auto& [first_row, count, first_position, block_ids, num_block_ids] : rows) {
            if (first_row < 0 || count < 0 || first_position < 0 || first_row + count > num_rows) {
                throw std::invalid_argument("a sequence's rows lie outside the batch");
            }
            if (count > 0) {
                sequences.push_back({first_row, count, first_position, at<const int64_t>(block_ids), num_block_ids});
            }
        }
    }

    AttentionBatch view() const {
        return {positions, slot_mapping, sequences.data(), static_cast<int64_t>(sequences.size())};
    }

    const int64_t* positions;
    const int64_t* slot_mapping;
    int64_t num_rows;
    std::vector<SequenceRows> sequences;
};

void check_blocks(const SequenceRows& sequence, int64_t window, const PagedCache& cache) {
    const int64_t last = sequence.first_position + sequence.num_rows - 1;
    const bool slides = window > 0 && sequence.first_position >= window;
    const int64_t first = slides ? sequence.first_position - window + 1 : 0;
    check_range("logical block", last / cache.block_size, sequence.num_block_ids);
    for (int64_t block = first / cache.block_size; block <= last / cache.block_size; ++block) {
        check_range("block id", sequence.block_ids[block], cache.num_blocks);
    }
}

void run_attention_half(const AttentionLayer& layer, const Batch& batch, const PagedCache& cache, Address hidden,
                        Address out) {
    for (int64_t row = 0; row < batch.num_rows; ++row) {
        check_range("slot", batch.slot_mapping[row], cache.num_blocks * cache.block_size);
        check_range("position", batch.positions[row], int64_t{1} << 24);
    }
    for (const SequenceRows& sequence : batch.sequences) check_blocks(sequence, layer.window, cache);
    Call call;
    selected->attention_half(call.scratch(), layer, batch.view(), cache, at<const float>(hidden), batch.num_rows,
                             at<float>(out));
}

void run_gated_mlp(const GatedMlp& mlp, float limit, Address hidden, int64_t num_rows, Address out) {
    Call call;
    selected->gated_mlp(call.scratch(), mlp, limit, at<const float>(hidden), num_rows, at<float>(out));
}

void run_dense_half(const GatedMlp& mlp, const Norm& norm, float limit, Address hidden, int64_t num_rows, Address out) {
    Call call;
    selected->dense_half(call.scratch(), mlp, norm, limit, at<const float>(hidden), num_rows, at<float>(out));
}

template <typename Work>
double timed(const Work& work) {
    const auto began_at = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - began_at).count();
}

// tensors: hidden, pair_row, pair_slot, out. sizes: num_rows, num_pairs, num_slots. tally: of a LayerTally, or 0.
void run_expert_mlp(const GatedMlp& slots, float limit, std::tuple<Address, Address, Address, Address> tensors,
                    std::tuple<int64_t, int64_t, int64_t> sizes, Address tally) {
    const auto [hidden, pair_row, pair_slot, out] = tensors;
    const auto [num_rows, num_pairs, num_slots] = sizes;
    const ExpertPairs pairs{at<const int32_t>(pair_row), at<const int32_t>(pair_slot), num_pairs, num_slots};
    for (int64_t pair = 0; pair < num_pairs; ++pair) {
        check_range("pair_row", pairs.pair_row[pair], num_rows);
        check_range("pair_slot", pairs.pair_slot[pair], num_slots);
    }
    Call call;
    const auto compute = [&] {
        selected->expert_mlp(call.scratch(), slots, pairs, limit, at<const float>(hidden), at<float>(out));
    };
    if (!tally) return compute();
    const double seconds = timed(compute);
    if (at<LayerTally>(tally)->add(pairs.pair_slot, num_pairs, num_rows, seconds))
        at<LayerTally>(tally)->look_at(pairs.pair_slot, num_pairs, at<const float>(out), slots.down.rows);
}

void run_gate(const GateWeights& weights, Address hidden, int64_t num_rows,
              std::tuple<Address, Address, Address, Address> outputs) {
    const auto [normed, topk_ids, topk_weights, confidence] = outputs;
    const GateOutputs out{at<float>(normed), at<int64_t>(topk_ids), at<float>(topk_weights), at<float>(confidence)};
    Call call;
    selected->gate(call.scratch(), weights, at<const float>(hidden), num_rows, out);
}

void run_head(const Norm& norm, const Matrix& output, Address hidden, int64_t num_rows, Address logits) {
    Call call;
    selected->head(call.scratch(), norm, output, at<const float>(hidden), num_rows, at<float>(logits));
}

void bind_weights(nb::module_& module) {
    nb::class_<Matrix>(module, "Matrix")
        .def("__init__", [](Matrix* self, Address data, bool is_bf16, int64_t rows, int64_t cols) {
            new (self) Matrix{at<const void>(data), is_bf16, rows, cols};
        });
    nb::class_<Norm>(module, "Norm").def("__init__", [](Norm* self, const Matrix& weight, float eps) {
        new (self) Norm{weight, eps};
    });
    nb::class_<GatedMlp>(module, "GatedMlp")
        .def("__init__", [](GatedMlp* self, const Matrix& gate, const Matrix& up, const Matrix& down) {
            new (self) GatedMlp{gate, up, down};
        });
    nb::class_<GateWeights>(module, "GateWeights")
        .def("__init__", [](GateWeights* self, const Norm& norm, const Matrix& router, Address bias, int64_t top_k,
                            float routed_scale) {
            new (self) GateWeights{norm, router, at<const float>(bias), top_k, routed_scale};
        });
}

void bind_attention(nb::module_& module) {
    using Matrices = std::tuple<Matrix, Matrix, Matrix, Matrix, Matrix, Matrix, Matrix>;
    using Sizes = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;
    nb::class_<AttentionLayer>(module, "AttentionLayer")
        .def("__init__", [](AttentionLayer* self, const Norm& norm, const Matrices& matrices, const Sizes& sizes,
                            Address inverse_frequencies) {
            const auto& [q, k, v, o, head_gate, q_norm, k_norm] = matrices;
            const auto [num_heads, num_kv_heads, head_dim, rotary_dim, window] = sizes;
            new (self) AttentionLayer{norm,      q,
                                      k,         v,
                                      o,         head_gate,
                                      q_norm,    k_norm,
                                      num_heads, num_kv_heads,
                                      head_dim,  rotary_dim,
                                      window,    at<const float>(inverse_frequencies)};
        });
    nb::class_<PagedCache>(module, "PagedCache")
        .def("__init__",
             [](PagedCache* self, Address keys, Address values, bool is_bf16, int64_t num_blocks, int64_t block_size) {
                 new (self) PagedCache{at<void>(keys), at<void>(values), is_bf16, num_blocks, block_size};
             });
    nb::class_<Batch>(module, "Batch").def(nb::init<Address, Address, int64_t, const std::vector<Batch::Rows>&>());
}

}  // namespace

NB_MODULE(_native, module) {
    using Unlocked = nb::call_guard<nb::gil_scoped_release>;
    bind_weights(module);
    bind_attention(module);
    module.def("isas", &isas, "Instruction sets this processor runs, best first.");
    module.def("select_isa", &select_isa, "Use another instruction set from now on: for tests and benchmarks.");
    module.def("attention_half", &run_attention_half, Unlocked());
    module.def("gated_mlp", &run_gated_mlp, Unlocked());
    module.def("dense_half", &run_dense_half, Unlocked());
    module.def("expert_mlp", &run_expert_mlp, Unlocked());
    module.def("gate", &run_gate, Unlocked());
    module.def("head", &run_head, Unlocked());
}

}  // namespace step35
