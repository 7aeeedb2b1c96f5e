/* dyndeploy.h: a bundle of dyndeploy in an application, in C.
 *
 *   dyndeploy_session *session;
 *   if (dyndeploy_open("bundle", NULL, &session)) { puts(dyndeploy_last_error()); return 1; }
 *   dyndeploy_result result = {.size = sizeof result};
 *   dyndeploy_image image = {.pixels = rgb, .height = 480, .width = 640, .stride = 3 * 640};
 *   if (!dyndeploy_run_images(session, &image, 1, &result)) puts(result.classification.class_name);
 *   dyndeploy_close(session);
 *
 * Every function that can fail returns a code: 0 where all is well. dyndeploy_last_error() then has one line
 * that says what is wrong and what to do, for the calling thread. No exception leaves this library.
 *
 * A session may be used by several threads at once: each call computes in memory of its own, which is kept
 * for the next call. Once every thread has made its first call of a size, the library itself allocates
 * nothing more in dyndeploy_run_images and dyndeploy_run_tensors. Where images of many callers come one by
 * one, dyndeploy_submit and dyndeploy_poll make batches of them.
 *
 * Structures begin with their size, which the caller sets: fields may be added at their ends later.
 */
#ifndef DYNDEPLOY_H
#define DYNDEPLOY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__) && defined(DYNDEPLOY_BUILD)
#define DYNDEPLOY_API __attribute__((visibility("default")))
#else
#define DYNDEPLOY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define DYNDEPLOY_ABI 1

typedef struct dyndeploy_session dyndeploy_session;

enum {
  DYNDEPLOY_OK = 0,
  DYNDEPLOY_USAGE = 1,      /* a call or an option that cannot be met as stated */
  DYNDEPLOY_BUNDLE = 2,     /* the bundle is missing, incomplete, damaged or of another version */
  DYNDEPLOY_INPUT = 3,      /* an image or a tensor is missing, unreadable or of the wrong shape */
  DYNDEPLOY_NOT_FINITE = 4, /* the network computed NaN or infinite values: that is no result */
  DYNDEPLOY_BACKEND = 5,    /* no ONNX Runtime or TensorRT, one that does not fit, no GPU, no engine */
  DYNDEPLOY_RUN = 6,        /* the runtime failed while it computed */
  DYNDEPLOY_MEMORY = 7,     /* no memory */
  DYNDEPLOY_INTERNAL = 8,   /* a fault of this library */
  DYNDEPLOY_BUSY = 9,       /* the queue is full: poll, and submit again */
  DYNDEPLOY_CLOSED = 10     /* another thread closed the session meanwhile */
};

enum {
  DYNDEPLOY_TASK_TENSORS = 0,        /* only dyndeploy_run_tensors gives its outputs */
  DYNDEPLOY_TASK_CLASSIFICATION = 1, /* dyndeploy_result.classification is filled in */
  DYNDEPLOY_TASK_DETECTION = 2       /* dyndeploy_detect_images finds objects */
};

enum {
  DYNDEPLOY_FLOAT32 = 1,
  DYNDEPLOY_UINT8 = 2,
  DYNDEPLOY_INT8 = 3,
  DYNDEPLOY_INT32 = 6,
  DYNDEPLOY_INT64 = 7,
  DYNDEPLOY_BOOL = 9,
  DYNDEPLOY_FLOAT16 = 10,
  DYNDEPLOY_FLOAT64 = 11
};

typedef struct {
  size_t size;              /* sizeof(dyndeploy_options) */
  const char* onnxruntime;  /* libonnxruntime.so or the folder that holds it; NULL: looked for */
  const char* native;       /* "auto" or NULL: the operator library if one is found; "off"; or its path */
  int32_t threads;          /* threads that compute one call; 0: one */
  int32_t threshold_count;  /* how many of the next field; 0: the bundle's thresholds */
  const double* thresholds; /* least confidence of every exit but the last */
  /* Since 0.2; callers built before give the smaller size. */
  const char*
      runtime; /* "onnxruntime", "tensorrt", "auto" or NULL: TensorRT where bundle and device have it */
  const char* tensorrt; /* TensorRT's library (libnvinfer, libtensorrt_rtx); NULL: looked for */
  const char* plugins;  /* library of the TensorRT plugins; NULL: looked for */
  /* Lines for people, from any thread: while engines are built, and once where an image fits none of a
   * detector's inputs. NULL: none. */
  void (*progress)(void* user, const char* line);
  void* user;
} dyndeploy_options;

typedef struct {
  const uint8_t* pixels; /* rows of RGB bytes, upright */
  int32_t height, width;
  int64_t stride; /* bytes from a row to the next, at least 3 * width */
} dyndeploy_image;

typedef struct {
  int32_t label;          /* index of the class */
  float confidence;       /* its softmax probability */
  const char* class_name; /* UTF-8, as long as the session; NULL where the bundle holds no names */
} dyndeploy_classification;

typedef struct {
  size_t size;             /* sizeof(dyndeploy_result) */
  int32_t task;            /* out: DYNDEPLOY_TASK_... */
  int32_t exit;            /* out: the exit that was taken, from 1; 0 for a network without exits */
  double ms;               /* out: time of the network on this image; of a batch an equal part */
  double preprocessing_ms; /* out: of decoding and resizing; 0 for tensors */
  float* rates;            /* share of active bits of every mask in the order of dyndeploy_info(), or NULL */
  size_t rates_room;       /* numbers that fit into rates */
  size_t rates_count;      /* out: numbers that there are */
  float* values;           /* the logits, or NULL */
  size_t values_room;
  size_t values_count;
  union {
    dyndeploy_classification classification;
    uint8_t reserved[64];
  };
} dyndeploy_result;

typedef struct {
  size_t size;      /* sizeof(dyndeploy_tensor) */
  const char* name; /* of the graph's input or output */
  void* data;       /* contiguous; read of an input, written of an output */
  size_t bytes;     /* of data; of an output those that there is room for */
  int32_t type;     /* DYNDEPLOY_FLOAT32 ...; of an output filled in */
  int32_t rank;     /* of an output filled in, as shape is */
  int64_t shape[8];
} dyndeploy_tensor;

/* Detectors, since 0.3. The library makes arrays of this structure: it keeps its size, and later fields are
 * taken from reserved. */
typedef struct {
  float x1, y1, x2, y2;   /* corners, in pixels of the image from its top left corner */
  float score;            /* in [0, 1] */
  int32_t label;          /* index of the class */
  int64_t category_id;    /* COCO's number of the class; the label where the bundle knows none */
  const char* class_name; /* UTF-8, as long as the session; NULL where the bundle holds no names */
  const uint32_t*
      runs;         /* of the mask, COCO's: lengths down the columns, of pixels outside and inside in turn */
  size_t run_count; /* 0: the detector finds boxes only */
  uint8_t reserved[8];
} dyndeploy_detection;

typedef struct {
  size_t size;  /* sizeof(dyndeploy_detections) */
  void* memory; /* the library's, which the next call uses again; NULL before the first one */
  const dyndeploy_detection* found;      /* out: the surest first; until the next call with this structure */
  size_t count;                          /* out: of them */
  int32_t height, width;                 /* out: of the image, upright */
  int32_t input_height, input_width;     /* out: of the network's input that it ran in */
  int32_t resized_height, resized_width; /* out: of the image in that input, in its top left corner */
  double ms;      /* out: time of the network on this image; of a batch an equal part */
  double host_ms; /* out: of resizing, normalising and decoding outside of it */
  float* rates;   /* as of dyndeploy_result */
  size_t rates_room;
  size_t rates_count; /* out */
} dyndeploy_detections;

/* Serving, since 0.4: images of many callers share batches. How is data; numbers that are 0 take what the
 * comments say. */
typedef struct {
  size_t size;           /* sizeof(dyndeploy_policy) */
  int32_t queue_limit;   /* images that were submitted and not polled yet, at most; 0: 256 */
  int32_t largest_batch; /* rows of a run; 0: 8. A bundle of a fixed batch runs at most that */
  double latency_ms;     /* bound from submission to result; 0: throughput alone counts */
  double patience; /* how readily images between stages wait for others that join them: 1 as long as that
                    * makes all together wait less, more for throughput, less for each alone; 0: 1 */
} dyndeploy_policy;

typedef struct {
  size_t size;                  /* sizeof(dyndeploy_request) */
  const dyndeploy_image* image; /* one of these three: pixels, */
  const void* file;             /* a JPEG or PNG file in memory, */
  size_t file_bytes;            /* of file */
  const float* values;          /* what dyndeploy_preprocess writes; not for detectors */
  const int32_t* sides;         /* size of dyndeploy_detect_images, or NULL */
  void* user;                   /* given back with the result */
} dyndeploy_request;

typedef struct {
  size_t size;              /* sizeof(dyndeploy_completion) */
  dyndeploy_result* result; /* filled in unless NULL; of a detector use the next one */
  dyndeploy_detections* detections;
  uint64_t ticket; /* out, as all below */
  void* user;
  int32_t code;      /* DYNDEPLOY_OK, or why this image has no result */
  int32_t rows;      /* images that ran with it in its last batch, itself among them */
  double queue_ms;   /* from submission until it first ran */
  double latency_ms; /* from submission until its result was there */
  char message[256]; /* one line, where code is not 0 */
} dyndeploy_completion;

/* DYNDEPLOY_ABI of the library; another one than the header's fits not. */
DYNDEPLOY_API int32_t dyndeploy_abi(void);

/* One line on the last failure of this thread; "" where there was none. Valid until its next call. */
DYNDEPLOY_API const char* dyndeploy_last_error(void);

/* Open the folder of a bundle. Checks its manifest, and the checksums of the graphs that it opens. options
 * may be NULL. */
DYNDEPLOY_API int32_t dyndeploy_open(const char* bundle, const dyndeploy_options* options,
                                     dyndeploy_session** session);

/* What was opened, as JSON text that lives as long as the session: network, task, inputs, outputs, masks,
 * classes, exits, thresholds, the runtime's version and path, and which code runs the dynamic operators. */
DYNDEPLOY_API const char* dyndeploy_info(const dyndeploy_session* session);

/* Run images: resized, cropped and normalised as the bundle says. results has one structure per image.
 * A bundle of a fixed batch runs as many at a time, the last batch filled up. */
DYNDEPLOY_API int32_t dyndeploy_run_images(dyndeploy_session* session, const dyndeploy_image* images,
                                           size_t count, dyndeploy_result* results);

/* The same of JPEG and PNG files, which are turned upright as their EXIF says. Decoding allocates memory. */
DYNDEPLOY_API int32_t dyndeploy_run_files(dyndeploy_session* session, const char* const* paths, size_t count,
                                          dyndeploy_result* results);

/* Run once on tensors. Every input has to be given, and of outputs (masks too) those that are wanted. A
 * network with exits gives "logits" of any number of images, or of up to a fixed batch. results: one per row,
 * or NULL. */
DYNDEPLOY_API int32_t dyndeploy_run_tensors(dyndeploy_session* session, const dyndeploy_tensor* inputs,
                                            size_t input_count, dyndeploy_tensor* outputs,
                                            size_t output_count, dyndeploy_result* results,
                                            size_t result_count);

/* One image as the network's input (3, height, width); of a detector the one of the bundle's own size. room
 * is in floats. */
DYNDEPLOY_API int32_t dyndeploy_preprocess(dyndeploy_session* session, const dyndeploy_image* image,
                                           float* values, size_t room);
DYNDEPLOY_API int32_t dyndeploy_preprocess_file(dyndeploy_session* session, const char* path, float* values,
                                                size_t room);

/* Find objects. Images have any size: each is resized to the bundle's longest and shortest side, or to those
 * of size (two numbers, or NULL), and runs in the smallest input that holds it; where none does, it is
 * resized further. results has one structure per image; free them. */
DYNDEPLOY_API int32_t dyndeploy_detect_images(dyndeploy_session* session, const dyndeploy_image* images,
                                              size_t count, const int32_t* size,
                                              dyndeploy_detections* results);
/* The same of files, as dyndeploy_run_files. */
DYNDEPLOY_API int32_t dyndeploy_detect_files(dyndeploy_session* session, const char* const* paths,
                                             size_t count, const int32_t* size,
                                             dyndeploy_detections* results);
/* Free what results hold; they can be used again. */
DYNDEPLOY_API void dyndeploy_free_detections(dyndeploy_detections* results, size_t count);

/* The mask of a detection in an image of that size, as height rows of width bytes 0 and 1. */
DYNDEPLOY_API int32_t dyndeploy_mask_pixels(const dyndeploy_detection* detection, int32_t height,
                                            int32_t width, uint8_t* pixels);
/* The mask as COCO writes it in JSON ("counts"). needed and room as for dyndeploy_statistics. */
DYNDEPLOY_API int32_t dyndeploy_mask_text(const dyndeploy_detection* detection, char* text, size_t room,
                                          size_t* needed);

/* Statistics since opening or the last reset as JSON text: images, milliseconds, mean rate of every mask,
 * exits; once images were submitted under "serving" what waits, and what every step was found to take. needed
 * (which may be NULL) is set to the bytes of the whole text with its end; DYNDEPLOY_USAGE where room is less.
 */
DYNDEPLOY_API int32_t dyndeploy_statistics(dyndeploy_session* session, char* text, size_t room,
                                           size_t* needed);
DYNDEPLOY_API int32_t dyndeploy_reset_statistics(dyndeploy_session* session);

/* Serving: submit from any threads, poll from any others. The session's own thread runs what waits. In a
 * network with exits images that are sure leave between the stages, and others that wait join there; all
 * others run in batches. An image's result is that of dyndeploy_run_images or dyndeploy_detect_images.
 *
 * Set how, before anything is submitted; policy may be NULL. Without this call the defaults hold. */
DYNDEPLOY_API int32_t dyndeploy_serve(dyndeploy_session* session, const dyndeploy_policy* policy);

/* Submit an image. It is read, decoded and resized in the calling thread before this returns; what is wrong
 * with it is told here. DYNDEPLOY_BUSY where the queue is full: it never waits. Once as many images were
 * under way as ever are, nothing more is allocated, files apart. ticket may be NULL. */
DYNDEPLOY_API int32_t dyndeploy_submit(dyndeploy_session* session, const dyndeploy_request* request,
                                       uint64_t* ticket);

/* Take up to room results, in the order in which they were finished; each is given once. Waits for the first
 * up to timeout_ms (below 0: until there is one): count is 0 where none came. DYNDEPLOY_CLOSED where another
 * thread closes the session meanwhile. */
DYNDEPLOY_API int32_t dyndeploy_poll(dyndeploy_session* session, dyndeploy_completion* completions,
                                     size_t room, double timeout_ms, size_t* count);

/* Take an image back: it is never given by dyndeploy_poll, and stages that have not run yet leave it out.
 * DYNDEPLOY_USAGE where there is none of that ticket (any more). */
DYNDEPLOY_API int32_t dyndeploy_cancel(dyndeploy_session* session, uint64_t ticket);

/* Check every checksum, and the outputs and masks on the bundle's reference inputs against PyTorch's. */
DYNDEPLOY_API int32_t dyndeploy_verify(dyndeploy_session* session);

/* Free what the session holds. Images that were submitted are dropped after the stage that runs, and
 * dyndeploy_poll ends in other threads; no other call of another thread may be under way. NULL is allowed. */
DYNDEPLOY_API void dyndeploy_close(dyndeploy_session* session);

#ifdef __cplusplus
}
#endif
#endif
