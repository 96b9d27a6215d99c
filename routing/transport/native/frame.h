// The frame of routing/wire.py as C++ sees it: header, array offsets, and what a header may say under agreed limits.
// Magic, version and dtype code come from a header that wire.py packed, so they are written down once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace step35 {

enum FrameKind : uint8_t { kDispatch = 1, kCombine = 2, kRefuse = 3 };

#pragma pack(push, 1)
struct FrameHeader {
    uint32_t magic;
    uint16_t version;
    uint8_t kind;
    uint8_t per_expert;
    uint32_t dtype;
    int64_t map_epoch;
    int64_t sequence;
    int32_t moe_layer_idx;
    int32_t microbatch_idx;
    int32_t num_rows;
    int32_t num_pairs;
    int32_t hidden_size;
    char padding[16];
};
#pragma pack(pop)

constexpr size_t kAlignment = 64;
constexpr int32_t kMaxReasonBytes = 1024;  // of the sentence in a refusal
static_assert(sizeof(FrameHeader) == kAlignment, "arrays start right behind the header");

constexpr size_t align_up(size_t bytes, size_t alignment) {
    return (bytes + alignment - 1) / alignment * alignment;
}

// What both ends agree on. `largest` is the header of the largest dispatch frame.
struct Limits {
    FrameHeader largest;
    uint32_t item_bytes;
    uint32_t max_in_flight;
    uint64_t frame_bytes;

    size_t row_bytes() const { return static_cast<size_t>(largest.hidden_size) * item_bytes; }
    bool operator==(const Limits& other) const { return std::memcmp(this, &other, sizeof(Limits)) == 0; }
};
static_assert(sizeof(Limits) == sizeof(FrameHeader) + 16, "compared byte by byte: no padding allowed");

// Offsets from the start of a dispatch frame, as `frame_layout` computes them.
struct DispatchLayout {
    size_t hidden, pair_row, pair_slot, pair_weight, end;

    DispatchLayout(const FrameHeader& header, const Limits& limits) {
        const size_t pair_bytes = align_up(sizeof(int32_t) * header.num_pairs, kAlignment);
        hidden = sizeof(FrameHeader);
        pair_row = hidden + align_up(header.num_rows * limits.row_bytes(), kAlignment);
        pair_slot = pair_row + pair_bytes;
        pair_weight = pair_slot + pair_bytes;
        end = pair_weight + pair_bytes;
    }
};

// Rows of the reply to a dispatch header.
inline int32_t num_vectors(const FrameHeader& header) {
    return header.per_expert ? header.num_pairs : header.num_rows;
}

// Why a dispatch header (a copy: the peer may rewrite the original) cannot be served; nullptr when it can.
inline const char* dispatch_fault(const FrameHeader& header, const Limits& limits) {
    const FrameHeader& largest = limits.largest;
    if (header.magic != largest.magic) return "the frame has a wrong magic number";
    if (header.version != largest.version) return "the frame has another version";
    if (header.kind != kDispatch || header.per_expert > 1) return "the frame has an unknown kind or flag";
    if (header.dtype != largest.dtype) return "the frame has another dtype than agreed";
    if (header.hidden_size != largest.hidden_size) return "the frame has another hidden size than agreed";
    if (header.num_rows < 0 || header.num_rows > largest.num_rows) return "the frame has more rows than agreed";
    if (header.num_pairs < 0 || header.num_pairs > largest.num_pairs) return "the frame has more pairs than agreed";
    if (header.moe_layer_idx < 0 || header.microbatch_idx < 0) return "the frame has a negative index";
    return nullptr;
}

}  // namespace step35
