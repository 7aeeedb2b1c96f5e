// Opens and runs bundles whose manifest, graphs, thresholds, reference tensors, engine plans or images were
// changed at random, with checksums made right again so that the parsers see the changes. Whatever happens
// must end in an Error or a result. Usage: fuzz_runtime BUNDLE IMAGES SCRATCH COUNT SEED [WHAT]; WHAT:
// manifest, files, images, engines (the plans in device/engines.json) or programs (of the host); without it
// all that the bundle has. Engines are built where DYNDEPLOY_TENSORRT_MODULE names a module; else plans are
// read and keyed.

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "decode.h"
#include "detector.h"
#include "engine_files.h"
#include "error.h"
#include "files.h"
#include "host_program.h"
#include "json.h"
#include "npz.h"
#include "preprocessing.h"
#include "session.h"
#include "sha256.h"
#include "verify.h"

namespace {

using namespace dyndeploy::runtime;
using Rng = std::mt19937;

constexpr std::uint64_t kMost = 1 << 28;
constexpr const char* kSeal = "manifest_sha256";

std::size_t below(Rng& rng, std::size_t count) {
  return std::uniform_int_distribution<std::size_t>(0, count - 1)(rng);
}

void write(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

void mutate_bytes(Rng& rng, std::string& bytes) {
  const std::size_t changes = std::size_t{1} << below(rng, 6);
  for (std::size_t i = 0; i < changes && !bytes.empty(); ++i) {
    const std::size_t at = below(rng, bytes.size());
    switch (below(rng, 6)) {
      case 0:
        bytes[at] = static_cast<char>(below(rng, 256));
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ 1 << below(rng, 8));
        break;
      case 2:
        bytes.resize(at);
        break;
      case 3:
        bytes.erase(at, below(rng, 9));
        break;
      case 4:
        bytes.insert(at, bytes.substr(below(rng, bytes.size()), below(rng, 40)));
        break;
      default:
        bytes[at] = "\xff\x00\x7f\x80"[below(rng, 4)];
        break;
    }
  }
}

void nodes_of(Json& value, std::vector<Json*>& found) {
  found.push_back(&value);
  for (Json& item : value.items) nodes_of(item, found);
}

void mutate_json(Rng& rng, Json& root) {
  static const char* const kNumbers[] = {"0",
                                         "-1",
                                         "1",
                                         "2",
                                         "3",
                                         "16",
                                         "1e999",
                                         "-0.0",
                                         "0.5",
                                         "1e-320",
                                         "1048576",
                                         "9007199254740993",
                                         "99999999999999999999",
                                         "4294967296",
                                         "2147483648"};
  static const char* const kTexts[] = {"",        "../x",    "/etc/passwd", "logits",     "confidence",
                                       "input",   "float32", "int64",       "model.onnx", "stage0.onnx",
                                       "lanczos", "bf16",    "int8",        "a\xc3\xa9"};
  std::vector<Json*> nodes;
  nodes_of(root, nodes);
  Json& node = *nodes[below(rng, nodes.size())];
  const Json other = *nodes[below(rng, nodes.size())];
  Json made;
  switch (below(rng, 8)) {
    case 0:
      node = made;
      break;
    case 1:
    case 2:
      made.kind = Json::Kind::kNumber;
      made.text = kNumbers[below(rng, sizeof kNumbers / sizeof *kNumbers)];
      node = made;
      break;
    case 3:
      made.kind = Json::Kind::kText;
      made.text = kTexts[below(rng, sizeof kTexts / sizeof *kTexts)];
      node = made;
      break;
    case 4:
      node = other;
      break;
    case 5:
      if (node.items.empty()) break;
      node.items.pop_back();
      if (!node.keys.empty()) node.keys.pop_back();
      break;
    case 6:
      if (node.kind == Json::Kind::kList) node.items.push_back(other);
      break;
    default:
      if (!node.keys.empty()) node.keys[below(rng, node.keys.size())] += "x";
      break;
  }
}

std::string sealed(Json value) {
  const std::string seal = sha256(canonical_json(value, kSeal));
  for (std::size_t i = 0; i < value.keys.size(); ++i)
    if (value.keys[i] == kSeal) {
      value.items[i].kind = Json::Kind::kText;
      value.items[i].text = seal;
    }
  return canonical_json(value, std::string());
}

struct Counts {
  long results = 0, errors = 0;
};

template <class Work>
void tried(Counts& counts, const std::string& what, Work work, const std::string& argument) {
  try {
    work(argument);
    ++counts.results;
  } catch (const Error& error) {
    ++counts.errors;
    if (std::string(error.what()).empty()) std::abort();
  } catch (const std::bad_alloc&) {
    ++counts.errors;
  } catch (const std::exception& error) {
    std::printf("%s: not an Error: %s\n", what.c_str(), error.what());
    std::abort();
  }
}

void detect(Session& session, const dyndeploy_image& image) {
  struct Freed {
    dyndeploy_detections result{};
    ~Freed() { free_detections(result); }
  } freed;
  freed.result.size = sizeof freed.result;
  session.detector().detect_images(&image, 1, nullptr, &freed.result);
}

void open_and_run(const std::string& folder) {
  const auto session = Session::open(folder, Options());
  std::vector<std::uint8_t> pixels(3 * 20 * 30, 99);
  const dyndeploy_image image{pixels.data(), 20, 30, 90};
  if (session->bundle().manifest.has_detection) {
    detect(*session, image);
    verify(*session);
    return;
  }
  dyndeploy_result result{};
  result.size = sizeof result;
  session->run_images(&image, 1, &result);
  verify(*session);
}

void read_plans_and_run(const std::string& folder) {
  const Bundle bundle = Bundle::open(folder);
  const EnginePlans plans = read_engine_plans(bundle);
  const EngineDevice device{"8.2.1.8", "a GPU", "5.3", "10.2", "10.2"};
  for (const auto& graph : plans.graphs) {
    engine_place(folder, bundle, plans, graph.second, device, sha256("plugins"));
    ahead_place(bundle, plans, graph.second, device.tensorrt, sha256("plugins"));
  }
  open_and_run(folder);
}

void decode(const std::string& path) {
  const Image image = read_image(path);
  const PreprocessingInfo info{24, {0, 0, 0}, {1, 1, 1}, Interpolation::kBicubic};
  std::vector<float> values(3 * 24 * 24);
  Preprocessor(info, 24, 24).run(image.view(), values.data());
}

// An archive as numpy.savez writes it, without checksums, which nothing reads.
std::string npz_of(const std::map<std::string, Array>& arrays) {
  const auto number = [](std::uint64_t value, int bytes) {
    std::string text;
    for (int i = 0; i < bytes; ++i) text += static_cast<char>(i < 8 ? value >> 8 * i : 0);
    return text;
  };
  std::string archive, directory;
  for (const auto& entry : arrays) {
    const Array& array = entry.second;
    std::string shape;
    for (const std::int64_t size : array.shape) shape += std::to_string(size) + ",";
    const char* code = array.type == DYNDEPLOY_FLOAT32   ? "<f4"
                       : array.type == DYNDEPLOY_FLOAT64 ? "<f8"
                       : array.type == DYNDEPLOY_INT64   ? "<i8"
                       : array.type == DYNDEPLOY_INT32   ? "<i4"
                       : array.type == DYNDEPLOY_BOOL    ? "|b1"
                                                         : "|u1";
    const std::string header =
        std::string("{'descr': '") + code + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    const std::string content =
        std::string("\x93NUMPY\x01", 7) + number(0, 1) + number(header.size(), 2) + header + array.bytes;
    const std::string name = entry.first + ".npy",
                      sizes = number(0, 8) + number(0, 4) + number(content.size(), 4) +
                              number(content.size(), 4) + number(name.size(), 2) + number(0, 2);
    directory += "PK\1\2" + number(0, 4) + sizes + number(0, 10) + number(archive.size(), 4) + name;
    archive += "PK\3\4" + number(0, 2) + sizes + name + content;
  }
  return archive + directory + "PK\5\6" + number(0, 4) + number(arrays.size(), 2) + number(arrays.size(), 2) +
         number(directory.size(), 4) + number(archive.size(), 4) + number(0, 2);
}

// Runs a program on numbers that follow from nothing.
void run_program(const std::string& path, const PartInfo& part) {
  std::vector<std::string> memory;
  memory.reserve(part.inputs.size() + part.outputs.size());
  const auto slots = [&](const std::vector<TensorInfo>& infos) {
    std::vector<Slot> made;
    for (const TensorInfo& info : infos) {
      memory.push_back(std::string(elements(info.shape) * element_bytes(info.type), '\x3e'));
      made.push_back({info.name, info.type, info.shape, &memory.back()[0]});
    }
    return made;
  };
  const auto graph = open_host_program(path, part.inputs, part.outputs);
  const std::vector<Slot> inputs = slots(part.inputs), outputs = slots(part.outputs);
  graph->bind(inputs, outputs)->run();
}

// A copy of the bundle in which one file, or the manifest, is another.
class Fuzzer {
 public:
  Fuzzer(const std::string& bundle, const std::string& images, const std::string& scratch)
      : scratch_(scratch), manifest_(read_file(joined(bundle, kManifest), kMost)) {
    ::mkdir(scratch.c_str(), 0700);
    for (const auto& entry : parse_manifest(manifest_).files) {
      names_.push_back(entry.first);
      files_.push_back(read_file(joined(bundle, entry.first), kMost));
      make_folders(folder_of(joined(scratch, entry.first)));
      write(joined(scratch, entry.first), files_.back());
    }
    for (const PartInfo& part : parse_manifest(manifest_).detection.parts)
      if (part.host) programs_.push_back(part);
    for (const std::string& path : files_below(images, image_endings()))
      images_.push_back(read_file(path, kMost));
    write(joined(scratch, kManifest), manifest_);
    open_and_run(scratch);  // what is whole must run
  }

  void manifest(Rng& rng, Counts& counts) {
    std::string text = manifest_;
    if (below(rng, 4) == 0) {
      mutate_bytes(rng, text);
    } else {
      Json value = parse_json(text);
      for (std::size_t i = 0; i <= below(rng, 3); ++i) mutate_json(rng, value);
      text = sealed(value);
    }
    write(joined(scratch_, kManifest), text);
    tried(counts, "manifest", open_and_run, scratch_);
    write(joined(scratch_, kManifest), manifest_);
  }

  void file(Rng& rng, Counts& counts) {
    const std::size_t index = below(rng, files_.size());
    std::string content = files_[index];
    mutate_bytes(rng, content);
    replaced(index, content, counts, open_and_run);
  }

  bool has_programs() const { return !programs_.empty(); }

  void program(Rng& rng, Counts& counts) {
    const PartInfo& part = programs_[below(rng, programs_.size())];
    std::map<std::string, Array> arrays = parse_npz(read_file(joined(scratch_, part.file), kMost));
    Json text = parse_json(arrays.at("program").bytes);
    for (std::size_t i = 0; i <= below(rng, 3); ++i) mutate_json(rng, text);
    Array& array = arrays.at("program");
    array.bytes = canonical_json(text, std::string());
    array.shape = {static_cast<std::int64_t>(array.bytes.size())};
    auto other = arrays.begin();
    std::advance(other, static_cast<std::ptrdiff_t>(below(rng, arrays.size())));
    // Constants that are other numbers: shapes, places, axes.
    if (other->first != "program" && !other->second.bytes.empty() && below(rng, 2))
      other->second.bytes[below(rng, other->second.bytes.size())] = static_cast<char>(below(rng, 256));
    const std::string path = joined(scratch_, "program.npz");
    write(path, npz_of(arrays));
    tried(counts, part.file, [&part](const std::string& file) { run_program(file, part); }, path);
  }

  bool has_plans() const { return place_of_plans() < names_.size(); }

  void plans(Rng& rng, Counts& counts) {
    const std::size_t index = place_of_plans();
    std::string content = files_[index];
    if (below(rng, 4) == 0) {
      mutate_bytes(rng, content);
    } else {
      Json value = parse_json(content);
      for (std::size_t i = 0; i <= below(rng, 3); ++i) mutate_json(rng, value);
      content = canonical_json(value, std::string());
    }
    replaced(index, content, counts, read_plans_and_run);
  }

  void image(Rng& rng, Counts& counts) {
    std::string content = images_[below(rng, images_.size())];
    mutate_bytes(rng, content);
    const std::string path = joined(scratch_, "image");
    write(path, content);
    tried(counts, "image", decode, path);
  }

 private:
  std::size_t place_of_plans() const {
    return static_cast<std::size_t>(std::find(names_.begin(), names_.end(), kEnginePlans) - names_.begin());
  }

  void replaced(std::size_t index, const std::string& content, Counts& counts,
                void (*work)(const std::string&)) {
    write(joined(scratch_, names_[index]), content);
    Json value = parse_json(manifest_);
    for (std::size_t i = 0; i < value.keys.size(); ++i)
      if (value.keys[i] == "files")
        for (std::size_t k = 0; k < value.items[i].keys.size(); ++k)
          if (value.items[i].keys[k] == names_[index]) value.items[i].items[k].text = sha256(content);
    write(joined(scratch_, kManifest), sealed(value));
    tried(counts, names_[index], work, scratch_);
    write(joined(scratch_, names_[index]), files_[index]);
    write(joined(scratch_, kManifest), manifest_);
  }

  std::string scratch_, manifest_;
  std::vector<std::string> names_, files_, images_;
  std::vector<PartInfo> programs_;
};

}  // namespace

int main(int count, char** values) {
  if (count < 6) return 2;
  try {
    Fuzzer fuzzer(values[1], values[2], values[3]);
    const long rounds = std::atol(values[4]);
    const std::string what = count > 6 ? values[6] : "";
    if (what == "engines" && !fuzzer.has_plans()) throw std::runtime_error("the bundle has no engine plans");
    if (what == "programs" && !fuzzer.has_programs())
      throw std::runtime_error("the bundle has no host programs");
    Counts counts;
    for (long i = 0; i < rounds; ++i) {
      Rng rng(static_cast<unsigned>(std::atol(values[5]) * 1000003 + i));
      // What a bundle lacks is replaced by other mutations of its manifest.
      std::size_t kind = below(rng, 5);
      if ((kind == 3 && !fuzzer.has_plans()) || (kind == 4 && !fuzzer.has_programs())) kind = 0;
      if (what == "manifest" || (what.empty() && kind == 0)) fuzzer.manifest(rng, counts);
      if (what == "files" || (what.empty() && kind == 1)) fuzzer.file(rng, counts);
      if (what == "images" || (what.empty() && kind == 2)) fuzzer.image(rng, counts);
      if (what == "engines" || (what.empty() && kind == 3)) fuzzer.plans(rng, counts);
      if (what == "programs" || (what.empty() && kind == 4)) fuzzer.program(rng, counts);
    }
    std::printf("%ld mutations: %ld results, %ld errors\n", rounds, counts.results, counts.errors);
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
