#include "sensors.h"

#include <dlfcn.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "files.h"

namespace dyndeploy {
namespace runtime {
namespace {

// A file of sysfs, which gives one line; "" where it cannot be read.
std::string line_of(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "re");
  if (!file) return "";
  char text[128] = "";
  const bool read = std::fgets(text, sizeof text, file) != nullptr;
  std::fclose(file);
  std::string line = read ? text : "";
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
  return line;
}

// Whole numbers only: that is what sysfs gives.
bool number_of(const std::string& path, double& value) {
  const std::string line = line_of(path);
  char* end = nullptr;
  errno = 0;
  const long long found = std::strtoll(line.c_str(), &end, 10);
  if (line.empty() || *end || errno) return false;
  value = static_cast<double>(found);
  return true;
}

// What stands between the last of `before` and `after` in the name of a file, as 3 in temp3_input.
std::string between(const std::string& path, const std::string& before, const std::string& after) {
  const std::string name = name_of(path);
  return name.substr(before.size(), name.size() - before.size() - after.size());
}

constexpr double kMilli = 1e-3;

}  // namespace

// NVIDIA's library, declared by us as far as it is used: https://docs.nvidia.com/deploy/nvml-api.
struct Sensors::Cards {
  using Device = void*;
  void* library = nullptr;
  int (*shutdown)() = nullptr;
  int (*power)(Device, unsigned*) = nullptr;                  // in milliwatts
  int (*temperature)(Device, int kind, unsigned*) = nullptr;  // kind 0: of the GPU, in degrees Celsius
  std::vector<Device> devices;

  static Cards* open() {
    auto cards = std::make_unique<Cards>();
    cards->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cards->library) return nullptr;
    const auto find = [&](const char* name) { return dlsym(cards->library, name); };
    const auto start = reinterpret_cast<int (*)()>(find("nvmlInit_v2"));
    const auto count = reinterpret_cast<int (*)(unsigned*)>(find("nvmlDeviceGetCount_v2"));
    const auto at = reinterpret_cast<int (*)(unsigned, Device*)>(find("nvmlDeviceGetHandleByIndex_v2"));
    cards->power = reinterpret_cast<int (*)(Device, unsigned*)>(find("nvmlDeviceGetPowerUsage"));
    cards->temperature = reinterpret_cast<int (*)(Device, int, unsigned*)>(find("nvmlDeviceGetTemperature"));
    const auto shutdown = reinterpret_cast<int (*)()>(find("nvmlShutdown"));
    if (!start || !count || !at || !cards->power || !cards->temperature || !shutdown || start())
      return nullptr;
    cards->shutdown = shutdown;
    unsigned found = 0;
    if (count(&found)) found = 0;
    for (unsigned i = 0; i < found; ++i) {
      Device device = nullptr;
      if (!at(i, &device)) cards->devices.push_back(device);
    }
    return cards.release();
  }

  ~Cards() {
    if (shutdown) shutdown();
    if (library) dlclose(library);
  }
};

Sensors::Sensors(const std::string& root) {
  for (const std::string& folder : matching(root + "/class/hwmon/hwmon[0-9]*")) {
    const std::string chip = line_of(folder + "/name");
    const auto named = [&](const std::string& kind, const std::string& number) {
      const std::string label = line_of(folder + "/" + kind + number + "_label");
      return label.empty() ? chip + " " + kind + number : label;
    };
    for (const char* ending : {"_input", "_average"})
      for (const std::string& path : matching(folder + "/power[0-9]*" + ending))
        add(rails_, {named("power", between(path, "power", ending)), path, "", kMilli});
    for (const std::string& path : matching(folder + "/curr[0-9]*_input")) {
      const std::string number = between(path, "curr", "_input"),
                        voltage = folder + "/in" + number + "_input";
      // Only what somebody has labelled is a rail: chips of mainboards have currents of nothing.
      if (is_file(voltage) && !line_of(folder + "/in" + number + "_label").empty())
        add(rails_, {named("in", number), voltage, path, 1});
    }
    for (const std::string& path : matching(folder + "/temp[0-9]*_input")) {
      const std::string number = between(path, "temp", "_input");
      const std::string label = line_of(folder + "/temp" + number + "_label");
      add(temperatures_, {chip + (label.empty() ? "" : " " + label), path, "", kMilli});
    }
  }
  for (const std::string& path :
       matching(root + "/bus/i2c/drivers/ina3221x/*/iio:device[0-9]*/in_power[0-9]*_input")) {
    const std::string label = line_of(folder_of(path) + "/rail_name_" + between(path, "in_power", "_input"));
    if (!label.empty()) add(rails_, {label, path, "", 1});
  }
  for (const std::string& path : matching(root + "/class/thermal/thermal_zone[0-9]*/temp"))
    add(temperatures_, {line_of(folder_of(path) + "/type"), path, "", kMilli});
  if (root == "/sys") cards_ = Cards::open();
}

Sensors::~Sensors() { delete cards_; }

// The first of equal names stays: a chip that has an average and a momentary value has one rail.
void Sensors::add(std::vector<Source>& sources, Source source) {
  const auto same = [&](const Source& other) { return other.name == source.name; };
  if (std::none_of(sources.begin(), sources.end(), same)) sources.push_back(std::move(source));
}

SensorReading Sensors::read() const {
  SensorReading reading;
  for (const Source& source : rails_) {
    double value = 0, current = 0;
    if (!number_of(source.path, value)) continue;
    if (source.other.empty()) {
      reading.rails_mw.emplace_back(source.name, value * source.scale);
    } else if (number_of(source.other, current)) {
      reading.rails_mw.emplace_back(source.name, value * current * kMilli);
    }
  }
  for (const Source& source : temperatures_) {
    double value = 0;
    if (number_of(source.path, value)) reading.temperatures_c.emplace_back(source.name, value * source.scale);
  }
  for (std::size_t i = 0; cards_ && i < cards_->devices.size(); ++i) {
    const std::string name = "card " + std::to_string(i);
    unsigned value = 0;
    if (!cards_->power(cards_->devices[i], &value)) reading.rails_mw.emplace_back(name, value);
    if (!cards_->temperature(cards_->devices[i], 0, &value)) reading.temperatures_c.emplace_back(name, value);
  }
  return reading;
}

}  // namespace runtime
}  // namespace dyndeploy
