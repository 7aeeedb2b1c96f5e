// Power and temperature, as the kernel's sensors and NVIDIA's management library give them.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dyndeploy {
namespace runtime {

// Readings by the name of the rail or the sensor. Which rails together are the whole board, and which sensors
// say nothing, is known to who reads them (dyndeploy/remote/agent.py).
struct SensorReading {
  std::vector<std::pair<std::string, double>> rails_mw;
  std::vector<std::pair<std::string, double>> temperatures_c;
};

class Sensors {
 public:
  // Look for sensors: hwmon's, thermal zones, the INA3221 of a Jetson as L4T before 34 shows it, and cards by
  // libnvidia-ml.so.1. root: where sysfs is; another one has no cards.
  explicit Sensors(const std::string& root = "/sys");
  ~Sensors();
  Sensors(const Sensors&) = delete;
  Sensors& operator=(const Sensors&) = delete;

  // What they say now; one that gives no number is left out.
  SensorReading read() const;

 private:
  struct Source {
    std::string name;
    std::string path;
    std::string
        other;     // of a rail whose power is a product: current in mA, where `path` is the voltage in mV
    double scale;  // of the number in `path`
  };
  struct Cards;

  void add(std::vector<Source>& sources, Source source);

  std::vector<Source> rails_, temperatures_;
  Cards* cards_ = nullptr;
};

}  // namespace runtime
}  // namespace dyndeploy
