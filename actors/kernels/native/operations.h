// What callers hand to the operations, and the table of operations of one instruction set.
//
// Plain views: nothing here owns memory or checks a shape. Python checks shapes once per set of weights, module.cpp
// checks what changes per call. Row-major everywhere; activations are float32.
#pragma once

#include <cstddef>
#include <cstdint>

namespace step35 {

class Scratch;

// [rows, cols] of float32 or bfloat16, read in place. A vector is one row.
struct Matrix {
    const void* data;
    bool is_bf16;
    int64_t rows;
    int64_t cols;
};

// gate, up: [I, H]. down: [H, I].
struct GatedMlp {
    Matrix gate;
    Matrix up;
    Matrix down;
};

// norm: [H]. eps: added to the mean square.
struct Norm {
    Matrix weight;
    float eps;
};

struct GateWeights {
    Norm norm;
    Matrix router;      // [E, H]
    const float* bias;  // [E], takes part in the choice only
    int64_t top_k;
    float routed_scale;
};

// normed: [T, H]. topk_ids, topk_weights: [T, K]. confidence: [4, T], mass, entropy, margin and runner-up.
struct GateOutputs {
    float* normed;
    int64_t* topk_ids;
    float* topk_weights;
    float* confidence;
};

// q: [N*D, H]. k, v: [G*D, H]. o: [H, N*D]. head_gate: [N, H]. q_norm, k_norm: [D].
struct AttentionLayer {
    Norm norm;
    Matrix q, k, v, o, head_gate, q_norm, k_norm;
    int64_t num_heads;
    int64_t num_kv_heads;
    int64_t head_dim;
    int64_t rotary_dim;
    int64_t window;                    // keys a query sees, itself included; 0 means all
    const float* inverse_frequencies;  // [rotary_dim / 2]
};

// keys, values: [num_blocks, block_size, G, D] of float32 or bfloat16.
struct PagedCache {
    void* keys;
    void* values;
    bool is_bf16;
    int64_t num_blocks;
    int64_t block_size;
};

// block_ids: block of each logical block from position 0; only those a query sees are read.
struct SequenceRows {
    int64_t first_row;
    int64_t num_rows;
    int64_t first_position;
    const int64_t* block_ids;
    int64_t num_block_ids;
};

struct AttentionBatch {
    const int64_t* positions;     // [T]
    const int64_t* slot_mapping;  // [T]
    const SequenceRows* sequences;
    int64_t num_sequences;
};

// pair_row, pair_slot: [num_pairs]. The matrices of an expert MLP are those of slot 0; num_slots follow one another.
struct ExpertPairs {
    const int32_t* pair_row;
    const int32_t* pair_slot;
    int64_t num_pairs;
    int64_t num_slots;
};

// Every function is single-threaded and stateless; `hidden` and `out` are [num_rows, H] unless said.
struct Operations {
    const char* isa;
    void (*gated_mlp)(Scratch&, const GatedMlp&, float limit, const float* hidden, int64_t num_rows, float* out);
    void (*dense_half)(Scratch&, const GatedMlp&, const Norm&, float limit, const float* hidden, int64_t num_rows,
                       float* out);
    void (*expert_mlp)(Scratch&, const GatedMlp&, const ExpertPairs&, float limit, const float* hidden, float* out);
    void (*gate)(Scratch&, const GateWeights&, const float* hidden, int64_t num_rows, const GateOutputs&);
    void (*head)(Scratch&, const Norm&, const Matrix& output, const float* hidden, int64_t num_rows, float* logits);
    void (*attention_half)(Scratch&, const AttentionLayer&, const AttentionBatch&, const PagedCache&,
                           const float* hidden, int64_t num_rows, float* out);
};

const Operations& operations_baseline();
#ifdef STEP35_X86
const Operations& operations_avx2();
const Operations& operations_avx512();
#endif

}  // namespace step35
