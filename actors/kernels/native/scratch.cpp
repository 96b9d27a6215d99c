#include "scratch.h"

#include <algorithm>
#include <cstdint>

namespace step35 {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kSmallestPiece = std::size_t{1} << 18;

}  // namespace

void* Scratch::take(std::size_t num_bytes) {
    num_bytes = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (pieces_.empty() || used_in_last_ + num_bytes + kAlignment > pieces_.back().capacity) {
        const std::size_t capacity = std::max(num_bytes + kAlignment, kSmallestPiece);
        pieces_.push_back({std::unique_ptr<std::byte[]>(new std::byte[capacity]), capacity});
        used_in_last_ = 0;
    }
    std::byte* start = pieces_.back().bytes.get();
    const auto misaligned = reinterpret_cast<std::uintptr_t>(start) % kAlignment;
    start += (kAlignment - misaligned) % kAlignment + used_in_last_;
    used_in_last_ += num_bytes;
    return start;
}

void Scratch::reset() {
    used_in_last_ = 0;
    if (pieces_.size() < 2) return;
    std::size_t capacity = 0;
    for (const Piece& piece : pieces_) capacity += piece.capacity;
    pieces_.clear();
    pieces_.push_back({std::unique_ptr<std::byte[]>(new std::byte[capacity]), capacity});
}

}  // namespace step35
