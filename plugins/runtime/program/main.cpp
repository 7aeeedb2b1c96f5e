// dyndeploy-run: a bundle on images, without Python. Prints what `dyndeploy run` prints.

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "arguments.h"
#include "decode.h"
#include "detections.h"
#include "detector.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "session.h"
#include "stats.h"
#include "verify.h"
#include "video.h"

namespace {

using namespace dyndeploy::runtime;

// Ctrl-C ends a camera with its summary, and gives the camera back.
volatile bool stopped = false;

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

std::vector<std::string> paths_of(const Arguments& arguments) {
  std::vector<std::string> paths;
  for (const std::string& given : arguments.images) {
    if (!is_folder(given)) {
      paths.push_back(given);
      continue;
    }
    std::vector<std::string> inside;
    try {
      inside = files_below(given, image_endings());
    } catch (const std::runtime_error& error) {
      fail(DYNDEPLOY_INPUT, error.what());
    }
    if (inside.empty())
      fail(DYNDEPLOY_INPUT, "The folder " + given + " holds no images. Give one with JPEG or PNG files.");
    paths.insert(paths.end(), inside.begin(), inside.end());
  }
  if (arguments.limit && paths.size() > static_cast<std::size_t>(arguments.limit))
    paths.resize(static_cast<std::size_t>(arguments.limit));
  return paths;
}

// What may stand in a terminal: control characters of file and class names are replaced.
std::string printable(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return text;
}

struct Found {
  dyndeploy_result result;          // of a detector only the times
  dyndeploy_detections detections;  // until the next run
  std::vector<float> rates;
  std::vector<double> ms;  // of every repetition
};

// What is run: pixels that live elsewhere, what they are called, and what they cost before.
struct Picture {
  dyndeploy_image view;
  std::string name;
  double decoding_ms;
  double capture_ms;  // waiting for the frame; below 0: it is a file
  long frame;         // its number, from 0; below 0: it is a file
};

dyndeploy_image view_of(const Image& image) {
  return {image.pixels.data(), static_cast<std::int32_t>(image.height),
          static_cast<std::int32_t>(image.width), 3 * image.width};
}

class Program {
 public:
  // stats: where failures are counted, or null.
  Program(const Arguments& arguments, Session& session, Stats* stats)
      : arguments_(arguments),
        session_(session),
        stats_(stats),
        wanted_(wanted_of(arguments, session.bundle().manifest)),
        detects_(session.bundle().manifest.has_detection),
        runtime_(arguments.json ? session.runtime_json(arguments.options.runtime) : std::string()) {}

  ~Program() {
    for (dyndeploy_detections& result : detections_) free_detections(result);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Returns how many images failed.
  std::size_t run() {
    const std::vector<std::string> paths = paths_of(arguments_);
    const std::size_t batch = session_.batch();
    for (std::size_t start = 0; start < paths.size(); start += batch)
      run_some({paths.begin() + static_cast<std::ptrdiff_t>(start),
                paths.begin() + static_cast<std::ptrdiff_t>(std::min(paths.size(), start + batch))});
    if (failed_) std::fprintf(stderr, "dyndeploy-run: %zu of %zu images failed.\n", failed_, paths.size());
    return failed_;
  }

  // Frames of a video or camera; returns how many failed. A source that breaks off is an error, after the
  // results.
  std::size_t run_video(const std::string& source) {
    std::signal(SIGINT, [](int) { stopped = true; });
    std::signal(SIGTERM, [](int) { stopped = true; });
    Video video(source);
    begin_frames();
    dyndeploy_image frame{};
    while (!enough_frames() && next_frame([&] { return video.next(frame, stopped); })) run_frame(frame);
    end_frames();
    return failed_;
  }

  // Frames from stdin until it ends; returns how many failed. One that is cut off is an error.
  std::size_t run_frames() {
    Image frame;
    frame.height = arguments_.frame_height;
    frame.width = arguments_.frame_width;
    frame.pixels.resize(static_cast<std::size_t>(3) * frame.height * frame.width);
    begin_frames();
    const auto read = [&] {
      const std::size_t got = std::fread(frame.pixels.data(), 1, frame.pixels.size(), stdin);
      if (got == 0 && !std::ferror(stdin)) return false;
      if (got < frame.pixels.size())
        fail(DYNDEPLOY_INPUT, "The stream ended within frame " + std::to_string(frames_) + ": " +
                                  std::to_string(got) + " of " + std::to_string(frame.pixels.size()) +
                                  " bytes came. Check --frames HxW.");
      return true;
    };
    while (!enough_frames() && next_frame(read)) run_frame(view_of(frame));
    if (!frames_) fail(DYNDEPLOY_INPUT, "No frame came on stdin: the camera or the video gave none.");
    end_frames();
    return failed_;
  }

 private:
  bool enough_frames() const { return stopped || (arguments_.limit && frames_ >= arguments_.limit); }

  void begin_frames() { start_ = std::chrono::steady_clock::now(); }

  // What was run until a source broke off is told all the same.
  template <class Read>
  bool next_frame(Read read) {
    const auto before = std::chrono::steady_clock::now();
    try {
      const bool more = read();
      captured_ = milliseconds_since(before);
      return more;
    } catch (const Error&) {
      end_frames();
      throw;
    }
  }

  void run_frame(const dyndeploy_image& frame) {
    run_pictures({{frame, "frame " + std::to_string(frames_), 0, captured_, frames_}});
    ++frames_;
    capture_ms_ += captured_;
  }

  void end_frames() const {
    if (!frames_) return;
    const double seconds = milliseconds_since(start_) / 1e3, count = static_cast<double>(frames_);
    std::fprintf(stderr,
                 "dyndeploy-run: %ld frames in %.2f s, %.1f a second with capture; a frame: %.2f ms of "
                 "waiting for it, "
                 "%.2f of preprocessing, %.2f of the network.\n",
                 frames_, seconds, count / seconds, capture_ms_ / count, preprocessing_ms_ / count,
                 network_ms_ / count);
  }

  void run_some(const std::vector<std::string>& paths) {
    std::vector<Image> images;
    std::vector<Picture> pictures;
    images.reserve(paths.size());  // pictures point into them
    for (const std::string& path : paths) {
      const auto start = std::chrono::steady_clock::now();
      try {
        images.push_back(read_image(path));
        pictures.push_back({view_of(images.back()), path, milliseconds_since(start), -1, -1});
      } catch (const Error& error) {
        if (error.code() == DYNDEPLOY_USAGE) throw;
        // The order of the images stays that of the results.
        run_pictures(pictures);
        pictures.clear();
        report_failure(path, error.what());
      }
    }
    run_pictures(pictures);
  }

  void run_pictures(const std::vector<Picture>& pictures) {
    if (pictures.empty()) return;
    std::vector<Found> found(pictures.size());
    try {
      run_repeated(pictures, found);
    } catch (const Error& error) {
      if (error.code() == DYNDEPLOY_USAGE) throw;
      if (pictures.size() == 1) return report_failure(pictures[0].name, error.what());
      // One image may have spoilt the others' batch.
      for (const Picture& picture : pictures) run_pictures({picture});
      return;
    }
    for (std::size_t i = 0; i < pictures.size(); ++i) {
      found[i].result.preprocessing_ms += pictures[i].decoding_ms;
      preprocessing_ms_ += found[i].result.preprocessing_ms;
      network_ms_ += found[i].result.ms;
      report(pictures[i], found[i]);
    }
  }

  void run_repeated(const std::vector<Picture>& pictures, std::vector<Found>& found) {
    std::vector<dyndeploy_image> views;
    for (std::size_t i = 0; i < pictures.size(); ++i) {
      views.push_back(pictures[i].view);
      found[i].rates.resize(session_.plan().masks.size());
    }
    if (detects_) {
      detect(views, found);
    } else {
      classify(views, found);
    }
    for (Found& one : found) {
      one.result.ms =
          std::accumulate(one.ms.begin(), one.ms.end(), 0.0) / static_cast<double>(arguments_.repeat);
      std::sort(one.ms.begin(), one.ms.end());
    }
  }

  void classify(const std::vector<dyndeploy_image>& views, std::vector<Found>& found) {
    std::vector<dyndeploy_result> results(views.size());
    for (std::size_t i = 0; i < views.size(); ++i) {
      results[i] = dyndeploy_result{};
      results[i].size = sizeof(dyndeploy_result);
      results[i].rates = found[i].rates.data();
      results[i].rates_room = found[i].rates.size();
    }
    if (!warm_) {
      // The very first run allocates memory: it is not timed.
      session_.run_images(views.data(), views.size(), results.data());
      session_.statistics().reset();
      warm_ = true;
    }
    for (long k = 0; k < arguments_.repeat; ++k) {
      session_.run_images(views.data(), views.size(), results.data());
      for (std::size_t i = 0; i < views.size(); ++i) found[i].ms.push_back(results[i].ms);
    }
    for (std::size_t i = 0; i < views.size(); ++i) found[i].result = results[i];
  }

  void detect(const std::vector<dyndeploy_image>& views, std::vector<Found>& found) {
    Detector& detector = session_.detector();
    while (detections_.size() < views.size()) {
      detections_.emplace_back();
      detections_.back().size = sizeof(dyndeploy_detections);
    }
    for (std::size_t i = 0; i < views.size(); ++i) {
      // The first run of each size allocates memory, too.
      detector.warm_up({views[i].pixels, views[i].height, views[i].width, views[i].stride});
      detections_[i].rates = found[i].rates.data();
      detections_[i].rates_room = found[i].rates.size();
    }
    for (long k = 0; k < arguments_.repeat; ++k) {
      detector.detect_images(views.data(), views.size(), nullptr, detections_.data());
      for (std::size_t i = 0; i < views.size(); ++i) found[i].ms.push_back(detections_[i].ms);
    }
    for (std::size_t i = 0; i < views.size(); ++i) {
      found[i].detections = detections_[i];
      found[i].result = dyndeploy_result{};
      found[i].result.preprocessing_ms = detections_[i].host_ms;
    }
  }

  void report_failure(const std::string& path, const std::string& why) {
    ++failed_;
    if (stats_) stats_->image_failed();
    if (arguments_.json) {
      std::printf("{\"image\": %s, \"error\": %s}\n", quoted(path).c_str(), quoted(why).c_str());
      std::fflush(stdout);
    } else {
      std::fprintf(stderr, "dyndeploy-run: %s\n", printable(why).c_str());
    }
  }

  void report(const Picture& picture, const Found& found) {
    if (arguments_.json) {
      report_json(picture, found);
    } else if (detects_) {
      dyndeploy_detections told = found.detections;
      told.ms = found.result.ms;
      const std::string text = detections_text(printable(picture.name), told, wanted_, mean_rate(found));
      std::fputs(text.c_str(), stdout);
    } else {
      report_line(picture.name, found);
    }
    std::fflush(stdout);
  }

  void report_json(const Picture& picture, const Found& found) const {
    const dyndeploy_result& result = found.result;
    std::string line = "{\"image\": " + quoted(picture.name);
    if (result.task == DYNDEPLOY_TASK_CLASSIFICATION)
      line += ", \"label\": " + std::to_string(result.classification.label) +
              ", \"confidence\": " + number(static_cast<double>(result.classification.confidence));
    if (detects_) line += ", " + detections_json(found.detections, wanted_);
    line += ", \"ms\": " + number(result.ms);
    if (detects_)
      line += ", \"host_ms\": " + number(found.detections.host_ms) + ", \"input_size\": [" +
              std::to_string(found.detections.input_height) + ", " +
              std::to_string(found.detections.input_width) + "]";
    line += ", \"exit\": " + (result.exit ? std::to_string(result.exit) : "null") + ", \"rates\": {";
    const std::vector<MaskInfo>& masks = session_.bundle().manifest.masks;
    for (std::size_t i = 0; i < found.rates.size(); ++i)
      line += (i ? ", " : "") + quoted(masks[i].name) + ": " + number(static_cast<double>(found.rates[i]));
    line += "}";
    if (result.task == DYNDEPLOY_TASK_CLASSIFICATION)
      line +=
          ", \"class_name\": " +
          (result.classification.class_name ? quoted(result.classification.class_name) : std::string("null"));
    line += ", \"operators\": " + session_.operators_json() + ", \"runtime\": " + runtime_;
    if (!detects_) line += ", \"preprocessing_ms\": " + number(result.preprocessing_ms);
    if (detects_ && picture.frame >= 0) line += ", \"frame\": " + std::to_string(picture.frame);
    if (picture.capture_ms >= 0) line += ", \"capture_ms\": " + number(picture.capture_ms);
    if (arguments_.repeat > 1) line += ", \"repeats\": " + repeats_json(found.ms);
    std::printf("%s}\n", line.c_str());
  }

  // Of sorted times.
  static std::string repeats_json(const std::vector<double>& ms) {
    const auto at = [&](std::size_t percent) { return number(ms[(ms.size() - 1) * percent / 100]); };
    return "{\"count\": " + std::to_string(ms.size()) + ", \"min_ms\": " + at(0) +
           ", \"median_ms\": " + at(50) + ", \"p90_ms\": " + at(90) + ", \"max_ms\": " + at(100) + "}";
  }

  // Below 0 for a network without masks.
  static double mean_rate(const Found& found) {
    if (found.rates.empty()) return -1;
    return std::accumulate(found.rates.begin(), found.rates.end(), 0.0) /
           static_cast<double>(found.rates.size());
  }

  void report_line(const std::string& path, const Found& found) {
    const dyndeploy_result& result = found.result;
    char decision[32] = "-";
    if (result.exit) {
      std::snprintf(decision, sizeof decision, "%d", result.exit);
    } else if (!found.rates.empty()) {
      std::snprintf(decision, sizeof decision, "%.3f", mean_rate(found));
    }
    if (!titled_)
      std::printf("%-32s  confidence  %9s        ms  image\n", "class", result.exit ? "exit" : "mean rate");
    titled_ = true;
    if (result.task != DYNDEPLOY_TASK_CLASSIFICATION) {
      std::printf("%-32s  %10s  %9s  %8.2f  %s\n", "-", "-", decision, result.ms, printable(path).c_str());
      return;
    }
    const char* name = result.classification.class_name;
    const std::string label = name ? printable(name) : std::to_string(result.classification.label);
    std::printf("%-32s  %10.3f  %9s  %8.2f  %s\n", label.c_str(),
                static_cast<double>(result.classification.confidence), decision, result.ms,
                printable(path).c_str());
  }

  const Arguments& arguments_;
  Session& session_;
  Stats* const stats_;
  const Wanted wanted_;
  const bool detects_;
  std::string runtime_;                           // as JSON
  std::vector<dyndeploy_detections> detections_;  // of a batch, used again
  bool warm_ = false, titled_ = false;
  std::size_t failed_ = 0;
  long frames_ = 0;
  std::chrono::steady_clock::time_point start_;
  double captured_ = 0, capture_ms_ = 0, preprocessing_ms_ = 0, network_ms_ = 0;
};

int run(int count, char** values) {
  const std::unique_ptr<Arguments> arguments = parse(count, values);
  if (!arguments) return 0;
  arguments->options.progress = [](const std::string& line) {
    std::fprintf(stderr, "dyndeploy-run: %s\n", printable(line).c_str());
  };
  const std::unique_ptr<Session> session = Session::open(arguments->bundle, arguments->options);
  if (arguments->info) std::printf("%s\n", session->info().c_str());
  if (arguments->verify) std::fprintf(stderr, "dyndeploy-run: verified: %s\n", verify(*session).c_str());
  std::unique_ptr<Stats> stats;
  if (!arguments->stats.empty())
    stats = std::make_unique<Stats>(*session, arguments->stats, arguments->stats_every);
  Program program(*arguments, *session, stats.get());
  const bool video = arguments->images.size() == 1 && is_video(arguments->images[0]);
  const std::size_t failed = arguments->frame_height ? program.run_frames()
                             : video                 ? program.run_video(arguments->images[0])
                                                     : program.run();
  if (arguments->statistics) std::fprintf(stderr, "%s\n", session->statistics().json().c_str());
  return failed ? 1 : 0;
}

}  // namespace

int main(int count, char** values) {
  try {
    return run(count, values);
  } catch (const Error& error) {
    std::fprintf(stderr, "dyndeploy-run: %s\n", printable(error.what()).c_str());
    return error.code() == DYNDEPLOY_USAGE ? 2 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dyndeploy-run: %s\n", printable(error.what()).c_str());
    return 1;
  }
}
