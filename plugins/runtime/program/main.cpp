// dyndeploy-run: a bundle on images, without Python. Prints what `dyndeploy run` prints.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "arguments.h"
#include "decode.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "session.h"
#include "verify.h"

namespace {

using namespace dyndeploy::runtime;

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
  dyndeploy_result result;
  std::vector<float> rates, values;
};

class Program {
 public:
  Program(const Arguments& arguments, Session& session) : arguments_(arguments), session_(session) {}

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

  // Frames from stdin until it ends; returns how many failed. One that is cut off is an error.
  std::size_t run_frames() {
    const auto start = std::chrono::steady_clock::now();
    std::vector<Image> frame(1);
    frame[0].height = arguments_.frame_height;
    frame[0].width = arguments_.frame_width;
    frame[0].pixels.resize(static_cast<std::size_t>(3) * frame[0].height * frame[0].width);
    long count = 0;
    for (; !arguments_.limit || count < arguments_.limit; ++count) {
      const std::size_t got = std::fread(frame[0].pixels.data(), 1, frame[0].pixels.size(), stdin);
      if (got == 0 && !std::ferror(stdin)) break;
      if (got < frame[0].pixels.size())
        fail(DYNDEPLOY_INPUT, "The stream ended within frame " + std::to_string(count) + ": " +
                                  std::to_string(got) + " of " + std::to_string(frame[0].pixels.size()) +
                                  " bytes came. Check --frames HxW.");
      run_images(frame, {"frame " + std::to_string(count)}, {0});
    }
    if (!count) fail(DYNDEPLOY_INPUT, "No frame came on stdin: the camera or the video gave none.");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::fprintf(stderr, "dyndeploy-run: %ld frames in %.2f s, %.1f a second with capture.\n", count, seconds,
                 static_cast<double>(count) / seconds);
    return failed_;
  }

 private:
  void run_some(const std::vector<std::string>& paths) {
    std::vector<Image> images;
    std::vector<std::string> names;
    std::vector<double> decoding;
    for (const std::string& path : paths) {
      const auto start = std::chrono::steady_clock::now();
      try {
        images.push_back(read_image(path));
        names.push_back(path);
        decoding.push_back(
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
      } catch (const Error& error) {
        if (error.code() == DYNDEPLOY_USAGE) throw;
        // The order of the images stays that of the results.
        run_images(images, names, decoding);
        images.clear(), names.clear(), decoding.clear();
        report_failure(path, error.what());
      }
    }
    run_images(images, names, decoding);
  }

  void run_images(const std::vector<Image>& images, const std::vector<std::string>& names,
                  const std::vector<double>& decoding) {
    if (images.empty()) return;
    std::vector<Found> found(images.size());
    try {
      run_repeated(images, found);
    } catch (const Error& error) {
      if (error.code() == DYNDEPLOY_USAGE) throw;
      if (images.size() == 1) return report_failure(names[0], error.what());
      // One image may have spoilt the others' batch.
      for (std::size_t i = 0; i < images.size(); ++i) run_images({images[i]}, {names[i]}, {decoding[i]});
      return;
    }
    for (std::size_t i = 0; i < images.size(); ++i) {
      found[i].result.preprocessing_ms += decoding[i];
      report(names[i], found[i]);
    }
  }

  void run_repeated(const std::vector<Image>& images, std::vector<Found>& found) {
    std::vector<dyndeploy_image> views;
    std::vector<dyndeploy_result> results(images.size());
    for (std::size_t i = 0; i < images.size(); ++i) {
      views.push_back({images[i].pixels.data(), static_cast<std::int32_t>(images[i].height),
                       static_cast<std::int32_t>(images[i].width), 3 * images[i].width});
      found[i].rates.resize(session_.plan().masks.size());
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
    std::vector<double> ms(images.size());
    for (long k = 0; k < arguments_.repeat; ++k) {
      session_.run_images(views.data(), views.size(), results.data());
      for (std::size_t i = 0; i < images.size(); ++i) ms[i] += results[i].ms;
    }
    for (std::size_t i = 0; i < images.size(); ++i) {
      found[i].result = results[i];
      found[i].result.ms = ms[i] / static_cast<double>(arguments_.repeat);
    }
  }

  void report_failure(const std::string& path, const std::string& why) {
    ++failed_;
    if (arguments_.json) {
      std::printf("{\"image\": %s, \"error\": %s}\n", quoted(path).c_str(), quoted(why).c_str());
      std::fflush(stdout);
    } else {
      std::fprintf(stderr, "dyndeploy-run: %s\n", printable(why).c_str());
    }
  }

  void report(const std::string& path, const Found& found) {
    if (arguments_.json) {
      report_json(path, found);
    } else {
      report_line(path, found);
    }
    std::fflush(stdout);
  }

  void report_json(const std::string& path, const Found& found) const {
    const dyndeploy_result& result = found.result;
    std::string line = "{\"image\": " + quoted(path);
    if (result.task == DYNDEPLOY_TASK_CLASSIFICATION)
      line += ", \"label\": " + std::to_string(result.classification.label) +
              ", \"confidence\": " + number(static_cast<double>(result.classification.confidence));
    line += ", \"ms\": " + number(result.ms) +
            ", \"exit\": " + (result.exit ? std::to_string(result.exit) : "null") + ", \"rates\": {";
    const std::vector<MaskInfo>& masks = session_.bundle().manifest.masks;
    for (std::size_t i = 0; i < found.rates.size(); ++i)
      line += (i ? ", " : "") + quoted(masks[i].name) + ": " + number(static_cast<double>(found.rates[i]));
    line += "}";
    if (result.task == DYNDEPLOY_TASK_CLASSIFICATION)
      line +=
          ", \"class_name\": " +
          (result.classification.class_name ? quoted(result.classification.class_name) : std::string("null"));
    std::printf("%s, \"operators\": %s, \"preprocessing_ms\": %s}\n", line.c_str(),
                session_.operators_json().c_str(), number(result.preprocessing_ms).c_str());
  }

  void report_line(const std::string& path, const Found& found) {
    const dyndeploy_result& result = found.result;
    char decision[32] = "-";
    if (result.exit) {
      std::snprintf(decision, sizeof decision, "%d", result.exit);
    } else if (!found.rates.empty()) {
      const double sum = std::accumulate(found.rates.begin(), found.rates.end(), 0.0);
      std::snprintf(decision, sizeof decision, "%.3f", sum / static_cast<double>(found.rates.size()));
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
  bool warm_ = false, titled_ = false;
  std::size_t failed_ = 0;
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
  Program program(*arguments, *session);
  const std::size_t failed = arguments->frame_height ? program.run_frames() : program.run();
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
