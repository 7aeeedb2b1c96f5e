#include "engine_files.h"

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "error.h"
#include "fields.h"
#include "files.h"
#include "sha256.h"

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::uint64_t kMostPlans = std::uint64_t{16} << 20;
constexpr std::uint64_t kMostEngine = std::uint64_t{8} << 30;
constexpr int kKeyDigits = 24;
constexpr const char* kAheadFolder = "engines";
constexpr const char* kTimings = "timing.cache";

EnginePlan plan_of(const Field& item, const Bundle& bundle) {
  const Field plan = item["plan"];
  EnginePlan found{};
  found.copy = item["copy"].text();
  item["copy"].require(bundle.manifest.files.count(found.copy) != 0, "a file of the bundle with a checksum");
  found.graph = item["graph"].label();
  found.described = item["described"].text();
  item["inputs"].object();
  found.inputs = item["inputs"].value();
  found.plan = plan.value();
  plan["tensorrt"].text();
  const std::string precision = plan["precision"].text();
  plan["precision"].require(precision == "fp32" || precision == "fp16" || precision == "int8",
                            "fp32, fp16 or int8");
  found.half = precision != "fp32";
  found.typed = plan["typed"].boolean();
  const Field integers = plan.find("integers");
  found.integers = !integers.is_null() && integers.boolean();
  found.tf32 = plan["tf32"].boolean();
  found.cuda_graph = plan["cuda_graph"].boolean();
  found.workspace_mib = plan["workspace_mib"].count();
  plan["workspace_mib"].require(found.workspace_mib <= 1 << 20, "at most 1048576");
  for (const Field& layer : plan["float_layers"].list()) found.float_layers.push_back(layer.text());
  for (const Field& plugin : plan["plugins"].list()) {
    const std::vector<Field> pair = plugin.list_of(2);
    found.plugins.emplace_back(pair[0].text(), pair[1].text());
  }
  return found;
}

// The plan as this device carries it out, without what only changes how an engine runs.
Json shaping(const EnginePlan& plan, const std::string& tensorrt,
             const std::vector<std::string>& capabilities, const std::string& library_sha256) {
  Json shaped = plan.plan;
  const auto set = [&](const std::string& key, Json value) {
    const auto at = std::find(shaped.keys.begin(), shaped.keys.end(), key);
    if (at != shaped.keys.end()) {
      shaped.items[static_cast<std::size_t>(at - shaped.keys.begin())] = std::move(value);
      return;
    }
    shaped.keys.push_back(key);
    shaped.items.push_back(std::move(value));
  };
  set("tensorrt", json_text(tensorrt));
  std::vector<Json> texts;
  for (const std::string& capability : capabilities) texts.push_back(json_text(capability));
  set("capabilities", json_list(std::move(texts)));
  set("library_sha256",
      library_sha256.empty() || plan.plugins.empty() ? json_null() : json_text(library_sha256));
  const auto at = std::find(shaped.keys.begin(), shaped.keys.end(), "cuda_graph");
  if (at != shaped.keys.end()) {
    shaped.items.erase(shaped.items.begin() + (at - shaped.keys.begin()));
    shaped.keys.erase(at);
  }
  return shaped;
}

EnginePlace placed(const std::string& folder, std::vector<std::pair<std::string, Json>> facts) {
  EnginePlace place;
  place.built_from = json_object(std::move(facts));
  const std::string key = sha256(spaced_json(place.built_from)).substr(0, kKeyDigits);
  place.engine = joined(folder, key + ".engine");
  place.beside = joined(folder, key + ".json");
  return place;
}

std::vector<std::pair<std::string, Json>> device_facts(const EngineDevice& device) {
  return {{"name", json_text(device.gpu)},
          {"compute_capability", json_text(device.capability)},
          {"cuda", json_text(device.cuda)},
          {"driver", json_text(device.driver)}};
}

Json timing_key(const EngineDevice& device) {
  auto facts = device_facts(device);
  facts.emplace_back("tensorrt", json_text(device.tensorrt));
  return json_object(std::move(facts));
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::string home_folder() {
  const std::string named = environment("HOME");
  if (!named.empty()) return named;
  const passwd* user = ::getpwuid(::getuid());
  return user && user->pw_dir ? user->pw_dir : "";
}

bool is_absolute(const std::string& path) { return !path.empty() && path[0] == '/'; }

}  // namespace

bool has_engine_plans(const Bundle& bundle) { return bundle.manifest.files.count(kEnginePlans) != 0; }

EnginePlans read_engine_plans(const Bundle& bundle) {
  bundle.require_intact({kEnginePlans});
  Json value;
  try {
    value = parse_json(read_file(bundle.path(kEnginePlans), kMostPlans));
  } catch (const std::runtime_error& error) {
    fail(DYNDEPLOY_BUNDLE,
         std::string("Cannot read ") + kEnginePlans + ": " + error.what() + ". Export the bundle again.");
  }
  const Field root(&value, "", kEnginePlans);
  const std::int64_t version = root["schema_version"].count();
  root["schema_version"].require(version == 1, "1, as this release reads it");
  EnginePlans plans{root["engine_schema"].count(), root["ahead_schema"].count(), "", {}};
  const Field capability = root.find("capability");
  if (!capability.is_null()) plans.capability = capability.text();
  const Field graphs = root["graphs"];
  const std::vector<Field> items = graphs.object();
  for (std::size_t i = 0; i < items.size(); ++i)
    plans.graphs.emplace(graphs.value().keys[i], plan_of(items[i], bundle));
  for (const std::string& name : bundle.engine_graphs()) graphs[name];
  return plans;
}

std::string engine_folder() {
  const std::string named = environment("DYNDEPLOY_CACHE");
  if (!named.empty()) return joined(named, "engines");
  std::string base = environment("XDG_CACHE_HOME");
  if (!is_absolute(base)) {
    const std::string home = home_folder();
    if (!is_absolute(home))
      fail(DYNDEPLOY_USAGE,
           "There is no home folder to keep engines in: set HOME, XDG_CACHE_HOME or DYNDEPLOY_CACHE.");
    base = joined(home, ".cache");
  }
  return joined(base, "dyndeploy/engines");
}

EnginePlace engine_place(const std::string& folder, const Bundle& bundle, const EnginePlans& plans,
                         const EnginePlan& plan, const EngineDevice& device,
                         const std::string& library_sha256) {
  auto facts = device_facts(device);
  facts.emplace_back("schema", json_number(std::to_string(plans.engine_schema)));
  facts.emplace_back("inputs", plan.inputs);
  facts.emplace_back("onnx_sha256", json_text(bundle.manifest.files.at(plan.copy)));
  facts.emplace_back("plan", shaping(plan, device.tensorrt, {}, library_sha256));
  return placed(folder, std::move(facts));
}

EnginePlace ahead_place(const Bundle& bundle, const EnginePlans& plans, const EnginePlan& plan,
                        const std::string& tensorrt, const std::string& library_sha256) {
  return placed(bundle.path(kAheadFolder),
                {{"schema", json_number(std::to_string(plans.ahead_schema))},
                 {"onnx_sha256", json_text(bundle.manifest.files.at(plan.copy))},
                 {"plan", shaping(plan, tensorrt, {plans.capability}, library_sha256)}});
}

bool read_engine(const EnginePlace& place, std::string& engine, std::string& why) {
  why.clear();
  if (!is_file(place.engine) && !is_file(place.beside)) return false;
  try {
    const Json metadata = parse_json(read_file(place.beside, kMostPlans));
    const Json* from = metadata.find("built_from");
    const Json* sum = metadata.find("engine_sha256");
    if (!from || !sum || canonical_json(*from, "") != canonical_json(place.built_from, "")) {
      why = place.beside + " is of another engine";
      return false;
    }
    engine = read_file(place.engine, kMostEngine);
    if (sha256(engine) == sum->text) return true;
    why = place.engine + " does not match its checksum";
  } catch (const std::runtime_error& error) {
    why = place.engine + " cannot be read: " + error.what();
  }
  engine.clear();
  return false;
}

Json engine_metadata(const EnginePlace& place, const EnginePlan& plan, const std::string& engine,
                     const std::string& library, double seconds) {
  std::vector<Json> operators;
  for (const auto& plugin : plan.plugins) operators.push_back(json_text(plugin.first));
  char taken[32];
  std::snprintf(taken, sizeof taken, "%.1f", seconds);
  return json_object({{"built_from", place.built_from},
                      {"engine_sha256", json_text(sha256(engine))},
                      {"operators", json_list(std::move(operators))},
                      {"plan", json_text(plan.described)},
                      {"plugin_library", library.empty() ? json_null() : json_text(library)},
                      {"build_seconds", json_number(taken)},
                      {"graph", json_text(plan.graph)}});
}

std::string read_timings(const std::string& folder, const EngineDevice& device) {
  const std::string path = joined(folder, kTimings);
  try {
    // TensorRT refuses foreign ones loudly.
    const Json key = parse_json(read_file(path + ".json", kMostPlans));
    if (canonical_json(key, "") == canonical_json(timing_key(device), ""))
      return read_file(path, kMostEngine);
  } catch (const std::runtime_error&) {
    // None of this device: the build takes its own.
  }
  return "";
}

void write_timings(const std::string& folder, const EngineDevice& device, const std::string& timings) {
  const std::string path = joined(folder, kTimings);
  write_file(path, timings);
  write_file(path + ".json", spaced_json(timing_key(device)));
}

}  // namespace runtime
}  // namespace dyndeploy
