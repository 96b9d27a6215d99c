// Sixteen floats that move together, whatever the width of the machine's registers.
//
// Every sum in these kernels runs in sixteen lanes and then through one fixed tree, on every instruction set. So a
// value's bits depend on its operands alone, and AVX2 and AVX-512 machines agree bit for bit (both fuse
// multiply-add; the baseline does not). Partial vectors are padded, never handled by a second formula.
//
// This header and those that include it are compiled once per instruction set, inside that set's namespace: they must
// not emit inline functions of other headers, or the linker could pick the wrong set's copy.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace step35::STEP35_ISA {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kNativeFloats = 16;
#elif defined(__AVX2__)
constexpr int kNativeFloats = 8;
#else
constexpr int kNativeFloats = 4;
#endif
constexpr int kParts = kLanes / kNativeFloats;

typedef float Native __attribute__((vector_size(kNativeFloats * 4)));
typedef int32_t NativeInt __attribute__((vector_size(kNativeFloats * 4)));
typedef uint32_t NativeBits __attribute__((vector_size(kNativeFloats * 4)));
typedef uint16_t NativeHalf __attribute__((vector_size(kNativeFloats * 2)));
typedef float Quad __attribute__((vector_size(16)));

struct bf16 {
    uint16_t bits;
};

struct Lanes {
    Native part[kParts];
};

#define STEP35_INLINE static inline __attribute__((always_inline))

STEP35_INLINE Lanes broadcast(float value) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.part[i] = value - Native{};
    return result;
}

STEP35_INLINE Lanes load(const float* source) {
    Lanes result;
    std::memcpy(&result, source, sizeof result);
    return result;
}

// A bfloat16 is the upper half of a float32.
STEP35_INLINE Lanes load(const bf16* source) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) {
        NativeHalf half;
        std::memcpy(&half, source + i * kNativeFloats, sizeof half);
        result.part[i] = (Native)(__builtin_convertvector(half, NativeBits) << 16);
    }
    return result;
}

// The first `count` < 16 values, then zeros.
template <typename Element>
STEP35_INLINE Lanes load_partial(const Element* source, int64_t count) {
    Element padded[kLanes] = {};
    std::memcpy(padded, source, count * sizeof(Element));
    return load(padded);
}

STEP35_INLINE void store(float* target, const Lanes& lanes) {
    std::memcpy(target, &lanes, sizeof lanes);
}

STEP35_INLINE void store_partial(float* target, const Lanes& lanes, int64_t count) {
    std::memcpy(target, &lanes, count * sizeof(float));
}

// Explicit, because the compiler is told never to contract on its own.
STEP35_INLINE Native multiply_add(Native a, Native b, Native c) {
#if defined(__AVX512F__)
    return (Native)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Native)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

STEP35_INLINE Lanes multiply_add(const Lanes& a, const Lanes& b, const Lanes& c) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.part[i] = multiply_add(a.part[i], b.part[i], c.part[i]);
    return result;
}

#define STEP35_LANEWISE(op)                                                       \
    STEP35_INLINE Lanes operator op(const Lanes& a, const Lanes& b) {             \
        Lanes result;                                                             \
        for (int i = 0; i < kParts; ++i) result.part[i] = a.part[i] op b.part[i]; \
        return result;                                                            \
    }
STEP35_LANEWISE(+)
STEP35_LANEWISE(-)
STEP35_LANEWISE(*)
STEP35_LANEWISE(/)
#undef STEP35_LANEWISE

// Both keep a NaN in `value`, as torch's clamp does.
STEP35_INLINE Lanes at_most(const Lanes& value, const Lanes& bound) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.part[i] = value.part[i] > bound.part[i] ? bound.part[i] : value.part[i];
    return result;
}

STEP35_INLINE Lanes at_least(const Lanes& value, const Lanes& bound) {
    Lanes result;
    for (int i = 0; i < kParts; ++i) result.part[i] = value.part[i] < bound.part[i] ? bound.part[i] : value.part[i];
    return result;
}

// The upper half of the one tree: lane l + lane l+8, then l + l+4.
STEP35_INLINE Quad fold(const Lanes& lanes) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)lanes.part[0];
    const __m256 low = _mm512_castps512_ps256(all);
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
    const __m256 eight = _mm256_add_ps(low, high);
    return (Quad)_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#elif defined(__AVX2__)
    const __m256 eight = (__m256)(lanes.part[0] + lanes.part[1]);
    return (Quad)_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
    return (lanes.part[0] + lanes.part[2]) + (lanes.part[1] + lanes.part[3]);
#endif
}

// The lower half of the tree, for four sums at once: lane l + l+2, then l + l+1.
STEP35_INLINE Quad sum_each(const Quad& a, const Quad& b, const Quad& c, const Quad& d) {
    const Quad ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
    const Quad cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
    return __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
}

STEP35_INLINE float sum(const Lanes& lanes) {
    const Quad four = fold(lanes);
    return sum_each(four, four, four, four)[0];
}

STEP35_INLINE float largest(const Lanes& lanes) {
    float values[kLanes];
    store(values, lanes);
    float result = values[0];
    for (float value : values) result = value > result ? value : result;
    return result;
}

// Whether a lane holds more than `bound`; a NaN does not.
STEP35_INLINE bool any_above(const Lanes& lanes, float bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)lanes.part[0], _mm512_set1_ps(bound), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    const __m256 bounds = _mm256_set1_ps(bound);
    const __m256 low = _mm256_cmp_ps((__m256)lanes.part[0], bounds, _CMP_GT_OQ);
    return _mm256_movemask_ps(_mm256_or_ps(low, _mm256_cmp_ps((__m256)lanes.part[1], bounds, _CMP_GT_OQ))) != 0;
#else
    NativeInt above = lanes.part[0] > bound;
    for (int i = 1; i < kParts; ++i) above |= lanes.part[i] > bound;
    return (above[0] | above[1] | above[2] | above[3]) != 0;
#endif
}

// Calls body(start, count) over [0, length): count is 16 but for the last, which may be less.
template <typename Body>
STEP35_INLINE void for_each_lanes(int64_t length, Body body) {
    int64_t start = 0;
    for (; start + kLanes <= length; start += kLanes) body(start, kLanes);
    if (start < length) body(start, length - start);
}

template <typename Element>
STEP35_INLINE Lanes load_up_to(const Element* source, int64_t count) {
    return count == kLanes ? load(source) : load_partial(source, count);
}

STEP35_INLINE void store_up_to(float* target, const Lanes& lanes, int64_t count) {
    count == kLanes ? store(target, lanes) : store_partial(target, lanes, count);
}

}  // namespace step35::STEP35_ISA
