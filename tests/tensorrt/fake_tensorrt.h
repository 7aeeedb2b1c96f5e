#pragma once

#include <string>

#include "api.h"

// The creator that was registered for version "1" in namespace "", of whatever interface this version
// registers.
void* find_fake_creator(const char* name);

// What was logged since the last call.
std::string take_log();
