// The note of a plan: strict UTF-8 JSON.
#pragma once

#include <cstddef>

namespace fs {

constexpr int kNoteDepth = 32;

// Checks that text is one JSON object of valid UTF-8 (RFC 8259, RFC 3629), without NaN, Infinity or
// numbers beyond float64, without repeated keys or lone surrogates, at most kNoteDepth deep. Throws
// Error(FS_E_FORMAT).
void check_note(const char* text, size_t size);

}  // namespace fs
