// The C ABI: no exception passes it.

#include <cstddef>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "decode.h"
#include "detector.h"
#include "dyndeploy.h"
#include "error.h"
#include "masks.h"
#include "scheduler.h"
#include "session.h"
#include "verify.h"

namespace runtime = dyndeploy::runtime;

struct dyndeploy_session {
  std::unique_ptr<runtime::Session> session;
};

namespace {

// Fixed room, so that an error can be told when there is no memory.
thread_local char last_error[2048];

void remember(const char* text) {
  std::strncpy(last_error, text, sizeof last_error - 1);
  last_error[sizeof last_error - 1] = '\0';
  // One line, whatever was quoted in it.
  for (char* c = last_error; *c; ++c)
    if (static_cast<unsigned char>(*c) < 0x20) *c = ' ';
}

template <class Work>
std::int32_t guarded(Work work) {
  last_error[0] = '\0';
  try {
    work();
    return DYNDEPLOY_OK;
  } catch (const runtime::Error& error) {
    remember(error.what());
    return error.code();
  } catch (const std::bad_alloc&) {
    remember("There is no memory for it.");
    return DYNDEPLOY_MEMORY;
  } catch (const std::length_error&) {
    remember("There is no memory for it.");
    return DYNDEPLOY_MEMORY;
  } catch (const std::exception& error) {
    remember((std::string("dyndeploy failed: ") + error.what()).c_str());
    return DYNDEPLOY_INTERNAL;
  } catch (...) {
    remember("dyndeploy failed, and does not know why.");
    return DYNDEPLOY_INTERNAL;
  }
}

void require(bool condition, const char* what) {
  if (!condition) runtime::fail(DYNDEPLOY_USAGE, std::string(what) + " is NULL.");
}

// Write a text, with its end, where there is room.
void give(const std::string& said, const char* what, char* text, size_t room, size_t* needed) {
  if (needed) *needed = said.size() + 1;
  if (!text || room <= said.size())
    runtime::fail(DYNDEPLOY_USAGE, what + std::to_string(said.size() + 1) + " bytes.");
  std::memcpy(text, said.c_str(), said.size() + 1);
}

runtime::Options options_of(const dyndeploy_options* given) {
  runtime::Options options;
  if (!given) return options;
  // Fields are added at the end: a caller built before has no runtime to choose.
  const bool earlier = given->size == offsetof(dyndeploy_options, runtime);
  if (given->size != sizeof *given && !earlier)
    runtime::fail(DYNDEPLOY_USAGE,
                  "The options' size is not sizeof(dyndeploy_options): set it before the call.");
  if (given->onnxruntime) options.onnxruntime = given->onnxruntime;
  if (given->native) options.native = given->native;
  if (given->threads) options.threads = given->threads;
  if (given->threshold_count < 0 || (given->threshold_count && !given->thresholds))
    runtime::fail(DYNDEPLOY_USAGE, "thresholds is NULL.");
  if (given->threshold_count)
    options.thresholds.assign(given->thresholds, given->thresholds + given->threshold_count);
  if (earlier) return options;
  if (given->runtime) options.runtime = given->runtime;
  if (given->tensorrt) options.tensorrt = given->tensorrt;
  if (given->plugins) options.plugins = given->plugins;
  if (const auto progress = given->progress)
    options.progress = [progress, user = given->user](const std::string& line) {
      progress(user, line.c_str());
    };
  return options;
}

runtime::Policy policy_of(const dyndeploy_policy* given) {
  runtime::Policy policy;
  if (!given) return policy;
  if (given->size != sizeof *given)
    runtime::fail(DYNDEPLOY_USAGE,
                  "The policy's size is not sizeof(dyndeploy_policy): set it before the call.");
  if (given->queue_limit < 0 || given->largest_batch < 0)
    runtime::fail(DYNDEPLOY_USAGE, "queue_limit and largest_batch must not be below 0.");
  if (given->queue_limit) policy.queue_limit = static_cast<std::size_t>(given->queue_limit);
  if (given->largest_batch) policy.largest_batch = static_cast<std::size_t>(given->largest_batch);
  policy.latency_ms = given->latency_ms;
  if (given->patience != 0) policy.patience = given->patience;
  return policy;
}

}  // namespace

int32_t dyndeploy_abi(void) { return DYNDEPLOY_ABI; }

const char* dyndeploy_last_error(void) { return last_error; }

int32_t dyndeploy_open(const char* bundle, const dyndeploy_options* options, dyndeploy_session** session) {
  return guarded([&] {
    require(session != nullptr, "session");
    *session = nullptr;
    require(bundle != nullptr, "bundle");
    std::unique_ptr<dyndeploy_session> opened(new dyndeploy_session);
    opened->session = runtime::Session::open(bundle, options_of(options));
    *session = opened.release();
  });
}

const char* dyndeploy_info(const dyndeploy_session* session) {
  return session ? session->session->info().c_str() : "";
}

int32_t dyndeploy_run_images(dyndeploy_session* session, const dyndeploy_image* images, size_t count,
                             dyndeploy_result* results) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(images != nullptr || !count, "images");
    session->session->run_images(images, count, results);
  });
}

int32_t dyndeploy_run_files(dyndeploy_session* session, const char* const* paths, size_t count,
                            dyndeploy_result* results) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(paths != nullptr || !count, "paths");
    for (size_t i = 0; i < count; ++i) require(paths[i] != nullptr, "a path");
    session->session->run_files(paths, count, results);
  });
}

int32_t dyndeploy_run_tensors(dyndeploy_session* session, const dyndeploy_tensor* inputs, size_t input_count,
                              dyndeploy_tensor* outputs, size_t output_count, dyndeploy_result* results,
                              size_t result_count) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(inputs != nullptr || !input_count, "inputs");
    require(outputs != nullptr || !output_count, "outputs");
    for (size_t i = 0; i < input_count + output_count; ++i) {
      const dyndeploy_tensor& tensor = i < input_count ? inputs[i] : outputs[i - input_count];
      if (tensor.size != sizeof tensor)
        runtime::fail(DYNDEPLOY_USAGE,
                      "A tensor's size is not sizeof(dyndeploy_tensor): set it before the call.");
    }
    session->session->run_tensors(inputs, input_count, outputs, output_count, results, result_count);
  });
}

int32_t dyndeploy_preprocess(dyndeploy_session* session, const dyndeploy_image* image, float* values,
                             size_t room) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(image != nullptr, "image");
    require(values != nullptr, "values");
    session->session->preprocess({image->pixels, image->height, image->width, image->stride}, values, room);
  });
}

int32_t dyndeploy_preprocess_file(dyndeploy_session* session, const char* path, float* values, size_t room) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(path != nullptr, "path");
    require(values != nullptr, "values");
    session->session->preprocess(runtime::read_image(path).view(), values, room);
  });
}

int32_t dyndeploy_detect_images(dyndeploy_session* session, const dyndeploy_image* images, size_t count,
                                const int32_t* size, dyndeploy_detections* results) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(images != nullptr || !count, "images");
    session->session->detector().detect_images(images, count, size, results);
  });
}

int32_t dyndeploy_detect_files(dyndeploy_session* session, const char* const* paths, size_t count,
                               const int32_t* size, dyndeploy_detections* results) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(paths != nullptr || !count, "paths");
    for (size_t i = 0; i < count; ++i) require(paths[i] != nullptr, "a path");
    session->session->detector().detect_files(paths, count, size, results);
  });
}

void dyndeploy_free_detections(dyndeploy_detections* results, size_t count) {
  for (size_t i = 0; results && i < count; ++i) runtime::free_detections(results[i]);
}

int32_t dyndeploy_mask_pixels(const dyndeploy_detection* detection, int32_t height, int32_t width,
                              uint8_t* pixels) {
  return guarded([&] {
    require(detection != nullptr, "detection");
    require(pixels != nullptr, "pixels");
    if (!runtime::runs_pixels(detection->runs, detection->run_count, height, width, pixels))
      runtime::fail(DYNDEPLOY_USAGE, "The detection has no mask of " + std::to_string(height) + " x " +
                                         std::to_string(width) + " pixels.");
  });
}

int32_t dyndeploy_mask_text(const dyndeploy_detection* detection, char* text, size_t room, size_t* needed) {
  return guarded([&] {
    require(detection != nullptr, "detection");
    give(runtime::runs_text(detection->runs, detection->run_count), "The mask's text takes ", text, room,
         needed);
  });
}

int32_t dyndeploy_statistics(dyndeploy_session* session, char* text, size_t room, size_t* needed) {
  return guarded([&] {
    require(session != nullptr, "session");
    give(session->session->statistics_json(), "The statistics take ", text, room, needed);
  });
}

int32_t dyndeploy_reset_statistics(dyndeploy_session* session) {
  return guarded([&] {
    require(session != nullptr, "session");
    session->session->statistics().reset();
  });
}

int32_t dyndeploy_serve(dyndeploy_session* session, const dyndeploy_policy* policy) {
  return guarded([&] {
    require(session != nullptr, "session");
    session->session->serve(policy_of(policy));
  });
}

int32_t dyndeploy_submit(dyndeploy_session* session, const dyndeploy_request* request, uint64_t* ticket) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(request != nullptr, "request");
    if (request->size != sizeof *request)
      runtime::fail(DYNDEPLOY_USAGE,
                    "The request's size is not sizeof(dyndeploy_request): set it before the call.");
    const uint64_t given = session->session->scheduler().submit(*request);
    if (ticket) *ticket = given;
  });
}

int32_t dyndeploy_poll(dyndeploy_session* session, dyndeploy_completion* completions, size_t room,
                       double timeout_ms, size_t* count) {
  return guarded([&] {
    require(session != nullptr, "session");
    require(completions != nullptr || !room, "completions");
    require(count != nullptr, "count");
    *count = 0;
    *count = session->session->scheduler().poll(completions, room, timeout_ms);
  });
}

int32_t dyndeploy_cancel(dyndeploy_session* session, uint64_t ticket) {
  return guarded([&] {
    require(session != nullptr, "session");
    session->session->scheduler().cancel(ticket);
  });
}

int32_t dyndeploy_verify(dyndeploy_session* session) {
  return guarded([&] {
    require(session != nullptr, "session");
    runtime::verify(*session->session);
  });
}

void dyndeploy_close(dyndeploy_session* session) { delete session; }
