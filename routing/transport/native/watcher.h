// The one thread of a port: it blocks in poll() on the port's sockets and costs nothing while they are silent.
#pragma once

#include <poll.h>

#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "doorbell.h"

namespace step35 {

class Watcher {
  public:
    // What to poll, and until when at the latest.
    struct Round {
        std::vector<pollfd> fds;
        Clock::time_point wake_at = Clock::time_point::max();

        void add(const Fd& fd) { fds.push_back({fd.get(), POLLIN | POLLRDHUP, 0}); }
        void wake_by(Clock::time_point time) { wake_at = std::min(wake_at, time); }
    };

    Watcher();
    ~Watcher() { stop(); }

    // `work` handles whatever is pending and returns what to wait for. It runs on the thread, never concurrently.
    void start(std::function<Round()> work);
    // Run `work` soon. From any thread.
    void nudge();
    // Join the thread. Idempotent, from any thread but its own.
    void stop();

  private:
    void loop();

    Fd event_;
    std::atomic<bool> is_stopping_{false};
    std::function<Round()> work_;
    std::mutex stop_mutex_;
    std::thread thread_;
};

}  // namespace step35
