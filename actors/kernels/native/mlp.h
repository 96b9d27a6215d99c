// Gated MLPs, the grouped expert MLP, and the head.
#pragma once

#include "numerics.h"
#include "product.h"

namespace step35::STEP35_ISA {

// Rows of an MLP computed together: bounds its working memory whatever the length of a prompt.
constexpr int64_t kMlpTileRows = 128;

static inline void activate_row(float* gate, const float* up, int64_t width, float limit) {
    for_each_lanes(width, [&](int64_t at, int64_t count) {
        store_up_to(gate + at, activate(load_up_to(gate + at, count), load_up_to(up + at, count), limit), count);
    });
}

// Working rows of one MLP tile, taken once per call.
struct MlpTile {
    float** gate;
    float** up;
};

static inline MlpTile mlp_tile(Scratch& scratch, int64_t num_rows, int64_t width) {
    const int64_t rows = num_rows < kMlpTileRows ? num_rows : kMlpTileRows;
    float* gate = take<float>(scratch, rows * width);
    float* up = take<float>(scratch, rows * width);
    return {row_pointers(scratch, gate, rows, width), row_pointers(scratch, up, rows, width)};
}

static inline void mlp_rows(const MlpTile& tile, const GatedMlp& mlp, float limit, const float* const* x,
                            int64_t num_rows, float* const* y) {
    for (int64_t first = 0; first < num_rows; first += kMlpTileRows) {
        const int64_t rows = num_rows - first < kMlpTileRows ? num_rows - first : kMlpTileRows;
        linear(x + first, rows, mlp.gate, tile.gate);
        linear(x + first, rows, mlp.up, tile.up);
        for (int64_t r = 0; r < rows; ++r) activate_row(tile.gate[r], tile.up[r], mlp.gate.rows, limit);
        linear(tile.gate, rows, mlp.down, y + first);
    }
}

static void gated_mlp(Scratch& scratch, const GatedMlp& mlp, float limit, const float* hidden, int64_t num_rows,
                      float* out) {
    const float* const* x = row_pointers(scratch, hidden, num_rows, mlp.gate.cols);
    float** y = row_pointers(scratch, out, num_rows, mlp.down.rows);
    mlp_rows(mlp_tile(scratch, num_rows, mlp.gate.rows), mlp, limit, x, num_rows, y);
}

static void dense_half(Scratch& scratch, const GatedMlp& mlp, const Norm& norm, float limit, const float* hidden,
                       int64_t num_rows, float* out) {
    const int64_t size = num_rows * mlp.gate.cols;
    float* normed = take<float>(scratch, size);
    rms_norm_rows(hidden, num_rows, norm, normed);
    gated_mlp(scratch, mlp, limit, normed, num_rows, out);
    add_in_place(out, hidden, size);
}

static inline Matrix nth(const Matrix& first, int64_t n) {
    const int64_t bytes = n * first.rows * first.cols * (first.is_bf16 ? 2 : 4);
    return {static_cast<const char*>(first.data) + bytes, first.is_bf16, first.rows, first.cols};
}

// order: pairs sorted by slot, equal slots in the order given. ends: [num_slots], where each slot's pairs end.
static inline void group_by_slot(const ExpertPairs& pairs, int32_t* order, int64_t* ends) {
    for (int64_t s = 0; s < pairs.num_slots; ++s) ends[s] = 0;
    for (int64_t p = 0; p < pairs.num_pairs; ++p) ++ends[pairs.pair_slot[p]];
    int64_t start = 0;
    for (int64_t s = 0; s < pairs.num_slots; ++s) {
        const int64_t count = ends[s];
        ends[s] = start;
        start += count;
    }
    for (int64_t p = 0; p < pairs.num_pairs; ++p) order[ends[pairs.pair_slot[p]]++] = static_cast<int32_t>(p);
}

static void expert_mlp(Scratch& scratch, const GatedMlp& slots, const ExpertPairs& pairs, float limit,
                       const float* hidden, float* out) {
    const int64_t width = slots.gate.cols;
    int32_t* order = take<int32_t>(scratch, pairs.num_pairs);
    int64_t* ends = take<int64_t>(scratch, pairs.num_slots);
    group_by_slot(pairs, order, ends);
    const float** x = take<const float*>(scratch, pairs.num_pairs);
    float** y = take<float*>(scratch, pairs.num_pairs);
    for (int64_t i = 0; i < pairs.num_pairs; ++i) {
        x[i] = hidden + pairs.pair_row[order[i]] * width;
        y[i] = out + order[i] * width;
    }
    const MlpTile tile = mlp_tile(scratch, pairs.num_pairs, slots.gate.rows);
    for (int64_t s = 0, first = 0; s < pairs.num_slots; first = ends[s++]) {
        if (ends[s] == first) continue;
        const GatedMlp expert{nth(slots.gate, s), nth(slots.up, s), nth(slots.down, s)};
        mlp_rows(tile, expert, limit, x + first, ends[s] - first, y + first);
    }
}

static void head(Scratch& scratch, const Norm& norm, const Matrix& output, const float* hidden, int64_t num_rows,
                 float* logits) {
    float* normed = take<float>(scratch, num_rows * output.cols);
    rms_norm_rows(hidden, num_rows, norm, normed);
    const float* const* x = row_pointers<const float>(scratch, normed, num_rows, output.cols);
    linear(x, num_rows, output, row_pointers(scratch, logits, num_rows, output.rows));
}

}  // namespace step35::STEP35_ISA
