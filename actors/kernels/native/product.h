// y = x W^T on weights as they are stored, and RMSNorm.
//
// Order of summation of one output element, on every path: lane l adds x[k] * w[k] for k = l, l+16, l+32, ... with one
// multiply-add each; then the lanes fold as l + l+8, l + l+4, l + l+2, l + l+1. It depends on the width alone. Register
// blocks, row tiles and the number of rows only choose which elements are computed side by side.
#pragma once

#include "lanes.h"
#include "operations.h"
#include "scratch.h"

namespace step35::STEP35_ISA {

// Six rows of four sums fit the 32 registers of AVX-512 with room for operands; elsewhere one row of four does.
constexpr int kMaxBlockRows = kNativeFloats == 16 ? 6 : 1;
constexpr int kSingleRowOuts = kNativeFloats == 16 ? 8 : 4;
// Rows whose inputs stay in a second-level cache while all weights pass by.
constexpr int64_t kTileBytes = 256 * 1024;
// A panel of four bfloat16 weight rows up to this width is widened once and used for all rows of a tile.
constexpr int64_t kMaxWidenedWidth = 2048;
constexpr int64_t kMinWidenedRows = 8;

template <typename Element>
Element* take(Scratch& scratch, int64_t count) {
    return static_cast<Element*>(scratch.take(static_cast<std::size_t>(count) * sizeof(Element)));
}

// num_outs rows of W, `stride` apart, of `width` values each.
template <typename Element>
struct WeightRows {
    const Element* w;
    int64_t stride;
    int64_t num_outs;
    int64_t width;
};

template <int kRows, int kOuts, typename Element, typename Load>
STEP35_INLINE void accumulate(const float* const* x, const Element* const* w, Lanes (&sums)[kRows][kOuts], Load read) {
    Lanes inputs[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) inputs[r] = read(x[r]);
#pragma GCC unroll 8
    for (int n = 0; n < kOuts; ++n) {
        const Lanes weights = read(w[n]);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sums[r][n] = multiply_add(inputs[r], weights, sums[r][n]);
    }
}

// One register block: kRows rows times up to kOuts outputs. Absent outputs repeat the last row and are not stored.
template <int kRows, int kOuts, typename Element>
void block(const float* const* rows, const WeightRows<Element>& weights, int64_t first_out, float* const* y,
           int64_t y_offset) {
    const int64_t last = weights.num_outs - 1, width = weights.width;
    const float* x[kRows];
    const Element* w[kOuts];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = rows[r];
#pragma GCC unroll 8
    for (int n = 0; n < kOuts; ++n) {
        const int64_t out = first_out + n;
        w[n] = weights.w + (out < last ? out : last) * weights.stride;
    }
    Lanes sums[kRows][kOuts];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
        for (int n = 0; n < kOuts; ++n) sums[r][n] = broadcast(0.0f);
    }
    int64_t k = 0;
    for (; k + kLanes <= width; k += kLanes) {
        // One row is bound by memory, and eight short streams are too many for the hardware to foresee.
        if constexpr (kRows == 1 && kOuts == 8) {
#pragma GCC unroll 8
            for (int n = 0; n < kOuts; ++n) __builtin_prefetch(w[n] + kOuts * weights.stride + k);
        }
        accumulate<kRows, kOuts>(x, w, sums, [k](auto* source) { return load(source + k); });
    }
    if (k < width) {
        accumulate<kRows, kOuts>(x, w, sums, [=](auto* source) { return load_partial(source + k, width - k); });
    }
    const int64_t num_stored = weights.num_outs - first_out;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
        float* target = y[r] + y_offset + first_out;
#pragma GCC unroll 8
        for (int n = 0; n < kOuts; n += 4) {
            const Quad four =
                sum_each(fold(sums[r][n]), fold(sums[r][n + 1]), fold(sums[r][n + 2]), fold(sums[r][n + 3]));
            if (n + 4 <= num_stored) {
                std::memcpy(target + n, &four, sizeof four);
            } else {
                for (int64_t i = n; i < num_stored; ++i) target[i] = four[i - n];
            }
        }
    }
}

template <int kRows, int kOuts, typename Element>
void all_outs(const float* const* x, const WeightRows<Element>& weights, float* const* y, int64_t y_offset) {
    for (int64_t n = 0; n < weights.num_outs; n += kOuts) block<kRows, kOuts>(x, weights, n, y, y_offset);
}

// Up to kMaxBlockRows rows: every weight is read once, straight through.
template <typename Element>
void product_of_few(const float* const* x, int64_t num_rows, const WeightRows<Element>& weights, float* const* y,
                    int64_t y_offset) {
    if constexpr (kMaxBlockRows == 6) {
        if (num_rows == 6) return all_outs<6, 4>(x, weights, y, y_offset);
        if (num_rows == 5) return all_outs<5, 4>(x, weights, y, y_offset);
        if (num_rows == 4) return all_outs<4, 4>(x, weights, y, y_offset);
        if (num_rows == 3) return all_outs<3, 4>(x, weights, y, y_offset);
        if (num_rows == 2) return all_outs<2, 8>(x, weights, y, y_offset);
    }
    all_outs<1, kSingleRowOuts>(x, weights, y, y_offset);
}

// Many rows on a panel of up to four outputs, which stays in the first-level cache while they pass by.
template <typename Element>
void product_of_panel(const float* const* x, int64_t num_rows, const WeightRows<Element>& panel, float* const* y,
                      int64_t y_offset) {
    for (int64_t r = 0; r < num_rows; r += kMaxBlockRows) {
        const int64_t block_rows = num_rows - r < kMaxBlockRows ? num_rows - r : kMaxBlockRows;
        product_of_few(x + r, block_rows, panel, y + r, y_offset);
    }
}

static inline void widen(const bf16* source, int64_t count, float* target) {
    for_each_lanes(count, [&](int64_t at, int64_t n) { store_up_to(target + at, load_up_to(source + at, n), n); });
}

template <typename Element>
void product_of_many(const float* const* x, int64_t num_rows, const WeightRows<Element>& weights, float* const* y,
                     int64_t y_offset) {
    const int64_t width = weights.width;
    for (int64_t n = 0; n < weights.num_outs; n += 4) {
        const int64_t num_outs = weights.num_outs - n < 4 ? weights.num_outs - n : 4;
        const WeightRows<Element> panel{weights.w + n * weights.stride, weights.stride, num_outs, width};
        if constexpr (sizeof(Element) < sizeof(float)) {
            if (width <= kMaxWidenedWidth && num_rows >= kMinWidenedRows) {
                float widened[4 * kMaxWidenedWidth];
                for (int64_t i = 0; i < num_outs; ++i) widen(panel.w + i * panel.stride, width, widened + i * width);
                product_of_panel(x, num_rows, WeightRows<float>{widened, width, num_outs, width}, y, y_offset + n);
                continue;
            }
        }
        product_of_panel(x, num_rows, panel, y, y_offset + n);
    }
}

// x: num_rows pointers to rows of weights.width. y: as many pointers to rows that hold y_offset + num_outs values.
template <typename Element>
void product(const float* const* x, int64_t num_rows, const WeightRows<Element>& weights, float* const* y,
             int64_t y_offset) {
    const int64_t fitting = kTileBytes / (weights.width * 4 + 1) / kMaxBlockRows * kMaxBlockRows;
    const int64_t tile = fitting < kMaxBlockRows ? kMaxBlockRows : fitting;
    for (int64_t r = 0; r < num_rows; r += tile) {
        const int64_t tile_rows = num_rows - r < tile ? num_rows - r : tile;
        const auto form = tile_rows <= kMaxBlockRows ? product_of_few<Element> : product_of_many<Element>;
        form(x + r, tile_rows, weights, y + r, y_offset);
    }
}

// Calls body with the matrix as a typed pointer.
template <typename Body>
STEP35_INLINE void with_elements(const Matrix& matrix, Body body) {
    if (matrix.is_bf16) {
        body(static_cast<const bf16*>(matrix.data));
    } else {
        body(static_cast<const float*>(matrix.data));
    }
}

static inline void linear(const float* const* x, int64_t num_rows, const Matrix& weight, float* const* y) {
    with_elements(weight, [&](auto* w) {
        using Element = std::remove_const_t<std::remove_pointer_t<decltype(w)>>;
        product(x, num_rows, WeightRows<Element>{w, weight.cols, weight.rows, weight.cols}, y, 0);
    });
}

// The start of each of num_rows rows of `width` values.
template <typename Element>
Element** row_pointers(Scratch& scratch, Element* first, int64_t num_rows, int64_t width) {
    Element** rows = take<Element*>(scratch, num_rows);
    for (int64_t r = 0; r < num_rows; ++r) rows[r] = first + r * width;
    return rows;
}

// [num_rows, weight.rows] of scratch as row pointers, filled with x W^T.
static inline float** linear_rows(Scratch& scratch, const float* const* x, int64_t num_rows, const Matrix& weight) {
    float** y = row_pointers(scratch, take<float>(scratch, num_rows * weight.rows), num_rows, weight.rows);
    linear(x, num_rows, weight, y);
    return y;
}

// One row of RMSNorm with a weight stored as gamma - 1. `out` may be `x`.
static inline void rms_norm(const float* x, const Matrix& weight, float eps, float* out) {
    const int64_t width = weight.cols;
    Lanes squares = broadcast(0.0f);
    for_each_lanes(width, [&](int64_t at, int64_t count) {
        const Lanes value = load_up_to(x + at, count);
        squares = multiply_add(value, value, squares);
    });
    const float mean = sum(squares) / static_cast<float>(width);
    const Lanes scale = broadcast(1.0f / __builtin_sqrtf(mean + eps));
    with_elements(weight, [&](auto* gamma_less_one) {
        for_each_lanes(width, [&](int64_t at, int64_t count) {
            const Lanes gamma = broadcast(1.0f) + load_up_to(gamma_less_one + at, count);
            store_up_to(out + at, load_up_to(x + at, count) * scale * gamma, count);
        });
    });
}

static inline void rms_norm_rows(const float* x, int64_t num_rows, const Norm& norm, float* out) {
    const int64_t width = norm.weight.cols;
    for (int64_t r = 0; r < num_rows; ++r) rms_norm(x + r * width, norm.weight, norm.eps, out + r * width);
}

static inline void add_in_place(float* target, const float* addend, int64_t count) {
    for_each_lanes(count, [&](int64_t at, int64_t n) {
        store_up_to(target + at, load_up_to(addend + at, n) + load_up_to(target + at, n), n);
    });
}

}  // namespace step35::STEP35_ISA
