// Frames of a video or a camera, through GStreamer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "dyndeploy.h"

namespace dyndeploy {
namespace runtime {

// Whether an argument names a video by its ending, or a source: csi://0, v4l2:///dev/video0, gst://PIPELINE.
bool is_video(const std::string& argument);

class Video {
 public:
  // Throws Error: DYNDEPLOY_BACKEND without GStreamer or one of its plugins, DYNDEPLOY_INPUT for what cannot
  // be read.
  explicit Video(const std::string& source);
  ~Video();
  Video(const Video&) = delete;
  Video& operator=(const Video&) = delete;

  // The next frame, valid until the next call; false at the end, or when `stop` became true. Throws
  // Error(DYNDEPLOY_INPUT) where the source breaks off.
  bool next(dyndeploy_image& frame, const volatile bool& stop);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace runtime
}  // namespace dyndeploy
