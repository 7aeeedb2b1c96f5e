// Our declarations of GStreamer against its headers; compiling is the test.

#include <gst/app/gstappsink.h>
#include <gst/gst.h>

#include <cstddef>
#include <type_traits>

#include "gstreamer_abi.h"

namespace ours = dyndeploy::runtime::gst;

static_assert(ours::kStateNull == GST_STATE_NULL && ours::kStatePlaying == GST_STATE_PLAYING, "states");
static_assert(ours::kStateChangeFailure == GST_STATE_CHANGE_FAILURE, "state changes");
static_assert(ours::kMapRead == GST_MAP_READ && ours::kMessageError == GST_MESSAGE_ERROR, "flags");
static_assert(ours::kMillisecond == GST_MSECOND, "clock times");
static_assert(sizeof(ours::MapInfo) == sizeof(GstMapInfo), "GstMapInfo");
static_assert(offsetof(ours::MapInfo, data) == offsetof(GstMapInfo, data), "GstMapInfo.data");
static_assert(offsetof(ours::MapInfo, size) == offsetof(GstMapInfo, size), "GstMapInfo.size");
static_assert(sizeof(ours::GError) == sizeof(GError), "GError");
static_assert(offsetof(ours::GError, message) == offsetof(GError, message), "GError.message");

namespace {

// Equal but for what a pointer points to, and the name of an integer's type.
template <class A, class B>
struct Alike : std::integral_constant<bool, (std::is_pointer<A>::value && std::is_pointer<B>::value) ||
                                                (!std::is_pointer<A>::value && !std::is_pointer<B>::value &&
                                                 std::is_void<A>::value == std::is_void<B>::value)> {};
template <class A>
struct SizeOf : std::integral_constant<std::size_t, sizeof(A)> {};
template <>
struct SizeOf<void> : std::integral_constant<std::size_t, 0> {};

template <class A, class B>
struct Same;
template <class R, class... P, class S, class... Q>
struct Same<R (*)(P...), S (*)(Q...)> {
  static_assert(sizeof...(P) == sizeof...(Q), "number of parameters");
  template <bool... values>
  struct All;
  static constexpr bool value = Alike<R, S>::value && SizeOf<R>::value == SizeOf<S>::value &&
                                std::is_same<All<(Alike<P, Q>::value && sizeof(P) == sizeof(Q))...>,
                                             All<((void)sizeof(Q), true)...>>::value;
};

}  // namespace

#define HOLDS(ours_name, theirs) \
  static_assert(Same<decltype(ours::Functions::ours_name), decltype(&theirs)>::value, #theirs)

HOLDS(init_check, gst_init_check);
HOLDS(parse_launch, gst_parse_launch);
HOLDS(element_factory_find, gst_element_factory_find);
HOLDS(bin_get_by_name, gst_bin_get_by_name);
HOLDS(element_set_state, gst_element_set_state);
HOLDS(element_get_bus, gst_element_get_bus);
HOLDS(bus_pop_filtered, gst_bus_pop_filtered);
HOLDS(message_parse_error, gst_message_parse_error);
HOLDS(mini_object_unref, gst_mini_object_unref);
HOLDS(object_unref, gst_object_unref);
HOLDS(sample_get_buffer, gst_sample_get_buffer);
HOLDS(sample_get_caps, gst_sample_get_caps);
HOLDS(caps_get_structure, gst_caps_get_structure);
HOLDS(structure_get_int, gst_structure_get_int);
HOLDS(buffer_map, gst_buffer_map);
HOLDS(buffer_unmap, gst_buffer_unmap);
HOLDS(app_sink_try_pull_sample, gst_app_sink_try_pull_sample);
HOLDS(app_sink_is_eos, gst_app_sink_is_eos);
HOLDS(g_error_free, g_error_free);
HOLDS(g_free, g_free);
