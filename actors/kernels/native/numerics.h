// exp, log, silu, sigmoid and rotation angles in sixteen lanes, the same formula in every lane.
#pragma once

#include "lanes.h"

namespace step35::STEP35_ISA {

// Within 2 ulp (Cephes expf). Arguments are clamped to the range of normal results; NaN stays NaN.
STEP35_INLINE Lanes exponential(const Lanes& argument) {
    const Lanes x = at_least(at_most(argument, broadcast(88.37f)), broadcast(-87.33f));
    const Lanes magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
    const Lanes shifted = multiply_add(x, broadcast(1.44269504f), magic);
    const Lanes n = shifted - magic;
    Lanes r = multiply_add(n, broadcast(-0.693359375f), x);  // few bits: exact even without a fused multiply-add
    r = multiply_add(n, broadcast(2.12194440e-4f), r);
    Lanes p = multiply_add(broadcast(1.9875691500e-4f), r, broadcast(1.3981999507e-3f));
    p = multiply_add(p, r, broadcast(8.3334519073e-3f));
    p = multiply_add(p, r, broadcast(4.1665795894e-2f));
    p = multiply_add(p, r, broadcast(1.6666665459e-1f));
    p = multiply_add(p, r, broadcast(5.0000001201e-1f));
    p = multiply_add(p, r * r, r + broadcast(1.0f));
    Lanes power;
    for (int i = 0; i < kParts; ++i) power.part[i] = (Native)(((NativeBits)shifted.part[i] + 127u) << 23);
    return p * power;
}

// Within 2 ulp (Cephes logf). Zero and what is below the smallest normal number count as that number; a NaN gives any
// number.
STEP35_INLINE Lanes logarithm(const Lanes& argument) {
    const Lanes x = at_least(argument, broadcast(1.17549435e-38f));
    Lanes mantissa, exponent;
    for (int i = 0; i < kParts; ++i) {
        const NativeInt bits = (NativeInt)x.part[i];
        const NativeInt beyond =
            bits - 0x3f3504f3;  // how far beyond sqrt(1/2): the mantissa lies in [sqrt(1/2), sqrt(2))
        mantissa.part[i] = (Native)(bits - (beyond & (int32_t)0xff800000));
        exponent.part[i] = __builtin_convertvector(beyond >> 23, Native);
    }
    const Lanes r = mantissa - broadcast(1.0f), z = r * r;
    Lanes p = multiply_add(broadcast(7.0376836292e-2f), r, broadcast(-1.1514610310e-1f));
    p = multiply_add(p, r, broadcast(1.1676998740e-1f));
    p = multiply_add(p, r, broadcast(-1.2420140846e-1f));
    p = multiply_add(p, r, broadcast(1.4249322787e-1f));
    p = multiply_add(p, r, broadcast(-1.6668057665e-1f));
    p = multiply_add(p, r, broadcast(2.0000714765e-1f));
    p = multiply_add(p, r, broadcast(-2.4999993993e-1f));
    p = multiply_add(p, r, broadcast(3.3333331174e-1f));
    p = multiply_add(exponent, broadcast(-2.12194440e-4f), p * r * z);
    p = multiply_add(broadcast(-0.5f), z, p);
    return multiply_add(exponent, broadcast(0.693359375f), r + p);
}

STEP35_INLINE Lanes one_plus_exp_of_minus(const Lanes& x) {
    return broadcast(1.0f) + exponential(broadcast(0.0f) - x);
}

STEP35_INLINE Lanes sigmoid(const Lanes& x) {
    return broadcast(1.0f) / one_plus_exp_of_minus(x);
}

static inline void sigmoid_in_place(float* values, int64_t count) {
    for_each_lanes(count,
                   [&](int64_t at, int64_t n) { store_up_to(values + at, sigmoid(load_up_to(values + at, n)), n); });
}

STEP35_INLINE Lanes silu(const Lanes& x) {
    return x / one_plus_exp_of_minus(x);
}

// silu(gate) * up; with a limit, min(silu(gate), limit) * clamp(up, -limit, limit): the clamp comes after silu.
STEP35_INLINE Lanes activate(const Lanes& gate, const Lanes& up, float limit) {
    if (limit <= 0.0f) return silu(gate) * up;
    const Lanes bound = broadcast(limit);
    return at_most(silu(gate), bound) * at_least(at_most(up, bound), broadcast(-limit));
}

// cos and sin of sixteen non-negative angles (Cephes sinf and cosf on [-pi/4, pi/4]). The reduction runs in float64:
// an angle of position 262143 has lost too many bits for a float32 one without fused multiply-add.
static inline void cos_sin(const float* angles, float* cos_out, float* sin_out) {
    float reduced[kLanes];
    int32_t quadrant[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        const double angle = angles[i];
        quadrant[i] = static_cast<int32_t>(angle * 0.63661977236758134308 + 0.5);
        reduced[i] = static_cast<float>(angle - quadrant[i] * 1.57079632679489661923);
    }
    const Lanes x = load(reduced), z = x * x;
    Lanes s = multiply_add(broadcast(-1.9515295891e-4f), z, broadcast(8.3321608736e-3f));
    s = multiply_add(s, z, broadcast(-1.6666654611e-1f));
    s = multiply_add(s * z, x, x);
    Lanes c = multiply_add(broadcast(2.443315711809948e-5f), z, broadcast(-1.388731625493765e-3f));
    c = multiply_add(c, z, broadcast(4.166664568298827e-2f));
    c = multiply_add(c * z, z, multiply_add(broadcast(-0.5f), z, broadcast(1.0f)));
    float sine[kLanes], cosine[kLanes];
    store(sine, s);
    store(cosine, c);
    for (int i = 0; i < kLanes; ++i) {
        const bool is_odd = quadrant[i] & 1;
        const float sin_size = is_odd ? cosine[i] : sine[i], cos_size = is_odd ? sine[i] : cosine[i];
        sin_out[i] = (quadrant[i] & 2) ? -sin_size : sin_size;
        cos_out[i] = ((quadrant[i] + 1) & 2) ? -cos_size : cos_size;
    }
}

}  // namespace step35::STEP35_ISA
