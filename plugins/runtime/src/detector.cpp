#include "detector.h"

#include <algorithm>
#include <chrono>

#include "bundle.h"
#include "decode.h"
#include "error.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Clock = std::chrono::steady_clock;

double milliseconds(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

std::string sides(std::int64_t height, std::int64_t width) {
  return std::to_string(height) + "x" + std::to_string(width);
}

// A bucket must be the same detector, for another size.
void check_bucket(const Manifest& own, const Manifest& other, const BucketInfo& bucket) {
  const bool fits = other.has_detection && other.network == own.network && other.batch == own.batch &&
                    other.height == bucket.height && other.width == bucket.width &&
                    other.masks.size() == own.masks.size() && other.detection.masks == own.detection.masks;
  if (!fits)
    fail(DYNDEPLOY_BUNDLE, "The folder " + bucket.folder + " holds another bundle than " + own.network +
                               " for inputs of " + bucket.folder + ". Export the bundle again.");
}

}  // namespace

Found& found_of(dyndeploy_detections& result) {
  if (!result.memory) result.memory = new Found;
  return *static_cast<Found*>(result.memory);
}

void check_detections(const dyndeploy_detections* results, std::size_t count) {
  if (!results && count) fail(DYNDEPLOY_USAGE, "results is NULL.");
  for (std::size_t i = 0; i < count; ++i)
    if (results[i].size != sizeof(dyndeploy_detections))
      fail(DYNDEPLOY_USAGE, "A result's size is " + std::to_string(results[i].size) +
                                ", not sizeof(dyndeploy_detections) = " +
                                std::to_string(sizeof(dyndeploy_detections)) + ": set it before the call.");
}

void free_detections(dyndeploy_detections& result) {
  delete static_cast<Found*>(result.memory);
  result.memory = nullptr;
  result.found = nullptr;
  result.count = 0;
}

// Images that wait until the batch of their bucket is full, or no image is left.
struct Detector::Group {
  struct Item {
    std::size_t place;  // among the images of the call
    Placement placement;
    double ms;  // of preparing it
  };

  std::size_t bucket;
  Session& session;
  Session::Lease lease;
  std::vector<Item> items;

  Group(std::size_t number, Session& of) : bucket(number), session(of), lease(of) {
    items.reserve(session.batch());
  }
};

Detector::Detector(Session& own, std::function<std::unique_ptr<Session>(const std::string&)> open,
                   std::function<void(const std::string&)> tell)
    : own_(own), open_(std::move(open)), tell_(std::move(tell)) {
  others_.resize(own.bundle().manifest.detection.buckets.size());
  warm_.resize(others_.size());
}

Session& Detector::session_of(std::size_t bucket) {
  if (!bucket) return own_;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::unique_ptr<Session>& found = others_[bucket];
  if (!found) {
    const Bundle& bundle = own_.bundle();
    const BucketInfo& info = bundle.manifest.detection.buckets[bucket];
    std::unique_ptr<Session> opened = open_(bundle.path(info.folder));
    check_bucket(bundle.manifest, opened->bundle().manifest, info);
    found = std::move(opened);
  }
  return *found;
}

Bounds Detector::bounds_of(const std::int32_t* size) const {
  const DetectionInfo& info = own_.bundle().manifest.detection;
  if (!size) return {info.longest, info.shortest};
  if (size[0] < 1 || size[1] < 1)
    fail(DYNDEPLOY_USAGE, "Images cannot be resized to at most " + std::to_string(size[0]) + " and " +
                              std::to_string(size[1]) + " pixels: no side may be below 1.");
  return {size[0], size[1]};
}

std::size_t Detector::bucket_of(const ImageView& image, const Bounds& bounds) {
  const Manifest& manifest = own_.bundle().manifest;
  const DetectionInfo& info = manifest.detection;
  const Size size{image.height, image.width};
  const Choice choice = choose_bucket(size, info.buckets, bounds);
  if (choice.holds) return choice.bucket;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (told_) return choice.bucket;
    told_ = true;
  }
  std::string known;
  for (const BucketInfo& bucket : info.buckets)
    known += (known.empty() ? "" : ", ") + sides(bucket.height, bucket.width);
  const Size wanted = padded_size(resized_size(size, bounds), info.divisor);
  if (tell_)
    tell_("an image of " + sides(size.height, size.width) + " pixels fits none of the sizes that " +
          manifest.network + " was exported at (" + known +
          "): such images are resized further. Export it with " + "--input-size " +
          sides(wanted.height, wanted.width) + " as well, and they are not");
  return choice.bucket;
}

void Detector::warm_up(const ImageView& image) {
  require_pixels(image);
  const std::size_t bucket = bucket_of(image, bounds_of(nullptr));
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (warm_[bucket]) return;
    warm_[bucket] = true;
  }
  Session& session = session_of(bucket);
  const Session::Lease lease(session);
  const std::vector<std::size_t>& inputs = session.plan().inputs;
  (*lease).detection()->prepare(image, bounds_of(nullptr),
                                static_cast<float*>((*lease).writable_row(inputs[0], 0)),
                                static_cast<float*>((*lease).writable_row(inputs[1], 0)));
  session.timed_run(*lease, 1);
}

void Detector::run(Group& group, dyndeploy_detections* results) {
  const std::size_t rows = group.items.size();
  const double ms = group.session.timed_run(*group.lease, rows) / static_cast<double>(rows);
  for (std::size_t row = 0; row < rows; ++row) {
    const Group::Item& item = group.items[row];
    report(group.session, *group.lease, row, item.placement, ms, item.ms, results[item.place]);
  }
}

Detector::Target Detector::target(const ImageView& image, const std::int32_t* size) {
  const Bounds bounds = bounds_of(size);
  require_pixels(image);
  const std::size_t bucket = bucket_of(image, bounds);
  return {bucket, session_of(bucket), bounds};
}

void Detector::report(Session& session, Lane& lane, std::size_t row, const Placement& placement, double ms,
                      double host_ms, dyndeploy_detections& result) {
  const Manifest& manifest = session.bundle().manifest;
  const Clock::time_point start = Clock::now();
  Found& found = found_of(result);
  lane.detection()->decode(session.detector_row(lane, row), placement, found);
  result.host_ms = host_ms + milliseconds(start);
  result.ms = ms;
  result.found = found.detections.data();
  result.count = found.detections.size();
  result.height = static_cast<std::int32_t>(placement.image.height);
  result.width = static_cast<std::int32_t>(placement.image.width);
  result.input_height = static_cast<std::int32_t>(manifest.height);
  result.input_width = static_cast<std::int32_t>(manifest.width);
  result.resized_height = static_cast<std::int32_t>(placement.resized.height);
  result.resized_width = static_cast<std::int32_t>(placement.resized.width);
  session.mask_rates(lane, row);
  result.rates_count = lane.rates().size();
  if (result.rates)
    std::copy_n(lane.rates().begin(), std::min(result.rates_room, result.rates_count), result.rates);
  own_.statistics().add(ms, result.host_ms, 0, lane.rates().data());
}

template <class Get>
void Detector::detect_each(Get get, std::size_t count, const std::int32_t* size,
                           dyndeploy_detections* results) {
  check_detections(results, count);
  const Bounds bounds = bounds_of(size);
  std::vector<std::unique_ptr<Group>> groups;
  for (std::size_t i = 0; i < count; ++i) {
    const ImageView image = get(i);
    require_pixels(image);
    const std::size_t bucket = bucket_of(image, bounds);
    auto known = std::find_if(groups.begin(), groups.end(), [bucket](const std::unique_ptr<Group>& group) {
      return group->bucket == bucket;
    });
    if (known == groups.end())
      known = groups.insert(known, std::make_unique<Group>(bucket, session_of(bucket)));
    const Clock::time_point start = Clock::now();
    Group& group = **known;
    Lane& lane = *group.lease;
    const std::vector<std::size_t>& inputs = group.session.plan().inputs;
    const std::size_t row = group.items.size();
    const Placement placement =
        lane.detection()->prepare(image, bounds, static_cast<float*>(lane.writable_row(inputs[0], row)),
                                  static_cast<float*>(lane.writable_row(inputs[1], row)));
    group.items.push_back({i, placement, milliseconds(start)});
    if (group.items.size() < group.session.batch()) continue;
    run(group, results);
    groups.erase(known);
  }
  for (const std::unique_ptr<Group>& group : groups) run(*group, results);
}

void Detector::detect_images(const dyndeploy_image* images, std::size_t count, const std::int32_t* size,
                             dyndeploy_detections* results) {
  detect_each(
      [images](std::size_t index) -> ImageView {
        const dyndeploy_image& image = images[index];
        return {image.pixels, image.height, image.width, image.stride};
      },
      count, size, results);
}

void Detector::detect_files(const char* const* paths, std::size_t count, const std::int32_t* size,
                            dyndeploy_detections* results) {
  Image image;
  detect_each(
      [&](std::size_t index) {
        image = read_image(paths[index]);
        return image.view();
      },
      count, size, results);
}

}  // namespace runtime
}  // namespace dyndeploy
