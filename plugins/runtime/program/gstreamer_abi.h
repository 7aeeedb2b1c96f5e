// The part of GStreamer 1.x that reads frames, declared by us: its libraries are opened when a video or a
// camera is, so that building needs nothing of it. tests/plugins/check_gstreamer_abi.cpp holds every line
// against the real headers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dyndeploy {
namespace runtime {
namespace gst {

// Types of which only addresses are used.
struct Element;
struct Bus;
struct Message;
struct Sample;
struct Buffer;
struct Caps;
struct Structure;

// GError and GstMapInfo.
struct GError {
  std::uint32_t domain;
  int code;
  char* message;
};
struct MapInfo {
  void* memory;
  int flags;
  std::uint8_t* data;
  std::size_t size, maxsize;
  void* user_data[4];
  void* reserved[4];
};

constexpr int kStateNull = 1, kStatePlaying = 4;
constexpr int kStateChangeFailure = 0;
constexpr int kMapRead = 1;
constexpr int kMessageError = 2;
constexpr std::uint64_t kMillisecond = 1000000;  // nanoseconds

// Functions by their own names, without the prefix gst_.
struct Functions {
  int (*init_check)(int*, char***, GError**);
  Element* (*parse_launch)(const char*, GError**);
  void* (*element_factory_find)(const char*);
  Element* (*bin_get_by_name)(Element*, const char*);
  int (*element_set_state)(Element*, int);
  Bus* (*element_get_bus)(Element*);
  Message* (*bus_pop_filtered)(Bus*, int);
  void (*message_parse_error)(Message*, GError**, char**);
  void (*mini_object_unref)(void*);
  void (*object_unref)(void*);
  Buffer* (*sample_get_buffer)(Sample*);
  Caps* (*sample_get_caps)(Sample*);
  Structure* (*caps_get_structure)(const Caps*, unsigned);
  int (*structure_get_int)(const Structure*, const char*, int*);
  int (*buffer_map)(Buffer*, MapInfo*, int);
  void (*buffer_unmap)(Buffer*, MapInfo*);
  // Of libgstapp.
  Sample* (*app_sink_try_pull_sample)(Element*, std::uint64_t);
  int (*app_sink_is_eos)(Element*);
  // Of GLib.
  void (*g_error_free)(GError*);
  void (*g_free)(void*);
};

}  // namespace gst
}  // namespace runtime
}  // namespace dyndeploy
