// Classes of images, or objects in them: example classify|detect BUNDLE IMAGE...
#include <dyndeploy.h>

#include <cstdio>
#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Session = std::unique_ptr<dyndeploy_session, decltype(&dyndeploy_close)>;
using Paths = std::vector<const char*>;

void check(int32_t code) {
  if (code) throw std::runtime_error(dyndeploy_last_error());
}

// A class by its name, or by its number where the bundle holds no names.
std::string called(const char* name, int32_t label) { return name ? name : std::to_string(label); }

void classify(dyndeploy_session* session, const Paths& paths) {
  std::vector<dyndeploy_result> results(paths.size());
  for (dyndeploy_result& result : results) result.size = sizeof result;
  // One call for all: images that are sure leave early, and the later stages run on the rest.
  check(dyndeploy_run_files(session, paths.data(), paths.size(), results.data()));
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const dyndeploy_classification& found = results[i].classification;
    std::printf("%s: %s %.4f, exit %d, %.2f ms\n", paths[i], called(found.class_name, found.label).c_str(),
                static_cast<double>(found.confidence), results[i].exit, results[i].ms);
  }
}

void detect(dyndeploy_session* session, const Paths& paths) {
  dyndeploy_detections result{};
  result.size = sizeof result;
  // The library's memory is in it, and is used again for the next image.
  const auto release = [](dyndeploy_detections* held) { dyndeploy_free_detections(held, 1); };
  const std::unique_ptr<dyndeploy_detections, decltype(release)> held(&result, release);
  for (const char* const path : paths) {
    check(dyndeploy_detect_files(session, &path, 1, nullptr, &result));
    std::printf("%s: %zu found, %.2f ms\n", path, result.count, result.ms);
    for (std::size_t i = 0; i < result.count; ++i) {
      const dyndeploy_detection& one = result.found[i];
      std::printf("  %s %.4f at %.1f, %.1f to %.1f, %.1f\n", called(one.class_name, one.label).c_str(),
                  static_cast<double>(one.score), static_cast<double>(one.x1), static_cast<double>(one.y1),
                  static_cast<double>(one.x2), static_cast<double>(one.y2));
    }
  }
}

std::string statistics(dyndeploy_session* session) {
  std::vector<char> text(1);
  std::size_t needed = 0;
  // The first call says how much there is to say.
  dyndeploy_statistics(session, text.data(), text.size(), &needed);
  text.resize(needed);
  check(dyndeploy_statistics(session, text.data(), text.size(), &needed));
  return text.data();
}

}  // namespace

int main(int count, char** values) {
  const std::string task = count > 1 ? values[1] : "";
  if (count < 4 || (task != "classify" && task != "detect")) {
    std::fprintf(stderr, "usage: example classify|detect BUNDLE IMAGE...\n");
    return 2;
  }
  try {
    dyndeploy_session* opened = nullptr;
    check(dyndeploy_open(values[2], nullptr, &opened));
    const Session session(opened, dyndeploy_close);
    const Paths paths(values + 3, values + count);
    (task == "detect" ? detect : classify)(session.get(), paths);
    std::printf("%s\n", statistics(session.get()).c_str());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "example: %s\n", error.what());
    return 1;
  }
}
