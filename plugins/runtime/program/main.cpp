// dyndeploy-run: a bundle on images, without Python. Prints what `dyndeploy run` prints.

#include <getopt.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "decode.h"
#include "error.h"
#include "files.h"
#include "json.h"
#include "session.h"
#include "verify.h"

namespace {

using namespace dyndeploy::runtime;

const char kUsage[] =
    "usage: dyndeploy-run BUNDLE [IMAGE|FOLDER ...] [options]\n"
    "\n"
    "Runs images through a bundle that 'dyndeploy export' wrote: class and confidence, time, the exit taken "
    "or the\n"
    "masks' rates.\n"
    "\n"
    "  --json               one JSON object a line, with the fields of 'dyndeploy run --json'\n"
    "  --repeat N           run every image N times; ms is the mean (default: 1)\n"
    "  --limit N            at most so many images\n"
    "  --verify             check every checksum, and the results on the reference inputs against PyTorch's\n"
    "  --info               print what was opened, as JSON\n"
    "  --statistics         print times, rates and exits over all images at the end, as JSON on stderr\n"
    "  --threads N          threads that compute (default: 1)\n"
    "  --thresholds A,B,..  least confidence of every exit but the last (default: the bundle's)\n"
    "  --native WHAT        operator library: auto, off or its path (default: auto)\n"
    "  --onnxruntime PATH   libonnxruntime.so, or the folder that holds it (default: looked for)\n"
    "  -h, --help           this text\n";

struct Arguments {
  std::string bundle;
  std::vector<std::string> images;
  Options options;
  bool json = false, verify = false, info = false, statistics = false;
  long repeat = 1, limit = 0;
};

[[noreturn]] void usage(const std::string& what) {
  fail(DYNDEPLOY_USAGE, what + " 'dyndeploy-run --help' explains.");
}

long whole(const char* name, const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (!*text || *end || value < 1 || value > 1000000000)
    usage(std::string(name) + " takes a whole number of at least 1, not '" + text + "'.");
  return value;
}

std::vector<double> numbers(const std::string& text) {
  std::vector<double> values;
  for (std::size_t start = 0; start <= text.size();) {
    const std::size_t end = std::min(text.find(',', start), text.size());
    const std::string part = text.substr(start, end - start);
    char* rest = nullptr;
    values.push_back(std::strtod(part.c_str(), &rest));
    if (part.empty() || *rest)
      usage("--thresholds takes numbers with commas between them, not '" + text + "'.");
    start = end + 1;
  }
  return values;
}

// Nothing for --help, which has been printed.
std::unique_ptr<Arguments> parse(int count, char** values) {
  enum {
    kJson = 256,
    kRepeat,
    kLimit,
    kVerify,
    kInfo,
    kStatistics,
    kThreads,
    kThresholds,
    kNative,
    kOnnxruntime
  };
  static const option kOptions[] = {{"json", no_argument, nullptr, kJson},
                                    {"repeat", required_argument, nullptr, kRepeat},
                                    {"limit", required_argument, nullptr, kLimit},
                                    {"verify", no_argument, nullptr, kVerify},
                                    {"info", no_argument, nullptr, kInfo},
                                    {"statistics", no_argument, nullptr, kStatistics},
                                    {"threads", required_argument, nullptr, kThreads},
                                    {"thresholds", required_argument, nullptr, kThresholds},
                                    {"native", required_argument, nullptr, kNative},
                                    {"onnxruntime", required_argument, nullptr, kOnnxruntime},
                                    {"help", no_argument, nullptr, 'h'},
                                    {nullptr, 0, nullptr, 0}};
  auto found = std::make_unique<Arguments>();
  opterr = 0;
  for (int key; (key = getopt_long(count, values, "h", kOptions, nullptr)) != -1;) {
    switch (key) {
      case kJson:
        found->json = true;
        break;
      case kRepeat:
        found->repeat = whole("--repeat", optarg);
        break;
      case kLimit:
        found->limit = whole("--limit", optarg);
        break;
      case kVerify:
        found->verify = true;
        break;
      case kInfo:
        found->info = true;
        break;
      case kStatistics:
        found->statistics = true;
        break;
      case kThreads:
        found->options.threads = static_cast<int>(whole("--threads", optarg));
        break;
      case kThresholds:
        found->options.thresholds = numbers(optarg);
        break;
      case kNative:
        found->options.native = optarg;
        break;
      case kOnnxruntime:
        found->options.onnxruntime = optarg;
        break;
      case 'h':
        std::fputs(kUsage, stdout);
        return nullptr;
      default:
        usage(std::string("'") + values[optind - 1] + "' is no option, or lacks its value.");
    }
  }
  if (optind == count) usage("Give the folder of a bundle.");
  found->bundle = values[optind];
  found->images.assign(values + optind + 1, values + count);
  if (found->images.empty() && !found->verify && !found->info) usage("Give an image or a folder of images.");
  return found;
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
    std::printf("%s, \"preprocessing_ms\": %s}\n", line.c_str(), number(result.preprocessing_ms).c_str());
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
  const std::unique_ptr<Session> session = Session::open(arguments->bundle, arguments->options);
  if (arguments->info) std::printf("%s\n", session->info().c_str());
  if (arguments->verify) std::fprintf(stderr, "dyndeploy-run: verified: %s\n", verify(*session).c_str());
  if (arguments->images.empty()) return 0;
  const std::size_t failed = Program(*arguments, *session).run();
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
