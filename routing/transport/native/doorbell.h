// One futex word per process to sleep on, whoever rings. Lives in its own memfd, which every peer maps.
// The sleeper says how many rings it still needs, so that eight replies cost one wake-up instead of eight.
#pragma once

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>

#include "memory.h"

namespace step35 {

using Clock = std::chrono::steady_clock;

inline Clock::duration seconds(double value) {
    return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

// Written by every peer: a hint of when to look, never a fact to rely on.
struct Bell {
    std::atomic<uint32_t> rings;     // one per publication
    std::atomic<uint32_t> wake_at;   // value of `rings` from which the sleeper wants to be woken
    std::atomic<uint32_t> sleeping;  // taken (1 -> 0) by the ring that wakes, so that no wake-up is paid twice
    std::atomic<uint32_t> gate;      // the futex word: changes only when somebody is to wake
};
static_assert(std::atomic<uint32_t>::is_always_lock_free, "shared between processes");

class Doorbell {
  public:
    static constexpr size_t kBytes = 4096;
    // Offers of the core to the others before the sleep. With more processes than cores the answer is often there
    // when the core comes back, and two system calls and a wake-up are saved; with an idle core each costs a
    // microsecond. Medians of ops.bench.exchange with native experts, nine processes on two cores: 45 us with 1, 31 us
    // with 3, 36 us with 8.
    static constexpr int kYields = 3;

    explicit Doorbell(const Fd& memfd) : mapping_(memfd, kBytes), bell_(reinterpret_cast<Bell*>(mapping_.data())) {}

    // Publication number one more. Whatever was stored before is visible to the woken.
    void ring() {
        const uint32_t rings = bell_->rings.fetch_add(1) + 1;
        if (!bell_->sleeping.load()) return;
        const bool is_due = static_cast<int32_t>(rings - bell_->wake_at.load()) >= 0;
        if (is_due && bell_->sleeping.exchange(0)) open_gate();
    }

    // Wake the sleeper however many rings it waits for: a peer died, or the port closes.
    void open_gate() {
        bell_->gate.fetch_add(1);
        futex(FUTEX_WAKE, 1, nullptr);
    }

    // Sleep until `missing()`, the number of rings still needed, is 0. False when `timeout` passed or a signal came.
    template <class Missing>
    bool wait(Missing missing, Clock::duration timeout) {
        const auto deadline = Clock::now() + timeout;
        while (true) {
            // Both are read before the look at the slots: a ring after that look is one of the `num_missing`.
            const uint32_t gate = bell_->gate.load();
            const uint32_t rings = bell_->rings.load();
            uint32_t num_missing = missing();
            for (int yields = 0; num_missing != 0 && yields < kYields; ++yields) {
                sched_yield();
                num_missing = missing();
            }
            if (num_missing == 0) return true;
            const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(deadline - Clock::now()).count();
            if (left <= 0) return false;
            bell_->wake_at.store(rings + num_missing);
            bell_->sleeping.store(1);
            // Publish, then look again: with the ringer's publish-then-read, one of the two sees the other.
            std::atomic_thread_fence(std::memory_order_seq_cst);
            const bool is_interrupted = missing() != 0 && sleep(gate, left);
            bell_->sleeping.store(0);
            if (is_interrupted) return missing() == 0;
        }
    }

  private:
    // True when a signal ended the sleep.
    bool sleep(uint32_t gate, int64_t nanoseconds) {
        const timespec timeout{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
        return futex(FUTEX_WAIT, gate, &timeout) < 0 && errno == EINTR;
    }

    // Not FUTEX_PRIVATE: the word is shared between processes.
    long futex(int operation, uint32_t value, const timespec* timeout) {
        return syscall(SYS_futex, &bell_->gate, operation, value, timeout, nullptr, 0);
    }

    Mapping mapping_;
    Bell* bell_;
};

}  // namespace step35
