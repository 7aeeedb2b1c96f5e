// A detector on images of any size: each runs in the smallest input that holds it, whose bundle is opened
// when the first image needs it. Several threads may call it at once.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "detection.h"
#include "dyndeploy.h"
#include "session.h"

namespace dyndeploy {
namespace runtime {

class Detector {
 public:
  // `open` opens the session of another bucket's folder; `tell` takes a line for people.
  Detector(Session& own, std::function<std::unique_ptr<Session>(const std::string& folder)> open,
           std::function<void(const std::string& line)> tell);

  // See dyndeploy.h; they throw Error. `size` is the longest and the shortest side, or null.
  void detect_images(const dyndeploy_image* images, std::size_t count, const std::int32_t* size,
                     dyndeploy_detections* results);
  void detect_files(const char* const* paths, std::size_t count, const std::int32_t* size,
                    dyndeploy_detections* results);
  // Which input an image needs, and what its sides are resized to; opens its bundle.
  struct Target {
    std::size_t bucket;
    Session& session;
    Bounds bounds;
  };
  Target target(const ImageView& image, const std::int32_t* size);
  std::size_t buckets() const { return others_.size(); }
  // Write what the network found in a row, count it, and add the time that this takes to `host_ms`.
  void report(Session& session, Lane& lane, std::size_t row, const Placement& placement, double ms,
              double host_ms, dyndeploy_detections& result);
  // Run the input that an image needs once, uncounted, if it never ran.
  void warm_up(const ImageView& image);

 private:
  struct Group;

  template <class Get>
  void detect_each(Get get, std::size_t count, const std::int32_t* size, dyndeploy_detections* results);
  Bounds bounds_of(const std::int32_t* size) const;
  std::size_t bucket_of(const ImageView& image, const Bounds& bounds);
  Session& session_of(std::size_t bucket);
  void run(Group& group, dyndeploy_detections* results);

  Session& own_;
  const std::function<std::unique_ptr<Session>(const std::string&)> open_;
  const std::function<void(const std::string&)> tell_;
  std::mutex mutex_;
  bool told_ = false;
  std::vector<char> warm_;                        // by bucket
  std::vector<std::unique_ptr<Session>> others_;  // by bucket; the first is the own one
};

// The memory behind a result, which is made where there is none.
Found& found_of(dyndeploy_detections& result);
// Throws Error(DYNDEPLOY_USAGE) for structures of another size.
void check_detections(const dyndeploy_detections* results, std::size_t count);
void free_detections(dyndeploy_detections& result);

}  // namespace runtime
}  // namespace dyndeploy
