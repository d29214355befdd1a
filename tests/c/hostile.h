// What the two halves of the hostile program share.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <string>

#include "fastsample/fastsample.h"

inline int checks = 0;

inline void expect(bool ok, const std::string& what) {
  ++checks;
  if (ok) return;
  std::printf("hostile: %s (last error: %s)\n", what.c_str(), fs_last_error());
  std::exit(1);
}

template <class T>
T sized() {
  T value;
  std::memset(&value, 0, sizeof value);
  value.struct_size = sizeof value;
  return value;
}

// A status below zero and a sentence: where, what, what is accepted.
inline void expect_refused(int status, const std::string& what) {
  expect(status < 0 && std::strlen(fs_last_error()) > 20,
         what + " was accepted or refused without a sentence");
}

// hostile_plan.cpp: files cut and changed, and the calls that take a plan.
void spoil_plans(const char* path);
