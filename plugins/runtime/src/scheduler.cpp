#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "decode.h"
#include "error.h"
#include "json.h"

namespace dyndeploy {
namespace runtime {
namespace {

// A ticket is a slot and how many images came before: tickets grow, and tell their slot.
constexpr std::uint64_t kMostSlots = std::uint64_t{1} << 20;
constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();

double between(std::chrono::steady_clock::time_point start, std::chrono::steady_clock::time_point end) {
  return std::chrono::duration<double, std::milli>(end - start).count();
}

void check_policy(const Policy& policy) {
  if (policy.queue_limit < 1 || policy.queue_limit > kMostSlots)
    fail(DYNDEPLOY_USAGE, "queue_limit=" + std::to_string(policy.queue_limit) + " is not valid: give 1 to " +
                              std::to_string(kMostSlots) + " images.");
  if (policy.largest_batch < 1 || policy.largest_batch > 4096)
    fail(DYNDEPLOY_USAGE,
         "largest_batch=" + std::to_string(policy.largest_batch) + " is not valid: give 1 to 4096 rows.");
  if (!(policy.latency_ms >= 0) || !(policy.patience >= 0))
    fail(DYNDEPLOY_USAGE, "latency_ms and patience must be numbers that are not below 0.");
}

ImageView view_of(const dyndeploy_image& image) {
  return {image.pixels, image.height, image.width, image.stride};
}

}  // namespace

Scheduler::Inside::Inside(Scheduler& scheduler) : scheduler_(scheduler) {
  const std::lock_guard<std::mutex> lock(scheduler.mutex_);
  if (scheduler.closed_) fail(DYNDEPLOY_CLOSED, "The session was closed.");
  ++scheduler.inside_;
}

Scheduler::Inside::~Inside() {
  const std::lock_guard<std::mutex> lock(scheduler_.mutex_);
  if (--scheduler_.inside_ == 0) scheduler_.empty_.notify_all();
}

Scheduler::Scheduler(Session& session, const Policy& policy, Now now)
    : session_(session), policy_(policy), now_(now ? now : Now([] { return Clock::now(); })) {
  check_policy(policy);
  if (!session.detects()) session.require_images();
  slots_.resize(policy.queue_limit);
  for (std::size_t i = policy.queue_limit; i-- > 0;) free_.push_back(i);
  done_.reserve(policy.queue_limit);
  add_stations();
  for (std::vector<std::size_t>* list : {&running_, &stayed_, &placed_}) list->reserve(policy.queue_limit);
  goes_on_.reserve(policy.queue_limit);
  lanes_.resize(stations_.size());
  // What cannot be had is told to whoever starts this.
  lane(0);
  if (!now) thread_ = std::thread([this] { work(); });
}

void Scheduler::add_stations() {
  const Plan& plan = session_.plan();
  const bool staged = session_.bundle().manifest.has_exits;
  const std::size_t count = staged               ? plan.steps.size()
                            : session_.detects() ? session_.detector().buckets()
                                                 : 1;
  stations_.resize(count);
  candidates_.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    Station& station = stations_[i];
    Candidate& candidate = candidates_[i];
    // Of a detector's other inputs the bundles are opened when an image needs them; their batch is the same.
    station.session = staged || i == 0 ? &session_ : nullptr;
    station.whole = !staged;
    station.waiting.reserve(policy_.queue_limit);
    candidate.capacity = plan.any_batch ? policy_.largest_batch : std::min(policy_.largest_batch, plan.batch);
    candidate.depth = staged ? i : 0;
    candidate.cost = StepCost(!plan.any_batch);
    station.warm.resize(candidate.capacity + 1);
  }
  // Room for all that is ever put away is made when an image is submitted: later there is no caller to
  // refuse.
  const auto bytes = [&plan](const std::vector<std::size_t>& tensors) {
    std::size_t sum = 0;
    for (const std::size_t tensor : tensors)
      sum += plan.row_elements(tensor) * element_bytes(plan.tensors[tensor].type);
    return sum;
  };
  most_bytes_ = bytes(plan.inputs);
  for (const Step& step : plan.steps) most_bytes_ = std::max(most_bytes_, bytes(step.carried));
}

Scheduler::~Scheduler() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = true;
    work_.notify_all();
    results_.notify_all();
    empty_.wait(lock, [this] { return inside_ == 0; });
  }
  if (thread_.joinable()) thread_.join();
  for (Slot& slot : slots_) free_detections(slot.detections);
}

// ---------------------------------------------------------------- callers

std::uint64_t Scheduler::submit(const dyndeploy_request& request) {
  const Clock::time_point start = now_();
  const Inside inside(*this);
  std::size_t index;
  std::unique_ptr<Reader> reader;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty())
      fail(DYNDEPLOY_BUSY, "The queue is full: " + std::to_string(policy_.queue_limit) +
                               " images wait, run or were not polled. Poll, and submit the image again.");
    index = free_.back();
    free_.pop_back();
    if (!readers_.empty()) {
      reader = std::move(readers_.back());
      readers_.pop_back();
    }
  }
  Slot& slot = slots_[index];
  std::size_t station;
  try {
    if (!reader) reader = std::make_unique<Reader>();
    slot.memory.reserve(most_bytes_);
    station = prepare(request, slot, *reader);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(index);
    if (reader) readers_.push_back(std::move(reader));
    throw;
  }
  slot.user = request.user;
  slot.cancelled = slot.stayed = slot.ran = false;
  slot.ms = 0;
  slot.code = DYNDEPLOY_OK;
  slot.submitted = start;
  slot.preparing_ms = between(start, now_());
  const std::lock_guard<std::mutex> lock(mutex_);
  readers_.push_back(std::move(reader));
  slot.ticket = ++submitted_ * kMostSlots + index;
  enqueue(station, index);
  work_.notify_one();
  return slot.ticket;
}

std::size_t Scheduler::prepare(const dyndeploy_request& request, Slot& slot, Reader& reader) {
  const int given = (request.image != nullptr) + (request.file != nullptr) + (request.values != nullptr);
  if (given != 1)
    fail(DYNDEPLOY_USAGE, "A request has " + std::to_string(given) +
                              " images: give one of image, file and values, and leave the others NULL.");
  const Plan& plan = session_.plan();
  if (request.values) {
    if (session_.detects()) fail(DYNDEPLOY_USAGE, "A detector takes images, and no values.");
    const std::size_t count = plan.row_elements(plan.inputs[0]);
    const std::string bad = not_finite(request.values, count);
    if (!bad.empty())
      fail(DYNDEPLOY_INPUT, "Input '" + plan.tensors[plan.inputs[0]].name +
                                "': expected finite numbers, got " + bad +
                                ". Check the image and its preprocessing.");
    slot.memory.resize(count * sizeof(float));
    std::memcpy(slot.memory.data(), request.values, count * sizeof(float));
    return 0;
  }
  Image decoded;
  if (request.file)
    decoded = decode_image("the given file",
                           std::string(static_cast<const char*>(request.file), request.file_bytes));
  const ImageView image = request.file ? decoded.view() : view_of(*request.image);
  if (session_.detects()) return prepare_for_detector(image, request.sides, slot, reader);
  prepare_image(image, slot, reader);
  return 0;
}

void Scheduler::prepare_image(const ImageView& image, Slot& slot, Reader& reader) {
  const Manifest& manifest = session_.bundle().manifest;
  const Plan& plan = session_.plan();
  if (!reader.preprocessor)
    reader.preprocessor =
        std::make_unique<Preprocessor>(manifest.preprocessing, manifest.height, manifest.width);
  slot.memory.resize(plan.row_elements(plan.inputs[0]) * sizeof(float));
  reader.preprocessor->run(image, reinterpret_cast<float*>(slot.memory.data()));
}

std::size_t Scheduler::prepare_for_detector(const ImageView& image, const std::int32_t* sides, Slot& slot,
                                            Reader& reader) {
  const Detector::Target target = session_.detector().target(image, sides);
  const Plan& plan = target.session.plan();
  reader.detection.resize(stations_.size());
  std::unique_ptr<DetectionTask>& task = reader.detection[target.bucket];
  if (!task) task = std::make_unique<DetectionTask>(target.session.bundle().manifest);
  const std::size_t pixels = plan.row_elements(plan.inputs[0]), size = plan.row_elements(plan.inputs[1]);
  slot.memory.resize((pixels + size) * sizeof(float));
  float* row = reinterpret_cast<float*>(slot.memory.data());
  slot.placement = task->prepare(image, target.bounds, row, row + pixels);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!stations_[target.bucket].session) stations_[target.bucket].session = &target.session;
  return target.bucket;
}

void Scheduler::enqueue(std::size_t station, std::size_t index) {
  std::vector<std::size_t>& waiting = stations_[station].waiting;
  const std::uint64_t ticket = slots_[index].ticket;
  auto place = waiting.end();
  while (place != waiting.begin() && slots_[*(place - 1)].ticket > ticket) --place;
  waiting.insert(place, index);
  slots_[index].state = State::kWaiting;
  ++waiting_;
}

void Scheduler::release(std::size_t index) {
  slots_[index].state = State::kFree;
  slots_[index].ticket = 0;
  free_.push_back(index);
}

std::size_t Scheduler::poll(dyndeploy_completion* completions, std::size_t room, double timeout_ms) {
  for (std::size_t i = 0; i < room; ++i) {
    const dyndeploy_completion& completion = completions[i];
    if (completion.size != sizeof completion)
      fail(DYNDEPLOY_USAGE,
           "A completion's size is not sizeof(dyndeploy_completion): set it before the call.");
    Session::check_results(completion.result, 1);
    if (completion.detections) check_detections(completion.detections, 1);
  }
  const Inside inside(*this);
  std::unique_lock<std::mutex> lock(mutex_);
  const auto ready = [this] { return closed_ || !done_.empty(); };
  if (room == 0) return 0;
  // Longer than any wait, and short enough for the clock.
  constexpr double kForever = 1e12;
  if (!(timeout_ms >= 0 && timeout_ms <= kForever))
    results_.wait(lock, ready);
  else
    results_.wait_for(lock, std::chrono::duration<double, std::milli>(timeout_ms), ready);
  if (closed_) fail(DYNDEPLOY_CLOSED, "The session was closed.");
  const std::size_t count = std::min(room, done_.size());
  for (std::size_t i = 0; i < count; ++i) give(slots_[done_[i]], completions[i]);
  for (std::size_t i = 0; i < count; ++i) release(done_[i]);
  done_.erase(done_.begin(), done_.begin() + static_cast<std::ptrdiff_t>(count));
  return count;
}

void Scheduler::give(Slot& slot, dyndeploy_completion& completion) {
  completion.ticket = slot.ticket;
  completion.user = slot.user;
  completion.code = slot.code;
  completion.rows = static_cast<std::int32_t>(slot.rows);
  completion.queue_ms = between(slot.submitted, slot.started);
  completion.latency_ms = between(slot.submitted, slot.done);
  completion.message[0] = '\0';
  if (slot.code) {
    const std::size_t length = std::min(slot.message.size(), sizeof completion.message - 1);
    std::memcpy(completion.message, slot.message.data(), length);
    completion.message[length] = '\0';
    // One line, whatever was quoted in it.
    for (char* c = completion.message; *c; ++c)
      if (static_cast<unsigned char>(*c) < 0x20) *c = ' ';
    return;
  }
  if (dyndeploy_result* to = completion.result) {
    dyndeploy_result made = slot.result;
    made.rates = to->rates;
    made.rates_room = to->rates_room;
    made.values = to->values;
    made.values_room = to->values_room;
    if (made.rates) std::copy_n(slot.rates.begin(), std::min(made.rates_room, slot.rates.size()), made.rates);
    if (made.values)
      std::copy_n(slot.logits.begin(), std::min(made.values_room, slot.logits.size()), made.values);
    *to = made;
  }
  if (dyndeploy_detections* to = completion.detections) {
    dyndeploy_detections made = slot.detections;
    made.rates = to->rates;
    made.rates_room = to->rates_room;
    if (made.rates) std::copy_n(slot.rates.begin(), std::min(made.rates_room, slot.rates.size()), made.rates);
    // The caller's memory takes the next image's detections.
    slot.detections.memory = to->memory;
    *to = made;
  }
}

void Scheduler::cancel(std::uint64_t ticket) {
  const Inside inside(*this);
  const std::lock_guard<std::mutex> lock(mutex_);
  const std::size_t index = static_cast<std::size_t>(ticket % kMostSlots);
  if (!ticket || index >= slots_.size() || slots_[index].ticket != ticket || slots_[index].cancelled)
    fail(DYNDEPLOY_USAGE, "No image of ticket " + std::to_string(ticket) +
                              " is under way: it was never submitted, was cancelled or polled.");
  if (slots_[index].state == State::kDone) {
    done_.erase(std::find(done_.begin(), done_.end(), index));
    release(index);
    return;
  }
  // Its memory may be in use: the thread lets go of it before it decides the next time.
  slots_[index].cancelled = true;
  ++cancelled_;
  work_.notify_one();
}

std::string Scheduler::json() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string text = "{\"under_way\": " + std::to_string(slots_.size() - free_.size() - done_.size()) +
                     ", \"unpolled\": " + std::to_string(done_.size()) + ", \"steps\": [";
  for (std::size_t i = 0; i < stations_.size(); ++i) {
    const Station& station = stations_[i];
    const StepCost& cost = candidates_[i].cost;
    text += std::string(i ? ", " : "") + "{\"waiting\": " + std::to_string(station.waiting.size()) +
            ", \"runs\": " + std::to_string(station.runs) + ", \"rows\": " + std::to_string(station.rows) +
            ", \"fixed_ms\": " + number(cost.fixed_ms()) + ", \"row_ms\": " + number(cost.row_ms()) + "}";
  }
  return text + "]}";
}

// ---------------------------------------------------------------- the thread

void Scheduler::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    work_.wait(lock, [this] { return closed_ || waiting_ || cancelled_; });
    if (closed_) return;
    advance(lock);
  }
}

bool Scheduler::run_next() {
  std::unique_lock<std::mutex> lock(mutex_);
  return advance(lock);
}

bool Scheduler::advance(std::unique_lock<std::mutex>& lock) {
  sweep();
  if (!waiting_) return false;
  consider();
  const Decision decision = choose(candidates_, policy_);
  take(decision);
  lock.unlock();
  run(decision.candidate);
  lock.lock();
  settle(decision.candidate);
  if (!done_.empty()) results_.notify_all();
  return true;
}

// Let go of what was cancelled while it waited.
void Scheduler::sweep() {
  if (!cancelled_) return;
  cancelled_ = 0;
  for (Station& station : stations_) {
    const auto gone = [this](std::size_t index) {
      if (!slots_[index].cancelled) return false;
      release(index);
      --waiting_;
      return true;
    };
    station.waiting.erase(std::remove_if(station.waiting.begin(), station.waiting.end(), gone),
                          station.waiting.end());
  }
}

void Scheduler::consider() {
  const Clock::time_point now = now_();
  double known_ms = 0, known_macs = 0;
  const std::vector<StageInfo>& stages = session_.bundle().manifest.exits.stages;
  const auto macs = [&](std::size_t i) { return stages[i].macs - (i ? stages[i - 1].macs : 0); };
  for (std::size_t i = 0; i < stages.size(); ++i) {
    if (!candidates_[i].cost.known()) continue;
    known_ms += candidates_[i].cost.ms(1);
    known_macs += macs(i);
  }
  double rest = 0;  // of an image alone, to the end of the network
  for (std::size_t i = candidates_.size(); i-- > 0;) {
    Candidate& candidate = candidates_[i];
    double own = candidate.cost.ms(1);
    // What did not run yet takes as long as its multiplications let expect.
    if (!candidate.cost.known() && known_macs > 0) own = known_ms / known_macs * macs(i);
    rest = stations_[i].whole ? own : rest + own;
    candidate.waiting = stations_[i].waiting.size();
    if (!candidate.waiting) candidate.delayed_ms = 0;
    if (!candidate.waiting) continue;
    const Slot& first = slots_[stations_[i].waiting.front()];
    candidate.oldest = first.ticket;
    candidate.slack_ms = policy_.latency_ms - between(first.submitted, now) - rest;
  }
}

void Scheduler::take(const Decision& decision) {
  const Clock::time_point now = now_();
  std::vector<std::size_t>& waiting = stations_[decision.candidate].waiting;
  const auto end = waiting.begin() + static_cast<std::ptrdiff_t>(decision.rows);
  running_.assign(waiting.begin(), end);
  waiting.erase(waiting.begin(), end);
  waiting_ -= decision.rows;
  for (const std::size_t index : running_) {
    Slot& slot = slots_[index];
    slot.state = State::kRunning;
    slot.rows = decision.rows;
    if (!slot.ran) slot.started = now;
    slot.ran = true;
  }
  // Of the rows in the lane those that do not run now.
  stayed_.clear();
  for (const std::size_t index : stations_[stayed_for_].waiting)
    if (slots_[index].stayed) stayed_.push_back(index);
}

Lane& Scheduler::lane(std::size_t index) {
  const std::size_t of = stations_[index].whole ? index : 0;
  if (!lanes_[of]) {
    auto lease = std::make_unique<Session::Lease>(*stations_[of].session);
    Lane& made = **lease;
    made.reserve(candidates_[of].capacity);
    // Bound now, so that batches of all sizes find everything in place.
    for (std::size_t step = 0; step < stations_[of].session->plan().steps.size(); ++step)
      for (std::size_t rows = 1; rows <= candidates_[of].capacity; ++rows) made.bind(step, rows);
    lanes_[of] = std::move(lease);
  }
  return **lanes_[of];
}

const std::vector<std::size_t>& Scheduler::tensors_before(std::size_t index) const {
  const Station& station = stations_[index];
  const Plan& plan = station.session->plan();
  return station.whole || index == 0 ? plan.inputs : plan.steps[index - 1].carried;
}

void Scheduler::run(std::size_t index) {
  goes_on_.assign(running_.size(), false);
  took_ms_ = 0;
  try {
    place(index);
    Lane& memory = lane(index);
    const Clock::time_point start = now_();
    if (stations_[index].whole) {
      for (std::size_t step = 0; step < stations_[index].session->plan().steps.size(); ++step)
        memory.run_step(step, running_.size());
    } else {
      memory.run_step(index, running_.size());
    }
    took_ms_ = between(start, now_());
    tell(index, took_ms_ / static_cast<double>(running_.size()));
  } catch (const Error& error) {
    fail_all(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    fail_all(DYNDEPLOY_MEMORY, "There is no memory for it.");
  } catch (const std::exception& error) {
    fail_all(DYNDEPLOY_INTERNAL, error.what());
  }
}

// Bring the rows that run to the front of the lane.
void Scheduler::place(std::size_t index) {
  Lane& memory = lane(index);
  if (!stayed_.empty()) {
    Lane& left = lane(stayed_for_);
    const std::vector<std::size_t>& tensors = tensors_before(stayed_for_);
    const std::size_t bytes = left.row_bytes(tensors);
    for (const std::size_t of : stayed_) {
      Slot& slot = slots_[of];
      slot.memory.resize(bytes);
      left.take_row(tensors, slot.row, slot.memory.data());
      slot.stayed = false;
    }
  }
  const std::vector<std::size_t>& tensors = tensors_before(index);
  const std::size_t rows = running_.size();
  placed_.assign(rows, kNone);
  for (const std::size_t of : running_)
    if (slots_[of].stayed && slots_[of].row < rows) placed_[slots_[of].row] = of;
  std::size_t hole = 0;
  for (const std::size_t of : running_) {
    Slot& slot = slots_[of];
    if (!slot.stayed || slot.row >= rows) {
      while (placed_[hole] != kNone) ++hole;
      if (slot.stayed)
        memory.move_row(tensors, slot.row, hole);
      else
        memory.put_row(tensors, hole, slot.memory.data());
      placed_[hole] = of;
    }
    slot.stayed = false;
  }
  running_ = placed_;
}

// Write the results of rows that leave; the others move together.
void Scheduler::tell(std::size_t index, double ms) {
  Station& station = stations_[index];
  Lane& memory = lane(index);
  const std::vector<Step>& steps = station.session->plan().steps;
  const std::size_t step = station.whole ? steps.size() - 1 : index;
  std::size_t kept = 0;
  for (std::size_t row = 0; row < running_.size(); ++row) {
    Slot& slot = slots_[running_[row]];
    slot.ms += ms;
    try {
      std::string fault = memory.row_fault(step, row);
      if (!fault.empty()) fail(DYNDEPLOY_NOT_FINITE, fault);
      if (!memory.leaves(step, row)) {
        memory.move_row(steps[step].carried, row, kept);
        slot.row = kept++;
        goes_on_[row] = true;
        continue;
      }
      slot.rates.resize(station.session->plan().masks.size());
      if (session_.detects()) {
        slot.detections.rates = slot.rates.data();
        slot.detections.rates_room = slot.rates.size();
        session_.detector().report(*station.session, memory, row, slot.placement, slot.ms, slot.preparing_ms,
                                   slot.detections);
        continue;
      }
      slot.result.size = sizeof slot.result;
      slot.result.rates = slot.rates.data();
      slot.result.rates_room = slot.rates.size();
      slot.logits.resize(session_.plan().classifies ? session_.plan().classes() : 0);
      slot.result.values = slot.logits.data();
      slot.result.values_room = slot.logits.size();
      session_.report(memory, {step, row}, row, slot.ms, slot.preparing_ms, &slot.result);
    } catch (const Error& error) {
      slot.code = error.code();
      slot.message = error.what();
    }
  }
}

void Scheduler::fail_all(int code, const char* message) {
  const auto fail_slot = [&](std::size_t of) {
    slots_[of].code = code;
    slots_[of].message = message;
  };
  std::fill(goes_on_.begin(), goes_on_.end(), false);
  std::for_each(running_.begin(), running_.end(), fail_slot);
  // What could not be put away is lost with them.
  for (const std::size_t of : stayed_)
    if (slots_[of].stayed) fail_slot(of);
}

void Scheduler::end(std::size_t index) {
  Slot& slot = slots_[index];
  if (slot.cancelled) return release(index);
  slot.state = State::kDone;
  slot.done = now_();
  done_.push_back(index);
}

// With the lock: give back what was cancelled, queue what goes on, and learn what the run took.
void Scheduler::settle(std::size_t index) {
  Station& station = stations_[index];
  const std::size_t rows = running_.size();
  ++station.runs;
  station.rows += rows;
  // What others lose while this one runs.
  for (std::size_t i = 0; i < candidates_.size(); ++i)
    if (i != index) candidates_[i].delayed_ms += took_ms_ * static_cast<double>(stations_[i].waiting.size());
  candidates_[index].delayed_ms = 0;
  // The first run of a size makes its backend plan memory.
  const std::size_t size = station.session->plan().any_batch ? rows : 0;
  if (took_ms_ > 0 && station.warm[size]) candidates_[index].cost.add(rows, took_ms_);
  station.warm[size] = true;
  const std::size_t before = done_.size();
  std::vector<std::size_t>& left = stations_[stayed_for_].waiting;
  for (const std::size_t of : stayed_) {
    if (!slots_[of].stayed) continue;
    left.erase(std::find(left.begin(), left.end(), of));
    --waiting_;
    end(of);
  }
  stayed_for_ = station.whole ? 0 : index + 1;
  for (std::size_t row = 0; row < rows; ++row) {
    const std::size_t of = running_[row];
    if (goes_on_[row] && !slots_[of].cancelled) {
      slots_[of].stayed = true;
      enqueue(index + 1, of);
    } else {
      end(of);
    }
  }
  if (stayed_for_ == stations_.size()) stayed_for_ = 0;
  // Of those that end together the oldest first.
  std::sort(done_.begin() + static_cast<std::ptrdiff_t>(before), done_.end(),
            [this](std::size_t a, std::size_t b) { return slots_[a].ticket < slots_[b].ticket; });
}

}  // namespace runtime
}  // namespace dyndeploy
