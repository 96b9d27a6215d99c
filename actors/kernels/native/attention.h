// The attention half of a layer over a paged cache, read in place.
//
// Order of one query row's sums: scores as in product.h; the softmax's total in sixteen lanes over the keys counted
// from the first one it sees; each output over the same keys, ascending, one multiply-add each. All depend on the
// row's position and the window alone, so the chunking of a prompt and the rest of the batch cannot change a bit.
#pragma once

#include "mlp.h"

namespace step35::STEP35_ISA {

// Query rows times query heads of a group that share one pass over the keys, and the scores they may hold at once.
constexpr int64_t kMaxTileQueries = 32;
constexpr int64_t kMaxTileScores = 1 << 20;

static inline uint16_t round_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return 0x7FC0;
    return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);  // to nearest, ties to even
}

static inline void convert(const float* source, int64_t count, float* target) {
    std::memcpy(target, source, count * sizeof(float));
}

static inline void convert(const float* source, int64_t count, bf16* target) {
    for (int64_t i = 0; i < count; ++i) target[i].bits = round_to_bf16(source[i]);
}

// cos and sin, [rotary_dim / 2] each, of one position. The angle is rounded to float32 first, as the reference does.
static inline void rotation(const AttentionLayer& layer, int64_t position, float* cos_out, float* sin_out) {
    const int64_t half = layer.rotary_dim / 2;
    for_each_lanes(half, [&](int64_t at, int64_t count) {
        float angles[kLanes] = {}, cosines[kLanes], sines[kLanes];
        for (int64_t i = 0; i < count; ++i)
            angles[i] = static_cast<float>(position) * layer.inverse_frequencies[at + i];
        cos_sin(angles, cosines, sines);
        std::memcpy(cos_out + at, cosines, count * sizeof(float));
        std::memcpy(sin_out + at, sines, count * sizeof(float));
    });
}

// Rotates the first 2 * half dims of one head in place: dim j with dim j + half.
static inline void rotate(float* head, int64_t half, const float* cosines, const float* sines) {
    for_each_lanes(half, [&](int64_t at, int64_t count) {
        const Lanes first = load_up_to(head + at, count), second = load_up_to(head + half + at, count);
        const Lanes c = load_up_to(cosines + at, count), s = load_up_to(sines + at, count);
        store_up_to(head + at, first * c - second * s, count);
        store_up_to(head + half + at, second * c + first * s, count);
    });
}

static inline void norm_and_rotate(const AttentionLayer& layer, const Matrix& weight, int64_t num_heads, float* heads,
                                   const float* cosines, const float* sines) {
    for (int64_t h = 0; h < num_heads; ++h) {
        float* head = heads + h * layer.head_dim;
        rms_norm(head, weight, layer.norm.eps, head);
        rotate(head, layer.rotary_dim / 2, cosines, sines);
    }
}

// One layer's keys or values of one key/value head, addressed by position.
template <typename Element>
struct PagedRows {
    const Element* base;
    const int64_t* block_ids;
    int64_t block_size;
    int64_t row_stride;

    const Element* row(int64_t position) const {
        return base + (block_ids[position / block_size] * block_size + position % block_size) * row_stride;
    }
};

// Calls body(row of `start`, start, count) for each run of positions of [first, end) that lies in one block.
template <typename Element, typename Body>
STEP35_INLINE void for_each_run(const PagedRows<Element>& rows, int64_t first, int64_t end, Body body) {
    while (first < end) {
        const int64_t block_end = (first / rows.block_size + 1) * rows.block_size;
        const int64_t run_end = block_end < end ? block_end : end;
        body(rows.row(first), first, run_end - first);
        first = run_end;
    }
}

// exp(scale * (score - largest score)) in place. Returns the total.
static inline float exponentiate(float* scores, int64_t count, float scale) {
    Lanes peaks = broadcast(scores[0]);
    for_each_lanes(count, [&](int64_t at, int64_t n) {
        if (n == kLanes) {
            peaks = at_least(load(scores + at), peaks);
        } else {
            for (int64_t i = at; i < count; ++i) peaks = at_least(broadcast(scores[i]), peaks);
        }
    });
    const Lanes peak = broadcast(largest(peaks)), scales = broadcast(scale);
    Lanes total = broadcast(0.0f);
    for_each_lanes(count, [&](int64_t at, int64_t n) {
        store_up_to(scores + at, exponential((load_up_to(scores + at, n) - peak) * scales), n);
        total = total + load_up_to(scores + at, n);  // read back, so that padding counts as zero
    });
    return sum(total);
}

// kHeads rows of weighted sums over the values of [first, end), dims [dim, dim + 16 * kChunks); the last chunk may be
// partial. weights: kHeads rows, `weight_stride` apart, first entry for position `first`.
template <int kHeads, int kChunks, typename Element>
void mix_block(const float* weights, int64_t weight_stride, const PagedRows<Element>& values, int64_t first,
               int64_t end, int64_t dim, int64_t num_dims, float* out, int64_t out_stride) {
    Lanes sums[kHeads][kChunks];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
        for (int c = 0; c < kChunks; ++c) sums[h][c] = broadcast(0.0f);
    }
    for_each_run(values, first, end, [&](const Element* row, int64_t start, int64_t count) {
        const float* weight = weights + (start - first);
        for (int64_t i = 0; i < count; ++i, row += values.row_stride, ++weight) {
            Lanes value[kChunks];
#pragma GCC unroll 4
            for (int c = 0; c < kChunks; ++c)
                value[c] = kChunks == 1 ? load_up_to(row + dim, num_dims) : load(row + dim + c * kLanes);
#pragma GCC unroll 4
            for (int h = 0; h < kHeads; ++h) {
                const Lanes share = broadcast(weight[h * weight_stride]);
#pragma GCC unroll 4
                for (int c = 0; c < kChunks; ++c) sums[h][c] = multiply_add(share, value[c], sums[h][c]);
            }
        }
    });
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
        for (int c = 0; c < kChunks; ++c)
            store_up_to(out + h * out_stride + dim + c * kLanes, sums[h][c], kChunks == 1 ? num_dims : kLanes);
    }
}

template <int kHeads, typename Element>
void mix_heads(const float* weights, int64_t weight_stride, const PagedRows<Element>& values, int64_t first,
               int64_t end, int64_t head_dim, float* out) {
    int64_t dim = 0;
    for (; dim + 4 * kLanes <= head_dim; dim += 4 * kLanes)
        mix_block<kHeads, 4>(weights, weight_stride, values, first, end, dim, kLanes, out, head_dim);
    for (; dim < head_dim; dim += kLanes) {
        const int64_t num_dims = head_dim - dim < kLanes ? head_dim - dim : kLanes;
        mix_block<kHeads, 1>(weights, weight_stride, values, first, end, dim, num_dims, out, head_dim);
    }
}

// Consecutive query rows of one sequence, and query heads that share a key/value head: at most kMaxTileQueries pairs.
struct QueryTile {
    int64_t row;  // first row in the batch
    int64_t num_rows;
    int64_t position;  // of the first row
    int64_t head;      // first query head
    int64_t num_heads;
};

static inline int64_t first_visible(const AttentionLayer& layer, int64_t position) {
    return layer.window > 0 && position >= layer.window ? position - layer.window + 1 : 0;
}

// scores: for each row and head of the tile, the products with the keys of [first, end).
template <typename Element>
void score_tile(const AttentionLayer& layer, const QueryTile& tile, const PagedRows<Element>& keys, int64_t first,
                int64_t end, const float* queries, float* scores) {
    const float* query_rows[kMaxTileQueries];
    float* score_rows[kMaxTileQueries];
    const int64_t num_queries = tile.num_rows * tile.num_heads;
    for (int64_t i = 0; i < num_queries; ++i) {
        const int64_t row = tile.row + i / tile.num_heads, head = tile.head + i % tile.num_heads;
        query_rows[i] = queries + (row * layer.num_heads + head) * layer.head_dim;
        score_rows[i] = scores + i * (end - first);
    }
    for_each_run(keys, first, end, [&](const Element* run, int64_t start, int64_t count) {
        const WeightRows<Element> rows{run, keys.row_stride, count, layer.head_dim};
        product(query_rows, num_queries, rows, score_rows, start - first);
    });
}

static inline void scale_in_place(float* values, int64_t count, float scale) {
    const Lanes scales = broadcast(scale);
    for_each_lanes(count,
                   [&](int64_t at, int64_t n) { store_up_to(values + at, load_up_to(values + at, n) * scales, n); });
}

// Softmax and mix of one row's heads. scores: num_heads rows, `stride` apart, that begin with key `first`.
template <typename Element>
void mix_row(const AttentionLayer& layer, int64_t num_heads, const PagedRows<Element>& values, int64_t first,
             int64_t end, float* scores, int64_t stride, float* out) {
    const int64_t dim = layer.head_dim;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
    float totals[kMaxTileQueries];
    for (int64_t h = 0; h < num_heads; ++h) totals[h] = exponentiate(scores + h * stride, end - first, scale);
    int64_t h = 0;
    for (; h + 4 <= num_heads; h += 4)
        mix_heads<4>(scores + h * stride, stride, values, first, end, dim, out + h * dim);
    for (; h < num_heads; ++h) mix_heads<1>(scores + h * stride, stride, values, first, end, dim, out + h * dim);
    for (h = 0; h < num_heads; ++h) scale_in_place(out + h * dim, dim, 1.0f / totals[h]);
}

// queries, attended: [T, N * D]. scores: room for every row and head of the tile times the keys they see.
template <typename Element>
void attend_tile(const AttentionLayer& layer, const QueryTile& tile, const PagedRows<Element>& keys,
                 const PagedRows<Element>& values, const float* queries, float* attended, float* scores) {
    const int64_t first = first_visible(layer, tile.position), num_keys = tile.position + tile.num_rows - first;
    score_tile(layer, tile, keys, first, first + num_keys, queries, scores);
    for (int64_t r = 0; r < tile.num_rows; ++r) {
        const int64_t position = tile.position + r, seen = first_visible(layer, position);
        float* row_scores = scores + r * tile.num_heads * num_keys + (seen - first);
        float* out = attended + ((tile.row + r) * layer.num_heads + tile.head) * layer.head_dim;
        mix_row(layer, tile.num_heads, values, seen, position + 1, row_scores, num_keys, out);
    }
}

static inline int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

// How one sequence is cut: rows and heads of a tile, and the scores it holds at most.
struct Tiling {
    int64_t rows;
    int64_t heads;
    int64_t num_scores;
};

// Few rows at a time where the keys are many.
static inline Tiling tiling_of(const AttentionLayer& layer, const SequenceRows& sequence) {
    const int64_t end = sequence.first_position + sequence.num_rows;
    const int64_t num_keys = end - first_visible(layer, sequence.first_position);
    const int64_t heads = smaller(layer.num_heads / layer.num_kv_heads, kMaxTileQueries);
    const int64_t most_rows = smaller(kMaxTileQueries / heads, kMaxTileScores / (heads * num_keys));
    const int64_t rows = smaller(most_rows < 1 ? 1 : most_rows, sequence.num_rows);
    return {rows, heads, rows * heads * num_keys};
}

template <typename Element>
void attend_sequence(const AttentionLayer& layer, const SequenceRows& sequence, const PagedCache& cache,
                     const float* queries, float* attended, float* scores) {
    const Tiling tiling = tiling_of(layer, sequence);
    const int64_t per_group = layer.num_heads / layer.num_kv_heads;
    const int64_t stride = layer.num_kv_heads * layer.head_dim;
    for (int64_t r = 0; r < sequence.num_rows; r += tiling.rows) {
        const int64_t num_rows = smaller(sequence.num_rows - r, tiling.rows);
        for (int64_t h = 0, num_heads; h < layer.num_heads; h += num_heads) {
            num_heads = smaller(tiling.heads, per_group - h % per_group);
            const QueryTile tile{sequence.first_row + r, num_rows, sequence.first_position + r, h, num_heads};
            const int64_t offset = h / per_group * layer.head_dim;
            const auto paged = [&](const void* part) {
                const Element* base = static_cast<const Element*>(part) + offset;
                return PagedRows<Element>{base, sequence.block_ids, cache.block_size, stride};
            };
            attend_tile(layer, tile, paged(cache.keys), paged(cache.values), queries, attended, scores);
        }
    }
}

template <typename Element>
void write_cache(const AttentionLayer& layer, const AttentionBatch& batch, const PagedCache& cache, int64_t num_rows,
                 const float* const* keys, const float* const* values) {
    const int64_t width = layer.num_kv_heads * layer.head_dim;
    for (int64_t r = 0; r < num_rows; ++r) {
        const int64_t at = batch.slot_mapping[r] * width;
        convert(keys[r], width, static_cast<Element*>(cache.keys) + at);
        convert(values[r], width, static_cast<Element*>(cache.values) + at);
    }
}

template <typename Element>
void write_and_attend(Scratch& scratch, const AttentionLayer& layer, const AttentionBatch& batch,
                      const PagedCache& cache, int64_t num_rows, float** const (&qkv)[3], float* attended) {
    write_cache<Element>(layer, batch, cache, num_rows, qkv[1], qkv[2]);
    int64_t most_scores = 0;
    for (int64_t s = 0; s < batch.num_sequences; ++s) {
        const int64_t num_scores = tiling_of(layer, batch.sequences[s]).num_scores;
        most_scores = num_scores > most_scores ? num_scores : most_scores;
    }
    float* scores = take<float>(scratch, most_scores);
    for (int64_t s = 0; s < batch.num_sequences; ++s)
        attend_sequence<Element>(layer, batch.sequences[s], cache, qkv[0][0], attended, scores);
}

static inline void norm_and_rotate_rows(Scratch& scratch, const AttentionLayer& layer, const AttentionBatch& batch,
                                        int64_t num_rows, float** const (&qkv)[3]) {
    float* cosines = take<float>(scratch, layer.rotary_dim);
    float* sines = take<float>(scratch, layer.rotary_dim);
    for (int64_t r = 0; r < num_rows; ++r) {
        rotation(layer, batch.positions[r], cosines, sines);
        norm_and_rotate(layer, layer.q_norm, layer.num_heads, qkv[0][r], cosines, sines);
        norm_and_rotate(layer, layer.k_norm, layer.num_kv_heads, qkv[1][r], cosines, sines);
    }
}

// Scales each head of each row by the sigmoid of its gate. head_gate: rows of [N] logits.
static inline void gate_heads(const AttentionLayer& layer, int64_t num_rows, float* const* head_gate,
                              float* const* attended) {
    for (int64_t r = 0; r < num_rows; ++r) {
        sigmoid_in_place(head_gate[r], layer.num_heads);
        for (int64_t h = 0; h < layer.num_heads; ++h) {
            scale_in_place(attended[r] + h * layer.head_dim, layer.head_dim, head_gate[r][h]);
        }
    }
}

static void attention_half(Scratch& scratch, const AttentionLayer& layer, const AttentionBatch& batch,
                           const PagedCache& cache, const float* hidden, int64_t num_rows, float* out) {
    if (num_rows == 0) return;
    const int64_t width = layer.q.cols, attended_width = layer.num_heads * layer.head_dim;
    float* normed = take<float>(scratch, num_rows * width);
    rms_norm_rows(hidden, num_rows, layer.norm, normed);
    const float* const* x = row_pointers<const float>(scratch, normed, num_rows, width);
    float** const qkv[3] = {linear_rows(scratch, x, num_rows, layer.q), linear_rows(scratch, x, num_rows, layer.k),
                            linear_rows(scratch, x, num_rows, layer.v)};
    norm_and_rotate_rows(scratch, layer, batch, num_rows, qkv);
    float* attended = take<float>(scratch, num_rows * attended_width);
    float** attended_rows = row_pointers(scratch, attended, num_rows, attended_width);
    const auto attend = cache.is_bf16 ? write_and_attend<bf16> : write_and_attend<float>;
    attend(scratch, layer, batch, cache, num_rows, qkv, attended);
    gate_heads(layer, num_rows, linear_rows(scratch, x, num_rows, layer.head_gate), attended_rows);
    linear(attended_rows, num_rows, layer.o, row_pointers(scratch, out, num_rows, width));
    add_in_place(out, hidden, num_rows * width);
}

}  // namespace step35::STEP35_ISA
