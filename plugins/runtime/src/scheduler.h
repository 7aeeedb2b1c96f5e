// Images of many callers in common batches: a queue per step, whose rows join whatever runs next.
//
// One thread of its own runs everything. Callers read and resize their images, which costs them and not the
// others; what runs next has to be decided in one place, and two steps at once would take the same cores or
// the same GPU from each other. Rows that stay after a step are left in the lane for the next one; they are
// copied out only where another step runs first, and others that join are copied in behind them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "batching.h"
#include "detector.h"
#include "session.h"

namespace dyndeploy {
namespace runtime {

class Scheduler {
 public:
  using Clock = std::chrono::steady_clock;
  using Now = std::function<Clock::time_point()>;

  // Throws Error(DYNDEPLOY_USAGE) where the network takes no images. With a clock of the caller's there is no
  // thread: the caller calls run_next(), for measuring in another time than that of the wall.
  Scheduler(Session& session, const Policy& policy, Now now = nullptr);
  // Drops what waits after the step that runs; whoever polls ends with Error(DYNDEPLOY_CLOSED).
  ~Scheduler();

  // See dyndeploy.h; they throw Error.
  std::uint64_t submit(const dyndeploy_request& request);
  std::size_t poll(dyndeploy_completion* completions, std::size_t room, double timeout_ms);
  void cancel(std::uint64_t ticket);

  // Run one step; false where nothing waits.
  bool run_next();

  // What waits, and what was learned of every step, as JSON text.
  std::string json() const;

 private:
  enum class State { kFree, kWaiting, kRunning, kDone };

  // An image on its way.
  struct Slot {
    State state = State::kFree;
    std::uint64_t ticket = 0;
    bool cancelled = false;
    void* user = nullptr;
    Clock::time_point submitted, started, done;
    bool ran = false;
    double ms = 0, preparing_ms = 0;
    std::vector<char> memory;  // its row: inputs, later what is carried between steps
    std::size_t row = 0;       // of the lane, where it stayed there
    bool stayed = false;
    Placement placement{};
    std::size_t rows = 0;
    int code = 0;
    std::string message;
    dyndeploy_result result{};
    dyndeploy_detections detections{};
    std::vector<float> logits, rates;
  };
  // What rows wait for: a step of a network with exits; else a whole network, of a detector one for each
  // input.
  struct Station {
    Session* session = nullptr;  // null: an input that no image needed yet
    bool whole = false;
    std::vector<std::size_t> waiting;  // slots, the oldest first
    std::uint64_t runs = 0, rows = 0;
    std::vector<char> warm;  // by rows, 0 for a fixed batch: whether so many ran before
  };
  // What reads images, for one caller at a time.
  struct Reader {
    std::unique_ptr<Preprocessor> preprocessor;
    std::vector<std::unique_ptr<DetectionTask>> detection;  // by station
  };
  // A call that is under way: the scheduler stays until it ends. Throws Error(DYNDEPLOY_CLOSED).
  class Inside {
   public:
    explicit Inside(Scheduler& scheduler);
    ~Inside();
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

   private:
    Scheduler& scheduler_;
  };

  void add_stations();
  std::size_t prepare(const dyndeploy_request& request, Slot& slot, Reader& reader);
  void prepare_image(const ImageView& image, Slot& slot, Reader& reader);
  std::size_t prepare_for_detector(const ImageView& image, const std::int32_t* sides, Slot& slot,
                                   Reader& reader);
  void enqueue(std::size_t station, std::size_t slot);
  void release(std::size_t slot);
  void give(Slot& slot, dyndeploy_completion& completion);

  void work();
  bool advance(std::unique_lock<std::mutex>& lock);
  void sweep();
  void consider();
  void take(const Decision& decision);
  void run(std::size_t station);
  void place(std::size_t station);
  void tell(std::size_t station, double ms);
  void fail_all(int code, const char* message);
  void settle(std::size_t station);
  void end(std::size_t slot);
  Lane& lane(std::size_t station);
  const std::vector<std::size_t>& tensors_before(std::size_t station) const;

  Session& session_;
  const Policy policy_;
  const Now now_;
  std::vector<Slot> slots_;
  std::vector<Station> stations_;
  std::vector<Candidate> candidates_;  // of the same places
  std::vector<std::size_t> free_, done_;
  std::vector<std::unique_ptr<Reader>> readers_;
  std::size_t most_bytes_ = 0;  // of a slot's memory
  std::uint64_t submitted_ = 0;
  std::size_t waiting_ = 0, cancelled_ = 0, inside_ = 0;
  bool closed_ = false;
  mutable std::mutex mutex_;
  std::condition_variable work_, results_, empty_;

  // The thread's own.
  std::vector<std::unique_ptr<Session::Lease>> lanes_;  // by station; all steps of a network share the first
  std::size_t stayed_for_ = 0;                          // the station whose rows may lie in the lane
  std::vector<std::size_t> running_, stayed_, placed_;
  std::vector<char> goes_on_;  // by row
  double took_ms_ = 0;         // the run that has ended; 0: it failed
  std::thread thread_;
};

}  // namespace runtime
}  // namespace dyndeploy
