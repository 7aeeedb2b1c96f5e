#include "plan.h"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "error.h"
#include "host_program.h"

namespace dyndeploy {
namespace runtime {
namespace {

const TensorInfo* find(const std::vector<TensorInfo>& infos, const std::string& name) {
  for (const TensorInfo& info : infos)
    if (info.name == name) return &info;
  return nullptr;
}

bool fits(const TensorInfo& graph, const TensorInfo& wanted) {
  if (graph.type != wanted.type || graph.shape.size() != wanted.shape.size()) return false;
  for (std::size_t i = 0; i < wanted.shape.size(); ++i)
    if (graph.shape[i] != kAnySize && graph.shape[i] != wanted.shape[i]) return false;
  return true;
}

// A graph may leave sizes open, but what it fixes must be what memory is made for.
void check(const std::string& file, const char* what, const std::vector<TensorInfo>& has,
           const TensorInfo& wanted) {
  const TensorInfo* found = find(has, wanted.name);
  if (found && fits(*found, wanted)) return;
  const std::string is = found ? "is " + described(found->type, found->shape) : "is missing";
  fail(DYNDEPLOY_BUNDLE, file + " is not the graph that bundle.json describes: " + what + " '" + wanted.name +
                             "' " + is + ", expected " + described(wanted.type, wanted.shape) +
                             ". Export the bundle again.");
}

Step opened(const std::string& file, std::unique_ptr<Graph> graph, const std::vector<TensorInfo>& inputs,
            const std::vector<TensorInfo>& outputs) {
  Step step;
  step.graph = std::move(graph);
  step.logits = step.confidence = 0;
  step.exit = 0;
  step.threshold = -std::numeric_limits<float>::infinity();
  for (const TensorInfo& input : inputs) check(file, "the input", step.graph->inputs(), input);
  for (const TensorInfo& output : outputs) check(file, "the output", step.graph->outputs(), output);
  for (const TensorInfo& input : step.graph->inputs())
    if (!find(inputs, input.name))
      fail(DYNDEPLOY_BUNDLE, file + " takes an input '" + input.name + "' that bundle.json does not name. " +
                                 "Export the bundle again.");
  return step;
}

std::size_t added(Plan& plan, const TensorInfo& info) {
  plan.tensors.push_back(info);
  return plan.tensors.size() - 1;
}

void add_whole(Plan& plan, const Bundle& bundle, Backend& backend) {
  const Manifest& manifest = bundle.manifest;
  std::vector<TensorInfo> outputs = manifest.outputs;
  for (const MaskInfo& mask : manifest.masks) outputs.push_back({mask.name, mask.shape, DYNDEPLOY_FLOAT32});
  Step step = opened(kModel, backend.open(bundle.path(kModel)), manifest.inputs, outputs);
  for (const TensorInfo& input : manifest.inputs) step.inputs.push_back(added(plan, input));
  for (const TensorInfo& output : outputs) {
    step.outputs.push_back(added(plan, output));
    if (output.name == kLogits) step.logits = step.outputs.back();
  }
  const auto masks = step.outputs.end() - static_cast<std::ptrdiff_t>(manifest.masks.size());
  plan.outputs.assign(step.outputs.begin(), masks);
  plan.masks.assign(masks, step.outputs.end());
  plan.inputs = step.inputs;
  plan.steps.push_back(std::move(step));
}

void add_parts(Plan& plan, const Bundle& bundle, Backend& backend) {
  const Manifest& manifest = bundle.manifest;
  std::map<std::string, std::size_t> places;
  for (const TensorInfo& input : manifest.inputs)
    plan.inputs.push_back(places[input.name] = added(plan, input));
  for (const PartInfo& part : manifest.detection.parts) {
    const std::string path = bundle.path(part.file);
    // Of engines what they are built from is checked.
    if (part.host) bundle.require_intact({part.file});
    Step step =
        opened(part.file, part.host ? open_host_program(path, part.inputs, part.outputs) : backend.open(path),
               part.inputs, part.outputs);
    step.host = part.host;
    step.last = &part == &manifest.detection.parts.back();
    for (const TensorInfo& input : part.inputs) step.inputs.push_back(places.at(input.name));
    for (const TensorInfo& output : part.outputs)
      step.outputs.push_back(places[output.name] = added(plan, output));
    plan.steps.push_back(std::move(step));
  }
  for (const TensorInfo& output : manifest.outputs) plan.outputs.push_back(places.at(output.name));
  for (const MaskInfo& mask : manifest.masks) plan.masks.push_back(places.at(mask.name));
}

void add_stages(Plan& plan, const Bundle& bundle, Backend& backend, const std::vector<double>& thresholds) {
  const std::vector<StageInfo>& stages = bundle.manifest.exits.stages;
  std::map<std::string, std::size_t> latest;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const StageInfo& stage = stages[i];
    Step step = opened(stage.file, backend.open(bundle.path(stage.file)), stage.inputs, stage.outputs);
    for (const TensorInfo& input : stage.inputs)
      step.inputs.push_back(i ? latest.at(input.name) : added(plan, input));
    for (const TensorInfo& output : stage.outputs)
      step.outputs.push_back(latest[output.name] = added(plan, output));
    step.logits = step.outputs.front();
    step.confidence = step.outputs.back();
    step.exit = stage.exit;
    step.threshold = static_cast<float>(thresholds[i]);
    plan.steps.push_back(std::move(step));
  }
  // From the back: what a step must keep for those behind it, as far as it is there already.
  std::set<std::size_t> needed;
  for (std::size_t i = stages.size(); i-- > 0;) {
    Step& step = plan.steps[i];
    const std::size_t made = step.outputs.back();
    for (const std::size_t tensor : needed)
      if (tensor <= made) step.carried.push_back(tensor);
    needed.insert(step.inputs.begin(), step.inputs.end());
  }
}

}  // namespace

Plan make_plan(const Bundle& bundle, Backend& backend, const std::vector<double>& thresholds) {
  const Manifest& manifest = bundle.manifest;
  Plan plan;
  plan.batch = static_cast<std::size_t>(manifest.batch);
  plan.any_batch = manifest.has_exits && manifest.exits.dynamic_batch;
  plan.classifies = manifest.classifies();
  if (manifest.has_exits) {
    add_stages(plan, bundle, backend, thresholds);
    plan.inputs = plan.steps[0].inputs;
    plan.results = plan.steps[0].outputs;
  } else if (backend.runs_parts() && !manifest.detection.parts.empty()) {
    add_parts(plan, bundle, backend);
  } else {
    add_whole(plan, bundle, backend);
  }
  for (const auto* places : {&plan.outputs, &plan.masks})
    plan.results.insert(plan.results.end(), places->begin(), places->end());
  return plan;
}

}  // namespace runtime
}  // namespace dyndeploy
