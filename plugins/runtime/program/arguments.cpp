#include "arguments.h"

#include <getopt.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "error.h"
#include "video.h"

namespace dyndeploy {
namespace runtime {
namespace {

const char kUsage[] = R"(usage: dyndeploy-run BUNDLE [IMAGE|FOLDER ...] [options]
       dyndeploy-run BUNDLE VIDEO|csi://0|v4l2:///dev/video0|gst://PIPELINE [options]

Runs images, or the frames of a video or a camera, through a bundle that 'dyndeploy export' wrote: class and
confidence, time, the exit taken or the masks' rates; of a detector boxes, and masks in JSON. Videos and cameras need GStreamer; 'gst://videotestsrc' is a
picture to try it with. Ctrl-C ends a camera.

  --frames HxW         read RGB frames of that size from stdin, as GStreamer's fdsink and ffmpeg's pipes write them
  --json               one JSON object a line, with the fields of 'dyndeploy run --json'
  --score S            a detector's detections from this score on (default: 0.3, and all of them with --json)
  --classes A,B,..     a detector's detections of these classes only
  --repeat N           run every image N times; ms is the mean (default: 1)
  --limit N            at most so many images or frames
  --verify             check every checksum, and the results on the reference inputs against PyTorch's
  --info               print what was opened, as JSON
  --statistics         print times, rates and exits over all images at the end, as JSON on stderr
  --stats FILE|unix:PATH  while it runs, add lines of JSON to a file, or give them to who connects to a socket: images,
                       times, rates, exits, power and temperature, as 'dyndeploy watch' shows them
  --stats-every S      seconds between two of these lines (default: 1)
  --threads N          threads that compute on a CPU (default: 1)
  --thresholds A,B,..  least confidence of every exit but the last (default: the bundle's)
  --runtime NAME       auto, onnxruntime or tensorrt (default: auto: TensorRT where bundle and device have it)
  --tensorrt PATH      libnvinfer or libtensorrt_rtx (default: looked for)
  --plugins PATH       libdyndeploy_tensorrt.so, TensorRT's dynamic operators (default: looked for)
  --native WHAT        ONNX Runtime's dynamic operators: auto, off or a path (default: auto)
  --onnxruntime PATH   libonnxruntime.so, or the folder that holds it (default: looked for)
  -h, --help           this text
)";

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

double seconds(const char* name, const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (!*text || *end || !(value >= 0.05 && value <= 86400))
    usage(std::string(name) + " takes seconds from 0.05 to 86400, not '" + text + "'.");
  return value;
}

double share(const char* name, const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (!*text || *end || !(value >= 0 && value <= 1))
    usage(std::string(name) + " takes a number from 0 to 1, not '" + text + "'.");
  return value;
}

void take_frame_size(const char* text, Arguments& arguments) {
  constexpr int kMostSide = 16384;
  int height = 0, width = 0, end = 0;
  const bool fits =
      std::sscanf(text, "%dx%d%n", &height, &width, &end) == 2 && !text[end] && height > 0 && width > 0;
  if (!fits || height > kMostSide || width > kMostSide)
    usage(std::string("--frames takes HEIGHTxWIDTH in pixels, such as 480x640, not '") + text + "'.");
  arguments.frame_height = height;
  arguments.frame_width = width;
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

}  // namespace

std::unique_ptr<Arguments> parse(int count, char** values) {
  enum {
    kJson = 256,
    kFrames,
    kScore,
    kClasses,
    kRepeat,
    kLimit,
    kVerify,
    kInfo,
    kStatistics,
    kStats,
    kStatsEvery,
    kThreads,
    kThresholds,
    kNative,
    kOnnxruntime,
    kRuntime,
    kTensorrt,
    kPlugins
  };
  static const option kOptions[] = {{"json", no_argument, nullptr, kJson},
                                    {"frames", required_argument, nullptr, kFrames},
                                    {"score", required_argument, nullptr, kScore},
                                    {"classes", required_argument, nullptr, kClasses},
                                    {"repeat", required_argument, nullptr, kRepeat},
                                    {"limit", required_argument, nullptr, kLimit},
                                    {"verify", no_argument, nullptr, kVerify},
                                    {"info", no_argument, nullptr, kInfo},
                                    {"statistics", no_argument, nullptr, kStatistics},
                                    {"stats", required_argument, nullptr, kStats},
                                    {"stats-every", required_argument, nullptr, kStatsEvery},
                                    {"threads", required_argument, nullptr, kThreads},
                                    {"thresholds", required_argument, nullptr, kThresholds},
                                    {"native", required_argument, nullptr, kNative},
                                    {"onnxruntime", required_argument, nullptr, kOnnxruntime},
                                    {"runtime", required_argument, nullptr, kRuntime},
                                    {"tensorrt", required_argument, nullptr, kTensorrt},
                                    {"plugins", required_argument, nullptr, kPlugins},
                                    {"help", no_argument, nullptr, 'h'},
                                    {nullptr, 0, nullptr, 0}};
  auto found = std::make_unique<Arguments>();
  opterr = 0;
  for (int key; (key = getopt_long(count, values, "h", kOptions, nullptr)) != -1;) {
    switch (key) {
      case kFrames:
        take_frame_size(optarg, *found);
        break;
      case kJson:
        found->json = true;
        break;
      case kScore:
        found->score = share("--score", optarg);
        break;
      case kClasses:
        found->classes = optarg;
        found->has_classes = true;
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
      case kStats:
        if (!*optarg) usage("--stats takes a file or unix:PATH.");
        found->stats = optarg;
        break;
      case kStatsEvery:
        found->stats_every = seconds("--stats-every", optarg);
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
      case kRuntime:
        found->options.runtime = optarg;
        break;
      case kTensorrt:
        found->options.tensorrt = optarg;
        break;
      case kPlugins:
        found->options.plugins = optarg;
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
  const bool frames = found->frame_height > 0;
  if (frames && !found->images.empty()) usage("Give images, or --frames, and not both.");
  const bool video = std::any_of(found->images.begin(), found->images.end(), is_video);
  if (video && found->images.size() > 1) usage("Give one video or camera, or images, and not both.");
  if (found->images.empty() && !frames && !found->verify && !found->info)
    usage("Give an image or a folder of images.");
  return found;
}

}  // namespace runtime
}  // namespace dyndeploy
