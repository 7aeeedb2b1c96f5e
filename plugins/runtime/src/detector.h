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
void free_detections(dyndeploy_detections& result);

}  // namespace runtime
}  // namespace dyndeploy
