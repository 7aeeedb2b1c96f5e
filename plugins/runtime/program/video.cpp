#include "video.h"

#include <dlfcn.h>

#include <algorithm>
#include <cctype>
#include <chrono>

#include "error.h"
#include "files.h"
#include "gstreamer_abi.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr const char* kInstall =
    "Install GStreamer (apt install gstreamer1.0-plugins-base gstreamer1.0-plugins-good), or give frames on "
    "stdin with "
    "--frames";
constexpr const char* kCsi = "csi://";
constexpr const char* kV4l2 = "v4l2://";
constexpr const char* kPipeline = "gst://";
constexpr const char* kEndings[] = {".3gp",   ".avi", ".flv", ".h264", ".h265", ".m4v",
                                    ".mjpeg", ".mkv", ".mov", ".mp4",  ".mpeg", ".mpg",
                                    ".ogg",   ".ogv", ".ts",  ".webm", ".wmv"};
// A camera gives its first frame within some seconds.
constexpr std::chrono::seconds kPatience(20);

bool begins(const std::string& text, const std::string& with) {
  return text.compare(0, with.size(), with) == 0;
}

bool is_live(const std::string& source) { return begins(source, kCsi) || begins(source, kV4l2); }

std::string one_line(std::string text) {
  for (char& c : text)
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';
  while (!text.empty() && (text.back() == ' ' || text.back() == '.')) text.pop_back();
  return text;
}

template <class Function>
void find(void* library, const std::string& name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name.c_str()));
  if (!function) fail(DYNDEPLOY_BACKEND, "This GStreamer has no " + name + ". " + kInstall + ".");
}

gst::Functions loaded() {
  // Named by what they are the first to bring along, so that one call opens all of them.
  void* core = dlopen("libgstreamer-1.0.so.0", RTLD_NOW | RTLD_GLOBAL);
  void* app = core ? dlopen("libgstapp-1.0.so.0", RTLD_NOW | RTLD_GLOBAL) : nullptr;
  void* glib = app ? dlopen("libglib-2.0.so.0", RTLD_NOW | RTLD_GLOBAL) : nullptr;
  if (!glib)
    fail(DYNDEPLOY_BACKEND,
         std::string("Videos and cameras are read by GStreamer, which is not here. ") + kInstall + ".");
  gst::Functions f{};
  find(core, "gst_init_check", f.init_check);
  find(core, "gst_parse_launch", f.parse_launch);
  find(core, "gst_element_factory_find", f.element_factory_find);
  find(core, "gst_bin_get_by_name", f.bin_get_by_name);
  find(core, "gst_element_set_state", f.element_set_state);
  find(core, "gst_element_get_bus", f.element_get_bus);
  find(core, "gst_bus_pop_filtered", f.bus_pop_filtered);
  find(core, "gst_message_parse_error", f.message_parse_error);
  find(core, "gst_mini_object_unref", f.mini_object_unref);
  find(core, "gst_object_unref", f.object_unref);
  find(core, "gst_sample_get_buffer", f.sample_get_buffer);
  find(core, "gst_sample_get_caps", f.sample_get_caps);
  find(core, "gst_caps_get_structure", f.caps_get_structure);
  find(core, "gst_structure_get_int", f.structure_get_int);
  find(core, "gst_buffer_map", f.buffer_map);
  find(core, "gst_buffer_unmap", f.buffer_unmap);
  find(app, "gst_app_sink_try_pull_sample", f.app_sink_try_pull_sample);
  find(app, "gst_app_sink_is_eos", f.app_sink_is_eos);
  find(glib, "g_error_free", f.g_error_free);
  find(glib, "g_free", f.g_free);
  return f;
}

std::string taken(const gst::Functions& functions, gst::GError* error) {
  const std::string text = error && error->message ? one_line(error->message) : "it gives no reason";
  if (error) functions.g_error_free(error);
  return text;
}

// As the grammar of pipelines takes a value.
std::string in_quotes(const std::string& value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + "\"";
}

int sensor_of(const std::string& source) {
  const std::string number = source.substr(std::string(kCsi).size());
  const bool digits = !number.empty() && number.size() < 3 &&
                      std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!digits)
    fail(DYNDEPLOY_USAGE, "A CSI camera is csi:// with its number, such as csi://0, not '" + source + "'.");
  return std::stoi(number);
}

// On a Jetson frames lie in memory of their own, which only this element reads; it takes the usual one, too.
std::string converted(const gst::Functions& functions) {
  std::string text;
  if (void* found = functions.element_factory_find("nvvidconv")) {
    functions.object_unref(found);
    text = "nvvidconv ! video/x-raw,format=BGRx ! ";
  }
  return text + "videoconvert ! video/x-raw,format=RGB";
}

std::string described(const gst::Functions& functions, const std::string& source) {
  std::string text;
  if (begins(source, kCsi)) {
    text = "nvarguscamerasrc sensor-id=" + std::to_string(sensor_of(source)) +
           " ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1";
  } else if (begins(source, kV4l2)) {
    const std::string device = source.substr(std::string(kV4l2).size());
    if (device.empty() || device[0] != '/')
      fail(DYNDEPLOY_USAGE,
           "A camera is v4l2:// with its device, such as v4l2:///dev/video0, not '" + source + "'.");
    text = "v4l2src device=" + in_quotes(device) + " ! decodebin";
  } else if (begins(source, kPipeline)) {
    text = source.substr(std::string(kPipeline).size());
  } else {
    text = "filesrc location=" + in_quotes(source) + " ! decodebin";
  }
  // Of a camera the newest frame; of a video every one.
  const char* kept = is_live(source) ? "max-buffers=1 drop=true" : "max-buffers=2";
  return text + " ! " + converted(functions) + " ! appsink name=frames sync=false " + kept;
}

}  // namespace

bool is_video(const std::string& argument) {
  if (is_live(argument) || begins(argument, kPipeline)) return true;
  std::string lower = argument;
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::any_of(std::begin(kEndings), std::end(kEndings), [&](const std::string& ending) {
    return lower.size() > ending.size() &&
           lower.compare(lower.size() - ending.size(), ending.size(), ending) == 0;
  });
}

struct Video::State {
  std::string source;
  gst::Functions functions{};
  gst::Element *pipeline = nullptr, *sink = nullptr;
  gst::Bus* bus = nullptr;
  gst::Sample* sample = nullptr;
  gst::MapInfo map{};
  bool mapped = false;
  long frames = 0;

  ~State() {
    drop();
    // Stopped before it is freed: a camera would stay taken.
    if (pipeline) functions.element_set_state(pipeline, gst::kStateNull);
    if (bus) functions.object_unref(bus);
    if (sink) functions.object_unref(sink);
    if (pipeline) functions.object_unref(pipeline);
  }

  void drop() {
    if (mapped) functions.buffer_unmap(functions.sample_get_buffer(sample), &map);
    mapped = false;
    if (sample) functions.mini_object_unref(sample);
    sample = nullptr;
  }

  [[noreturn]] void broken(const std::string& why) const {
    const std::string what = is_live(source) ? "The camera " : "The video ";
    const std::string when =
        frames ? " broke off after " + std::to_string(frames) + " frames: " : " cannot be read: ";
    fail(DYNDEPLOY_INPUT, what + source + when + why + ".");
  }

  // Throws where the pipeline has told an error.
  void look() const {
    gst::Message* message = functions.bus_pop_filtered(bus, gst::kMessageError);
    if (!message) return;
    gst::GError* error = nullptr;
    char* details = nullptr;
    functions.message_parse_error(message, &error, &details);
    const std::string why = taken(functions, error);
    functions.g_free(details);
    functions.mini_object_unref(message);
    broken(why);
  }
};

Video::Video(const std::string& source) : state_(new State) {
  State& state = *state_;
  state.source = source;
  if (!is_live(source) && !begins(source, kPipeline) && !is_file(source))
    fail(DYNDEPLOY_INPUT, "Cannot read " + source + ": there is no such file.");
  state.functions = loaded();
  const gst::Functions& f = state.functions;
  gst::GError* error = nullptr;
  if (!f.init_check(nullptr, nullptr, &error))
    fail(DYNDEPLOY_BACKEND, "GStreamer cannot start: " + taken(f, error) + ".");
  const std::string text = described(f, source);
  state.pipeline = f.parse_launch(text.c_str(), &error);
  if (error) {
    const std::string why = taken(f, error);
    if (begins(source, kPipeline))
      fail(DYNDEPLOY_USAGE, "GStreamer does not take " + source + ": " + why + ".");
    const std::string advice =
        begins(source, kCsi) ? "It comes with JetPack (nvidia-l4t-gstreamer)" : kInstall;
    fail(DYNDEPLOY_BACKEND, "GStreamer cannot read " + source + ": " + why + ". " + advice + ".");
  }
  state.sink = f.bin_get_by_name(state.pipeline, "frames");
  state.bus = f.element_get_bus(state.pipeline);
  if (f.element_set_state(state.pipeline, gst::kStatePlaying) == gst::kStateChangeFailure) {
    state.look();
    state.broken("it cannot be started");
  }
}

Video::~Video() = default;

bool Video::next(dyndeploy_image& frame, const volatile bool& stop) {
  State& state = *state_;
  const gst::Functions& f = state.functions;
  state.drop();
  const auto until = std::chrono::steady_clock::now() + kPatience;
  while (!(state.sample = f.app_sink_try_pull_sample(state.sink, 100 * gst::kMillisecond))) {
    state.look();
    if (stop) return false;
    if (f.app_sink_is_eos(state.sink)) {
      if (!state.frames) state.broken("it holds no frames");
      if (is_live(state.source)) state.broken("it gives no more frames");
      return false;
    }
    if (std::chrono::steady_clock::now() > until)
      state.broken("no frame came within " + std::to_string(kPatience.count()) + " seconds");
  }
  if (stop) return false;
  int width = 0, height = 0;
  const gst::Structure* format = f.caps_get_structure(f.sample_get_caps(state.sample), 0);
  f.structure_get_int(format, "width", &width);
  f.structure_get_int(format, "height", &height);
  gst::Buffer* buffer = f.sample_get_buffer(state.sample);
  state.mapped = buffer && f.buffer_map(buffer, &state.map, gst::kMapRead);
  // Rows are filled up to 4 bytes.
  const std::size_t stride = (3 * static_cast<std::size_t>(std::max(width, 0)) + 3) / 4 * 4;
  if (width < 1 || height < 1 || !state.mapped ||
      state.map.size < stride * static_cast<std::size_t>(height - 1) + 3 * static_cast<std::size_t>(width))
    state.broken("a frame is not as large as it says");
  ++state.frames;
  frame = {state.map.data, height, width, static_cast<std::int64_t>(stride)};
  return true;
}

}  // namespace runtime
}  // namespace dyndeploy
