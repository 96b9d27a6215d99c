#include "watcher.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

namespace step35 {
namespace {

int poll_timeout_ms(Clock::time_point wake_at) {
    if (wake_at == Clock::time_point::max()) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake_at - Clock::now()).count();
    return static_cast<int>(std::clamp<int64_t>(left, 0, 60'000));
}

}  // namespace

Watcher::Watcher() : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (!event_.is_open()) throw_errno("eventfd");
}

void Watcher::start(std::function<Round()> work) {
    work_ = std::move(work);
    // Signals are for Python's main thread: a thread inherits the mask of its creator.
    sigset_t all, previous;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    thread_ = std::thread([this] { loop(); });
    pthread_sigmask(SIG_SETMASK, &previous, nullptr);
}

void Watcher::nudge() {
    const uint64_t one = 1;
    // Cannot fail but for a full counter, and then the thread is being woken already.
    [[maybe_unused]] const ssize_t written = write(event_.get(), &one, sizeof(one));
}

void Watcher::stop() {
    const std::lock_guard guard(stop_mutex_);
    is_stopping_ = true;
    nudge();
    if (thread_.joinable()) thread_.join();
}

void Watcher::loop() {
    while (!is_stopping_) {
        Round round = work_();
        round.add(event_);
        poll(round.fds.data(), round.fds.size(), poll_timeout_ms(round.wake_at));
        uint64_t nudges;
        [[maybe_unused]] const ssize_t drained = read(event_.get(), &nudges, sizeof(nudges));
    }
}

}  // namespace step35
