// Engines as files: what a bundle says of how they are built, and where they are kept. Keys, folders and the
// JSON beside an engine are those of dyndeploy/runtimes/tensorrt_engine.py, so that each finds what the other
// has built.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bundle.h"
#include "json.h"

namespace dyndeploy {
namespace runtime {

constexpr const char* kEnginePlans = "device/engines.json";

// How the engine of a graph is built; see BuildPlan in dyndeploy/runtimes/tensorrt_plan.py.
struct EnginePlan {
  std::string copy;       // the TensorRT copy, below the bundle's folder
  std::string graph;      // the graph's own name
  std::string described;  // one clause for people
  Json inputs;            // shapes by name
  Json plan;              // as it stands in the bundle: without the device's TensorRT and plugin library
  bool half, typed, integers, tf32, cuda_graph;
  std::int64_t workspace_mib;
  std::vector<std::string> float_layers;
  std::vector<std::pair<std::string, std::string>> plugins;  // name and version of creators
};

struct EnginePlans {
  std::int64_t engine_schema, ahead_schema;
  std::string capability;  // of the GPU for which TensorRT-RTX builds ahead of time; "": it does not
  std::map<std::string, EnginePlan> graphs;  // by file name in the bundle
};

// What an engine depends on besides its graph and plan. See GpuInfo in dyndeploy/runtimes/cuda.py.
struct EngineDevice {
  std::string tensorrt, gpu, capability, cuda, driver;
};

struct EnginePlace {
  Json built_from;
  std::string engine, beside;  // paths
};

// Whether the bundle says how its engines are built.
bool has_engine_plans(const Bundle& bundle);
// Throws Error(DYNDEPLOY_BUNDLE), which names the field.
EnginePlans read_engine_plans(const Bundle& bundle);

// The folder of engines: below DYNDEPLOY_CACHE, else below the user's cache folder. Throws
// Error(DYNDEPLOY_USAGE).
std::string engine_folder();

// Where an engine is kept that is built on this device. `library_sha256` is "" without a plugin library.
EnginePlace engine_place(const std::string& folder, const Bundle& bundle, const EnginePlans& plans,
                         const EnginePlan& plan, const EngineDevice& device,
                         const std::string& library_sha256);
// Where `dyndeploy engine` keeps one that it built ahead of time for a GPU of that capability.
EnginePlace ahead_place(const Bundle& bundle, const EnginePlans& plans, const EnginePlan& plan,
                        const std::string& tensorrt, const std::string& library_sha256);

// The engine, if it is whole and was built from exactly that; else nothing, and `why` says what is there
// instead
// ("" where there is nothing).
bool read_engine(const EnginePlace& place, std::string& engine, std::string& why);

// What stands beside an engine that was built here.
Json engine_metadata(const EnginePlace& place, const EnginePlan& plan, const std::string& engine,
                     const std::string& library, double seconds);

// The builder's timings of the same TensorRT on the same device, "" where there are none.
std::string read_timings(const std::string& folder, const EngineDevice& device);
void write_timings(const std::string& folder, const EngineDevice& device, const std::string& timings);

}  // namespace runtime
}  // namespace dyndeploy
