/* What the runtime asks of TensorRT, in C: libdyndeploy_runtime_tensorrt.so is compiled against the headers
 * of one TensorRT and opened when a bundle needs it, so that libdyndeploy.so itself needs neither TensorRT
 * nor CUDA.
 *
 * Functions that can fail return a code of dyndeploy.h, 0 where all is well, and say why in the error.
 * No exception leaves the module.
 */
#ifndef DYNDEPLOY_RUNTIME_TENSORRT_MODULE_H
#define DYNDEPLOY_RUNTIME_TENSORRT_MODULE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DYNDEPLOY_TENSORRT_MODULE_ABI 2
#define DYNDEPLOY_TENSORRT_MODULE_ENTRY "dyndeploy_tensorrt_module"

typedef struct {
  char text[2048]; /* one line */
} dyndeploy_trt_error;

typedef struct {
  const char* library; /* libnvinfer or libtensorrt_rtx; "": looked for */
  const char* parser;  /* libnvonnxparser, needed to build only; "": beside the library, else looked for */
  const char* plugins; /* plugin library; "": none is needed */
  int32_t device;
  void (*say)(void* user,
              const char* text); /* TensorRT's warnings and errors, from any thread; may be NULL */
  void* user;
} dyndeploy_trt_settings;

typedef struct {
  char version[64];     /* as Python writes it: "8.2.1.8", "RTX 1.7.1.116" */
  int32_t interface;    /* major version whose functions it has: of TensorRT-RTX 11 */
  int32_t rtx;          /* it is TensorRT-RTX */
  int32_t capabilities; /* the headers can say which GPUs an engine is for */
  char library[4096];   /* what was opened */
  char gpu[256];        /* "" where there is none, and why in no_gpu */
  char capability[16];  /* "5.3" */
  char cuda[32];        /* of the headers, "10.2.0" */
  char driver[32];      /* "10.2" */
  char no_gpu[512];
} dyndeploy_trt_info;

typedef struct {
  int32_t half, typed, tf32;
  int64_t workspace_mib;
  const char* const* float_layers; /* layers that flags pin to float */
  size_t float_layer_count;
  const char* const* capabilities; /* "8.9"; none: of the GPU at hand */
  size_t capability_count;
  int32_t integers; /* the graph has QuantizeLinear, from which TensorRT makes layers in INT8 */
} dyndeploy_trt_plan;

typedef struct {
  void* data; /* freed by release_bytes */
  size_t size;
} dyndeploy_trt_bytes;

typedef struct {
  const char* name; /* as long as the engine */
  int32_t is_input;
  int32_t type; /* DYNDEPLOY_FLOAT32 ...; 0: one that has no counterpart */
  int32_t rank;
  int64_t shape[8];
} dyndeploy_trt_tensor;

/* Memory with two copies, of the host and of the device, one of which may be newer. */
typedef struct dyndeploy_trt_memory dyndeploy_trt_memory;
typedef struct dyndeploy_trt dyndeploy_trt;
typedef struct dyndeploy_trt_engine dyndeploy_trt_engine;
typedef struct dyndeploy_trt_run dyndeploy_trt_run;

typedef struct {
  int32_t abi;
  const char* headers; /* version that it was compiled against */

  /* Open TensorRT and load the plugins. A machine without a GPU is no error yet: see dyndeploy_trt_info. */
  int32_t (*open)(const dyndeploy_trt_settings*, dyndeploy_trt**, dyndeploy_trt_info*, dyndeploy_trt_error*);
  void (*close)(dyndeploy_trt*);
  /* Whether a creator of that name and version is registered. */
  int32_t (*has_plugin)(dyndeploy_trt*, const char* name, const char* version);

  /* Build an engine from a TensorRT copy as a plan says. `progress` may be NULL; called from any thread. */
  int32_t (*build)(dyndeploy_trt*, const void* onnx, size_t size, const dyndeploy_trt_plan*,
                   const void* timings, size_t timings_size, void (*progress)(void* user, const char* text),
                   void* user, dyndeploy_trt_bytes* engine, dyndeploy_trt_bytes* new_timings,
                   dyndeploy_trt_error*);
  void (*release_bytes)(dyndeploy_trt_bytes*);

  int32_t (*load)(dyndeploy_trt*, const void* engine, size_t size, dyndeploy_trt_engine**,
                  dyndeploy_trt_error*);
  void (*unload)(dyndeploy_trt_engine*);
  size_t (*tensor_count)(const dyndeploy_trt_engine*);
  void (*tensor)(const dyndeploy_trt_engine*, size_t index, dyndeploy_trt_tensor*);

  int32_t (*allocate)(dyndeploy_trt*, size_t bytes, dyndeploy_trt_memory**, void** host,
                      dyndeploy_trt_error*);
  void (*free)(dyndeploy_trt_memory*);
  /* Bring what the device wrote to the host. */
  int32_t (*to_host)(dyndeploy_trt_memory*, dyndeploy_trt_error*);
  /* The host wrote to its copy. */
  void (*written)(dyndeploy_trt_memory*);

  /* Bind memory to the tensors, in the engine's order; NULL for outputs that nobody reads. */
  int32_t (*bind)(dyndeploy_trt_engine*, dyndeploy_trt_memory* const* tensors, int32_t cuda_graph,
                  dyndeploy_trt_run**, dyndeploy_trt_error*);
  /* Run once, and wait. */
  int32_t (*run)(dyndeploy_trt_run*, dyndeploy_trt_error*);
  void (*unbind)(dyndeploy_trt_run*);
} dyndeploy_trt_functions;

#ifdef __cplusplus
}
#endif
#endif
